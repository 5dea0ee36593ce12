"""
What must be held by one daemon: services and senders tied by a shared sender or a shared exact limit.

Inside a group senders are chosen, paced and counted exactly, in one memory; groups are the unit in which work is
spread over daemons (one lease each).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One island of services and senders. Named after the first of its senders, in the order of the alphabet."""

    name: str
    services: tuple[str, ...]  # sorted
    senders: tuple[str, ...]  # sorted, never empty


def groups(
    services: Mapping[str, Iterable[str]], *, senders: Iterable[str] = (), limits: Iterable[Iterable[str]] = ()
) -> list[Group]:
    """
    The groups that *services* (name → addresses of its senders) fall into, sorted by name.

    *senders* are all there are: one that serves nobody still has its own lane, so it is a group by itself. *limits*
    are sets of addresses that share one limit, such as the numbers of a campaign. The order of nothing given matters.
    """
    pools = {name: sorted(set(pool)) for name, pool in services.items()}
    parents: dict[str, str] = {address: address for address in senders}
    for pool in [*pools.values(), *(sorted(set(limit)) for limit in limits)]:
        for address in pool:
            _join(parents, pool[0], address)
    members: dict[str, list[str]] = {}
    for address in sorted(parents):
        members.setdefault(_root(parents, address), []).append(address)
    served: dict[str, list[str]] = {root: [] for root in members}
    for name in sorted(pools):
        if pools[name]:
            served[_root(parents, pools[name][0])].append(name)
    return sorted(
        (Group(name=found[0], services=tuple(served[root]), senders=tuple(found)) for root, found in members.items()),
        key=lambda group: group.name,
    )


def _root(parents: dict[str, str], address: str) -> str:
    while parents[address] != address:
        parents[address] = parents[parents[address]]  # halve the way for those who come after
        address = parents[address]
    return address


def _join(parents: dict[str, str], one: str, other: str) -> None:
    first = _root(parents, parents.setdefault(one, one))
    parents[_root(parents, parents.setdefault(other, other))] = first
