"""
A provider to practise on: speaks Twilio's Messages API, keeps a ledger, and misbehaves on command.

It is the judge of every promise about the outside world: what was really sent stands in its ledger, written before it
answers. The rooms, from the wire inwards::

    server.py      the Simulator: listens, is late, breaks connections, watches the faults file
    wire.py        HTTP/1.1, small and quick, able to break on purpose
    api.py         the Messages resource: create, list, fetch, cancel, redact
    admin.py       what a test or a person asks it: /_simulator/
    twilio.py      the dialect: what is wrong with a request, how a message is written, the signature
    messages.py    the messages it remembers, and what has become of each by now
    ledger.py      every accepted POST, one line each
    sender.py      what one sender has sent, countable while it goes on
    throttle.py    429 for a sender that is too fast
    faults.py      what shall go wrong, as a TOML file       faults.toml   an example with every key
    fate.py        dice and faults in, a message's fate out
    receipts.py    signed callbacks, late, doubled, swapped or lost
    agenda.py      things to be done later: one heap, one timer

Use it as ``outrider simulate``, or inside a test::

    async with Simulator(faults=Faults(errors={"timeout_after_accept": 0.01})) as simulator:
        ...  # talk to simulator.url
        assert simulator.ledger.max_in_window("+15005550006", rate=10) <= 10
"""

from daemon.simulator.faults import Faults, FaultsError, read_faults
from daemon.simulator.ledger import Entry, Ledger, body_hash
from daemon.simulator.server import Simulator, serve
from daemon.simulator.settings import ACCOUNT_SID, AUTH_TOKEN, Settings

__all__ = [
    "ACCOUNT_SID",
    "AUTH_TOKEN",
    "Entry",
    "Faults",
    "FaultsError",
    "Ledger",
    "Settings",
    "Simulator",
    "body_hash",
    "read_faults",
    "serve",
]
