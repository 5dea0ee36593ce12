"""
The token in every callback URL: which attempt a receipt belongs to, even when the provider's answer was lost.

Base64url without padding over id (16 bytes), attempt (4 bytes) and 12 bytes of keyed BLAKE2b (RFC 7693) over both: 43
characters, the same on every daemon that has the key. HMAC-SHA256 costs three times as much.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode
from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest
from uuid import UUID

_NAMED = 20  # bytes of id and attempt
_MAC = 12  # 96 bits: nobody guesses one, and the URL stays short
_LENGTH = 43  # characters of a token
_URLSAFE = bytes.maketrans(b"+/", b"-_")


def seal(key: bytes, id: UUID, attempt: int) -> str:
    """The token that names attempt number *attempt* of message *id*; *key* has 64 bytes at most."""
    return _sealed(key, id.bytes + attempt.to_bytes(4, "big"))


def unseal(key: bytes, token: str) -> tuple[UUID, int] | None:
    """What *token* names; None when it was not sealed with *key*. Any string will do."""
    if len(token) != _LENGTH or not token.isascii():
        return None
    try:
        named = urlsafe_b64decode(token + "=")[:_NAMED]
    except binascii.Error:
        return None
    # Sealed again and compared whole: base64 has several spellings of the same bytes, and only ours is a token.
    if not compare_digest(_sealed(key, named), token):
        return None
    return UUID(bytes=named[:16]), int.from_bytes(named[16:], "big")


def _sealed(key: bytes, named: bytes) -> str:
    mac = _keyed(key).copy()
    mac.update(named)
    return binascii.b2a_base64(named + mac.digest()).translate(_URLSAFE)[:_LENGTH].decode("ascii")


@lru_cache(maxsize=4)
def _keyed(key: bytes) -> blake2b:
    return blake2b(key=key, digest_size=_MAC)  # copied, it has the key's block behind it: half the work
