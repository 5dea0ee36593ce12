from __future__ import annotations

import random
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from daemon.core.lifecycle import RANKS, Status
from daemon.core.receipt import Receipt, Standing, merge, standing

IN_THE_QUEUE = Standing(Status.QUEUED)
standings = st.builds(Standing, st.sampled_from(sorted(Status)), st.sampled_from(["", "30003", "30005", "3"]))


@given(standings, standings)
def test_merging_is_commutative(one: Standing, other: Standing) -> None:
    assert merge(one, other) == merge(other, one)


@given(standings, standings, standings)
def test_merging_is_associative(one: Standing, two: Standing, three: Standing) -> None:
    assert merge(merge(one, two), three) == merge(one, merge(two, three))


@given(standings)
def test_merging_is_idempotent(one: Standing) -> None:
    assert merge(one, one) == one


@given(standings, standings)
def test_the_heavier_word_stays(one: Standing, other: Standing) -> None:
    assert RANKS[merge(one, other).status] == max(RANKS[one.status], RANKS[other.status])


def test_of_two_bad_words_the_first_in_the_alphabet_stays() -> None:
    assert merge(Standing(Status.UNDELIVERED), Standing(Status.FAILED)).status is Status.FAILED


def test_a_code_says_more_than_none() -> None:
    assert merge(Standing(Status.FAILED), Standing(Status.FAILED, "30003")).code == "30003"


def test_eight_words_in_any_order_leave_one_result() -> None:
    words = [
        Status.ACCEPTED,
        Status.SENT,
        Status.FAILED,
        Status.UNDELIVERED,
        Status.DELIVERED,
        Status.EXPIRED,
        Status.DEAD,
        Status.CANCELED,
    ]
    receipts = [
        Receipt("SM1", word, code) for word, code in zip(words, ["", "", "1", "2", "", "", "", ""], strict=True)
    ]
    orders = list(permutations(receipts))  # 40,320
    for order in random.Random(8).sample(orders, 4000):
        assert standing(IN_THE_QUEUE, order) == Standing(Status.DELIVERED)


@given(standings, st.lists(standings, max_size=8), st.randoms(use_true_random=False))
def test_repeats_and_batches_leave_one_result(start: Standing, news: list[Standing], dice: random.Random) -> None:
    receipts = [Receipt("SM1", one.status, one.code) for one in news]
    jumbled = receipts * 2
    dice.shuffle(jumbled)
    cut = dice.randint(0, len(jumbled))
    assert standing(standing(start, jumbled[:cut]), jumbled[cut:]) == standing(start, receipts)
