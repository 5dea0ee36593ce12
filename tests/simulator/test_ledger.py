"""The ledger, the counting over it, and what can be asked of a running simulator."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import time
from pathlib import Path
from random import Random

import aiohttp
import orjson
import pytest

from daemon.core.compliance import busiest_second, used
from daemon.simulator import Entry, Faults, Ledger, Settings, Simulator, body_hash, serve
from daemon.simulator.sender import Sender
from daemon.simulator.throttle import Throttles
from tests.simulator.outside import OURS, THEIRS, Client, Target


def entry(number: int, mono: float = 0.0, segments: int = 1, sender: str = OURS) -> Entry:
    return Entry(f"SM{number}", 1_790_000_000.5 + mono, mono, f"t-{number}", THEIRS, sender, segments, body_hash("x"))


async def test_an_entry_says_what_was_accepted_when_and_for_which_attempt(client: Client, simulator: Simulator) -> None:
    began, began_mono = time.time(), time.monotonic()
    told = await client.create("päper", StatusCallback="https://example.com/callbacks/twilio/abc-7?x=/no#rc=5&rp=/no")
    (noted,) = simulator.ledger.entries
    assert began <= noted.t <= time.time()
    assert began_mono <= noted.mono <= time.monotonic()
    assert noted._replace(t=0, mono=0) == Entry(
        str(told.body["sid"]), 0, 0, "abc-7", THEIRS, OURS, 1, body_hash("päper")
    )


def test_another_process_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for number in range(100):
        ledger.note(entry(number, mono=number / 10, segments=1 + number % 3, sender=f"+1{number % 2}"))
        assert list(Ledger.read(path).entries) == list(ledger.entries), "written before note returns"
    read = Ledger.read(path)
    assert read.accepted == 100
    assert read.max_in_window("+10", rate=5) == ledger.max_in_window("+10", rate=5) > 0
    assert read.used("+11", rate=20) == ledger.used("+11", rate=20) > 0
    ledger.close()
    Ledger(path).close()
    assert len(Ledger.read(path)) == 100, "opening it again appends"


def test_a_torn_last_line_was_never_answered(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(entry(1).line() + entry(2).line()[:-1])
    assert [one.sid for one in Ledger.read(path).entries] == ["SM1"]
    path.write_bytes(b"")
    assert len(Ledger.read(path)) == 0


def test_a_ledger_that_cannot_write_says_so(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    ledger = Ledger()
    ledger._file = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="space"):
        ledger.note(entry(1))
    assert len(ledger) == 0
    ledger.close()


def test_memory_is_bounded_and_numbers_go_on(tmp_path: Path) -> None:
    ledger = Ledger(keep=10)
    for number in range(25):
        ledger.note(entry(number))
    assert ledger.accepted == 25
    assert [one.sid for one in ledger.since(20)] == [f"SM{number}" for number in range(20, 25)]
    assert [one.sid for one in ledger.since(0)] == [f"SM{number}" for number in range(15, 25)]


def test_windows_are_counted_for_one_sender_at_a_time() -> None:
    ledger = Ledger()
    for number in range(40):
        ledger.note(entry(number, mono=number / 20, sender=f"+1{number % 2}"))
    assert ledger.max_in_window("+10", rate=10) == 10
    assert ledger.max_in_window("+10", rate=10, window_s=0.5) == 5
    assert ledger.used("+10", rate=10) == pytest.approx(1.0)
    assert ledger.max_in_window("+19", rate=10) == 0
    assert ledger.used("+19", rate=10) == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_counting_as_it_comes_equals_counting_at_the_end(seed: int) -> None:
    dice = Random(seed)
    rate = dice.choice([1.0, 3.0, 10.0, math.inf])
    sender, events, now = Sender(keep=10_000), list[tuple[float, int]](), 0.0
    for _ in range(300):
        now += dice.expovariate(5)
        events.append((now, dice.randint(1, 11)))
        sender.add(*events[-1])
        if dice.random() < 0.1:
            assert sender.busiest_second(rate) == busiest_second(events, rate)
            if rate < math.inf:
                assert sender.used(rate) == pytest.approx(used(events, rate))
    assert (sender.messages, sender.segments) == (300, sum(segments for _, segments in events))


@pytest.mark.parametrize("seed", range(10))
def test_what_a_throttle_admits_keeps_the_limit_and_what_it_refuses_would_not(seed: int) -> None:
    dice = Random(seed)
    throttles, admitted, now, rate = Throttles(), list[tuple[float, int]](), 0.0, dice.choice([1.0, 5.0, 20.0])
    for _ in range(400):
        now += dice.expovariate(rate)
        asked = (now, dice.randint(1, 4))
        verdict = throttles.admit("x", asked[1], rate=rate, now=now)
        assert verdict == (busiest_second([*admitted, asked], rate) <= rate)
        if verdict:
            admitted.append(asked)
    assert admitted


async def admin(simulator: Simulator, method: str, path: str, json: object = None) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.request(method, simulator.url + path, json=json) as answer:
        return answer.status, await answer.read()


async def test_the_counts_of_a_run(client: Client, simulator: Simulator) -> None:
    await client.create("x" * 161)
    await client.create(From="+15005550055")
    await client.create(To="")
    status, raw = await admin(simulator, "GET", "/_simulator/?rate=1")
    told = orjson.loads(raw)
    assert status == 200
    assert told["accepted"] == 2
    assert told["errors"] == {"21604": 1}
    assert told["receipts"] == {"sent": 0, "failed": 0, "retried": 0, "dropped": 0, "pending": 0}
    assert told["faults_error"] is None
    assert told["senders"] == {
        OURS: {"messages": 1, "segments": 2, "max_in_1s": 1, "rate": 1.0, "used": 1.0},
        "+15005550055": {"messages": 1, "segments": 1, "max_in_1s": 1, "rate": 1.0, "used": 1.0},
    }
    unrated = orjson.loads((await admin(simulator, "GET", "/_simulator/"))[1])["senders"][OURS]
    assert (unrated["max_in_1s"], unrated["rate"], unrated["used"]) == (2, None, None)


async def test_the_ledger_is_streamed_as_lines(client: Client, simulator: Simulator) -> None:
    for number in range(3):
        await client.create(str(number))
    _, raw = await admin(simulator, "GET", "/_simulator/ledger")
    assert raw == b"".join(one.line() for one in simulator.ledger.entries)
    _, raw = await admin(simulator, "GET", "/_simulator/ledger?from=2")
    assert Entry(**orjson.loads(raw)) == simulator.ledger.entries[2]


async def test_a_slow_reader_of_a_long_ledger_gets_all_of_it(simulator: Simulator) -> None:
    for number in range(20_000):
        simulator.ledger.note(entry(number))
    reader, writer = await asyncio.open_connection("127.0.0.1", int(simulator.url.rsplit(":", 1)[1]), limit=4_096)
    writer.write(b"GET /_simulator/ledger HTTP/1.1\r\n\r\n")
    await asyncio.sleep(0.1)
    raw = await reader.read()
    assert raw.count(b"\n") == 20_000 + 4  # and the head's lines
    writer.close()


async def test_faults_are_put_while_it_runs(client: Client, simulator: Simulator) -> None:
    status, raw = await admin(simulator, "PUT", "/_simulator/faults", {"errors": {"20500": 1.0}})
    assert status == 200
    assert orjson.loads(raw)["errors"] == {"20500": 1.0}
    assert await client.fate() == "500 20500"
    status, raw = await admin(simulator, "PUT", "/_simulator/faults", {"errors": {"2050": 1.0}, "seeed": 1})
    assert status == 400
    assert len(orjson.loads(raw)["error"]) == 2
    assert await client.fate() == "500 20500"
    _, raw = await admin(simulator, "GET", "/_simulator/faults")
    assert Faults.model_validate_json(raw) == simulator.faults


async def test_a_person_may_be_made_to_write_over_http(simulator: Simulator, target: Target) -> None:
    said = {"from": THEIRS, "to": OURS, "body": "hi", "url": target.url + "/inbound"}
    status, raw = await admin(simulator, "POST", "/_simulator/say", said)
    assert (status, orjson.loads(raw)["status"]) == (200, "204")
    assert target.heard[0].form["Body"] == "hi"


@pytest.mark.parametrize(
    ("method", "path", "json", "status"),
    [
        ("GET", "/_simulator/nothing", None, 404),
        ("DELETE", "/_simulator/ledger", None, 404),
        ("GET", "/_simulator/ledger?from=x", None, 400),
        ("POST", "/_simulator/say", {"from": THEIRS}, 400),
        ("POST", "/_simulator/say", {"from": THEIRS, "to": OURS, "body": "x"}, 400),
        ("PUT", "/_simulator/faults", ["x"], 400),
    ],
)
async def test_nonsense_is_answered(simulator: Simulator, method: str, path: str, json: object, status: int) -> None:
    assert (await admin(simulator, method, path, json))[0] == status


async def test_it_serves_until_told_to_stop(tmp_path: Path) -> None:
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.create_task(serve(Settings(ledger=tmp_path / "l"), ready=ready.set_result, stop=stop))
    url = await ready
    async with aiohttp.ClientSession() as session, session.get(f"{url}/_simulator/") as answer:
        assert answer.status == 200
    stop.set()
    await running


KILLED = """
import asyncio, os, pathlib, sys
from daemon.simulator import Settings, serve
settings = Settings(ledger=pathlib.Path(sys.argv[1]))
asyncio.run(serve(settings, ready=lambda url: print(url, flush=True), stop=asyncio.Event()))
"""


async def test_what_was_answered_is_in_the_ledger_though_the_simulator_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    remote = Simulator()
    remote._port = int(url.rsplit(":", 1)[1])
    answered: list[object] = []
    async with Client(remote) as client:

        async def create() -> None:
            try:
                while True:
                    answered.append((await client.create()).body["sid"])
            except aiohttp.ClientError:
                return

        creating = [asyncio.create_task(create()) for _ in range(20)]
        await asyncio.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        await asyncio.gather(*creating)
    await process.wait()
    noted = {one.sid for one in Ledger.read(path).entries}
    assert answered
    assert set(answered) <= noted
    assert len(noted) <= len(answered) + 20
