from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.template import CHARACTERS_MAX, Missing, Unfit, fault, names, render

names_of_variables = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
values = st.text(max_size=40) | st.integers() | st.floats() | st.booleans()


def test_variables_are_filled_in() -> None:
    text = "Hi {name}, {{code}} is {code}; {on}, {price}"
    variables = {"name": "Ada", "code": 42, "on": True, "price": 9.5, "unused": None}
    assert render(text, variables) == "Hi Ada, {code} is 42; true, 9.5"


def test_missing_variables_are_named() -> None:
    found = render("{b} {a} {b} {c}", {"c": "x", "a": None})
    assert found == Missing("missing template variables: a, b", ("a", "b"))


def test_only_text_and_numbers_are_filled_in() -> None:
    found = render("{a}{b}{c}", {"a": [1], "b": {}, "c": "x"})
    assert found == Unfit("template variables that are neither text nor number: a, b")


@pytest.mark.parametrize(
    "text", ["{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{}", "{0}", "{ a }", "{a", "a}", "{é}", "{a}}"]
)
def test_nothing_but_names_stands_in_braces(text: str) -> None:
    found = render(text, {"a": "x"})
    assert isinstance(found, Unfit)
    assert "stray" in found.reason


def test_a_filled_template_is_no_longer_than_a_body() -> None:
    assert render("{a}", {"a": "x" * CHARACTERS_MAX}) == "x" * CHARACTERS_MAX
    found = render("{a}!", {"a": "x" * CHARACTERS_MAX})
    assert isinstance(found, Unfit)
    assert "1601" in found.reason


@given(st.text(max_size=60))
def test_what_is_filled_in_is_not_looked_at_again(value: str) -> None:
    assert render("<{a}>", {"a": value}) == f"<{value}>"


@given(st.text(max_size=80), st.dictionaries(names_of_variables, values, max_size=4))
def test_any_template_is_filled_or_refused(text: str, variables: dict[str, object]) -> None:
    found = render(text, variables)
    if isinstance(found, str):
        assert fault(text) is None
        assert names(text) <= set(variables)


@given(st.text(max_size=80))
def test_braces_written_twice_come_out_once(text: str) -> None:
    assert render(text.replace("{", "{{").replace("}", "}}"), {}) == text


@given(st.text("{}ab_0.", max_size=30))
def test_reasons_never_tell_values(text: str) -> None:
    found = render(text, {"a": "secret", "b": ["secret"]})
    assert isinstance(found, str) or "secret" not in found.reason
