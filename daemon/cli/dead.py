"""``outrider dead``: what ended badly, why, and another chance for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Annotated
from uuid import UUID  # noqa: TC003 (typer reads the annotations at run time)

import typer

from daemon.cli import queries
from daemon.cli.database import connected
from daemon.cli.options import ConfigOption, JsonOption, examples
from daemon.cli.render import console, say_json, table
from daemon.cli.send import time_of
from daemon.cli.status import read_story, show_message, show_story
from daemon.cli.trouble import FAILED, plain_words

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

BATCH = 500  # replays in one transaction
STATUSES = ("dead", "failed", "undelivered")

app = typer.Typer(no_args_is_help=True, help="Messages that ended badly: list them, read one's story, send them again.")

ReasonOption = Annotated[
    str | None, typer.Option(help="Only with this reason (LIKE, % for anything) or exactly this code.", metavar="LIKE")
]
SinceOption = Annotated[
    str | None, typer.Option(help="Only those that ended since: 2026-12-24T18:00, or -2h.", metavar="TIME")
]
ServiceOption = Annotated[str | None, typer.Option(help="Only of this service.")]


@app.command("list", epilog=examples("outrider dead list --since -2h", "outrider dead list --reason 30003 --json"))
def list_(
    *,
    reason: ReasonOption = None,
    since: SinceOption = None,
    service: ServiceOption = None,
    limit: Annotated[int, typer.Option(help="At most so many, newest first.", min=1)] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what ended as dead, failed or undelivered."""
    after = time_of(since)
    with plain_words():
        rows = asyncio.run(_find(config, (list(STATUSES), reason, after, service, limit)))
    if as_json:
        say_json(rows)
        return
    if not rows:
        typer.echo("Nothing ended badly.")
        return
    columns = ("updated_at", "id", "service", "status", "code", "reason", "recipient", "attempts")
    out = console()
    out.print(table("Dead letters", columns, [[row[name] for name in columns] for row in rows]))
    if len(rows) == limit:
        out.print(f"the newest {limit}; more with --limit")


@app.command(epilog=examples("outrider dead show ID"))
def show(
    message: Annotated[UUID, typer.Argument(metavar="ID", help="The message.")],
    *,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter and its story."""

    async def look() -> tuple[dict[str, object], list[dict[str, object]]]:
        async with connected(config) as connection:
            return await read_story(connection, message)

    with plain_words():
        row, story = asyncio.run(look())
    if as_json:
        say_json({"message": row, "story": story})
        return
    show_message(row)
    show_story(row, story)


@app.command(
    epilog=examples(
        "outrider dead replay ID ID",
        "outrider dead replay --reason '%carrier%' --since -2h --dry-run",
        "outrider dead replay --service otp --limit 100",
    )
)
def replay(
    messages: Annotated[list[UUID] | None, typer.Argument(metavar="ID", help="These messages.")] = None,
    *,
    reason: ReasonOption = None,
    since: SinceOption = None,
    service: ServiceOption = None,
    limit: Annotated[int, typer.Option(help="At most so many, newest first.", min=1)] = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Send messages again that ended badly.

    Those named, or those that fit --reason, --since and --service. A message whose validity has passed, and a repeat of
    an idempotency key, is refused. Suppressed ones are replayed only by name: somebody chose not to send them.
    """
    if bool(messages) == bool(reason or since or service):
        raise typer.BadParameter("name messages, or say which fit: --reason, --since, --service (not both)")
    after = time_of(since)
    chosen = (["dead", "failed", "undelivered"], reason, after, service, limit)
    with plain_words():
        answers = asyncio.run(_replay(config, messages, chosen, dry_run=dry_run))
    if as_json:
        say_json([{"id": message, "result": result} for message, result in answers])
    else:
        for message, result in answers:
            typer.echo(f"{message} {result}")
        counts = Counter(result for _, result in answers)
        typer.echo(", ".join(f"{count} {result}" for result, count in counts.items()) or "nothing fits", err=True)
    if any(result == "refused" for _, result in answers):
        raise typer.Exit(FAILED)


async def _find(
    config: Path | None, chosen: tuple[list[str], str | None, datetime | None, str | None, int]
) -> list[dict[str, object]]:
    async with connected(config) as connection:
        return [dict(row) for row in await connection.fetch(queries.DEAD, *chosen)]


async def _replay(
    config: Path | None,
    named: Sequence[UUID] | None,
    chosen: tuple[list[str], str | None, datetime | None, str | None, int],
    *,
    dry_run: bool,
) -> list[tuple[UUID, str]]:
    async with connected(config) as connection:
        ids = list(named or [row["id"] for row in await connection.fetch(queries.DEAD, *chosen)])
        if dry_run:
            return [(message, "would be replayed") for message in ids]
        answers: list[tuple[UUID, str]] = []
        for start in range(0, len(ids), BATCH):
            rows = await connection.fetch(queries.REPLAY, ids[start : start + BATCH])
            answers += [(row["id"], "replayed" if row["replayed"] else "refused") for row in rows]
        return answers
