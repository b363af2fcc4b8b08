"""The tables of a feedback store. Times are seconds since 1970, tokens stand there as their sha256 only.

What people did is in `event`, which is only ever added to (triggers see to it); `assignment` says where it has led.
Answers are named by the ids of candidates, which come from their content: a position names nothing.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)
# SQLite counts rows by itself only in a column that is called INTEGER.
Number = BigInteger().with_variant(Integer, "sqlite")

setting = Table(
    "setting",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("value", JSON, nullable=False),
)

# A prompt with its candidates. `is_free`: fewer people have ranked it, or are at it, than are asked for.
item = Table(
    "item",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("messages", JSON, nullable=False),
    Column("priority", Float, nullable=False),
    Column("reason", Text, nullable=False),  # of the priority, for the owner
    Column("gold", JSON(none_as_null=True)),  # levels of candidate ids that are known to be right
    Column("origin", Text, nullable=False),
    Column("is_free", Boolean, nullable=False),
    Column("added_at", Float, nullable=False),
    Index("ix_item_next", "is_free", "priority", "id"),
)

candidate = Table(
    "candidate",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("item_id", ForeignKey("item.id"), nullable=False, index=True),
    Column("text", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("source", JSON, nullable=False),  # all that is needed to make it again
)

labeler = Table(
    "labeler",
    metadata,
    Column("id", Number, primary_key=True),
    Column("name", String(60), nullable=False, unique=True),
    Column("role", String(10), nullable=False),  # owner, labeler
    Column("kind", String(10), nullable=False),  # human, simulated
    Column("password", Text, nullable=False),  # scrypt; empty: no password opens this account
    Column("is_blocked", Boolean, nullable=False),
    Column("joined_at", Float, nullable=False),
)

session = Table(
    "session",
    metadata,
    Column("token", String(64), primary_key=True),
    Column("labeler_id", ForeignKey("labeler.id"), nullable=False, index=True),
    Column("begun_at", Float, nullable=False),
    Column("until", Float, nullable=False),
    Column("revoked_at", Float),
)

invitation = Table(
    "invitation",
    metadata,
    Column("token", String(64), primary_key=True),
    Column("role", String(10), nullable=False),
    Column("made_at", Float, nullable=False),
    Column("until", Float, nullable=False),
    Column("used_at", Float),
    Column("used_by", ForeignKey("labeler.id")),
)

# An item in front of a person. `version` is the id of the event that says what they think of it, 0 before there is one.
assignment = Table(
    "assignment",
    metadata,
    Column("item_id", ForeignKey("item.id"), primary_key=True),
    Column("labeler_id", ForeignKey("labeler.id"), primary_key=True),
    Column("state", String(16), nullable=False),  # open, expired, ranked, skipped
    Column("shown", JSON, nullable=False),  # candidate ids in the order in which this person sees them
    Column("seed", BigInteger, nullable=False),  # that made this order
    Column("lease_until", Float, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("draft", JSON(none_as_null=True)),
    Index("ix_assignment_lease", "state", "lease_until"),
    Index("ix_assignment_mine", "labeler_id", "state", "version"),
)

event = Table(
    "event",
    metadata,
    Column("id", Number, primary_key=True),
    Column("at", Float, nullable=False),
    Column("labeler_id", ForeignKey("labeler.id")),
    Column("item_id", ForeignKey("item.id")),
    Column("action", String(20), nullable=False),
    Column("payload", JSON, nullable=False),
    Column("key", String(64)),  # made by the client; one request leaves one event, however often it is sent
    UniqueConstraint("labeler_id", "key"),
    Index("ix_event_of_item", "item_id", "labeler_id", "id"),
    Index("ix_event_action", "action", "id"),
    sqlite_autoincrement=True,  # an id is never given twice
)
