"""The first tables. A step stays as it was once stores have been made by it; what changes is a further step."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
REFUSAL = "what people did is never changed"


def upgrade() -> None:
    _make_items()
    _make_people()
    _make_work()
    _protect_events()


def _make_items() -> None:
    op.create_table(
        "setting",
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_setting"),
    )
    op.create_table(
        "item",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("priority", sa.Float(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("gold", sa.JSON()),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("is_free", sa.Boolean(), nullable=False),
        sa.Column("added_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_item"),
    )
    op.create_index("ix_item_next", "item", ["is_free", "priority", "id"])
    op.create_table(
        "candidate",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("item_id", sa.String(32), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("source", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_candidate"),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"], name="fk_candidate_item_id"),
    )
    op.create_index("ix_candidate_item_id", "candidate", ["item_id"])


def _make_people() -> None:
    op.create_table(
        "labeler",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("name", sa.String(60), nullable=False),
        sa.Column("role", sa.String(10), nullable=False),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("password", sa.Text(), nullable=False),
        sa.Column("is_blocked", sa.Boolean(), nullable=False),
        sa.Column("joined_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_labeler"),
        sa.UniqueConstraint("name", name="uq_labeler_name"),
    )
    op.create_table(
        "session",
        sa.Column("token", sa.String(64), nullable=False),
        sa.Column("labeler_id", NUMBER, nullable=False),
        sa.Column("begun_at", sa.Float(), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.Column("revoked_at", sa.Float()),
        sa.PrimaryKeyConstraint("token", name="pk_session"),
        sa.ForeignKeyConstraint(["labeler_id"], ["labeler.id"], name="fk_session_labeler_id"),
    )
    op.create_index("ix_session_labeler_id", "session", ["labeler_id"])
    op.create_table(
        "invitation",
        sa.Column("token", sa.String(64), nullable=False),
        sa.Column("role", sa.String(10), nullable=False),
        sa.Column("made_at", sa.Float(), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.Column("used_at", sa.Float()),
        sa.Column("used_by", NUMBER),
        sa.PrimaryKeyConstraint("token", name="pk_invitation"),
        sa.ForeignKeyConstraint(["used_by"], ["labeler.id"], name="fk_invitation_used_by"),
    )


def _make_work() -> None:
    op.create_table(
        "assignment",
        sa.Column("item_id", sa.String(32), nullable=False),
        sa.Column("labeler_id", NUMBER, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("shown", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("lease_until", sa.Float(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("draft", sa.JSON()),
        sa.PrimaryKeyConstraint("item_id", "labeler_id", name="pk_assignment"),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"], name="fk_assignment_item_id"),
        sa.ForeignKeyConstraint(["labeler_id"], ["labeler.id"], name="fk_assignment_labeler_id"),
    )
    op.create_index("ix_assignment_lease", "assignment", ["state", "lease_until"])
    op.create_index("ix_assignment_mine", "assignment", ["labeler_id", "state", "version"])
    op.create_table(
        "event",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("labeler_id", NUMBER),
        sa.Column("item_id", sa.String(32)),
        sa.Column("action", sa.String(20), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("key", sa.String(64)),
        sa.PrimaryKeyConstraint("id", name="pk_event"),
        sa.ForeignKeyConstraint(["labeler_id"], ["labeler.id"], name="fk_event_labeler_id"),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"], name="fk_event_item_id"),
        sa.UniqueConstraint("labeler_id", "key", name="uq_event_labeler_id_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_event_of_item", "event", ["item_id", "labeler_id", "id"])
    op.create_index("ix_event_action", "event", ["action", "id"])


def _protect_events() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER event_is_kept_from_{change.lower()} BEFORE {change} ON event "
                f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION keep_events() RETURNS trigger AS "
        f"$$ BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$ LANGUAGE plpgsql"
    )
    op.execute(
        "CREATE TRIGGER event_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON event "
        "FOR EACH STATEMENT EXECUTE FUNCTION keep_events()"
    )
