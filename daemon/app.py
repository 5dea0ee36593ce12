"""
The only place where things are put together, started, and taken apart in the right order.

Services start and end in stages. First the operator's listener, so that ``/readyz`` can say what is missing; then,
once the database is open, everything else. At the end the outbox stops taking, the fleet comes home, the ledger
writes its last word, and only then do leases, listeners and lines go.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import TYPE_CHECKING

import structlog

from daemon import embedded, identity
from daemon import log as logs
from daemon.callbacks import Callbacks
from daemon.clock import Clock
from daemon.database import RETRY_MAX_S, RETRY_MIN_S, DatabaseDown, Ear, first_of, sleep_unless
from daemon.engine import Engine
from daemon.gates import Gate
from daemon.journal import Journal, StateFolderInUse
from daemon.metrics import Metrics
from daemon.migrate import SchemaError
from daemon.observer import Observer
from daemon.pooler import TransactionPooler
from daemon.providers.twilio import Twilio, basic
from daemon.pulse import Pulse
from daemon.settings import SettingsError, Simulator, describe_difference, load
from daemon.supervisor import Service, notify, supervise
from daemon.transport import Link, Transport
from daemon.web import Guard, Listener, operator_app, public_listener
from daemon.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from daemon.provider import Dialect
    from daemon.settings import Provider, Settings

log = structlog.get_logger()

CLEAN, FAILED, BAD_CONFIGURATION = 0, 1, 78


async def run(settings: Settings, *, config_path: Path, stop: asyncio.Event | None = None) -> int:
    """Carry messages until SIGTERM, SIGINT or *stop*; the exit code."""
    _configure_logs(settings)
    stop = stop or asyncio.Event()
    async with AsyncExitStack() as stack:
        try:
            app = await App.build(settings, config_path, stack)
        except (StateFolderInUse, embedded.EmbeddedError) as trouble:
            log.error("daemon.refused", reason=str(trouble))
            return FAILED
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, app.reload)
        return await app.serve(stop)


class Stage:
    """A service with a beginning and an end of its own: it runs from *after* until *until*, then says *done*."""

    def __init__(
        self,
        service: Service,
        *,
        after: asyncio.Event | None = None,
        until: asyncio.Event,
        done: asyncio.Event | None = None,
    ) -> None:
        self.name = service.name
        self._service = service
        self._after = after
        self._until = until
        self._done = done

    async def run(self, stop: asyncio.Event) -> None:
        """Run it; *stop* before its beginning means never."""
        try:
            if self._after is not None:
                await first_of(self._after, stop)
            if self._after is None or self._after.is_set():
                await self._service.run(self._until)
        finally:
            if self._done is not None:
                self._done.set()


class App:
    """The daemon as a whole."""

    name = "opening"

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        config_path: Path,
        observer: Observer,
        dsn: str,
        dialects: Mapping[str, Dialect],
        public_port: int,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._config_path = config_path
        self._observer = observer
        self._dsn = dsn
        self._dialects = dialects
        self._public_port = public_port
        self._opened = asyncio.Event()

    @classmethod
    async def build(cls, settings: Settings, config_path: Path, stack: AsyncExitStack) -> App:
        """Make everything that needs no database. Raises StateFolderInUse or EmbeddedError."""
        clock = Clock()
        state = settings.daemon.state
        owner = identity.instance_id(state)
        journal = Journal(state, boot_id=clock.boot_id(), owner=str(owner))
        memory = journal.recall()
        dsn = settings.database.url
        if settings.database.embedded:
            server = await asyncio.to_thread(embedded.start, state / "postgres")
            stack.push_async_callback(asyncio.to_thread, server.stop)
            dsn = server.dsn()
        public = settings.web.public
        port = public.port or _free_port(public.host)
        public_url = public.url or f"http://{public.host}:{port}"
        observer = Observer(Metrics(), clock, settings)
        dialects: dict[str, Dialect] = {}
        gates: dict[str, Gate] = {}
        for name, provider in settings.providers.items():
            base_url = provider.base_url or await _simulator(provider, stack)
            dialects[name] = _dialect(name, provider, public_url=public_url, base_url=base_url)
            link: Link = await stack.enter_async_context(_link(provider))
            gates[name] = Gate(
                dialects[name],
                link,
                connections=provider.connections,
                timeout_s=provider.timeout_s,
                tick=clock.tick,
                observer=observer,
            )
        engine = Engine(
            settings, clock, dsn=dsn, journal=journal, memory=memory, owner=owner, observer=observer, gates=gates
        )
        engine.desk.public_url = public_url
        observer.engine = engine
        return cls(
            engine, settings, config_path=config_path, observer=observer, dsn=dsn, dialects=dialects, public_port=port
        )

    async def serve(self, stop: asyncio.Event) -> int:
        """Run all services until *stop*; the exit code."""
        settings, engine = self._settings, self._engine
        untaken, home, written = asyncio.Event(), asyncio.Event(), asyncio.Event()
        operator = settings.web.operator
        guard = Guard(operator.token.get_secret_value() if operator.token else None)
        services: list[Service] = [
            Stage(
                Listener("operator", operator_app(self._observer, guard), host=operator.host, port=operator.port),
                until=written,
            ),
            Stage(engine.fleet, after=self._opened, until=untaken, done=home),
            Stage(engine.outbox, after=self._opened, until=stop, done=untaken),
            Stage(engine.ledger, after=self._opened, until=home, done=written),
            Stage(engine.leases, after=self._opened, until=written),
            Stage(engine.signals, after=self._opened, until=home),
            Stage(engine.inspector, after=self._opened, until=stop),
            Stage(engine.janitor, after=self._opened, until=stop),
            Stage(engine.reconciler, after=self._opened, until=stop),
            Stage(engine.auditor, after=self._opened, until=stop),
            Stage(engine.keeper, after=self._opened, until=stop),
            Stage(Pulse(engine, self._observer), until=written),
            Stage(_Late(self._public, "public"), after=self._opened, until=written),
            self,
        ]
        if settings.database.deaf:
            log.info("database.unheard", hint="NOTIFY does not pass the pooler: polling alone; [database] listen_url")
        else:
            ear = Ear(settings.database.listen_url or self._dsn, engine.outbox.wake)
            services.append(Stage(ear, after=self._opened, until=stop))
        try:
            await supervise(services, stop=stop, grace_s=settings.daemon.drain_s)
        except ExceptionGroup as trouble:  # each one has been told, with its traceback
            refused, other = trouble.split((SchemaError, TransactionPooler))
            if refused is not None:
                log.error("database.refused", reason="; ".join(map(str, refused.exceptions)))
            if other is not None:
                log.error("daemon.failed", reasons=list(map(repr, other.exceptions)))
            return FAILED if refused is None else BAD_CONFIGURATION
        finally:
            self._observer.stopped()
            await self._close()
        return CLEAN

    async def run(self, stop: asyncio.Event) -> None:
        """Open the database, however long it takes; then say that we are ready."""
        pause, complained = RETRY_MIN_S, False
        while not stop.is_set():
            try:
                await self._engine.open(embedded=self._settings.database.embedded)
                break
            except (DatabaseDown, OSError) as down:
                if not complained and isinstance(down, DatabaseDown):  # of a full disk the dispatch log has told
                    log.error("database.unreachable", error=str(down), hint="trying again until it answers")
                    complained = True
                await sleep_unless(stop, pause)
                pause = min(pause * 2, RETRY_MAX_S)
        else:
            return
        # What was made so far lives as long as we do: the collector need not look at it again (+20 % throughput).
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 50, 100)
        self._opened.set()
        self._observer.serving()
        notify("READY=1", "STATUS=serving")
        log.info("daemon.ready", instance=str(self._engine.owner), operator=self._settings.web.operator.port)
        await stop.wait()
        self._observer.draining()
        notify("STOPPING=1", "STATUS=draining")
        log.info("daemon.draining", in_hand=self._engine.outbox.in_hand)
        with suppress(DatabaseDown):
            await self._engine.withdraw()

    def reload(self) -> None:
        """SIGHUP: read the file again, validate it whole, tell what changes, take it up."""
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            fresh = load(self._config_path)
        except SettingsError as mistakes:
            log.error("settings.refused", mistakes=list(mistakes.mistakes))
            notify("READY=1")
            return
        strange = sorted({sender.provider for sender in fresh.senders} - set(self._engine.gates))
        if strange:
            log.error(
                "settings.refused", mistakes=[f"provider {name} is new: restart to take it up" for name in strange]
            )
        else:
            changes = describe_difference(self._settings, fresh)
            later = [change for change in changes if change.startswith(("database", "daemon", "web", "providers"))]
            log.info(
                "settings.reloaded", changes=[change for change in changes if change not in later], after_restart=later
            )
            stays = {sender.address for sender in fresh.senders}
            for sender in self._settings.senders:
                if sender.address not in stays:
                    self._observer.removed(sender.address)
            self._settings = fresh
            _configure_logs(fresh)
            self._engine.reload(fresh)
        notify("READY=1")

    def _public(self) -> Listener:
        engine = self._engine
        callbacks = Callbacks(
            self._dialects, key=engine.desk.key, book=engine.book, metrics=self._observer, opt_out=engine.opt_out
        )
        return public_listener(callbacks, host=self._settings.web.public.host, port=self._public_port)

    async def _close(self) -> None:
        try:
            await self._engine.close()
        except DatabaseDown as down:
            log.warning("leases.kept", reason=str(down))


class _Late:
    """A service that can only be made when it is needed."""

    def __init__(self, make: Callable[[], Service], name: str) -> None:
        self._make = make
        self.name = name

    async def run(self, stop: asyncio.Event) -> None:
        await self._make().run(stop)


def _dialect(name: str, provider: Provider, *, public_url: str, base_url: str) -> Dialect:
    """The dialect of a configured provider. Both kinds there are speak Twilio's."""
    token = provider.auth_token.get_secret_value()
    second = provider.secondary_auth_token
    user, secret = provider.account_sid, token
    if provider.api_key_sid is not None and provider.api_key_secret is not None:
        user, secret = provider.api_key_sid, provider.api_key_secret.get_secret_value()
    return Twilio(
        name=name,
        account_sid=provider.account_sid,
        authorization=basic(user, secret),
        auth_tokens=(token, second.get_secret_value()) if second else (token,),
        public_url=public_url,
        base_url=base_url,
        callback_options=provider.callback_options,
    )


def _link(provider: Provider) -> AbstractAsyncContextManager[Link]:
    connections = provider.connections
    return Wire.open(connections=connections) if provider.client == "wire" else Transport.open(connections=connections)


async def _simulator(provider: object, stack: AsyncExitStack) -> str:
    """The trial's provider: a simulator inside this process."""
    from daemon import simulator

    assert isinstance(provider, Simulator)
    settings = simulator.Settings(
        account_sid=provider.account_sid, auth_token=provider.auth_token.get_secret_value(), faults=provider.faults
    )
    return (await stack.enter_async_context(simulator.Simulator(settings))).url


def _configure_logs(settings: Settings) -> None:
    own = {sender.address for sender in settings.senders}
    logs.configure(settings.daemon.log_level, settings.daemon.log_format, known=own)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
