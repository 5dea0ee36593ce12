"""Numbers as people read them."""

from __future__ import annotations


def count(number: float) -> str:
    """A number of things: 1,204."""
    return f"{number:,.0f}"


def brief(number: int) -> str:
    """A number of things in little room: 9,204,118, then 12.8 M."""
    return count(number) if number < 9_950_000 else f"{number / 1e6:,.1f} M"


def per_second(rate: float) -> str:
    """A rate: 0.3, 4.2, 148."""
    return f"{rate:,.0f}" if rate >= 9.95 else f"{rate:.1f}".removesuffix(".0")


def span(seconds: float) -> str:
    """A length of time by its two largest units: 40 ms, 3.2 s, 4 min 10 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 0.9995:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, lesser, lesser_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // lesser
            return f"{whole // size} {unit} {rest} {lesser_unit}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def milliseconds(ms: float) -> str:
    """A latency: 0.4 ms, 12 ms, 3.2 s."""
    return f"{ms:.1f} ms" if ms < 9.95 else span(ms / 1000)


def share(part: float) -> str:
    """A share of the whole, 0 to 1: 97 %."""
    return f"{part * 100:.0f} %"


def many(number: int, one: str, more: str) -> str:
    """A number with its noun: 1 message, 2,000 messages."""
    return f"{count(number)} {one if number == 1 else more}"
