"""
The token in every callback URL: which attempt a receipt belongs to, even when the provider's answer was lost.

Base64url without padding over id (16 bytes), attempt (4 bytes) and the first 12 bytes of HMAC-SHA256 over both: 43
characters, the same on every daemon that has the key.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from uuid import UUID

_SEALED = 20  # bytes of id and attempt
_MAC = 12  # 96 bits: nobody guesses one, and the URL stays short
_LENGTH = 43  # characters of a token


def seal(key: bytes, id: UUID, attempt: int) -> str:  # noqa: A002 (the field is called id everywhere)
    """The token that names attempt number *attempt* of message *id*. About 3 µs."""
    told = id.bytes + attempt.to_bytes(4, "big")
    return urlsafe_b64encode(told + hmac.digest(key, told, "sha256")[:_MAC])[:_LENGTH].decode("ascii")


def unseal(key: bytes, token: str) -> tuple[UUID, int] | None:
    """What *token* names; None when it was not sealed with *key*. Any string will do."""
    if len(token) != _LENGTH or not token.isascii():
        return None
    try:
        raw = urlsafe_b64decode(token + "=")
    except binascii.Error:
        return None
    told = raw[:_SEALED]
    if len(told) != _SEALED:
        return None
    id, attempt = UUID(bytes=told[:16]), int.from_bytes(told[16:], "big")  # noqa: A001
    # Sealed again and compared whole: base64 has several spellings of the same bytes, and only ours is a token.
    return (id, attempt) if hmac.compare_digest(seal(key, id, attempt), token) else None
