"""Gates, routes and the desk: who may go where, now, and why not."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from daemon.core.breaker import Temper
from daemon.core.lifecycle import Status
from daemon.core.outcome import Accepted, Fault, Rejected, Throttled, Uncertain, Unreachable
from daemon.core.permission import PAUSED_S, Go, Hold, Refuse
from daemon.core.retries import MOST, RESERVED, SHARE, WAIT_MIN_S
from daemon.core.routing import Unroutable
from daemon.database import as_object
from daemon.gates import ACCOUNT_REST_S, Gate
from daemon.metrics import Metrics
from daemon.observer import Observer
from daemon.router import SENDER_REST_S, Blocked, Route
from daemon.transport import Transport
from tests.shell.parts import OTHER, US, Wound, dialect, engine, message, settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from daemon.core.inspection import Refusal
    from daemon.core.message import Message
    from daemon.core.outcome import Outcome
    from daemon.engine import Engine
    from daemon.settings import Settings

NOWHERE = "postgresql://nobody@127.0.0.1:1/none"  # nothing here asks a database
AT_TWO = {US: "sim", OTHER: "second"}


@asynccontextmanager
async def gate_of(clock: Wound) -> AsyncIterator[Gate]:
    observer = Observer(Metrics(), clock, settings())
    async with Transport.open(connections=10) as transport:
        yield Gate(dialect(), transport, connections=10, timeout_s=15, tick=clock.tick, observer=observer)


@asynccontextmanager
async def house(folder: Path, clock: Wound, configured: Settings | None = None) -> AsyncIterator[Engine]:
    async with engine(NOWHERE, folder, configured=configured or settings(), clock=clock) as made:
        groups = made.settings.groups()
        made.leases._epochs = {group.name: 1 for group in groups}
        made.leases._voices = {group.name: frozenset(group.senders) for group in groups}
        made.leases._deadlines = {group.name: clock.tick() + 8 for group in groups}
        yield made


def shut(gate: Gate) -> None:
    for _ in range(5):
        flight = gate.knock(3)
        assert flight is not None
        gate.learn(flight, Unreachable("no connection"))


async def test_a_gate_shuts_and_heals_by_time_alone() -> None:
    clock = Wound()
    async with gate_of(clock) as gate:
        assert gate.quota() is None
        shut(gate)
        assert gate.state == "open"
        assert gate.quota() == 0
        assert gate.knock(1) is None
        clock.go(61)
        assert gate.quota()
        for _ in range(20):
            flight = gate.knock(3)
            assert flight is not None
            clock.go(0.01)
            gate.learn(flight, Accepted("SM1"))
        assert gate.state == "closed"
        assert gate.in_flight == 0


async def test_after_a_stop_places_open_with_good_answers_and_close_with_bad_ones() -> None:
    clock = Wound()
    async with gate_of(clock) as gate:

        def answered(outcome: Outcome) -> int:
            flight = gate.knock(3)
            assert flight is not None
            gate.learn(flight, outcome)
            return gate.places.opened

        assert (gate.places.opened, gate.places.full) == (4, 8)
        assert [answered(Accepted("SM1")) for _ in range(3)] == [5, 6, 7]
        assert answered(Rejected(Fault.RECIPIENT, "21211", "no such number")) == 8
        assert [answered(Uncertain("")) for _ in range(3)] == [8] * 3  # begun is begun: from here the breaker judges
        shut(gate)
        assert gate.places.opened == 4
        clock.go(10)
        assert answered(Accepted("SM1")) == 5
        assert answered(Throttled(None, "429", "")) == 5
        assert answered(Uncertain("")) == 4
        assert [answered(Accepted("SM1")) for _ in range(9)][-1] == 8
        assert gate.state == "closed"


async def test_what_was_not_sent_says_nothing_and_leaves_nothing() -> None:
    clock = Wound()
    async with gate_of(clock) as gate:
        for _ in range(50):
            flight = gate.knock(3)
            assert flight is not None
            assert gate.in_flight == 1
            gate.unused(flight)
            gate.unused(flight)
        assert gate.state == "closed"
        assert gate.in_flight == 0


async def test_a_flight_that_has_reported_is_not_unused() -> None:
    clock = Wound()
    async with gate_of(clock) as gate:
        shut(gate)
        clock.go(61)
        flight, other = gate.knock(3), gate.knock(3)
        assert flight is not None
        assert other is not None
        gate.learn(flight, Accepted("SM1"))
        before = gate._breaker
        gate.unused(flight)  # or the other's place would be given away
        assert gate._breaker == before


async def test_a_provider_that_hangs_is_noticed_before_it_answers() -> None:
    clock = Wound()
    async with gate_of(clock) as gate:
        flights = [gate.knock(3) for _ in range(30)]
        clock.go(10)
        gate.watch()
        assert gate.state == "open"
        for flight in flights:
            assert flight is not None
            gate.learn(flight, Uncertain("no whole answer in time"))
        assert gate.in_flight == 0


async def test_a_provider_that_refuses_us_rests_and_says_why() -> None:
    clock = Wound()
    async with gate_of(clock) as gate:
        flight = gate.knock(3)
        assert flight is not None
        gate.learn(flight, Rejected(Fault.ACCOUNT, "20003", "Authenticate"))
        assert gate.refused == "20003: Authenticate"
        assert gate.knock(1) is None
        clock.go(ACCOUNT_REST_S + 6)
        flight = gate.knock(3)
        assert flight is not None
        gate.learn(flight, Accepted("SM1"))
        assert gate.refused is None


async def test_a_route_avoids_what_is_shut_paused_or_resting(tmp_path: Path) -> None:
    clock = Wound()
    async with house(tmp_path, clock, settings({"default": [US, OTHER]}, providers=AT_TWO)) as made:

        def chosen() -> str:
            found = made.router.choose(message())
            assert isinstance(found, Route)
            return found.lane.sender.address

        shut(made.gates["sim"])
        assert {chosen() for _ in range(3)} == {OTHER}
        clock.go(1_000)
        made.desk.pauses = {f"sender:{OTHER}": "by hand"}
        assert chosen() == US
        made.desk.pauses = {"provider:sim": "by hand"}
        assert chosen() == OTHER
        made.desk.pauses = {}
        route = made.router.choose(message(lane=f"@{US}", sender=US))
        assert isinstance(route, Route)
        made.router.learn(route, Rejected(Fault.SENDER, "21606", "not yours"))
        assert chosen() == OTHER
        clock.go(SENDER_REST_S + 1)
        assert chosen() == US  # as before: the first that is free


async def test_a_login_code_is_not_what_a_healing_provider_is_tried_with(tmp_path: Path) -> None:
    clock = Wound()
    async with house(tmp_path, clock, settings({"default": [US, OTHER]}, providers=AT_TWO)) as made:

        def chosen(level: int) -> str:
            found = made.router.choose(message(level=level))
            assert isinstance(found, Route)
            return found.lane.sender.address

        gate = made.gates["sim"]
        shut(gate)
        clock.go(61)
        assert gate.knock(3) is not None
        assert gate.state == "half_open"
        assert {chosen(1) for _ in range(9)} == {OTHER}
        assert chosen(3) == US
        clock.go(Temper().rest_s)  # nobody has tried it: somebody must
        assert chosen(1) == US


async def test_nowhere_to_go_now_is_not_nowhere_to_go_ever(tmp_path: Path) -> None:
    clock = Wound()
    async with house(tmp_path, clock) as made:
        shut(made.gates["sim"])
        assert isinstance(made.router.choose(message()), Blocked)
        assert isinstance(made.router.choose(message(lane=f"@{US}", sender=US)), Blocked)
    # The recipient is American, where British codes do not work.
    (tmp_path / "other").mkdir()
    code = settings(
        {"default": ["72345", "72346"]},
        senders=[
            {"address": address, "provider": "sim", "type": "short_code", "country": "GB"}
            for address in ("72345", "72346")
        ],
    )
    async with house(tmp_path / "other", clock, code) as made:
        assert isinstance(made.router.choose(message()), Unroutable)


async def test_retries_beyond_the_budget_are_put_back_and_first_tries_are_not(tmp_path: Path) -> None:
    clock = Wound()
    async with house(tmp_path, clock, settings({"default": [US, OTHER]}, providers=AT_TWO)) as made:
        pinned = {"lane": f"@{US}", "sender": US}

        def held(level: int, **fields: object) -> float:
            found = made.router.choose(message(spent=1, level=level, **pinned))
            return found.wait_s if isinstance(found, Blocked) else 0.0

        assert sum(not held(3) for _ in range(30)) == MOST - RESERVED
        assert held(3) > 1.0
        assert sum(not held(1) for _ in range(30)) == RESERVED
        assert held(1) == WAIT_MIN_S
        assert isinstance(made.router.choose(message(**pinned)), Route)
        other = message(spent=1, lane=f"@{OTHER}", sender=OTHER)
        assert isinstance(made.router.choose(other), Route)  # each provider has its own
        for _ in range(int((RESERVED + 1) / SHARE)):
            flight = made.gates["sim"].knock(3)
            assert flight is not None
        assert held(3) == 0.0
        assert held(3) > 0.0
        clock.go(0.1)
        assert held(3) == 0.0


async def test_a_throttle_slows_its_lane(tmp_path: Path) -> None:
    clock = Wound()
    async with house(tmp_path, clock) as made:
        route = made.router.choose(message())
        assert isinstance(route, Route)
        made.router.learn(route, Throttled(None, "429", "slow down"))
        assert route.lane.pace.share < 1
        made.lanes.recover(1000)
        assert route.lane.pace.share == 1


def prepared(made: Engine, **fields: object) -> tuple[Message, Refusal | None]:
    row = message(**fields)
    return row, made.desk.prepare(row)


async def test_the_desk_fills_in_what_is_sent(tmp_path: Path) -> None:
    clock = Wound()
    configured = settings(templates={"code": "Your code is {code}."})
    async with house(tmp_path, clock, configured) as made:
        row, refusal = prepared(made, template="code", body=None, variables={"code": "123"})
        assert refusal is None
        assert (row.text, row.segments) == ("Your code is 123.", 1)
        row, refusal = prepared(made, body="x" * 200)
        assert row.segments == 2
        row, refusal = prepared(made, template="code", body=None, variables=as_object('{"code": 1e999}'))
        assert refusal is not None
        row, refusal = prepared(made, template="gone", body=None)
        assert refusal is not None
        assert made.desk.text_of(None, "gone", {}) == ""


async def test_a_row_without_hope_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path, Wound()) as made:
        for fields in (
            {"recipient": "+1"},
            {"recipient": "nobody"},
            {"body": ""},
            {"channel": "pigeon"},
            {"intent": "gossip"},
            {"on_ambiguous": "hope"},
        ):
            _, refusal = prepared(made, **fields)
            assert refusal is not None
            assert refusal.reason


async def test_the_desk_lets_go_and_says_why_not(tmp_path: Path) -> None:
    clock = Wound()
    async with house(tmp_path, clock) as made:
        desk, row = made.desk, message()
        assert isinstance(desk.ask(row, US), Go)
        desk.pauses = {"service:default": "by hand"}
        assert isinstance(desk.ask(row, US), Hold)
        desk.pauses = {}
        desk.held = "a copy"
        assert isinstance(desk.ask(row, US), Hold)
        desk.held = None
        for word in (
            "all",
            f"sender:{US}",
            "provider:sim",
        ):  # it was routed before it was paused, and waited for its turn
            desk.pauses = {word: "by hand"}
            assert desk.ask(row, US) == Hold(clock.now() + PAUSED_S, "paused: by hand")
        desk.pauses = {f"sender:{OTHER}": "by hand", "provider:another": "by hand"}
        assert isinstance(desk.ask(row, US), Go)
        desk.pauses = {}
        desk.cancel(row.id)
        assert desk.ask(row, US) == Refuse(Status.CANCELED, "canceled by the application")
        assert isinstance(desk.ask(message(expires_at=clock.now() - 1), US), Refuse)
        clock.go(8)
        assert isinstance(desk.ask(message(), US), Hold)  # the lease runs out before an exchange would end


async def test_an_opt_out_of_no_tenant_is_for_all_tenants(tmp_path: Path) -> None:
    async with house(tmp_path, Wound()) as made:
        desk = made.desk
        desk.opted_out = {("", "+12025550101"), ("acme", "+12025550102")}
        refused = [
            (tenant, recipient)
            for tenant in ("", "acme", "other")
            for recipient in ("+12025550101", "+12025550102", "+12025550103")
            if isinstance(desk.ask(message(tenant=tenant, recipient=recipient), US), Refuse)
        ]
        assert refused == [
            ("", "+12025550101"),
            ("acme", "+12025550101"),
            ("acme", "+12025550102"),
            ("other", "+12025550101"),
        ]


async def test_a_clock_behind_the_databases_sends_what_the_claim_found_due(tmp_path: Path) -> None:
    """Otherwise a row would be held, given back, claimed and held again, as fast as the machine can."""
    clock = Wound()
    async with house(tmp_path, clock) as made:
        assert isinstance(made.desk.ask(message(due_at=clock.now() + 3_600), US), Go)
        made.desk.told_the_time(clock.now() + 3_600.0)
        assert made.desk.now() == clock.now() + 3_600
        assert isinstance(made.desk.ask(message(expires_at=clock.now() + 60), US), Refuse)


async def test_cancellations_are_remembered_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.desk.CANCELED_MAX", 3)
    async with house(tmp_path, Wound()) as made:
        ids = [uuid4() for _ in range(5)]
        for id in (*ids, ids[-1]):
            made.desk.cancel(id)
        assert made.desk.canceled == set(ids[2:])


async def test_a_reload_forgets_no_provider_and_serves_only_what_is_there(tmp_path: Path) -> None:
    clock = Wound()
    async with house(tmp_path, clock, settings({"old": [US], "kept": [OTHER]})) as made:
        before = message(lane="old", service="old")
        turn = made.lanes[US].join(3, 1)
        waiting = made.lanes[US].join(3, 1)
        made.reload(settings({"kept": [OTHER], "new": [OTHER]}))
        assert not made.desk.serves(before)
        assert made.desk.serves(message(lane="new"))
        assert before.group == US  # as it was claimed
        assert made.desk.provider_of(US) == "sim"
        made.desk.left(before, US, made.desk.tick())  # on the wire as the settings changed
        turn.back()
        assert waiting.granted is False
        assert made.lanes.addresses == [OTHER]
        assert isinstance(made.router.choose(message(lane="new", service="new")), Route)
