"""Where a simulator listens and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from daemon.settings.model import TRIAL_ACCOUNT_SID, TRIAL_AUTH_TOKEN

if TYPE_CHECKING:
    from pathlib import Path

# What a provider of kind "simulator" has when config.toml says nothing. Public, and worth nothing anywhere.
ACCOUNT_SID = TRIAL_ACCOUNT_SID
AUTH_TOKEN = TRIAL_AUTH_TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    Settings of one simulator.

    Anybody who reaches the port may change its faults and read its ledger: keep it on loopback.
    """

    host: str = "127.0.0.1"
    port: int = 0  # 0: any free one
    account_sid: str = ACCOUNT_SID
    auth_token: str = field(default=AUTH_TOKEN, repr=False)
    ledger: Path | None = None  # appended to; None keeps it in memory only
    faults: Path | None = None  # a TOML file, read again when it changes
    faults_check_s: float = 1.0  # how often the file is looked at
    inbound_url: str | None = None  # where what people say is posted to
    keep: int = 1_000_000  # messages remembered; about 1 KB each. The ledger's file has them all
    callback_connections: int = 64  # callbacks under way at once
    callbacks_waiting: int = 2_000_000  # callbacks not yet due; more are dropped, and counted
