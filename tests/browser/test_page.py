"""The player page in a real browser, over the whole embedded stack: Kafka to pixels."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer
from playwright.sync_api import (
    Browser,
    Page,
    ViewportSize,
    WebSocketRoute,
    expect,
)

from browser.running_stack import Contest, RunningStack
from chromium import chromium
from leaderboard.adapters.web_pubsub_gateway import FAREWELL
from sockets import eventually

pytestmark = pytest.mark.timeout(180)
DESKTOP: ViewportSize = {"width": 1280, "height": 860}
PHONE: ViewportSize = {"width": 390, "height": 844}
PATIENCE_MS = 15_000
WATCH_ROW = """
(player) => {
  const row = document.querySelector(`#standings tr[data-player="${player}"]`);
  const table = row.closest("tbody");
  window.seenTops = [];
  const look = () => {
    const top = row.getBoundingClientRect().top - table.getBoundingClientRect().top;
    window.seenTops.push(Math.round(top));
    requestAnimationFrame(look);
  };
  look();
}
"""


class Pages:
    """Opens boards for players, each in a browser session of its own, and hears complaints."""

    def __init__(self, browser: Browser, stack: RunningStack) -> None:
        self._browser = browser
        self._stack = stack
        self.complaints: list[str] = []

    def open(
        self,
        contest: Contest,
        player_id: str,
        *,
        viewport: ViewportSize = DESKTOP,
        calm: bool = False,
        heard: str = "",
    ) -> Page:
        context = self._browser.new_context(
            viewport=viewport, reduced_motion="reduce" if calm else "no-preference"
        )
        context.set_default_timeout(PATIENCE_MS)
        if heard:
            context.add_init_script(heard)
        page = context.new_page()
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(
            f"{self._stack.setting('QUERY_URL')}/"
            f"?player={player_id}&tournament={contest.tournament_id}"
        )
        expect_connection(page, "live")
        return page

    def _listen(self, message: object) -> None:
        kind, text = getattr(message, "type", ""), getattr(message, "text", "")
        if kind in ("error", "warning"):
            self.complaints.append(text)


def expect_connection(page: Page, state: str) -> None:
    expect(page.locator("#connection-state")).to_have_attribute(
        "data-state", state, timeout=PATIENCE_MS
    )


def expect_rank(page: Page, rank: int) -> None:
    expect(page.locator("#own-row")).to_have_attribute("data-rank", str(rank), timeout=PATIENCE_MS)


def row_at(page: Page, rank: int) -> str | None:
    return page.locator(f'#standings tr[data-rank="{rank}"]').get_attribute("data-player")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    running = RunningStack(tmp_path_factory.mktemp("stack"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def pages(browser: Browser, stack: RunningStack) -> Iterator[Pages]:
    yield Pages(browser, stack)
    for context in browser.contexts:
        context.close()


@pytest.fixture
def contest(stack: RunningStack) -> Contest:
    """A tournament whose players p1, p2, … hold the ranks of their numbers, 100 points apart."""
    return _contest(stack, players=20)


@pytest.fixture
def crowded(stack: RunningStack) -> Contest:
    """The same with more players than the board shows."""
    return _contest(stack, players=130)


def _contest(stack: RunningStack, players: int) -> Contest:
    bootstrap = stack.setting("KAFKA_BOOTSTRAP_SERVERS")
    producer = Producer(
        {"bootstrap.servers": bootstrap, "log_level": 2, "partitioner": "murmur2_random"}
    )
    contest = Contest(f"t-{uuid.uuid4().hex[:12]}", producer)
    contest.schedule("Friday Night Cup")
    contest.wagers((f"p{n}", 100 * (players + 1 - n)) for n in range(1, players + 1))
    stack.wait_for_players(contest.tournament_id, players)
    return contest


def test_wager_moves_the_row_and_the_player_is_told(pages: Pages, contest: Contest) -> None:
    page = pages.open(contest, "p15")
    expect_rank(page, 15)
    assert row_at(page, 15) == "p15"
    page.evaluate(WATCH_ROW, "p15")

    contest.wager("p15", 350)

    expect(page.locator("#toast")).to_have_text("You moved from 15 to 12", timeout=PATIENCE_MS)
    expect_rank(page, 12)
    own = page.locator("#own-row")
    expect(own).to_have_attribute("data-score", "950")
    expect(own).to_have_attribute("data-distance", "50")
    expect(own).to_have_attribute("data-percentile", "42.11")
    expect(page.locator('#standings tr[data-player="p15"]')).to_have_attribute("data-rank", "12")
    page.wait_for_timeout(700)
    tops = page.evaluate("window.seenTops")
    assert tops[0] > tops[-1], "the row went up"
    assert any(tops[-1] < top < tops[0] for top in tops), "it glided instead of jumping"
    assert page.title() == "#12 · Friday Night Cup – Leaderboard"
    assert pages.complaints == []


def test_row_jumps_for_who_wants_no_motion(pages: Pages, contest: Contest) -> None:
    page = pages.open(contest, "p15", calm=True)
    expect_rank(page, 15)
    page.evaluate(WATCH_ROW, "p15")
    contest.wager("p15", 350)
    expect_rank(page, 12)
    page.wait_for_timeout(700)
    assert len(set(page.evaluate("window.seenTops"))) == 2


def test_player_is_told_when_others_push_them_down(pages: Pages, contest: Contest) -> None:
    page = pages.open(contest, "p10")
    expect_rank(page, 10)
    contest.wager("p14", 450)
    toast = page.locator("#toast")
    expect(toast).to_have_text("You moved from 10 to 11", timeout=PATIENCE_MS)
    expect(toast).to_have_attribute("data-direction", "down")


def test_milestone_is_celebrated(pages: Pages, contest: Contest) -> None:
    page = pages.open(contest, "p12")
    expect_rank(page, 12)
    contest.wager("p12", 450)
    toast = page.locator("#toast")
    expect(toast).to_have_attribute("data-milestone", "top_10", timeout=PATIENCE_MS)
    expect(toast).to_have_text(re.compile("You moved from 12 to 8"))


def test_own_row_stays_in_sight_outside_the_top_100(pages: Pages, crowded: Contest) -> None:
    page = pages.open(crowded, "p120", viewport=PHONE)
    expect_rank(page, 120)
    expect(page.locator("#standings tbody tr")).to_have_count(100)
    expect(page.locator('#standings tr[data-player="p120"]')).to_have_count(0)
    page.mouse.wheel(0, 3_000)
    expect(page.locator("#own-row")).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]

    page.get_by_role("button", name="Around me").click()
    around = page.locator("#around-standings tbody tr")
    expect(around).to_have_count(11)
    expect(around.nth(5)).to_have_attribute("data-player", "p120")

    crowded.wager("p120", 350)
    expect_rank(page, 117)
    expect(page.locator("#toast")).to_have_text("You moved from 120 to 117")
    expect(around.nth(5)).to_have_attribute("data-rank", "117")


def test_page_finds_back_after_the_gateway_was_killed(
    pages: Pages, contest: Contest, stack: RunningStack
) -> None:
    page = pages.open(contest, "p15")
    expect_rank(page, 15)
    page.evaluate(
        """() => {
          window.seenStates = [];
          const element = document.getElementById("connection-state");
          new MutationObserver(() => window.seenStates.push(element.dataset.state))
            .observe(element, { attributes: true });
        }"""
    )
    killed = stack.kill_gateway()
    contest.wager("p15", 350)
    # Not `wait_for_function`: it asks again by eval, which the page's own policy forbids.
    eventually(lambda: "reconnecting" in page.evaluate("window.seenStates"), 30)
    expect_connection(page, "live")
    expect_rank(page, 12)
    expect(page.locator('#standings tr[data-player="p15"]')).to_have_attribute("data-rank", "12")
    assert int(stack.setting("PID_GATEWAY")) != killed, "the fault bit"

    # And it is live again, not merely read once.
    contest.wager("p15", 200)
    expect(page.locator('#standings tr[data-player="p15"]')).to_have_attribute("data-rank", "10")


def test_second_window_takes_over_and_the_first_can_take_back(
    pages: Pages, contest: Contest
) -> None:
    first = pages.open(contest, "p3")
    second = pages.open(contest, "p3")
    expect_connection(first, "replaced")
    expect(first.locator("#notice")).to_contain_text("Open in another window")
    # Neither fights for the place: well beyond the longest wait nothing has changed.
    first.wait_for_timeout(6_000)
    expect_connection(first, "replaced")
    expect_connection(second, "live")

    first.locator("#notice-action").click()
    expect_connection(first, "live")
    expect_connection(second, "replaced")
    contest.wager("p3", 250)
    expect_rank(first, 1)


@pytest.mark.parametrize("goodbye", [True, False])
def test_goodbye_of_azure_web_pubsub_means_replaced(
    pages: Pages, contest: Contest, goodbye: bool
) -> None:
    """That service closes with 1000 and no reason: a frame before that says what it is."""
    page = pages.open(contest, "p3")
    sockets: list[WebSocketRoute] = []

    def routed(socket: WebSocketRoute) -> None:
        sockets.append(socket)
        socket.connect_to_server()

    page.route_web_socket(lambda url: "ticket=" in url, routed)
    page.reload()
    expect_connection(page, "live")
    if goodbye:
        sockets[0].send(FAREWELL.decode())
    sockets[0].close(code=1000)
    if goodbye:
        expect_connection(page, "replaced")
        assert len(sockets) == 1
    else:
        page.wait_for_timeout(2_000)
        expect_connection(page, "live")
        assert len(sockets) == 2


def test_page_keeps_to_its_own_policy_and_the_policy_bites(pages: Pages, contest: Contest) -> None:
    """Nothing of the page is refused by the browser; what somebody slips in is."""
    page = pages.open(contest, "p15", heard=HEAR_VIOLATIONS)
    expect_rank(page, 15)
    contest.wager("p15", 350)
    expect_rank(page, 12)
    for view in page.locator("[data-show]").all():
        view.dispatch_event("click")  # seen on narrow screens only
    page.wait_for_timeout(500)
    assert page.evaluate("window.violations") == []
    assert pages.complaints == []
    page.evaluate(SLIP_IN)
    page.wait_for_function("window.violations.length >= 4", timeout=PATIENCE_MS)
    # Scripts fail at the stricter of two rules: no text may become one.
    wanted = {"require-trusted-types-for", "style-src-attr", "img-src"}
    assert wanted <= set(page.evaluate("window.violations"))
    assert page.evaluate("window.slippedIn") is None
    pages.complaints.clear()


HEAR_VIOLATIONS = """
window.violations = [];
addEventListener("securitypolicyviolation", (told) => {
  window.violations.push(told.effectiveDirective);
});
"""
SLIP_IN = """
() => {
  const script = document.createElement("script");
  try { script.textContent = "window.slippedIn = 1"; } catch { /* trusted types */ }
  document.head.append(script);
  const other = document.createElement("script");
  try { other.src = "https://elsewhere.example/x.js"; } catch { /* trusted types */ }
  document.head.append(other);
  const image = new Image();
  image.src = "https://elsewhere.example/x.png";
  document.body.append(image);
  document.body.setAttribute("style", "color: red");
  try { document.body.insertAdjacentHTML("beforeend", "<b>x</b>"); } catch { /* same */ }
  const inline = document.createElementNS("http://www.w3.org/1999/xhtml", "script");
  inline.append(document.createTextNode("window.slippedIn = 2"));
  document.head.append(inline);
}
"""


def test_hostile_name_is_only_text(pages: Pages, contest: Contest) -> None:
    page = pages.open(contest, "p2")
    name = '<img src=x onerror="document.title=1">'
    contest.join("p1", name)
    contest.wager("p1", 10)
    row = page.locator('#standings tr[data-player="p1"]')
    expect(row.locator("bdi")).to_have_text(name, timeout=PATIENCE_MS)
    assert page.locator("#standings img").count() == 0
    assert pages.complaints == []


def test_older_news_is_dropped_until_nothing_else_comes(pages: Pages, contest: Contest) -> None:
    page = pages.open(contest, "p1")
    accepted = page.evaluate(
        """async () => {
          const { Newest } = await import("/page/standing.js");
          const newest = new Newest();
          const told = [[5, 0], [5, 1], [4, 2], [6, 3], [0, 10], [1, 20_000], [2, 40_011]];
          return told.map(([sequence, atMs]) => newest.accepts(sequence, atMs));
        }"""
    )
    # The last one: for half a minute all that came was lower, so the log was made anew.
    assert accepted == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_board_is_operable_by_keyboard(pages: Pages, contest: Contest, scheme: str) -> None:
    page = pages.open(contest, "p4", viewport=PHONE)
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the standings")).to_be_focused()
    around = page.get_by_role("button", name="Around me")
    around.focus()
    page.keyboard.press("Enter")
    expect(around).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("table")).to_have_count(1)
    expect(page.get_by_role("rowheader").first).to_be_visible()
    assert page.locator("[aria-live]").count() == 1
    lowest = page.evaluate(_LOWEST_CONTRAST)
    assert lowest["ratio"] >= 4.5, lowest


_LOWEST_CONTRAST = """
() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const part = (value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    };
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const style = getComputedStyle(one);
      if (style.backgroundImage !== "none") return null;
      const [r, g, b, a = 1] = channels(style.backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  let lowest = { ratio: 21 };
  for (const element of document.querySelectorAll("body *")) {
    const hasText = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!hasText || !element.checkVisibility({ opacityProperty: true })) continue;
    const behind = ground(element);
    if (behind === null) continue;
    const pair = [luminance(channels(getComputedStyle(element).color)), luminance(behind)];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < lowest.ratio) lowest = { ratio, text: element.textContent.slice(0, 40) };
  }
  return lowest;
}
"""
