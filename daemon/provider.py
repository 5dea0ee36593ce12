"""
The contract of a provider: a *dialect*, pure functions between values and bytes.

A dialect opens no socket, reads no clock and keeps no state. One file each under ``providers/``, readable beside the
provider's manual. What is not HTTP (SMPP, SMTP) will satisfy the wider seam ``send(message) -> Outcome`` instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from daemon.core.message import Attempt, Message
    from daemon.core.outcome import Accepted, Outcome
    from daemon.core.receipt import Receipt


class Request(NamedTuple):
    """One HTTP request, ready to be written."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes = b""


class Response(NamedTuple):
    """One whole HTTP answer. Header names are lower case; the body is at most 64 KiB, never decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Callback:
    """What a provider posted to us, untouched: signatures are computed over these very bytes."""

    method: str
    target: str  # raw path and query as they stood on the request line
    headers: Mapping[str, str]  # names in lower case
    body: bytes


@dataclass(frozen=True, slots=True)
class Forged:
    """The signature does not fit. Nothing of it may be believed."""

    reason: str
    status: int = 403  # what this provider's manual wants answered


@dataclass(frozen=True, slots=True)
class Absent:
    """Asked, and the provider knows of no such message (evidence, not proof: logs lag)."""


@dataclass(frozen=True, slots=True)
class Unclear:
    """Asked, and the answer does not tell. Ask again later."""

    reason: str


@dataclass(frozen=True, slots=True)
class Inbound:
    """A message a person sent to one of our senders."""

    reference: str
    sender: str  # ours: the number written to
    recipient: str  # theirs: the number that wrote (E.164)
    body: str
    opt_out: str | None  # "STOP", "START", "HELP" when the provider has recognised one
    details: Mapping[str, str] = field(default_factory=dict)


Finding: TypeAlias = "Accepted | Absent | Unclear"
LastWord: TypeAlias = "Receipt | Absent | Unclear"


class Dialect(Protocol):
    """How one provider speaks. Bytes in, values out."""

    @property
    def name(self) -> str:
        """The provider's name in config.toml: ``[providers.NAME]``."""
        ...

    @property
    def idempotent(self) -> bool:
        """Whether sending the same attempt twice is harmless there (an idempotency key the provider honours)."""
        ...

    def ask(self, message: Message, sender: str, callback_url: str, validity_s: float | None) -> Request:
        """The request that sends *message* from *sender*; receipts shall come to *callback_url*."""
        ...

    def hear(self, response: Response) -> Outcome:
        """What the answer to :meth:`ask` means. Makes sense of any bytes; what it does not know is Uncertain."""
        ...

    def find(self, attempt: Attempt) -> Request | None:
        """The request that asks what became of *attempt*; None where a provider cannot be asked."""
        ...

    def named(self, response: Response) -> Sequence[str]:
        """The references that the answer to :meth:`find` names: who asks looks up which of them are taken."""
        ...

    def found(self, attempt: Attempt, response: Response) -> Finding:
        """What the answer to :meth:`find` says of *attempt*, which knows whose references are taken."""
        ...

    def fetch(self, reference: str) -> Request | None:
        """The request that asks for the latest word on what the provider calls *reference*; None where it cannot be."""
        ...

    def fetched(self, reference: str, response: Response) -> LastWord:
        """What the answer to :meth:`fetch` says: merged as if it had come as a receipt."""
        ...

    def receipts(self, callback: Callback) -> Sequence[Receipt] | Forged:
        """The delivery receipts in *callback*, once its signature is verified. Unreadable ones are an empty list."""
        ...

    def inbound(self, callback: Callback) -> Inbound | Forged | None:
        """The person's message in *callback*, once its signature is verified."""
        ...

    def reply(self) -> tuple[str, bytes]:
        """Content type and body of the answer to an inbound message (Twilio: empty TwiML)."""
        ...
