"""
What shall go wrong: one frozen model, every key with a default that harms nobody.

As TOML it is a faults file (``faults.toml`` beside this module shows every key), as JSON the body of
``PUT /_simulator/faults``. All mistakes are told at once, each with its key, its value and what was expected.
"""

from __future__ import annotations

import math
import re
import tomllib
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path  # noqa: TC003 (pydantic and readers of signatures look it up at run time)
from statistics import NormalDist
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic_core import ErrorDetails

Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0, le=86_400_000)]
Code = Annotated[str, Field(pattern=r"^[1-9]\d{4,5}$")]  # a code of Twilio's dictionary

_P99 = NormalDist().inv_cdf(0.99)


class Trouble(StrEnum):
    """What may happen to a create besides a plain refusal. The ledger knows which of these were accepted."""

    TIMEOUT_BEFORE_ACCEPT = "timeout_before_accept"  # not accepted; never answers
    RESET_BEFORE_ANSWER = "reset_before_answer"  # not accepted; TCP reset
    HTML_502 = "html_502"  # not accepted; the error page of a proxy
    TIMEOUT_AFTER_ACCEPT = "timeout_after_accept"  # accepted; never answers
    RESET_AFTER_ACCEPT = "reset_after_accept"  # accepted; TCP reset
    HTML_502_AFTER_ACCEPT = "html_502_after_accept"  # accepted; the error page of a proxy
    INTERNAL_ERROR_AFTER_ACCEPT = "20500_after_accept"  # accepted; HTTP 500, code 20500
    GARBAGE = "garbage"  # accepted; answers with bytes that are no HTTP
    TRUNCATED = "truncated"  # accepted; a 201 that breaks off in the middle of its body
    EMPTY = "empty_201"  # accepted; a 201 without a body


UNACCEPTED = frozenset({Trouble.TIMEOUT_BEFORE_ACCEPT, Trouble.RESET_BEFORE_ANSWER, Trouble.HTML_502})


class FaultsError(ValueError):
    """Faults that cannot be used. The message has one line for each mistake."""


def _check_sum(shares: Iterable[float]) -> None:
    if (total := sum(shares)) > 1 + 1e-9:
        raise ValueError(f"the shares add up to {total:g}, more than 1")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Fixed(_Frozen):
    """Always the same delay."""

    kind: Literal["fixed"] = "fixed"
    ms: Milliseconds = 0.0

    def seconds(self, roll: float) -> float:
        """The delay that the throw *roll* in [0, 1) stands for."""
        return self.ms / 1000


class Uniform(_Frozen):
    """Any delay between two bounds."""

    kind: Literal["uniform"]
    from_ms: Milliseconds
    to_ms: Milliseconds

    @model_validator(mode="after")
    def _in_order(self) -> Uniform:
        if self.from_ms > self.to_ms:
            raise ValueError("from_ms is greater than to_ms")
        return self

    def seconds(self, roll: float) -> float:
        """The delay that the throw *roll* in [0, 1) stands for."""
        return (self.from_ms + roll * (self.to_ms - self.from_ms)) / 1000


class LogNormal(_Frozen):
    """Half the delays below the median, one in a hundred above p99: the usual shape of a network."""

    kind: Literal["lognormal"]
    median_ms: Annotated[float, Field(gt=0, le=86_400_000)]
    p99_ms: Annotated[float, Field(gt=0, le=86_400_000)]

    @model_validator(mode="after")
    def _in_order(self) -> LogNormal:
        if self.median_ms > self.p99_ms:
            raise ValueError("median_ms is greater than p99_ms")
        return self

    def seconds(self, roll: float) -> float:
        """The delay that the throw *roll* in [0, 1) stands for."""
        sigma = math.log(self.p99_ms / self.median_ms) / _P99
        return self.median_ms * math.exp(sigma * NormalDist().inv_cdf(max(roll, 1e-9))) / 1000


Delay = Annotated[Fixed | Uniform | LogNormal, Field(discriminator="kind")]


class Throttle(_Frozen):
    """Answer 429 to a sender that would exceed its segments per second, in any sliding second."""

    rate: Annotated[float, Field(ge=1)] | None = None  # of each sender without a rate of its own; None: no limit
    rates: dict[str, Annotated[float, Field(ge=1)]] = {}
    retry_after_s: Annotated[int, Field(ge=0)] | None = None  # the Retry-After header; None: none is sent

    def of(self, sender: str) -> float | None:
        """The limit of *sender* in segments per second."""
        return self.rates.get(sender, self.rate)


class ReceiptFaults(_Frozen):
    """How messages end, and what their receipts do."""

    enabled: bool = True  # False: messages live on, but nobody is called
    sent: Delay = Fixed(ms=100)  # from acceptance to "sent"
    final: Delay = Fixed(ms=400)  # from "sent" to "delivered" or "undelivered"
    undelivered: dict[Code, Share] = {}  # share of messages that end so, by ErrorCode
    failed: dict[Code, Share] = {}  # share of messages that fail before they are sent, by ErrorCode
    missing: Share = 0.0  # share of messages whose final receipt never comes
    late: Share = 0.0  # share of messages whose final receipt comes late_by later
    late_by: Delay = Fixed(ms=30_000)
    duplicates: Share = 0.0  # share of messages whose every receipt comes twice
    reversed: Share = 0.0  # share of messages whose receipts come last one first

    @model_validator(mode="after")
    def _at_most_all(self) -> ReceiptFaults:
        _check_sum((*self.undelivered.values(), *self.failed.values()))
        return self


class Drop(_Frozen):
    """A silent drop: accepted, never delivered."""

    prefix: Annotated[str, Field(min_length=1)]  # of the recipient's number
    share: Share = 1.0
    receipt: Literal["nothing", "sent", "undelivered"] = "sent"  # the last one that comes
    code: Code = "30008"  # of "undelivered"


class Outage(_Frozen):
    """Everything stops."""

    kind: Literal["none", "refuse", "hang", "closed"] = "none"  # 503 | accepts connections only | nobody listens
    for_s: Annotated[float, Field(gt=0)] | None = None  # ends by itself after so many seconds


class Faults(_Frozen):
    """Everything that shall go wrong. The default is a provider without faults."""

    seed: int = 1  # the same seed and the same order of requests give the same fates
    latency: Delay = Fixed()  # from the request to its answer; the ledger is written at once
    errors: dict[str, Share] = {}  # share of creates, by code of a refusal or by Trouble
    throttle: Throttle = Throttle()
    receipts: ReceiptFaults = ReceiptFaults()
    drops: tuple[Drop, ...] = ()  # the first that fits
    list_lag_ms: Milliseconds = 0.0  # how long a new message is missing from lists
    outage: Outage = Outage()

    @field_validator("errors")
    @classmethod
    def _known(cls, errors: dict[str, float]) -> dict[str, float]:
        names = [trouble.value for trouble in Trouble]
        for name in errors:
            if name not in names and not re.fullmatch(r"[1-9]\d{4,5}", name):
                raise ValueError(f"{name!r} is neither a code of Twilio nor a trouble{_meant(name, names)}")
        _check_sum(errors.values())
        return errors


def read_faults(path: Path) -> Faults:
    """The faults of a TOML file. Raises FaultsError, also when it cannot be read."""
    try:
        with path.open("rb") as file:
            return parse_faults(tomllib.load(file))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FaultsError(f"{path}: {error}") from error


def parse_faults(content: Mapping[str, object]) -> Faults:
    """The faults that a parsed TOML or JSON object describes. Raises FaultsError."""
    try:
        return Faults.model_validate(content)
    except ValidationError as error:
        raise FaultsError("\n".join(map(_told, error.errors()))) from error


def _told(detail: ErrorDetails) -> str:
    where = ".".join(str(part) for part in detail["loc"]) or "faults"
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key{_meant(str(detail['loc'][-1]), _keys(detail['loc']))}"
    return f"{where} = {detail['input']!r}: {detail['msg'].removeprefix('Value error, ')}"


def _keys(loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the table in which the unknown one at *loc* stands."""
    tables: Mapping[str, tuple[type[BaseModel], ...]] = {
        "receipts": (ReceiptFaults,),
        "throttle": (Throttle,),
        "drops": (Drop,),
        "outage": (Outage,),
    }
    models: tuple[type[BaseModel], ...] = (Fixed, Uniform, LogNormal)
    if loc[-2:-1] not in {(kind,) for kind in ("fixed", "uniform", "lognormal")}:
        models = (Faults,) if len(loc) == 1 else tables.get(str(loc[0]), models)
    return [key for model in models for key in model.model_fields]


def _meant(word: str, words: list[str]) -> str:
    close = get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
