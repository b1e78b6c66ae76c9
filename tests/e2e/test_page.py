"""The page in a real browser, on a simulated model: race, chat and live views, by mouse-free means."""

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from simulated.chromium import Chromium, find_chromium
from simulated.serving import SimulatedResources, running_server

PATH = find_chromium()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PATH is None, reason="no Chromium here")]


@pytest.fixture(scope="module")
def server():
    with running_server(SimulatedResources(capacity=512)) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    assert PATH is not None
    some = Chromium(PATH)
    yield some
    some.close()


@pytest.fixture
def page(server, browser):
    browser.open("about:blank")
    browser.errors.clear()
    yield browser
    assert browser.errors == []
    browser.open("about:blank")
    server.idle()


def text(page, selector):
    return page.evaluate(f"document.querySelector({selector!r}).textContent")


def test_the_race_ends_with_one_text_and_can_be_replayed(page, server):
    page.open(f"{server.url}/#race")
    page.until("document.querySelectorAll('.pane').length === 3")
    page.evaluate("document.getElementById('race-tokens').value = 40; document.getElementById('race-start').focus()")
    page.press("Enter")
    page.until("!document.getElementById('replay-play').disabled")
    assert "All outputs are the same" in text(page, "#race-status")
    page.until("document.getElementById('replay-play').textContent === 'Replay'")
    texts = page.evaluate("[...document.querySelectorAll('.pane .text')].map((pane) => pane.textContent)")
    assert len(set(texts)) == 1
    assert len(texts[0]) == 40
    origins = page.evaluate(
        """[...document.querySelectorAll('.pane')].map((pane) =>
          [...new Set([...pane.querySelectorAll('.token')].map((token) => token.classList[1]))])"""
    )
    assert origins[0] == ["target"]
    assert "draft" in origins[1]
    assert "cache_hit" in origins[2]
    page.evaluate(
        """(() => {
          const time = document.getElementById('replay-time');
          time.value = 0;
          time.dispatchEvent(new Event('input'));
        })()"""
    )
    shown = page.evaluate("[...document.querySelectorAll('.pane .text')].map((pane) => pane.textContent.length)")
    assert max(shown) < 40


def test_the_tree_shows_every_round_and_what_came_true(page, server):
    page.open(f"{server.url}/#race")
    page.until("document.querySelectorAll('.pane dl').length === 3")
    page.evaluate("document.getElementById('race-tokens').value = 40; document.getElementById('race-start').focus()")
    page.press("Enter")
    page.until("!document.getElementById('replay-play').disabled")
    page.until("!document.getElementById('tree-nodes').hidden")
    page.evaluate(
        """(() => {
          const time = document.getElementById('replay-time');
          time.value = 0;
          time.dispatchEvent(new Event('input'));
          document.getElementById('tree').focus();
        })()"""
    )
    look = """(() => ({
      round: document.getElementById('tree-round').textContent,
      caption: document.getElementById('tree-caption').textContent,
      shown: document.querySelectorAll('.pane .text')[2].textContent.length,
      nodes: [...document.querySelectorAll('#tree-nodes > .node')].map((node) => node.className),
      branches: document.querySelectorAll('.branch:not(.missed)').length,
      true: document.querySelectorAll('.branch.true').length,
      missed: document.querySelectorAll('.branch.missed').length,
    }))()"""
    seen = [page.evaluate(look)]
    assert seen[0]["round"].startswith("Round 1 of ")
    assert len(seen[0]["nodes"]) == 1, "the prompt has no draft"
    num_rounds = int(seen[0]["round"].rpartition(" ")[2])
    for number in range(2, num_rounds):
        page.press("ArrowRight")
        seen.append(page.evaluate(look))
        assert seen[-1]["round"] == f"Round {number} of {num_rounds}"
    assert all(0 < one["branches"] <= 8 and one["true"] + one["missed"] == 1 for one in seen)
    assert all(("no wait" in one["caption"]) == bool(one["true"]) for one in seen)
    assert all(("a miss" in one["caption"]) == bool(one["missed"]) for one in seen)
    lengths = [one["shown"] for one in seen]
    assert lengths == sorted(set(lengths)), "every round decides something"
    assert {one["true"] for one in seen} == {0, 1}
    assert any("rejected" in name for one in seen for name in one["nodes"])
    page.press("ArrowLeft")
    assert page.evaluate(look) == seen[-2]


def test_who_wants_no_motion_sees_the_end_at_once(page, server):
    page.prefer(reduced_motion=True)
    page.open(f"{server.url}/#race")
    page.until("document.querySelectorAll('.pane dl').length === 3")
    page.evaluate("document.getElementById('race-tokens').value = 12; document.getElementById('race-start').focus()")
    page.press("Enter")
    page.until("!document.getElementById('replay-play').disabled")
    page.prefer(reduced_motion=False)
    assert text(page, "#replay-play") == "Replay", "nothing plays"
    lengths = page.evaluate("[...document.querySelectorAll('.pane .text')].map((pane) => pane.textContent.length)")
    assert lengths == [12, 12, 12]
    spoken = page.evaluate("document.getElementById('replay-time').getAttribute('aria-valuetext')")
    assert spoken.endswith(" seconds")


def test_a_message_that_comes_before_the_reply_to_the_last_one_stays(page, server):
    target = server.resources.target
    page.open(f"{server.url}/#chat")
    page.until("document.getElementById('set-method').options.length > 0")
    page.evaluate("document.getElementById('set-max_tokens').value = 8")
    target.may_run.clear()
    for message in ("one", "two <b>bold</b>"):
        page.evaluate(
            f"document.getElementById('chat-message').value = {message!r};"
            "document.getElementById('chat-message').focus()"
        )
        page.press("Enter")
        page.until("!document.getElementById('chat-stop').disabled")
        server.until(lambda engine: engine.num_outstanding == 1)
    target.may_run.set()
    page.until("document.getElementById('chat-stop').disabled")
    bodies = page.evaluate("[...document.querySelectorAll('.turn .body')].map((body) => body.textContent)")
    assert bodies[:2] == ["one", "two <b>bold</b>"]
    assert [len(body) for body in bodies[2:]] == [8], "one reply, to the second"
    assert page.evaluate("document.querySelectorAll('.turn b').length") == 0, "text is never markup"
    page.evaluate("document.querySelector('.turn.assistant footer button:nth-child(2)').click()")
    assert page.evaluate("document.activeElement.id") == "chat-message", "the button is gone, the focus is not"
    page.until("document.getElementById('chat-stop').disabled")


def test_a_server_that_drains_or_is_gone_is_said_to_be(browser):
    with running_server() as running:
        browser.open(f"{running.url}/#chat")
        browser.until("document.getElementById('set-method').options.length > 0")
        running.app.engine.drain()
        ask = (
            "(() => { document.getElementById('chat-message').value = 'hello';"
            " document.getElementById('chat-form').requestSubmit(); })()"
        )
        browser.evaluate(ask)
        browser.until("document.getElementById('alert').textContent.includes('shutting down')")
        assert browser.evaluate("document.querySelectorAll('.turn.assistant').length") == 0
    browser.evaluate(ask)
    browser.until("document.getElementById('alert').textContent.includes('does not answer')")


def test_a_chat_is_sent_stopped_edited_and_asked_again(page, server):
    target = server.resources.target
    page.open(f"{server.url}/#chat")
    page.until("document.getElementById('set-method').options.length > 0")
    page.evaluate(
        "document.getElementById('set-max_tokens').value = 20; document.getElementById('set-temperature').value = 0;"
        "document.getElementById('chat-message').value = 'hello'; document.getElementById('chat-message').focus()"
    )
    page.press("Enter")
    page.until("document.querySelector('.turn.assistant footer span').textContent.includes('20 tokens')")
    first = text(page, ".turn.assistant .body")
    assert len(first) == 20
    assert first in text(page, "#chat-status"), "a screen reader is told the reply, once"
    page.evaluate("document.querySelector('.turn.assistant footer button').click()")
    page.until("document.getElementById('chat-status').textContent === 'Copied.'")
    page.evaluate("document.querySelector('.turn.assistant footer button:nth-child(2)').click()")
    page.until("document.querySelector('.turn.assistant footer span').textContent.includes('20 tokens')")
    assert text(page, ".turn.assistant .body") == first
    target.may_run.clear()
    page.evaluate("document.querySelector('.turn.user footer button:nth-child(2)').click()")
    assert page.evaluate("document.getElementById('chat-message').value") == "hello"
    assert page.evaluate("document.querySelectorAll('.turn').length") == 0
    page.press("Enter")
    page.until("!document.getElementById('chat-stop').disabled")
    server.until(lambda engine: engine.num_outstanding == 1)
    page.evaluate("document.getElementById('chat-stop').click()")
    server.until(lambda engine: engine.num_outstanding == 0)
    target.may_run.set()
    page.until("document.getElementById('chat-stop').disabled")


def test_tabs_by_keyboard_and_the_live_view(page, server):
    page.open(f"{server.url}/")
    page.until("document.querySelectorAll('.pane').length === 3")
    page.evaluate("document.getElementById('tab-race').focus()")
    page.press("ArrowLeft")
    assert page.evaluate("document.activeElement.id") == "tab-live"
    page.press("Home")
    assert page.evaluate("document.activeElement.id") == "tab-race"
    page.press("End")
    assert page.evaluate("document.activeElement.id") == "tab-live"
    assert page.evaluate("document.getElementById('race').hidden")
    page.until("document.querySelector('.chart strong').textContent.includes('tokens/s')")
    labels = page.evaluate("[...document.querySelectorAll('.chart svg')].map((svg) => svg.getAttribute('aria-label'))")
    assert len(labels) == 8
    assert all("now" in label for label in labels)
    missing = page.evaluate(
        """[...document.querySelectorAll('input, textarea, select')]
          .filter((field) => !field.labels.length && !field.ariaLabel).map((field) => field.id)"""
    )
    assert missing == []


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_texts_stand_out_from_their_ground(page, server, theme):
    """WCAG AA: a contrast of 4.5 for every text colour on every ground that it is used on, 3 for the edge of fields."""
    page.open(f"{server.url}/?theme={theme}")
    page.until("document.querySelectorAll('.pane').length === 3")
    ratios = page.evaluate(
        """(() => {
          const probe = document.createElement("div");
          document.body.append(probe);
          const light = (name) => {
            probe.style.color = `var(--${name})`;
            const parts = getComputedStyle(probe).color.match(/\\d+/g).slice(0, 3).map(Number);
            const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
            const [r, g, b] = parts.map((c) => linear(c / 255));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const pairs = [
            ["ink", "ground"], ["ink", "raised"], ["muted", "ground"], ["muted", "raised"], ["accent", "raised"],
            ["on-accent", "accent"], ["ink", "draft-wash"], ["ink", "hit-wash"], ["ink", "fallback-wash"],
            ["warn", "ground"], ["hit", "raised"], ["fallback", "raised"], ["on-accent", "hit"], ["edge", "ground"],
          ];
          const result = pairs.map(([a, b]) => {
            const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
            return [`${a} on ${b}`, (x + 0.05) / (y + 0.05)];
          });
          probe.remove();
          return result;
        })()"""
    )
    assert len({ratio for _, ratio in ratios}) > 5
    assert [(names, ratio) for names, ratio in ratios if ratio < (3 if "edge" in names else 4.5)] == []


def test_a_key_is_asked_for(browser):
    with running_server(api_keys=("secret",)) as running:
        browser.open(running.url)
        browser.until("!document.getElementById('alert').hidden")
        assert "API key" in text(browser, "#alert")
        browser.evaluate(
            "(() => { const key = document.getElementById('key'); key.value = 'secret';"
            " key.dispatchEvent(new Event('change')); })()"
        )
        browser.until("document.querySelectorAll('.pane').length === 3")
        assert browser.evaluate("document.getElementById('alert').hidden")
        browser.open("about:blank")
