"""
The desk: what this daemon knows at this moment, laid out for the decisions of ``core/``.

Settings (replaced whole by a reload), who has opted out, what is paused, what was cancelled, and the clock.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from daemon.core import address, permission, template
from daemon.core.inspection import Known, Refusal, Row, inspect, outdated
from daemon.core.lifecycle import Status
from daemon.core.segments import segments
from daemon.core.token import seal
from daemon.database import as_object

if TYPE_CHECKING:
    from uuid import UUID

    from asyncpg import Record

    from daemon.clock import Clock
    from daemon.core.backoff import Patience
    from daemon.core.message import Message
    from daemon.core.permission import Go, Hold, Refuse
    from daemon.core.verdict import Verdict
    from daemon.leases import Leases
    from daemon.ledger import Exchange
    from daemon.observer import Observer
    from daemon.settings import Service, Settings

CANCELED_MAX = 100_000  # cancellations remembered; older ones have long taken effect


class Desk:
    """What is known now. The courier asks it; signals, leases and reloads keep it up to date."""

    def __init__(self, settings: Settings, clock: Clock, *, observer: Observer) -> None:
        self._observer = observer
        self.key = b""  # signs the tokens of callback URLs; the database has it
        self.public_url = ""  # under which providers reach us
        self.tick = clock.tick
        # What the database's clock says at our tick nought: all it stores and judges is by its own. Not by our wall
        # clock: that may jump, and what is judged to be too late has ended for good. Until it is asked ours must do.
        self._zero = clock.now() - clock.tick()
        self.leases: Leases | None = None  # set once, by app.py: leases need the desk and the desk the leases
        self.opted_out: set[tuple[str, str]] = set()  # (tenant, E.164); a tenant of '' stands for all
        self.pauses: dict[str, str] = {}
        self.outdated: set[tuple[str, int]] = set()  # lanes and levels in which something too late was met
        self.canceled: set[UUID] = set()
        self._cancellations: deque[UUID] = deque()
        self._providers: dict[str, str] = {}  # sender -> provider
        self.held: str | None = None  # why nothing at all may be sent: a copied database
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Take up *settings*, whole."""
        self.settings = settings
        groups = settings.groups()
        self.lanes = {name: group.name for group in groups for name in group.services}  # lane -> group
        self.lanes |= {f"@{address}": group.name for group in groups for address in group.senders}
        # Those of removed senders stay known: something of theirs may be on the wire, or in doubt.
        self._providers |= {sender.address: sender.provider for sender in settings.senders}
        self._patience: dict[str | None, Patience] = {}  # by intent, as the courier meets them
        self._known = Known(
            services=frozenset(settings.services),
            senders=frozenset(sender.address for sender in settings.senders),
            templates=dict(settings.templates),
            regions={name: service.default_region for name, service in settings.services.items()},
        )

    def now(self) -> float:
        """What time it is for the database, as far as we know."""
        return self._zero + self.tick()

    def told_the_time(self, now: float) -> None:
        """The database has just said what time it is there."""
        self._zero = now - self.tick()

    def warm(self) -> None:
        """Compile the numbering plans of our senders' countries now (+1 takes 75 ms), not at the first login code."""
        for country in {sender.country for sender in self.settings.senders if sender.country}:
            address.warm(country)

    # What is asked of a message, in the order in which the courier asks.

    def prepare(self, message: Message) -> Refusal | None:
        """Judge the row, and fill in what is sent: the text, its segments, the number as E.164."""
        message.expires_at = self._useless_at(message.service, message.first_due, message.expires_at)
        refusal = inspect(message, self._known, self.now())
        if refusal is not None:
            if refusal.status is Status.EXPIRED:
                self.outdated.add((message.lane, message.level))
            return refusal
        region = address.home(message.recipient)
        if region is None:  # not written as it should be
            message.recipient = self.number(message.recipient, message.service)
            region = address.home(message.recipient)
        message.region = region or None
        message.text = self.text_of(message.body, message.template, message.variables)
        message.segments = segments(message.text)
        return None

    def inspect(self, row: Record) -> Refusal | None:
        """Judge a row of the queue that nobody has taken yet."""
        service = row["service"] or "default"
        first_due = max(row["created_at"], row["due_at"]).timestamp()
        expires = row["useless_at"].timestamp() if row["useless_at"] is not None else None
        if row["finite"] is False:
            return Refusal.failed("send_at is infinite")
        return inspect(
            Row(
                recipient=row["recipient"],
                channel=row["channel"] or "sms",
                service=service,
                sender=row["sender"],
                body=row["body"],
                template=row["template"],
                variables=as_object(row["variables"]),
                media=tuple(row["media"] or ()),
                intent=row["intent"],
                first_due=first_due,
                expires_at=self._useless_at(service, first_due, expires),
                on_ambiguous=row["on_ambiguous"],
            ),
            self._known,
            self.now(),
        )

    def too_late(self, row: Record) -> Refusal | None:
        """Judge nothing but the hour of a row."""
        expires_at = self._useless_at(row["service"] or "default", row["first_due"], row["expires_at"])
        return outdated(row["first_due"], expires_at, self.now())

    def unreadable(self, row: Record) -> Refusal | None:
        """Judge nothing but the number of a row."""
        service = self.settings.services.get(row["service"] or "default")
        found = address.read(row["recipient"] or "", "sms", service.default_region if service else None)
        return (
            Refusal(Status.SUPPRESSED, f"bad number: {found.reason}") if isinstance(found, address.Unreadable) else None
        )

    def ask(self, message: Message, sender: str) -> Go | Hold | Refuse:
        """May it leave now, by *sender*? Asked last, at the very moment."""
        now = self.now()
        if self.leases is None or not self.leases.speaks_for(message.group, sender):
            return permission.Hold(now, "the lease of its senders is running out")
        return permission.ask(
            message,
            now=max(now, message.due_at),  # the claim has shown it to be due
            canceled=message.id in self.canceled,
            opted_out=bool(self.opted_out)
            and ((message.tenant, message.recipient) in self.opted_out or ("", message.recipient) in self.opted_out),
            paused=self.held or (self._stopped(message.service, sender) if self.pauses else None),
        )

    def _stopped(self, service: str, sender: str) -> str | None:
        words = "all", f"service:{service}", f"sender:{sender}", f"provider:{self._providers[sender]}"
        return next((why for word in words if (why := self.paused(word))), None)

    def patience(self, message: Message) -> Patience:
        """How often and how patiently its intent is retried."""
        known = self._patience.get(message.intent)
        if known is None:
            known = self._patience[message.intent] = self.settings.intent(message.intent).patience
        return known

    def callback_url(self, message: Message, provider: str) -> str:
        """Where receipts of this attempt shall come: its token tells whose they are."""
        return f"{self.public_url}/callbacks/{provider}/{seal(self.key, message.id, message.attempt)}"

    def validity(self, message: Message) -> float | None:
        """Seconds of use it has left; None: no end."""
        return None if message.expires_at is None else max(message.expires_at - self.now() - 1.0, 1.0)

    def serves(self, message: Message) -> bool:
        """Whether its lane is still ours: a reload may have removed it since the claim."""
        return message.lane in self.lanes

    def left(self, message: Message, sender: str, tick: float) -> None:
        """Its first byte is leaving, at *tick*."""
        self._observer.left(message, self._providers[sender], sender, tick)

    def judged(self, message: Message, verdict: Verdict, exchange: Exchange | None) -> None:
        """What became of it: for those who watch."""
        self._observer.judged(message, verdict, exchange)

    # What else is looked up here.

    def paused(self, what: str) -> str | None:
        """Why *what* is paused; None when it is not."""
        return self.pauses.get(what)

    def provider_of(self, sender: str) -> str | None:
        """The provider of *sender*."""
        return self._providers.get(sender)

    def senders_of(self, row: Record) -> tuple[str, ...]:
        """By whom a message in doubt was sent, or, where no log tells, may have been."""
        if row["sender"] is not None:
            return (row["sender"],)
        if row["lane"].startswith("@"):
            return (row["lane"][1:],)
        service = self.settings.services.get(row["lane"])
        return service.senders if service is not None else ()

    def group_of(self, lane: str) -> str | None:
        """The group whose lease covers *lane*."""
        return self.lanes.get(lane)

    def cancel(self, id: UUID) -> None:
        """The application wants this one stopped, if it still can be."""
        if id not in self.canceled:
            self.canceled.add(id)
            self._cancellations.append(id)
            if len(self._cancellations) > CANCELED_MAX:
                self.canceled.discard(self._cancellations.popleft())

    def uncancel(self, id: UUID) -> None:
        """An operator has replayed it: that is the later word."""
        if id in self.canceled:
            self.canceled.remove(id)
            self._cancellations.remove(id)

    def text_of(self, body: str | None, name: str | None, variables: object) -> str:
        """What is sent. Empty when there is none: a template that is not known, or lacks a variable."""
        if name is None:
            return body or ""
        if name not in self._known.templates:
            return ""
        filled = template.render(self._known.templates[name], variables if isinstance(variables, dict) else {})
        return filled if isinstance(filled, str) else ""

    def cost(self, row: Record) -> int:
        """Segments of a row that another daemon had in hand."""
        return segments(self.text_of(row["body"], row["template"], as_object(row["variables"])))

    def _useless_at(self, service: str, first_due: float, expires_at: float | None) -> float | None:
        settings: Service | None = self.settings.services.get(service)
        if settings is None or settings.validity is None:
            return expires_at
        end = first_due + settings.validity
        return end if expires_at is None else min(end, expires_at)

    def number(self, recipient: str, service: str) -> str:
        """*recipient* as E.164, as *service* reads it; as it stands if that cannot be."""
        settings = self.settings.services.get(service)
        found = address.read(recipient, "sms", settings.default_region if settings else None)
        return found.e164 if isinstance(found, address.Address) else recipient
