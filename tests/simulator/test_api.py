"""The Messages API, spoken to as a stranger would."""

from __future__ import annotations

import asyncio
import re
import socket
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import pytest
from aiohttp import encode_basic_auth

from daemon.simulator import ACCOUNT_SID, AUTH_TOKEN, Faults
from daemon.simulator.faults import Fixed, ReceiptFaults, Uniform

if TYPE_CHECKING:
    from daemon.simulator import Simulator
    from tests.simulator.outside import Client

SERVICE = "MG" + "a" * 32
QUICK = Faults(receipts=ReceiptFaults(sent=Fixed(ms=0), final=Fixed(ms=0)))
EPOCH = "1970-01-01"


async def test_an_accepted_message_is_told_in_full(client: Client) -> None:
    told = await client.create("héllo", StatusCallback="https://example.com/callbacks/twilio/t-1")
    sid = str(told.body["sid"])
    assert told.status == 201
    assert re.fullmatch(r"SM[0-9a-f]{32}", sid)
    assert re.fullmatch(r"RQ[0-9a-f]{32}", told.headers["Twilio-Request-Id"])
    created = str(told.body["date_created"])
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000", created)
    assert abs(parsedate_to_datetime(created) - datetime.now(UTC)) < timedelta(seconds=10)
    uri = f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages/{sid}"
    expected = {
        "account_sid": ACCOUNT_SID,
        "api_version": "2010-04-01",
        "body": "héllo",
        "date_created": created,
        "date_sent": None,
        "date_updated": created,
        "direction": "outbound-api",
        "error_code": None,
        "error_message": None,
        "from": "+15005550006",
        "messaging_service_sid": None,
        "num_media": "0",
        "num_segments": "1",
        "price": None,
        "price_unit": "USD",
        "sid": sid,
        "status": "queued",
        "subresource_uris": {"media": f"{uri}/Media.json"},
        "to": "+14155550123",
        "uri": f"{uri}.json",
    }
    assert told.body == expected


async def test_segments_are_counted_and_told_as_a_string(client: Client, simulator: Simulator) -> None:
    told = await client.create("x" * 161)
    assert told.body["num_segments"] == "2"
    assert simulator.ledger.entries[0].segments == 2


async def test_a_service_chooses_its_sender_later(client: Client) -> None:
    told = await client.create(From="", MessagingServiceSid=SERVICE)
    assert told.body["status"] == "accepted"
    assert told.body["from"] is None
    assert told.body["num_segments"] == "0"
    assert told.body["messaging_service_sid"] == SERVICE


@pytest.mark.parametrize(
    ("code", "form"),
    [
        (21604, {"To": ""}),
        (21603, {"From": ""}),
        (21602, {"body": ""}),
        (21617, {"body": "x" * 1_601}),
        (21211, {"To": "4155550123"}),
        (21211, {"To": "+0123456789"}),
        (21211, {"To": "+1415555012x"}),
        (21212, {"From": "ThisNameIsTooLong"}),
        (21705, {"MessagingServiceSid": "MG1"}),
        (21266, {"To": "+15005550006"}),
        (21624, {"ValidityPeriod": "0"}),
        (21624, {"ValidityPeriod": "36001"}),
        (21624, {"ValidityPeriod": "soon"}),
        (21609, {"StatusCallback": "https://my_host.example.com/x"}),
        (21609, {"StatusCallback": "ftp://example.com/x"}),
        (21211, {"To": "+15005550001"}),
        (21612, {"To": "+15005550002"}),
        (21408, {"To": "+15005550003"}),
        (21610, {"To": "+15005550004"}),
        (21614, {"To": "+15005550009"}),
        (21212, {"From": "+15005550001"}),
        (21606, {"From": "+15005550007"}),
        (21611, {"From": "+15005550008"}),
    ],
)
async def test_a_mistake_has_twilios_code_and_leaves_no_trace(
    client: Client, simulator: Simulator, code: int, form: dict[str, str]
) -> None:
    told = await client.create(**form)
    assert (told.status, told.code) == (400, code)
    assert told.body["more_info"] == f"https://www.twilio.com/docs/errors/{code}"
    assert told.body["status"] == 400
    assert told.body["message"]
    assert len(simulator.ledger) == 0


@pytest.mark.parametrize(
    "form",
    [
        {"body": "x" * 1_600},
        {"ValidityPeriod": "1"},
        {"ValidityPeriod": "36000"},
        {"From": "12345"},
        {"From": "Outrider"},
        {"To": "whatsapp:+14155550123", "From": "whatsapp:+15005550006"},
        {"body": "", "MediaUrl": "https://example.com/a.jpg"},
        {"body": "", "ContentSid": "HX" + "0" * 32},
        {"StatusCallback": "http://127.0.0.1:8080/callbacks/twilio/t?x=1#rc=5&rp=all"},
    ],
)
async def test_what_is_on_the_right_side_of_a_limit_is_accepted(client: Client, form: dict[str, str]) -> None:
    assert (await client.create(**form)).status == 201


async def test_eleven_pictures_are_too_many(client: Client) -> None:
    form = [("To", "+14155550123"), ("From", "+15005550006")] + [("MediaUrl", "https://example.com/a.jpg")] * 11
    assert (await client.ask("POST", f"{client.messages}.json", form)).code == 21623


async def test_json_is_not_understood(client: Client) -> None:
    told = await client.ask("POST", f"{client.messages}.json", json={"To": "+14155550123"})
    assert told.code == 21604


async def test_strangers_are_turned_away(client: Client, simulator: Simulator) -> None:
    told = await client.ask("POST", f"{client.messages}.json", {"To": "x"}, headers={"Authorization": "Basic eA=="})
    assert (told.status, told.code) == (401, 20003)


async def test_what_is_not_there_is_not_found(client: Client) -> None:
    assert (await client.fetch("SM" + "0" * 32)).code == 20404
    assert (await client.ask("GET", "/2010-04-01/Accounts/AC1/Messages.json")).code == 20404
    assert (await client.ask("PATCH", f"{client.messages}.json")).code == 20004


async def test_a_message_moves_on_by_itself(client: Client, simulator: Simulator) -> None:
    simulator.faults = Faults(receipts=ReceiptFaults(sent=Fixed(ms=60), final=Fixed(ms=60)))
    sid = (await client.create()).body["sid"]
    seen: list[object] = []
    while not seen or seen[-1] != "delivered":
        told = await client.fetch(sid)
        if told.body["status"] not in seen:
            seen.append(told.body["status"])
        assert (told.body["date_sent"] is None) == (told.body["status"] == "queued")
    assert seen == ["queued", "sent", "delivered"]


async def test_a_queued_message_can_be_canceled_and_a_sent_one_not(client: Client, simulator: Simulator) -> None:
    simulator.faults = Faults(receipts=ReceiptFaults(sent=Fixed(ms=60_000)))
    sid = (await client.create()).body["sid"]
    assert (await client.ask("POST", f"{client.messages}/{sid}.json", {"Status": "canceled"})).body[
        "status"
    ] == "canceled"
    assert (await client.fetch(sid)).body["status"] == "canceled"
    simulator.faults = QUICK
    sid = (await client.create()).body["sid"]
    assert (await client.ask("POST", f"{client.messages}/{sid}.json", {"Status": "canceled"})).code == 30409


async def test_a_body_can_be_redacted(client: Client) -> None:
    sid = (await client.create("secret")).body["sid"]
    assert (await client.ask("POST", f"{client.messages}/{sid}.json", {"Body": ""})).body["body"] == ""
    assert (await client.fetch(sid)).body["body"] == ""


async def list_bodies(client: Client, **query: str) -> list[object]:
    told = await client.ask("GET", f"{client.messages}.json", params=query)
    assert told.status == 200, told.body
    messages = told.body["messages"]
    assert isinstance(messages, list)
    return [message["body"] for message in messages]


async def test_lists_are_filtered_and_newest_first(client: Client, simulator: Simulator) -> None:
    simulator.faults = QUICK
    for number in range(3):
        await client.create(f"a{number}")
    await client.create("b", To="+14155550199")
    await client.create("c", From="+15005550055")
    assert await list_bodies(client) == ["c", "b", "a2", "a1", "a0"]
    assert await list_bodies(client, To="+14155550199") == ["b"]
    assert await list_bodies(client, From="+15005550055") == ["c"]
    assert await list_bodies(client, To="+14155550123", From="+15005550006") == ["a2", "a1", "a0"]
    assert await list_bodies(client, To="+14155550100") == []


async def test_lists_are_filtered_by_day_and_show_only_what_was_sent(client: Client, simulator: Simulator) -> None:
    simulator.faults = Faults(receipts=ReceiptFaults(sent=Fixed(ms=60_000)))
    await client.create("queued")
    simulator.faults = QUICK
    await client.create("sent")
    today = datetime.now(UTC).date()
    day, before, after = today.isoformat(), str(today - timedelta(days=1)), str(today + timedelta(days=1))
    assert await list_bodies(client) == ["sent", "queued"]
    for query in ({"DateSent>": EPOCH}, {"DateSent>=": before}, {"DateSent<": after}):
        assert await list_bodies(client, **query) == ["sent"]
    if today == datetime.now(UTC).date():  # not at midnight
        assert await list_bodies(client, DateSent=day) == ["sent"]
    assert await list_bodies(client, **{"DateSent>": after}) == []
    assert await list_bodies(client, **{"DateSent<": before}) == []
    assert (await client.ask("GET", f"{client.messages}.json", params={"DateSent": "soon"})).code == 20001


async def test_pages_lead_through_everything_once_while_more_arrives(client: Client) -> None:
    for number in range(7):
        await client.create(str(number))
    path, seen = f"{client.messages}.json?PageSize=3", []
    while path:
        told = await client.ask("GET", path)
        seen += [message["body"] for message in told.body["messages"]]  # type: ignore[attr-defined]
        assert told.body["page_size"] == 3
        path = str(told.body["next_page_uri"] or "")
        await client.create("new")
    assert seen == ["6", "5", "4", "3", "2", "1", "0"]


async def test_the_default_page_has_fifty(client: Client) -> None:
    for _ in range(51):
        await client.create()
    assert len(await list_bodies(client)) == 50


async def test_lists_may_lag(client: Client, simulator: Simulator) -> None:
    simulator.faults = Faults(list_lag_ms=100)
    sid = (await client.create()).body["sid"]
    assert await list_bodies(client) == []
    assert (await client.fetch(sid)).status == 200
    await asyncio.sleep(0.12)
    assert await list_bodies(client) == ["hello"]


async def test_old_messages_are_forgotten(client: Client) -> None:
    from daemon.simulator.messages import Message, Messages

    remembered = Messages(keep=10)
    for number in range(25):
        remembered.add(
            Message(
                number=number, sid=f"SM{number}", to="+1", sender="+2", service="", body="", segments=1,
                media=0, callback="", created=0.0, story=(),
            )
        )  # fmt: skip
    newest, more = remembered.page(to="+1", before=None, size=100, fits=lambda _: True)
    assert [message.number for message in newest] == list(range(24, 14, -1))
    assert not more
    assert remembered.get("SM14") is None
    assert remembered.get("SM15") is not None


async def raw(simulator: Simulator, *parts: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(simulator.url.rsplit(":", 1)[1]))
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.01)
    try:
        async with asyncio.timeout(2):
            return await reader.read()
    finally:
        writer.close()


GET = b"GET /2010-04-01/Accounts/x/Messages.json HTTP/1.1\r\nHost: x\r\n"


async def test_pipelined_requests_are_answered_in_order_however_long_each_takes(simulator: Simulator) -> None:
    simulator.faults = Faults(latency=Uniform(kind="uniform", from_ms=1, to_ms=9))
    path, credentials = f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages.json", encode_basic_auth(ACCOUNT_SID, AUTH_TOKEN)
    head = f"POST {path} HTTP/1.1\r\nAuthorization: {credentials}\r\n"
    forms = [f"To=%2B14155550123&From=%2B15005550006&Body=n{number}" for number in range(50)]
    posts = "".join(f"{head}Content-Length: {len(form)}\r\n\r\n{form}" for form in forms)
    heard = await raw(simulator, posts.encode(), GET + b"Connection: close\r\n\r\n" + GET + b"\r\n")
    assert re.findall(rb'"body":"n(\d+)"', heard) == [b"%d" % number for number in range(50)]
    assert heard.count(b"HTTP/1.1 401") == 1, "nothing is said after the last word"


async def test_many_pipelined_requests_do_not_pile_up_on_the_stack(simulator: Simulator) -> None:
    heard = await raw(simulator, (GET + b"\r\n") * 3_000 + GET + b"Connection: close\r\n\r\n")
    assert heard.count(b"HTTP/1.1 401") == 3_001


async def test_a_request_may_come_byte_by_byte(simulator: Simulator) -> None:
    request = GET + b"Connection: close\r\n\r\n"
    heard = await raw(simulator, *(request[n : n + 7] for n in range(0, len(request), 7)))
    assert heard.startswith(b"HTTP/1.1 401 Unauthorized\r\n")


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (400, b"nonsense\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nno colon\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"),
        (411, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (413, b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nX: " + b"x" * 17_000),
    ],
)
async def test_what_is_not_http_is_refused(simulator: Simulator, status: int, request_: bytes) -> None:
    assert (await raw(simulator, request_)).startswith(b"HTTP/1.1 %d " % status)


async def test_a_client_that_goes_away_early_harms_nobody(client: Client, simulator: Simulator) -> None:
    simulator.faults = Faults(latency=Fixed(ms=50))
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", int(simulator.url.rsplit(":", 1)[1]))) as rude:
            rude.sendall(GET + b"\r\n")
    assert (await client.create()).status == 201
