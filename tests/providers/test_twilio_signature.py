"""X-Twilio-Signature: the vectors of Twilio's documentation and of its own libraries' tests, and everything near them."""

from __future__ import annotations

import random
from dataclasses import replace
from urllib.parse import urlencode

import pytest

from daemon.provider import Callback, Forged
from daemon.providers import Twilio, form, twilio_signature
from daemon.providers.twilio import CALLBACK_MAX, PARAMETERS_MAX

CALL = [("CallSid", "CA1234567890ABCDE"), ("Caller", "+14158675309"), ("Digits", "1234")]
CALL += [("From", "+14158675309"), ("To", "+18005551212")]
DOCUMENTED = [(name, value.replace("5309", "5310")) for name, value in CALL]
TWICE = [("Sid", "CA123"), ("SidAccount", "AC123"), ("Digits", "5678"), ("Digits", "1234"), ("Digits", "1234")]
TARGET = "/myapp.php?foo=1&bar=2"
JSON = b'{"property": "value", "boolean": true}'
JSON_TARGET = TARGET + "&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620"


def dialect(public_url: str = "https://mycompany.com", *tokens: str) -> Twilio:
    return Twilio(
        name="twilio", account_sid="AC0", authorization="", auth_tokens=tokens or ("12345",), public_url=public_url
    )


def callback(signature: str, target: str = TARGET, body: bytes | None = None, method: str = "POST") -> Callback:
    body = urlencode(CALL).encode() if body is None else body
    return Callback(method, target, {"x-twilio-signature": signature}, body)


def believed(dialect: Twilio, callback: Callback) -> bool:
    answers = dialect.receipts(callback), dialect.inbound(callback)
    assert isinstance(answers[0], Forged) == isinstance(answers[1], Forged)
    return not isinstance(answers[0], Forged)


@pytest.mark.parametrize(
    ("url", "pairs", "signature"),
    [
        ("https://example.com/myapp.php?foo=1&bar=2", DOCUMENTED, "L/OH5YylLD5NRKLltdqwSvS0BnU="),
        ("https://mycompany.com/myapp.php?foo=1&bar=2", CALL, "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        ("https://mycompany.com:443/myapp.php?foo=1&bar=2", CALL, "kvajT1Ptam85bY51eRf/AJRuM3w="),
        ("http://mycompany.com:80/myapp.php?foo=1&bar=2", CALL, "0ZXoZLH/DfblKGATFgpif+LLRf4="),
        ("http://mycompany.com:1234/myapp.php?foo=1&bar=2", CALL, "Zmvh+3yNM1Phv2jhDCwEM3q5ebU="),
        ("https://mycompany.com/myapp.php?foo=1&bar=2", TWICE, "IK+Dwps556ElfBT0I3Rgjkr1wJU="),
        ("https://mycompany.com" + JSON_TARGET, [], "a9nBmqA0ju/hNViExpshrM61xv4="),
    ],
)
def test_a_signature_is_twilios(url: str, pairs: list[tuple[str, str]], signature: str) -> None:
    assert twilio_signature.sign("12345", url, [(name.encode(), value.encode()) for name, value in pairs]) == signature


@pytest.mark.parametrize(
    ("public_url", "body", "signature"),
    [
        ("https://example.com", urlencode(DOCUMENTED), "L/OH5YylLD5NRKLltdqwSvS0BnU="),
        ("https://example.com/", urlencode(DOCUMENTED), "L/OH5YylLD5NRKLltdqwSvS0BnU="),
        ("https://user:pass@example.com", urlencode(DOCUMENTED), "L/OH5YylLD5NRKLltdqwSvS0BnU="),
        ("https://mycompany.com", urlencode(CALL), "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        ("https://mycompany.com", urlencode(CALL), "kvajT1Ptam85bY51eRf/AJRuM3w="),  # the default port added
        ("https://mycompany.com:443", urlencode(CALL), "RSOYDt4T1cUTdK1PDd93/VVr8B8="),  # ours dropped
        ("https://mycompany.com:8443", urlencode(CALL), "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        ("http://mycompany.com", urlencode(CALL), "0ZXoZLH/DfblKGATFgpif+LLRf4="),
        ("http://mycompany.com:1234", urlencode(CALL), "Zmvh+3yNM1Phv2jhDCwEM3q5ebU="),
        ("https://mycompany.com", urlencode(TWICE), "IK+Dwps556ElfBT0I3Rgjkr1wJU="),
        ("https://mycompany.com", urlencode(list(reversed(TWICE))), "IK+Dwps556ElfBT0I3Rgjkr1wJU="),
    ],
)
def test_a_callback_signed_by_twilio_is_believed(public_url: str, body: str, signature: str) -> None:
    assert believed(dialect(public_url), callback(signature, body=body.encode()))


def test_json_is_signed_by_its_digest() -> None:
    signature = "a9nBmqA0ju/hNViExpshrM61xv4="
    assert believed(dialect(), callback(signature, JSON_TARGET, JSON))
    assert not believed(dialect(), callback(signature, JSON_TARGET, JSON.replace(b"true", b"TRUE")))
    assert not believed(dialect(), callback(signature, JSON_TARGET, b""))
    known = "5ccde7145dfb8f56479710896586cb9d5911809d83afbe34627818790db0aec9"
    assert twilio_signature.fits_body(b'{"CallSid":"CA1234567890ABCDE","Caller":"+12349013030"}', known)


def test_a_get_is_signed_by_its_url_alone() -> None:
    target = "/inbound/twilio?MessageSid=SM1&From=%2B15005550001&To=%2B15005550006&Body=a+b%20c"
    signature = twilio_signature.sign("12345", "https://mycompany.com" + target)
    heard = dialect().inbound(callback(signature, target, b"", "GET"))
    assert heard is not None
    assert not isinstance(heard, Forged)
    assert (heard.recipient, heard.body) == ("+15005550001", "a b c")


def test_both_tokens_count_while_one_is_being_replaced() -> None:
    known = callback("RSOYDt4T1cUTdK1PDd93/VVr8B8=")
    assert believed(dialect("https://mycompany.com", "12345", "67890"), known)
    assert believed(dialect("https://mycompany.com", "67890", "12345"), known)
    assert not believed(dialect("https://mycompany.com", "67890"), known)


def test_empty_unknown_and_untrimmed_values_are_signed_too() -> None:
    pairs = [("MessageSid", "SM1"), ("Body", "  two blanks "), ("Brand New", ""), ("ü", "é\r\n"), ("plain", "")]
    body = urlencode(pairs).encode().replace(b"plain=", b"plain")  # a name without "="
    form = [(name.encode(), value.encode()) for name, value in pairs]
    signature = twilio_signature.sign("12345", "https://mycompany.com" + TARGET, form)
    assert believed(dialect(), callback(signature, body=body))
    trimmed = [(name, value.strip()) for name, value in form]
    assert not believed(
        dialect(), callback(twilio_signature.sign("12345", "https://mycompany.com" + TARGET, trimmed), body=body)
    )


def test_bytes_that_are_no_text_are_signed_as_they_are() -> None:
    body = b"MessageSid=SM1&Body=%FF%FE&Raw=\xff"
    signed = [(b"MessageSid", b"SM1"), (b"Body", b"\xff\xfe"), (b"Raw", b"\xff")]
    signature = twilio_signature.sign("12345", "https://mycompany.com" + TARGET, signed)
    assert believed(dialect(), callback(signature, body=body))


def test_the_host_header_has_no_say() -> None:
    signature = twilio_signature.sign("12345", "https://elsewhere.example" + TARGET)
    forged = Callback(
        "POST",
        TARGET,
        {"x-twilio-signature": signature, "host": "elsewhere.example", "x-forwarded-host": "elsewhere.example"},
        b"",
    )
    assert not believed(dialect(), forged)


def test_a_path_in_front_of_ours_belongs_to_the_url() -> None:
    signature = twilio_signature.sign("12345", "https://mycompany.com/outrider/callbacks/twilio/t")
    assert believed(dialect("https://mycompany.com/outrider/"), callback(signature, "/callbacks/twilio/t", b""))


def test_the_spelling_of_the_url_is_kept() -> None:
    signature = twilio_signature.sign("12345", "https://mycompany.com/a%2fb?c=%7E")
    assert believed(dialect(), callback(signature, "/a%2fb?c=%7E", b""))
    for other in ("/a%2Fb?c=%7E", "/a/b?c=%7E", "/a%2fb?c=~", "/a%2fb/?c=%7E", "/a%2fb"):
        assert not believed(dialect(), callback(signature, other, b""))


def test_a_thousand_changes_are_a_thousand_forgeries() -> None:
    dice = random.Random(4)
    known = callback("RSOYDt4T1cUTdK1PDd93/VVr8B8=")
    tried = 0
    while tried < 1_000:
        changed = replace(known, headers={"x-twilio-signature": _change(dice, known.headers["x-twilio-signature"])})
        part = dice.choice(["signature", "body", "target"])
        if part == "body":
            changed = replace(known, body=_change(dice, known.body.decode("latin-1")).encode("latin-1"))
        elif part == "target":
            changed = replace(known, target=_change(dice, known.target))
        if changed == known or (changed.body != known.body and _signed(changed.body) == _signed(known.body)):
            continue  # the same fields spelled otherwise, or an "=" that moved: the scheme has no delimiters
        tried += 1
        assert not believed(dialect(), changed), changed


def _signed(body: bytes) -> bytes:
    return b"".join(name + value for name, value in sorted(set(form.read(body, most=PARAMETERS_MAX) or ())))


def _change(dice: random.Random, text: str) -> str:
    at, other = dice.randrange(len(text)), chr(dice.randrange(256))
    return text[:at] + dice.choice([other, "", other + text[at]]) + text[at + 1 :]


@pytest.mark.parametrize(
    "signature", ["", "=", "RSOYDt4T1cUTdK1PDd93/VVr8B8", " RSOYDt4T1cUTdK1PDd93/VVr8B8=", "é\ud800", "A" * 1_000_000]
)
def test_what_is_no_signature_does_not_fit(signature: str) -> None:
    assert not believed(dialect(), callback(signature))


def test_a_flood_of_parameters_is_refused_unread() -> None:
    for body in (b"a=1&" * 100_000, b"&" * CALLBACK_MAX, b"a" * (CALLBACK_MAX + 1)):
        assert not believed(dialect(), callback("x", body=body))
        assert not believed(dialect(), callback("x", target="/?" + body.decode()))


def test_no_token_is_a_mistake_of_configuration() -> None:
    for tokens in ((), ("",), ("12345", "")):
        with pytest.raises(ValueError, match="auth token"):
            Twilio(name="t", account_sid="AC0", authorization="", auth_tokens=tokens, public_url="https://a.example")


@pytest.mark.parametrize(
    "public_url",
    ["", "msg.example.com", "ftp://a.example", "https://", "https://a.example/?a=1", "https://a.example/#a"],
)
def test_a_public_url_that_cannot_be_signed_is_a_mistake_of_configuration(public_url: str) -> None:
    with pytest.raises(ValueError, match="public base URL"):
        dialect(public_url)


def test_addresses_in_brackets_keep_them() -> None:
    assert twilio_signature.spellings("http://[::1]:8080/x") == ("http://[::1]/x", "http://[::1]:8080/x")
    assert twilio_signature.spellings("http://[::1]") == ("http://[::1]", "http://[::1]:80")
