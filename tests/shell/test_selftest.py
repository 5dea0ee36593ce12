"""The self-test: that its judge sees each kind of wrong, and that it keeps its hands off other people's databases."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from typer.testing import CliRunner

from daemon.cli import app
from daemon.selftest import verdict
from daemon.selftest.evidence import Doubt, Evidence, Sent
from daemon.selftest.stage import Kill

if TYPE_CHECKING:
    import asyncpg

ROOT = Path(__file__).resolve().parents[2]
A, B, C = (UUID(int=number) for number in (1, 2, 3))
DIED = "the daemon died while it was on the wire"
DOUBT = Doubt(
    id=B,
    attempt=1,
    at=10.0,
    outcome="uncertain",
    reason=DIED,
    evidence="a receipt came",
    decision=None,
    has_receipt=True,
)
RESENT = DOUBT._replace(evidence=None, decision="in doubt for too long: sent again", has_receipt=False)
# Three messages; B was on the wire when the daemon was killed at 11.
GOOD = Evidence(
    asked={A: ("delivered", None), B: ("delivered", None), C: ("dead", "in doubt for too long: dropped")},
    waiting=frozenset(),
    sent=[Sent(A, 1), Sent(B, 1)],
    strangers=0,
    doubts=[DOUBT],
    resent=frozenset(),
    kills=[Kill(at=11.0, on_the_wire=frozenset(), unheard=frozenset(), sending=True)],
    on_the_wire=[frozenset({Sent(B, 1)})],
    unheard=[frozenset({Sent(B, 1)})],
    back_s=[1.0],
    connections=2,
    stumbled={},
    exit_code=0,
)


def outrider_selftest(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daemon", "selftest", "crash", *options],
        capture_output=True, text=True, timeout=55, check=False, cwd=ROOT, env={**os.environ, **environment},
    )  # fmt: skip


def judged(seen: Evidence) -> verdict.Report:
    return verdict.judge(seen, seed=1, seconds=1.0)


def broken(seen: Evidence) -> list[str]:
    return [check.name for check in judged(seen).checks if not check.ok]


def test_a_storm_that_kept_every_promise() -> None:
    report = judged(GOOD)
    assert report.ok
    assert (report.lost, report.duplicates, report.ambiguous, report.on_the_wire) == (0, 0, 1, 1)
    assert report.resolved_by == {"receipt": 1, "query": 0, "policy": 0}
    assert report.unsent == {"in doubt for too long: dropped": 1}
    wanted = "kills messages lost duplicates duplicates_unexplained ambiguous on_the_wire resolved_by ok"
    assert set(wanted.split()) <= set(report.document())


@pytest.mark.parametrize("status", ["accepted", "delivered", "undelivered", None])
def test_what_the_ledger_does_not_know_and_no_reason_explains_is_lost(status: str | None) -> None:
    report = judged(replace(GOOD, asked={**GOOD.asked, C: (status, None)}))
    assert (report.lost, report.ok) == (1, False)


def test_what_is_still_in_the_queue_is_not_lost() -> None:
    seen = replace(GOOD, asked={**GOOD.asked, C: (None, None)}, waiting=frozenset({C}))
    assert judged(seen).lost == 0
    assert broken(seen) == ["everything was settled"]


class TestDuplicates:
    def test_one_without_a_decision_is_unexplained(self) -> None:
        report = judged(replace(GOOD, sent=[*GOOD.sent, Sent(A, 2)]))
        assert (report.duplicates, report.unexplained, report.ok) == (1, 1, False)

    def test_one_that_was_decided_is_explained(self) -> None:
        seen = replace(GOOD, sent=[*GOOD.sent, Sent(B, 2)], doubts=[RESENT], resent=frozenset({(B, 1)}))
        report = judged(seen)
        assert (report.duplicates, report.unexplained, report.ok) == (1, 0, True)
        assert report.resolved_by == {"receipt": 0, "query": 0, "policy": 1}

    def test_one_decision_explains_one_copy(self) -> None:
        report = judged(replace(GOOD, sent=[*GOOD.sent, Sent(B, 2), Sent(B, 3)], resent=frozenset({(B, 1)})))
        assert report.unexplained == 1

    def test_nothing_explains_one_attempt_sent_twice(self) -> None:
        assert judged(replace(GOOD, sent=[*GOOD.sent, Sent(B, 1)], resent=frozenset({(B, 1)}))).unexplained == 1


class TestDoubts:
    def test_one_whose_answer_was_heard_before_the_kill_is_unfounded(self) -> None:
        seen = replace(GOOD, on_the_wire=[frozenset()], unheard=[frozenset()])
        assert broken(seen) == ["only what was on the wire came in doubt"]
        assert judged(seen).on_the_wire == 0

    def test_one_whose_answer_was_just_being_read_was_on_the_wire(self) -> None:
        seen = replace(GOOD, on_the_wire=[frozenset()])
        assert broken(seen) == []
        assert judged(seen).on_the_wire == judged(seen).deaths[0].just_read == 1

    def test_one_that_never_reached_the_provider_was_on_its_way(self) -> None:
        seen = replace(GOOD, sent=[Sent(A, 1), Sent(B, 2)], on_the_wire=[frozenset()], unheard=[frozenset()])
        assert broken(seen) == []
        assert judged(seen).on_the_wire == judged(seen).deaths[0].unarrived == 1

    def test_one_that_the_provider_saw_and_did_not_take_arrived(self) -> None:
        assert judged(replace(GOOD, sent=[Sent(A, 1), Sent(B, 2)])).deaths[0].unarrived == 0

    def test_more_that_never_arrived_than_there_are_connections(self) -> None:
        seen = replace(GOOD, sent=[Sent(A, 1), Sent(B, 2)], on_the_wire=[frozenset()], unheard=[frozenset()])
        assert broken(replace(seen, connections=1)) == []
        assert broken(replace(seen, connections=0)) == ["what came in doubt and never arrived had a connection in hand"]

    def test_each_belongs_to_the_kill_that_found_it_on_the_wire(self) -> None:
        kills = [Kill(at=at, on_the_wire=frozenset(), unheard=frozenset(), sending=True) for at in (9.0, 9.9, 12.0)]
        wire = [frozenset(), frozenset({Sent(B, 1)}), frozenset[Sent]()]
        seen = replace(GOOD, kills=kills, on_the_wire=wire, unheard=[frozenset()] * 3)
        report = judged(seen)
        assert [death.ambiguous for death in report.deaths] == [0, 1, 0]
        assert report.deaths[1].resolved_by == {"receipt": 1, "query": 0, "policy": 0}
        assert broken(seen) == []

    def test_one_without_an_end_is_seen(self) -> None:
        seen = replace(GOOD, doubts=[DOUBT._replace(evidence=None, has_receipt=False)])
        assert broken(seen) == ["every doubt has ended"]

    @pytest.mark.parametrize(
        ("doubt", "way"),
        [
            (DOUBT, "receipt"),
            (DOUBT._replace(evidence=None), "receipt"),
            (DOUBT._replace(evidence="the provider, when asked, knew it"), "query"),
            (RESENT._replace(decision="its provider, asked twice, never had it: sent again"), "query"),
            (RESENT, "policy"),
        ],
    )
    def test_how_one_ended(self, doubt: Doubt, way: str) -> None:
        assert judged(replace(GOOD, doubts=[doubt])).resolved_by[way] == 1

    def test_a_lost_answer_is_no_doubt_of_a_kill(self) -> None:
        report = judged(replace(GOOD, doubts=[DOUBT._replace(reason="may have been sent: answered 502")]))
        assert (report.ambiguous, report.lost_answers) == (0, 1)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (replace(GOOD, waiting=frozenset({A})), "everything was settled"),
        (replace(GOOD, stumbled={"courier.stumbled": 1}), "the daemon had no fault of its own"),
        (replace(GOOD, asked={**GOOD.asked, A: (None, None)}), "every message is in the books"),
        (replace(GOOD, doubts=[DOUBT._replace(outcome="lost")]), "the dispatch log could always tell"),
        (replace(GOOD, strangers=1), "the provider was told nothing strange"),
        (replace(GOOD, exit_code=1), "the last daemon ended cleanly"),
    ],
)
def test_every_other_wrong_is_seen(wrong: Evidence, name: str) -> None:
    assert broken(wrong) == [name]


async def test_a_database_with_our_schema_is_refused_and_left_alone(
    database: str, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    await connection.execute("INSERT INTO outrider.outbox (recipient, body) VALUES ('+12025550123', 'hello')")
    done = await asyncio.to_thread(outrider_selftest, "--kills", "1", "--messages", "10", "--dsn", database)
    assert done.returncode == 1
    assert "it will not be touched" in done.stderr
    assert await connection.fetchval("SELECT count(*) FROM outrider.queue") == 1


def test_it_says_what_it_does_and_how_long_that_takes() -> None:
    shown = CliRunner().invoke(app, ["selftest", "crash", "--help"], env={"COLUMNS": "160", "TERM": "dumb"})
    for word in ("--kills", "--messages", "--dsn", "about a minute", "Exit 1"):
        assert word in shown.output


def test_the_command_tries_it_and_leaves_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # Postgres may have to become another user
    done = outrider_selftest("--kills", "1", "--messages", "60", "--json", TMPDIR=str(tmp_path))
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (0, True), done.stderr
    assert (found["kills"], found["messages"], found["lost"]) == (1, 60, 0)
    assert "kill   1 of 1" in done.stderr
    assert list(tmp_path.iterdir()) == []
