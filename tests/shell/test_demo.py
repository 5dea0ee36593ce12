"""The demo: what it inserts, how it judges, and that the whole of it keeps every promise."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import phonenumbers
import pytest

from daemon.core.segments import count
from daemon.demo import report, scenario, scenery
from daemon.demo.evidence import Evidence, Told, Troubles
from daemon.demo.inserter import Committed
from daemon.demo.scenario import Kind, Row
from daemon.settings import parse
from daemon.simulator import Entry
from daemon.simulator.faults import parse_faults

ROOT = Path(__file__).resolve().parents[2]
SENDER = scenario.Speaker(address="+12015550104", service="news", type="long_code", rate=10)
NOW = 1_800_000_000.0


class TestScenario:
    @pytest.mark.parametrize("messages", [50, 333, 2_000])
    def test_exactly_as_many_rows_are_committed_as_asked_for(self, messages: int) -> None:
        assert scenario.write(messages, 1).inserted == messages

    def test_the_same_seed_writes_the_same_and_another_does_not(self) -> None:
        assert scenario.write(300, 5) == scenario.write(300, 5)
        assert scenario.write(300, 5) != scenario.write(300, 6)

    def test_every_row_has_a_recipient_of_its_own(self) -> None:
        recipients = [row.recipient for row in scenario.write(2_000, 1).rows()]

        assert len(set(recipients)) == len(recipients)

    def test_every_number_is_valid_and_belongs_to_nobody(self) -> None:
        for row in scenario.write(2_000, 1).rows():
            if row.kind is not Kind.IMPOSSIBLE:
                assert re.fullmatch(r"\+1\d{3}55501\d\d", row.recipient)
                assert phonenumbers.is_valid_number(phonenumbers.parse(row.recipient))

    def test_no_person_is_one_of_the_senders(self) -> None:
        assert not set(scenario.numbers()) & {one.address for one in scenario.speakers(2_000)}

    def test_every_kind_of_row_and_every_way_in_occurs(self) -> None:
        script = scenario.write(400, 1)

        assert {row.kind for row in script.rows()} == set(Kind)
        assert {batch.way for batch in script.batches} == set(scenario.Way)
        assert {count(row.body).segments for row in script.rows() if row.body.strip()} >= {1, 2}

    def test_the_first_of_a_key_comes_before_its_repeat(self) -> None:
        batches = scenario.write(2_000, 1).batches
        firsts = {row.key: batch.at_s for batch in batches for row in batch.rows if row.key and row.kind is Kind.GOOD}
        repeats = {row.key: batch.at_s for batch in batches for row in batch.rows if row.kind is Kind.REPEAT}

        assert firsts.keys() == repeats.keys()
        assert all(firsts[key] < repeats[key] for key in firsts)

    def test_the_senders_can_carry_it_in_half_a_minute(self) -> None:
        script = scenario.write(2_000, 1)
        work = Counter({row.service: 0 for row in script.rows()})
        for row in script.rows():
            work[row.service] += count(row.body).segments
        for service in {one.service for one in script.speakers}:
            rate = sum(one.rate for one in script.speakers if one.service == service)
            assert work[service] / rate < 35


class TestScenery:
    def test_the_configuration_is_sound(self, tmp_path: Path) -> None:
        speakers = scenario.speakers(2_000)
        text = scenery.config(speakers, provider_url="http://127.0.0.1:1", public_port=2, operator_port=3)

        settings = parse(tomllib.loads(text), folder=tmp_path, environ={})

        assert {sender.address: sender.rate for sender in settings.senders} == {
            one.address: one.rate for one in speakers
        }
        assert settings.database.embedded

    def test_the_faults_are_sound_and_the_provider_knows_every_limit(self) -> None:
        speakers = scenario.speakers(5_000)

        faults = parse_faults(tomllib.loads(scenery.faults(speakers, seed=9)))

        assert faults.seed == 9
        assert all(faults.throttle.of(one.address) == one.rate for one in speakers)
        assert 0.01 < sum(faults.errors.values()) < 0.05


def told(number: int, status: str, **more: object) -> Told:
    plain = Told(
        id=UUID(int=number), recipient=f"+1202555{number:04}", service="news", status=status, reason=None, code=None,
        created_at=NOW, accepted_at=NOW + 1.5, delivered_at=NOW + 3.5,
    )  # fmt: skip
    return replace(plain, **more)  # type: ignore[arg-type]


def entry(number: int, *, at: float = 1.0, segments: int = 1) -> Entry:
    return Entry(
        sid=uuid4().hex, t=NOW + at, mono=at, token="", to=f"+1202555{number:04}", sender=SENDER.address,
        segments=segments, body="",
    )  # fmt: skip


def committed(number: int, kind: Kind = Kind.GOOD) -> Committed:
    row = Row(recipient=f"+1202555{number:04}", body="x", service="news", intent="marketing", kind=kind)
    return Committed(row=row, at=NOW)


def doubted(number: int, doubts: int = 1, *, at: float = 60.0) -> dict[UUID, Troubles]:
    return {UUID(int=number): Troubles(first_at=NOW + at, doubts=doubts)}


def evidence(**more: object) -> Evidence:
    """Three rows: two delivered, one refused. Nothing is wrong with it."""
    plain = Evidence(
        committed=(committed(1), committed(2), committed(3, Kind.EMPTY)),
        rolled_back=(),
        told=(told(1, "delivered"), told(2, "accepted", delivered_at=None), told(3, "suppressed", reason="no body")),
        troubles={},
        sent=(entry(1), entry(2, at=2.0)),
        speakers=(SENDER,),
        exit_code=0,
    )
    return replace(plain, **more)  # type: ignore[arg-type]


def broken(seen: Evidence) -> list[str]:
    return [check.name for check in report.judge(seen).checks if not check.ok]


class TestJudgement:
    def test_where_everything_is_right_nothing_is_broken(self) -> None:
        found = report.judge(evidence())

        assert found.ok
        assert found.inserted == 3
        assert found.by_status == {"delivered": 1, "accepted": 1, "suppressed": 1}
        assert found.reasons == [("news", "accepted", "", 1), ("news", "suppressed", "no body", 1)]

    def test_a_row_that_vanished_is_missed(self) -> None:
        assert "every committed row is there, once" in broken(evidence(told=evidence().told[:2]))

    def test_a_message_left_in_the_queue_is_no_end(self) -> None:
        assert broken(evidence(told=(*evidence().told[:2], told(3, "queued")))) == ["every message has come to an end"]

    def test_a_message_claimed_as_sent_that_was_not_is_lost(self) -> None:
        assert broken(evidence(sent=(entry(1),))) == ["nothing was lost or made up"]

    @pytest.mark.parametrize("status", ["expired", "canceled", "suppressed", "dead"])
    def test_a_message_that_ended_unsent_must_not_have_been_sent(self, status: str) -> None:
        seen = evidence(told=(told(1, "delivered"), told(2, status), told(3, "suppressed")))

        assert broken(seen) == ["nothing was lost or made up"]

    def test_unless_its_doubt_is_on_record(self) -> None:
        seen = evidence(told=(told(1, "delivered"), told(2, "dead"), told(3, "suppressed")), troubles=doubted(2))

        assert broken(seen) == []

    def test_somebody_nobody_asked_for_is_noticed(self) -> None:
        assert broken(evidence(sent=(*evidence().sent, entry(9)))) == ["nothing was lost or made up"]

    def test_a_row_that_must_never_be_sent_is_noticed(self) -> None:
        seen = evidence(told=(*evidence().told[:2], told(3, "delivered")), sent=(*evidence().sent, entry(3)))

        assert broken(seen) == ["nothing was sent that must not be"]

    def test_a_rolled_back_row_is_noticed(self) -> None:
        seen = evidence(rolled_back=(committed(4, Kind.ROLLED_BACK).row,), sent=(*evidence().sent, entry(4)))

        assert "nothing was sent that must not be" in broken(seen)

    def test_a_second_copy_needs_a_doubt_for_each(self) -> None:
        twice = (*evidence().sent, entry(1, at=3.0))
        thrice = (*twice, entry(1, at=4.0))

        assert broken(evidence(sent=twice)) == ["every duplicate has a doubt on record"]
        assert broken(evidence(sent=twice, troubles=doubted(1))) == []
        assert broken(evidence(sent=thrice, troubles=doubted(1))) == ["every duplicate has a doubt on record"]

    def test_a_sender_above_its_limit_is_noticed(self) -> None:
        fast = tuple(entry(1, at=1.0 + number * 0.05) for number in range(12))

        found = report.judge(evidence(sent=(*fast, entry(2)), troubles=doubted(1, 11)))

        assert [check.name for check in found.checks if not check.ok] == ["no sender spoke faster than it may"]
        assert found.senders[0].max_in_1s > 10

    def test_a_daemon_that_did_not_end_well_is_noticed(self) -> None:
        assert broken(evidence(exit_code=1)) == ["the daemon ended well"]

    def test_latency_is_taken_from_the_providers_ledger_and_the_first_copy(self) -> None:
        found = report.judge(evidence(sent=(entry(1, at=0.25), entry(1, at=9.0), entry(2, at=0.25))))

        assert found.latency_ms["commit_to_provider"].p99 == 250.0
        assert found.latency_ms["commit_to_provider.news"].p50 == 250.0
        assert found.latency_ms["accepted_to_delivered"].p50 == 2000.0

    def test_what_had_to_be_tried_again_is_measured_apart(self) -> None:
        found = report.judge(evidence(sent=(entry(1, at=9.0), entry(2, at=0.25)), troubles=doubted(1, at=3.0)))

        assert found.latency_ms["commit_to_provider"].p99 == 250.0
        assert found.latency_ms["commit_to_provider.retried"].p50 == 9000.0

    def test_percentiles_are_values_that_occurred(self) -> None:
        found = report.percentiles(number / 1000 for number in range(1, 101))

        assert found == report.Percentiles(p50=50.0, p95=95.0, p99=99.0)
        assert report.percentiles([0.007]) == report.Percentiles(p50=7.0, p95=7.0, p99=7.0)
        assert report.percentiles([]) is None

    def test_the_document_has_the_keys_that_are_promised(self) -> None:
        document = json.loads(json.dumps(report.judge(evidence()).document()))

        assert {"inserted", "by_status", "latency_ms", "senders", "ok"} <= document.keys()
        assert {"address", "rate", "used", "max_in_1s"} <= document["senders"][0].keys()
        assert all(stage.keys() == {"p50", "p95", "p99"} for stage in document["latency_ms"].values())


def _demo(*words: str, **more: object) -> list[str]:
    return [sys.executable, "-m", "daemon", "demo", *words]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.timeout(150)
def test_the_demo_keeps_every_promise(tmp_path: Path) -> None:
    done = subprocess.run(
        _demo("--messages", "100", "--json"), cwd=tmp_path, env=_environment(), capture_output=True, text=True,
        timeout=140, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["ok"]
    assert found["inserted"] == sum(found["by_status"].values()) == 100
    assert found["by_status"]["delivered"] > 60
    assert all(sender["max_in_1s"] <= sender["rate"] for sender in found["senders"])


@pytest.mark.timeout(90)
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {**_environment(), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(_demo("--messages", "300"), env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "inserted" not in process.stderr.readline():
            assert process.poll() is None
        children = _descendants(process.pid)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()

    assert process.returncode not in {0, None}
    assert "Traceback" not in rest
    assert len(children) >= 2
    assert _gone(children)
    assert list(tmp_path.glob("outrider-demo-*")) == []


def _descendants(parent: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{parent}/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def _gone(processes: set[int]) -> bool:
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in processes):
            return True
        time.sleep(0.05)
    return False
