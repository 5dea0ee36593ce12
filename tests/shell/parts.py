"""Parts of an engine for the tests of single rooms: a clock wound by hand, settings, a message, a line to a database."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from daemon.clock import Clock
from daemon.core.message import Message
from daemon.database import Line
from daemon.engine import Engine
from daemon.gates import Gate
from daemon.journal import Journal, Memory
from daemon.metrics import Metrics
from daemon.observer import Observer
from daemon.providers.twilio import Twilio, basic
from daemon.settings import Settings, parse
from daemon.transport import Transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

US, OTHER = "+15550100001", "+15550100002"


class Wound(Clock):
    """A clock that stands until it is told to go."""

    __slots__ = ("wall", "went")

    def __init__(self, went: float = 1_000.0, wall: float = 1_700_000_000.0) -> None:
        self.went = went
        self.wall = wall

    def now(self) -> float:
        return self.wall

    def tick(self) -> float:
        return self.went

    def go(self, seconds: float) -> None:
        self.went += seconds
        self.wall += seconds


def settings(
    services: Mapping[str, Sequence[str]] | None = None,
    *,
    rate: float = 10.0,
    providers: Mapping[str, str] | None = None,
    **tables: object,
) -> Settings:
    """Services and the senders they name, each at ``sim`` or at the provider that *providers* says."""
    services = services or {"default": [US, OTHER]}
    where = providers or {}
    addresses = sorted({address for pool in services.values() for address in pool})
    return parse(
        {
            "providers": {name: {"kind": "simulator"} for name in {"sim", *where.values()}},
            "senders": [
                {
                    "address": address,
                    "provider": where.get(address, "sim"),
                    "type": "long_code",
                    "country": "US",
                    "rate": rate,
                }
                for address in addresses
            ],
            "services": {name: {"senders": list(pool)} for name, pool in services.items()},
            **tables,
        }
    )


def message(**fields: object) -> Message:
    """An ordinary message in hand."""
    plain: dict[str, object] = {
        "id": uuid4(),
        "attempt": 1,
        "spent": 0,
        "lane": "default",
        "level": 3,
        "claim": UUID(int=8),
        "tenant": "",
        "recipient": "+12025550101",
        "channel": "sms",
        "service": "default",
        "sender": None,
        "body": "hello",
        "template": None,
        "variables": None,
        "media": (),
        "intent": "marketing",
        "first_due": 1_700_000_000.0,
        "due_at": 1_700_000_000.0,
        "expires_at": None,
        "order_key": None,
        "on_ambiguous": None,
        "group": US,
    }
    return Message(**{**plain, **fields})  # type: ignore[arg-type]


def dialect(name: str = "sim", base_url: str = "http://127.0.0.1:9") -> Twilio:
    """Twilio's, for an account that is nobody's."""
    return Twilio(
        name=name,
        account_sid="AC" + "0" * 32,
        authorization=basic("AC" + "0" * 32, "token"),
        auth_tokens=("token",),
        public_url="http://127.0.0.1:1",
        base_url=base_url,
        callback_options="",
    )


@asynccontextmanager
async def engine(
    dsn: str, folder: Path, *, configured: Settings | None = None, clock: Clock | None = None, owner: UUID | None = None
) -> AsyncIterator[Engine]:
    """A whole engine that nobody has started: its parts are asked one by one."""
    configured = configured or settings()
    clock = clock or Clock()
    observer = Observer(Metrics(), clock, configured)
    owner = owner or uuid4()
    journal = Journal(folder / "state", boot_id="this boot", owner=str(owner))
    memory: Memory = journal.recall()
    async with Transport.open(connections=4) as transport:
        gates = {
            name: Gate(dialect(name), transport, connections=4, timeout_s=15.0, tick=clock.tick, observer=observer)
            for name in configured.providers
        }
        made = Engine(
            configured,
            clock,
            dsn=dsn,
            journal=journal,
            memory=memory,
            owner=owner,
            observer=observer,
            gates=gates,
        )
        observer.engine = made
        journal.open()
        try:
            yield made
        finally:
            for line in (made.claims, made.settlements, made.receipts, made.chores, made.looks, made.books):
                await line.close()
            journal.close()


@asynccontextmanager
async def line(dsn: str, *statements: str, **kind: bool) -> AsyncIterator[Line]:
    """A line of one's own; *kind*: pooled, hot, wary."""
    made = Line("test", dsn, statements=statements, **kind)
    try:
        yield made
    finally:
        await made.close()
