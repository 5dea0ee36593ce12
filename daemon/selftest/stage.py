"""
Where the storm plays: a scratch database, a provider in this process, and a daemon in another, to be killed.

The provider answers late, loses some answers, and never tells the fate of one message in ten, so that doubts must be
resolved by asking as well as by receipts; but it does not lie: with honest evidence nothing at all need be sent twice.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import aiohttp

from daemon import embedded, migrate
from daemon.cli.database import dial
from daemon.cli.trouble import Trouble
from daemon.demo.children import free_ports, last_words, scratch_folder, spawn, stop
from daemon.simulator import Faults, Settings, Simulator

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import asyncpg

# A service, the intent of its messages, its senders. Twelve senders of 60 segments/s keep some 60 requests on the wire.
SERVICES = {
    "codes": ("otp", [f"+1555010{number:04}" for number in range(4)]),
    "parcels": ("delivery", [f"+1555011{number:04}" for number in range(4)]),
    "offers": ("marketing", [f"+1555012{number:04}" for number in range(4)]),
}
RATE = 60  # segments per second of each
POLICIES = {"otp": "resend", "delivery": "resend", "marketing": "drop"}
CONNECTIONS = 96  # so many requests can be on the wire, and no more
EXCHANGE_S = 3.0  # how long the daemon waits for an answer
RESOLVE_S = 8  # how long evidence is looked for; minutes in earnest, but nobody watches a storm for minutes

FAULTS = {
    "latency": {"kind": "uniform", "from_ms": 20, "to_ms": 150},
    "errors": {
        "timeout_after_accept": 0.003,  # took the message, never answers
        "html_502_after_accept": 0.003,  # took it, and its proxy says no
        "timeout_before_accept": 0.001,  # did not take it; looks just the same
    },
    "receipts": {
        "sent": {"kind": "uniform", "from_ms": 50, "to_ms": 300},
        "final": {"kind": "uniform", "from_ms": 50, "to_ms": 300},
        "duplicates": 0.03,
        "reversed": 0.03,
    },
    "drops": [{"prefix": "+12025550", "receipt": "nothing"}],  # one in ten: only asking helps
}

READY_S = 30.0
GONE_S = 5.0  # until the provider has read what a dead daemon had written, and seen its connections close
DSN_VARIABLE = "OUTRIDER_SELFTEST_DSN"  # an address may hold a password: it stands in no file
HAS_SCHEMA = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'outrider')"


class Kill(NamedTuple):
    """One death of the daemon, seen from the provider."""

    at: float  # wall clock
    on_the_wire: frozenset[str]  # tokens of the requests: not answered, or the answer was never read
    unheard: frozenset[str]  # and of those whose answer may have been read in the very moment of death: nothing says no
    sending: bool  # it was past its start


class Stage:
    """The scenery. Made by :meth:`up`."""

    def __init__(self, folder: Path, simulator: Simulator, client: str) -> None:
        self.folder = folder
        self.config = folder / "config.toml"
        self.simulator = simulator
        self.connection: asyncpg.Connection[asyncpg.Record]
        self._client = client
        self._dsn: str | None = None
        self._daemon: Process | None = None
        self._public, self._operator = free_ports()

    @classmethod
    @asynccontextmanager
    async def up(
        cls, *, dsn: str | None, client: str, keep: Path | None, seed: int, say: Callable[[str], None]
    ) -> AsyncIterator[Stage]:
        """Set up everything but the daemon; take it down on leaving the block. With *keep* it stays. Raises Trouble."""
        async with AsyncExitStack() as down:
            folder = scratch_folder(keep, down, prefix="outrider-selftest-")
            faults = Faults.model_validate({**FAULTS, "seed": seed})
            settings = Settings(ledger=folder / "ledger.jsonl")
            stage = cls(folder, await down.enter_async_context(Simulator(settings, faults=faults)), client)
            say("a private Postgres is started" if dsn is None else "the schema is made in the database that was named")
            await stage._open_database(dsn, down, keep=keep is not None)
            stage.config.write_text(stage._toml(), encoding="utf-8")
            down.push_async_callback(stage._end_daemon)
            yield stage
            if keep is not None:
                say(f"everything is left in {folder}")

    # --- the daemon

    async def start_daemon(self) -> None:
        """Start it; it is not up when this returns."""
        environment = {} if self._dsn is None else {DSN_VARIABLE: self._dsn}
        self._daemon = await spawn(self.folder, "daemon", "run", "--config", str(self.config), environment=environment)

    async def until_ready(self) -> None:
        """Wait until the daemon holds its leases and has judged what its last run left open. Raises Trouble."""
        deadline = time.monotonic() + READY_S
        async with aiohttp.ClientSession() as web:
            while not await self._ready(web):
                self.check_alive()
                if time.monotonic() > deadline:
                    words = last_words(self.folder, "daemon")
                    raise Trouble(f"the daemon was not ready within {READY_S:.0f} s", *words)
                await asyncio.sleep(0.02)

    def check_alive(self) -> None:
        """Raise Trouble, with its last words, if the daemon has ended by itself."""
        if self._daemon is not None and self._daemon.returncode is not None:
            code = self._daemon.returncode
            raise Trouble(f"the daemon ended by itself with code {code}", *last_words(self.folder, "daemon"))

    async def kill_daemon(self, *, sending: bool) -> Kill:
        """``kill -9``. What was on the wire is counted when the provider has seen the last of it."""
        assert self._daemon is not None
        now = asyncio.get_running_loop().time()
        self._daemon.kill()
        await self._daemon.wait()
        at = time.time()  # nothing of this run was sent later
        with suppress(TimeoutError):
            async with asyncio.timeout(GONE_S):
                while self.simulator.connected:  # noqa: ASYNC110 (it is a provider, and gives no sign)
                    await asyncio.sleep(0.002)
        return Kill(at, frozenset(self.simulator.on_the_wire(now)), frozenset(self.simulator.unheard()), sending)

    async def stop_daemon(self) -> int:
        """Ask the daemon to end, and return its exit code."""
        assert self._daemon is not None
        return await stop(self._daemon)

    async def _ready(self, web: aiohttp.ClientSession) -> bool:
        try:
            async with web.get(f"http://127.0.0.1:{self._operator}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def _end_daemon(self) -> None:
        if self._daemon is not None:
            await stop(self._daemon)

    # --- the database

    async def _open_database(self, dsn: str | None, down: AsyncExitStack, *, keep: bool) -> None:
        self._dsn = dsn
        if dsn is None:
            server = await asyncio.to_thread(embedded.start, self.folder / "state" / "postgres")
            down.push_async_callback(asyncio.to_thread, server.stop)
            dsn = server.dsn()
        self.connection = await dial(dsn)
        down.push_async_callback(self.connection.close)
        if await self.connection.fetchval(HAS_SCHEMA):
            raise Trouble(
                "this database has a schema outrider already, and it will not be touched",
                "make an empty one for the self-test (createdb scratch), or leave --dsn out",
            )
        if self._dsn is not None and not keep:
            down.push_async_callback(self.connection.execute, "DROP SCHEMA IF EXISTS outrider CASCADE")
        await migrate.migrate(self.connection, report=lambda _: None)

    def _toml(self) -> str:
        database = 'url = "embedded"\ntrial = true' if self._dsn is None else f'url_env = "{DSN_VARIABLE}"'
        tables = [
            "# Made by `outrider selftest crash`.",
            f"[database]\n{database}",
            '[daemon]\nstate = "state"\nlog_format = "json"',
            f'[web.public]\nport = {self._public}\nurl = "http://127.0.0.1:{self._public}"',
            f"[web.operator]\nport = {self._operator}",
            f'[providers.practice]\nkind = "simulator"\nbase_url = "{self.simulator.url}"',
            f'connections = {CONNECTIONS}\ntimeout_s = {EXCHANGE_S}\nclient = "{self._client}"',
        ]
        for service, (intent, senders) in SERVICES.items():
            tables += [
                f'[[senders]]\naddress = "{address}"\nprovider = "practice"\ncountry = "US"\nrate = {RATE}'
                for address in senders
            ]
            tables += [
                f"[services.{service}]\nsenders = {json.dumps(senders)}",
                f'[intents.{intent}]\non_ambiguous = "{POLICIES[intent]}"\nresolve_for = "{RESOLVE_S}s"',
            ]
        return "\n".join(tables) + "\n"
