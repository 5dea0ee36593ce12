"""Every fault, seen from outside."""

from __future__ import annotations

import asyncio
import base64
import math
import socket
import time
from collections import Counter
from pathlib import Path
from statistics import median, quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

import daemon.simulator
from daemon.simulator import ACCOUNT_SID, AUTH_TOKEN, Faults, FaultsError, Settings, Simulator, read_faults
from daemon.simulator.fate import Dice, News, callbacks, pick, story
from daemon.simulator.faults import (
    Drop,
    Fixed,
    LogNormal,
    Outage,
    ReceiptFaults,
    Throttle,
    Trouble,
    Uniform,
    parse_faults,
)
from tests.simulator.outside import OURS, THEIRS, Client, until

EXAMPLE = Path(daemon.simulator.__file__).with_name("faults.toml")


@pytest.mark.parametrize(
    ("trouble", "accepted", "seen"),
    [
        ("timeout_before_accept", 0, "timeout"),
        ("reset_before_answer", 0, "reset"),
        ("html_502", 0, "502"),
        ("timeout_after_accept", 1, "timeout"),
        ("reset_after_accept", 1, "reset"),
        ("html_502_after_accept", 1, "502"),
        ("20500_after_accept", 1, "500 20500"),
        ("garbage", 1, "no http"),
        ("truncated", 1, "cut"),
        ("empty_201", 1, "201"),
    ],
)
async def test_the_ledger_knows_what_was_accepted_whatever_the_client_saw(
    client: Client, simulator: Simulator, trouble: str, accepted: int, seen: str
) -> None:
    simulator.faults = Faults(errors={trouble: 1.0})
    assert await client.fate() == seen
    assert [entry.to for entry in simulator.ledger.entries] == ["+14155550123"] * accepted
    assert simulator.errors[trouble] == 1


def test_each_trouble_is_tried_above() -> None:
    mark = test_the_ledger_knows_what_was_accepted_whatever_the_client_saw.pytestmark[0]  # type: ignore[attr-defined]
    assert {name for name, _, _ in mark.args[1]} == set(Trouble)


async def test_a_reset_is_a_tcp_reset(simulator: Simulator) -> None:
    simulator.faults = Faults(outage=Outage(kind="hang"))
    reader, writer = await asyncio.open_connection("127.0.0.1", int(simulator.url.rsplit(":", 1)[1]))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await asyncio.sleep(0.02)
    simulator.faults = Faults(outage=Outage(kind="closed", for_s=0.1))
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


@pytest.mark.parametrize(
    ("code", "status"), [("20429", 429), ("20500", 500), ("20503", 503), ("20003", 401), ("21610", 400)]
)
async def test_a_refusal_has_the_status_of_its_code(
    client: Client, simulator: Simulator, code: str, status: int
) -> None:
    simulator.faults = Faults(errors={code: 1.0})
    assert await client.fate() == f"{status} {code}"
    assert len(simulator.ledger) == 0


async def test_an_accepted_message_is_found_though_its_answer_was_lost(client: Client, simulator: Simulator) -> None:
    simulator.faults = Faults(errors={"timeout_after_accept": 1.0})
    assert await client.fate() == "timeout"
    assert (await client.fetch(simulator.ledger.entries[0].sid)).status == 200


async def test_shares_are_kept_and_a_seed_repeats_a_run() -> None:
    async def run(seed: int) -> list[str]:
        faults = Faults(seed=seed, errors={"20500": 0.1, "21610": 0.2, "empty_201": 0.1})
        async with Simulator(faults=faults) as simulator, Client(simulator) as client:
            return [await client.fate() for _ in range(400)]

    first, again, other = await run(7), await run(7), await run(8)
    assert first == again
    assert first != other
    seen = Counter(first)
    assert 20 <= seen["500 20500"] <= 60
    assert 55 <= seen["400 21610"] <= 105


def test_another_fault_leaves_the_dice_of_the_first_alone() -> None:
    def failed(faults: Faults) -> list[int]:
        dice = Dice(3)
        return [n for n in range(500) if pick(faults.errors, dice.throw().error)]

    plain = Faults(errors={"20500": 0.1})
    busy = Faults(
        errors={"20500": 0.1},
        latency=Uniform(kind="uniform", from_ms=1, to_ms=9),
        drops=(Drop(prefix="+1", share=0.5),),
    )
    assert failed(plain) == failed(busy)


async def test_latency_delays_the_answer_and_not_the_ledger(client: Client, simulator: Simulator) -> None:
    simulator.faults = Faults(latency=Fixed(ms=80))
    began = time.monotonic()
    task = asyncio.create_task(client.create())
    await until(lambda: bool(simulator.ledger.entries))
    assert not task.done()
    assert (await task).status == 201
    assert time.monotonic() - began >= 0.078


@pytest.mark.parametrize(
    ("delay", "middle", "high"),
    [
        (Fixed(ms=120), 0.12, 0.12),
        (Uniform(kind="uniform", from_ms=50, to_ms=200), 0.125, 0.1985),
        (LogNormal(kind="lognormal", median_ms=80, p99_ms=400), 0.08, 0.4),
    ],
)
def test_delays_have_the_distribution_they_are_named_after(
    delay: Fixed | Uniform | LogNormal, middle: float, high: float
) -> None:
    seconds = [delay.seconds(n / 10_000) for n in range(10_000)]
    assert median(seconds) == pytest.approx(middle, rel=0.01)
    assert quantiles(seconds, n=100)[98] == pytest.approx(high, rel=0.02)
    assert min(seconds) >= 0


async def test_a_sender_that_is_too_fast_is_throttled(client: Client, simulator: Simulator) -> None:
    simulator.faults = Faults(throttle=Throttle(rates={"+15005550006": 3}, retry_after_s=2))
    told = [await client.create() for _ in range(5)]
    assert [one.status for one in told] == [201, 201, 201, 429, 429]
    assert told[3].code == 20429
    assert told[3].headers["Retry-After"] == "2"
    assert (await client.create(From="+15005550055")).status == 201, "another sender has a limit of its own"
    assert simulator.ledger.max_in_window("+15005550006", rate=3) == 3
    await asyncio.sleep(1.0)
    assert (await client.create()).status == 201


async def test_a_throttle_counts_segments_and_may_keep_its_hour_to_itself(client: Client, simulator: Simulator) -> None:
    simulator.faults = Faults(throttle=Throttle(rate=3))
    assert (await client.create("x" * 400)).body["num_segments"] == "3"
    told = await client.create()
    assert told.status == 429
    assert "Retry-After" not in told.headers


async def test_in_an_outage_everything_is_refused(client: Client, simulator: Simulator) -> None:
    simulator.faults = Faults(outage=Outage(kind="refuse"))
    assert await client.fate() == "503"
    assert (await client.ask("GET", f"{client.messages}.json")).status == 503
    assert len(simulator.ledger) == 0
    simulator.faults = Faults()
    assert await client.fate() == "201"


async def test_in_an_outage_everything_may_hang(client: Client, simulator: Simulator) -> None:
    simulator.faults = Faults(outage=Outage(kind="hang"))
    assert await client.fate() == "timeout"
    assert len(simulator.ledger) == 0
    assert (await client.ask("GET", "/_simulator/")).status == 200, "the way out stays open"


async def test_in_an_outage_nobody_may_listen_and_it_ends_by_itself(client: Client, simulator: Simulator) -> None:
    assert await client.fate() == "201"
    url = simulator.url
    simulator.faults = Faults(outage=Outage(kind="closed", for_s=0.2))
    assert await client.fate() in ("refused", "reset", "disconnected")
    assert await client.fate() == "refused"
    await client.recovers()
    assert simulator.url == url


async def test_an_outage_that_replaced_another_is_not_ended_by_the_first(client: Client, simulator: Simulator) -> None:
    simulator.faults = Faults(outage=Outage(kind="refuse", for_s=0.05))
    simulator.faults = Faults(outage=Outage(kind="refuse"))
    await asyncio.sleep(0.1)
    assert await client.fate() == "503"


async def test_the_file_is_read_again_and_a_mistake_in_it_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text("[errors]\n20500 = 1.0\n")
    async with Simulator(Settings(faults=path, faults_check_s=0.02)) as simulator, Client(simulator) as client:
        assert await client.fate() == "500 20500"
        path.write_text("[errors]\n21610 = 1.0\n# longer\n")
        await until(lambda: "21610" in simulator.faults.errors)
        assert await client.fate() == "400 21610"
        path.write_text("[errors]\ngarbbage = 1.0\n")
        await until(lambda: simulator.faults_error is not None)
        assert "did you mean 'garbage'" in str(simulator.faults_error)
        assert await client.fate() == "400 21610"
        path.unlink()
        await until(lambda: "No such file" in str(simulator.faults_error))
        path.write_text("")
        await until(lambda: simulator.faults_error is None)
        assert await client.fate() == "201"


async def test_a_closed_simulator_is_opened_again_through_its_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text('outage = { kind = "closed" }')
    async with Simulator(Settings(faults=path, faults_check_s=0.02)) as simulator, Client(simulator) as client:
        assert await client.fate() == "refused"
        path.write_text("")
        await client.recovers()


async def test_a_simulator_does_not_start_on_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text("seed = ")
    with pytest.raises(FaultsError, match=r"faults\.toml"):
        async with Simulator(Settings(faults=path)):
            pass


def test_the_example_shows_every_key_with_its_default() -> None:
    assert read_faults(EXAMPLE) == Faults()
    text = EXAMPLE.read_text()
    for model in (Faults, ReceiptFaults, Throttle, Drop, Outage, Fixed, Uniform, LogNormal):
        for key in model.model_fields:
            assert f"{key} = " in text or f"[{key}]" in text or f"[[{key}]]" in text or f".{key}]" in text, key
    for trouble in Trouble:
        assert trouble in text


def test_the_example_is_valid_with_its_comments_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    lines = EXAMPLE.read_text().splitlines()
    keys = [
        line.removeprefix("# ")
        for line in lines
        if not line.startswith("#")
        or line.startswith(("# [[", '# "'))
        or (" = " in line and "{" not in line and not line.startswith("#  "))
    ]
    path.write_text("\n".join(keys))
    faults = read_faults(path)
    assert faults.drops
    assert faults.throttle.rates
    assert faults.errors
    assert faults.receipts.undelivered
    assert faults.outage.for_s


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"latencey": 1}, "latencey: unknown key; did you mean 'latency'?"),
        ({"receipts": {"duplicate": 0.1}}, "receipts.duplicate: unknown key; did you mean 'duplicates'?"),
        ({"throttle": {"retry_after": 1}}, "throttle.retry_after: unknown key; did you mean 'retry_after_s'?"),
        ({"latency": {"kind": "fixed", "mss": 1}}, "latency.fixed.mss: unknown key; did you mean 'ms'?"),
        (
            {"errors": {"garbages": 0.1}},
            "'garbages' is neither a code of Twilio nor a trouble; did you mean 'garbage'?",
        ),
        ({"errors": {"20500": 0.7, "20429": 0.7}}, "add up to 1.4"),
        ({"receipts": {"failed": {"30001": 0.6}, "undelivered": {"30003": 0.6}}}, "add up to 1.2"),
        ({"errors": {"20500": 1.5}}, "errors.20500 = 1.5"),
        ({"latency": {"kind": "uniform", "from_ms": 9, "to_ms": 1}}, "from_ms is greater than to_ms"),
        ({"latency": {"kind": "lognormal", "median_ms": 9, "p99_ms": 1}}, "median_ms is greater than p99_ms"),
        ({"latency": {"kind": "gauss"}}, "'fixed', 'uniform', 'lognormal'"),
        ({"throttle": {"rate": 0.5}}, "throttle.rate = 0.5"),
        ({"outage": {"kind": "off"}}, "outage.kind = 'off'"),
        ({"drops": [{"prefix": "+1", "shares": 0.1}]}, "drops.0.shares: unknown key; did you mean 'share'?"),
    ],
)
def test_a_mistake_is_named(content: dict[str, object], told: str) -> None:
    with pytest.raises(FaultsError) as error:
        parse_faults(content)
    assert told in str(error.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(FaultsError) as error:
        parse_faults({"seed": "x", "latencey": 1, "receipts": {"late": 7}})
    assert len(str(error.value).splitlines()) == 3


shares = st.floats(0, 1)


@given(
    seed=st.integers(0, 1_000),
    drop=st.sampled_from([None, "nothing", "sent", "undelivered"]),
    chances=st.tuples(shares, shares, shares, shares),
    pooled=st.booleans(),
)
def test_receipts_tell_the_story_and_nothing_else(
    seed: int, drop: str | None, chances: tuple[float, float, float, float], *, pooled: bool
) -> None:
    missing, late, duplicates, reversal = chances
    faults = parse_faults(
        {
            "receipts": {
                "missing": missing, "late": late, "duplicates": duplicates, "reversed": reversal,
                "undelivered": {"30003": 0.3}, "failed": {"30001": 0.3},
            },
            "drops": [{"prefix": "+1", "share": 0.5, "receipt": drop}] if drop else [],
        }
    )  # fmt: skip
    rolls = Dice(seed).throw()
    news = story(faults, rolls, "+14155550123", pooled=pooled)
    told = callbacks(faults, rolls, "+14155550123", news)
    assert news[-1].status in {"sent", "failed", "delivered", "undelivered"}
    assert [one.after_s for one in news] == sorted(one.after_s for one in news)
    assert {(one.status, one.code) for one in told} <= {(one.status, one.code) for one in news}
    assert bool(news[-1].code) == (news[-1].status in {"failed", "undelivered"})


def test_a_number_that_is_dropped_stays_sent() -> None:
    faults = Faults(drops=(Drop(prefix="+1310", receipt="sent"), Drop(prefix="+1", share=0.0)))
    rolls = Dice(1).throw()
    assert story(faults, rolls, "+13105550100", pooled=False) == (News(0.1, "sent"),)
    assert story(faults, rolls, "+14155550100", pooled=False)[-1].status == "delivered"


def test_reading_a_missing_file_is_a_mistake_in_words(tmp_path: Path) -> None:
    with pytest.raises(FaultsError, match="No such file"):
        read_faults(tmp_path / "none.toml")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FaultsError):
        read_faults(tmp_path / "folder")


def now() -> float:
    return asyncio.get_running_loop().time()


def slow(ms: int) -> Faults:
    return parse_faults({"latency": {"kind": "fixed", "ms": ms}, "receipts": {"enabled": False}})


async def test_what_is_on_the_wire_until_it_is_answered(client: Client, simulator: Simulator) -> None:
    simulator.faults = slow(150)
    asked = asyncio.create_task(client.create(StatusCallback="http://127.0.0.1:9/callbacks/x/first"))
    await until(lambda: simulator.ledger.accepted == 1)
    asking = now()
    assert simulator.on_the_wire(asking) == simulator.on_the_wire(math.inf) == {"first"}
    await asked
    await asyncio.sleep(0.01)  # the loop's clock has steps
    assert (simulator.on_the_wire(asking), simulator.on_the_wire(now())) == ({"first"}, set())
    assert simulator.unheard() == {"first"}
    await client.create(StatusCallback="http://127.0.0.1:9/callbacks/x/second")
    await client.create(StatusCallback="http://127.0.0.1:9/callbacks/x/third")
    assert simulator.unheard() == {"second", "third"}, "who asks again for the second time on a connection has heard"
    assert simulator.connected == 1


class Dialled:
    """A connection of which we say when its answer is read."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.socket = socket.create_connection(("127.0.0.1", int(simulator.url.rpartition(":")[2])))

    def ask(self, name: str) -> None:
        body = f"To={THEIRS}&From={OURS}&Body=x&StatusCallback=http://127.0.0.1:9/callbacks/x/{name}".replace(
            "+", "%2B"
        )
        basic = base64.b64encode(f"{ACCOUNT_SID}:{AUTH_TOKEN}".encode()).decode()
        self.socket.sendall(
            f"POST /2010-04-01/Accounts/{ACCOUNT_SID}/Messages.json HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Basic {basic}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )

    async def answered(self, name: str) -> None:
        await until(lambda: name in self.simulator.unheard())
        await until(lambda: name not in self.simulator.on_the_wire(math.inf))
        await asyncio.sleep(0.05)  # it has left

    def hear(self) -> bytes:
        return self.socket.recv(65_536)


async def test_whoever_asks_again_has_heard_what_was_answered_before_on_any_connection(simulator: Simulator) -> None:
    simulator.faults = slow(20)
    talks = [Dialled(simulator) for _ in range(3)]
    for talk, name in zip(talks, "abc", strict=True):
        talk.ask(name)
        await talk.answered(name)
    assert simulator.unheard() == set("abc")
    talks[1].ask("d")
    await talks[1].answered("d")
    assert simulator.unheard() == set("abcd"), "it may have asked before it took note of a and b"
    talks[1].ask("e")
    await talks[1].answered("e")
    assert simulator.unheard() == set("cde"), "but not before it read the answer to d"
    for talk in talks:
        talk.socket.close()


@pytest.mark.parametrize("read", [False, True])
async def test_an_answer_that_was_never_read_was_on_the_wire(simulator: Simulator, read: bool) -> None:
    simulator.faults = slow(20)
    talk = Dialled(simulator)
    talk.ask("only")
    await talk.answered("only")
    if read:
        assert b" 201 " in talk.hear()
    dying = now()
    talk.socket.close()
    await until(lambda: simulator.connected == 0)
    assert simulator.on_the_wire(dying) == (set() if read else {"only"})
    assert simulator.unheard() == {"only"}


async def test_who_hung_up_has_waited_until_then(client: Client, simulator: Simulator) -> None:
    simulator.faults = slow(60_000)
    asked = asyncio.create_task(client.create(StatusCallback="http://127.0.0.1:9/callbacks/x/only"))
    await until(lambda: simulator.ledger.accepted == 1)
    before = now()
    asked.cancel()
    await until(lambda: simulator.connected == 0)
    await asyncio.sleep(0.01)
    assert simulator.on_the_wire(now()) == set()
    assert simulator.on_the_wire(before) == simulator.unheard() == {"only"}
