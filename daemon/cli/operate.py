"""``outrider pause``, ``resume`` and ``cancel``: a hand on the brake. Each is one SQL function."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Annotated
from uuid import UUID  # noqa: TC003 (typer reads the annotations at run time)

import typer

from daemon.cli import queries
from daemon.cli.database import connected
from daemon.cli.options import OPERATING, ConfigOption, JsonOption, examples
from daemon.cli.render import say_json
from daemon.cli.trouble import FAILED, plain_words

if TYPE_CHECKING:
    from pathlib import Path

WHAT = re.compile(r"all|(service|sender|provider):.+")  # as outrider.pause() reads it


def add_to(app: typer.Typer) -> None:
    """Give *app* the commands of this file."""
    app.command(
        rich_help_panel=OPERATING,
        epilog=examples(
            "outrider pause service:marketing --reason 'wrong price in the text'",
            "outrider pause sender:+15550100",
            "outrider pause all",
        ),
    )(pause)
    app.command(
        rich_help_panel=OPERATING,
        epilog=examples(
            "outrider resume service:marketing",
            "outrider resume --sole-sender     after a restore, when no other copy sends",
        ),
    )(resume)
    app.command(rich_help_panel=OPERATING, epilog=examples("outrider cancel ID", "outrider cancel ID --json"))(cancel)


def _what(told: str | None) -> str | None:
    if told is not None and not WHAT.fullmatch(told):
        raise typer.BadParameter("say all, service:NAME, sender:ADDRESS or provider:NAME")
    return told


WhatArgument = Annotated[
    str, typer.Argument(metavar="WHAT", callback=_what, help="all, service:NAME, sender:ADDRESS or provider:NAME.")
]


def pause(
    what: WhatArgument,
    *,
    reason: Annotated[str, typer.Option(help="Why; shown by status and on the pages.")] = "paused by an operator",
    config: ConfigOption = None,
) -> None:
    """
    Hold messages back.

    On every daemon within a second. Rows wait in the queue; what is on the wire goes on.
    """
    with plain_words():
        asyncio.run(_ask(config, queries.PAUSE, what, reason))
    typer.echo(f"{what} is paused; `outrider resume {what}` lets it go on")


def resume(
    what: Annotated[
        str | None, typer.Argument(metavar="WHAT", callback=_what, help="What was paused, in the same words.")
    ] = None,
    *,
    sole_sender: Annotated[
        bool, typer.Option("--sole-sender", help="This database is the only copy that sends: let a held daemon go on.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigOption = None,
) -> None:
    """
    Let go on what was paused.

    Or, with --sole-sender, a daemon that holds because it found its database copied, restored or promoted.
    """
    if (what is None) != sole_sender:
        raise typer.BadParameter("say what to resume, or --sole-sender")
    if what is not None:
        with plain_words():
            was_paused = asyncio.run(_ask(config, queries.RESUME, what))
        if not was_paused:
            typer.echo(f"{what} was not paused; `outrider status` shows what is", err=True)
            raise typer.Exit(FAILED)
        typer.echo(f"{what} goes on")
        return
    if not yes:
        typer.echo("If another copy of this database is sending too, people get every waiting message twice.", err=True)
        typer.confirm("Is this the only one that sends?", abort=True, err=True)
    with plain_words():
        confirmed_at = asyncio.run(_ask(config, queries.SOLE_SENDER))
    if confirmed_at is None:
        typer.echo("no daemon has worked on this database yet: there is nothing to confirm", err=True)
        raise typer.Exit(FAILED)
    typer.echo("this database is at home where it is now; a held daemon goes on")


def cancel(
    messages: Annotated[list[UUID], typer.Argument(metavar="ID", help="The messages.")],
    *,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Cancel messages, and print what that came to.

    `canceled`: it will not be sent. `requested`: it is in a daemon's hands and stops there if it still can.
    `too_late`: a provider has it, or it has already ended. `unknown`: nobody inserted it (exit 1).
    """
    with plain_words():
        answers = asyncio.run(_cancel(config, messages))
    if as_json:
        say_json([{"id": message, "result": result} for message, result in answers])
    else:
        for message, result in answers:
            typer.echo(f"{message} {result}")
    if any(result == "unknown" for _, result in answers):
        raise typer.Exit(FAILED)


async def _ask(config: Path | None, query: str, *arguments: object) -> object:
    async with connected(config) as connection:
        return await connection.fetchval(query, *arguments)


async def _cancel(config: Path | None, messages: list[UUID]) -> list[tuple[UUID, str]]:
    async with connected(config) as connection:
        return [(row["id"], row["result"]) for row in await connection.fetch(queries.CANCEL, messages)]
