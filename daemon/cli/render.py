"""Tables, times and JSON, as the commands show them."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.table import Table

WIDE = 160  # columns where nobody looks at a terminal: a file or a pipe has room

STYLES = {
    "delivered": "green",
    "read": "green",
    "accepted": "cyan",
    "sent": "cyan",
    "queued": "blue",
    "sending": "blue",
    "unknown": "yellow",
    "dead": "red",
    "failed": "red",
    "undelivered": "red",
    "expired": "magenta",
    "suppressed": "magenta",
    "canceled": "magenta",
}


def console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is: what providers write is no markup."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, markup=False, highlight=False, width=None if stream.isatty() else WIDE)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table. Numbers stand to the right; status words have their colour."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    lines = [list(row) for row in rows]
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        right = bool(lines) and all(isinstance(line[number], int | float | None) for line in lines)
        whole = right or any(isinstance(line[number], UUID | datetime) for line in lines)  # ids are there to be copied
        made.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=whole)
    for line in lines:
        made.add_row(*(Text(_text(cell), style=STYLES.get(str(cell), "")) for cell in line))
    return made


def say_json(document: object) -> None:
    """Print *document* as JSON: indented for a person, on one line for a program."""
    import orjson

    layout = orjson.OPT_INDENT_2 if sys.stdout.isatty() else 0
    typer.echo(orjson.dumps(document, default=str, option=layout).decode())


def moment(at: datetime | None) -> str:
    """A time as UTC, to the second."""
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def ago(at: datetime | None) -> str:
    """How long ago *at* was, roughly."""
    return "" if at is None else f"{span((datetime.now(UTC) - at).total_seconds())} ago"


def span(seconds: float) -> str:
    """A span of time in its largest fitting unit."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if abs(seconds) < 10 else f"{seconds:.0f} s"


def _text(cell: object) -> str:
    match cell:
        case None:
            return ""
        case datetime():
            return moment(cell)
        case float():
            return f"{cell:g}"
        case _:
            return str(cell)
