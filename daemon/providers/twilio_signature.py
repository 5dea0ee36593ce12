"""
Whether a callback is Twilio's own: ``X-Twilio-Signature``.

Base64 of HMAC-SHA1, with the account's Auth Token as key, over the URL exactly as Twilio was given it (no fragment, no
user info), followed for a form by every name and value, sorted. The URL is rebuilt from configuration and the raw
request line, never from ``Host`` or ``X-Forwarded-*``, which a stranger may write as he likes.

Twilio joins names and values without a delimiter and signs no time: whoever has overheard a callback may repeat it, or
move the border between a name and its value. Both do no harm where receipts are merged and ids and words are checked.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_DEFAULT_PORTS = {"https": 443, "http": 80}


def spellings(public_url: str) -> tuple[str, ...]:
    """
    The ways Twilio may have written our base URL: SMS callbacks keep a port, others drop it, some add the default one.

    Its own libraries accept any of them.
    """
    parts = urlsplit(public_url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"not a public base URL: {public_url!r} (like https://msg.example.com)")
    host = parts.netloc.rpartition("@")[2]
    bare = host if parts.port is None else host.rpartition(":")[0]
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{bare}{path}", f"{parts.scheme}://{bare}:{port}{path}"


def sign(token: str, url: str, form: Iterable[tuple[bytes, bytes]] = ()) -> str:
    """The signature of *url* with *form*. A pair that occurs twice counts once; so Twilio's libraries do."""
    # Sorted as bytes, which is the order of code points in UTF-8.
    told = _bytes(url) + b"".join(name + value for name, value in sorted(set(form)))
    return _signed(token, told).decode("ascii")


def fits(
    signature: str, *, tokens: Sequence[str], urls: Iterable[str], form: Iterable[tuple[bytes, bytes]] = ()
) -> bool:
    """Whether *signature* fits any of *urls* under any of *tokens* (two, while the Auth Token is being rotated)."""
    tail = b"".join(name + value for name, value in sorted(set(form)))
    given = _bytes(signature)
    # The first that fits ends it: which token or spelling that was is no secret, the signature itself is.
    return any(
        hmac.compare_digest(_signed(token, told), given)
        for told in [_bytes(url) + tail for url in urls]
        for token in tokens
    )


def fits_body(body: bytes, digest: str) -> bool:
    """Whether *digest* (the URL's ``bodySHA256``, which stands in for a body that is no form) is that of *body*."""
    return hmac.compare_digest(hashlib.sha256(body).hexdigest().encode("ascii"), _bytes(digest))


def _signed(token: str, told: bytes) -> bytes:
    return b64encode(hmac.digest(token.encode(), told, "sha1"))


def _bytes(text: str) -> bytes:
    # Whatever stood on the wire: what is no text cannot fit, and must not raise.
    return text.encode("utf-8", "replace")
