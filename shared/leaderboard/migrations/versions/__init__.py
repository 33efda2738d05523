"""One module a revision, named like it."""
