"""
Which of a service's senders carries a message, and why.

In this order: a sender of the recipient's country, then one of the US, then any; the quicker kind (short code, then
alphanumeric, then long code and toll-free; in Canada toll-free before long code); the one that is through with its
work first or has been idle longest, ties by address. A sticky service takes, instead of the least busy, always the
same one for a recipient (facts: twilio, 5.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Toll-free numbers of one work in the other; neither takes alphanumeric senders.
NORTH_AMERICA = frozenset({"US", "CA"})
_KINDS = {"short_code": 0, "alphanumeric": 1, "long_code": 3, "toll_free": 3}
_OTHER_KIND = 4
_UNFIT = 100
_64_BITS = 2**64 - 1
_ODD = 0x9E3779B97F4A7C15  # 2 ** 64 over the golden ratio: spreads neighbouring keys farthest (Knuth 6.4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """One number or name that messages come from."""

    address: str
    provider: str
    kind: str  # short_code, alphanumeric, long_code, toll_free
    country: str | None  # ISO 3166; None: at home wherever it may be used
    rate: float  # segments per second


@dataclass(slots=True)
class Candidate:
    """A sender as it stands now. Not frozen: fifty may be made for one message."""

    sender: Sender
    wait_s: float  # until everything in front of a newcomer has left; negative: since when it has been idle
    blocked: str | None = None  # why it may not be used now


@dataclass(frozen=True, slots=True)
class Choice:
    """The sender, and why this one: stored with the message."""

    sender: Sender
    why: str


@dataclass(frozen=True, slots=True)
class Unroutable:
    """Nobody can carry it."""

    reason: str


def choose(
    candidates: Sequence[Candidate], *, recipient: str, recipient_region: str | None, sticky: bool = False
) -> Choice | Unroutable:
    """
    The sender for *recipient* (E.164), who lives in *recipient_region*.

    A pinned sender is a lone candidate: it is taken as it is, geography and kind are its application's business.
    """
    if len(candidates) == 1:
        only = candidates[0]
        if only.blocked is not None:
            return Unroutable(f"{only.sender.address}: {only.blocked}")
        return Choice(only.sender, "the only sender")
    free = [candidate for candidate in candidates if candidate.blocked is None]
    alike = fit([candidate.sender for candidate in free], recipient_region)
    if not alike:
        return Unroutable(_hindrance(candidates, recipient_region))
    if sticky:
        chosen = _sticky(alike, recipient)
        return Choice(chosen, f"always this {chosen.kind} for this recipient, of {len(alike)} alike")
    waits = {candidate.sender.address: candidate.wait_s for candidate in free}
    chosen = min(alike, key=lambda sender: (waits[sender.address], sender.address))
    rank = _rank(chosen.kind, chosen.country, recipient_region)
    where = "home" if rank < 10 else "US" if rank < 20 else "foreign"
    wait_s = waits[chosen.address]
    return Choice(chosen, f"{where} {chosen.kind}, free in {max(wait_s, 0.0):.1f} s, the least of {len(alike)} alike")


def fit(senders: Iterable[Sender], region: str | None) -> list[Sender]:
    """Those of *senders* that suit a recipient in *region* best, all of them alike; none when none can reach it."""
    best, alike = _UNFIT, []
    kind, country, rank = "", None, _UNFIT
    for sender in senders:
        if sender.kind != kind or sender.country != country:  # most pools are of one sort
            kind, country = sender.kind, sender.country
            rank = _rank(kind, country, region)
        if rank < best:
            best, alike = rank, [sender]
        elif rank == best < _UNFIT:
            alike.append(sender)
    return alike


@cache
def _rank(kind: str, country: str | None, region: str | None) -> int:
    """
    The lower the better; tens are geography, ones are the kind. Kinds and countries are few, so all are remembered.

    A short code works only at home. Alphanumeric names work in most countries, and in none of North America.
    """
    if kind == "short_code" and country not in {None, region}:
        return _UNFIT
    if kind == "alphanumeric" and (region in NORTH_AMERICA or country not in {None, region}):
        return _UNFIT
    at_home = country is None or country == region
    if kind == "toll_free" and {country, region} <= NORTH_AMERICA:
        at_home = True
    first_in_canada = kind == "toll_free" and region == "CA"
    order = 2 if first_in_canada else _KINDS.get(kind, _OTHER_KIND)
    return order + (0 if at_home else 10 if country == "US" else 20)


def _sticky(senders: Iterable[Sender], recipient: str) -> Sender:
    """
    Rendezvous hashing, weighted by rate: no memory, the same after a restart, and a sender that comes or goes moves
    only its own share of the recipients.

    One BLAKE2b for the recipient and one, remembered, for each sender, mixed by a multiplication: hashing every pair
    would cost 40 µs for 50 senders. Among senders of one rate the highest mix wins, so logarithms are few.
    """
    key = _digest(recipient)
    best: dict[float, tuple[int, str, Sender]] = {}
    for sender in senders:
        mix = ((key ^ _digest_of_sender(sender.address)) * _ODD) & _64_BITS
        held = best.get(sender.rate)
        if held is None or mix > held[0] or (mix == held[0] and sender.address > held[1]):
            best[sender.rate] = (mix, sender.address, sender)
    # The highest of rate / -ln(u), u in (0, 1): each wins as often as its rate is of all (Thaler and Ravishankar).
    return max(best.values(), key=lambda won: (won[2].rate / -math.log(((won[0] >> 12) + 0.5) / 2**52), won[1]))[2]


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


_digest_of_sender = cache(_digest)


def _hindrance(candidates: Sequence[Candidate], region: str | None) -> str:
    if not candidates:
        return "the service has no senders"
    blocked = sorted({candidate.blocked for candidate in candidates if candidate.blocked})
    unfit = sum(candidate.blocked is None for candidate in candidates)
    cannot = f"{unfit} of {len(candidates)} senders cannot reach {region or 'a number of no country'}"
    return "; ".join([cannot, *blocked] if unfit else blocked)
