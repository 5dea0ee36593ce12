"""``outrider demo``: the whole thing at work, without any configuration."""

from __future__ import annotations

import asyncio
from pathlib import Path  # noqa: TC003 (typer reads the annotations at run time)
from typing import Annotated

import typer

from daemon.cli.options import JsonOption, examples
from daemon.cli.trouble import FAILED, plain_words


def add_to(app: typer.Typer) -> None:
    """Give *app* the command of this file."""
    app.command(
        epilog=examples(
            "outrider demo",
            "outrider demo --messages 5000 --seed 7",
            "outrider demo --json > result.json",
            "outrider demo --keep /tmp/outrider-demo     and look at its database, logs and configuration afterwards",
        )
    )(demo)


def demo(
    *,
    messages: Annotated[int, typer.Option(help="How many rows the application inserts.", min=50, max=20_000)] = 2_000,
    seed: Annotated[int, typer.Option(help="The same seed inserts the same rows and throws the same dice.")] = 1,
    seconds: Annotated[
        float, typer.Option(help="Give up waiting for the last answers after so many seconds.", min=20)
    ] = 80.0,
    keep: Annotated[
        Path | None, typer.Option(help="Leave everything in this new or empty folder.", metavar="DIR")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """
    Show everything at work in about a minute: a real Postgres, a fake provider that misbehaves, a daemon between them.

    Needs no configuration and leaves nothing behind. Exit 1 if a message was lost, a duplicate is not explained, or a
    sender spoke faster than it may.
    """
    from daemon.demo import Plan, perform

    plan = Plan(messages=messages, seed=seed, patience_s=seconds, keep=keep, as_json=as_json)
    with plain_words():
        fine = asyncio.run(perform(plan))
    if not fine:
        raise typer.Exit(FAILED)
