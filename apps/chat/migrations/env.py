"""Runs the migrations on the connection that `Database.migrate` hands over."""

from alembic import context

from apps.chat.models import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,
    user_module_prefix="models.",
)
with context.begin_transaction():
    context.run_migrations()
