"""The commands to practise with: the demo, a provider that misbehaves, the benchmark."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.options import PASS_ON, PRACTISING, JsonOption, examples
from daemon.cli.trouble import FAILED, Trouble, plain_words

if TYPE_CHECKING:
    from daemon.simulator import Settings, Simulator

SIMULATOR_PORT = 4010


def add_to(app: typer.Typer) -> None:
    """Give *app* the commands of this file."""
    app.command(
        rich_help_panel=PRACTISING,
        epilog=examples(
            "outrider demo",
            "outrider demo --messages 5000 --seed 7",
            "outrider demo --json > result.json",
            "outrider demo --keep here     and look at its database and logs afterwards",
        ),
    )(demo)
    app.command(
        rich_help_panel=PRACTISING,
        epilog=examples(
            "outrider simulate",
            "outrider simulate --faults faults.toml --ledger sent.jsonl",
            "curl http://127.0.0.1:4010/_simulator/     what it has seen",
        ),
    )(simulate)
    app.command(
        rich_help_panel=PRACTISING,
        context_settings=PASS_ON,
        epilog=examples("outrider bench", "outrider bench --json"),
    )(bench)


def demo(
    *,
    messages: Annotated[int, typer.Option(help="How many rows the application inserts.", min=50, max=20_000)] = 2_000,
    seed: Annotated[int, typer.Option(help="The same seed inserts the same rows and throws the same dice.")] = 1,
    seconds: Annotated[
        float, typer.Option(help="Give up waiting for the last answers after so many seconds.", min=20)
    ] = 70.0,
    keep: Annotated[
        Path | None, typer.Option(help="Leave everything in this new or empty folder.", metavar="DIR")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """
    Show everything at work, in about a minute.

    A real Postgres, a fake provider that misbehaves, and a daemon between them. Needs no configuration, writes to
    nobody and leaves nothing behind. Exit 1 if a message was lost, a duplicate is not explained, or a sender spoke
    faster than it may.
    """
    from daemon.demo import Plan, perform

    plan = Plan(messages=messages, seed=seed, patience_s=seconds, keep=keep, as_json=as_json)
    with plain_words():
        fine = asyncio.run(perform(plan))
    if not fine:
        raise typer.Exit(FAILED)


def simulate(
    *,
    host: Annotated[str, typer.Option(help="Where it listens; whoever reaches it may use it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one.", min=0, max=65_535)] = SIMULATOR_PORT,
    faults: Annotated[
        Path | None, typer.Option(help="What shall go wrong (TOML); read again when it changes.", metavar="FILE")
    ] = None,
    ledger: Annotated[Path | None, typer.Option(help="Append every accepted message here.", metavar="FILE")] = None,
    seed: Annotated[int | None, typer.Option(help="Throw these dice instead of those of the faults file.")] = None,
    inbound_url: Annotated[
        str | None, typer.Option(help="Where what people write is posted to.", metavar="URL")
    ] = None,
) -> None:
    """
    Run a fake provider that misbehaves on command.

    It speaks Twilio's Messages API and writes to nobody. Point a provider of config.toml at it with
    `kind = "simulator"` and `base_url`.
    """
    import uvloop

    from daemon.settings.model import TRIAL_ACCOUNT_SID, TRIAL_AUTH_TOKEN
    from daemon.simulator import FaultsError, Settings

    settings = Settings(
        host=host,
        port=port,
        faults=faults,
        ledger=ledger,
        inbound_url=inbound_url,
        # The credentials `kind = "simulator"` has when it names none.
        account_sid=TRIAL_ACCOUNT_SID,
        auth_token=TRIAL_AUTH_TOKEN,
    )
    with plain_words():
        try:
            uvloop.run(_simulate(settings, seed))
        except FaultsError as mistakes:
            raise Trouble(*str(mistakes).splitlines()) from mistakes
        except OSError as error:
            raise Trouble(f"the simulator cannot serve on {host}:{port}: {error.strerror or error}") from error


async def _simulate(settings: Settings, seed: int | None) -> None:
    from daemon.simulator import Simulator

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with Simulator(settings) as simulator:
        if seed is not None:
            simulator.faults = simulator.faults.model_copy(update={"seed": seed})
        typer.echo(f"the simulator listens on {simulator.url}")
        if sys.stdout.isatty():
            await _count_aloud(simulator, stop)
        await stop.wait()


async def _count_aloud(simulator: Simulator, stop: asyncio.Event) -> None:
    """A line for each second in which something happened."""
    seen = ""
    while not stop.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await stop.wait()
        receipts = simulator.receipts
        line = (
            f"accepted {simulator.ledger.accepted:>8,}   refused or broken {sum(simulator.errors.values()):>6,}   "
            f"receipts {receipts['sent']:>8,} delivered, {receipts['failed']:,} failed, {receipts['pending']:,} to come"
        )
        if line != seen:
            typer.echo(line)
            seen = line


def bench(ctx: typer.Context) -> None:
    """
    Measure against other queues and plain clients, on this machine.

    Needs a checkout of the repository. Whatever is given is passed on.
    """
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (root / "bench" / "__main__.py").is_file():
            done = subprocess.run([sys.executable, "-m", "bench", *ctx.args], cwd=root, check=False)
            raise typer.Exit(done.returncode)
    typer.echo("the benchmark is not installed with the package: it is the folder bench/ of the repository", err=True)
    typer.echo("run `outrider bench` inside a checkout of it", err=True)
    raise typer.Exit(FAILED)
