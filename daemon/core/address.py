"""
Telephone numbers: reading what an application wrote, and a quick look that spares most of them the reading.

Everything known about the world's numbering plans comes from phonenumbers (Google's libphonenumber metadata).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import phonenumbers
from phonenumbers import NumberParseException, PhoneMetadata, PhoneNumberFormat, PhoneNumberType

if TYPE_CHECKING:
    from collections.abc import Callable

    from phonenumbers import PhoneNumber, PhoneNumberDesc

LENGTH_MAX = 64  # nobody formats a number longer than this
SHORT_CODE_MAX = 6  # digits; nothing a person is reached at is shorter (E.164 subscriber numbers have 7 and more)
PHONE_CHANNELS = frozenset({"sms", "whatsapp", "rcs"})
CACHED = 65_536  # numbers remembered: reading one costs 60 to 100 µs
AT_HAND = 4_096  # and answers of home(), each asked for several times within moments

_KINDS = {
    value: name.lower() for name, value in vars(PhoneNumberType).items() if name.isupper() and isinstance(value, int)
}
# Digits of any script, and the punctuation people set between them. No letters: phonenumbers would find a number
# inside prose, and spell vanity numbers.
_WRITTEN = re.compile(r"\s*[++]?[\d\s().\-/\u00ad\u2010-\u2015\u2212\u2060]*\s*").fullmatch
_MISREAD = {
    NumberParseException.INVALID_COUNTRY_CODE: "no country code (write +..., or give the service a default region)",
    NumberParseException.NOT_A_NUMBER: "no digits in it",
    NumberParseException.TOO_SHORT_AFTER_IDD: "too short",
    NumberParseException.TOO_SHORT_NSN: "too short",
    NumberParseException.TOO_LONG: "too long",
}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a telephone is reached."""

    e164: str
    region: str | None  # ISO 3166 country; None for numbers of no country (satellites, international freephone)
    kind: str  # as phonenumbers calls it: mobile, fixed_line, fixed_line_or_mobile, toll_free, voip, pager, ...


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Nobody can be reached there. The reason never holds the number itself: reasons are logged, numbers are not."""

    reason: str


@lru_cache(maxsize=CACHED)
def read(recipient: str, channel: str, default_region: str | None = None) -> Address | Unreadable:
    """
    The number an application wrote, as E.164. Any string will do.

    *default_region* (ISO 3166) reads national numbers; without it a number must begin with ``+``.
    """
    if channel not in PHONE_CHANNELS:
        return Unreadable(f"channel {channel} does not go to telephones")
    if len(recipient) > LENGTH_MAX:
        return Unreadable(f"not a phone number: longer than {LENGTH_MAX} characters")
    if not recipient.strip():
        return Unreadable("not a phone number: empty")
    if not _WRITTEN(recipient):
        return Unreadable("not a phone number: it holds other characters than digits and + ( ) . - /")
    try:
        number = phonenumbers.parse(recipient, default_region)
    except NumberParseException as misread:
        return Unreadable(f"not a phone number: {_MISREAD[misread.error_type]}")
    return _judged(number, recipient)


def _judged(number: PhoneNumber, recipient: str) -> Address | Unreadable:
    if not phonenumbers.is_valid_number(number):
        digits = sum(letter.isdecimal() for letter in recipient)
        if digits <= SHORT_CODE_MAX:
            return Unreadable("not a phone number: a short code cannot be a recipient")
        if not phonenumbers.is_possible_number(number):
            return Unreadable(f"not a phone number: {digits} digits are too few or too many for +{number.country_code}")
        return Unreadable(f"not a phone number: no such number in the plan of +{number.country_code}")
    kind = phonenumbers.number_type(number)
    if kind == PhoneNumberType.PREMIUM_RATE:
        return Unreadable("premium-rate number: whoever answers it would be paid for it")
    region = phonenumbers.region_code_for_number(number)
    e164 = phonenumbers.format_number(number, PhoneNumberFormat.E164)
    return Address(e164, region if region and region.isalpha() else None, _KINDS[kind])


def plausible(recipient: str) -> bool:
    """Whether *recipient* is canonical E.164 and :func:`read` would accept it. Exact, and quick: see :func:`home`."""
    return home(recipient) is not None


@lru_cache(maxsize=AT_HAND)
def home(recipient: str) -> str | None:
    """
    The region of *recipient*, as :func:`read` would tell it, when it is canonical E.164: empty for a number of no
    country. None when it is not, or when :func:`read` would refuse it. Exact, and quick (2 µs, not 60 to 100).

    The numbering plan of a calling code is compiled when it is first met (a few milliseconds; +1 takes 40).
    """
    if recipient[:1] != "+":
        return None
    for end in (2, 3, 4):  # calling codes have one to three digits, and none begins another
        plan = _PLANS.get(recipient[1:end])
        if plan is not None:
            return plan(recipient, end)
    return None


def warm(region: str) -> None:
    """Compile the numbering plan of *region* (ISO 3166) before anybody waits for it."""
    plausible(f"+{phonenumbers.country_code_for_region(region)}00000000")


def mask(recipient: str) -> str:
    """*recipient* as it may be logged: ``+33*******78``. What is short is hidden whole, what is long is cut."""
    shown = recipient[:LENGTH_MAX]
    return f"{shown[:3]}{'*' * (len(shown) - 5)}{shown[-2:]}" if len(shown) > 7 else "*" * len(shown)


def _plan(calling_code: int) -> Callable[[str, int], str | None]:
    """A function that says of which region a string holds, from a position on, a valid number of *calling_code*."""

    @cache
    def pattern() -> re.Pattern[str]:
        return _compiled(calling_code)

    def home_of(recipient: str, start: int) -> str | None:
        match = pattern().fullmatch(recipient, start)
        if match is None:
            return None
        if match["prefixed"] is None:
            return "" if match.lastgroup == _NOWHERE else match.lastgroup
        # It begins like a national prefix. phonenumbers may strip that and read another number: ask.
        found = read(recipient, "sms")
        return found.region or "" if isinstance(found, Address) and found.e164 == recipient else None

    return home_of


_NOWHERE = "nowhere"  # the group of a plan that belongs to no country
# "33" -> of which region a string holds a valid number from a position on.
_PLANS = {str(code): _plan(code) for code in phonenumbers.COUNTRY_CODE_TO_REGION_CODE}


def _compiled(calling_code: int) -> re.Pattern[str]:
    """
    The national numbers of *calling_code* that are valid and not premium-rate, each in a group named for its region,
    and whether they look prefixed.
    """
    plans = {
        region if region.isalpha() else _NOWHERE: plan
        for region in phonenumbers.COUNTRY_CODE_TO_REGION_CODE[calling_code]
        if (plan := PhoneMetadata.metadata_for_region_or_calling_code(calling_code, region)) is not None
    }
    # As phonenumbers does: the first region whose leading digits fit, or (having none) whose plan fits, decides.
    choices, claimed = [], ""
    for region, plan in plans.items():
        if len(plans) > 1 and plan.leading_digits is not None:
            choices.append(f"{claimed}(?={plan.leading_digits})(?P<{region}>{_valid(plan)})")
            claimed += f"(?!{plan.leading_digits})"
        else:
            choices.append(f"{claimed}(?P<{region}>{_valid(plan)})")
            claimed += f"(?!{_premium(plan)})"
    prefix = next(iter(plans.values())).national_prefix_for_parsing or r"(?!)"
    return re.compile(f"(?P<prefixed>(?={prefix}))?(?:{'|'.join(choices)})", re.ASCII)


def _valid(plan: PhoneMetadata) -> str:
    # Likeliest first; the order among them does not matter.
    kinds = (plan.mobile, plan.fixed_line, plan.toll_free, plan.voip, plan.uan, plan.shared_cost)
    rare = (plan.personal_number, plan.pager, plan.voicemail)
    known = "|".join(_pattern(kind) for kind in (*kinds, *rare) if kind is not None)
    return f"(?={_pattern(plan.general_desc)})(?!{_premium(plan)})(?:{known})"


def _premium(plan: PhoneMetadata) -> str:
    return f"(?={_pattern(plan.general_desc)}){_pattern(plan.premium_rate)}"


def _pattern(desc: PhoneNumberDesc | None) -> str:
    """One kind of number as a pattern that matches to the very end, or never."""
    if desc is None or not desc.national_number_pattern or desc.possible_length == (-1,):  # -1: there are none
        return r"(?!)"
    lengths = "|".join(rf"\d{{{length}}}\Z" for length in desc.possible_length)  # none given: those of the general plan
    return (rf"(?={lengths})" if lengths else "") + rf"(?:{desc.national_number_pattern})\Z"
