"""
A whole stage for the road: the daemon in a process of its own (to be killed), a simulator in ours, a real Postgres between.

The simulator's ledger is the judge: it is written before it answers, so what stands there was really sent.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import aiohttp
import asyncpg

from daemon.core.token import unseal
from daemon.simulator import ACCOUNT_SID, AUTH_TOKEN, Faults, Settings, Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

RECIPIENT = "+1202555{:04}"  # 0100 to 0199 are set aside for fiction; all of 555 is nobody's


@dataclass(frozen=True, kw_only=True)
class Cast:
    """Who speaks: senders (address -> segments per second) and services (name -> addresses)."""

    senders: Mapping[str, float]
    services: Mapping[str, Sequence[str]]
    connections: int = 64
    timeout_s: float = 15.0
    client: str = "wire"
    intents: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    in_hand: int = 2000
    templates: Mapping[str, str] = field(default_factory=dict)
    database: Mapping[str, str] = field(default_factory=dict)  # what else [database] says

    def toml(
        self, *, dsn: str, base_url: str, state: Path, public: int, operator: int, called_at: int | None = None
    ) -> str:
        lines = [
            f"[database]\nurl = {json.dumps(dsn)}",
            *(f"{key} = {json.dumps(value)}" for key, value in self.database.items()),
            f"[daemon]\nstate = {json.dumps(str(state))}\nlog_format = 'json'\nin_hand = {self.in_hand}",
            f"[web.public]\nport = {public}\nurl = 'http://127.0.0.1:{called_at or public}'\n[web.operator]\nport = {operator}",
            "[providers.sim]\nkind = 'simulator'",
            f"account_sid = '{ACCOUNT_SID}'\nauth_token_env = 'SIMULATOR_TOKEN'\nbase_url = '{base_url}'",
            f"connections = {self.connections}\ntimeout_s = {self.timeout_s}\nclient = '{self.client}'",
        ]
        for address, rate in self.senders.items():
            kind = "short_code" if len(address) < 9 else "long_code"
            lines.append(
                f"[[senders]]\naddress = '{address}'\nprovider = 'sim'\ntype = '{kind}'\ncountry = 'US'\nrate = {rate}"
            )
        lines += [f"[services.{name}]\nsenders = {json.dumps(list(pool))}" for name, pool in self.services.items()]
        for word, keys in self.intents.items():
            lines.append(
                "\n".join([f"[intents.{word}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())])
            )
        if self.templates:
            lines.append("[templates]")
            lines += [f"{name} = {json.dumps(text)}" for name, text in self.templates.items()]
        return "\n".join(lines) + "\n"


class Stage:
    """One run: insert, kill, wait, and ask the judge."""

    def __init__(
        self, cast: Cast, folder: Path, dsn: str, simulator: Simulator, connection: asyncpg.Connection[asyncpg.Record]
    ) -> None:
        self.cast = cast
        self.folder = folder
        self.simulator = simulator
        self.connection = connection
        self.public, self.operator = free_ports(2)
        self.dsn = dsn
        self.provider_url = simulator.url  # where the daemon is told that it lives: a bad road may lead there
        self._process: asyncio.subprocess.Process | None = None
        self._others: list[Stage] = []
        self.stood_s = 0.0  # the longest that the simulator's loop, which is ours, has stood still
        self.called_at: int | None = None  # whose port receipts go to, when not our own: that of a load balancer, say
        self.log = folder / "daemon.log"
        self.state = folder / "state"

    @classmethod
    @asynccontextmanager
    async def set_up(
        cls, cast: Cast, folder: Path, dsn: str, *, faults: Faults | None = None, keep: int = 1_000_000
    ) -> AsyncIterator[Stage]:
        """The scenery without the daemon; the daemon is stopped at the end if it still runs."""
        async with Simulator(Settings(ledger=folder / "ledger.jsonl", keep=keep), faults=faults) as simulator:
            connection = await asyncpg.connect(dsn)
            stage = cls(cast, folder, dsn, simulator, connection)
            watching = asyncio.create_task(stage._watch())
            try:
                yield stage
            finally:
                watching.cancel()
                for one in (stage, *stage._others):
                    if one._process is not None:
                        await one.kill()
                await stage.connection.close()  # it may be another by now: Postgres comes and goes

    async def _watch(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            self.stood_s = max(self.stood_s, time.monotonic() - before - 0.005)

    def busiest(self, sender: str) -> int:
        """
        The most segments of *sender* in any second, less what comes of our own standing still: while the simulator does
        not look, what comes bunches (the promise holds while ways differ by 20 ms at the most).
        """
        rate = self.cast.senders[sender]
        bunched = math.ceil(rate * max(self.stood_s - 0.02, 0.0))
        return self.simulator.ledger.max_in_window(sender, rate) - bunched

    def beside(self, name: str, cast: Cast | None = None) -> Stage:
        """Another daemon of the same database, with a state folder and ports of its own."""
        folder = self.folder / name
        folder.mkdir()
        other = Stage(cast or self.cast, folder, self.dsn, self.simulator, self.connection)
        self._others.append(other)
        return other

    def write_config(self) -> Path:
        """The configuration file, as it is now."""
        config = self.folder / "config.toml"
        config.write_text(
            self.cast.toml(
                dsn=self.dsn,
                base_url=self.provider_url,
                state=self.state,
                public=self.public,
                operator=self.operator,
                called_at=self.called_at,
            )
        )
        return config

    async def launch(self, *program: str) -> asyncio.subprocess.Process:
        """Start the daemon, or another *program* that takes its arguments; it is not up when this returns."""
        config = self.write_config()
        with self.log.open("ab") as out:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *(program or ("-m", "daemon")), "run", "--config", str(config),
                stdout=out, stderr=out, env={**os.environ, "SIMULATOR_TOKEN": AUTH_TOKEN},
            )  # fmt: skip
        return self._process

    async def start(self, *, ready: int = 200, ready_s: float = 20.0) -> None:
        """Start the daemon and wait until ``/readyz`` answers *ready*."""
        process = await self.launch()
        deadline = time.monotonic() + ready_s
        async with aiohttp.ClientSession() as web:
            while True:
                try:
                    async with web.get(f"http://127.0.0.1:{self.operator}/readyz") as answer:
                        if answer.status == ready:
                            return
                except aiohttp.ClientError:
                    pass
                if time.monotonic() > deadline or process.returncode is not None:
                    raise AssertionError(f"not ready: {self.log.read_text()[-3000:]}")
                await asyncio.sleep(0.02)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        self._process = None

    def freeze(self) -> None:
        """SIGSTOP: it stands still, and does not know."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @property
    def instance(self) -> UUID:
        """The id of its daemon, once it has run."""
        return UUID((self.state / "instance").read_text().strip())

    async def holds(self) -> set[str]:
        """The groups its daemon leases."""
        rows = await self.connection.fetch(
            "SELECT grp FROM outrider.lease WHERE owner = $1 AND until > clock_timestamp()", self.instance
        )
        return {row["grp"] for row in rows}

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = await self._process.wait()
        self._process = None
        return code

    async def hang_up(self) -> None:
        """SIGHUP: read the configuration again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    async def ask(self, path: str) -> tuple[int, bytes]:
        """GET from the operator's listener."""
        async with aiohttp.ClientSession() as web, web.get(f"http://127.0.0.1:{self.operator}{path}") as answer:
            return answer.status, await answer.read()

    @staticmethod
    def wall() -> float:
        """The clock the ledger uses."""
        return time.time()

    async def insert(self, count: int, *, service: str, intent: str, body: str = "Hello", **columns: object) -> None:
        """*count* messages in one statement, to as many recipients."""
        names = ["recipient", "service", "intent", "body", *columns]
        values = ", ".join(f"${number}" for number in range(4, 4 + len(columns)))
        await self.connection.execute(
            f"INSERT INTO outrider.outbox ({', '.join(names)})"
            " SELECT '+1202' || (5550000 + n % 10000)::text, $1, $2, $3 || ' ' || n"
            f"{', ' + values if columns else ''} FROM generate_series(1, {count}) AS n",
            service, intent, body, *columns.values(),
        )  # fmt: skip

    async def until(self, query: str, *, within_s: float = 60.0, every_s: float = 0.1) -> None:
        """Wait until *query* answers true."""
        deadline = time.monotonic() + within_s
        while not await self.connection.fetchval(query):
            if time.monotonic() > deadline or (self._process is not None and self._process.returncode is not None):
                raise AssertionError(f"still not: {query}\n{await self.statuses()}\n{self.log.read_text()[-2000:]}")
            await asyncio.sleep(every_s)

    async def quiet(self, *, within_s: float = 60.0) -> None:
        """Wait until nothing is left in the queue."""
        await self.until("SELECT NOT EXISTS (SELECT FROM outrider.queue)", within_s=within_s)

    async def statuses(self) -> Counter[tuple[str, str]]:
        """How many messages stand where, and why."""
        rows = await self.connection.fetch(
            "SELECT status, coalesce(reason, '') AS reason, count(*) FROM outrider.message GROUP BY 1, 2"
        )
        return Counter({(row["status"], row["reason"]): row["count"] for row in rows})

    async def sent(self) -> dict[UUID, list[int]]:
        """By the judge: which attempts of which message a provider accepted."""
        key = await self.connection.fetchval("SELECT token_key FROM outrider.home")
        found: dict[UUID, list[int]] = {}
        for entry in self.simulator.ledger.entries:
            owner = unseal(key, entry.token)
            assert owner is not None, f"a token that is not ours: {entry.token}"
            found.setdefault(owner[0], []).append(owner[1])
        return found


def cpu_s(pid: int) -> float:
    """Seconds of CPU that process *pid* has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on."""
    import socket

    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
