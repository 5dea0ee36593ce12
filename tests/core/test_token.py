"""Tokens of callback URLs: what is sealed comes back, and nothing else does."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.token import seal, unseal

KEY = b"k" * 32
ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")

attempts = st.integers(0, 2**32 - 1)


@given(key=st.binary(min_size=1, max_size=64), id=st.uuids(), attempt=attempts)
def test_what_is_sealed_comes_back(key: bytes, id: UUID, attempt: int) -> None:
    assert unseal(key, seal(key, id, attempt)) == (id, attempt)


@given(token=st.text() | st.text(alphabet="AZaz09-_=+/ é\0", min_size=40, max_size=46))
def test_any_string_is_answered_and_none_is_a_token(token: str) -> None:
    assert unseal(KEY, token) is None


@given(id=st.uuids(), attempt=attempts)
def test_another_key_opens_nothing(id: UUID, attempt: int) -> None:
    assert unseal(b"other", seal(KEY, id, attempt)) is None


def test_every_other_spelling_of_a_token_is_refused() -> None:
    token = seal(KEY, ID, 3)
    spellings = [token[:at] + other + token[at + 1 :] for at in range(len(token)) for other in "AQgwzZ09-_+/=~\n"]
    spellings += [token + "=", token + "\n", " " + token, token[:-1], token + "A", token.swapcase()]
    assert [unseal(KEY, spelling) for spelling in spellings if spelling != token] == [None] * sum(
        spelling != token for spelling in spellings
    )


def test_a_token_fits_in_a_path() -> None:
    token = seal(KEY, ID, 1)
    assert len(token) == 43
    assert token.replace("-", "").replace("_", "").isalnum()


def test_the_form_of_a_token_does_not_change() -> None:
    # Receipts come days later, and from URLs that an older release wrote.
    assert seal(KEY, ID, 3) == "AYkKXayWd0u8zrMCCZqAVwAAAAPvIJQrKznGDSKt3Uk"


@pytest.mark.parametrize("attempt", [-1, 2**32])
def test_an_attempt_that_does_not_fit_is_our_own_mistake(attempt: int) -> None:
    with pytest.raises(OverflowError):
        seal(KEY, ID, attempt)
