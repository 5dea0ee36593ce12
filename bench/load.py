"""
Processes and what they cost: starting the parts of a measurement, and reading their CPU time from the kernel.

Rates come from the sink's clock, the same for everybody: acceptances between its first and its last, per second.
"""

from __future__ import annotations

import asyncio
import os
import resource
import ssl
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from daemon.database import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from daemon.embedded import Server

ROOT = Path(__file__).absolute().parents[1]
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PATIENCE_S = 300.0  # nothing here takes longer


class BenchError(Exception):
    """A measurement could not be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one client did: messages per second by the sink's clock, CPU seconds per 1,000 messages."""

    asked: int  # to post so many
    messages: int  # that the sink has accepted
    rate: float
    cpu: float
    distinct: int  # recipients the sink has seen


class Sink:
    """The provider for load, as its users see it."""

    def __init__(self, url: str, web: aiohttp.ClientSession) -> None:
        self.url = url
        self._web = web

    async def accepted(self) -> int:
        """How many it has accepted since :meth:`forget`."""
        return int((await self._ask("/"))["accepted"])

    async def rate(self) -> float:
        """Acceptances a second between the first and the last."""
        said = await self._ask("/")
        return float((said["accepted"] - 1) / (said["last"] - said["first"])) if said["accepted"] > 1 else 0.0

    async def arrivals(self, field: str = "To") -> list[tuple[float, str]]:
        """Each acceptance: when, on the monotonic clock, and what its *field* says."""
        async with self._web.get(f"{self.url}/arrivals/{field}") as reply:
            return [(at, said) for at, said in orjson.loads(await reply.read())]

    async def callbacks(self) -> list[str]:
        """Where receipts are wanted, for each acceptance."""
        async with self._web.get(f"{self.url}/callbacks/0") as reply:
            found: list[str] = orjson.loads(await reply.read())
            return found

    async def forget(self) -> None:
        """Begin anew."""
        async with self._web.delete(self.url) as reply:
            await reply.read()

    async def _ask(self, path: str) -> dict[str, float]:
        async with self._web.get(self.url + path) as reply:
            said: dict[str, float] = orjson.loads(await reply.read())
            return said


@asynccontextmanager
async def sink(*delay_ms: float, identity: Path | None = None) -> AsyncIterator[Sink]:
    """
    A sink in a process of its own. *delay_ms*: from and to how long it takes for an answer. *identity*: it speaks TLS,
    and this is who it is (:func:`made_identity`).
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.sink", *map(str, delay_ms), *([str(identity)] if identity else []),
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    trust = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=identity)) if identity else None
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().strip()
        async with aiohttp.ClientSession(connector=trust, timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as web:
            yield Sink(url, web)
    finally:
        process.stdin.close()
        await process.wait()


def made_identity(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed, and its key, in one file of *folder*."""
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    made = folder / "identity.pem"
    subprocess.run(
        [*request.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", made, "-out", made],
        check=True,
        capture_output=True,
    )
    return made


@asynccontextmanager
async def database(server: Server, name: str) -> AsyncIterator[str]:
    """A database *name* for the block: its DSN."""
    admin = await connect(server.dsn("postgres"))
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        yield server.dsn(name)
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.close()


async def client(module: str, sink: Sink, *arguments: object) -> Run:
    """Run ``bench.MODULE`` against *sink* to its end."""
    await sink.forget()
    told = await said(module, sink, *arguments)
    distinct = len({to for _, to in await sink.arrivals()})
    cpu = told["cpu_s"] / told["messages"] * 1000
    return Run(
        asked=told["messages"], messages=await sink.accepted(), rate=await sink.rate(), cpu=cpu, distinct=distinct
    )


async def said(module: str, sink: Sink, *arguments: object, given: bytes = b"") -> Any:
    """Run ``bench.MODULE`` to its end, with *given* on its stdin; the JSON object it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"bench.{module}", sink.url, *map(str, arguments),
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PATIENCE_S):
            printed, _ = await process.communicate(given)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise BenchError(f"bench.{module} ended with code {process.returncode}")
    return orjson.loads(printed)


def mean(one: Run, other: Run) -> Run:
    """Two runs of the same client as one: rate and cost in the middle of theirs."""
    return replace(
        one,
        rate=(one.rate + other.rate) / 2,
        cpu=(one.cpu + other.cpu) / 2,
        messages=min(one.messages, other.messages),
        distinct=min(one.distinct, other.distinct),
    )


@contextmanager
def spent(messages: int) -> Iterator[None]:
    """In a client: print what the block took, as :func:`client` reads it."""
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    yield
    now = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    print(orjson.dumps({"messages": messages, "seconds": time.monotonic() - began, "cpu_s": cpu_s}).decode())


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """*seconds* at three shares of their number, in milliseconds; nothing when there are none."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {f"p{share}": round(1000 * ordered[len(ordered) * share // 100], 1) for share in (50, 95, 99)}


def postmaster_pid(server: Server) -> int:
    """The process id of a private Postgres."""
    return int((server.home / "cluster" / "postmaster.pid").read_text(encoding="ascii").split()[0])


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    return sum(_times(pid)[:2])


def memory_mb(pid: int) -> float:
    """The most memory a process has had resident (proc(5): VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_with_children_s(pid: int) -> float:
    """CPU seconds of a process and its children, those that have ended too: a postmaster and its Postgres."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return sum(_times(pid)) + sum(sum(_times(int(child))) for child in children)


def _times(pid: int) -> list[float]:
    """User, system, and the same of children that were waited for; nought for a process that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return [0.0] * 4
    return [int(field) * TICK_S for field in fields[11:15]]  # proc(5): utime, stime, cutime, cstime
