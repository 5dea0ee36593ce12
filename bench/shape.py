"""What an installation of the bench has: its senders and services, how many daemons, and what carries its requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.messages import ACCOUNT_SID, senders

if TYPE_CHECKING:
    from pathlib import Path

# 40,000 segments a second: pacing is on, and is not the limit. At half of it a claim's burst waits for its senders, and
# the waits cost 13 %.
SENDERS, TOGETHER = 200, 40_000
SERVICES = {"logins": "otp", "parcels": "delivery", "news": "events", "offers": "marketing"}  # and their intents
# Of a provider's connections bulk may take 80 %: as many as the raw client has in flight.
BULK_SHARE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One installation. Each service has its part of the senders to itself."""

    senders: int = SENDERS
    rate: int = TOGETHER // SENDERS  # of each sender, in segments a second
    daemons: int = 1
    client: str = "wire"  # as config.toml calls what carries the requests
    trusts: Path | None = None  # the certificate that its daemons believe, instead of those of the machine

    def config(self, dsn: str, url: str, in_flight: int) -> str:
        """The file of one of its daemons, but for its ports; with the provider at *url*, *in_flight* requests to it."""
        ours = senders(self.senders)
        lines = [
            f"[database]\nurl = '{dsn}'",
            "[daemon]\nstate = 'state'\nlog_format = 'json'",
            f"[providers.sink]\nkind = 'simulator'\nbase_url = '{url}'\naccount_sid = '{ACCOUNT_SID}'",
            f"auth_token_env = 'SINK_TOKEN'\nconnections = {round(in_flight / BULK_SHARE)}\nclient = '{self.client}'",
        ]
        for one in ours:
            lines.append(f"[[senders]]\naddress = '{one}'\nprovider = 'sink'\ntype = 'toll_free'\nrate = {self.rate}")
            lines.append("country = 'US'")
        for number, name in enumerate(SERVICES):
            lines.append(f"[services.{name}]\nsenders = {ours[number :: len(SERVICES)]}")
        return "\n".join(lines) + "\n"
