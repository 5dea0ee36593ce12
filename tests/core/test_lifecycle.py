from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.lifecycle import FINAL, OPEN, RANKS, REPLAYABLE, STEPS, WAITING, Status, heard, sources
from daemon.core.receipt import Standing, merge

if TYPE_CHECKING:
    from random import Random

# What a provider can say in a receipt.
SAID = (Status.ACCEPTED, Status.SENT, Status.UNDELIVERED, Status.FAILED, Status.DELIVERED, Status.READ)


def test_every_status_has_its_steps_its_rank_and_one_kind() -> None:
    assert set(STEPS) == set(RANKS) == set(Status)
    assert set(Status) == OPEN | WAITING | FINAL
    assert not OPEN & WAITING
    assert not FINAL & (OPEN | WAITING)


def test_no_step_leads_nowhere_or_to_itself() -> None:
    for here, exits in STEPS.items():
        assert exits <= set(Status)
        assert here not in exits


def test_every_status_is_reached_from_the_queue() -> None:
    reached, frontier = {Status.QUEUED}, [Status.QUEUED]
    while frontier:
        for there in STEPS[frontier.pop()] - reached:
            reached.add(there)
            frontier.append(there)
    assert reached == set(Status)


def test_only_what_may_be_replayed_leaves_a_final_status_for_the_queue() -> None:
    assert {here for here in FINAL if STEPS[here] & OPEN} == REPLAYABLE
    assert all(STEPS[here] & OPEN <= {Status.QUEUED} for here in FINAL)


def test_once_a_provider_has_it_nothing_but_a_heavier_word_moves_it() -> None:
    for here in (*WAITING, Status.DELIVERED, Status.READ):
        assert all(RANKS[there] > RANKS[here] for there in STEPS[here])


def test_a_message_read_is_read_for_ever() -> None:
    assert not STEPS[Status.READ]


def test_sources_are_steps_backwards() -> None:
    for there in Status:
        assert sources(there) == {here for here in Status if there in STEPS[here]}


@pytest.mark.parametrize("here", sorted(Status))
@pytest.mark.parametrize("news", SAID)
def test_hearing_agrees_with_merging(here: Status, news: Status) -> None:
    assert heard(here, news) is merge(Standing(here), Standing(news)).status


@given(st.sampled_from(sorted(Status)), st.lists(st.sampled_from(SAID)), st.randoms(use_true_random=False))
def test_the_order_and_number_of_receipts_cannot_matter(start: Status, news: list[Status], dice: Random) -> None:
    again = news + news
    dice.shuffle(again)
    one = other = start
    for word in news:
        one = heard(one, word)
    for word in again:
        other = heard(other, word)
    assert one is other


@given(st.sampled_from(sorted(Status)), st.sampled_from(sorted(OPEN)))
def test_no_receipt_puts_a_message_back_into_the_queue(here: Status, news: Status) -> None:
    assert heard(here, news) is here


def test_a_late_receipt_changes_nothing() -> None:
    assert heard(Status.DELIVERED, Status.SENT) is Status.DELIVERED
    assert heard(Status.DELIVERED, Status.UNDELIVERED) is Status.DELIVERED


def test_delivered_after_all_corrects_and_counts() -> None:
    for here in (Status.UNDELIVERED, Status.FAILED, Status.DEAD, Status.EXPIRED, Status.CANCELED):
        assert heard(here, Status.DELIVERED) is Status.DELIVERED
