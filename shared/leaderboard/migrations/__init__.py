"""The schema of the record, step by step (Alembic). Run by `adapters.sql_migrations`."""
