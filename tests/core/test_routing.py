from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.routing import Candidate, Choice, Sender, Unroutable, choose

if TYPE_CHECKING:
    from collections.abc import Sequence

RECIPIENTS = [f"+336{number:08d}" for number in range(6_000)]


def sender(address: str, kind: str = "long_code", country: str | None = "FR", rate: float = 1.0) -> Sender:
    return Sender(address=address, provider="twilio", kind=kind, country=country, rate=rate)


def free(*senders: Sender) -> list[Candidate]:
    return [Candidate(sender=one, wait_s=0.0) for one in senders]


def chosen(
    candidates: Sequence[Candidate], region: str | None, *, recipient: str = "+33612345678", sticky: bool = False
) -> str:
    choice = choose(candidates, recipient=recipient, recipient_region=region, sticky=sticky)
    assert isinstance(choice, Choice), choice
    return choice.sender.address


FR, DE, US, GB = (sender(f"long {country}", country=country) for country in ("FR", "DE", "US", "GB"))
SHORT = sender("38000", "short_code", "FR")
NAME = sender("ACME", "alphanumeric", None)
FREEPHONE = sender("+1800", "toll_free", "US")
CANADA = sender("long CA", country="CA")
ANY = [*free(FR, DE, US, SHORT, NAME, FREEPHONE, CANADA)]


@pytest.mark.parametrize(
    ("senders", "region", "expected"),
    [
        ((FR, DE, US), "FR", "long FR"),  # the recipient's own country
        ((DE, US, GB), "FR", "long US"),  # else the US
        ((DE, GB), "FR", "long DE"),  # else any, the first address
        ((FR, SHORT, NAME), "FR", "38000"),  # a short code is quickest
        ((FR, NAME, DE), "FR", "ACME"),  # then a name
        ((DE, NAME), "FR", "ACME"),  # which is at home everywhere
        ((DE, SHORT), "GB", "long DE"),  # a short code works at home only
        ((US, NAME), "US", "long US"),  # names do not work in the US
        ((CANADA, FREEPHONE), "CA", "+1800"),  # in Canada toll-free first
        ((sender("+1801", "toll_free", "CA"), DE), "US", "+1801"),  # toll-free works on both sides
        ((DE, FREEPHONE), "FR", "+1800"),
        ((FR, DE, US), None, "long US"),  # a number of no country
        ((sender("x", "satellite"), FR), "FR", "long FR"),  # a kind we do not know comes last
        ((sender("DACH", "alphanumeric", "DE"), US), "FR", "long US"),  # a name kept to one country
        ((sender("38001", "short_code", None), US), "FR", "38001"),  # a country nobody gave
    ],
)
def test_country_first_then_kind(senders: tuple[Sender, ...], region: str | None, expected: str) -> None:
    assert chosen(free(*senders), region) == expected
    assert chosen(free(*reversed(senders)), region) == expected


def test_long_code_and_toll_free_are_alike_outside_canada() -> None:
    alike = [Candidate(sender=FREEPHONE, wait_s=2.0), Candidate(sender=US, wait_s=1.0)]
    assert chosen(alike, "US") == "long US"


def test_among_alike_the_one_that_is_free_first() -> None:
    alike = [Candidate(sender=sender(f"+{n}"), wait_s=wait) for n, wait in enumerate((3.0, 0.5, 7.0, 0.5))]
    choice = choose(alike, recipient="+33612345678", recipient_region="FR")
    assert choice == Choice(alike[1].sender, "home long_code, free in 0.5 s, the least of 4 alike")


def test_a_busy_home_number_still_comes_before_a_free_foreign_one() -> None:
    assert chosen([Candidate(sender=FR, wait_s=900.0), *free(US)], "FR") == "long FR"


def test_a_blocked_sender_is_passed_over() -> None:
    assert chosen([Candidate(sender=FR, wait_s=0.0, blocked="paused"), *free(US)], "FR") == "long US"


def test_a_lone_sender_is_taken_as_it_is() -> None:
    assert chosen(free(SHORT), "US") == "38000"
    lone = [Candidate(sender=FR, wait_s=0.0, blocked="paused")]
    assert choose(lone, recipient="+1", recipient_region="FR") == Unroutable("long FR: paused")


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        ([], "the service has no senders"),
        (free(SHORT, SHORT), "2 of 2 senders cannot reach US"),
        ([Candidate(sender=FR, wait_s=0, blocked="b"), Candidate(sender=US, wait_s=0, blocked="a")], "a; b"),
        ([Candidate(sender=US, wait_s=0, blocked="a"), *free(SHORT)], "1 of 2 senders cannot reach US; a"),
    ],
)
def test_nobody_can_carry_it_and_we_say_why(candidates: list[Candidate], reason: str) -> None:
    assert choose(candidates, recipient="+14155552671", recipient_region="US") == Unroutable(reason)


def test_a_number_of_no_country_is_told_so() -> None:
    assert choose(free(SHORT, SHORT), recipient="+870", recipient_region=None) == Unroutable(
        "2 of 2 senders cannot reach a number of no country"
    )


POOL = [sender(f"+3370000{n:04d}") for n in range(20)]


def test_a_sticky_service_keeps_to_one_sender_however_busy_and_in_whatever_order() -> None:
    busy = [Candidate(sender=one, wait_s=float(n)) for n, one in enumerate(POOL)]
    for recipient in RECIPIENTS[:50]:
        first = chosen(free(*POOL), "FR", recipient=recipient, sticky=True)
        assert chosen(busy[::-1], "FR", recipient=recipient, sticky=True) == first


def test_a_sticky_choice_survives_restarts_and_versions() -> None:
    """Pinned: if these change, every recipient of every installation gets another sender."""
    assert [chosen(free(*POOL), "FR", recipient=one, sticky=True)[-2:] for one in RECIPIENTS[:8]] == [
        "18",
        "14",
        "02",
        "19",
        "08",
        "04",
        "16",
        "07",
    ]


def test_a_sender_that_goes_moves_only_its_own_recipients() -> None:
    moved = 0
    for recipient in RECIPIENTS[:1000]:
        before = chosen(free(*POOL), "FR", recipient=recipient, sticky=True)
        after = chosen(free(*POOL[1:]), "FR", recipient=recipient, sticky=True)
        moved += before != after
        assert before in {after, POOL[0].address}
    assert 20 <= moved <= 85


def test_sticky_recipients_spread_by_rate() -> None:
    senders = [replace(one, rate=3.0 if n < 5 else 1.0) for n, one in enumerate(POOL)]
    counts = Counter(chosen(free(*senders), "FR", recipient=one, sticky=True) for one in RECIPIENTS)
    for one in senders:
        assert counts[one.address] == pytest.approx(len(RECIPIENTS) * one.rate / 30, rel=0.25)


def test_sticky_keeps_to_country_and_kind() -> None:
    assert {chosen(ANY, "FR", recipient=one, sticky=True) for one in RECIPIENTS[:50]} == {"38000"}


senders = st.builds(
    sender,
    st.text("0123456789", min_size=1, max_size=4),
    st.sampled_from(["short_code", "alphanumeric", "long_code", "toll_free", "other"]),
    st.sampled_from([None, "FR", "US", "CA", "DE"]),
    st.floats(0.1, 100),
)
candidates_of = st.builds(Candidate, senders, st.floats(0, 1e4), st.sampled_from([None, None, "paused"]))


@given(
    st.lists(candidates_of, max_size=12), st.sampled_from([None, "FR", "US", "CA"]), st.text(max_size=12), st.booleans()
)
def test_a_choice_is_never_blocked_and_never_without_a_reason(
    candidates: list[Candidate], region: str | None, recipient: str, sticky: bool
) -> None:
    choice = choose(candidates, recipient=recipient, recipient_region=region, sticky=sticky)
    if isinstance(choice, Choice):
        assert any(one.sender == choice.sender and one.blocked is None for one in candidates)
        assert choice.why
    else:
        assert choice.reason
        open_ones = [one for one in candidates if one.blocked is None]
        assert all(one.sender.kind in {"short_code", "alphanumeric"} for one in open_ones)
