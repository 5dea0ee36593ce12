"""The files the demo's processes are given: plain text, so that a person who keeps the folder can read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.demo.scenario import Speaker

EXCHANGE_S = 3.0  # how long the daemon waits for an answer; the provider of the demo answers within 0.2 s, or never
RESOLVE_S = 6  # how long evidence is looked for; minutes in earnest, but nobody watches a demo for minutes
# In earnest a notification would be looked for longer, and then parked for a person.
POLICIES = {"otp": "resend", "notifications": "resend", "marketing": "drop"}


# About two creates in a hundred, and what happens to receipts.
FAULTS = """\
# Made by `outrider demo`; read again when it changes. Shares of all requests, or of all messages.
seed = @seed@

[latency]
kind = "uniform"
from_ms = 20
to_ms = 150

[errors]
timeout_after_accept = 0.004    # took the message, never answers
reset_after_accept = 0.003      # took it, drops the connection
html_502_after_accept = 0.002   # took it, and its proxy says no
empty_201 = 0.002               # took it, says nothing
reset_before_answer = 0.002     # did not take it; looks just the same
20429 = 0.003                   # too many requests, says it
21614 = 0.003                   # not a mobile number
21610 = 0.002                   # this person has said stop

[throttle]                      # a sender that is faster than it may is told so
retry_after_s = 1
[throttle.rates]
@rates@

[receipts]
missing = 0.004
late = 0.02
duplicates = 0.03
reversed = 0.03

[receipts.sent]
kind = "uniform"
from_ms = 50
to_ms = 300

[receipts.final]
kind = "uniform"
from_ms = 200
to_ms = 1500

[receipts.late_by]
kind = "uniform"
from_ms = 1000
to_ms = 5000

[receipts.undelivered]
30003 = 0.008                   # the handset is off
30005 = 0.005                   # no such number

[receipts.failed]
30007 = 0.004                   # filtered by the carrier
"""


def config(speakers: Sequence[Speaker], *, provider_url: str, public_port: int, operator_port: int) -> str:
    """The daemon's config.toml."""
    services: dict[str, list[str]] = {}
    for speaker in speakers:
        services.setdefault(speaker.service, []).append(f'"{speaker.address}"')
    tables = [
        f"# Made by `outrider demo`. The pages of this daemon: http://127.0.0.1:{operator_port}/",
        '[database]\nurl = "embedded"\ntrial = true',
        '[daemon]\nstate = "state"\nlog_format = "json"',
        f'[web.public]\nport = {public_port}\nurl = "http://127.0.0.1:{public_port}"',
        f"[web.operator]\nport = {operator_port}",
        f'[providers.practice]\nkind = "simulator"\nbase_url = "{provider_url}"\ntimeout_s = {EXCHANGE_S}',
        *(
            f'[[senders]]\naddress = "{one.address}"\nprovider = "practice"\ntype = "{one.type}"\nrate = {one.rate}'
            for one in speakers
        ),
        *(f"[services.{name}]\nsenders = [{', '.join(senders)}]" for name, senders in services.items()),
        *(
            f'[intents.{name}]\nresolve_for = "{RESOLVE_S}s"\non_ambiguous = "{policy}"'
            for name, policy in POLICIES.items()
        ),
    ]
    return "\n\n".join(tables) + "\n"


def faults(speakers: Sequence[Speaker], *, seed: int) -> str:
    """What the provider does wrong, as its faults.toml."""
    rates = "\n".join(f'"{one.address}" = {one.rate}' for one in speakers)
    return FAULTS.replace("@seed@", str(seed)).replace("@rates@", rates)
