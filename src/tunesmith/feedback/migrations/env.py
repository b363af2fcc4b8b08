"""What Alembic runs: the steps that a store's tables lack, in the transaction of whoever opens it."""

from __future__ import annotations

from alembic import context

from tunesmith.feedback.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
