"""
Every way a breaker can go, to a depth: small figures, all events at every step, one law after each (facts: reliability, T19).

The breaker is the real one (one is enough: a provider's breaker is a value of its own, and knows of no other), with a temper so small that a trip, a rest, probes, a relapse and a recovery fit into eight
events. Beside it goes what an onlooker knows: who is on the wire under which permit, and until when nobody may be.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from daemon.core import breaker as room
from daemon.core.breaker import (
    Breaker,
    Closed,
    HalfOpen,
    Open,
    Permit,
    Sign,
    Temper,
    closed,
    force_open,
    knock,
    learn,
    quota,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEPTH, DEEP = 8, 10
TEMPER = Temper(
    min_calls=3, unconnected_in_a_row=2, open_s=4.0, open_max_s=8.0, jitter=0.0, probes=(1, 2), closes_after=2,
    reopens_after=1, rest_s=2.0, lost_s=6.0,
)  # fmt: skip
EVENTS = ("bulk", "urgent", "good", "failed", "unconnected", "late", "pass", "refused")


@dataclass
class Onlooker:
    """What is true whatever the breaker believes."""

    breaker: Breaker
    now: float = 0.0
    wire: tuple[tuple[Permit, float], ...] = ()  # on its way: under which permit, since when

    def after(self, event: str) -> Onlooker:
        """The same world, one event later."""
        seen = Onlooker(deepcopy(self.breaker), self.now, self.wire)
        match event:
            case "bulk" | "urgent":
                seen.knock(1 if event == "urgent" else 3)
            case "pass":
                seen.now += 3.0
            case "refused":
                seen.breaker = force_open(seen.breaker, seen.now + 5.0)
            case "late":  # the newest answers first, and slowly
                seen.hear(-1, Sign.SLOW)
            case word:
                seen.hear(0, Sign(word))
        return seen

    def knock(self, level: int) -> None:
        before, room = self.breaker, quota(self.breaker, now=self.now, temper=TEMPER)
        self.breaker, permit = knock(before, level=level, now=self.now, temper=TEMPER, roll=0.5)
        if permit is None:
            assert not isinstance(before, Closed), "closed, and somebody was sent away"
            assert isinstance(self.breaker, Open) or room == 0 or level == 1
            return
        assert not (isinstance(before, Open) and self.now < before.until), "open, and somebody passed"
        assert not isinstance(self.breaker, Open), "somebody passed, and it is open"
        assert room is None or room > 0, "somebody passed for whom there was no room"
        self.wire += ((permit, self.now),)
        if isinstance(self.breaker, HalfOpen):
            out = [since for held, since in self.wire if held == self.breaker.epoch]
            room = TEMPER.probes[1 if self.breaker.good >= TEMPER.probes[0] else 0]
            assert len(out) <= room, f"{len(out)} probes are out, at most {room} may be"
            assert self.breaker.out <= room

    def hear(self, which: int, sign: Sign) -> None:
        if not self.wire:
            return
        permit, _ = self.wire[which]
        self.wire = self.wire[1:] if which == 0 else self.wire[:-1]
        before = self.breaker
        self.breaker = learn(before, permit, sign, now=self.now, temper=TEMPER, roll=0.5)
        if permit != before.epoch:
            assert self.breaker == before, "an answer from before changed what came after"
        if isinstance(before, Open):
            assert self.breaker == before, "while it is open nothing is learned"

    def heals(self) -> None:
        """From here on its provider answers well: it closes, whatever is still on the wire, and soon."""
        while not isinstance(self.breaker, Closed):
            assert self.now < 100.0, "it never closes"
            self.now += 1.0
            self.breaker, permit = knock(self.breaker, level=3, now=self.now, temper=TEMPER, roll=0.5)
            if permit is not None:
                self.breaker = learn(self.breaker, permit, Sign.GOOD, now=self.now, temper=TEMPER, roll=0.5)


def key(seen: Onlooker) -> object:
    """What decides all that can follow. Times count from now."""
    now, door = seen.now, seen.breaker
    wire = tuple((permit - door.epoch, since - now) for permit, since in seen.wire)
    match door:
        case Closed(window=window):
            counts = tuple(tuple(getattr(window, name)) for name in ("_calls", "_failed", "_slow"))
            return wire, counts, window.unconnected, window._second - int(now), int(now) % 10
        case Open():
            return wire, door.until - now, door.trips
        case HalfOpen():
            return wire, door.trips, door.since - now, door.passed - now, door.out, door.good, door.bad


def paths(depth: int) -> Iterator[tuple[int, int, set[str]]]:
    """Layer by layer: how many paths lead to it, in how many different states they end, and which kinds these are."""
    layer: dict[object, tuple[Onlooker, int]] = {"": (Onlooker(closed()), 1)}
    for _ in range(depth):
        following: dict[object, tuple[Onlooker, int]] = {}
        for seen, ways in layer.values():
            for event in EVENTS:
                after = seen.after(event)
                known = following.get(key(after))
                following[key(after)] = (after, ways + (known[1] if known else 0))
        layer = following
        for seen, _ in layer.values():
            deepcopy(seen).heals()
        kinds = {type(seen.breaker).__name__ for seen, _ in layer.values()}
        yield sum(ways for _, ways in layer.values()), len(layer), kinds


@pytest.mark.parametrize("depth", [DEPTH, pytest.param(DEEP, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_no_way_through_a_breaker_breaks_its_laws(depth: int) -> None:
    layers = list(paths(depth))
    ways, ends, kinds = layers[-1]
    assert ways == len(EVENTS) ** depth  # by way of so many ends that differ:
    assert ends > 5_000
    assert kinds == {"Closed", "Open", "HalfOpen"}


def opened_for_ever(right: Callable[..., Open], *args: object) -> Open:
    return Open(right(*args).epoch, float("inf"))


@pytest.mark.parametrize(
    ("what", "wrong", "says"),
    [
        ("_free", lambda _right, *_: 9, "may be"),
        ("_free", lambda _right, *_: 0, "it never closes"),
        ("_lost", lambda _right, *_: False, "it never closes"),
        ("_opened", opened_for_ever, "it never closes"),
        ("_next", lambda _right, breaker: breaker.epoch, "while it is open|an answer from before|may be"),
    ],
    ids=["all probe", "nobody probes", "lost probes are waited for", "open for ever", "one epoch for all"],
)
def test_a_wrong_breaker_is_found(
    monkeypatch: pytest.MonkeyPatch, what: str, wrong: Callable[..., object], says: str
) -> None:
    right = getattr(room, what)
    monkeypatch.setattr(room, what, lambda *args: wrong(right, *args))
    with pytest.raises(AssertionError, match=says):
        list(paths(DEPTH))
