"""Alembic asks this module how to reach the database: through the connection that
`adapters.sql_migrations` hands over, inside that one's transaction and lock.
"""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    # The caller's transaction holds all of it, on SQLite as well.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
