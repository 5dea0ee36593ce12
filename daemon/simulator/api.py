"""The Messages resource: create, list, fetch, cancel, redact. Gives answers; the server writes them, or does not."""

from __future__ import annotations

import base64
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, urlencode

import orjson

from daemon.simulator.fate import Dice, News, Rolls, callbacks, pick, story
from daemon.simulator.faults import UNACCEPTED, Faults, Trouble
from daemon.simulator.ledger import Entry, Ledger, body_hash
from daemon.simulator.messages import Message, Messages
from daemon.simulator.throttle import Throttles
from daemon.simulator.twilio import VERSION, Order, Refusal, read_form, read_order, receipt, resource, token
from daemon.simulator.wire import Answer, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.simulator.receipts import Postman
    from daemon.simulator.settings import Settings

PAGE_SIZE = 50
PAGE_SIZE_MAX = 1_000
READ_ROLL = 0.5  # reads take the median latency: they shall not use up the dice of creates


class Reply(NamedTuple):
    """An answer, when it is due, and what happens to it on the way."""

    answer: Answer
    latency_s: float = 0.0
    trouble: Trouble | None = None
    token: str = ""  # of a create: Outrider's name for the attempt


class Api:
    """One account's messages."""

    def __init__(self, settings: Settings, *, faults: Faults, ledger: Ledger, postman: Postman) -> None:
        self.faults = faults
        self.dice = Dice(faults.seed)
        self.counts: Counter[str] = Counter()  # refusals by code, and troubles by name
        self._account = settings.account_sid
        self._basic = b"Basic " + base64.b64encode(f"{settings.account_sid}:{settings.auth_token}".encode())
        self._path = f"/{VERSION}/Accounts/{settings.account_sid}/Messages"
        self._ledger = ledger
        self._postman = postman
        self._messages = Messages(settings.keep)
        self._throttles = Throttles()
        self._bits = Random().getrandbits

    def reply(self, request: Request) -> Reply:
        """What is answered to *request*."""
        if request.headers.get(b"authorization") != self._basic:
            return self._refuse(Refusal(20003))
        path, _, query = request.target.partition("?")
        if path == self._path + ".json":
            match request.method:
                case "POST":
                    return self._create(request.body)
                case "GET":
                    return self._list(query)
                case _:
                    return self._refuse(Refusal(20004))
        sid = path.removeprefix(self._path + "/").removesuffix(".json")
        message = self._messages.get(sid)
        if message is None:
            return self._refuse(Refusal(20404))
        match request.method:
            case "GET":
                return self._told(200, message)
            case "POST":
                return self._update(message, dict(read_form(request.body)))
            case _:
                return self._refuse(Refusal(20004))

    def new_sid(self) -> str:
        """A SID nobody has had."""
        return f"SM{self._bits(128):032x}"

    def _create(self, body: bytes) -> Reply:
        rolls = self.dice.throw()
        latency_s = self.faults.latency.seconds(rolls.latency)
        order = read_order(read_form(body))
        if isinstance(order, Refusal):
            return self._refuse(order, latency_s)
        return self._judge(order, rolls, latency_s)._replace(token=token(order.callback))

    def _judge(self, order: Order, rolls: Rolls, latency_s: float) -> Reply:
        faults = self.faults
        name = pick(faults.errors, rolls.error)
        if name and name.isdigit():
            return self._refuse(Refusal(int(name)), latency_s)
        trouble = Trouble(name) if name else None
        if trouble in UNACCEPTED:
            self.counts[str(trouble)] += 1
            return Reply(Answer(502, b""), latency_s, trouble)
        rate = faults.throttle.of(order.sender)
        now = time.monotonic()
        if rate and not self._throttles.admit(order.sender, order.segments, rate=rate, now=now):
            return self._refuse(Refusal(20429, faults.throttle.retry_after_s), latency_s)
        if trouble:
            self.counts[str(trouble)] += 1
        return self._told(201, self._accept(order, rolls, now), latency_s, trouble)

    def _accept(self, order: Order, rolls: Rolls, mono: float) -> Message:
        faults, wall, sid = self.faults, time.time(), self.new_sid()
        sender = order.sender or order.service
        self._ledger.note(
            Entry(sid, wall, mono, token(order.callback), order.to, sender, order.segments, body_hash(order.body))
        )
        message = Message(
            number=self._ledger.accepted,
            sid=sid,
            to=order.to,
            sender=order.sender,
            service=order.service,
            body=order.body,
            segments=order.segments,
            media=order.media,
            callback=order.callback,
            created=wall,
            story=story(faults, rolls, order.to, pooled=bool(order.service)),
        )
        self._messages.add(message)
        if order.callback:
            for news in callbacks(faults, rolls, order.to, message.story):
                self._post(message, news)
        return message

    def _post(self, message: Message, news: News) -> None:
        self._postman.post(news.after_s, message.callback, partial(self._receipt, message, news))

    def _receipt(self, message: Message, news: News) -> dict[str, str] | None:
        if message.canceled is not None and news.status != "canceled":
            return None
        return receipt(message, self._account, news.status, news.code, time.time())

    def _update(self, message: Message, form: dict[str, str]) -> Reply:
        if form.get("Status") == "canceled":
            now = time.time()
            if message.now(now).status not in ("accepted", "queued"):
                return self._refuse(Refusal(30409))
            message.canceled = now
            if message.callback and self.faults.receipts.enabled:
                self._post(message, News(0.0, "canceled"))
        elif form.get("Body") == "":
            message.body = ""
        else:
            return self._refuse(Refusal(20001))
        return self._told(200, message)

    def _list(self, query: str) -> Reply:
        asked = dict(parse_qsl(query))
        try:
            size = min(max(int(asked.get("PageSize", PAGE_SIZE)), 1), PAGE_SIZE_MAX)
            before = int(asked["PageToken"].removeprefix("PA")) if "PageToken" in asked else None
            fits = _filter(asked, time.time(), self.faults.list_lag_ms / 1000)
        except ValueError:
            return self._refuse(Refusal(20001))
        page, more = self._messages.page(to=asked.get("To"), before=before, size=size, fits=fits)
        number = int(asked.get("Page", "0")) if asked.get("Page", "0").isdigit() else 0
        following = asked | {"PageSize": str(size), "Page": str(number + 1)}
        start = {name: value for name, value in asked.items() if name not in ("Page", "PageToken")}
        content = {
            "end": number * size + len(page) - 1,
            "first_page_uri": f"{self._path}.json?{urlencode(start | {'PageSize': str(size), 'Page': '0'})}",
            "messages": [orjson.Fragment(resource(message, self._account, time.time())) for message in page],
            "next_page_uri": f"{self._path}.json?{urlencode(following | {'PageToken': f'PA{page[-1].number}'})}"
            if more
            else None,
            "page": number,
            "page_size": size,
            "previous_page_uri": None,
            "start": number * size,
            "uri": f"{self._path}.json?{query}",
        }
        return Reply(Answer(200, orjson.dumps(content), self._headers()), self.faults.latency.seconds(READ_ROLL))

    def _told(
        self, status: int, message: Message, latency_s: float | None = None, trouble: Trouble | None = None
    ) -> Reply:
        body = resource(message, self._account, time.time())
        wait_s = self.faults.latency.seconds(READ_ROLL) if latency_s is None else latency_s
        return Reply(Answer(status, body, self._headers()), wait_s, trouble)

    def _refuse(self, refusal: Refusal, latency_s: float = 0.0) -> Reply:
        self.counts[str(refusal.code)] += 1
        headers = self._headers()
        if refusal.retry_after_s is not None:
            headers += b"Retry-After: %d\r\n" % refusal.retry_after_s
        return Reply(Answer(refusal.status, refusal.body(), headers), latency_s)

    def _headers(self) -> bytes:
        return b"Content-Type: application/json\r\nTwilio-Request-Id: RQ%032x\r\n" % self._bits(128)


def _filter(asked: dict[str, str], now: float, lag_s: float) -> Callable[[Message], bool]:
    """Which messages a list shows. Filters by date leave out what is not sent yet, as Twilio's do. ValueError."""
    since, until = float("-inf"), float("inf")
    for name, value in asked.items():
        if name in ("DateSent", "DateSent>", "DateSent>="):
            since = _moment(value, end=False)
        if name in ("DateSent", "DateSent<", "DateSent<="):
            until = _moment(value, end=True)
    dated = since > float("-inf") or until < float("inf")
    sender = asked.get("From")

    def fits(message: Message) -> bool:
        if message.created > now - lag_s or (sender is not None and message.sender != sender):
            return False
        sent = message.sent_at(now)
        return not dated or (sent is not None and since <= sent <= until)

    return fits


def _moment(text: str, *, end: bool) -> float:
    """Seconds since the epoch of a moment; a bare date means its first moment, or its last. UTC."""
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if end and len(text) == len("2026-01-31"):
        moment += timedelta(days=1, microseconds=-1)
    return moment.timestamp()
