"""``outrider selftest``: the promises, tried out on your own machine."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path  # noqa: TC003 (typer reads the annotations at run time)
from typing import Annotated

import typer

from daemon.cli.options import JsonOption, examples
from daemon.cli.trouble import FAILED, plain_words


class Client(StrEnum):
    """What carries the requests, as config.toml calls it."""

    WIRE = "wire"
    AIOHTTP = "aiohttp"


app = typer.Typer(no_args_is_help=True, help="Try out on your own machine what is promised.")


@app.callback()
def selftest() -> None:
    """Try out on your own machine what is promised."""


@app.command(
    epilog=examples(
        "outrider selftest crash                                     about a minute",
        "outrider selftest crash --kills 200 --messages 100000       about a quarter of an hour",
        "outrider selftest crash --dsn postgresql:///scratch --json",
        "outrider selftest crash --seed 7 --keep here                and look at its ledger and logs afterwards",
    )
)
def crash(
    *,
    kills: Annotated[int, typer.Option(help="How often the daemon is killed.", min=1, max=10_000)] = 20,
    messages: Annotated[int, typer.Option(help="How many rows are inserted.", min=10, max=1_000_000)] = 5_000,
    seed: Annotated[int, typer.Option(help="The same seed throws the same dice.")] = 1,
    dsn: Annotated[
        str | None,
        typer.Option(
            envvar="OUTRIDER_SELFTEST_DSN",  # others can read a command line, and so its password
            help="A scratch database on your server; refused if it has a schema outrider. Without it: a private one.",
        ),
    ] = None,
    client: Annotated[Client, typer.Option(help="What carries the requests (`client` in config.toml).")] = Client.WIRE,
    keep: Annotated[
        Path | None, typer.Option(help="Leave everything in this new or empty folder.", metavar="DIR")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """
    Kill the daemon again and again while it sends, and count what was lost.

    A daemon carries messages from a scratch database to a simulated provider, which answers late, loses some answers
    and keeps a ledger of all it accepted. The daemon gets `kill -9` at moments that dice choose, mostly with requests
    on the wire, and is started again. In the end the ledger is held against the database: **lost** must be 0, every
    **duplicate** must be explained by a resend in the table `attempt`, and after each kill only what was **on the
    wire** may be in doubt. Exit 1 if one of these was broken.

    A kill takes some 2 seconds, and what is left of the messages 700 a second. Needs no configuration, writes to nobody
    and leaves nothing behind but, on your own server, the roles outrider_* of the schema.
    """
    from daemon.selftest import Plan, perform

    plan = Plan(kills=kills, messages=messages, seed=seed, dsn=dsn, client=client, keep=keep, as_json=as_json)
    with plain_words():
        fine = asyncio.run(perform(plan))
    if not fine:
        raise typer.Exit(FAILED)
