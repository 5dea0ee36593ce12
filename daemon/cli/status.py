"""``outrider status`` and ``outrider why``: where every message is, and how it came there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from daemon.cli import overview, queries
from daemon.cli.database import connected
from daemon.cli.options import MESSAGES, ConfigOption, JsonOption, examples
from daemon.cli.render import console, moment, say_json, table
from daemon.cli.trouble import Trouble, plain_words

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import asyncpg


NOWHERE = "was its transaction committed, and is this its database?"


def add_to(app: typer.Typer) -> None:
    """Give *app* the commands of this file."""
    app.command(
        rich_help_panel=MESSAGES,
        epilog=examples(
            "outrider status        what is waiting, and how the last hour went",
            "outrider status ID     one message",
            "outrider status --json | jq .queue",
        ),
    )(status)
    app.command(
        rich_help_panel=MESSAGES,
        epilog=examples("outrider why ID", "outrider why SM0123456789abcdef0123456789abcdef", "outrider why ID --json"),
    )(why)


def status(
    message: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="One message, or what its provider calls it; without it, all of them."),
    ] = None,
    *,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what waits and how the last hour went, or where one message is."""
    with plain_words():
        if message is None:
            seen = asyncio.run(overview.look(config))
            say_json(seen) if as_json else overview.show(seen)
            return
        row, _ = asyncio.run(story_of(config, message))
        if as_json:
            say_json(row)
        else:
            show_message(row)


def why(
    message: Annotated[str, typer.Argument(metavar="ID", help="The message, or what its provider calls it.")],
    *,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Tell the whole story of one message.

    Oldest first: when it was inserted, every try, what the provider said, receipts, decisions, and where it is now.
    """
    with plain_words():
        row, story = asyncio.run(story_of(config, message))
        if as_json:
            say_json({"message": row, "story": story})
        else:
            show_story(row, story)


async def story_of(config: Path | None, message: str) -> tuple[dict[str, object], list[dict[str, object]]]:
    """
    The message as the view shows it, and its story. *message*: its id, or its provider's reference (a Twilio sid, say).

    Raises Trouble when nobody inserted it.
    """
    async with connected(config) as connection:
        found = await connection.fetchval(queries.BY_REFERENCE, message)
        try:
            id = found or UUID(message)
        except ValueError:
            raise Trouble(f"no message has the id or the provider's reference {message}", NOWHERE) from None
        return await read_story(connection, id)


async def read_story(
    connection: asyncpg.Connection[asyncpg.Record], message: UUID
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """As :func:`story_of`, over a connection that stands."""
    row = await connection.fetchrow(queries.MESSAGE, message)
    if row is None:
        raise Trouble(f"no message has the id {message}", NOWHERE)
    return dict(row), [dict(line) for line in await connection.fetch(queries.WHY, message)]


def show_message(row: dict[str, object]) -> None:
    """One message, a line for each thing that is known."""
    known = [(name.replace("_", " "), value) for name, value in row.items() if value not in (None, "", "seq")]
    out = console()
    out.print(table(f"Message {row['id']}", ("", ""), known))


def show_story(row: dict[str, object], story: Sequence[dict[str, object]]) -> None:
    """A timeline: when, how long after the insertion, what."""
    from datetime import datetime

    first = next((line["at"] for line in story if isinstance(line["at"], datetime)), None)
    lines = []
    for line in story:
        at = line["at"]
        after = f"+{(at - first).total_seconds():.3f} s" if isinstance(at, datetime) and first else ""
        lines.append((moment(at) if isinstance(at, datetime) else "", after, line["what"], line["detail"]))
    out = console()
    out.print(table(f"Message {row['id']} to {row['recipient']}", ("at", "after", "what", "detail"), lines))
