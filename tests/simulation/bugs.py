"""
Bugs to plant, one or more for each law: a simulation that finds none of them proves nothing.

Each is one small wrong in a decision of ``core/``, in a statement of the store, or in a daemon of the world.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daemon.core import breaker, doubt, permission, receipt, verdict
from daemon.core.lifecycle import Status
from daemon.core.outcome import Uncertain
from daemon.core.pacing import Pace
from tests.simulation.boat import Boat
from tests.simulation.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


@dataclass(frozen=True)
class Bug:
    """What is wrong, where, and which laws may find it out."""

    name: str
    laws: frozenset[str]
    where: object
    what: str
    wrong: Callable[..., Any]
    too: tuple[object, str] | None = None  # a second guard that must be lifted as well: it always says yes

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = getattr(self.where, self.what)
        monkeypatch.setattr(self.where, self.what, lambda *args, **kwargs: self.wrong(right, *args, **kwargs))
        if self.too is not None:
            monkeypatch.setattr(*self.too, lambda *_: True)


def _settled_and_kept(right: Callable[..., Any], store: Store, *args: Any, **kwargs: Any) -> Any:
    row = args[3]
    state, due_at, attempts = row.state, row.due_at, row.attempts
    done = right(store, *args, **kwargs)
    if done and state == "unknown":
        store._enter(row, "unknown", due_at, attempts, ordered=False)
    elif done:
        store._enter(row, "ready", due_at, attempts + 1, ordered=False)
    return done


def _judged_again(right: Callable[..., Any], message: Any, outcome: Any, **facts: Any) -> Any:
    if isinstance(outcome, Uncertain):
        return verdict.Again(facts["now"] + 1.0, "no answer: once more", spent=True)
    return right(message, outcome, **facts)


def _expired_is_fine(right: Callable[..., Any], message: Any, due_at: float, reason: str, *, spent: bool) -> Any:
    return verdict.Again(due_at, reason, spent)


def _same_epoch(right: Callable[..., Any], store: Store, grp: str, *args: Any) -> Any:
    epoch = right(store, grp, *args)
    if epoch is not None and epoch > 1:
        store.leases[grp].epoch = epoch = epoch - 1
    return epoch


def _claims_unfenced(right: Callable[..., Any], store: Store, owner: int, grp: str, epoch: int, *args: Any) -> Any:
    lease = store.leases[grp]
    return right(store, lease.owner, grp, lease.epoch, args[0], min(args[1], lease.until - 1), args[2])


def _written_down_later(right: Callable[..., Any], boat: Boat, flight: Any) -> None:
    if boat.world.dice() < 0.9:
        right(boat, flight)


def _free_without_a_look(right: Callable[..., Any], boat: Boat, claim: Any, row: Any, *args: Any) -> None:
    """What was on the wire when the daemon died is sent again."""


def _last_word_wins(right: Callable[..., Any], one: Any, other: Any) -> Any:
    return other


def _cancels_all(right: Callable[..., Any], store: Store, row: Any) -> str:
    if row.state is None:
        row.status, row.code, row.why = Status.CANCELED, "", "canceled by the application"
        return "canceled"
    return str(right(store, row))


def _nothing(right: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """It is simply forgotten."""


def _always(right: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    return True


def _never_behind(right: Callable[..., Any], store: Store, row: Any, *args: Any, **kwargs: Any) -> None:
    right(store, row, *args, **{**kwargs, "ordered": False})


def _blind_to(fact: str, value: object) -> Callable[..., Any]:
    return lambda right, message, **facts: right(message, **{**facts, fact: value})


def _blind_to_the_hour(right: Callable[..., Any], message: Any, **facts: Any) -> Any:
    return right(message, **{**facts, "now": message.due_at})


def _all_pass(right: Callable[..., Any], door: Any, **facts: Any) -> Any:
    return door, door.epoch


def _all_probe(right: Callable[..., Any], door: Any, *args: Any) -> int:
    return 1_000


def _no_bound(
    right: Callable[..., Any], store: Store, owner: int, grp: str, epoch: int, wishes: Any, *args: Any
) -> Any:
    return right(store, owner, grp, epoch, [(lane, level, 1_000) for lane, level, _ in wishes], *args)


def _looks_for_ever(right: Callable[..., Any], **facts: Any) -> Any:
    return doubt.Look(facts["now"] + 20.0)


def _at_once(right: Callable[..., Any], pace: Pace, segments: int, now: float) -> float:
    return now


def _closed_without_a_look(right: Callable[..., Any], store: Store, claim: Any) -> list[Any]:
    if store.claims.pop(claim.id, None) is not None:
        for row, attempt in claim.rows:
            row.flights.remove(attempt)
    return []


BUGS = [
    Bug("a settled row stays in the queue", frozenset({"I1", "I6"}), Store, "settle", _settled_and_kept),
    Bug("a lease is taken under the old epoch", frozenset({"I2"}), Store, "lease_take", _same_epoch),
    Bug("a stale epoch claims", frozenset({"I3"}), Store, "claim", _claims_unfenced, (Boat, "may_take")),
    Bug("a lease is not looked at before a write", frozenset({"I4"}), Boat, "may_write", _always),
    Bug("the dispatch log is written now and then", frozenset({"I5"}), Boat, "write_down", _written_down_later),
    Bug("an uncertain message is sent again at once", frozenset({"I6"}), verdict, "judge", _judged_again),
    Bug("what was on the wire is taken for free", frozenset({"I6"}), Boat, "_judge", _free_without_a_look),
    Bug("a dispatch log is not compared after a failover", frozenset({"I6"}), Boat, "reconcile_log", _nothing),
    Bug("the last receipt wins", frozenset({"I7", "I8"}), receipt, "merge", _last_word_wins),
    Bug("what has ended is canceled", frozenset({"I7", "I8"}), Store, "cancel", _cancels_all),
    Bug("a found acceptance is thrown away", frozenset({"I8"}), Store, "late", _nothing),
    Bug("what was heard of is freed unseen", frozenset({"I1"}), Store, "close", _closed_without_a_look),
    Bug("debt is forgotten at a restart", frozenset({"I9"}), Pace, "restore", _nothing),
    Bug("nobody waits for a turn", frozenset({"I9"}), Pace, "earliest", _at_once),
    Bug("order_key is forgotten", frozenset({"I10"}), Store, "_enter", _never_behind),
    Bug("a canceled message leaves", frozenset({"I11"}), permission, "ask", _blind_to("canceled", value=False)),
    Bug("who opted out is written to", frozenset({"I11"}), permission, "ask", _blind_to("opted_out", value=False)),
    Bug("an expired message leaves", frozenset({"I11"}), permission, "ask", _blind_to_the_hour),
    Bug("tried again after it expires", frozenset({"I11"}), verdict, "_later", _expired_is_fine),
    Bug("an open breaker lets all pass", frozenset({"I12"}), breaker, "knock", _all_pass),
    Bug("a half-open breaker lets all pass", frozenset({"I12"}), breaker, "_free", _all_probe),
    Bug("hands take more than they hold", frozenset({"I12"}), Store, "claim", _no_bound),
    Bug("doubt never ends", frozenset({"liveness"}), doubt, "next_step", _looks_for_ever),
]
