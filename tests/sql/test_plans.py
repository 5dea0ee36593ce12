"""
What the statements of the hot path cost Postgres, whatever it believes about its tables: bounded by what is asked, never
by what lies there. Guards the trap of a table that was analysed at a bad moment (docs/decisions/0001).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg
import pytest
import uvloop

from daemon.database import HOT_SETTINGS, connect, statement
from daemon.inspector import STATEMENTS as INSPECTOR
from daemon.janitor import STATEMENTS as JANITOR
from daemon.ledger import STATEMENTS as LEDGER
from daemon.outbox import STATEMENTS as OUTBOX
from daemon.reconciler import STATEMENTS as RECONCILER
from daemon.retention import DUTIES
from tests.sql.actor import LONG_AGO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from tests.conftest import Cluster

    Connection = asyncpg.Connection[asyncpg.Record]

pytestmark = pytest.mark.every_postgres

ROWS = 200_000
ASKED = 100
OWNER = UUID(int=7)
WIDE = ("queue", "outbox", "outcome", "attempt", "receipt")  # and every week of theirs: what may be long

# Straight into the tables, without the intake: four seconds for all.
FILL = """
SET session_replication_role = replica;
WITH asked AS (
    INSERT INTO outrider.outbox (recipient, body, service, intent)
    SELECT '+12025550100', 'Hello', 'campaign', 'marketing' FROM generate_series(1, {many}) RETURNING id, seq, created_at
)
INSERT INTO outrider.queue (id, seq, state, lane, level, due_at, order_key, attempts)
SELECT id, seq, {state}, {lane}, 3, created_at, {order_key}, CASE WHEN {state} = 'unknown' THEN 1 ELSE 0 END FROM asked;
SET session_replication_role = origin;
"""
# Four of five have arrived, and the fifth is waited for: two in five of those for too long already.
DONE = """
INSERT INTO outrider.outcome (id, status, rank, attempts, segments, provider, sender, reference, accepted_at)
SELECT outrider.new_id(), CASE WHEN n % 5 = 0 THEN 'accepted' ELSE 'delivered' END, 10, 1, 1, 'twilio', '+12025550100',
       'SM' || n, now() - make_interval(mins => 1 + n % 151)
  FROM generate_series(1, {many}) AS n
"""
LEASE = (
    "INSERT INTO outrider.lease VALUES ('group', '00000000-0000-0000-0000-000000000007', 1, now() + interval '1 day')"
)
TABLES = "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'outrider'::regnamespace AND relkind = 'r' AND relname ~ '^(queue|outbox|outcome|claim)'"

# Statements of the hot lines that only write, or read what is narrow by its nature: daemons, claims, backends.
ELSEWHERE = {"attempts", "anomalies", "inbound", "declared", "disown", "horizon"}
PARKED = """
INSERT INTO outrider.parked (provider, reference, since, look_at)
SELECT 'twilio', 'SM' || n, now(), now() FROM generate_series(1, {many}) AS n
"""

# What Postgres may have come to believe.
BELIEFS: Mapping[str, str] = {
    "one kind of rows only": "SELECT",  # as it was analysed, in the middle of filling
    "nothing there": "DELETE FROM pg_statistic; UPDATE pg_class SET reltuples = 0, relpages = 0",
    "never analysed": "DELETE FROM pg_statistic; UPDATE pg_class SET reltuples = -1, relpages = 0",
    "one row in a million pages": "UPDATE pg_class SET reltuples = 1, relpages = 1000000",
    "far more than there is": "UPDATE pg_class SET reltuples = 1e9, relpages = 1",
}
NUMBERS = count(1)
OURS = " WHERE relnamespace = 'outrider'::regnamespace AND relkind IN ('r', 'i')"


@dataclass(frozen=True, slots=True)
class Stage:
    """A database with a long queue, and what a claim cost while the queue was short."""

    connection: Connection
    runner: asyncio.Runner
    dsn: str
    short: int


@pytest.fixture(scope="module")
def stage(postgres: Cluster) -> Iterator[Stage]:
    name = postgres.clone()
    dsn = postgres.server.dsn(name)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        connection = runner.run(connect(dsn, HOT_SETTINGS))
        try:
            yield Stage(connection, runner, dsn, runner.run(fill(connection)))
        finally:
            connection.terminate()  # a loop with an open connection would wait for ever
    postgres.drop(name)


async def fill(connection: Connection) -> int:
    """200,000 rows of all kinds, analysed when there were 1,000 of one."""
    for table in await connection.fetch(TABLES):
        await connection.execute(f"ALTER TABLE {table[0]} SET (autovacuum_enabled = off)")
    await connection.execute(LEASE)
    await add(connection, 1000)
    await connection.execute("ANALYZE")
    short = await Explained.of(connection, "claim", claim("campaign"))
    await add(connection, ROWS - 30_000)
    await add(connection, 10_000, state="'unknown'", lane="'doubtful'")
    await add(
        connection,
        10_000,
        state="CASE WHEN seq % 4 = 0 THEN 'ready' ELSE 'behind' END",
        lane="'ordered'",
        order_key="'key ' || seq / 4 % 5",
    )
    await add(connection, 5_000, state="'suspect'", lane="'other'")
    await add(connection, 5_000, lane="'other'")
    await connection.execute(DONE.format(many=50_000))
    await connection.execute(PARKED.format(many=1_000))
    return short.buffers


async def add(
    connection: Connection, many: int, *, state: str = "'ready'", lane: str = "'campaign'", order_key: str = "NULL"
) -> None:
    await connection.execute(FILL.format(many=many, state=state, lane=lane, order_key=order_key))


@dataclass(frozen=True, slots=True)
class Explained:
    """A statement that was run, and taken back."""

    nodes: Sequence[Mapping[str, object]]
    buffers: int

    @classmethod
    async def of(
        cls, connection: Connection, name: str, arguments: Sequence[object], *, believing: str = "SELECT"
    ) -> Explained:
        transaction = connection.transaction()
        await transaction.start()
        try:
            for belief in believing.split("; "):
                await connection.execute(belief + OURS if belief.startswith("UPDATE") else belief)
            # EXPLAIN of a query with parameters plans for their values; EXECUTE keeps to plan_cache_mode, as the daemon does.
            it = f"{name}_{next(NUMBERS)}"
            await connection.execute(f"PREPARE {it} AS {statement(name)}")
            return await cls.executed(connection, f"{it} {called(arguments)}")
        finally:
            await transaction.rollback()

    @classmethod
    async def executed(cls, connection: Connection, call: str) -> Explained:
        rows = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {call}")
        plan = json.loads(rows[0][0])[0]["Plan"]
        return cls(list(within(plan)), plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

    def scanned(self) -> list[str]:
        """Wide tables that were read from end to end."""
        return [str(node["Relation Name"]) for node in self.nodes if node["Node Type"] == "Seq Scan" and wide(node)]

    def sorted_rows(self) -> float:
        """The most rows that any sort was given."""
        return max((rows(node) for node in self.nodes if "Sort" in str(node["Node Type"])), default=0.0)

    def touched(self) -> tuple[float, str]:
        """The most rows that any scan of a wide table looked at, and where."""
        seen = [(rows(node), node) for node in self.nodes if "Scan" in str(node["Node Type"]) and wide(node)]
        most, node = max(seen, key=lambda one: one[0], default=(0.0, {}))
        keys = ("Relation Name", "Alias", "Index Name", "Index Cond", "Filter")
        return most, ", ".join(str(node[key]) for key in keys if key in node)


def within(node: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    yield node
    for inner in node.get("Plans", ()):  # type: ignore[attr-defined]
        yield from within(inner)


def wide(node: Mapping[str, object]) -> bool:
    return str(node.get("Relation Name", "")).split("_")[0] in WIDE


def rows(node: Mapping[str, object]) -> float:
    looked_at = sum(
        float(str(node.get(key, 0)))
        for key in ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
    )
    return looked_at * float(str(node["Actual Loops"]))


def literal(value: object) -> str:
    """*value* as an argument of EXECUTE: a list as an array of whatever type the parameter has."""
    match value:
        case list():
            inner = ",".join("NULL" if one is None else f'"{one}"' for one in value)
            return f"'{{{inner}}}'"
        case int() | float():
            return str(value)
        case _:
            return f"'{value}'"


def called(arguments: Sequence[object]) -> str:
    return f"({', '.join(map(literal, arguments))})" if arguments else ""


def claim(lane: str, *, mark: datetime = LONG_AGO, room: int = ASKED) -> list[object]:
    return [OWNER, ["group"], [lane], [3], [room], [mark], [], ["group"], [1]]


async def some(connection: Connection, where: str, many: int = ASKED) -> list[UUID]:
    query = f"SELECT id FROM outrider.queue WHERE {where} ORDER BY seq LIMIT {many}"  # noqa: S608
    return [row["id"] for row in await connection.fetch(query)]


async def questions(connection: Connection) -> dict[str, list[object]]:
    """Each statement, asked for much."""
    ids = await some(connection, "lane = 'campaign' AND state = 'ready'")
    heads = await some(connection, "lane = 'ordered' AND state = 'ready'", 5)
    doubtful = await some(connection, "state = 'unknown'")
    suspects = await some(connection, "state = 'suspect'")
    found = await connection.fetch(f"SELECT id FROM outrider.outcome WHERE status = 'accepted' LIMIT {ASKED}")  # noqa: S608
    waiting = [row["id"] for row in found]
    top = await connection.fetchval("SELECT max(seq) FROM outrider.queue")
    fence: list[object] = [OWNER, ["group"], [1]]
    then = "2025-01-01Z"

    def columns(ids: Sequence[UUID], *values: object) -> list[object]:
        """One column of *ids*, and one of each value."""
        return [list(ids), *([value] * len(ids) for value in values)]

    many = [*ids, *heads]
    word = {
        "grp": "group", "attempt": 1, "status": "accepted", "rank": 10, "segments": 1, "provider": "twilio",
        "sender": "+12025550100", "reference": "SM1", "at": 1.7e9,
    }  # fmt: skip
    return {
        "claim": claim("campaign"),
        "settle": [
            *fence, json.dumps([word | {"id": str(id)} for id in many]), [], len(many),
        ],
        "giveback": [*fence, ["group"] * len(ids), *columns(ids, 1, "ready", then, 1, "again"), []],
        "late": columns(doubtful, 1, "accepted", 10, 1, "twilio", "+12025550100", "SM1", then),
        "receive": columns([*doubtful[:50], *ids[:50]], 1, "twilio", "SM1", "delivered", 50, None, None, True),
        "refuse": columns(suspects, 0, "failed", 40, "bad"),
        "decide": [doubtful[0], 1, "dead", 5, "parked"],
        "doubts": [["doubtful"], ASKED, 20.0],
        "sweep": [["campaign", "other"], [3, 3], ["2999-01-01Z"] * 2, []],
        "suspects": [["other"], ASKED],
        "next_in_lane": ["campaign", 3, "1970-01-01Z", -1, ASKED],
        "ahead_numbers": [top - ASKED, top],
        "free_order": [ASKED, 60.0],
        "lanes": [],
        "lanes_apart": ["unknown"],
        "strays": [["other"], ASKED],
        "overdue": [ASKED],
        "parked": [ASKED],
        "known": [[f"SM{number}" for number in range(1, ASKED)]],
        "quieted": columns(waiting, then),
    }  # fmt: skip


def test_every_statement_of_the_hot_lines_is_held_here(stage: Stage) -> None:
    hot = {*OUTBOX, *LEDGER, *INSPECTOR, *JANITOR, *RECONCILER, "receive", "inbound"}
    assert hot - stage.runner.run(questions(stage.connection)).keys() == ELSEWHERE


@pytest.mark.parametrize("believing", BELIEFS)
def test_no_statement_reads_more_than_it_is_asked_for(stage: Stage, believing: str) -> None:
    async def look() -> None:
        for name, arguments in (await questions(stage.connection)).items():
            seen = await Explained.of(stage.connection, name, arguments, believing=BELIEFS[believing])
            assert seen.scanned() == [], name
            # The janitor's look at the order reads 4 x what it may free, from both ends.
            bound = 8 * ASKED + 10 if name == "free_order" else 2 * ASKED + 10
            assert seen.touched() <= (bound, "~"), name
            assert seen.sorted_rows() <= bound, name
            assert seen.buffers <= 100 * (ASKED if name != "free_order" else 8 * ASKED), (
                f"{name}: {seen.buffers} buffers"
            )

    stage.runner.run(look())


def test_a_claim_costs_the_same_however_long_the_queue_is(stage: Stage) -> None:
    seen = stage.runner.run(Explained.of(stage.connection, "claim", claim("campaign")))
    assert seen.touched() <= (ASKED, "~")
    assert seen.buffers <= 1.3 * stage.short + 2 * ASKED, "one level more of an index may be two buffers a row"


def test_a_mark_keeps_the_claim_off_two_hundred_thousand_dead_rows(stage: Stage) -> None:
    """A snapshot held open keeps what was settled in the index: without the mark each claim walks over all of it."""

    async def look() -> tuple[Explained, Explained]:
        holder = await connect(stage.dsn)
        snapshot = holder.transaction(isolation="repeatable_read")
        await snapshot.start()
        await holder.fetchval("SELECT 1")
        await stage.connection.execute("DELETE FROM outrider.queue WHERE lane = 'campaign'")
        mark = await stage.connection.fetchval("SELECT clock_timestamp()")
        await add(stage.connection, 1000)
        with_mark = await Explained.of(stage.connection, "claim", claim("campaign", mark=mark))
        without = await Explained.of(stage.connection, "claim", claim("campaign"))
        await snapshot.rollback()
        await holder.close()
        return with_mark, without

    with_mark, without = stage.runner.run(look())
    assert with_mark.buffers <= 1.3 * stage.short + 2 * ASKED
    assert without.buffers > 5 * with_mark.buffers, "else the mark is not worth its trouble"


def test_suspects_of_lanes_that_are_not_ours_are_not_walked_over(stage: Stage) -> None:
    async def look() -> Explained:
        await add(stage.connection, ASKED, state="'suspect'", lane="'mine'")
        return await Explained.of(stage.connection, "suspects", [["mine"], 2 * ASKED])

    assert stage.runner.run(look()).touched() <= (ASKED, "~")


def test_a_verdict_on_one_of_many_behind_a_key_looks_at_the_next_alone(stage: Stage) -> None:
    async def look() -> Explained:
        await add(
            stage.connection,
            20_000,
            state="CASE WHEN row_number() OVER (ORDER BY seq) = 1 THEN 'ready' ELSE 'behind' END",
            lane="'chain'",
            order_key="'all the same'",
        )
        (head,) = await some(stage.connection, "lane = 'chain'", 1)
        await stage.connection.execute("UPDATE outrider.queue SET state = 'unknown' WHERE id = $1", head)
        return await Explained.of(stage.connection, "decide", [head, 0, "dead", 5, "x"])

    seen = stage.runner.run(look())
    assert seen.touched() <= (10, "~")
    assert seen.buffers <= 500


async def kept(connection: Connection) -> dict[str, Explained]:
    """Plans made when the queue held a few rows, used when it holds 20,000."""
    for table in await connection.fetch(TABLES):
        await connection.execute(f"ALTER TABLE {table[0]} SET (autovacuum_enabled = off)")
    await connection.execute(LEASE)
    kinds: list[dict[str, str]] = [
        {},
        {"state": "'unknown'", "lane": "'doubtful'"},
        {
            "state": "CASE WHEN seq % 4 = 0 THEN 'ready' ELSE 'behind' END",
            "lane": "'ordered'",
            "order_key": "'key ' || seq / 4 % 5",
        },
        {"state": "'suspect'", "lane": "'other'"},
        {"lane": "'other'"},
    ]
    for kind in kinds:
        await add(connection, 4, **kind)
    await connection.execute(DONE.format(many=20))
    await connection.execute(PARKED.format(many=5))
    await connection.execute("VACUUM ANALYZE")
    for name, arguments in (await questions(connection)).items():
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(f"PREPARE kept_{name} AS {statement(name)}")
        await connection.execute(f"EXECUTE kept_{name} {called(arguments)}")
        await transaction.rollback()
    for kind in kinds:
        await add(connection, 4000, **kind)
    await connection.execute(DONE.format(many=10_000))
    seen: dict[str, Explained] = {}
    for name, arguments in (await questions(connection)).items():
        transaction = connection.transaction()
        await transaction.start()
        seen[name] = await Explained.executed(connection, f"kept_{name} {called(arguments)}")
        await transaction.rollback()
    return seen


def test_a_plan_made_for_an_empty_queue_serves_a_long_one(postgres: Cluster) -> None:
    """A daemon prepares its statements when it starts, and keeps their plans."""
    name = postgres.clone()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        connection = runner.run(connect(postgres.server.dsn(name), HOT_SETTINGS))
        try:
            seen = runner.run(kept(connection))
        finally:
            connection.terminate()
    postgres.drop(name)
    for statement_name, explained in seen.items():
        bound = 8 * ASKED + 10 if statement_name == "free_order" else 2 * ASKED + 10
        assert explained.touched() <= (bound, "~"), statement_name
        assert explained.sorted_rows() <= bound, statement_name


def test_the_planner_left_to_itself_falls_into_the_trap(stage: Stage) -> None:
    """Else neither the settings of the hot lines nor this file are worth their trouble."""

    async def look() -> bool:
        plain = await connect(stage.dsn)
        await plain.execute("SET statement_timeout = '1s'")
        asked = await questions(stage.connection)
        try:
            for name in ("claim", "settle", "late", "receive"):
                seen = await Explained.of(plain, name, asked[name], believing=BELIEFS["nothing there"])
                if seen.scanned() or seen.touched() > (1000, ""):
                    return True
        except asyncpg.QueryCanceledError:
            return True
        finally:
            await plain.close()
        return False

    assert stage.runner.run(look())


# What a function does cannot be EXPLAINed from outside: Postgres tells of it itself.
TELL = """
LOAD 'auto_explain';
SET auto_explain.log_nested_statements = on;
SET auto_explain.log_min_duration = 0;
SET auto_explain.log_analyze = on;
SET auto_explain.log_format = json;
SET auto_explain.log_level = notice;
"""
ENDED = """
INSERT INTO outrider.outcome (id, status, rank, attempts, segments, provider, sender, reference, accepted_at)
SELECT o.id, 'accepted', 10, 1, 1, 'twilio', '+12025550100', 'SM1', now() FROM outrider.outbox o
 WHERE NOT EXISTS (SELECT FROM outrider.outcome u WHERE u.id = o.id) ORDER BY o.id LIMIT {many}
"""
LOOKS = {**DUTIES, "balance": "SELECT outrider.balance(20)"}
PAGE = 10_000  # messages counted together


async def looked(connection: Connection, call: str) -> float:
    """The most rows that any node of any statement within *call* was given."""
    plans: list[str] = []

    def listen(_: object, message: asyncpg.PostgresLogMessage) -> None:
        plans.append(str(message.message).partition("plan:")[2])

    connection.add_log_listener(listen)
    await connection.execute(call)
    await asyncio.sleep(0)  # a listener is called by the loop
    connection.remove_log_listener(listen)
    nodes = [node for plan in plans for node in within(json.loads(plan)["Plan"])]
    assert nodes
    removed = [
        float(str(node.get("Rows Removed by Join Filter", 0))) * float(str(node["Actual Loops"])) for node in nodes
    ]
    return max(*map(rows, nodes), *removed)


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_planned_while_there_was_little_reads_no_more_later(postgres: Cluster, look: str) -> None:
    """500 login codes were looked for among all that had ended: 0.3 s among 7,600, and more with each that came."""

    async def reads() -> float:
        connection, other = await connect(postgres.server.dsn(name)), await connect(postgres.server.dsn(name))
        try:
            await add(other, 9_000)
            await other.execute("UPDATE outrider.outbox SET intent = 'otp', service = 'login'")
            await other.execute("VACUUM ANALYZE")
            await connection.execute(TELL)
            most = 0.0
            for many in (*[0] * 7, 6, 994, 8000):  # from the sixth on a plan is kept
                await other.execute(ENDED.format(many=many))
                most = max(most, await looked(connection, LOOKS[look].replace("$1", "500")))
            return most
        finally:
            await connection.close()
            await other.close()

    name = postgres.clone()
    assert asyncio.run(reads()) <= 2 * PAGE
    postgres.drop(name)
