"""
The configuration as values: every key, its type and its default. ``config.toml`` explains them, key by key.

``settings.load`` is the only road from a file to these; a part of the daemon is given the smallest piece it needs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping  # noqa: TC003 - pydantic reads the annotations at run time
from enum import StrEnum
from operator import itemgetter
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, SecretStr, field_validator, model_validator

from daemon.core.groups import Group, groups
from daemon.core.message import Intent
from daemon.settings.duration import DAY, HOUR, Duration
from daemon.settings.intents import INTENTS, UNTOLD, IntentSettings
from daemon.settings.shapes import (
    EMBEDDED,
    AccountSid,
    ApiKeySid,
    DatabaseUrl,
    DirectUrl,
    LocalPath,
    Region,
    Template,
    WebUrl,
    is_loopback,
    quoted,
)
from daemon.settings.table import Table

# What the simulator inside the process knows us by: public, and worth nothing anywhere else.
TRIAL_ACCOUNT_SID = "AC" + "0" * 32
TRIAL_AUTH_TOKEN = "trial-token-of-the-simulator"  # noqa: S105


class Database(Table):
    """Where the tables are. The addresses may hold a password: never shown."""

    url: DatabaseUrl = Field(default=EMBEDDED, repr=False)
    pooler: Literal["none", "transaction"] = "none"
    listen_url: DirectUrl | None = Field(default=None, repr=False)
    trial: bool = False
    connections: int = Field(default=4, ge=2, le=100)
    timeout_s: float = Field(default=10.0, gt=0)

    @property
    def embedded(self) -> bool:
        """Whether the private Postgres from the wheel serves."""
        return self.url == EMBEDDED

    @property
    def pooled(self) -> bool:
        """Whether sessions are lent out for one transaction at a time."""
        return self.pooler == "transaction" and not self.embedded

    @property
    def deaf(self) -> bool:
        """Whether nothing can be listened to: LISTEN does not pass through a transaction pooler."""
        return self.pooled and self.listen_url is None


class Daemon(Table):
    """The process itself."""

    state: LocalPath = Path("state")
    drain_s: float = Field(default=20.0, ge=0)
    in_hand: int = Field(default=2_000, ge=1)
    receipts_pending: int = Field(default=20_000, ge=1)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"


class Public(Table):
    """What the internet may reach: receipts, replies, ``/ping``."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535)
    url: WebUrl | None = None


class Operator(Table):
    """What only operators may reach: pages, health, metrics."""

    host: str = "127.0.0.1"
    port: int = Field(default=8081, ge=0, le=65_535)
    token: SecretStr | None = None

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.token is None and not is_loopback(self.host):
            raise ValueError(f"host {quoted(self.host)} is open to others, so a token is required: give token_file")
        return self


class Web(Table):
    """The two listeners."""

    public: Public = Public()
    operator: Operator = Operator()


class _TwilioDialect(Table):
    """What both kinds that speak Twilio's dialect have in common."""

    connections: int = Field(default=64, ge=1, le=10_000)
    timeout_s: float = Field(default=15.0, gt=0, le=120)
    client: Literal["wire", "aiohttp"] = "wire"
    # How Twilio repeats its callbacks to us: 5 times, on any trouble, within 15 s (facts: twilio 4.4).
    callback_options: str = "rc=5&rp=all&ct=2000&rt=2500&tt=15000"


class Twilio(_TwilioDialect):
    """Twilio's Programmable Messaging. The token signs callbacks; with an API key, requests are signed by that."""

    kind: Literal["twilio"] = "twilio"
    account_sid: AccountSid
    auth_token: SecretStr
    secondary_auth_token: SecretStr | None = None
    api_key_sid: ApiKeySid | None = None
    api_key_secret: SecretStr | None = None
    base_url: WebUrl = "https://api.twilio.com"

    @model_validator(mode="after")
    def _whole_key(self) -> Self:
        if (self.api_key_sid is None) != (self.api_key_secret is None):
            raise ValueError("api_key_sid and the api_key_secret go together: give both or none")
        return self


class Simulator(_TwilioDialect):
    """The fake provider, with public credentials. Without ``base_url`` one is started inside the process."""

    kind: Literal["simulator"] = "simulator"
    account_sid: AccountSid = TRIAL_ACCOUNT_SID
    auth_token: SecretStr = SecretStr(TRIAL_AUTH_TOKEN)
    base_url: WebUrl | None = None
    faults: LocalPath | None = None

    secondary_auth_token: ClassVar[SecretStr | None] = None
    api_key_sid: ClassVar[str | None] = None
    api_key_secret: ClassVar[SecretStr | None] = None


Provider: TypeAlias = Annotated[Twilio | Simulator, Field(discriminator="kind")]
PROVIDERS: Mapping[str, type[Twilio | Simulator]] = {"twilio": Twilio, "simulator": Simulator}


class SenderType(StrEnum):
    """What an address is; decides how fast it may speak when nothing else is said."""

    SHORT_CODE = "short_code"
    LONG_CODE = "long_code"
    TOLL_FREE = "toll_free"
    ALPHANUMERIC = "alphanumeric"


_NUMBER = re.compile(r"\+[1-9][0-9]{6,14}")
_ADDRESSES: Mapping[SenderType, tuple[re.Pattern[str], str]] = {
    SenderType.SHORT_CODE: (re.compile(r"[0-9]{3,8}"), "3 to 8 digits"),
    SenderType.LONG_CODE: (_NUMBER, "+ and 7 to 15 digits (E.164)"),
    SenderType.TOLL_FREE: (_NUMBER, "+ and 7 to 15 digits (E.164)"),
    SenderType.ALPHANUMERIC: (
        re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9 &_+-]{1,11}"),
        "1 to 11 letters, digits, spaces or & _ + -, at least one a letter",
    ),
}


def default_rate(kind: object, country: object) -> float:
    """
    Segments per second of a sender of which nothing else is known (facts: twilio 6.1).

    A long code speaks at 1/s in the United States and Canada and at 10/s elsewhere; of unknown country, at the slower.
    """
    match kind:
        case SenderType.SHORT_CODE:
            return 100.0
        case SenderType.TOLL_FREE:
            return 3.0
        case SenderType.ALPHANUMERIC:
            return 10.0
        case _:
            return 1.0 if country in {None, "US", "CA"} else 10.0


class Sender(Table):
    """One address that messages come from."""

    address: str
    provider: str
    type: SenderType = SenderType.LONG_CODE
    country: Region | None = None
    rate: float = Field(default_factory=lambda known: default_rate(known.get("type"), known.get("country")), gt=0)
    queue_window: Duration = Duration(10 * HOUR)
    campaign: str | None = None

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        form, expected = _ADDRESSES[self.type]
        if not form.fullmatch(self.address):
            raise ValueError(f"address {quoted(self.address)} is no {self.type}: expected {expected}")
        return self


class Service(Table):
    """A pool of senders and what holds for the messages sent through it."""

    senders: tuple[str, ...] = Field(min_length=1)
    validity: Duration | None = None
    sticky: bool = False
    default_region: Region | None = None


DEAD_BY_INTENT: Mapping[Intent, Duration] = {Intent.OTP: Duration(DAY)}  # a code that failed yesterday helps nobody


class Retention(Table):
    """How long what is done is kept, counted from the end of a message. ``daemon.retention`` carries it out."""

    outbox: Duration = Duration(90 * DAY)
    body: Duration = Duration(30 * DAY)
    idempotency: Duration = Duration(30 * DAY)
    receipts: Duration = Duration(30 * DAY)
    dead: Duration = Duration(90 * DAY)
    dead_by_intent: Mapping[Intent, Duration] = DEAD_BY_INTENT

    @field_validator("dead_by_intent")
    @classmethod
    def _on_top_of_the_defaults(cls, told: Mapping[Intent, Duration]) -> Mapping[Intent, Duration]:
        return {**DEAD_BY_INTENT, **told}


class Settings(Table):
    """The whole configuration: read once, validated whole, never changed, only replaced."""

    database: Database = Database()
    daemon: Daemon = Daemon()
    web: Web = Web()
    providers: Mapping[str, Provider] = Field(default_factory=dict)
    senders: tuple[Sender, ...] = ()
    services: Mapping[str, Service] = Field(default_factory=dict)
    intents: Mapping[Intent, IntentSettings] = Field(default_factory=lambda: dict(INTENTS))
    templates: Mapping[str, Template] = Field(default_factory=dict)
    retention: Retention = Retention()

    def intent(self, word: str | None) -> IntentSettings:
        """How messages of intent *word* are treated; those without one, or with a foreign word, with most care."""
        try:
            return self.intents[Intent(word or "")]
        except ValueError:
            return UNTOLD

    @property
    def hands(self) -> int:
        """
        How many messages may be claimed and not yet settled: what was said, or else enough that no connection and no
        sender waits for another. Each is 2 KB, so it is not two for each of 10,000 connections.
        """
        if "in_hand" in self.daemon.model_fields_set:
            return self.daemon.in_hand
        connections = sum(provider.connections for provider in self.providers.values())
        return max(self.daemon.in_hand + connections, 2 * len(self.senders))

    def groups(self) -> list[Group]:
        """What one daemon must hold together, under one lease."""
        campaigns: dict[str, list[str]] = {}
        for sender in self.senders:
            if sender.campaign is not None:
                campaigns.setdefault(f"{sender.provider}\0{sender.campaign}", []).append(sender.address)
        return groups(
            {name: service.senders for name, service in self.services.items()},
            senders=[sender.address for sender in self.senders],
            limits=list(campaigns.values()),
        )

    def digest(self) -> str:
        """
        A short name of everything that decides who sends what, from where and how fast.

        The same in every process with the same rules; secrets, addresses of the database, listeners and log do not
        enter. A group is not taken over by a daemon whose digest differs from its live owner's (DESIGN 5.16).
        """
        rules = {
            "providers": {
                name: [provider.kind, provider.account_sid, provider.base_url]
                for name, provider in self.providers.items()
            },
            "senders": sorted((sender.model_dump(mode="json") for sender in self.senders), key=itemgetter("address")),
            "services": {name: service.model_dump(mode="json") for name, service in self.services.items()},
            "intents": {word: intent.model_dump(mode="json") for word, intent in self.intents.items()},
            "templates": dict(self.templates),
        }
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]
