"""The server's page in a real browser: answers as they come, stopping, asking again, history, settings, keys of servers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import Tab, assert_page_mutant_caught, events, wait_until_idle
from served_process import running
from serving import Client, serving
from text_model import write_text_model

from pyggml.model.model import Model


def set_up(tab: Tab, **values: str) -> None:
    tab.page.click("#open-settings")
    for name, value in values.items():
        tab.page.fill(f"#settings [name={name}]", value)
    tab.page.click("#settings [value=save]")


# ---- answers of the server


def test_an_answer_is_shown_as_it_comes_and_stopping_frees_its_slot(tab: Tab, slow: Client) -> None:
    tab.send("hello")
    text = tab.find("article.assistant .text")
    first = tab.until(lambda: len(text.text_content() or "") if text.count() else 0, "the answer begins")
    tab.until(lambda: len(text.text_content() or "") > first, "it goes on")
    assert slow.served.engine.n_busy == 1
    tab.expect(tab.find("#stop")).to_be_visible()
    tab.page.keyboard.press("Escape")
    tab.expect(tab.find("#send")).to_be_visible()
    tab.until(lambda: slow.served.engine.n_busy == 0, "the slot is free")
    tab.expect(tab.find("article.assistant .stats")).to_contain_text("stopped · ")
    tab.expect(tab.find("article.assistant .stats")).to_contain_text("tokens/s")
    stopped = text.text_content()
    assert stopped
    tab.page.get_by_label("Go on with this answer").click()
    tab.until(lambda: len(text.text_content() or "") > len(stopped), "it goes on")
    tab.page.click("#stop")
    tab.until(lambda: slow.served.engine.n_busy == 0, "the slot is free")
    assert str(text.text_content()).startswith(stopped[: len(stopped) // 2])


def test_the_text_is_that_of_the_route_and_asking_again_makes_a_version(tab: Tab, slow: Client) -> None:
    set_up(tab, max_tokens="12", temperature="0", system="Be brief.")
    body = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]}
    said = slow.ok("/v1/chat/completions", {**body, "max_tokens": 12, "temperature": 0})
    tab.send("hello")
    tab.answered()
    stored = conversation(tab)["messages"]
    assert [m["content"] for m in stored] == ["hello", said["choices"][0]["message"]["content"]]
    assert (stored[1]["stats"]["tokens"], stored[1]["end"]) == (12, "length")
    tab.expect(tab.find("article.assistant .stats")).to_contain_text("cut off: no more tokens allowed · 12 tokens · ")
    tab.page.get_by_label("Answer again").click()
    tab.expect(tab.find(".count")).to_have_text("2/2")
    tab.answered()
    again = conversation(tab)["messages"]
    assert [m["content"] for m in again] == [stored[0]["content"], stored[1]["content"], stored[1]["content"]]
    tab.page.get_by_label("The version before").click()
    tab.expect(tab.find(".count")).to_have_text("1/2")


def conversation(tab: Tab) -> Any:
    """The only one that the browser keeps."""
    found = tab.module("store.js", "return (await m.Conversations.open()).all();")
    assert len(found) == 1
    return found[0]


def test_an_answer_goes_on_while_another_conversation_is_shown(tab: Tab, slow: Client) -> None:
    tab.send("first")
    tab.until(lambda: slow.served.engine.n_busy == 1, "the answer begins")
    tab.page.click("#new")
    tab.expect(tab.find("article")).to_have_count(0)
    tab.send("second")
    tab.until(lambda: slow.served.engine.n_busy == 2, "both are under way")
    tab.page.get_by_role("button", name="first", exact=True).click()
    tab.expect(tab.find("article.user .text")).to_have_text("first")
    tab.page.get_by_label("Delete: first").click()
    tab.page.get_by_role("button", name="Delete", exact=True).click()
    tab.until(lambda: slow.served.engine.n_busy == 1, "who deletes a conversation wants no answer")
    tab.page.get_by_role("button", name="second", exact=True).click()
    tab.page.keyboard.press("Escape")
    tab.until(lambda: slow.served.engine.n_busy == 0, "the slot is free")


def test_a_page_that_is_closed_frees_its_slot(chromium: Any, slow: Client) -> None:
    tab = Tab(chromium, slow.address).open()
    tab.send("hello")
    tab.until(lambda: slow.served.engine.n_busy == 1, "the answer begins")
    tab.close()
    wait_until_idle(slow)


def test_a_server_with_a_key(chromium: Any, model: Model) -> None:
    with serving(model, api_keys=("the-key",), n_ctx=4 * 512) as client:
        tab = Tab(chromium, client.address).open()
        key = tab.find("#settings [name=key]")
        tab.expect(tab.find("#settings-note")).to_have_text("This server asks for an API key.")
        tab.expect(key).to_be_focused()
        key.fill("wrong")
        tab.page.keyboard.press("Enter")
        tab.expect(tab.find("#settings-note")).to_have_text("The server does not know this API key.")
        key.fill("the-key")
        tab.page.keyboard.press("Enter")
        tab.expect(tab.find("#model-name")).to_have_text("text.gguf")
        set_up(tab, max_tokens="8")
        tab.send("hello")
        tab.answered()
        tab.expect(tab.find(".error:visible")).to_have_count(0)
        tab.page.reload()
        tab.expect(tab.find("#model-name")).to_have_text("text.gguf")
        tab.close()
        tab.check()


def test_a_server_behind_a_prefix(chromium: Any, model: Model) -> None:
    with serving(model, api_prefix="/llm", n_ctx=4 * 512) as client:
        tab = Tab(chromium, client.address).open()
        tab.expect(tab.find("#model-name")).to_have_text("text.gguf")
        set_up(tab, max_tokens="8")
        tab.send("hello")
        tab.answered()
        tab.expect(tab.find(".error:visible")).to_have_count(0)
        tab.close()
        tab.check()


def test_a_server_of_several_models(chromium: Any, tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        write_text_model(tmp_path / f"{name}.gguf", n_ctx=512, seed=5 + i)
    with running("--models-dir", str(tmp_path), "--models-max", "1", "-n", "8") as (_, client):
        tab = Tab(chromium, client.address).open()
        tab.expect(tab.find("#model option")).to_have_text(["a", "b", "c"])
        tab.page.select_option("#model", "b")
        tab.send("hello")
        tab.answered()
        tab.expect(tab.find(".assistant .stats")).to_contain_text("tokens/s · b")
        tab.page.reload()
        tab.expect(tab.find("#model")).to_have_value("b")
        names = ("temperature", "top_k", "max_tokens", "seed")

        def defaults() -> list[str | None]:
            return [tab.find(f"#settings [name={name}]").get_attribute("placeholder") for name in names]

        tab.until(lambda: defaults() == ["", "", "no limit", "random"], "each model has its own")
        tab.close()
        tab.check()


# ---- made-up answers


def test_what_settings_ask_for(told: Tab) -> None:
    names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "max_tokens", "seed")

    def defaults() -> list[str | None]:
        return [told.find(f"#settings [name={name}]").get_attribute("placeholder") for name in names]

    servers = ["0", "40", "0.95", "0.05", "1", "no limit", "random"]
    told.until(lambda: defaults() == servers, "the server's defaults are shown")
    asked = told.answers(events("ok"))
    told.send("one")
    told.answered()
    assert asked[-1] == {"stream": True, "messages": [{"role": "user", "content": "one"}]}
    numbers = {
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.1,
        "max_tokens": 33,
        "repeat_penalty": 1.2,
        "seed": 4,
    }
    set_up(told, system="Be kind.", **{name: str(value) for name, value in numbers.items()})
    told.page.click("#open-settings")
    told.page.uncheck("#settings [name=thinking]")
    told.page.click("#settings [value=save]")
    told.page.reload()
    told.answers_again = told.answers(events("ok"))
    told.send("two")
    told.answered(2)
    messages = [("system", "Be kind."), ("user", "one"), ("assistant", "ok"), ("user", "two")]
    assert told.answers_again[-1] == {
        "stream": True,
        "messages": [{"role": role, "content": content} for role, content in messages],
        **numbers,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    told.page.click("#open-settings")
    told.page.fill("#settings [name=top_p]", "1.5")
    told.page.click("#settings [value=save]")  # refused by the browser: the dialog stays
    told.expect(told.find("#settings")).to_be_visible()
    told.page.click("#reset-settings")
    told.page.click("#settings [value=save]")
    asked = told.answers(events("ok"))
    told.send("three")
    told.answered(3)
    assert set(asked[-1]) == {"stream", "messages"}


def test_what_was_thought_is_folded(told: Tab) -> None:
    told.answers(events("The **answer**.", reasoning="First I *think*."))
    told.send("x")
    told.answered()
    told.expect(told.find(".assistant .reasoning summary")).to_have_text("What was thought")
    told.expect(told.find(".assistant .reasoning em")).not_to_be_visible()
    told.page.click(".assistant .reasoning summary")
    told.expect(told.find(".assistant .reasoning em")).to_be_visible()
    told.expect(told.find(".assistant .stats")).to_have_text("40 tokens · 12.3 tokens/s · told")
    assert told.find("article.assistant .text strong").inner_text() == "answer"


def test_editing_a_message_asks_again_and_loses_nothing(told: Tab) -> None:
    asked = told.answers(events("A1"), events("A2"), events("B1"))
    told.send("q1")
    told.answered()
    told.send("q2")
    told.answered(2)
    told.page.get_by_label("Edit and ask again").first.click()
    box = told.page.get_by_label("Edit your message")
    told.expect(box).to_be_focused()
    box.fill("not this")
    told.page.keyboard.press("Escape")
    assert told.texts() == ["q1", "A1", "q2", "A2"]
    told.page.get_by_label("Edit and ask again").first.click()
    box.fill("q1 edited")
    told.page.keyboard.press("Enter")
    told.expect(told.find(".count")).to_have_text("2/2")
    told.answered()
    assert told.texts() == ["q1 edited", "B1"]
    assert asked[-1]["messages"] == [{"role": "user", "content": "q1 edited"}]
    told.page.get_by_label("The version before").click()
    told.expect(told.find("article")).to_have_count(4)
    assert told.texts() == ["q1", "A1", "q2", "A2"]
    told.page.get_by_label("Edit answer").last.click()
    told.page.get_by_label("Edit the answer").fill("A2 by hand")
    told.page.get_by_role("button", name="Save").click()
    told.expect(told.find("article.assistant .text").last).to_have_text("A2 by hand")


def test_history_outlives_the_page(told: Tab, tmp_path: Path) -> None:
    told.send("First question")
    told.answered()
    told.page.click("#new")
    told.send("Second question")
    told.answered()
    told.page.fill("#prompt", "half a thought")
    told.page.reload()
    told.expect(told.find("#history .title")).to_have_text(["Second question", "First question"])
    assert told.texts() == ["Second question", "An answer."]
    told.expect(told.find("#prompt")).to_have_value("half a thought")
    told.find("#history .title").nth(1).click()
    told.expect(told.find("#title")).to_have_text("First question")
    told.expect(told.find("#prompt")).to_have_value("")
    told.page.get_by_label("Rename: First question").click()
    told.page.fill("#ask-text", "Other name")
    told.page.keyboard.press("Enter")
    told.expect(told.find("#title")).to_have_text("Other name")
    with told.page.expect_download() as download:
        told.page.click("#export-all")
    path = tmp_path / "all.json"
    download.value.save_as(path)
    exported = json.loads(path.read_text())["conversations"]
    assert {one["title"] for one in exported} == {"Other name", "Second question"}
    assert "key" not in path.read_text()
    for name in ("Other name", "Second question"):
        told.page.get_by_role("button", name=name, exact=True).hover()
        told.page.get_by_label(f"Delete: {name}").click()
        told.page.get_by_role("button", name="Cancel").click()
        told.expect(told.page.get_by_label(f"Delete: {name}")).to_have_count(1)
        told.page.get_by_role("button", name=name, exact=True).hover()
        told.page.get_by_label(f"Delete: {name}").click()
        told.page.get_by_role("button", name="Delete", exact=True).click()
        told.expect(told.page.get_by_label(f"Delete: {name}")).to_have_count(0)
    told.page.reload()
    told.expect(told.find("#history li")).to_have_count(0)
    for _ in range(2):  # what is there already is not written over
        told.find("#import-file").set_input_files(path)
        told.until(lambda: told.find("#import-file").input_value() == "", "the file is read")
    told.expect(told.find("#history li")).to_have_count(4)


def test_two_pages_show_the_same_history(told: Tab) -> None:
    other = told.context.new_page()
    told.watch(other)
    other.goto(told.address + "/")
    told.send("From the first page")
    told.answered()
    told.expect(other.locator("#history .title")).to_have_text("From the first page")


@pytest.mark.parametrize(
    ("body", "status", "shown"),
    [
        (b'{"error": {"message": "the prompt has 9 tokens;\\n too many"}}', 400, "the prompt has 9 tokens; too many"),
        (b"<html>", 502, "The server answered with status 502"),
        (events("Half", done=False), 200, "The connection ended before the answer was complete."),
        (events("Half", done=False) + b'data: {"error": {"code": 500, "message": "it failed"}}\n\n', 200, "it failed"),
        (b"data: {\n\n", 200, "The server sent an event that is not JSON."),
    ],
)
def test_errors_are_one_line_and_what_was_typed_stays(told: Tab, body: bytes, status: int, shown: str) -> None:
    told.answers(body, status=status)
    told.send("My long question")
    told.answered()
    error = told.find("article .error:visible")
    told.expect(error).to_have_text(f"{shown} Try again")
    assert error.get_attribute("role") == "alert"
    assert told.texts() == ["My long question", "Half" if b"Half" in body else ""]
    told.page.fill("#prompt", "the next one")
    asked = told.answers(events("Now it works."))
    told.page.get_by_role("button", name="Try again").click()
    told.expect(told.find("article.assistant .text")).to_have_text("Now it works.")
    told.expect(told.find("#prompt")).to_have_value("the next one")
    assert asked[-1]["messages"] == [{"role": "user", "content": "My long question"}]
    told.expect(told.find("article .error:visible")).to_have_count(0)


def test_a_server_that_is_gone(told: Tab) -> None:
    told.page.unroute("**/v1/chat/completions")
    told.page.route("**/v1/chat/completions", lambda route: route.abort())
    told.send("one")
    told.answered()
    told.expect(told.find("article .error:visible")).to_have_text(
        "The server cannot be reached. Is it running? Try again"
    )
    asked = told.answers(events("ok"))
    told.send("two")  # both have waited for an answer
    told.answered(2)
    assert asked[-1]["messages"] == [{"role": "user", "content": "one\n\ntwo"}]
    told.page.route("**/props", lambda route: route.abort())
    told.page.reload()
    told.expect(told.find("#notice")).to_have_text("The server cannot be reached. Is it running?")
    told.expect(told.find("article.user .text")).to_have_text(["one", "two"])


MUTANTS: dict[str, tuple[str, str, str, Callable[..., None]]] = {
    "stopping is a matter of the page alone": ("run.js", "this.controller.abort();", "this.got = () => {};",
                                               test_an_answer_is_shown_as_it_comes_and_stopping_frees_its_slot),
    "answers are shown at their end": ("main.js", "if (run.painting) return;", "return;",
                                       test_an_answer_is_shown_as_it_comes_and_stopping_frees_its_slot),
    "conversations are not kept": ("main.js", "await this.store.put(conversation);", "", test_history_outlives_the_page),
    "what is half typed is not kept": ("main.js", "prompt.value || null);\n  });", "null);\n  });", test_history_outlives_the_page),
    "an edited message goes to the end": ("main.js", "add(conversation, message.parent, message.role", "add(conversation, message.id, message.role",
                                          test_editing_a_message_asks_again_and_loses_nothing),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(
    mutant: str, chromium: Any, slow: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_page_mutant_caught(monkeypatch, MUTANTS[mutant], chromium, slow, tmp_path=tmp_path)
