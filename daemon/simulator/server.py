"""The Simulator: listens, answers late, breaks connections, stops altogether, and watches the faults file."""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from typing import TYPE_CHECKING, Self
from uuid import uuid4

import structlog

from daemon.simulator import admin, twilio
from daemon.simulator.agenda import Agenda
from daemon.simulator.api import Api, Reply
from daemon.simulator.fate import Dice
from daemon.simulator.faults import Faults, FaultsError, Outage, Trouble, read_faults
from daemon.simulator.ledger import Ledger
from daemon.simulator.receipts import Postman
from daemon.simulator.settings import Settings
from daemon.simulator.wire import Answer, Conversation, Party, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from types import TracebackType

log = structlog.stdlib.get_logger()

_HTML = b"Content-Type: text/html\r\n"
_PAGE_502 = Answer(502, b"<html><body><h1>502 Bad Gateway</h1></body></html>", _HTML).raw()
_OUTAGE_503 = Answer(503, b"<html><body><h1>503 Service Unavailable</h1></body></html>", _HTML).raw()
_GARBAGE = bytes(range(0x80, 0x100)) + b"\r\n\r\n"


class Simulator:
    """
    A provider in this process. An async context manager; afterwards its ledger can still be read.

    ``faults`` may be replaced at any time while it runs; with a faults file, a change of the file wins again.
    """

    def __init__(self, settings: Settings | None = None, *, faults: Faults | None = None) -> None:
        self.settings = settings or Settings()
        self.ledger = Ledger(self.settings.ledger, keep=self.settings.keep)
        self.faults_error: str | None = None  # why the faults file, as it stands, is not in force
        self._faults = faults or Faults()
        self._stamp: tuple[int, int] | None = None  # of the faults file as last read
        self._party = Party()
        self._chores: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._port = self.settings.port

    @property
    def url(self) -> str:
        """Where it listens: the ``base_url`` of a provider in config.toml."""
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"http://{host}:{self._port}"

    @property
    def faults(self) -> Faults:
        """What goes wrong now."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        if faults.outage.kind == "closed" and not faults.outage.for_s and self.settings.faults is None:
            log.warning("simulator.closed", lift="only from within the process: no for_s and no faults file")
        seed_changed = faults.seed != self._faults.seed
        self._faults = faults
        if hasattr(self, "_api"):
            self._api.faults = faults
            if seed_changed:
                self._api.dice = Dice(faults.seed)
            self._apply(faults.outage)

    @property
    def errors(self) -> Mapping[str, int]:
        """Refused creates by code, and broken ones by the name of the trouble."""
        return self._api.counts

    @property
    def receipts(self) -> Mapping[str, int]:
        """Callbacks: sent (answered 2xx), failed (given up), retried, dropped (too many waiting), pending."""
        return {**self._postman.counts, "pending": self._postman.pending}

    @property
    def connected(self) -> int:
        """How many connections are open."""
        return sum(talk.ended_at is None for talk in self._party)

    def on_the_wire(self, at: float) -> set[str]:
        """
        Tokens of the creates that were on the wire at *at*, a moment of the loop's clock.

        They had no answer yet, or one that was never read: the end of a connection tells, and is remembered a while.
        """
        return {
            talk.asked.token
            for talk in self._party
            if talk.ended_at is None or talk.ended_at >= at
            if talk.asked.answered_at is None or talk.asked.answered_at >= at or talk.unread
        } - {""}

    def unheard(self) -> set[str]:
        """Tokens of the creates of which nothing proves that their client has noted the answer."""
        asked = (one for talk in self._party for one in (talk.asked, talk.before))
        return {one.token for one in asked if not one.number or one.number > self._party.noted} - {""}

    async def __aenter__(self) -> Self:
        if self.settings.faults is not None:
            self._stamp = self._look()
            self._faults = read_faults(self.settings.faults)
        self._agenda = Agenda()
        self._postman = await Postman(
            self._agenda,
            self.settings.auth_token,
            connections=self.settings.callback_connections,
            waiting=self.settings.callbacks_waiting,
        ).__aenter__()
        self._api = Api(self.settings, faults=self._faults, ledger=self.ledger, postman=self._postman)
        await self._listen()
        self._apply(self._faults.outage)
        if self.settings.faults is not None:
            self._spawn(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        self._agenda.clear()
        await self._postman.__aexit__(kind, error, trace)
        self.ledger.close()

    async def say(self, from_: str, to: str, body: str, *, url: str | None = None) -> tuple[str, str]:
        """
        The person *from_* writes *body* to our number *to*: posts it and returns its SID and the status answered.

        Instead of a status, ``ct`` says that nobody could be reached and ``rt`` that nobody answered. ValueError when
        neither the call nor the settings name an URL.
        """
        target = url or self.settings.inbound_url
        if target is None:
            raise ValueError("no inbound_url to post to")
        sid = self._api.new_sid()
        form = twilio.inbound(self.settings.account_sid, sid, sender=from_, to=to, body=body)
        status, _ = await self._postman.deliver(target, form, uuid4().hex)
        return sid, status

    def _serve(self, request: Request, talk: Conversation) -> None:
        if request.target.startswith(admin.ROOT):
            self._spawn(admin.serve(self, request, talk))
            return
        outage = self._faults.outage.kind
        if outage != "none":
            self._api.counts["outage"] += 1
            if outage == "refuse":
                talk.answer(_OUTAGE_503)
            return  # the others are never answered, not even when the outage is over
        reply = self._api.reply(request)
        talk.take(reply.token)
        if reply.latency_s:
            self._agenda.after(reply.latency_s, partial(_speak, talk, reply))
        else:
            _speak(talk, reply)

    def _apply(self, outage: Outage) -> None:
        if outage.kind == "closed":
            self._close()
        elif self._listener is None:
            self._spawn(self._listen())
        if outage.for_s is not None:
            self._agenda.after(outage.for_s, partial(self._lift, outage))

    def _lift(self, outage: Outage) -> None:
        if self._faults.outage is outage:  # and not another one, ordered since
            self.faults = self._faults.model_copy(update={"outage": Outage()})

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(
            partial(Conversation, self._serve, self._party), self.settings.host, self._port, backlog=4_096
        )
        if self._listener is not None:
            listener.close()
            return
        self._listener = listener
        self._port = listener.sockets[0].getsockname()[1]
        if self._faults.outage.kind == "closed":
            self._close()  # ordered while we were opening

    def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for talk in list(self._party):
            talk.reset()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.settings.faults_check_s)
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._reread()

    def _reread(self) -> None:
        if self.settings.faults is None:
            return
        try:
            self.faults = read_faults(self.settings.faults)
        except FaultsError as error:
            self.faults_error = str(error)
            log.warning("simulator.faults_refused", reason=str(error))
        else:
            self.faults_error = None
            log.info("simulator.faults_changed")

    def _look(self) -> tuple[int, int] | None:
        if self.settings.faults is None:
            return None
        try:
            seen = self.settings.faults.stat()
        except OSError:
            return None
        return seen.st_mtime_ns, seen.st_size

    def _spawn(self, chore: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


async def serve(settings: Settings, *, ready: Callable[[str], None] | None = None, stop: asyncio.Event) -> None:
    """
    Run a simulator until *stop*; *ready* is called with its URL once it listens. FaultsError, OSError at start.

    It takes the process for its own: the garbage collector is tuned for very many objects that stay (a fifth of the
    CPU of a create otherwise).
    """
    async with Simulator(settings) as simulator:
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 50, 100)
        if ready is not None:
            ready(simulator.url)
        await stop.wait()


def _speak(talk: Conversation, reply: Reply) -> None:
    """Write the answer, or do with the connection what the trouble says."""
    match reply.trouble:
        case None:
            talk.answer(reply.answer.raw())
        case Trouble.TIMEOUT_BEFORE_ACCEPT | Trouble.TIMEOUT_AFTER_ACCEPT:
            pass
        case Trouble.RESET_BEFORE_ANSWER | Trouble.RESET_AFTER_ACCEPT:
            talk.reset()
        case Trouble.HTML_502 | Trouble.HTML_502_AFTER_ACCEPT:
            talk.answer(_PAGE_502)
        case Trouble.INTERNAL_ERROR_AFTER_ACCEPT:
            talk.answer(Answer(500, twilio.Refusal(20500).body()).raw())
        case Trouble.GARBAGE:
            talk.hang_up(_GARBAGE)
        case Trouble.TRUNCATED:
            raw = reply.answer.raw()
            talk.hang_up(raw[: len(raw) - len(reply.answer.body) // 2])
        case Trouble.EMPTY:
            talk.answer(Answer(201, b"").raw())
