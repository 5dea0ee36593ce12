"""Bad input never kills and never vanishes: each bad row ends with a status and a reason, its neighbours feel nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import asyncpg
import pytest

from daemon.simulator import Faults
from tests.road import catalogue
from tests.road.stage import Cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.road.stage import Stage

    SetUp = Callable[..., Awaitable[Stage]]

CAST = Cast(
    senders={"72345": 500, "+15550100001": 1},
    services={"fast": ["72345"], "slow": ["+15550100001"]},
    templates={"code": "Your code is {code}"},
)
GOOD = {"recipient": "'+12025550123'", "service": "'fast'", "body": "'fine'"}

# What is wrong, the columns that make it so, and how it ends.
BAD: list[tuple[str, dict[str, str], str, str]] = [
    ("no recipient", {"recipient": "NULL"}, "suppressed", "bad number"),
    ("empty recipient", {"recipient": "''"}, "suppressed", "bad number"),
    ("letters", {"recipient": "'call me maybe'"}, "suppressed", "bad number"),
    ("impossible number", {"recipient": "'+999123456789'"}, "suppressed", "bad number"),
    ("number too short for its country", {"recipient": "'+1202555'"}, "suppressed", "bad number"),
    ("premium number", {"recipient": "'+19005550123'"}, "suppressed", "bad number"),
    ("a number as long as a novel", {"recipient": "repeat('1', 100000)"}, "suppressed", "bad number"),
    ("right to left marks", {"recipient": "U&'\\202E+12025550123'"}, "suppressed", "bad number"),
    ("no body", {"body": "NULL"}, "failed", "empty body"),
    ("blank body", {"body": "E' \\n\\t '"}, "failed", "empty body"),
    ("long body", {"body": "repeat('x', 1601)"}, "failed", "1601 characters"),
    ("huge body", {"body": "repeat('x', 1000000)"}, "failed", "1000000 characters"),
    ("unknown service", {"service": "'fasst'"}, "failed", "fast"),
    ("no service", {"service": "NULL"}, "failed", "service"),
    ("a service as long as a novel", {"service": "repeat('s', 100000)"}, "failed", "service"),
    ("unknown sender", {"sender": "'+15559999999'"}, "failed", "sender"),
    ("unknown channel", {"channel": "'pigeon'"}, "failed", "channel"),
    ("a channel nobody carries", {"channel": "'email'", "recipient": "'a@example.com'"}, "failed", "email"),
    ("unknown intent", {"intent": "'otpp'"}, "failed", "otp"),
    ("unknown policy", {"on_ambiguous": "'hope'"}, "failed", "on_ambiguous"),
    ("unknown template", {"template": "'welcome'", "body": "NULL"}, "failed", "template"),
    ("body and template", {"template": "'code'"}, "failed", "both"),
    ("variables missing", {"template": "'code'", "body": "NULL", "variables": "'{}'"}, "failed", "code"),
    ("variables not an object", {"template": "'code'", "body": "NULL", "variables": "'[1]'"}, "failed", "object"),
    (
        "a number no float can hold",
        {"template": "'code'", "body": "NULL", "variables": "'{\"code\": 1e400}'"},
        "failed",
        "",
    ),
    ("media that is nothing", {"media": "ARRAY[NULL]::text[]"}, "failed", "media 1"),
    ("media that is no address", {"media": "ARRAY['https://example.org/a.png', 'cat.gif']"}, "failed", "media 2"),
    ("media in two dimensions", {"media": "ARRAY[['a', 'b']]"}, "failed", "media 1"),
    ("expired", {"expires_at": "now() - interval '1 second'"}, "expired", ""),
    ("expired before Christ", {"expires_at": "'4000-01-01 BC'"}, "expired", ""),
    (
        "expires before it is due",
        {"send_at": "now() + interval '1 day'", "expires_at": "now() + interval '1 hour'"},
        "expired",
        "",
    ),
    ("no validity", {"validity": "interval '0'"}, "expired", ""),
    ("negative validity", {"validity": "interval '-100000 years'"}, "expired", ""),
    ("due before all time", {"send_at": "'-infinity'"}, "failed", "send_at"),
    ("due at the end of time", {"send_at": "'infinity'"}, "failed", "send_at"),
]
# Odd, but fine.
ODD: list[tuple[str, dict[str, str]]] = [
    ("due long ago", {"send_at": "'4000-01-01 BC'"}),
    ("due in the hour that a clock skips", {"send_at": "'2025-03-30 02:30 Europe/Berlin'"}),
    ("due in the hour that a clock has twice", {"send_at": "'2025-10-26 02:30 Europe/Berlin'"}),
    ("due in a leap second", {"send_at": "'2016-12-31 23:59:60Z'"}),
    ("valid for ever", {"validity": "interval '170000000 years'"}),
    ("expires at the end of time", {"expires_at": "'infinity'"}),
    ("a number with spaces", {"recipient": "'+1 202-555-0123'"}),
    ("a key as long as a novel", {"idempotency_key": "repeat(md5(random()::text), 3000)"}),
    ("an order key as long as a novel", {"order_key": "repeat(md5(random()::text), 3000)"}),
    ("emoji", {"body": "'👩‍👩‍👧‍👦 héllo'"}),
]


async def insert(road: Stage, columns: dict[str, str]) -> None:
    row = {**GOOD, **columns}
    await road.connection.execute(f"INSERT INTO outrider.outbox ({', '.join(row)}) VALUES ({', '.join(row.values())})")


async def start(stage: SetUp) -> Stage:
    road = await stage(CAST)
    await road.start()
    return road


@pytest.mark.every_postgres
async def test_every_bad_row_ends_with_a_reason_within_five_seconds(stage: SetUp) -> None:
    road = await start(stage)
    for _, columns, _, _ in BAD:
        await insert(road, columns)
    began = time.monotonic()
    for _, columns in ODD:
        await insert(road, columns)
    await road.quiet(within_s=5)
    took = time.monotonic() - began
    rows = await road.connection.fetch("SELECT status, reason FROM outrider.message ORDER BY seq")
    for (what, _, status, reason), row in zip(BAD, rows, strict=False):
        assert (row["status"], reason in (row["reason"] or "")) == (status, True), f"{what}: {dict(row)}"
    for (what, _), row in zip(ODD, rows[len(BAD) :], strict=True):
        assert row["status"] in {"accepted", "sent", "delivered"}, f"{what}: {dict(row)}"
    assert took < 5
    assert len(await road.sent()) == len(ODD)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)])
async def test_a_thousand_odd_rows_end_in_five_seconds_and_their_neighbours_do_not_wait(
    stage: SetUp, seed: int
) -> None:
    road = await start(stage)
    odd = [row for row in catalogue.rows(seed, 1_200) if row.get("send_at") != catalogue.FAR]
    statement = (
        f"INSERT INTO outrider.outbox ({', '.join(catalogue.COLUMNS)}) VALUES"
        f" ({', '.join(f'${number}' for number, _ in enumerate(catalogue.COLUMNS, 1))}) RETURNING id"
    )
    await insert(road, {})
    await road.until("SELECT count(*) = 1 FROM outrider.outcome")  # a sender is silent for its first second
    neighbours = []
    began = time.monotonic()
    for number, row in enumerate(odd):
        await road.connection.execute(statement, *(row.get(column) for column in catalogue.COLUMNS))
        if not number % 25:
            neighbours.append(
                await road.connection.fetchval(
                    "INSERT INTO outrider.outbox (recipient, service, intent, body)"
                    " VALUES ('+12025550199', 'fast', 'otp', $1) RETURNING id", f"neighbour {number}",
                )
            )  # fmt: skip
    inserted = time.monotonic()
    await road.quiet(within_s=5)
    print(f"{len(odd)} odd rows in {inserted - began:.1f} s, ended {time.monotonic() - inserted:.1f} s later")
    for (status, reason), many in (await road.statuses()).items():
        assert status in {"failed", "suppressed", "expired", "accepted", "sent", "delivered", "read"}, (
            f"{many} {status}: {reason}\n{road.log.read_text()[-6000:]}"
        )
        assert reason or status in {"accepted", "sent", "delivered", "read"}, f"{many} {status} without a reason"
    waits = await road.connection.fetch(
        "SELECT extract(epoch FROM o.accepted_at - b.created_at)::float8 AS wait_s FROM outrider.outcome o"
        " JOIN outrider.outbox b USING (id) WHERE id = ANY ($1)", neighbours,
    )  # fmt: skip
    assert len(waits) == len(neighbours)
    print(f"a neighbour waited {max(row['wait_s'] for row in waits):.2f} s at the most")
    assert max(row["wait_s"] for row in waits) < 1.0
    log = road.log.read_text()
    assert "Traceback" not in log
    assert "stumbled" not in log


async def test_bad_rows_in_a_copy_do_not_touch_their_neighbours(stage: SetUp) -> None:
    road = await stage(CAST, Faults.model_validate({"receipts": {"enabled": False}}))
    await road.start()
    rows = [
        (
            f"+1202{5550000 + number}" if number % 100 else "nobody",
            "fast" if number % 250 else "nowhere",
            f"row {number}",
        )
        for number in range(1, 10_001)
    ]
    await road.connection.copy_records_to_table(
        "outbox", schema_name="outrider", columns=["recipient", "service", "body"], records=rows
    )
    await road.until("SELECT count(*) = 120 FROM outrider.outcome WHERE status IN ('failed', 'suppressed')", within_s=5)
    await road.quiet(within_s=50)
    found = {word: 0 for word, _ in await road.statuses()}
    for (word, _), many in (await road.statuses()).items():
        found[word] += many
    assert found.pop("suppressed") + found.pop("failed") == 100 + 40 - 20
    assert sum(found.values()) == len(await road.sent()) == 9_880


async def test_bad_rows_behind_a_long_queue_do_not_wait_for_it(stage: SetUp) -> None:
    road = await start(stage)
    await road.insert(100_000, service="slow", intent="marketing")
    for columns in (
        {"recipient": "'+999123456789'"},
        {"recipient": "'+12'"},
        {"body": "NULL"},
        {"media": "ARRAY[NULL]::text[]"},
        {"service": "'nowhere'"},
    ):
        await insert(road, {"service": "'slow'", **columns})
    await road.until("SELECT count(*) = 5 FROM outrider.outcome WHERE status IN ('failed', 'suppressed')", within_s=5)


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    ("what", "statement", "error"),
    [
        (
            "NUL",
            "INSERT INTO outrider.outbox (body) VALUES (E'a\\u0000b')",
            (asyncpg.UntranslatableCharacterError, asyncpg.PostgresSyntaxError),
        ),
        ("a lone surrogate", "INSERT INTO outrider.outbox (body) VALUES (E'\\ud800')", (asyncpg.PostgresSyntaxError,)),
        (
            "a wrong type",
            "INSERT INTO outrider.outbox (send_at) VALUES ('tomorrowish')",
            (asyncpg.InvalidDatetimeFormatError,),
        ),
        ("an unknown column", "INSERT INTO outrider.outbox (colour) VALUES ('red')", (asyncpg.UndefinedColumnError,)),
        ("a priority", "INSERT INTO outrider.outbox (priority) VALUES (-1)", (asyncpg.UndefinedColumnError,)),
        ("a column of ours", "INSERT INTO outrider.outbox (seq) VALUES (1)", (asyncpg.GeneratedAlwaysError,)),
        ("broken JSON", "INSERT INTO outrider.outbox (tags) VALUES ('{')", (asyncpg.InvalidTextRepresentationError,)),
    ],
)
async def test_what_postgres_itself_refuses_aborts_the_statement(
    connection: asyncpg.Connection[asyncpg.Record], what: str, statement: str, error: tuple[type[Exception], ...]
) -> None:
    with pytest.raises(error):
        await connection.execute(statement)
    assert await connection.fetchval("SELECT count(*) FROM outrider.outbox") == 0
