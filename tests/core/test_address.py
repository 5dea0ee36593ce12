from __future__ import annotations

import phonenumbers
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, PhoneMetadata, PhoneNumberFormat, PhoneNumberType

from daemon.core.address import LENGTH_MAX, PHONE_CHANNELS, Address, Unreadable, home, mask, plausible, read


def _examples() -> list[str]:
    """A valid number of every kind in every region."""
    numbers = [
        phonenumbers.example_number_for_type(region, kind)
        for region in sorted(phonenumbers.SUPPORTED_REGIONS)
        for kind in PhoneNumberType.values()
    ]
    codes = sorted(phonenumbers.COUNTRY_CODES_FOR_NON_GEO_REGIONS)
    numbers += [phonenumbers.example_number_for_non_geo_entity(code) for code in codes]
    return sorted({phonenumbers.format_number(number, PhoneNumberFormat.E164) for number in numbers if number})


def _prefixed() -> list[str]:
    """Numbers with the digits in front that people dial at home, which phonenumbers may strip or not."""
    prefixes = {
        code: plan.national_prefix
        for code, regions in COUNTRY_CODE_TO_REGION_CODE.items()
        if (plan := PhoneMetadata.metadata_for_region_or_calling_code(code, regions[0])) and plan.national_prefix
    }
    return [
        f"+{code}{prefix}{number[len(str(code)) + 1 :]}"
        for code, prefix in sorted(prefixes.items())
        for number in EXAMPLES
        if number.startswith(f"+{code}")
    ]


EXAMPLES = _examples()
PREFIXED = _prefixed()


def _truth(recipient: str) -> bool:
    """What phonenumbers itself says, at length."""
    try:
        number = phonenumbers.parse(recipient)
    except phonenumbers.NumberParseException:
        return False
    return (
        phonenumbers.is_valid_number(number)
        and phonenumbers.format_number(number, PhoneNumberFormat.E164) == recipient
        and phonenumbers.number_type(number) != PhoneNumberType.PREMIUM_RATE
    )


@st.composite
def near_misses(draw: st.DrawFn) -> str:
    """An example number with a few digits changed, added or taken away."""
    digits = list(draw(st.sampled_from(EXAMPLES)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(1, len(digits) - 1))
        match draw(st.sampled_from("cccai d")):
            case "c":
                digits[place] = draw(st.sampled_from("0123456789"))
            case "a" | "i":
                digits.insert(place, draw(st.sampled_from("0123456789")))
            case _ if len(digits) > 3:
                del digits[place]
    return "".join(digits)


def test_every_example_of_every_region_is_judged_as_phonenumbers_does() -> None:
    assert len(EXAMPLES) > 900
    assert [number for number in EXAMPLES + PREFIXED if plausible(number) != _truth(number)] == []


@given(near_misses())
def test_plausible_is_exactly_valid(recipient: str) -> None:
    assert plausible(recipient) == _truth(recipient)


@given(st.from_regex(r"\+\d{1,16}", fullmatch=True) | st.text(max_size=20))
@example("")
@example("+")
@example("+٣٣٦١٢٣٤٥٦٧٨")  # phonenumbers reads these digits; canonical they are not
@example("+33612345678\n")
@example("+999123456789")
def test_plausible_is_exact_for_any_text(recipient: str) -> None:
    assert plausible(recipient) == _truth(recipient)


def test_the_home_of_every_example_is_the_one_it_is_read_with() -> None:
    for number in EXAMPLES + PREFIXED:
        found = read(number, "sms")
        at_home = isinstance(found, Address) and found.e164 == number
        assert home(number) == ((found.region or "") if at_home and isinstance(found, Address) else None), number


@given(near_misses())
def test_the_home_of_any_number_is_the_one_it_is_read_with(recipient: str) -> None:
    found = read(recipient, "sms")
    if plausible(recipient):
        assert isinstance(found, Address)
        assert home(recipient) == (found.region or "")


@given(near_misses())
def test_what_is_plausible_is_read_as_it_stands(recipient: str) -> None:
    found = read(recipient, "sms")
    assert plausible(recipient) == (isinstance(found, Address) and found.e164 == recipient)


@given(
    st.text() | st.text("+0123456789 ()-./٣٤\u2011ext;=", max_size=70), st.sampled_from([None, "FR", "US", "AR", "XX"])
)
def test_any_text_is_read_or_refused_and_never_repeated(recipient: str, region: str | None) -> None:
    found = read(recipient, "sms", region)
    if isinstance(found, Unreadable):
        digits = "".join(letter for letter in recipient if letter.isdigit())
        assert len(digits) < 4 or digits not in found.reason
    else:
        assert plausible(found.e164)


@pytest.mark.parametrize(
    "written",
    ["+33612345678", "+33 6 12 34 56 78", " +33 (6) 12-34-56-78 ", "+33.6.12.34.56.78", "+33 6\xa012\u201134 56 78"],
)
def test_a_number_is_read_however_it_is_written(written: str) -> None:
    assert read(written, "sms") == Address("+33612345678", "FR", "mobile")


def test_a_national_number_needs_its_region() -> None:
    assert read("06 12 34 56 78", "sms", "FR") == Address("+33612345678", "FR", "mobile")
    found = read("06 12 34 56 78", "sms")
    assert isinstance(found, Unreadable)
    assert "no country code" in found.reason


@pytest.mark.parametrize(
    ("recipient", "address"),
    [
        ("+14155552671", Address("+14155552671", "US", "fixed_line_or_mobile")),
        ("+16135550123", Address("+16135550123", "CA", "fixed_line_or_mobile")),
        ("+18005551234", Address("+18005551234", "US", "toll_free")),
        ("+390612345678", Address("+390612345678", "IT", "fixed_line")),
        ("+80012345678", Address("+80012345678", None, "toll_free")),
    ],
)
def test_region_and_kind_are_told(recipient: str, address: Address) -> None:
    assert read(recipient, "whatsapp") == address


@pytest.mark.parametrize(
    ("recipient", "told"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("()", "no digits"),
        ("alice@example.org", "other characters"),
        ("whatsapp:+33612345678", "other characters"),
        ("+33612345678 ext 5", "other characters"),
        ("1-800-FLOWERS", "other characters"),
        ("+" + "3" * LENGTH_MAX, "longer than"),
        ("+33123", "short code"),
        ("+9991234567", "no country code"),
        ("+336123456789012345678", "too long"),
        ("+336123456", "too few or too many"),
        ("+33000000000", "no such number"),
        ("+33891234567", "premium-rate"),
    ],
)
def test_a_bad_number_is_refused_with_a_reason(recipient: str, told: str) -> None:
    found = read(recipient, "sms")
    assert isinstance(found, Unreadable)
    assert told in found.reason


def test_a_short_code_is_no_recipient() -> None:
    found = read("12345", "sms", "US")
    assert isinstance(found, Unreadable)
    assert "short code" in found.reason


def test_other_channels_do_not_go_to_telephones() -> None:
    assert "email" not in PHONE_CHANNELS
    assert isinstance(read("+33612345678", "email"), Unreadable)


@pytest.mark.parametrize(
    ("recipient", "shown"),
    [("+33612345678", "+33*******78"), ("+1234567", "+12***67"), ("+123456", "*******"), ("", "")],
)
def test_a_number_is_masked(recipient: str, shown: str) -> None:
    assert mask(recipient) == shown


@given(st.text())
def test_a_mask_shows_five_characters_at_most(recipient: str) -> None:
    shown = mask(recipient)
    assert len(shown) <= LENGTH_MAX
    assert shown.count("*") >= min(len(recipient), LENGTH_MAX) - 5
