"""
The status page in words: what stands in each place, decided here once for the template and for the script.

Both only put text where it belongs, so the page grows by growing this file. Rows come worst first and at most
:data:`ROWS_MAX`: at night nobody scrolls through five hundred senders that are well.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from daemon.watch import BreakerState, SenderState, Stage, State
from daemon.web.chart import Chart, chart
from daemon.web.headline import Headline, Tone, headline
from daemon.web.words import brief, count, milliseconds, per_second, share, span

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from daemon.watch import Backlog, Balance, Latency, Pause, ProviderNow, SenderNow, Status

Row = TypeVar("Row")

ROWS_MAX = 40

_STAGES = {
    Stage.QUEUE: "In the queue",
    Stage.TURN: "Waiting for its turn",
    Stage.EXCHANGE: "Provider's answer",
    Stage.COMMIT_TO_PROVIDER: "From due to provider",
    Stage.RECEIPT: "Until the receipt",
}
_LATE_S = {1: 5.0, 2: 300.0, 3: 3_600.0}  # when a level's oldest row deserves a glance
_BREAKERS: dict[BreakerState, tuple[str, Tone]] = {
    BreakerState.CLOSED: ("open for all", "good"),
    BreakerState.HALF_OPEN: ("trying a few", "warn"),
    BreakerState.OPEN: ("shut", "bad"),
}
_SENDERS: dict[SenderState, tuple[str, Tone]] = {
    SenderState.OPEN: ("speaking", "good"),
    SenderState.PAUSED: ("paused", "hold"),
    SenderState.BLOCKED: ("blocked", "bad"),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One text, perhaps coloured, perhaps with a bar of *bar* percent."""

    text: str
    tone: Tone | None = None
    bar: int | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and whether numbers stand below it."""

    title: str
    number: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """One table: rows of cells, what it says when it has none, and a note below."""

    id: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    empty: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """One figure with its name, and what it means."""

    name: str
    value: str
    note: str
    tone: Tone | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """The whole page."""

    headline: Headline
    state: State
    about: str
    at: str
    notices: tuple[str, ...]
    cards: tuple[Card, ...]
    chart: Chart
    tables: tuple[Table, ...]


def page(status: Status) -> Page:
    """*status*, worded."""
    return Page(
        headline=headline(status),
        state=status.state,
        about=f"{status.instance}, version {status.version}, up {span(status.uptime_s)}",
        at=_clock(status.at),
        notices=tuple(_notice(pause) for pause in status.pauses),
        cards=_cards(status),
        chart=chart(status.history, status.rates),
        tables=(
            _queue(status.queue), _latency(status.latency), _senders(status.senders), _providers(status.providers),
            _troubles(status), _books(status.books), _groups(status),
        ),
    )  # fmt: skip


def _notice(pause: Pause) -> str:
    what = pause.what.replace(":", " ", 1)
    return f"Paused: {what} ({pause.reason or 'no reason given'})"


def _cards(status: Status) -> tuple[Card, ...]:
    totals = status.totals
    waiting = sum(row.messages for row in status.queue)
    dead = totals.get("dead", 0)
    arrived = totals.get("delivered", 0) + totals.get("read", 0)
    lost = totals.get("undelivered", 0) + totals.get("failed", 0)
    judged = arrived + lost
    return (
        Card("Waiting", brief(waiting), f"{per_second(status.rates.claimed.last_10_s)} a second are taken"),
        Card("On the wire", count(sum(row.in_flight for row in status.providers)), "a provider is being asked"),
        Card("Delivered", brief(arrived), f"{share(arrived / judged)} of those judged" if judged else "no receipt yet"),
        Card("Not delivered", brief(lost), "refused, or a receipt said no", "warn" if lost > arrived / 20 else None),
        _doubt(status),
        Card("Given up", count(dead), "parked with their story", "bad" if dead else None),
    )


def _doubt(status: Status) -> Card:
    if status.in_doubt is None:
        return Card("Were in doubt", count(status.totals.get("unknown", 0)), "asked, and not answered")
    return Card("In doubt", count(status.in_doubt), "asked, and not answered", "warn" if status.in_doubt else None)


def _queue(rows: Sequence[Backlog]) -> Table:
    def row(lane: Backlog) -> tuple[Cell, ...]:
        age = lane.oldest_due_age_s
        late = age is not None and age > _LATE_S.get(lane.level, _LATE_S[3])
        return (
            Cell(lane.service), Cell(str(lane.level)), Cell(count(lane.messages)),
            Cell("not yet due" if age is None else span(age), "warn" if late else None),
        )  # fmt: skip

    ordered = sorted(rows, key=lambda lane: (lane.level, -(lane.oldest_due_age_s or 0), lane.service))
    columns = (
        Column("Service"), Column("Level", number=True), Column("Messages", number=True), Column("Oldest", number=True),
    )  # fmt: skip
    return Table("queue", "Queue", columns, _first(ordered, row), "Nothing is waiting.", _more(ordered))


def _latency(rows: Sequence[Latency]) -> Table:
    columns = (Column("Stage"), Column("p50", number=True), Column("p95", number=True), Column("p99", number=True))
    return Table(
        "latency", "Latency", columns,
        tuple(
            (Cell(_STAGES[row.stage]), *(Cell(milliseconds(ms)) for ms in (row.p50_ms, row.p95_ms, row.p99_ms)))
            for row in rows
        ),
        "Nothing has been measured in the last minutes.",
    )  # fmt: skip


def _senders(rows: Sequence[SenderNow]) -> Table:
    def row(sender: SenderNow) -> tuple[Cell, ...]:
        word, tone = _SENDERS[sender.state]
        return (
            Cell(sender.address), Cell(f"{word}: {sender.reason}" if sender.reason else word, tone),
            Cell(share(sender.used), bar=round(min(max(sender.used, 0.0), 1.0) * 100)),
            Cell(f"{per_second(sender.rate)}/s"), Cell(count(sender.waiting)), Cell(sender.provider),
        )  # fmt: skip

    ordered = sorted(rows, key=lambda sender: (sender.state is SenderState.OPEN, -sender.waiting, sender.address))
    columns = (
        Column("Sender"), Column("State"), Column("Limit used"), Column("Limit", number=True),
        Column("Waiting", number=True), Column("Provider"),
    )  # fmt: skip
    return Table("senders", "Senders", columns, _first(ordered, row), "No senders are configured.", _more(ordered))


def _providers(rows: Sequence[ProviderNow]) -> Table:
    def row(provider: ProviderNow) -> tuple[Cell, ...]:
        word, tone = _BREAKERS[provider.breaker]
        errors = sorted(provider.errors.items(), key=lambda pair: (-pair[1], pair[0]))
        told = ", ".join(f"{count(number)} {name}" for name, number in errors if number)
        trouble = Cell(told or "none", "warn" if told else None)
        return Cell(provider.name), Cell(word, tone), trouble, Cell(count(provider.in_flight))

    ordered = sorted(rows, key=lambda provider: (provider.breaker is BreakerState.CLOSED, provider.name))
    columns = (Column("Provider"), Column("Gate"), Column("Errors, last minute"), Column("On the wire", number=True))
    cells = _first(ordered, row)
    return Table("providers", "Providers", columns, cells, "No providers are configured.", _more(ordered))


def _troubles(status: Status) -> Table:
    return Table(
        "troubles", "Recent troubles", (Column("When"), Column("What")),
        tuple((Cell(f"{span(round(status.at - row.at))} ago"), Cell(row.what)) for row in status.troubles[:20]),
        "None since the start.",
    )  # fmt: skip


def _books(rows: Sequence[Balance]) -> Table:
    def row(one: Balance) -> tuple[Cell, ...]:
        return (
            Cell(one.day), Cell(one.intent or "none"), Cell(count(one.inserted)), Cell(count(one.settled)),
            Cell(count(one.open)), Cell(count(one.difference), "bad" if one.difference else None),
        )  # fmt: skip

    columns = (
        Column("Inserted on"), Column("Intent"), Column("Messages", number=True), Column("Settled", number=True),
        Column("Open", number=True), Column("Missing", number=True),
    )  # fmt: skip
    ordered = sorted(rows, key=lambda one: (not one.difference, [-ord(digit) for digit in one.day], one.intent))
    return Table("books", "Books", columns, _first(ordered, row), "Nothing has been counted yet.", _more(ordered))


def _groups(status: Status) -> Table:
    return Table(
        "groups", "Leases held", (Column("Group"), Column("Epoch", number=True)),
        tuple((Cell(row.group), Cell(count(row.epoch))) for row in status.groups[:ROWS_MAX]),
        "This daemon holds none.", _more(status.groups),
    )  # fmt: skip


def _first(rows: Sequence[Row], cells: Callable[[Row], tuple[Cell, ...]]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(cells(row) for row in rows[:ROWS_MAX])


def _more(rows: Sequence[object]) -> str:
    beyond = len(rows) - ROWS_MAX
    return f"and {count(beyond)} more" if beyond > 0 else ""


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
