"""Who speaks for which groups: everybody for about as many, nobody for one twice, and no group forgotten."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.spread import PATIENCE_S, ours

ONE, TWO, THREE, GONE = (UUID(int=number) for number in range(1, 5))
SIX = [f"group {number}" for number in range(6)]


def held(**counts: int) -> dict[str, UUID]:
    """SIX, dealt out in order."""
    names = iter(SIX)
    owners = {"one": ONE, "two": TWO, "three": THREE, "gone": GONE}
    return {next(names): owners[owner] for owner, many in counts.items() for _ in range(many)}


def shares(peers: list[UUID], holders: dict[str, UUID], groups: list[str] = SIX) -> list[set[str]]:
    return [ours(groups, me=peer, peers=peers, holders=holders, idle_s={}) for peer in peers]


def test_alone_it_takes_all() -> None:
    assert ours(SIX, me=ONE, peers=[], holders={}, idle_s={}) == set(SIX)


@pytest.mark.parametrize(
    ("peers", "holders", "sizes"),
    [
        ([ONE, TWO], {}, [3, 3]),
        ([ONE, TWO, THREE], {}, [2, 2, 2]),
        ([ONE, TWO], held(one=6), [3, 0]),  # what the first lets go is free only when it is drained
        ([ONE, TWO], held(one=3), [3, 3]),
        ([ONE, TWO], held(one=5), [3, 1]),
        ([ONE, TWO, THREE], held(one=3, two=3), [2, 2, 0]),
        ([ONE, TWO], held(one=3, two=3), [3, 3]),
        ([ONE, TWO], held(gone=6), [0, 0]),
        ([ONE, TWO], held(gone=4), [1, 1]),
        ([ONE, TWO, THREE], held(one=2, two=2, three=1), [2, 2, 2]),
    ],
)
def test_everybody_has_a_share(peers: list[UUID], holders: dict[str, UUID], sizes: list[int]) -> None:
    assert [len(share) for share in shares(peers, holders)] == sizes


def test_one_group_more_moves_nothing() -> None:
    """Back and forth it would go for ever."""
    holders = {"group 0": ONE, "group 1": TWO, "group 2": TWO}
    assert shares([ONE, TWO], holders, SIX[:3]) == [{"group 0"}, {"group 1", "group 2"}]


def test_what_its_turn_has_left_lying_is_anybodys() -> None:
    facts: dict[str, object] = {"me": TWO, "peers": [ONE, TWO], "holders": {}}
    assert ours(["a"], **facts, idle_s={"a": PATIENCE_S}) == set()  # type: ignore[arg-type]
    assert ours(["a"], **facts, idle_s={"a": PATIENCE_S + 0.1}) == {"a"}  # type: ignore[arg-type]


PEERS = st.lists(st.sampled_from([ONE, TWO, THREE]), min_size=1, unique=True)
HELD = st.dictionaries(st.sampled_from(SIX), st.sampled_from([ONE, TWO, THREE, GONE]))


@given(PEERS, HELD)
def test_nobody_is_given_what_another_holds_and_no_free_group_is_left_or_given_twice(
    peers: list[UUID], holders: dict[str, UUID]
) -> None:
    found = dict(zip(peers, shares(peers, holders), strict=True))
    for peer, mine in found.items():
        assert all(holders.get(group, peer) == peer for group in mine)
    free = [group for group in SIX if group not in holders]
    assert sorted(group for mine in found.values() for group in mine if group in free) == free


@given(PEERS, HELD)
def test_the_shares_become_even_in_a_few_looks_and_then_stay(peers: list[UUID], holders: dict[str, UUID]) -> None:
    """Each look: everybody takes what is free for it, then lets go of what is not its own any more."""
    holders = {group: owner for group, owner in holders.items() if owner in peers}
    for _ in range(4):
        for peer, mine in zip(peers, shares(peers, holders), strict=True):
            kept = {group: owner for group, owner in holders.items() if owner != peer or group in mine}
            holders = kept | dict.fromkeys(mine, peer)
    counts = [sum(owner == peer for owner in holders.values()) for peer in peers]
    assert sum(counts) == len(SIX)
    assert max(counts) - min(counts) <= 1
    assert [len(mine) for mine in shares(peers, holders)] == counts
