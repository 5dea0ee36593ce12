from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest

from daemon.core.lifecycle import FINAL, Status
from daemon.core.permission import GO, PAUSED_S, Go, Hold, Refuse, ask

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.core.message import Message

    Make = Callable[..., Message]

NOW = 1_000.0


def test_an_ordinary_message_goes(a_message: Make) -> None:
    assert ask(a_message(), now=NOW) is GO
    assert ask(a_message(due_at=NOW, expires_at=NOW + 0.001), now=NOW) == Go()


def test_a_canceled_message_is_never_sent(a_message: Make) -> None:
    for opted_out, paused, expires_at in product((False, True), (None, "by hand"), (None, 1.0)):
        answer = ask(a_message(expires_at=expires_at), now=NOW, canceled=True, opted_out=opted_out, paused=paused)
        assert answer == Refuse(Status.CANCELED, "canceled by the application")


def test_who_opted_out_is_left_alone(a_message: Make) -> None:
    answer = ask(a_message(due_at=NOW + 9), now=NOW, opted_out=True, paused="by hand")
    assert answer == Refuse(Status.SUPPRESSED, "opted out")


@pytest.mark.parametrize("late_s", [0, 1, 90])
def test_what_is_too_late_ends_and_says_by_how_much(a_message: Make, late_s: int) -> None:
    answer = ask(a_message(expires_at=NOW - late_s), now=NOW, paused="by hand")
    assert answer == Refuse(Status.EXPIRED, f"too late: expired {late_s} s ago")


def test_what_is_not_due_waits_for_its_hour(a_message: Make) -> None:
    assert ask(a_message(due_at=NOW + 60), now=NOW, paused="by hand") == Hold(NOW + 60, "not yet due")


def test_what_is_paused_is_held_and_says_why(a_message: Make) -> None:
    assert ask(a_message(), now=NOW, paused="by hand") == Hold(NOW + PAUSED_S, "paused: by hand")


def test_every_refusal_is_final(a_message: Make) -> None:
    for canceled, opted_out in product((False, True), repeat=2):
        answer = ask(a_message(expires_at=1.0), now=NOW, canceled=canceled, opted_out=opted_out)
        assert isinstance(answer, Refuse)
        assert answer.status in FINAL
