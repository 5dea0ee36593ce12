"""Groups: the islands of services and senders that one daemon must hold together."""

from __future__ import annotations

import random  # noqa: TC003 - hypothesis reads the annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.core.groups import Group, groups

ADDRESSES = st.sampled_from([f"+1202555010{digit}" for digit in range(10)])
POOLS = st.dictionaries(st.sampled_from("abcdefgh"), st.lists(ADDRESSES, min_size=1, max_size=4), max_size=6)
LIMITS = st.lists(st.lists(ADDRESSES, max_size=3), max_size=3)


def test_services_that_share_a_sender_are_one_group() -> None:
    found = groups({"otp": ["+3", "+1"], "news": ["+2", "+3"], "alone": ["+4"]})
    assert found == [
        Group(name="+1", services=("news", "otp"), senders=("+1", "+2", "+3")),
        Group(name="+4", services=("alone",), senders=("+4",)),
    ]


def test_a_sender_that_serves_nobody_is_a_group_by_itself() -> None:
    assert groups({}, senders=["+9"]) == [Group(name="+9", services=(), senders=("+9",))]


def test_a_shared_limit_ties_senders_of_different_services() -> None:
    found = groups({"a": ["+1"], "b": ["+2"]}, limits=[["+2", "+1"]])
    assert found == [Group(name="+1", services=("a", "b"), senders=("+1", "+2"))]


@given(POOLS, st.lists(ADDRESSES), LIMITS)
def test_everybody_is_in_exactly_one_group(
    pools: dict[str, list[str]], senders: list[str], limits: list[list[str]]
) -> None:
    found = groups(pools, senders=senders, limits=limits)
    everybody = {address for pool in [*pools.values(), senders, *limits] for address in pool}
    assert sorted(address for group in found for address in group.senders) == sorted(everybody)
    assert sorted(name for group in found for name in group.services) == sorted(pools)


@given(POOLS, LIMITS)
def test_what_shares_anything_is_never_parted(pools: dict[str, list[str]], limits: list[list[str]]) -> None:
    home = {address: group for group in groups(pools, limits=limits) for address in group.senders}
    for name, pool in pools.items():
        assert {home[address] for address in pool} == {next(home[a] for a in pool if name in home[a].services)}
    for limit in limits:
        assert len({home[address] for address in limit}) <= 1


@given(POOLS)
def test_what_shares_nothing_is_never_joined(pools: dict[str, list[str]]) -> None:
    # Each group is connected: growing from its first sender through shared pools reaches all of it.
    for group in groups(pools):
        reached, before = {group.senders[0]}, set[str]()
        while reached != before:
            before = set(reached)
            reached |= {address for pool in pools.values() if reached & set(pool) for address in pool}
        assert reached == set(group.senders)


@given(POOLS, st.randoms(use_true_random=False))
def test_the_order_of_the_file_changes_nothing(pools: dict[str, list[str]], dice: random.Random) -> None:
    names = list(pools)
    dice.shuffle(names)
    assert groups({name: pools[name][::-1] for name in names}) == groups(pools)


@given(POOLS)
def test_a_group_is_named_after_its_first_sender(pools: dict[str, list[str]]) -> None:
    found = groups(pools)
    assert [group.name for group in found] == sorted(min(group.senders) for group in found)
