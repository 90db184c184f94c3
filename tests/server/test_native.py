"""llama-server's own routes: tokens, templates, completions with all that they tell, slots, metrics, adapters."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyggml_server import lines
from serving import Client, serving

from pyggml.model.model import Model


def test_tokens_and_texts(client: Client) -> None:
    tokens = client.ok("/tokenize", {"content": "hello world"})["tokens"]
    assert tokens == client.served.tokenizer.encode("hello world", add_special=False)
    assert client.ok("/detokenize", {"tokens": tokens}) == {"content": "hello world"}
    pieces = client.ok("/tokenize", {"content": "h\u00e9", "with_pieces": True})["tokens"]
    assert [p["piece"] for p in pieces] == ["h", [0xC3], [0xA9]]
    assert client.ok("/tokenize", {}) == {"tokens": []} == client.ok("/tokenize", {"content": ""})
    for wrong in ({"tokens": [-1]}, {"tokens": [10**9]}, {"tokens": ["a"]}, {"tokens": 5}):
        assert client.post("/detokenize", wrong)[0] == 400
    assert client.post("/tokenize", {"content": {}})[0] == 400


def test_the_template(client: Client) -> None:
    messages = [{"role": "user", "content": "hello"}]
    assert client.ok("/apply-template", {"messages": messages}) == {"prompt": "[user]hello[assistant]"}
    n = client.ok("/v1/chat/completions/input_tokens", {"messages": messages})["input_tokens"]
    assert n == client.ok("/v1/chat/completions", {"messages": messages, "max_tokens": 1})["usage"]["prompt_tokens"]


def test_completions_tell_all(client: Client) -> None:
    body = {"prompt": "hello", "n_predict": 8, "n_probs": 2, "return_tokens": True}
    whole = client.ok("/completion", body)
    other = client.ok("/v1/completions", {"prompt": "hello", "max_tokens": 8})
    assert whole["content"] == other["choices"][0]["text"]
    assert whole["stop"] and whole["stop_type"] == "limit" and whole["tokens_predicted"] == 8 == len(whole["tokens"])
    assert len(whole["completion_probabilities"]) == 8 and whole["generation_settings"]["temperature"] == 0.0
    assert whole["prompt"] == "hello" and whole["timings"]["predicted_n"] == 8
    events = client.stream("/completion", body)
    assert "".join(e["content"] for e in events) == whole["content"]
    assert [e["stop"] for e in events] == [False] * (len(events) - 1) + [True]
    picked = client.ok("/completion", {**body, "response_fields": ["content", "timings/predicted_n", "none"]})
    assert picked == {"content": whole["content"], "timings/predicted_n": 8}
    for n, slot in ((1, 2), (3, 1)):
        assert client.ok("/completion", {**body, "n_predict": n, "id_slot": slot})["id_slot"] == slot
    told = client.stream("/completion", {"prompt": "new", "n_predict": 1, "return_progress": True})
    assert [e["prompt_progress"]["processed"] for e in told if "prompt_progress" in e] == [0, 3]
    both = client.ok("/completion", {"prompt": ["hello", "world"], "n_predict": 3})
    assert [one["index"] for one in both] == [0, 1]


def test_the_word_that_ended_it(client: Client) -> None:
    text = client.ok("/completion", {"prompt": "hello", "n_predict": 40})["content"]
    at = next(i for i in range(4, len(text)) if "\ufffd" not in text[i : i + 2] and text.find(text[i : i + 2]) == i)
    found = client.ok("/completion", {"prompt": "hello", "n_predict": 40, "stop": ["never", text[at : at + 2]]})
    assert (found["stop_type"], found["stopping_word"], found["content"]) == ("word", text[at : at + 2], text[:at])


def test_what_is_filled_in(client: Client) -> None:
    body = {"input_prefix": "a(", "input_suffix": ")b", "n_predict": 4}
    found = client.ok("/infill", body)
    tokens = client.served.tokenizer.encode
    assert found["tokens_evaluated"] == 3 + len(tokens("a(")) + len(tokens(")b"))
    assert found["prompt"] == "\x01a(\x02)b\x03"
    assert client.post("/infill", {"input_prefix": "a"})[1]["error"]["param"] == "input_suffix"
    assert "".join(e["content"] for e in client.stream("/infill", body)) == found["content"]


def test_the_answer_has_room_beside_what_is_shown_of_other_files(model: Model) -> None:
    """As many tokens as are left of the context when a batch, for the gap, and twice `-n` are taken off."""
    body = {"input_prefix": "a(", "input_suffix": ")b", "prompt": "x", "n_predict": 40, "ignore_eos": True}
    head, gap = "\n\n--- snippet ---\n\n", "\x01a(x\x02)b\x03"
    with serving(model, n_slots=1, n_ctx=256, n_batch=128, n_predict=20) as client:
        for text, shown in (("other", f"{head}other"), ("z" * 300, "z" * (256 - 128 - 40))):
            found = client.ok("/infill", {**body, "input_extra": [{"filename": "f", "text": text}]})
            assert found["prompt"] == shown + gap and found["tokens_predicted"] == 40
        longer = client.ok("/infill", {**body, "input_prefix": "p" * 300, "input_suffix": "s" * 300})
        assert longer["prompt"] == f"\x01{'p' * 96}x\x02{'s' * (32 - 2 - 1)}\x03"


def test_a_character_that_the_end_has_cut(client: Client) -> None:
    """As llama-server tells it: chats leave it out, completions show that there was something."""
    held = {"grammar": 'root ::= "\u00e9\u20ac\U0001f642"', "max_tokens": 4}
    asked = {
        "prompt": "x",
        "messages": [{"role": "user", "content": "x"}],
        "input": "x",
        "max_output_tokens": 4,
        **held,
    }
    assert client.ok("/completion", asked)["content"] == "\u00e9\ufffd"
    assert client.ok("/v1/completions", asked)["choices"][0]["text"] == "\u00e9\ufffd"
    assert client.ok("/v1/chat/completions", asked)["choices"][0]["message"]["content"] == "\u00e9"
    deltas = [c["delta"] for e in client.stream("/v1/chat/completions", asked) for c in e["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "\u00e9"
    assert client.ok("/v1/messages", asked)["content"][0]["text"] == "\u00e9"
    assert client.ok("/v1/responses", asked)["output"][0]["content"][0]["text"] == "\u00e9"


@pytest.mark.parametrize(
    ("text", "n_indent", "said", "why"),
    [
        ("  ab\n  cd\n ef\n", 1, "  ab\n  cd\n ef\n", "eos"),
        ("ab\n  cd\n ef\n", 2, "ab\n  cd\n ", "limit"),
        ("ab\n\tcd", 2, "ab\n\t", "limit"),
        ("ab\n\n  cd", 1, "ab\n", "limit"),
        ("ab\n  ", 4, "ab\n  ", "eos"),
    ],
)
def test_a_line_with_too_few_blanks_ends_it(client: Client, text: str, n_indent: int, said: str, why: str) -> None:
    """What llama-server says of the same; streamed too, where it sends what it cuts off later."""
    body = {"prompt": "hello", "n_predict": 40, "grammar": f"root ::= {json.dumps(text)}", "n_indent": n_indent}
    found = client.ok("/completion", body)
    assert (found["content"], found["stop_type"]) == (said, why)
    assert "".join(e["content"] for e in client.stream("/completion", body)) == said


def test_a_time_that_is_over_ends_it_at_the_next_line(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(lines, "clock", lambda: float(next(now)))  # a second a token, and one for the beginning
    body = {"prompt": "hello", "grammar": 'root ::= "ab\\ncd\\nef\\ngh"', "n_predict": 40}
    for ms, said in ((3500, "ab\ncd\n"), (1000, "ab\n"), (-1, "ab\ncd\nef\ngh"), (0, "ab\ncd\nef\ngh")):
        now = iter(range(100))
        assert client.ok("/completion", {**body, "t_max_predict_ms": ms})["content"] == said, ms


def test_what_a_full_context_keeps_and_forgets(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers that llama-server b11549 logs of the same; what is forgotten counts no more."""
    calls: list[tuple[int, int]] = []
    said: dict[int, str] = {}
    with serving(model, n_slots=1, n_ctx=256, shifts=True, n_keep=3) as client:
        context = client.served.context
        shift = context.shift
        monkeypatch.setattr(context, "shift", lambda *what: (calls.append(what[:2]), shift(*what)))
        body = {"prompt": "hello" * 4, "n_predict": 260, "ignore_eos": True, "cache_prompt": False}
        for more, wanted in (
            ({}, [(3, 126)]),
            ({"n_keep": 5}, [(5, 125)]),
            ({"n_keep": -1}, [(4, 125)]),
            ({"n_discard": 4}, [(3, 4)] * 2),
            ({"n_keep": 1000}, [(252, 1)] * 8),
        ):
            found = client.ok("/completion", {**body, **more})
            assert calls == wanted and found["truncated"], more
            assert found["tokens_cached"] == 4 + 260 - 1 - sum(n for _, n in wanted)
            said[more.get("n_keep", 3)] = found["content"]
            calls.clear()
        again = client.ok("/completion", {**body, "n_keep": 5, "cache_prompt": True})  # the text before kept others
        assert again["content"] == said[5] and calls == [(5, 125)]


def test_the_token_that_ends_an_answer_counts(client: Client) -> None:
    held = {"grammar": 'root ::= "yes"', "cache_prompt": False}
    for n, reason, chosen in ((3, "length", 3), (9, "stop", 4)):
        found = client.ok("/v1/completions", {"prompt": "hello", "max_tokens": n, **held})
        assert (found["choices"][0]["finish_reason"], found["usage"]["completion_tokens"]) == (reason, chosen)
        assert found["usage"]["total_tokens"] == chosen + 1 and found["timings"]["predicted_n"] == chosen
        assert client.ok("/completion", {"prompt": "hello", "n_predict": n, **held})["tokens_predicted"] == chosen
        messages = [{"role": "user", "content": "x"}]
        usage = client.ok("/v1/messages", {"messages": messages, "max_tokens": n, **held})["usage"]
        assert usage["output_tokens"] == chosen
        usage = client.ok("/v1/responses", {"input": "x", "max_output_tokens": n, **held})["usage"]
        assert usage["output_tokens"] == chosen and usage["total_tokens"] == chosen + usage["input_tokens"]


def test_slots(client: Client) -> None:
    with client.open_stream(
        "/v1/completions", {"prompt": "hello there", "max_tokens": 400, "ignore_eos": True}
    ) as events:
        next(events)
        status, found = client.get("/slots")
        assert status == 200 and [slot["id"] for slot in found] == [0, 1, 2, 3]
        (busy,) = [slot for slot in found if slot["is_processing"]]
        assert busy["prompt"] == "hello there" and busy["next_token"][0]["n_decoded"] > 0
        with ThreadPoolExecutor(1) as pool:
            erased = pool.submit(client.post, f"/slots/{busy['id']}?action=erase", {})
            assert list(events)[-1]["choices"][0]["finish_reason"] == "length", "the answer was not cut off"
            status, found = erased.result(timeout=60)
        assert status == 200 and found["n_erased"] > 400, "a busy slot is erased once its answer has ended"
    for slot in range(4):
        client.post(f"/slots/{slot}?action=erase", {})
    assert client.post("/slots/0?action=erase", {}) == (200, {"id_slot": 0, "n_erased": 0})
    for path, status in (("/slots/9?action=erase", 400), ("/slots/0?action=dance", 400), ("/slots/0?action=save", 501)):
        assert client.post(path, {})[0] == status
    assert client.raw("POST", "/slots/x?action=erase")[0] == 404


def test_props_and_metrics(client: Client, model: Model) -> None:
    status, props = client.get("/props")
    assert status == 200 and props["total_slots"] == 4 and props["default_generation_settings"]["n_ctx"] == 512
    assert "/" not in props["model_path"], "no path of this machine is told"
    assert client.get("/metrics")[0] == 501
    with serving(model, n_slots=1, metrics=True, slots=False) as other:
        other.ok("/completion", {"prompt": "hello there", "n_predict": 5, "ignore_eos": True})
        assert other.get("/slots")[0] == 501
        status, headers, data = other.raw("GET", "/metrics")
        values = dict(line.split() for line in data.decode().splitlines() if not line.startswith("#"))
        assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
        assert values["llamacpp:tokens_predicted_total"] == "5" and values["llamacpp:requests_processing"] == "0"
        kinds = [line.split()[2] for line in data.decode().splitlines() if line.startswith("# TYPE")]
        assert kinds == list(values)


@pytest.fixture
def adapted(tmp_path: Path) -> Iterator[Client]:
    from text_model import write_text_model
    from tiny_lora import write_lora

    from pyggml.backend.cpu import CPUDevice

    model = Model.load(write_text_model(tmp_path / "m.gguf", n_ctx=256), cpu=CPUDevice())
    adapter = model.load_adapter(write_lora(tmp_path / "a.gguf", ["blk.0.ffn_gate.weight", "blk.1.ffn_down.weight"]))
    with serving(model, n_slots=1, adapters=[(adapter, 0.0)]) as client:
        yield client
    model.close()


def test_adapters_and_their_scales(adapted: Client) -> None:
    body = {"prompt": "hello", "n_predict": 12}
    before = adapted.ok("/completion", body)["content"]
    listed = adapted.get("/lora-adapters")[1]
    assert [(a["id"], a["scale"]) for a in listed] == [(0, 0.0)]
    assert adapted.post("/lora-adapters", [{"id": 0, "scale": 5.0}])[0] == 200
    assert adapted.get("/lora-adapters")[1][0]["scale"] == 5.0
    changed = adapted.ok("/completion", body)
    assert adapted.ok("/completion", {**body, "lora": []})["content"] == changed["content"], "none are named"
    assert changed["content"] != before and changed["timings"]["cache_n"] == 0
    assert adapted.post("/lora-adapters", [])[0] == 200
    assert adapted.ok("/completion", body)["content"] == before
    for wrong in ([{"id": 1, "scale": 1}], [{"id": 0}], [{"id": 0, "scale": "x"}], {}, [3]):
        status, found = adapted.post("/lora-adapters", wrong)
        assert status == 400, (wrong, json.dumps(found))
