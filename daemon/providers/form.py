"""``application/x-www-form-urlencoded``, written and read byte for byte: signatures are made over the exact bytes."""

from __future__ import annotations

from string import ascii_letters, digits
from urllib.parse import unquote_to_bytes

_PLAIN = frozenset((ascii_letters + digits + "_.-~").encode())
# For each byte (as the Latin-1 character that stands for it), its spelling: the same as urllib's quote_plus, which
# takes five times as long.
_SPELLED = {byte: chr(byte) if byte in _PLAIN else "+" if chr(byte) == " " else f"%{byte:02X}" for byte in range(256)}


def quote(text: str) -> str:
    """*text* as a form writes it: UTF-8, blanks as ``+``."""
    return text.encode().decode("latin-1").translate(_SPELLED)


def read(raw: bytes, *, most: int) -> list[tuple[bytes, bytes]] | None:
    """
    The decoded names and values of a form, in their order; empty values are kept, and nothing is trimmed.

    None when there are more than *most*: nobody sends that many, and we would be busy with them.
    """
    if raw.count(b"&") >= most:
        return None
    pieces = [piece.partition(b"=") for piece in raw.replace(b"+", b" ").split(b"&") if piece]
    return [
        (unquote_to_bytes(name) if b"%" in name else name, unquote_to_bytes(value) if b"%" in value else value)
        for name, _, value in pieces
    ]
