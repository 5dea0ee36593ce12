from __future__ import annotations

from urllib.parse import parse_qsl, quote_plus, urlencode

from hypothesis import given
from hypothesis import strategies as st

from daemon.providers import form


@given(text=st.text())
def test_quoting_is_urllibs(text: str) -> None:
    assert form.quote(text) == quote_plus(text)


def test_every_byte_is_quoted_as_urllib_does() -> None:
    text = "".join(map(chr, range(0x300)))
    assert form.quote(text) == quote_plus(text)


@given(pairs=st.lists(st.tuples(st.text(), st.text())))
def test_what_is_written_is_read(pairs: list[tuple[str, str]]) -> None:
    read = form.read(urlencode(pairs).encode(), most=1_000)
    assert read == [(name.encode(), value.encode()) for name, value in pairs]


@given(raw=st.binary() | st.text(alphabet="a=&+%4gG ;").map(str.encode))
def test_any_bytes_are_read_as_urllib_reads_them(raw: bytes) -> None:
    read = form.read(raw, most=1_000)
    assert read is not None
    text = raw.decode("latin-1")
    expected = parse_qsl(text, keep_blank_values=True, encoding="latin-1")
    assert [(name.decode("latin-1"), value.decode("latin-1")) for name, value in read] == expected


def test_more_than_anybody_sends_is_not_read() -> None:
    assert form.read(b"a=1&" * 9 + b"a=1", most=10) is not None
    assert form.read(b"a=1&" * 10 + b"a=1", most=10) is None
    assert form.read(b"&" * 10_000_000, most=500) is None
