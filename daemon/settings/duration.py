"""A span of time as people write it: ``120s``, ``5 min``, ``1h 30m``, ``30d``; a bare number is seconds."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from pydantic_core import core_schema

from daemon.settings.shapes import quoted

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler

SECOND, MINUTE, HOUR, DAY = 1.0, 60.0, 3_600.0, 86_400.0

_UNITS = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 0.001),
    **dict.fromkeys(("s", "sec", "second", "seconds"), SECOND),
    **dict.fromkeys(("m", "min", "minute", "minutes"), MINUTE),
    **dict.fromkeys(("h", "hour", "hours"), HOUR),
    **dict.fromkeys(("d", "day", "days"), DAY),
    **dict.fromkeys(("w", "week", "weeks"), 7 * DAY),
}
_PART = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)\s*")
_EXPECTED = 'expected a span of time such as "120s", "5 min", "10h" or "30d"'
_LONGEST = 36_525 * DAY  # a century: past it a typing error is likelier than a wish


class Duration(float):
    """Seconds, always more than none. Calculates as a float, and is shown as people write it."""

    __slots__ = ()

    @classmethod
    def read(cls, value: object) -> Duration:
        """The span that *value*, as it stands in a configuration, means; ValueError when it means none."""
        match value:
            case bool():
                raise ValueError(f"{quoted(value)}: {_EXPECTED}")
            case int() | float():
                seconds = float(value) if abs(value) <= _LONGEST else math.inf  # no float holds every number
            case str():
                seconds = _spoken(value)
            case _:
                raise ValueError(_EXPECTED)
        if not (math.isfinite(seconds) and 0 < seconds <= _LONGEST):
            raise ValueError(f"{quoted(value)} is no usable span of time: {_EXPECTED}")
        return cls(seconds)

    def __str__(self) -> str:
        for unit, size in (("d", DAY), ("h", HOUR), ("min", MINUTE)):
            if self >= size and float(self) % size == 0:
                return f"{float(self) / size:g}{unit}"
        return f"{float(self):.9f}".rstrip("0").rstrip(".") + "s"

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _inner: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(cls.read)


def _spoken(text: str) -> float:
    seconds, at = 0.0, 0
    words = text.lower()
    while part := _PART.match(words, at):
        size = _UNITS.get(part[2])
        if size is None:
            break
        seconds, at = seconds + float(part[1]) * size, part.end()
    if not text or at != len(words):
        raise ValueError(f"{quoted(text)}: {_EXPECTED}")
    return seconds
