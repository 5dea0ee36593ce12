"""The configuration: what is accepted, what is refused and in which words, and what is never shown."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from daemon.core.message import LEVELS, Intent, OnAmbiguous
from daemon.settings import (
    INTENTS,
    Duration,
    IntentSettings,
    Settings,
    SettingsError,
    default_rate,
    describe_difference,
    load,
    mask_dsn,
    parse,
    read,
)
from daemon.settings.mistakes import known_keys, secret_keys, table_at
from daemon.settings.model import PROVIDERS, Twilio
from daemon.settings.table import Table

SHIPPED = Path(__file__).parents[2] / "config.toml"

MINIMAL = """
[providers.main]
kind = "simulator"
[[senders]]
address = "+15550100"
provider = "main"
[services.otp]
senders = ["+15550100"]
"""

TOKEN = "3f1c9a5e7b2d4068a1c3e5f7092b4d6f"
TWILIO = f"""
[providers.main]
kind = "twilio"
account_sid = "AC{"0" * 32}"
"""


def settings(extra: str = "", *, base: str = MINIMAL, **environ: str) -> Settings:
    return parse(read(base + extra), environ=environ)


def mistakes(text: str, folder: Path = Path(), **environ: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        parse(read(text), folder=folder, environ=environ)
    return caught.value.mistakes


# --- what is accepted


def test_little_needs_to_be_said() -> None:
    found = settings()
    assert found.database.embedded
    assert found.senders[0].rate == 1.0
    assert found.senders[0].queue_window == 36_000.0
    assert found.intents == INTENTS


def test_hands_are_enough_for_every_connection_and_sender_unless_it_is_said_how_many() -> None:
    senders = "".join(f'[[senders]]\naddress = "+1555{number:07}"\nprovider = "main"\n' for number in range(1_500))
    assert settings().hands == 2_000 + 64
    assert settings(senders).hands == 2 * 1_501
    assert settings("[daemon]\nin_hand = 100\n" + senders).hands == 100
    assert settings(base=MINIMAL.replace("[[", "connections = 4_000\n[[", 1)).hands == 6_000


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("120s", 120), ("10h", 36_000), ("30d", 2_592_000), ("5 min", 300), ("1h 30m", 5_400), ("1.5 h", 5_400)]
    + [(7, 7), (0.25, 0.25), ("250ms", 0.25), ("2 weeks", 1_209_600)],
)
def test_a_span_of_time_is_written_as_people_write_it(said: object, seconds: float) -> None:
    assert Duration.read(said) == pytest.approx(seconds)


@pytest.mark.parametrize("said", ["", "h", "10", "ten s", "-5s", "0s", 0, -1, True, [], "5 parsecs", float("inf")])
def test_what_is_no_span_of_time_is_refused_with_an_example(said: object) -> None:
    with pytest.raises(ValueError, match='such as "120s"'):
        Duration.read(said)


@given(st.floats(0.001, 3e9).map(Duration))
def test_a_span_of_time_is_shown_so_that_it_can_be_read_again(span: Duration) -> None:
    assert Duration.read(str(span)) == pytest.approx(float(span), rel=1e-5)


def test_an_intent_is_overridden_key_by_key() -> None:
    found = settings('[intents]\notp = {attempts = 3}\nmarketing = {level = 2, on_ambiguous = "resolve"}')
    assert found.intent("otp") == INTENTS[Intent.OTP].model_copy(update={"attempts": 3})
    assert found.intent("marketing").level == 2
    assert found.intent("marketing").on_ambiguous is OnAmbiguous.RESOLVE
    assert found.intent("fraud") == INTENTS[Intent.FRAUD]


def test_the_levels_of_the_intents_are_those_of_the_vocabulary() -> None:
    assert {intent: INTENTS[intent].level for intent in Intent} == LEVELS


@pytest.mark.parametrize("word", ["", "no-such-intent"])
def test_a_message_without_intent_waits_longest_and_is_never_doubled_or_dropped(word: str) -> None:
    found = settings().intent(word)
    assert (found.level, found.on_ambiguous) == (3, OnAmbiguous.RESOLVE)


@pytest.mark.parametrize(
    ("kind", "country", "rate"),
    [("short_code", "US", 100), ("toll_free", "US", 3), ("long_code", "CA", 1), ("long_code", None, 1)]
    + [("long_code", "GB", 10), ("alphanumeric", None, 10)],
)
def test_a_sender_of_unknown_rate_speaks_as_fast_as_its_type_may(kind: str, country: str | None, rate: float) -> None:
    assert default_rate(kind, country) == rate


def test_relative_paths_begin_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(MINIMAL.replace("[[", 'faults = "faults.toml"\n[[', 1))
    found = load(tmp_path / "config.toml", environ={})
    assert found.daemon.state == tmp_path / "state"
    assert getattr(found.providers["main"], "faults") == tmp_path / "faults.toml"  # noqa: B009


def test_systemd_says_where_the_state_is() -> None:
    found = settings('[daemon]\nstate = "elsewhere"', STATE_DIRECTORY="/var/lib/outrider:/var/lib/more")
    assert found.daemon.state == Path("/var/lib/outrider")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        settings().daemon.in_hand = 5


# --- what is refused, and in which words


def test_all_mistakes_come_at_once() -> None:
    found = mistakes(
        """
        databse = 1
        [daemon]
        in_hand = true
        log_level = "inof"
        [web.public]
        port = 99999
        [providers.main]
        kind = "twillio"
        [[senders]]
        address = "+15550100"
        provider = "mian"
        [services.otp]
        senders = ["+15550100", "+1555"]
        validity = "soon"
        [services."Big One"]
        senders = ["+15550100"]
        [intents.otpp]
        level = 1
        [intents.otp]
        level = 7
        [templates]
        code = "Your {code.__class__}"
        """
    )
    assert found == (
        'databse: no such key; did you mean "database"?',
        "daemon.in_hand: true should be a valid integer",
        'daemon.log_level: "inof" is not among the words; did you mean "info"?',
        "web.public.port: 99999 should be less than or equal to 65535",
        'providers.main.kind: "twillio" is no kind of provider; did you mean "twilio"?',
        'senders[0].provider: "mian" is not a provider; did you mean "main"?',
        'services."Big One": expected a name of small letters, digits and _ . - that begins with none of . -',
        'services.otp.validity: "soon": expected a span of time such as "120s", "5 min", "10h" or "30d"',
        'services.otp.senders[1]: "+1555" is not a sender; did you mean "+15550100"?',
        "intents.otp.level: 7 should be less than or equal to 3",
        'intents.otpp: "otpp" is no intent; did you mean "otp"?',
        'templates.code: "code.__class__" is no slot: expected a plain name such as {code}',
    )


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ('[services."@x"]\nsenders = ["+15550100"]', 'services."@x": expected a name'),
        ("[services.x]\nsenders = []", "services.x.senders: expected at least one"),
        ("[services.x]", "services.x.senders: is missing"),
        ('[services.x]\nsenders = ["+15550100", "+15550100"]', "is listed more than once"),
        ('[[senders]]\naddress = "+15550100"\nprovider = "main"', "is also that of senders[0]"),
        ('[[senders]]\naddress = "12"\nprovider = "main"\ntype = "short_code"', "expected 3 to 8 digits"),
        ('[[senders]]\naddress = "15550100"\nprovider = "main"', "expected + and 7 to 15 digits"),
        ('[[senders]]\naddress = "123"\nprovider = "main"\ntype = "alphanumeric"', "at least one a letter"),
        ('[[senders]]\naddress = "+15550101"\nprovider = "main"\nrate = 0', "senders[1].rate: 0 should be greater"),
        ('[[senders]]\naddress = "+15550101"\nprovider = "main"\ncountry = "usa"', "two capital letters"),
        ('[web.operator]\nhost = "0.0.0.0"', "a token is required"),
        ('[web.public]\nurl = "sms.example.com"', "such as https://sms.example.com"),
        ('[web.public]\nport = "8080"', 'web.public.port: "8080" should be a valid integer'),
        ('[database]\nurl = "mysql://x"', "begins with postgresql://"),
        ("retention = 5", "retention: expected a table"),
        ('[templates]\nx = "{"', "its braces do not pair"),
        ("[daemon]\ndrain_s = nan", "daemon.drain_s:"),
        ("[retention]\nbody = 99999999999999999999999999", "is no usable span of time"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_was_expected(extra: str, said: str) -> None:
    text = extra + MINIMAL if extra.startswith("retention") else MINIMAL + extra
    (found,) = mistakes(text)
    assert said in found


def test_somebody_must_be_able_to_speak() -> None:
    assert mistakes("") == ("senders: there is none; give at least one [[senders]]",)


@pytest.mark.parametrize(
    ("text", "place"),
    [("a = 1\nb = = 2", "line 2, column 5"), ("a = 1\nb = [", "line 2, column 6, the end of the file")],
)
def test_a_slip_in_the_syntax_is_told_with_line_and_column(text: str, place: str) -> None:
    with pytest.raises(SettingsError, match=place):
        read(text)


def test_a_missing_file_is_a_mistake_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load(tmp_path / "none.toml")
    # By way of sys.modules: the package's name for this module is that of the function in it.
    monkeypatch.setattr(sys.modules["daemon.settings.load"], "PLACES", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(SettingsError, match="found none at"):
        load()


def test_the_embedded_database_is_refused_under_systemd_unless_insisted() -> None:
    (found,) = mistakes(MINIMAL, NOTIFY_SOCKET="/run/systemd/notify")
    assert "is for trials" in found
    assert settings("[database]\ntrial = true", NOTIFY_SOCKET="/run/systemd/notify").database.embedded


# --- secrets


@pytest.mark.parametrize("way", ["file", "env", "credential"])
def test_a_secret_is_named_and_found(way: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    name = "THE_TOKEN" if way == "env" else "token"
    text = TWILIO + f'auth_token_{way} = "{name}"' + MINIMAL.split('"simulator"')[1]
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "THE_TOKEN": TOKEN}
    provider = parse(read(text), folder=tmp_path, environ=environ).providers["main"]
    assert provider.auth_token.get_secret_value() == TOKEN
    assert TOKEN not in repr(provider)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "auth_token: is missing; give auth_token_file, auth_token_env or auth_token_credential"),
        (f'auth_token = "{TOKEN}"', "a secret must not stand in this file"),
        (f'auth_tokn = "{TOKEN}"', "auth_tokn: no such key; did you mean"),
        (f'auth_token_file = "{TOKEN}"', "cannot read (not shown: it looks like the secret itself)"),
        (f'auth_token_env = "{TOKEN}"', "(not shown: it looks like the secret itself) is not set"),
        ('auth_token_env = "NOT_THERE"', '"NOT_THERE" is not set'),
        ('auth_token_env = "EMPTY"', '"EMPTY" is empty'),
        ('auth_token_file = "secrets/token"', 'cannot read "secrets/token": No such file'),
        ('auth_token_credential = "../token"', "expected the plain name of a credential"),
        ('auth_token_env = "T"\nauth_token_file = "t"', "is given 2 times"),
        ("auth_token_env = 5", "auth_token_env: expected a text in quotes"),
        (f'auth_token_env = "T"\napi_key_sid = "{TOKEN}"', "expected SK and 32 hexadecimal digits"),
        (f'auth_token_env = "T"\napi_key_sid = "SK{TOKEN}"', "give both or none"),
        (f'auth_token_env = "T"\nbase_url = "https://u:{TOKEN}@x"', "must not hold a user name"),
        (f'auth_token_env = "T"\nconnections = ["{TOKEN}"]', "should be a valid integer"),
    ],
)
def test_what_is_wrong_with_a_secret_is_told_without_it(line: str, said: str) -> None:
    text = TWILIO + line + MINIMAL.split('"simulator"')[1]
    environ = {"T": TOKEN, "EMPTY": " \n", "CREDENTIALS_DIRECTORY": "/nowhere"}
    with pytest.raises(SettingsError) as caught:
        parse(read(text), environ=environ)
    assert said in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert len(caught.value.mistakes) <= 2


SECRET_PLACES = [
    ("database", "url"),
    ("database", "listen_url"),
    ("database", "pasword"),
    ("web", "operator", "token"),
    ("web", "operator", "toke"),
    ("providers", "main", "auth_token"),
    ("providers", "main", "auth_token_file"),
    ("providers", "main", "auth_token_credential"),
    ("providers", "main", "api_key_secret"),
    ("providers", "main", "account_sid"),
    ("providers", "main"),
    ("providers", "main", "token"),
]


@given(
    st.lists(st.sampled_from(SECRET_PLACES), min_size=1, unique=True),
    st.text("0123456789abcdefABCDEF", min_size=32, max_size=40).filter(lambda text: any(c.isdigit() for c in text)),
    st.booleans(),
)
def test_no_secret_is_ever_told(places: list[tuple[str, ...]], secret: str, listed: bool) -> None:
    data: dict[str, Any] = {"providers": {"main": {"kind": "twilio"}}}
    for place in sorted(places, key=len, reverse=True):
        here: Any = data
        for step in place[:-1]:
            here = here.setdefault(step, {})
        here[place[-1]] = [secret] if listed else secret
    with pytest.raises(SettingsError) as caught:
        parse(data, environ={})
    assert secret not in str(caught.value)


def test_every_secret_of_the_model_is_resolved_before_validation() -> None:
    places = {("database",), ("web", "operator"), *(("providers", kind) for kind in PROVIDERS)}
    data = {"providers": {kind: {"kind": kind} for kind in PROVIDERS}}
    known = {table_at(place, data) for place in places}
    holders = {model for model in tables(Settings) if secret_keys(model)}
    assert holders == known


def test_a_dsn_is_shown_without_its_password() -> None:
    masked = mask_dsn("postgresql://joe:p@ss:w/rd@h1:5432,h2/app?password=x1&sslpassword=x2&application_name=a")
    assert "p@ss" not in masked
    assert "w/rd" not in masked
    assert "x1" not in masked
    assert "x2" not in masked
    assert masked.startswith("postgresql://joe:***@h1:5432,h2/app")
    assert "hunter2" not in repr(
        settings("", DSN="postgresql://u:hunter2@h/d", base=MINIMAL + '[database]\nurl_env = "DSN"')
    )


# --- reloading


def test_a_difference_is_told_line_by_line() -> None:
    two = '[[senders]]\naddress = "+15550101"\nprovider = "main"\nrate = 10\n'
    old = settings(two + '[database]\nurl_env = "DSN"\n[templates]\nx = "a"', DSN="postgresql://u:old@h/d")
    new = settings(
        two.replace("= 10", "= 20").replace("1\n", '1"\n').replace('1""', '1"')
        + '[services.more]\nsenders = ["+15550101"]\nvalidity = "5 min"\n'
        + '[database]\nurl_env = "DSN"\n[templates]\nx = "b"\n[intents.otp]\nretry_cap = "1 min"\n[web.public]\nport = 9',
        DSN="postgresql://u:new@h/d",
    )
    assert describe_difference(old, new) == [
        "database url: changed",
        "web public port: 8080 -> 9",
        "senders +15550101 rate: 10 -> 20",
        "services more: added",
        "intents otp retry_cap: 8s -> 1min",
        "templates x: changed",
    ]
    assert describe_difference(new, old)[3] == "services more: removed"
    assert describe_difference(old, old) == []


def test_a_changed_secret_is_told_without_it() -> None:
    def with_token(token: str) -> Settings:
        twilio = Twilio(account_sid="AC" + "0" * 32, auth_token=SecretStr(token))
        return Settings(providers={"main": twilio})

    lines = describe_difference(with_token("one"), with_token("two"))
    assert lines == ["providers main auth_token: changed"]


def test_what_is_said_of_one_intent_s_dead_letters_leaves_the_others_as_they_were() -> None:
    found = settings("[retention]\ndead_by_intent = { marketing = '180d' }").retention
    assert {word.value: str(span) for word, span in found.dead_by_intent.items()} == {"otp": "1d", "marketing": "180d"}
    assert settings("[retention.dead_by_intent]\notp = '5 min'").retention.dead_by_intent == {Intent.OTP: 300.0}
    (said,) = mistakes(MINIMAL + "[retention.dead_by_intent]\npigeons = '1d'")
    assert "retention.dead_by_intent" in said


def test_the_digest_knows_who_sends_what_and_nothing_else() -> None:
    same = [
        settings("[daemon]\nlog_level = 'debug'\nin_hand = 7"),
        settings("[database]\nurl_env = 'DSN'", DSN="postgresql://h/d"),
        settings("[web.public]\nport = 99"),
        settings("[retention]\nbody = '1d'"),
    ]
    other = [
        settings("[services.more]\nsenders = ['+15550100']"),
        settings("[intents.otp]\nattempts = 2"),
        settings("[templates]\nx = 'y'"),
        settings(base=MINIMAL.replace('provider = "main"', 'provider = "main"\nrate = 2')),
    ]
    digests = [found.digest() for found in (settings(), *other)]
    assert {found.digest() for found in same} == {digests[0]}
    assert len(set(digests)) == len(digests)


def test_the_digest_is_the_same_in_every_process() -> None:
    program = (
        "from pathlib import Path; from daemon.settings import load;"
        "import sys; print(load(Path(sys.argv[1]), environ={}).digest())"
    )
    seeds = ("0", "1")
    found = {
        subprocess.run(
            [sys.executable, "-c", program, str(SHIPPED)],
            env={"PYTHONHASHSEED": seed},
            cwd=SHIPPED.parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in seeds
    }
    assert found == {load(SHIPPED, environ={}).digest() + "\n"}


def test_senders_of_one_campaign_are_held_together() -> None:
    two = '[[senders]]\naddress = "+1555010{}"\nprovider = "main"\ncampaign = "C"\n'
    found = settings(two.format(1) + two.format(2)).groups()
    assert [group.senders for group in found] == [("+15550100",), ("+15550101", "+15550102")]


# --- the file we ship

# What belongs to an installation and has no default: in the shipped file these are examples.
EXAMPLES = {"account_sid", "address", "provider", "senders", "kind", "type", "country", "validity"}


def tables(model: type[Table], seen: set[type[Table]] | None = None) -> set[type[Table]]:
    """*model* and every table below it."""
    seen = set() if seen is None else seen
    if model not in seen:
        seen.add(model)
        for field in model.model_fields.values():
            for inner in mentioned(field.annotation):
                tables(inner, seen)
    return seen


def mentioned(annotation: Any) -> list[type[Table]]:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return [annotation]
    return [table for part in getattr(annotation, "__args__", ()) for table in mentioned(part)]


def uncommented() -> str:
    """The shipped file with every commented key in force: ``#key`` is one, ``# word`` explains."""
    return re.sub(r"^#(?=[a-z\[])", "", SHIPPED.read_text(), flags=re.MULTILINE)


def written() -> list[tuple[type[Table], dict[str, Any]]]:
    """Every table of the uncommented file, with its model."""
    data = tomllib.loads(uncommented())
    places: list[tuple[str | int, ...]] = [("database",), ("daemon",), ("web", "public"), ("web", "operator")]
    places += [("retention",)]
    places += [(group, name) for group in ("providers", "services", "intents") for name in data[group]]
    places += [("senders", index) for index in range(len(data["senders"]))]
    found = []
    for place in places:
        here: Any = data
        for step in place:
            here = here[step]
        model = table_at(place, data)
        assert model is not None
        found.append((model, here))
    return found


def test_the_shipped_file_runs_as_a_trial_at_once() -> None:
    found = load(SHIPPED, environ={})
    assert found.database.embedded
    assert {provider.kind for provider in found.providers.values()} == {"simulator"}
    assert {"otp", "notifications", "marketing"} == set(found.services)
    assert len({sender.rate for sender in found.senders}) > 2


def test_the_shipped_file_has_every_key() -> None:
    missing = {
        (model.__name__, key)
        for model in tables(Settings)
        for key in known_keys(model)
        if not any(key in table for other, table in written() if other is model)
    }
    nested = {("Settings", key) for key in Settings.model_fields} | {("Web", "public"), ("Web", "operator")}
    told = {("Database", f"{key}_{way}") for key in ("url", "listen_url") for way in ("file", "env", "credential")}
    assert missing - nested == told
    assert all(re.search(rf"\b{key}\b", SHIPPED.read_text()) for _, key in told)
    assert set(tomllib.loads(uncommented())) == set(Settings.model_fields)
    assert set(tomllib.loads(uncommented())["intents"]) == set(Intent)


def test_the_shipped_file_shows_the_defaults() -> None:
    for model, table in written():
        for key, value in table.items():
            field = model.model_fields.get(key)
            if field is None or key in EXAMPLES or field.default is None or model.__name__ == "IntentSettings":
                continue
            if key == "rate":
                assert value in {default_rate(table["type"], table["country"]), 10.0}
            elif isinstance(field.default, Duration):
                assert Duration.read(value) == field.default, key
            elif isinstance(field.default, Mapping):
                assert {word: Duration.read(span) for word, span in value.items()} == field.default, key
            else:
                assert value == (str(field.default) if isinstance(field.default, Path) else field.default), key


def test_the_shipped_file_shows_the_defaults_of_every_intent() -> None:
    commented = tomllib.loads(uncommented())["intents"]
    found = settings("\n[intents]\n" + "\n".join(re.findall(r"^#(\w+ += \{.*\})$", SHIPPED.read_text(), re.MULTILINE)))
    assert found.intents == INTENTS
    assert all(set(table) == set(IntentSettings.model_fields) for table in commented.values())


def test_the_real_provider_in_the_shipped_file_is_right_once_filled_in() -> None:
    text = uncommented().replace("x" * 32, "0" * 32).replace('"one"', '"two"')
    # Of the three ways to name a secret, the example shows all and a person keeps one.
    text = re.sub(r"^\w+_(file|credential) = .*\n", "", text, flags=re.MULTILINE)
    names = set(re.findall(r'_env = "(\w+)"', text))
    found = parse(read(text), environ=dict.fromkeys(names, "postgresql://secret"))
    assert found.providers["twilio"].kind == "twilio"
    assert found.senders[0].campaign == "CMxxxxxxxx"
