"""
The heart: one message, from the claim to its verdict.

What it asks is decided in ``core/``; what it does is one call each. Permission is asked last, because the wait for a
turn may have been long: :meth:`Courier._leaves` runs when a connection is open and the first byte is about to leave.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

import structlog

from daemon.core.lifecycle import Status
from daemon.core.permission import Hold, Refuse
from daemon.core.routing import Unroutable
from daemon.core.verdict import Again, Ended, Verdict, judge
from daemon.gates import NAP_S
from daemon.ledger import Exchange, word
from daemon.provider import Response
from daemon.router import Blocked, Route
from daemon.transport import Withdrawn

if TYPE_CHECKING:
    from daemon.core.message import Message
    from daemon.desk import Desk
    from daemon.journal import Journal
    from daemon.lanes import Turn
    from daemon.ledger import Ledger
    from daemon.router import Router

log = structlog.get_logger()

UNLOGGED_S = 5.0  # how soon a message comes back that found the disk full


class Courier:
    """Delivers messages: any number at a time, each in a task of its own."""

    def __init__(self, desk: Desk, router: Router, journal: Journal, ledger: Ledger) -> None:
        self._desk = desk
        self._router = router
        self._journal = journal
        self._ledger = ledger

    async def deliver(self, message: Message) -> None:
        """Carry *message* to its verdict. A bug of ours parks it; it never loops and never vanishes."""
        exchange: Exchange | None = None
        try:
            verdict, exchange = await self._carry(message)
        except Exception:
            log.exception("courier.stumbled", message_id=str(message.id))
            sent = "it may have been sent" if self._journal.knows(message.id, message.attempt) else "it was not sent"
            verdict = Ended(Status.DEAD, f"our own fault, {sent}; the log of this moment has the traceback")
        self._desk.judged(message, verdict, exchange)
        self._ledger.put(word(message, message.group, verdict, now=self._desk.now(), exchange=exchange))

    async def _carry(self, message: Message) -> tuple[Verdict, Exchange | None]:
        if not self._desk.serves(message):
            return Again(self._desk.now(), "given back: its lane was removed", spent=False), None
        self._journal.in_the_works(message.id, message.attempt)
        refusal = self._desk.prepare(message)
        self._journal.prepared()
        if refusal is not None:
            return Ended(refusal.status, refusal.reason), None
        match self._router.choose(message):
            case Route() as route:
                turn = route.lane.join(message.level, message.segments)
            case Unroutable(reason):
                return Ended(Status.FAILED, reason), None
            case Blocked(reason, wait_s):
                return Again(self._desk.now() + wait_s, reason, spent=False), None
        try:
            if not await turn:
                return Again(self._desk.now(), "given back: its daemon or sender was stopping", spent=False), None
            return await self._send(message, route, turn)
        finally:
            turn.back()

    async def _send(self, message: Message, route: Route, turn: Turn) -> tuple[Verdict, Exchange | None]:
        gate, sender = route.gate, route.lane.sender.address
        flight = gate.knock(message.level)
        if flight is None:
            return Again(self._desk.now() + NAP_S, f"provider {gate.name} is resting", spent=False), None
        desk = self._desk
        try:
            answer = await gate.link.exchange(  # named nowhere here, the request is forgotten as soon as it is written
                gate.dialect.ask(message, sender, desk.callback_url(message, gate.name), desk.validity(message)),
                deadline_s=gate.timeout_s,
                on_write=partial(self._leaves, message, sender, turn),
            )
            outcome = gate.dialect.hear(answer) if isinstance(answer, Response) else answer
            exchange = Exchange(gate.name, sender, outcome, gate.learn(flight, outcome))
        except Withdrawn as withdrawn:
            return withdrawn.args[0], None
        finally:
            gate.unused(flight)
        self._router.learn(route, outcome)
        patience, now = self._desk.patience(message), self._desk.now()
        return judge(
            message, outcome, patience=patience, now=now, roll=random.random(), idempotent=gate.dialect.idempotent
        ), exchange

    def _leaves(self, message: Message, sender: str, turn: Turn) -> None:
        """The last moment before the first byte: may it still? Then it is written down, and its turn is spent."""
        match self._desk.ask(message, sender):
            case Refuse(status, reason):
                raise Withdrawn(Ended(status, reason))
            case Hold(until, reason):
                raise Withdrawn(Again(until, reason, spent=False))
        tick = self._desk.tick()
        try:
            self._journal.dispatched(message.id, message.attempt, sender, message.segments, tick)
        except OSError:  # what is not written down does not leave; the log itself has said why
            reason = "held: the dispatch log cannot be written"
            raise Withdrawn(Again(self._desk.now() + UNLOGGED_S, reason, spent=False)) from None
        tick = self._desk.tick()  # writing may have taken its time, a new file more: the pace counts from the bytes
        turn.left(tick)
        self._desk.left(message, sender, tick)
