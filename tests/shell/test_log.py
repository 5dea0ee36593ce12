"""The log: what it shows, what it never shows, and that its events are those of the table."""

from __future__ import annotations

import ast
import io
import logging
import re
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import orjson
import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from daemon import log as log_module
from daemon.events import EVENTS
from daemon.log import configure

if TYPE_CHECKING:
    from collections.abc import Iterator

DAEMON = Path(__file__).parents[2] / "daemon"
SENDER = "+12025550100"

log = structlog.get_logger()


@dataclass
class Held:
    """Something whose repr shows all it holds."""

    body: str


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    yield
    configure(stream=sys.stderr.buffer)
    root.handlers[:], root.level = before
    structlog.reset_defaults()


class Paper(io.BytesIO):
    """A stream that may say it is a terminal."""

    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    @property
    def lines(self) -> list[dict[str, object]]:
        return [orjson.loads(line) for line in self.getvalue().splitlines()]


def said(**fields: object) -> dict[str, object]:
    """One line with *fields*, as it was written."""
    paper = Paper()
    configure("info", "json", stream=paper, known={SENDER})
    log.info("test.said", **fields)
    (line,) = paper.lines
    return line


# --- what it looks like


def test_a_line_is_one_json_object_with_time_level_and_event() -> None:
    line = said(count=3, provider="twilio", message_id=UUID(int=5), wait_s=0.5)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", str(line.pop("timestamp")))
    assert line == {
        "level": "info",
        "event": "test.said",
        "count": 3,
        "provider": "twilio",
        "message_id": str(UUID(int=5)),
        "wait_s": 0.5,
    }


@pytest.mark.parametrize(("terminal", "form"), [(True, "auto"), (False, "console")])
def test_a_person_reads_lines_and_a_machine_json(terminal: bool, form: str) -> None:
    paper = Paper(terminal=terminal)
    configure("info", form, stream=paper)  # type: ignore[arg-type]
    log.info("test.said", count=3, reason="evil\x1b[2J")
    text = paper.getvalue().decode()
    assert not text.startswith("{")
    assert "test.said" in text
    assert "\x1b[2J" not in text


def test_a_field_cannot_pose_as_ours() -> None:
    line = said(level="error", timestamp="yesterday")
    assert line["level"] == "info"
    assert line["level_"] == "error"


def test_what_is_below_the_level_is_not_said_and_a_reload_changes_that_for_loggers_in_use() -> None:
    paper = Paper()
    mine = structlog.get_logger()
    configure("warning", "json", stream=paper)
    mine.info("test.said")
    mine.warning("test.warned")
    configure("debug", "json", stream=paper)
    mine.debug("test.whispered")
    assert [line["event"] for line in paper.lines] == ["test.warned", "test.whispered"]


def test_a_filtered_call_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    configure("info", "json", stream=Paper())
    log.info("test.said")

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(log_module._Log, "_say", never)
    log.debug("test.whispered", reason="x")
    with pytest.raises(AssertionError):
        log.info("test.said")


def test_a_reader_that_went_away_stops_nothing() -> None:
    class Closed(Paper):
        def write(self, _: object) -> int:
            raise BrokenPipeError

    configure("info", "json", stream=Closed())
    log.info("test.said")


def test_libraries_are_heard_in_our_form() -> None:
    paper = Paper()
    configure("info", "json", stream=paper)
    logging.getLogger("asyncio").error("Task for +12025550177 was destroyed")
    logging.getLogger("asyncio").info("using selector")
    (line,) = paper.lines
    assert (line["level"], line["event"], line["library"]) == ("error", "library.spoke", "asyncio")
    assert "2025550177" not in str(line)


# --- what it never shows

NATIONAL = st.text("0123456789", min_size=7, max_size=14).filter(lambda digits: digits[0] != "0")
PHONES = st.one_of(
    NATIONAL.map("+{}".format),
    NATIONAL,
    st.tuples(st.integers(200, 999), st.integers(200, 999), st.integers(0, 9_999)).flatmap(
        lambda n: st.sampled_from(
            [
                f"({n[0]}) {n[1]}-{n[2]:04}",
                f"{n[0]}-{n[1]}-{n[2]:04}",
                f"+1 {n[0]} {n[1]} {n[2]:04}",
                f"{n[0]}.{n[1]}.{n[2]:04}",
                f"+44 (0) {n[0]} {n[1]} {n[2]:04}",
            ]
        )
    ),
)
AROUND = st.text(max_size=10)
# Long enough and odd enough not to be a part of the line by chance.
BODIES = st.text(min_size=1, max_size=60).map("§{}§".format)


def written(**fields: object) -> str:
    """What *fields* become, in both forms together, at the worst of moments: an exception, with its causes."""
    paper = Paper()
    for form in ("json", "console"):
        configure("debug", form, stream=paper)
        log.warning("test.said", **fields)
    return paper.getvalue().decode()


@given(PHONES, AROUND, AROUND)
@example("+12025550177", "tel:", "x")
@example("12025550177", "2026-11-23", "")
def test_no_number_is_ever_written(phone: str, before: str, after: str) -> None:
    text = f"{before}{phone}{after}"
    error = RuntimeError(f"cannot reach {text}")
    error.__cause__ = ExceptionGroup(text, [KeyError(text), OSError(5, text)])
    text_of_all = written(
        recipient=phone, reason=text, error_=error, exc_info=error, nested={"to": [text, {text: text}]}, held=Held(text)
    )
    assert phone not in text_of_all
    spoken = re.sub(r"[^0-9]", "", str(said(reason=phone)["reason"]))
    assert re.sub(r"[^0-9]", "", phone)[-6:] not in spoken


@given(st.integers(10_000_000, 10**15))
def test_a_number_that_is_an_integer_is_one_all_the_same(number: int) -> None:
    assert str(number) not in written(recipient=number, nested=[number])


@given(BODIES)
@example("§'§")
@example("§'\"\\§")
def test_no_text_of_a_message_is_ever_written(body: str) -> None:
    error = ValueError(f"invalid input for query argument $1: {body!r} (expected str)")
    error.__cause__ = KeyError(body)
    error.__context__ = RuntimeError(f"duplicate key\nDETAIL:  Failing row contains (1, {body}).")
    text = written(
        body=body,
        text=body,
        subject=body,
        variables={"code": body},
        media=[body],
        nested={"body": body, "deep": [{"text": body}]},
        message=Held(body),
        raw=body.encode(),
        exc_info=error,
    )
    assert body not in text
    assert orjson.dumps(body).decode()[1:-1] not in text


@pytest.mark.parametrize(
    "key", ["auth_token", "X-Twilio-Signature", "authorization", "api_key_secret", "password", "set_cookie", "dsn"]
)
def test_no_secret_is_ever_written(key: str) -> None:
    text = written(**{key: "hunter2", "nested": {key: "hunter2"}, "headers": [{key: "hunter2"}]})
    assert "hunter2" not in text


def test_a_password_in_an_address_is_not_written() -> None:
    line = said(reason="cannot connect to postgresql://joe:hunter2@db/app")
    assert line["reason"] == "cannot connect to postgresql://***@db/app"


def test_our_own_senders_are_shown_and_nobody_else() -> None:
    line = said(group=SENDER, reason=f"{SENDER} to +12025550177", difference=[f"senders {SENDER} rate: 1 -> 2"])
    assert line["group"] == SENDER
    assert str(line["reason"]).startswith(f"{SENDER} to +12***")
    assert line["difference"] == [f"senders {SENDER} rate: 1 -> 2"]


@pytest.mark.parametrize(
    "plain",
    [
        str(UUID(int=2**128 - 1)),
        "018f3c5e-0000-7000-8000-123456789012",
        "SM" + "0123456789abcdef" * 2,
        "on 2026-11-23 at 00:14:00",
        "http://127.0.0.1:8080/callbacks",
        "21408: not permitted",
        "attempt 3 of 5, 1500 ms",
    ],
)
def test_what_only_looks_like_a_number_stays_readable(plain: str) -> None:
    assert said(reason=plain)["reason"] == plain


class Word(StrEnum):
    """A word of ours."""

    OPEN = "open"


def test_values_keep_their_kind() -> None:
    line = said(state=Word.OPEN, path=Path("state/log"), none=None, yes=True, seq=12_345_678_901, size_bytes=10**9)
    assert (line["state"], line["path"], line["none"], line["yes"]) == ("open", "state/log", None, True)
    assert (line["seq"], line["size_bytes"]) == (12_345_678_901, 10**9)


def test_what_others_say_is_cut() -> None:
    assert len(str(said(reason="x" * 100_000)["reason"])) < 1_000
    assert len(str(said(many=list(range(100_000)))["many"])) < 1_000


def test_an_exception_tells_its_type_its_place_and_its_causes() -> None:
    paper = Paper()
    configure("info", "json", stream=paper)
    try:
        try:
            int("no number")
        except ValueError as error:
            raise RuntimeError("could not count") from error
    except RuntimeError:
        log.exception("test.fell")
    (line,) = paper.lines
    trace = line["trace"]
    assert isinstance(trace, list)
    assert line["error"] == "RuntimeError: could not count"
    assert any(re.search(r"test_log\.py:\d+ in test_an_exception", step) for step in trace)
    assert any(step.startswith("ValueError: invalid literal for int()") for step in trace)


# --- the table of events


LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(DAEMON.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "log":
                yield f"{path.name}:{node.lineno}", node


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_named_by_what_and_what_happened(event: str) -> None:
    assert re.fullmatch(r"[a-z]+\.[a-z_]+", event)


def test_every_event_said_is_in_the_table_with_its_fields() -> None:
    wrong = []
    for place, call in calls():
        event = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
        if not isinstance(event, str) or event not in EVENTS:
            wrong.append(f"{place}: {ast.unparse(call)} says no event of daemon/events.py")
            continue
        fields = {keyword.arg for keyword in call.keywords if keyword.arg not in {None, "exc_info"}}
        if unknown := fields - set(EVENTS[event]):
            wrong.append(f"{place}: the table knows no {', '.join(sorted(map(str, unknown)))} of {event}")
    assert wrong == []
