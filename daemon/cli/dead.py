"""``outrider dead``: what ended badly, why, and another chance for it. SQL functions do it; this asks and shows."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, NamedTuple
from uuid import UUID  # noqa: TC003 (typer reads the annotations at run time)

import typer

from daemon.cli import queries
from daemon.cli.database import connected
from daemon.cli.options import ConfigOption, JsonOption, examples
from daemon.cli.render import console, say_json, span, table
from daemon.cli.send import time_of
from daemon.cli.status import read_story, show_message, show_story
from daemon.cli.trouble import FAILED, plain_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import asyncpg

BATCH = 500  # replays in one transaction: receipts wait for it, some 40 ms
PATIENCE_S = 300.0  # a million dead letters take a minute to look through
ASK_FROM = 100  # more than so many are confirmed at a terminal
STATUSES = ("dead", "failed", "undelivered")
GO = "replayed"  # the answer of those that are, or would be, sent again

app = typer.Typer(no_args_is_help=True, help="Messages that ended badly: list them, read one's story, send them again.")


class Filter(NamedTuple):
    """Which dead letters are meant, as ``outrider.dead_letters`` takes it. What is None is not asked."""

    since: datetime | None
    until: datetime | None
    provider: str | None
    reason: str | None
    tags: dict[str, str] | None
    intent: str | None
    service: str | None
    tenant: str | None
    status: str | None


class Answer(NamedTuple):
    """What came, or would come, of one message."""

    id: UUID
    answer: str
    segments: int
    due_at: datetime | None = None

    def words(self, *, preview: bool) -> dict[str, object]:
        """As JSON shows it."""
        if self.answer != GO:
            return {"id": self.id, "result": "refused", "why": self.answer, "segments": self.segments}
        result = f"would be {GO}" if preview else GO
        return {"id": self.id, "result": result, "segments": self.segments, "due_at": self.due_at}


def _status(told: str | None) -> str | None:
    if told is not None and told not in STATUSES:
        raise typer.BadParameter("say dead, failed or undelivered: nothing else can be replayed")
    return told


def _tags(told: list[str]) -> list[str]:
    if any("=" not in one for one in told):
        raise typer.BadParameter("say KEY=VALUE")
    return told


ReasonOption = Annotated[
    str | None, typer.Option(help="Only with this reason (LIKE, % for anything) or exactly this code.", metavar="LIKE")
]
SinceOption = Annotated[
    str | None, typer.Option(help="Only those that ended since: 2026-12-24T18:00, or -2h.", metavar="TIME")
]
UntilOption = Annotated[str | None, typer.Option(help="Only those that ended before.", metavar="TIME")]
ProviderOption = Annotated[str | None, typer.Option(help="Only those this provider had last.")]
TagOption = Annotated[
    list[str],
    typer.Option("--tag", help="Only with this tag; may be repeated.", metavar="KEY=VALUE", callback=_tags),
]
IntentOption = Annotated[str | None, typer.Option(help="Only of this intent: otp, marketing, ...")]
ServiceOption = Annotated[str | None, typer.Option(help="Only of this service.")]
TenantOption = Annotated[str | None, typer.Option(help="Only of this tenant.")]
StatusOption = Annotated[
    str | None, typer.Option(help="Only those that ended as dead, failed or undelivered.", callback=_status)
]


@app.command("list", epilog=examples("outrider dead list --since -2h", "outrider dead list --reason 30003 --json"))
def list_(
    *,
    reason: ReasonOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    provider: ProviderOption = None,
    tag: TagOption = [],  # noqa: B006 (typer copies it)
    intent: IntentOption = None,
    service: ServiceOption = None,
    tenant: TenantOption = None,
    status: StatusOption = None,
    limit: Annotated[int, typer.Option(help="At most so many, newest first.", min=1)] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what ended as dead, failed or undelivered."""
    tags = _object(tag)
    chosen = Filter(time_of(since), time_of(until), provider, reason, tags, intent, service, tenant, status)
    with plain_words():
        rows = asyncio.run(_find(config, chosen, limit))
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
        "outrider dead replay --reason '%carrier%' --since -2h --preview",
        "outrider dead replay --provider twilio --since -2h --until -1h --rate 5",
        "outrider dead replay --tag campaign=spring --status failed --limit 10000 --yes",
    )
)
def replay(  # noqa: PLR0913 (an argument for each option)
    messages: Annotated[list[UUID] | None, typer.Argument(metavar="ID", help="These messages.")] = None,
    *,
    reason: ReasonOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    provider: ProviderOption = None,
    tag: TagOption = [],  # noqa: B006 (typer copies it)
    intent: IntentOption = None,
    service: ServiceOption = None,
    tenant: TenantOption = None,
    status: StatusOption = None,
    limit: Annotated[int, typer.Option(help="At most so many of those that fit, oldest first.", min=1)] = 1000,
    rate: Annotated[float, typer.Option(help="So many become due in a second.", min=0.001, max=100_000)] = 10.0,
    doubtful: Annotated[bool, typer.Option("--doubtful", help="Also those that may have arrived.")] = False,
    preview: Annotated[bool, typer.Option("--preview", "--dry-run", help="Only say which, and why not.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help=f"Do not ask, were they more than {ASK_FROM}.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Send messages again that ended badly.

    Those named, or those that fit all of the options. Refused, with the reason, are those of no more use (expired, too
    old), whose recipient opted out, whose text is forgotten, that were delivered after all, are queued already, or are
    in doubt: they may have arrived. Run it again after an interruption: nothing is replayed twice.
    """
    tags = _object(tag)
    chosen = Filter(time_of(since), time_of(until), provider, reason, tags, intent, service, tenant, status)
    if bool(messages) == any(word is not None for word in chosen):
        raise typer.BadParameter("name messages, or say which fit, such as --reason or --since (not both)")
    if messages and len(messages) > len(set(messages)):
        raise typer.BadParameter("a message is named twice")
    with plain_words():
        answers = asyncio.run(
            _replay(config, messages or chosen, limit, rate, doubtful=doubtful, preview=preview, yes=yes)
        )
    if as_json:
        say_json([answer.words(preview=preview) for answer in answers])
    else:
        for answer in answers:
            words = answer.words(preview=preview)
            typer.echo(f"{answer.id} {words['result']}" + (f": {words['why']}" if "why" in words else ""))
        _sum_up(answers, rate, preview=preview)
    if messages and any(answer.answer != GO for answer in answers):
        raise typer.Exit(FAILED)


async def _find(config: Path | None, chosen: Filter, limit: int) -> list[dict[str, object]]:
    async with connected(config) as connection:
        return [dict(row) for row in await connection.fetch(queries.DEAD, *chosen, limit)]


async def _replay(
    config: Path | None,
    wanted: Sequence[UUID] | Filter,
    limit: int,
    rate: float,
    *,
    doubtful: bool,
    preview: bool,
    yes: bool,
) -> list[Answer]:
    async with connected(config) as connection:
        if isinstance(wanted, Filter):
            seen = [Answer(*row) for row in await _patiently(connection, queries.PREVIEW, *wanted, doubtful)]
        else:
            seen = [Answer(*row) for row in await _patiently(connection, queries.ANSWERS, wanted, doubtful)]
        going = [answer for answer in seen if answer.answer == GO]
        if isinstance(wanted, Filter) and len(going) > limit:
            left = {answer.id for answer in going[limit:]}
            seen = [answer._replace(answer="beyond --limit") if answer.id in left else answer for answer in seen]
            going = going[:limit]
        if preview:
            return seen
        if len(going) > ASK_FROM and not yes and _at_a_terminal():
            _sum_up(seen, rate, preview=True)
            typer.confirm(f"Send {len(going):,} messages again?", abort=True, err=True)
        came = {answer.id: answer for answer in await _carry_out(connection, going, rate, doubtful=doubtful)}
        return [came.get(answer.id, answer) for answer in seen]


async def _patiently(
    connection: asyncpg.Connection[asyncpg.Record], query: str, *arguments: object
) -> list[asyncpg.Record]:
    return await connection.fetch(query, *arguments, timeout=PATIENCE_S)


async def _carry_out(
    connection: asyncpg.Connection[asyncpg.Record], going: Sequence[Answer], rate: float, *, doubtful: bool
) -> list[Answer]:
    answers: list[Answer] = []
    starting: datetime | None = None
    for start in range(0, len(going), BATCH):
        ids = [answer.id for answer in going[start : start + BATCH]]
        told = [Answer(*row) for row in await connection.fetch(queries.REPLAY, ids, rate, starting, doubtful)]
        answers += told
        last = max((answer.due_at for answer in told if answer.due_at is not None), default=None)
        starting = last + timedelta(seconds=1 / rate) if last is not None else starting
    return answers


def _sum_up(answers: Iterable[Answer], rate: float, *, preview: bool) -> None:
    """On stderr, how many of each, in messages and segments; and how long those that go will take."""
    messages, segments = Counter[str](), Counter[str]()
    for answer in answers:
        word = f"would be {GO}" if preview and answer.answer == GO else answer.answer
        messages[word] += 1
        segments[word] += answer.segments
    if not messages:
        typer.echo("nothing fits", err=True)
        return
    told = [f"{count} {word} ({segments[word]} segments)" for word, count in messages.most_common()]
    going = messages[GO] + messages[f"would be {GO}"]
    takes = f"; over {span(going / rate)}, {rate:g} a second" if going > rate else ""
    typer.echo(", ".join(told) + takes, err=True)


def _object(tags: Sequence[str]) -> dict[str, str] | None:
    return dict(tag.split("=", 1) for tag in tags) or None


def _at_a_terminal() -> bool:
    return sys.stdin.isatty()
