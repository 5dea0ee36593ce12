"""How the self-test looks: a line for each kill, above a bar on a terminal; a table at the end."""

from __future__ import annotations

from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, TextIO

import orjson
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from daemon.cli.render import WIDE, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.selftest.verdict import Report


class Progress:
    """Tells how far it is. Kills are lines that stay; what is sent moves a bar, where there is a terminal."""

    def __init__(self, bars: Bars, kills: int, messages: int) -> None:
        self._bars = bars
        self._kills = kills
        self._sent = bars.add_task("sent", total=messages)

    def say(self, line: str) -> None:
        """One line that stays."""
        self._bars.console.print(line, style="dim")

    def sent(self, requests: int) -> None:
        """The provider has accepted so many."""
        self._bars.update(self._sent, completed=requests)

    def killed(self, number: int, on_the_wire: int, doubts: int, *, sending: bool) -> None:
        """What kill *number* hit, and what came of it."""
        when = "" if sending else "   while it was starting"
        self._bars.console.print(
            f"kill {number:>3} of {self._kills}   on the wire {on_the_wire:>3}   in doubt {doubts:>3}{when}"
        )

    def settling(self, requests: int, waiting: int) -> None:
        """The last kill is over: so many messages wait for their end."""
        self._bars.update(self._sent, completed=requests, description=f"{waiting:,} to settle")


@contextmanager
def progress(kills: int, messages: int, stream: TextIO) -> Iterator[Progress]:
    """Lines, and a bar where *stream* is a terminal."""
    console = Console(file=stream, highlight=False, markup=False)
    columns = (TextColumn("{task.description:>16}"), BarColumn(48), TextColumn("{task.completed:,}"))
    with Bars(*columns, console=console, transient=True, disable=not stream.isatty()) as bars:
        yield Progress(bars, kills, messages)


def result(report: Report, stream: TextIO) -> None:
    """The table at the end, and each promise with a mark."""
    console = Console(file=stream, highlight=False, markup=False, width=None if stream.isatty() else WIDE)
    rows: list[tuple[str, float]] = [
        ("messages", report.messages),
        ("accepted by the provider, by its ledger", report.accepted),
        *((f"not sent: {reason}", many) for reason, many in report.unsent.items()),
        ("lost", report.lost),
        ("sent more than once", report.duplicates),
        ("… and no resend in attempt explains it", report.unexplained),
        ("kills", len(report.deaths)),
        ("… with requests on the wire", report.busy_kills),
        ("requests on the wire, all kills", report.on_the_wire),
        ("in doubt after a kill", report.ambiguous),
        ("… their answer just read, and not noted yet", sum(death.just_read for death in report.deaths)),
        ("… and about to be written, never seen by the provider", sum(death.unarrived for death in report.deaths)),
        ("in doubt because an answer was lost", report.lost_answers),
        ("seconds from a start to its first request, typically", round(report.back_p50_s, 1)),
        ("… and at most", round(report.back_max_s, 1)),
        *((f"doubts ended by {way}", many) for way, many in report.resolved_by.items()),
    ]
    console.print(table(f"Counted after {report.seconds:.0f} s", ("what", "how many"), rows))
    console.print(table("At one kill", ("what", "fewest", "typically", "most"), _at_one_kill(report)))
    for check in report.checks:
        mark, colour = ("✓", "green") if check.ok else ("✗", "bold red")
        console.print(Text(f"{mark} {check.name}{': ' * bool(check.detail)}{check.detail}", style=colour))
    if not report.ok:
        again = f"again with --seed {report.seed}; --keep DIR leaves all files for a look"
        console.print(Text(again, style="bold red"))


def _at_one_kill(report: Report) -> list[tuple[str, float, float, float]]:
    counts = {
        "requests on the wire": [death.on_the_wire for death in report.deaths],
        "in doubt afterwards": [death.ambiguous for death in report.deaths],
        **{f"… ended by {way}": [death.resolved_by[way] for death in report.deaths] for way in report.resolved_by},
    }
    return [(what, min(many), median(many), max(many)) for what, many in counts.items() if many]


def as_json(report: Report, stream: TextIO) -> None:
    """The report as one JSON object on one line."""
    stream.write(orjson.dumps(report.document()).decode() + "\n")
    stream.flush()
