"""How the demo looks: bars on a terminal, plain lines elsewhere, tables at the end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, TextIO

import orjson
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from daemon.demo.report import Report, SenderUse
    from daemon.demo.watch import View

WIDE = 150  # columns where nobody looks at a terminal
LINE_EVERY_S = 2.0
REASONS_SHOWN = 20


class Progress(Protocol):
    """Shows views as they come."""

    def say(self, line: str) -> None:
        """One line that stays."""
        ...

    def show(self, view: View) -> None:
        """The latest view."""
        ...

    def close(self) -> None:
        """No more views will come."""
        ...


def progress(stream: TextIO) -> Progress:
    """Bars on a terminal, plain lines elsewhere."""
    return Bars(stream) if stream.isatty() else Lines(stream)


class Lines:
    """A line every two seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = 0.0

    def say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def show(self, view: View) -> None:
        if view.passed_s >= self._next:
            self._next = view.passed_s + LINE_EVERY_S
            self.say(
                f"{view.passed_s:5.1f} s  inserted {view.inserted:,}  settled {view.settled:,}  "
                f"delivered {view.delivered:,}  waiting {view.waiting:,}  doubtful {view.doubtful}"
            )

    def close(self) -> None:
        """Lines stand by themselves."""


class Bars:
    """Bars and sender rates, redrawn with every view."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, markup=False)
        self._live: Live | None = None
        self._last: tuple[float, dict[str, int]] = (time.monotonic(), {})

    def say(self, line: str) -> None:
        self._console.print(line, style="dim")

    def show(self, view: View) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        before, segments = self._last
        now = time.monotonic()
        passed_s = max(now - before, 0.1)
        rates = {address: (sent - segments.get(address, 0)) / passed_s for address, sent in view.senders.items()}
        self._last = (now, dict(view.senders))
        self._live.update(_picture(view, rates), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _picture(view: View, rates: dict[str, float]) -> Group:
    bars = Table.grid(padding=(0, 2))
    for name, count, colour in (
        ("inserted", view.inserted, "blue"),
        ("settled", view.settled, "cyan"),
        ("delivered", view.delivered, "green"),
        ("doubtful", view.doubtful, "yellow"),
    ):
        bar = ProgressBar(total=view.expected, completed=count, width=48, complete_style=colour, finished_style=colour)
        bars.add_row(name, bar, f"{count:,}")
    speeds = Text("  ".join(f"{address} {rate:.0f}/s" for address, rate in sorted(rates.items())), style="dim")
    foot = f"{view.passed_s:.0f} s, {view.waiting:,} waiting, {view.receipts_pending:,} receipts to come"
    return Group(bars, speeds, Text(foot, style="dim"))


def results(report: Report, stream: TextIO) -> None:
    """The tables at the end."""
    terminal = stream.isatty()
    console = Console(file=stream, highlight=False, markup=False, width=None if terminal else WIDE)
    statuses = list(report.by_status)
    console.print(
        _table(
            "What became of them",
            ("service", *statuses, "all"),
            (
                (name, *(counts.get(status) for status in statuses), sum(counts.values()))
                for name, counts in report.by_service.items()
            ),
        )
    )
    if report.reasons:
        rows = sorted(report.reasons, key=lambda row: -row[3])[:REASONS_SHOWN]
        console.print(_table("Why some were not delivered", ("service", "status", "reason", "messages"), rows))
    console.print(
        _table(
            "How long it took, in milliseconds",
            ("stage", "p50", "p95", "p99"),
            ((stage, some.p50, some.p95, some.p99) for stage, some in report.latency_ms.items()),
        )
    )
    console.print(
        _table(
            "How fast the senders spoke, by the provider's clock, in segments",
            ("sender", "service", "messages", "segments", "limit in 1 s", "most in any 1 s", "used", ""),
            map(_sender, report.senders),
        )
    )
    for check in report.checks:
        colour = "green" if check.ok else "bold red"
        console.print(Text(f"{_mark(check.ok)} {check.name}: {check.detail}", style=colour))
    failed = sum(not check.ok for check in report.checks)
    verdict = f"{failed} of {len(report.checks)} promises broken" if failed else "every promise kept"
    console.print(Text(verdict, style="bold red" if failed else "bold green"))


def as_json(report: Report, stream: TextIO) -> None:
    """The report as one JSON object on one line."""
    stream.write(orjson.dumps(report.document()).decode() + "\n")
    stream.flush()


def _sender(one: SenderUse) -> tuple[object, ...]:
    speed = (one.rate, one.max_in_1s, f"{one.used:.1%}", _mark(one.ok))
    return one.address, one.service, one.messages, one.segments, *speed


def _mark(ok: bool) -> str:  # noqa: FBT001
    return "✓" if ok else "✗"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    lines = list(rows)
    for place, name in enumerate(columns):
        right = all(isinstance(line[place], int | float | None) for line in lines)
        table.add_column(name, justify="right" if right else "left")
    for line in lines:
        table.add_row(*("" if cell is None else f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in line))
    return table
