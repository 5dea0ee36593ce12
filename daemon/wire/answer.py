"""
The answer to one request, out of the bytes as they come.

Pure: bytes in, a verdict out. The same bytes give the same verdict however they were cut on their way, and no bytes
raise anything. What a broken answer means: facts, reliability 2.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import httptools

from daemon.core.outcome import Uncertain
from daemon.provider import Response
from daemon.transport import BODY_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD_LIMIT = 65_536  # bytes until the head is whole, interim answers included
HEADERS_LIMIT = 200
CLOSED = "the connection was closed before the whole answer came"
FRAME_LIMIT = 16 * BODY_LIMIT  # bytes after the head, as they come: chunks of one byte are no way around BODY_LIMIT

Verdict: TypeAlias = Response | Uncertain


class Answer:
    """
    One answer after another. ``verdict`` is None as long as more must come; ``keep`` says whether another may follow on
    the connection, and is only of use with a verdict: then :meth:`begin`, and the next bytes are the next answer's.
    """

    __slots__ = ("_body", "_headers", "_lines", "_parser", "_room", "_status", "keep", "verdict")

    def __init__(self) -> None:
        self.begin()
        self._parser = parser = httptools.HttpResponseParser(self)
        # As aiohttp reads them: a provider's small sins of form cost no message.
        parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )

    def begin(self) -> None:
        """Nothing of the answer has come yet."""
        self.verdict: Verdict | None = None
        self.keep = False
        self._status: int | None = None  # of the final answer, once its whole head is here
        self._headers = Headers()
        self._lines = 0  # headers, interim answers' included
        self._body = bytearray()
        self._room = HEAD_LIMIT  # bytes we are still willing to read

    def feed(self, data: bytes) -> Verdict | None:
        """The next bytes have come."""
        while data and self.verdict is None:
            # Cut where our patience ends: the limits must not depend on how the network cut it.
            part, data = (data, b"") if len(data) <= self._room else (data[: self._room], data[self._room :])
            self._room -= len(part)
            try:
                self._parser.feed_data(part)
            except httptools.HttpParserUpgrade:
                self.keep = False  # a 101 nobody asked for: whole, and HTTP ends here
            except httptools.HttpParserError:
                self.fail("the answer is not HTTP")
                self.keep = False  # nor is what follows a whole answer
            if not self._room and self.verdict is None:
                self.fail("the answer is longer than we read")
        if data:
            self.keep = False
        return self.verdict

    def end(self) -> Verdict:
        """No more bytes will come. That is how some answers end."""
        if self.verdict is None and self._status is not None and not self._measured():
            self.verdict = self._whole(self._status)
        self.keep = False
        return self.verdict or self.fail(CLOSED)

    def fail(self, reason: str) -> Verdict:
        """The verdict if the answer stays as it is: a yes is a yes, even if the rest of it is lost."""
        if self.verdict is None:
            self.keep = False
            if self._status is None:
                self.verdict = Uncertain(reason)
            elif 200 <= self._status < 300:
                self.verdict = self._whole(self._status)
            else:
                self.verdict = Uncertain(f"{reason} (status {self._status})")
        return self.verdict

    def _whole(self, status: int) -> Response:
        return Response(status, self._headers, bytes(self._body))

    def _measured(self) -> bool:
        """Whether the head says how long the body is; otherwise it ends with the connection."""
        codings = self._headers.get("transfer-encoding")
        return codings.lower().endswith("chunked") if codings else "content-length" in self._headers

    # httptools calls these.

    def on_message_begin(self) -> None:
        self._headers = Headers()
        self.keep = False  # bytes beyond a whole answer

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._status is None:  # trailers tell us nothing
            self._headers.raw.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._lines += len(self._headers.raw)
        if self._lines > HEADERS_LIMIT:
            self.fail("the answer has too many headers")
        elif self.verdict is None and (status == 101 or not 100 <= status < 200):
            self._status = status
            self._room += FRAME_LIMIT

    def on_body(self, data: bytes) -> None:
        if self.verdict is None:
            self._body += data
            if len(self._body) > BODY_LIMIT:
                del self._body[BODY_LIMIT:]
                self.fail(f"the answer is longer than {BODY_LIMIT} bytes")

    def on_message_complete(self) -> None:
        if self.verdict is None and self._status is not None:
            self.verdict = self._whole(self._status)
            self.keep = self._parser.should_keep_alive()  # asked only now: a trailer may say close


class Headers(Mapping[str, str]):
    """The headers of one answer, names in lower case. Nearly nobody asks for one: they are read when somebody does."""

    __slots__ = ("_read", "raw")

    def __init__(self) -> None:
        self.raw: list[tuple[bytes, bytes]] = []  # as they came
        self._read: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        return self._known()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())

    def _known(self) -> dict[str, str]:
        if self._read is None:
            self._read = {
                _name(name): value.decode("utf-8", "surrogateescape").strip(" \t") for name, value in self.raw
            }
        return self._read


@lru_cache(maxsize=512)
def _name(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape").lower()  # a provider's names are few, and always the same
