"""
The configuration: ``config.toml`` read once, validated whole, frozen.

    model.py       every key, its type, its default        load.py        from a file to values, or to all mistakes
    intents.py     what the eleven intents ask of us       secrets.py     what is named in the file, never written there
    shapes.py      the forms of single values              references.py  what one table says of another
    duration.py    "10h", "5 min"                          mistakes.py    one mistake, one line
    table.py       what all tables share                   difference.py  what a reload changes
"""

from daemon.settings.difference import describe_difference
from daemon.settings.duration import Duration
from daemon.settings.intents import INTENTS, IntentSettings
from daemon.settings.load import PLACES, SettingsError, load, parse, read
from daemon.settings.model import (
    Daemon,
    Database,
    Operator,
    Provider,
    Public,
    Retention,
    Sender,
    SenderType,
    Service,
    Settings,
    Simulator,
    Twilio,
    Web,
    default_rate,
)
from daemon.settings.shapes import EMBEDDED, mask_dsn

__all__ = [
    "EMBEDDED",
    "INTENTS",
    "PLACES",
    "Daemon",
    "Database",
    "Duration",
    "IntentSettings",
    "Operator",
    "Provider",
    "Public",
    "Retention",
    "Sender",
    "SenderType",
    "Service",
    "Settings",
    "SettingsError",
    "Simulator",
    "Twilio",
    "Web",
    "default_rate",
    "describe_difference",
    "load",
    "mask_dsn",
    "parse",
    "read",
]
