"""
What a test or a person asks the simulator, beside the provider's API::

    GET  /_simulator/              counts; per sender segments, and the most in one second (?rate= judges by that rate)
    GET  /_simulator/ledger        the ledger as JSON lines (?from=N leaves out the first N)
    GET  /_simulator/faults        the faults as they are now
    PUT  /_simulator/faults        all faults anew, as JSON; what is left out has its default
    POST /_simulator/say           {"from", "to", "body"}: a person writes to one of our numbers

No credentials: whoever reaches the port may use it.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import orjson

from daemon.simulator.faults import FaultsError, parse_faults
from daemon.simulator.wire import Answer, Conversation, Request

if TYPE_CHECKING:
    from daemon.simulator.sender import Sender
    from daemon.simulator.server import Simulator

ROOT = "/_simulator/"
BATCH = 500  # lines of the ledger written at once


async def serve(simulator: Simulator, request: Request, talk: Conversation) -> None:
    """Answer one request under :data:`ROOT`."""
    path, _, query = request.target.partition("?")
    asked = dict(parse_qsl(query))
    try:
        match request.method, path.removeprefix(ROOT):
            case "GET", "":
                talk.answer(_json(200, _counts(simulator, asked)))
            case "GET", "ledger":
                await _ledger(simulator, int(asked.get("from", "0")), talk)
            case "GET", "faults":
                talk.answer(_json(200, simulator.faults.model_dump(mode="json")))
            case "PUT", "faults":
                simulator.faults = parse_faults(orjson.loads(request.body))
                talk.answer(_json(200, simulator.faults.model_dump(mode="json")))
            case "POST", "say":
                talk.answer(_json(200, await _say(simulator, request.body)))
            case _:
                talk.answer(_json(404, {"error": f"no {request.method} {path} here"}))
    except (FaultsError, ValueError, KeyError, TypeError) as error:
        talk.answer(_json(400, {"error": str(error).split("\n")}))


def _counts(simulator: Simulator, asked: dict[str, str]) -> dict[str, object]:
    rate = float(asked["rate"]) if "rate" in asked else None
    limit = simulator.faults.throttle.of
    return {
        "accepted": simulator.ledger.accepted,
        "errors": dict(simulator.errors),
        "receipts": dict(simulator.receipts),
        "senders": {
            address: _sender(sender, rate or limit(address)) for address, sender in simulator.ledger.senders.items()
        },
        "faults_error": simulator.faults_error,
    }


def _sender(sender: Sender, rate: float | None) -> dict[str, float | None]:
    return {
        "messages": sender.messages,
        "segments": sender.segments,
        "max_in_1s": sender.busiest_second(rate or math.inf),
        "rate": rate,
        "used": sender.used(rate) if rate else None,
    }


async def _ledger(simulator: Simulator, start: int, talk: Conversation) -> None:
    # A copy, because the ledger grows while a slow reader reads; entries are shared, so it costs 8 bytes each.
    lines = iter([entry.line for entry in simulator.ledger.since(start)])
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"
    going = await talk.stream(head)
    while going and (part := b"".join(line() for line in islice(lines, BATCH))):
        going = await talk.stream(part)
    talk.hang_up()


async def _say(simulator: Simulator, body: bytes) -> dict[str, object]:
    said = orjson.loads(body)
    sid, status = await simulator.say(str(said["from"]), str(said["to"]), str(said["body"]), url=said.get("url"))
    return {"sid": sid, "status": status}


def _json(status: int, content: object) -> bytes:
    return Answer(status, orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)).raw()
