"""
Which groups are ours to speak for, of those that several daemons share.

Every daemon of the same settings asks this of the same facts and comes to the same answer, without talking to the
others: what is free goes to whoever has least, and whoever has two more than another lets one go. Should their facts
differ for a moment, the lease still belongs to one alone, and the next look sets it right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from uuid import UUID

PATIENCE_S = 3.0  # a group that nobody speaks for is anybody's after so long: whose turn it is may be in trouble


def ours(
    groups: Collection[str],
    *,
    me: UUID,
    peers: Collection[UUID],
    holders: Mapping[str, UUID],
    idle_s: Mapping[str, float],
) -> set[str]:
    """
    Those of *groups* that *me* should hold: it keeps or takes them, and lets go of the others.

    *peers* are the daemons that share them, with or without *me*. *holders*: who holds each that is held; one that is
    no peer (gone, or of other settings) keeps what it has. *idle_s*: of those that are free, for how many seconds.
    """
    shares: dict[UUID, list[str]] = {peer: [] for peer in sorted({me, *peers})}
    mine = set()
    for group in sorted(groups):
        if holders.get(group) in shares:
            shares[holders[group]].append(group)
    counts = {peer: len(share) for peer, share in shares.items()}
    for group in sorted(groups):
        if group not in holders:
            least = min(counts, key=lambda peer: (counts[peer], peer))
            counts[least] += 1
            if least == me or idle_s.get(group, 0.0) > PATIENCE_S:
                mine.add(group)
    while True:
        most = max(counts, key=lambda peer: (counts[peer], peer))
        least = min(counts, key=lambda peer: (counts[peer], peer))
        if counts[most] - counts[least] < 2 or not shares[most]:
            return mine | set(shares[me])
        shares[most].pop()
        counts[most] -= 1
        counts[least] += 1
