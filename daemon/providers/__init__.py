"""The dialects. Each file is one provider's manual in code; nothing here opens a socket."""

from __future__ import annotations

from daemon.providers.twilio import Twilio

__all__ = ["Twilio"]
