"""The statements that run with every answer, for `driver.run`. What they are asked with stands in their parameters:
`its_item`, `its_labeler`, ...
"""

from __future__ import annotations

from sqlalchemy import BindParameter, and_, bindparam, case, exists, func, insert, or_, select, update

from tunesmith.feedback.schema import assignment, candidate, event, item, labeler, session, setting

COUNTED = ("open", "ranked")  # states that fill a place of an item
DONE = ("ranked", "skipped", "adjudicated")

LEASE_MINUTES, OVERLAP = 30.0, 1  # when the owner has decided nothing

THIS_ITEM: BindParameter[str] = bindparam("its_item")
THIS_LABELER: BindParameter[str] = bindparam("its_labeler")
ITS = and_(assignment.c.item_id == THIS_ITEM, assignment.c.labeler_id == THIS_LABELER)

STUDY = select(setting.c.value).where(setting.c.name == "study")
STUDY_OVERLAP = func.coalesce(
    select(setting.c.value["overlap"].as_integer()).where(setting.c.name == "study").scalar_subquery(), OVERLAP
)
STUDY_LEASE = func.coalesce(
    select(setting.c.value["lease_minutes"].as_float()).where(setting.c.name == "study").scalar_subquery(),
    LEASE_MINUTES,
).label("lease_minutes")
SESSION = (
    select(labeler.c.id, labeler.c.name, labeler.c.role)
    .join(session, session.c.labeler_id == labeler.c.id)
    .where(session.c.token == bindparam("its_token"))
    .where(session.c.revoked_at.is_(None), session.c.until > bindparam("now"), ~labeler.c.is_blocked)
)

# Lending

OVER = select(assignment.c.item_id, assignment.c.labeler_id).where(
    assignment.c.state == "open", assignment.c.lease_until < bindparam("now")
)
OPEN_ONE = (
    select(assignment.c.item_id).where(assignment.c.labeler_id == THIS_LABELER, assignment.c.state == "open").limit(1)
)
# By priority; else in the order of ids, which are hashes: at random, and the same on every machine.
BY_PRIORITY = (item.c.priority.desc(), item.c.id.desc())
FREE = (
    select(item.c.id)
    .where(
        item.c.is_free,
        ~exists().where(
            assignment.c.item_id == item.c.id,
            assignment.c.labeler_id == THIS_LABELER,
            assignment.c.state != "expired",
        ),
    )
    .order_by(*BY_PRIORITY)
    .limit(1)
)
NEXT = select(func.coalesce(OPEN_ONE.scalar_subquery(), FREE.scalar_subquery()).label("id"), STUDY_LEASE)
QUEUE = (
    select(item.c.id, item.c.messages, item.c.priority, item.c.reason)
    .where(item.c.is_free)
    .order_by(*BY_PRIORITY)
    .limit(bindparam("most"))
)
LEND = (
    update(assignment)
    .where(ITS)
    .values(state=bindparam("new_state"), lease_until=bindparam("until"))
    .returning(assignment.c.item_id)
)
FIRST_LEND = insert(assignment)
# The states stand in what is counted, not in what is looked for: PostgreSQL would go through everybody's of a state.
NUM_COUNTED = (
    select(func.count(case((or_(*(assignment.c.state == state for state in COUNTED)), 1))))
    .where(assignment.c.item_id == item.c.id)
    .correlate(item)
    .scalar_subquery()
)
COUNT_ALL_AGAIN = update(item).values(is_free=STUDY_OVERLAP > NUM_COUNTED)
COUNT_AGAIN = COUNT_ALL_AGAIN.where(item.c.id == THIS_ITEM)

# Showing

# An item as it is for one person, with its prompt and what they said of it.
ASSIGNMENT = (
    select(assignment, item.c.messages, event.c.payload, STUDY_LEASE)
    .join(item, item.c.id == assignment.c.item_id)
    .outerjoin(event, event.c.id == assignment.c.version)
    .where(ITS)
)
CANDIDATES = select(candidate.c.id, candidate.c.text).where(candidate.c.item_id == THIS_ITEM)
NUM_FREE = select(func.count().label("num")).select_from(item).where(item.c.is_free)
# (state, whether the item is free, how many) of one person's items.
MINE = (
    select(assignment.c.state, item.c.is_free, func.count().label("num"))
    .join(item, item.c.id == assignment.c.item_id)
    .where(assignment.c.labeler_id == THIS_LABELER)
    .group_by(assignment.c.state, item.c.is_free)
)

# What people say

REPEATED = select(event.c.id, event.c.item_id, event.c.payload).where(
    event.c.labeler_id == THIS_LABELER, event.c.key == bindparam("its_key")
)
NOTE = insert(event).returning(event.c.id)
DRAFT = update(assignment).where(ITS).values(draft=bindparam("new_draft"), lease_until=bindparam("until"))
ANSWER = (
    update(assignment).where(ITS).values(state=bindparam("new_state"), version=bindparam("new_version"), draft=None)
)
