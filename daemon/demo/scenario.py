"""
What the application of the demo inserts, and when: pure, and the same for the same seed.

Three services with senders of different speed. Codes trickle in one by one; notifications come in batches of every
size; marketing comes as one campaign. Among them are rows that must end without being sent, each for a reason of its
own, and transactions that are rolled back.

Every row has a recipient of its own, so that the provider's ledger can be held against what was inserted without
asking the daemon. All numbers are of the ranges kept for fiction (NXX-555-0100 to 0199): they belong to nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from random import Random
from typing import TYPE_CHECKING

import phonenumbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEFAULT_MESSAGES = 2_000  # what the rates below are made for: everything is on its way within about 30 s
SPAN_S = 22.0  # the application inserts for so long; shorter for few messages
REPEATED = "order-1001"  # idempotency keys begin with it

CODE = "{code} is your code. It is good for five minutes; tell it to nobody."
PARCELS = (  # one segment, two, and one of 70 characters (UCS-2)
    "Parcel {parcel} has left the depot and comes tomorrow between 9:00 and 12:00.",
    (
        "Parcel {parcel} could not be delivered. It waits for you at the shop on the corner until Saturday, 18:00. "
        "Please bring a document with your name and this message; somebody else may fetch it if you write a note."
    ),
    "Grüße! Parcel {parcel} is in your letter box \N{PACKAGE}",
)
OFFERS = (
    "Autumn has come: every pair of boots is a quarter cheaper until Sunday. Reply STOP to hear no more of us.",
    "Two coffees for the price of one, this week, before ten in the morning. Reply STOP to hear no more of us.",
    (
        "The night of the open shops is on Friday: music from seven, soup from eight, and nothing closes before "
        "midnight. Bring somebody who has never been; they drink for free. Reply STOP to hear no more of us."
    ),
)


class Kind(StrEnum):
    """Why a row is inserted: what must become of it."""

    GOOD = "good"
    IMPOSSIBLE = "impossible number"
    EMPTY = "empty body"
    STRANGE = "unknown service"
    EXPIRED = "already expired"
    REPEAT = "repeated idempotency key"
    OPTED_OUT = "opted out"
    CANCELED = "canceled in time"
    ROLLED_BACK = "transaction rolled back"


class Way(StrEnum):
    """How rows come into the table."""

    SINGLE = "single"  # one INSERT of one row, beside the application's own row
    MANY = "many"  # one INSERT of many rows
    COPY = "copy"  # COPY


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of ``outrider.outbox``, as far as it is told."""

    recipient: str
    body: str
    service: str
    intent: str
    kind: Kind = Kind.GOOD
    key: str | None = None
    order_key: str | None = None
    sender: str | None = None
    send_in_s: float | None = None
    expires_in_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of one transaction, *at_s* seconds after the start."""

    at_s: float
    way: Way
    rows: tuple[Row, ...]
    rolled_back: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A sender of the demo. *rate* in segments per second."""

    address: str
    service: str
    type: str
    rate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that will be inserted. *inserted* counts the rows that are committed."""

    speakers: tuple[Speaker, ...]
    batches: tuple[Batch, ...]
    opted_out: tuple[str, ...]  # recipients who have said stop before it begins

    @property
    def inserted(self) -> int:
        """How many rows will be committed."""
        return sum(len(batch.rows) for batch in self.batches if not batch.rolled_back)

    def rows(self) -> Iterator[Row]:
        """Every row, those of rolled-back transactions included."""
        return (row for batch in self.batches for row in batch.rows)


def write(messages: int, seed: int) -> Scenario:
    """The scenario of *messages* committed rows."""
    dice = Random(seed)
    people = numbers()
    dice.shuffle(people)
    span_s = min(SPAN_S, max(2.0, messages / 80))
    bad = _bad_rows(people, each=max(1, messages // 400))
    count = messages - len(bad)
    codes, campaign = int(count * 0.15), int(count * 0.48)
    batches = [
        *_codes(codes, people, dice, span_s=span_s),
        *_rolled_back(max(1, messages // 200), people, dice, span_s=span_s),
        *_notifications(count - codes - campaign, people, dice, span_s=span_s),
        *_campaign(campaign, people, dice),
        *(Batch(at_s=_bad_at(row, dice, span_s), way=Way.MANY, rows=(row,)) for row in bad),
    ]
    return Scenario(
        speakers=speakers(messages),
        batches=tuple(sorted(batches, key=lambda batch: batch.at_s)),
        opted_out=tuple(row.recipient for row in bad if row.kind is Kind.OPTED_OUT),
    )


def speakers(messages: int) -> tuple[Speaker, ...]:
    """The senders; for more messages than usual, quicker ones, so that a demo takes no longer."""
    grown = max(1.0, messages / DEFAULT_MESSAGES)
    known = (
        ("70001", "otp", "short_code", 100),
        ("+18885550101", "notifications", "toll_free", 10),
        ("+18885550102", "notifications", "toll_free", 14),
        ("+12015550103", "notifications", "long_code", 18),
        ("+12015550104", "marketing", "long_code", 10),
        ("+12015550105", "marketing", "long_code", 15),
        ("+12015550106", "marketing", "long_code", 20),
    )
    return tuple(
        Speaker(address=address, service=service, type=kind, rate=round(rate * grown))
        for address, service, kind, rate in known
    )


def numbers() -> list[str]:
    """Numbers of the United States that belong to nobody, and that a strict reader takes for those of a telephone."""
    areas = [area for area in range(201, 990) if _is_plain(phonenumbers.parse(f"+1{area}5550107"))]
    mine = {speaker.address for speaker in speakers(1)}
    made = (f"+1{area}55501{line:02}" for line, area in product(range(100), areas))
    return [number for number in made if number not in mine]


def _is_plain(number: phonenumbers.PhoneNumber) -> bool:
    """Neither premium-rate nor toll-free, and not of an island that shares the country code."""
    plain = phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE
    return bool(phonenumbers.number_type(number) == plain and phonenumbers.region_code_for_number(number) == "US")


def _codes(count: int, people: list[str], dice: Random, *, span_s: float) -> Iterator[Batch]:
    """Login codes, one by one, at a steady rhythm with a little unrest."""
    for number in range(count):
        row = Row(
            recipient=people.pop(),
            body=CODE.format(code=f"{dice.randrange(1_000_000):06}"),
            service="otp",
            intent="otp",
            expires_in_s=300.0,
        )
        yield Batch(at_s=(number + dice.random()) * span_s / count, way=Way.SINGLE, rows=(row,))


def _rolled_back(count: int, people: list[str], dice: Random, *, span_s: float) -> Iterator[Batch]:
    """Transactions that fail after the INSERT: nobody may ever hear of them."""
    for _ in range(count):
        row = Row(
            recipient=people.pop(),
            body="You should never have seen this.",
            service="otp",
            intent="otp",
            kind=Kind.ROLLED_BACK,
        )
        yield Batch(at_s=dice.random() * span_s, way=Way.SINGLE, rows=(row,), rolled_back=True)


def _notifications(count: int, people: list[str], dice: Random, *, span_s: float) -> Iterator[Batch]:
    """Batches of every size, the first one at once; some pairs of one order, which must keep their order."""
    left, first = count, True
    while left:
        size = min(left, dice.choice((1, 2, 5, 20, 60, 120)) if not first else max(1, count // 4))
        rows = tuple(_notification(number, people.pop(), dice) for number in range(size))
        yield Batch(at_s=0.0 if first else dice.random() * span_s * 0.8, way=Way.MANY, rows=rows)
        left, first = left - size, False


def _notification(number: int, recipient: str, dice: Random) -> Row:
    parcel = dice.randrange(10_000, 99_999)
    text = dice.choice(PARCELS).format(parcel=parcel)
    # Two rows that follow each other share a key: the second waits until the first is settled.
    order_key = f"parcel-{parcel // 10_000}-{number // 2}" if number % 40 < 2 else None
    return Row(recipient=recipient, body=text, service="notifications", intent="notifications", order_key=order_key)


def _campaign(count: int, people: list[str], dice: Random) -> Iterator[Batch]:
    """One campaign: most of it by COPY, the rest in one INSERT of many rows a moment later."""
    rows = [
        Row(recipient=people.pop(), body=dice.choice(OFFERS), service="marketing", intent="marketing")
        for _ in range(count)
    ]
    cut = count * 3 // 4
    for at_s, way, part in ((0.5, Way.COPY, rows[:cut]), (1.5, Way.MANY, rows[cut:])):
        if part:
            yield Batch(at_s=at_s, way=way, rows=tuple(part))


def _bad_rows(people: list[str], *, each: int) -> list[Row]:
    """*each* rows of every kind that must end without being sent, and the good ones that carry the repeated keys."""
    rows: list[Row] = []
    for number in range(each):
        rows += [
            _order(f"+1555{number:02}", Kind.IMPOSSIBLE),
            _order(people.pop(), Kind.EMPTY, body=" "),
            _order(people.pop(), Kind.STRANGE, service="nobodys"),
            _order(people.pop(), Kind.EXPIRED, expires_in_s=-60.0),
            _order(people.pop(), Kind.OPTED_OUT),
            _order(people.pop(), Kind.CANCELED, send_in_s=600.0),
            _order(people.pop(), Kind.GOOD, key=f"{REPEATED}-{number}"),
            _order(people.pop(), Kind.REPEAT, key=f"{REPEATED}-{number}"),
        ]
    return rows


def _order(
    recipient: str,
    kind: Kind,
    *,
    body: str = "Thank you for your order. We write again when it leaves.",
    service: str = "notifications",
    key: str | None = None,
    send_in_s: float | None = None,
    expires_in_s: float | None = None,
) -> Row:
    return Row(
        recipient=recipient,
        body=body,
        service=service,
        intent="notifications",
        kind=kind,
        key=key,
        send_in_s=send_in_s,
        expires_in_s=expires_in_s,
    )


def _bad_at(row: Row, dice: Random, span_s: float) -> float:
    match row.kind:
        case Kind.STRANGE:
            return 0.0  # refused only when no daemon has declared the service for 30 s
        case Kind.GOOD:
            return 0.2  # the first of its key
        case _:
            return 1.0 + dice.random() * (span_s - 1.0)


def counted(rows: Sequence[Row]) -> dict[Kind, int]:
    """How many rows there are of each kind."""
    return {kind: many for kind in Kind if (many := sum(row.kind is kind for row in rows))}
