"""The status page in a real Chromium: it shows what the daemon says, follows it, and admits when it cannot."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from playwright import async_api as playwright

from daemon.watch import (
    Backlog,
    Balance,
    BreakerState,
    Health,
    History,
    Pace,
    ProviderNow,
    Rates,
    SenderNow,
    SenderState,
    State,
    Status,
    Trouble,
)
from daemon.web import Guard, Listener, operator_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.browser

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
TOKEN = "a token of thirty-two characters"
CALM = Status(
    at=1_800_000_000.0,
    version="0.1.0",
    instance="sms-1",
    state=State.SERVING,
    uptime_s=4_000.0,
    totals={"delivered": 98},
    rates=Rates(sent=Pace(last_10_s=50.0, last_60_s=49.0)),
    history=History(sent=tuple(range(120)), delivered=tuple(range(120))),
    queue=(Backlog(service="login", level=1, messages=2, oldest_due_age_s=0.04),),
    senders=(SenderNow(address="+15550100", provider="twilio", rate=10.0, used=0.5, waiting=3),),
    providers=(ProviderNow(name="twilio", breaker=BreakerState.CLOSED, in_flight=4),),
)


@dataclass
class Stand:
    """A daemon that says what it is told to say."""

    now: Status = CALM

    def health(self) -> Health:
        return Health(alive=True, progressing=True, state=self.now.state)

    def ready(self) -> tuple[bool, str]:
        return True, "serving"

    def metrics(self) -> tuple[bytes, str]:
        return b"", "text/plain"

    def status(self) -> Status:
        return self.now


@dataclass
class Scene:
    """A page, the daemon behind it, and everything the browser complained about."""

    page: playwright.Page
    stand: Stand
    url: str
    stop: asyncio.Event
    serving: asyncio.Task[None]
    complaints: list[str]

    async def sees(self, selector: str, text: str) -> None:
        await playwright.expect(self.page.locator(selector)).to_have_text(text, timeout=10_000)


@pytest.fixture
def chromium() -> Path:
    if not CHROMIUM.exists():
        pytest.skip(f"NOT TESTED IN A BROWSER: {CHROMIUM} is missing (apt-get install chromium)")
    return CHROMIUM


@pytest_asyncio.fixture
async def browser(chromium: Path) -> AsyncIterator[playwright.Browser]:
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(params=[None])
async def scene(browser: playwright.Browser, request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    stand, stop = Stand(), asyncio.Event()
    listener = Listener("operator", operator_app(stand, Guard(request.param)), host="127.0.0.1", port=0)
    serving = asyncio.create_task(listener.run(stop))
    await listener.listening.wait()
    page = await browser.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    yield Scene(page, stand, f"http://127.0.0.1:{listener.port}/", stop, serving, complaints)
    await page.close()
    stop.set()
    await serving


async def test_the_page_follows_the_daemon_without_a_complaint(scene: Scene) -> None:
    await scene.page.goto(scene.url)
    await scene.sees("#answer", "Messages are going out")
    scene.stand.now = replace(
        CALM,
        senders=(replace(CALM.senders[0], state=SenderState.BLOCKED, reason="30034"), *CALM.senders),
        totals={"delivered": 12_345},
    )
    await scene.sees("#answer", "Messages are going out in part")
    await scene.sees("#senders tbody tr:first-child td:nth-child(2)", "blocked: 30034")
    await scene.sees(".card:nth-child(3) .value", "12,345")
    assert await scene.page.locator("#hero").get_attribute("data-tone") == "warn"
    assert await scene.page.locator("#senders rect").first.get_attribute("width") == "50"
    missing = Balance(day="2026-11-26", intent="otp", inserted=7, settled=5, open=0, difference=2)
    scene.stand.now = replace(CALM, senders=(), books=(missing,))
    await scene.sees("#senders .empty", "No senders are configured.")
    await scene.sees("#books tbody td:last-child", "2")
    assert await scene.page.locator("#books tbody td:last-child").get_attribute("data-tone") == "bad"
    assert scene.complaints == []


async def test_what_providers_say_is_shown_as_text(scene: Scene) -> None:
    await scene.page.goto(scene.url)
    evil = "<img src=x onerror=document.title='owned'><b>bold</b>"
    scene.stand.now = replace(CALM, troubles=(Trouble(at=CALM.at - 3, what=evil),))
    await scene.sees("#troubles tbody td:nth-child(2)", evil)
    assert await scene.page.locator("#troubles img, #troubles b").count() == 0


async def test_silence_is_admitted_and_forgiven(scene: Scene) -> None:
    await scene.page.goto(scene.url)
    await scene.sees("#answer", "Messages are going out")
    await scene.page.route("**/api/page", lambda route: route.abort())
    await playwright.expect(scene.page.locator("#stale")).to_be_visible(timeout=10_000)
    assert await scene.page.title() == "No answer · Outrider"
    await scene.page.unroute("**/api/page")
    await playwright.expect(scene.page.locator("#stale")).to_be_hidden(timeout=10_000)


async def test_a_pointer_on_the_chart_reads_one_second(scene: Scene) -> None:
    async with scene.page.expect_response("**/api/page"):
        await scene.page.goto(scene.url)
    async with scene.page.expect_response("**/api/page"):
        pass  # when the second answer comes, the first is shown
    await scene.page.locator("#chart svg").hover(position={"x": 1, "y": 50})
    await scene.sees("#readout", "120 s ago: 0 sent, 0 delivered")


async def test_a_phone_needs_no_sideways_scroll(scene: Scene) -> None:
    await scene.page.set_viewport_size({"width": 360, "height": 740})
    await scene.page.goto(scene.url)
    assert await scene.page.evaluate("document.documentElement.scrollWidth") <= 360


async def test_it_reads_well_without_a_script(browser: playwright.Browser, scene: Scene) -> None:
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(scene.url)
    assert await page.locator("#answer").inner_text() == "Messages are going out"
    assert await page.locator("#senders tbody tr").count() == 1
    await context.close()


@pytest.mark.parametrize("scene", [TOKEN], indirect=True)
async def test_a_person_gets_in_with_the_token_once(scene: Scene) -> None:
    await scene.page.goto(scene.url)
    await scene.page.get_by_label("Operator's token").fill("wrong")
    await scene.page.get_by_role("button").click()
    await scene.sees("[role=alert]", "That is not the token.")
    await scene.page.get_by_label("Operator's token").fill(TOKEN)
    await scene.page.get_by_role("button").click()
    await scene.sees("#answer", "Messages are going out")
    await scene.page.reload()
    await scene.sees("#answer", "Messages are going out")
