"""The bench: that a short run of it measures what it says, and that a long one would be told if anything were lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from html import unescape
from pathlib import Path

import orjson
import pytest
import uvloop

from bench import claims, scale
from bench.load import Run
from bench.messages import MESSAGES_MAX, recipient, requests
from bench.outrider import Drain, Life, Told
from bench.picture import drawn
from bench.report import Report, Round
from daemon.core.address import plausible

ROOT = Path(__file__).resolve().parents[2]
RUN = Run(asked=100, messages=100, rate=2_000.0, cpu=0.2, distinct=100)
DRAIN = Drain(
    messages=100, rate=1_000.0, cpu=0.4, distinct=100, settled=100, emptied_s=0.1, cpu_postgres=0.1, cpu_insert=0.03,
    wal_insert=700.0, wal=450.0, memory_mb=90.0,
)  # fmt: skip
TOLD = Told(receipts=200, rate=4_000.0, cpu=0.1, cpu_postgres=0.03, wal=300.0, latency_ms={}, delivered=100)
LIFE = Life(messages=100, rate=1_500.0, delivered=100)
PLAIN = replace(DRAIN, rate=500.0)
ROUND = Round(lean=replace(RUN, rate=20_000.0), raw=RUN, outrider=DRAIN, plain=PLAIN, told=TOLD)


def report(*rounds: Round) -> Report:
    return Report(
        messages=100, in_flight=8, rounds=rounds, life=LIFE, latency_ms={}, pressed=[], burst=None, postgres="18"
    )


def test_a_ratio_is_taken_within_its_round() -> None:
    quick = replace(ROUND, raw=replace(RUN, rate=4_000.0), outrider=replace(DRAIN, rate=3_000.0))

    assert report(ROUND, quick, quick).spread()["raw_aiohttp"] == (0.5, 0.75, 0.75)


def test_what_did_not_run_has_no_ratio() -> None:
    document = report(ROUND).document()

    assert document["ratios"] == {
        "pgqueuer": None, "naive": None, "procrastinate": None, "celery": None, "raw_aiohttp": 0.5, "plain_aiohttp": 0.25,
        "raw_protocol": 0.05,
    }  # fmt: skip
    assert document["sink_headroom"] == 10.0


@pytest.mark.parametrize(
    "bad",
    [
        replace(ROUND, outrider=replace(DRAIN, messages=101)),  # one twice
        replace(ROUND, outrider=replace(DRAIN, distinct=99)),  # one lost, another twice
        replace(ROUND, outrider=replace(DRAIN, settled=99)),  # sent, and not written down
        replace(ROUND, plain=replace(PLAIN, settled=99)),
        replace(ROUND, raw=replace(RUN, messages=99, distinct=99)),
        replace(ROUND, told=replace(TOLD, delivered=99)),  # a receipt answered, and not kept
        replace(ROUND, peers={"naive": replace(RUN, asked=50, messages=49, distinct=49)}),
    ],
)
def test_a_lost_or_repeated_message_spoils_the_run(bad: Round) -> None:
    assert report(ROUND).ok
    assert not report(ROUND, bad).ok
    assert not replace(report(ROUND), life=replace(LIFE, delivered=99)).ok


def test_everybody_has_another_number_and_each_is_valid() -> None:
    people = {recipient(number) for number in range(MESSAGES_MAX)}

    assert len(people) == MESSAGES_MAX
    assert all(plausible(recipient(number)) for number in range(0, MESSAGES_MAX, 997))
    assert len({request.body for request in requests("http://127.0.0.1:1", 300)}) == 300


@pytest.mark.timeout(60)
def test_a_short_run_tells_every_figure_and_loses_nothing() -> None:
    done = subprocess.run(
        [sys.executable, *"-m bench --rounds 1 --messages 300 --in-flight 16 --codes 0.5 --json".split()],
        cwd=ROOT, capture_output=True, text=True, timeout=55, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert {"pgqueuer", "procrastinate", "raw_aiohttp", "raw_protocol"} <= found["ratios"].keys()
    assert found["ratios"]["raw_aiohttp"] > 0
    assert found["latency_ms"].keys() == {"p50", "p95", "p99"}
    (one,) = found["rounds"]
    for who in ("lean", "raw", "outrider"):
        assert one[who]["messages"] == one[who]["distinct"] == 300
    assert one["outrider"]["settled"] == 300
    assert one["outrider"]["wal_insert"] > 0
    assert one["outrider"]["cpu_postgres"] > 0
    assert one["told"]["wal"] > 0
    assert one["outrider"]["memory_mb"] > 0
    assert (one["told"]["receipts"], one["told"]["delivered"]) == (600, 300)
    assert found["life"]["delivered"] == 300
    assert [set(each["codes_ms"]) for each in found["pressed"]] == [{"p50", "p95", "p99"}] * 2
    assert found["burst"]["receipts"] >= 100
    assert found["burst"]["kept"] > 0
    assert "aiohttp's client alone" in done.stderr


@pytest.mark.timeout(120)
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)], ids=["some", "all"])
def test_a_short_run_of_growth_tells_every_figure_and_draws_them(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    if not whole:
        for name, some in (("SENDERS", (10, 1_000)), ("FLIGHTS", (100,)), ("DAEMONS", (2,)), ("BEATS", 3)):
            monkeypatch.setattr(scale, name, some)
    monkeypatch.setattr(claims, "DEAD", 4_000)
    growth = uvloop.run(scale.scale(Namespace(waiting=10_000, messages=300)))

    assert growth.ok
    found = json.loads(orjson.dumps(growth.document()))
    assert [(one["waiting"], one["dead"]) for one in found["claims"]] == [
        (0, 0), (1_000, 0), (10_000, 0), (6_000, 4_000),
    ]  # fmt: skip
    assert all(one["front_ms"]["p99"] >= one["front_ms"]["p50"] > 0 for one in found["claims"])
    for what, sizes in (("senders", scale.SENDERS), ("flights", scale.FLIGHTS), ("daemons", scale.DAEMONS)):
        assert [one["size"] for one in found[what]] == list(sizes)
    drains = (*found["senders"], *found["flights"], *found["daemons"], found["slow"], found["tls"])
    assert all(one["rate"] > 0 and one["cpu"] > 0 for one in drains)
    assert "raw" in found["slow"]["beside"]
    beat = found["beat"]
    assert (beat["senders"], beat["messages"], beat["most_in_1s"]) == (300, 300 * scale.BEATS, 1)
    assert 0.9 < beat["used_least"] <= beat["used"] <= 1
    assert len(growth.tables()) == 7
    words = re.findall(">([^<]+)</text>", growth.drawn())
    assert {"messages waiting", "senders", "in flight", "1k", "its Postgres"} <= set(words)


def test_the_picture_shows_everybody_who_ran_the_quickest_first() -> None:
    drawing = drawn(report(replace(ROUND, peers={"procrastinate": replace(RUN, rate=210.0)})))

    words = re.findall(">([^<]+)</text>", unescape(drawing))
    names = [word for word in words if word in {"Outrider", "aiohttp's client alone", "Procrastinate + aiohttp"}]
    assert names == ["aiohttp's client alone", "Outrider", "Procrastinate + aiohttp"]
    assert {"20,000", "2,000", "1,000", "210"} <= set(words)
    assert "PgQueuer + aiohttp" not in words
