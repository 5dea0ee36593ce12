"""
A catalogue of odd rows: every column's worst values, one at a time and mixed by seeded dice.

Postgres can store all of them; what it refuses itself is another test's business.
"""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GOOD: Mapping[str, Any] = {"recipient": "+12025550123", "service": "fast", "body": "fine"}
COLUMNS = (
    "recipient", "service", "body", "sender", "channel", "intent", "template", "variables", "subject", "content", "media",
    "send_at", "validity", "expires_at", "idempotency_key", "order_key", "tags", "on_ambiguous", "fallback",
    "callback_url", "traceparent", "tenant",
)  # fmt: skip
NOW = datetime.now(UTC)
FAR = datetime(9999, 12, 31, tzinfo=UTC)
_DEEP = "[" * 10_000 + "]" * 10_000
_STRANGE = (
    "", " ", "\t\r\n", "\x01\x02\x1b[31m", "\u200b", "\u202etxet", "e\u0301" * 40, "𝟙𝟚𝟛", "١٢٣", "＋１２０２５５５０１２３", "👩‍👩‍👧‍👦" * 30,
    "'; DROP TABLE outrider.outbox; --", "<script>alert(1)</script>", "%s%s%n", "${jndi:ldap://x}", "../../etc/passwd",
    "a\r\nX-Injected: 1", "\ufeff", "\ufffe", "\u2028\u2029", "x" * 10_000, "ß" * 161, "€" * 81, "€" * 1601, "NULL", "None",
)  # fmt: skip
VALUES: Mapping[str, tuple[Any, ...]] = {
    "recipient": (
        None, *_STRANGE, "+", "++12025550123", "+0", "+1", "+1202555012", "+120255501234", "+12025550123x", "12025550123",
        "2025550123", "(202) 555-0123", "tel:+12025550123", "+1-202-555-0123;ext=7", "0012025550123", "+999123456789",
        "+19005550123", "+15005550006", "72345", "911", "+4915112345678", "+8613800138000", "+" + "1" * 15, "+" + "9" * 400,
        "a@example.com", "whatsapp:+12025550123", "+1 202 555 0123\n", "+٢٠١", "+12025550123,+12025550124",
    ),
    "service": (None, *_STRANGE, "FAST", "fast ", "slow;", "@72345", "default"),
    "sender": (*_STRANGE, "+15559999999", "72345 ", "@72345"),
    "channel": (*_STRANGE, "SMS", "email", "whatsapp", "rcs", "push", "webhook", "pigeon"),
    "intent": (*_STRANGE, "OTP", "otp", "marketing", "otp,marketing"),
    "body": (None, *_STRANGE, "x" * 160, "x" * 161, "x" * 1600, "x" * 1601, "^" * 80, "^" * 81, "é" * 70, "ё" * 71,
             *("x" * many for many in (153, 306, 307, 459, 460)), *("ё" * many for many in (70, 134, 135, 201, 202)),
             "€" * 80, "x" * 159 + "€", "x" * 152 + "^" + "x" * 153, "ё" * 69 + "👩", "ё" * 66 + "👩" * 40, "👩‍👩‍👧‍👦" * 100,
             "{code}", "&=+%"),
    "template": (*_STRANGE, "code", "CODE", "nope"),
    "variables": ("null", "1", '"text"', "[]", "{}", '{"code": null}', '{"code": {"a": 1}}', '{"code": 1e400}', _DEEP,
                  json.dumps({"code": "x" * 5000}), json.dumps({str(n): n for n in range(500)}), '{"code": "{code}"}',
                  '{"code": "{code}{code}", "{code}": "code"}'),
    "subject": _STRANGE,
    "content": ("null", "[]", '{"html": "<b>"}', _DEEP),
    "media": ([], [None], [""], ["not a url"], ["https://example.org/a.png"] * 50, ["file:///etc/passwd", None, "\r\n"]),
    "send_at": (datetime(1, 1, 1, tzinfo=UTC), FAR, NOW - timedelta(days=400),
                datetime.max, datetime.min),  # noqa: DTZ901 (asyncpg's words for the two infinities)
    "validity": (timedelta(0), timedelta(seconds=-1), timedelta(microseconds=1), timedelta(days=90_000_000), timedelta(hours=1)),
    "expires_at": (datetime(1, 1, 1, tzinfo=UTC), NOW - timedelta(seconds=1), datetime(9999, 12, 31, tzinfo=UTC)),
    "idempotency_key": (*_STRANGE, "k" * 100_000),
    "order_key": (*_STRANGE, "k" * 100_000),
    "tags": ("null", "[]", "7", '{"a": []}', _DEEP, json.dumps({"k": "x" * 100_000})),
    "on_ambiguous": (*_STRANGE, "RESEND", "drop", "hope"),
    "fallback": ("null", "{}", "[[]]", '[{"channel": "sms", "fallback": [{}]}]',
                 '[{"channel": "sms", "service": "fast", "fallback": [{"channel": "sms", "service": "fast"}]}]', _DEEP),
    "callback_url": (*_STRANGE, "http://169.254.169.254/", "https://user:secret@example.org/"),
    "traceparent": (*_STRANGE, "00-0-0-00"),
    "tenant": (*_STRANGE, "t" * 100_000),
}  # fmt: skip


def rows(seed: int, many: int) -> Iterator[Mapping[str, Any]]:
    """Every odd value alone, then mixtures of two to five, *many* in all."""
    alone = [{**GOOD, column: value} for column, values in VALUES.items() for value in values]
    # A template stands instead of a body.
    alone = [{**row, "body": None} if "template" in row else row for row in alone]
    yield from alone[:many]
    dice = random.Random(seed)
    for _ in range(many - len(alone)):
        mixed = {column: dice.choice(VALUES[column]) for column in dice.sample(COLUMNS, dice.randint(2, 5))}
        # What lies in the future would wait for it, rightly.
        if mixed.get("send_at") == FAR:
            mixed.pop("send_at")
        yield {**GOOD, **mixed}
