"""How the server's page looks and is used, in a real browser: keys, names for readers of screens, colours, a phone, what is in view."""

from collections.abc import Callable
from typing import Any

import pytest
from browsing import Tab, assert_page_mutant_caught, events
from serving import Client


def test_keys(told: Tab) -> None:
    keyboard = told.page.keyboard
    told.expect(told.find("#prompt")).to_be_focused()
    keyboard.type("one")
    keyboard.press("Shift+Enter")
    keyboard.type("two")
    told.expect(told.find("article")).to_have_count(0)
    keyboard.press("Enter")
    told.answered()
    assert told.texts()[0] == "one\ntwo"
    told.expect(told.find("#prompt")).to_be_focused()
    keyboard.press("Enter")
    keyboard.type("  ")
    keyboard.press("Enter")  # nothing is nothing to send
    told.expect(told.find("article.user")).to_have_count(1)
    told.page.evaluate("document.activeElement.blur()")
    reached, unseen = [], []
    for _ in range(40):
        keyboard.press("Tab")
        name, outline = told.page.evaluate(
            "(() => { const e = document.activeElement, s = getComputedStyle(e); const r = e.closest('#composer') ?? e;"
            "return [e.getAttribute('aria-label') || e.textContent.trim(), s.outlineStyle !== 'none' || getComputedStyle(r).boxShadow !== 'none']; })()"
        )
        if reached and name == reached[0]:
            break
        reached.append(name)
        if not outline and told.page.evaluate("document.activeElement !== document.body"):
            unseen.append(name)
    wanted = {
        "Skip to your message",
        "New chat",
        "one two",
        "Rename: one two",
        "Delete: one two",
        "Settings",
        "Your message",
        "Send",
    }
    assert wanted | {"Copy message", "Edit and ask again", "Answer again"} <= set(reached)
    assert unseen == []
    told.find("#open-settings").focus()
    keyboard.press("Enter")
    told.expect(told.find("#settings")).to_be_visible()
    keyboard.press("Escape")
    told.expect(told.find("#settings")).not_to_be_visible()
    told.expect(told.find("#open-settings")).to_be_focused()


def test_everything_that_can_be_pressed_has_a_name(told: Tab) -> None:
    told.answers(events("```js\nx\n```\n\n|a|\n|-|\n|b|", reasoning="r"))
    told.send("x")
    told.answered()
    told.page.click("#open-settings")
    nameless = told.page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea, a, [tabindex], dialog, nav, section, article')]"
        ".filter((e) => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.labels?.length || e.textContent.trim()))"
        ".map((e) => e.outerHTML)"
    )
    assert [one for one in nameless if 'id="ask-yes"' not in one] == []  # that one is named when it is asked
    assert told.page.evaluate("document.documentElement.lang") == "en"
    assert told.find("#status").get_attribute("role") == "status"
    told.expect(told.find("#status")).to_have_text("The answer is complete")


def test_the_colours_of_a_page_have_contrast(told: Tab) -> None:
    told.send("x")
    told.answered()
    assert told.page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast_and_are_the_systems_or_chosen(told: Tab, scheme: str) -> None:
    told.page.emulate_media(color_scheme=scheme)
    told.answers(b'{"error": {"message": "wrong"}}', status=400)
    told.send("x")
    told.answered()
    assert ground(told) == scheme
    low = told.page.evaluate(CONTRAST)
    assert low == []
    other = "dark" if scheme == "light" else "light"
    for _ in range(3):
        told.page.click("#theme")
        if told.page.evaluate("document.documentElement.dataset.theme") == other:
            break
    assert ground(told) == other
    assert told.page.evaluate(CONTRAST) == []
    told.page.reload()
    assert ground(told) == other


def ground(tab: Tab) -> str:
    red = tab.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0]")
    return "light" if int(red) > 127 else "dark"


CONTRAST = """
(() => {
  const rgb = (text) => text.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.checkVisibility() || e.closest(":disabled")) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push([e.textContent.trim().slice(0, 40), ratio]);
  }
  return low;
})()
"""


def test_a_phone_of_360_pixels(chromium: Any, slow: Client) -> None:
    options = {
        "viewport": {"width": 360, "height": 640},
        "has_touch": True,
        "is_mobile": True,
        "device_scale_factor": 2,
    }
    tab = Tab(chromium, slow.address, **options).open()
    wide = (
        "```\n"
        + "x" * 300
        + "\n```\n\n|"
        + "wide cell|" * 12
        + "\n|"
        + "-|" * 12
        + "\n|a|\n\n"
        + "y" * 300
        + "\n\n$$"
        + "z" * 300
        + "$$"
    )
    tab.answers(events(wide + " https://b.example/" + "w" * 300, reasoning="v" * 300))
    tab.page.fill("#prompt", "u" * 300)
    tab.page.tap("#send")
    tab.answered()
    tab.page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
    assert overflow(tab) == []
    tab.find("article.user [aria-label='Edit and ask again']").tap()
    for box in (tab.find("article.user textarea"), tab.find("#prompt")):  # Enter begins a line, where fingers type
        box.fill("one")
        box.press("Enter")
        tab.expect(box).to_have_value("one\n")
    tab.find("article.user button.quiet").tap()
    tab.expect(tab.find("article")).to_have_count(2)
    tab.expect(tab.find("#sidebar")).not_to_be_visible()
    tab.page.tap("#open-sidebar")
    tab.expect(tab.find("#sidebar")).to_be_visible()
    assert tab.find("#open-sidebar").get_attribute("aria-expanded") == "true"
    assert overflow(tab) == []
    tab.page.tap("#new")
    tab.expect(tab.find("#sidebar")).not_to_be_visible()
    tab.expect(tab.find("article")).to_have_count(0)
    tab.page.tap("#open-settings")
    tab.expect(tab.find("#settings")).to_be_visible()
    tab.expect(tab.find(".keys")).not_to_be_visible()
    assert overflow(tab) == []
    small = tab.page.evaluate(
        "[...document.querySelectorAll('dialog[open] button, dialog[open] input:not([type=checkbox])')].filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 24).length"
    )
    assert small == 0
    tab.close()
    tab.check()


def overflow(tab: Tab) -> Any:
    """What is wider than the screen, and does not scroll by itself."""
    return tab.page.evaluate(
        "[...document.querySelectorAll('html, body, main, #scroller, #thread, article, article .text, dialog[open]')]"
        ".filter((e) => e.scrollWidth > e.clientWidth + 1 || e.getBoundingClientRect().right > 361)"
        ".map((e) => [e.localName, e.id, e.className, e.scrollWidth, e.clientWidth])"
    )


def test_the_view_follows_an_answer_unless_one_reads_above(told: Tab) -> None:
    told.page.set_viewport_size({"width": 800, "height": 400})
    told.answers(events("\n\n".join(f"Line {i}" for i in range(60))))
    told.send("x")
    told.answered()
    scroller = told.find("#scroller")
    at_end = "(e) => e.scrollHeight - e.scrollTop - e.clientHeight < 2"
    told.until(lambda: scroller.evaluate(at_end), "the end is shown")
    scroller.evaluate("(e) => { e.scrollTop = 0; }")
    told.expect(told.find("#to-end")).to_be_visible()
    told.page.click("#to-end")
    told.until(lambda: scroller.evaluate(at_end), "the end is shown")
    told.expect(told.find("#to-end")).not_to_be_visible()


MUTANTS: dict[str, tuple[str, str, str, Callable[..., None]]] = {
    "colours of half the contrast": ("style.css", "--faint: light-dark(#5b6467, #a0a8ac);", "--faint: light-dark(#9ba4a7, #606468);",
                                     test_the_colours_of_a_page_have_contrast),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: str, chromium: Any, slow: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_page_mutant_caught(monkeypatch, MUTANTS[mutant], chromium, slow)
