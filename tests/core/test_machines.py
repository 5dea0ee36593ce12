"""
Hypothesis state machines: one message's life, step by step, and its receipts in every order.

The life machine holds what an application may see of one message against what really happened to it; the receipt machine
says the same words to two books, one of them late, twice and out of order.
"""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from daemon.core.lifecycle import FINAL, OPEN, RANKS, REPLAYABLE, STEPS, WAITING, Status, heard, sources
from daemon.core.receipt import Receipt, Standing, merge, standing

if TYPE_CHECKING:
    from unittest import TestCase

S = Status
WORDS = (S.ACCEPTED, S.SENT, S.UNDELIVERED, S.FAILED, S.DELIVERED, S.READ)
CODES = ("", "30003", "30005")
OUR_ENDS = (S.FAILED, S.EXPIRED, S.CANCELED, S.SUPPRESSED, S.DEAD)
words = st.sampled_from(WORDS)
codes = st.sampled_from(CODES)


class Receipts(RuleBasedStateMachine):
    """
    A provider tells; two books hear it. One hears each word once and in time. The other hears words again, in any order,
    some before the answer of the request they are about, some while it does not know whose they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.said: list[Receipt] = []
        self.prompt = Standing(S.SENDING)
        self.other = Standing(S.SENDING)
        self.unheard: list[Receipt] = []  # of the other book: on their way
        self.orphans: list[Receipt] = []  # of the other book: it has no message for them yet
        self.known = False  # whether the other book knows the reference

    @rule(word=words, code=codes)
    def tell(self, word: Status, code: str) -> None:
        said = Receipt("SM1", word, code if word in {S.UNDELIVERED, S.FAILED} else "")
        self.said.append(said)
        self.unheard.append(said)
        self.prompt = merge(self.prompt, Standing(said.status, said.code))

    @rule()
    def answer(self) -> None:
        """The provider's yes is read: as a word of the lattice, and orphans find their message."""
        self.known = True
        for book in ("prompt", "other"):
            setattr(self, book, merge(getattr(self, book), Standing(S.ACCEPTED)))
        self.other = standing(self.other, self.orphans)
        self.orphans.clear()

    @precondition(lambda self: self.unheard)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        self._hear(self.unheard.pop(data.draw(st.integers(0, len(self.unheard) - 1))))

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def arrive_again(self, data: st.DataObject) -> None:
        self._hear(data.draw(st.sampled_from(self.said)))

    def _hear(self, said: Receipt) -> None:
        if self.known:
            before = self.other
            self.other = merge(self.other, Standing(said.status, said.code))
            assert RANKS[self.other.status] >= RANKS[before.status], "no word takes back a heavier one"
        else:
            self.orphans.append(said)

    @invariant()
    def never_ahead(self) -> None:
        assert RANKS[self.other.status] <= RANKS[self.prompt.status]

    @invariant()
    def the_status_alone_agrees(self) -> None:
        here = S.SENDING
        for said in self.said:
            here = heard(here, said.status)
        if here is not S.SENDING:
            assert merge(Standing(S.ACCEPTED), self.prompt).status is heard(S.ACCEPTED, here) or here is S.ACCEPTED

    def teardown(self) -> None:
        """Whatever was on its way arrives, and both books say the same."""
        self.answer()
        for said in reversed(self.unheard):
            self._hear(said)
        assert self.other == self.prompt
        assert not self.orphans


class Life(RuleBasedStateMachine):
    """One message and everything that may happen to it, as a daemon and an operator would."""

    def __init__(self) -> None:
        super().__init__()
        self.here = S.QUEUED
        self.was: list[Status] = []
        self.left = False  # a provider may have it
        self.heaviest = 0  # word of a provider since it was last queued by hand

    def _go(self, there: Status) -> None:
        assert there in STEPS[self.here], f"{self.here} -> {there} is no step"
        assert self.here in sources(there)
        self.was.append(self.here)
        self.here = there

    @precondition(lambda self: self.here is S.QUEUED)
    @rule()
    def claim(self) -> None:
        self._go(S.SENDING)

    @precondition(lambda self: self.here is S.SENDING)
    @rule()
    def give_back(self) -> None:
        self._go(S.QUEUED)

    @precondition(lambda self: self.here is S.SENDING)
    @rule()
    def lose_the_answer(self) -> None:
        self.left = True
        self._go(S.UNKNOWN)

    @precondition(lambda self: self.here in {S.SENDING, S.UNKNOWN})
    @rule(word=st.sampled_from(sorted(WAITING)))
    def accept(self, word: Status) -> None:
        self.left = True
        self.heaviest = max(self.heaviest, RANKS[word])
        self._go(word)

    @precondition(lambda self: self.here in OPEN)
    @rule(there=st.sampled_from(OUR_ENDS))
    def end(self, there: Status) -> None:
        self.heaviest = max(self.heaviest, RANKS[there])
        self._go(there)

    @precondition(lambda self: self.here is S.UNKNOWN)
    @rule()
    def send_again(self) -> None:
        self._go(S.QUEUED)

    @precondition(lambda self: self.here in REPLAYABLE)
    @rule()
    def replay(self) -> None:
        self.heaviest = 0
        self._go(S.QUEUED)

    @precondition(lambda self: self.left)
    @rule(word=words)
    def hear(self, word: Status) -> None:
        there = heard(self.here, word)
        assert heard(there, word) is there, "a word said twice is said once"
        assert there is merge(Standing(self.here), Standing(word)).status
        if there is not self.here:
            self._go(there)
        self.heaviest = max(self.heaviest, RANKS[word])

    @precondition(lambda self: self.left)
    @rule(one=words, other=words)
    def hear_two_that_raced(self, one: Status, other: Status) -> None:
        assert heard(heard(self.here, one), other) is heard(heard(self.here, other), one)
        self.hear(one)
        self.hear(other)

    @rule()
    def nothing(self) -> None:
        """Time passes."""

    @invariant()
    def the_heaviest_word_stands(self) -> None:
        if self.here not in OPEN:
            assert RANKS[self.here] == self.heaviest

    @invariant()
    def what_has_ended_moves_by_evidence_or_by_hand_alone(self) -> None:
        assert (self.here in FINAL) + (self.here in WAITING) + (self.here in OPEN) == 1
        if len(self.was) and self.was[-1] in FINAL:
            assert self.here in {*WORDS, S.QUEUED}
            assert self.here is not S.QUEUED or self.was[-1] in REPLAYABLE


TestReceipts: type[TestCase] = Receipts.TestCase
TestLife: type[TestCase] = Life.TestCase
TestReceipts.settings = settings(max_examples=150, stateful_step_count=50)  # type: ignore[attr-defined]
TestLife.settings = settings(max_examples=150, stateful_step_count=50)  # type: ignore[attr-defined]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("machine", [Receipts, Life])
def test_a_hundred_thousand_steps(machine: type[RuleBasedStateMachine]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(machine, settings=settings(max_examples=2_000, stateful_step_count=50))


def test_all_orders_of_eight_receipts_leave_one_result() -> None:
    """40,320 of them, the same words heard by status alone, and each order heard twice over in a thousandth of them."""
    receipts = [
        Receipt("SM1", word, code)
        for word, code in (
            (S.ACCEPTED, ""), (S.SENT, ""), (S.UNDELIVERED, "30003"), (S.FAILED, ""), (S.FAILED, "30005"),
            (S.UNDELIVERED, "30008"), (S.SENT, ""), (S.FAILED, "30003"),
        )
    ]  # fmt: skip
    count = 0
    for order in permutations(receipts):
        assert standing(Standing(S.SENDING), order) == Standing(S.FAILED, "30005")
        count += 1
        if count % 1000 == 0:
            assert standing(Standing(S.SENDING), order + order[::-1]) == Standing(S.FAILED, "30005")
    assert count == 40_320
