"""Named chat formats, formatters and handlers: each asked as llama-cpp-python's own is, and compared with it."""

import json
from pathlib import Path
from typing import Any

import pytest
import recording_llama
from hypothesis import given
from hypothesis import strategies as st
from recording_llama import ask

from pyggml import Llama
from pyggml.api.arguments import ParameterError
from pyggml.api.chat_formats import FORMATS, ChatFormatterResponse
from pyggml.api.chat_handlers import (
    Jinja2ChatFormatter,
    LlamaChatCompletionHandlerNotFoundException,
    LlamaChatCompletionHandlerRegistry,
    get_chat_completion_handler,
    register_chat_completion_handler,
    register_chat_format,
)
from pyggml.api.chatml_functions import HOW, chatml_function_calling
from pyggml.api.handled_chats import OF_THE_FILE, chat_formats

MODEL = {"n_ctx": 512}
LLAMA = {"n_ctx": 512}

SYSTEM = {"role": "system", "content": "Be brief."}
DIALOGUE = [
    SYSTEM,
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why"},
]
CONVERSATIONS = [
    DIALOGUE[1:2],
    DIALOGUE[:2],
    DIALOGUE,
    DIALOGUE[1:],
    [
        DIALOGUE[1],
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": "x"},
        {"role": "bot", "content": "b"},
    ],
    [{"role": "user", "content": ""}, SYSTEM, {"role": "user", "content": None}],
]
MENDED = {"intel", "open-orca"}  # there the system's message, or all others, are lost


SUPPORT = str(Path(recording_llama.__file__).parent)
BEGIN = "import json, sys, llama_cpp.llama_chat_format as f; sys.path.insert(0, sys.argv[1]); from recording_llama import ask\n"


def test_named_formats_are_the_peers(peer: Any) -> None:
    script = """
names = list(f.LlamaChatCompletionHandlerRegistry()._chat_handlers)
out = {}
for name in sys.argv[2].split():
    handler = f.get_chat_completion_handler(name)
    out[name] = [ask(handler, ["answer"], messages=m) for m in json.loads(sys.argv[3])]
print(json.dumps([names, out]))
"""
    done = peer.run(BEGIN + script, SUPPORT, " ".join(FORMATS), json.dumps(CONVERSATIONS))
    names, there = json.loads(done.stdout.splitlines()[-1])
    assert len(names) == 27 and set(names) == {*FORMATS, "chatml-function-calling", *OF_THE_FILE} <= set(chat_formats())
    for name in FORMATS:
        handler = get_chat_completion_handler(name)
        ours = json.loads(json.dumps([ask(handler, ["answer"], messages=m) for m in CONVERSATIONS]))
        for mine, theirs in zip(ours, there[name], strict=True):
            if name == "intel":  # there the place of the system's message is not filled
                place, message = (list(text.encode()) for text in ("{system_message}", SYSTEM["content"]))
                with_system = bytes(message) in bytes(mine[1][0]["prompt"][2:])
                theirs[1][0]["prompt"] = _replaced(theirs[1][0]["prompt"], place, message if with_system else [])
            if name != "open-orca":
                assert mine == theirs, (name, bytes(mine[1][0]["prompt"][2:]), bytes(theirs[1][0]["prompt"][2:]))


def _replaced(numbers: list[int], old: list[int], new: list[int]) -> list[int]:
    at = next(i for i in range(len(numbers)) if numbers[i : i + len(old)] == old)
    return numbers[:at] + new + numbers[at + len(old) :]


def test_open_orca_says_what_the_peers_does_of_roles_with_capitals(peer: Any) -> None:
    script = "print(json.dumps(f.format_open_orca(messages=json.loads(sys.argv[2])).prompt))"
    capitals = [{**m, "role": m["role"].capitalize()} for m in DIALOGUE]
    done = peer.run(BEGIN + script, SUPPORT, json.dumps(capitals))
    assert FORMATS["open-orca"](messages=DIALOGUE).prompt == json.loads(done.stdout.splitlines()[-1])


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a place",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}, "again": {"type": "boolean"}}},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
NAMED = {"type": "function", "function": {"name": "clock"}}
CALLED = [
    *DIALOGUE[:2],
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}]},
    {"role": "user", "content": "And now"},
]  # fmt: skip
QUESTIONS: list[dict[str, Any]] = [
    {"messages": DIALOGUE},
    {"messages": DIALOGUE, "stream": True},
    {"messages": DIALOGUE, "response_format": {"type": "json_object"}},
    {"messages": CALLED, "tools": [WEATHER, CLOCK], "tool_choice": "none"},
    {"messages": CALLED, "tools": [WEATHER, CLOCK], "tool_choice": NAMED},
    {"messages": DIALOGUE, "tools": [WEATHER, CLOCK], "tool_choice": NAMED, "stream": True},
    {"messages": DIALOGUE, "functions": [CLOCK["function"]], "function_call": {"name": "clock"}},
    {"messages": DIALOGUE, "tools": [WEATHER], "tool_choice": NAMED},
]


@pytest.mark.parametrize("name", ["chatml-function-calling", "chatml"])
def test_answers_with_tools_are_the_peers(name: str, peer: Any) -> None:
    script = """
handler = f.get_chat_completion_handler(sys.argv[2])
print(json.dumps([ask(handler, ['{"a": 1}'], **q) for q in json.loads(sys.argv[3])]))
"""
    there = json.loads(peer.run(BEGIN + script, SUPPORT, name, json.dumps(QUESTIONS)).stdout.splitlines()[-1])
    handler = get_chat_completion_handler(name)
    ours = json.loads(json.dumps([ask(handler, ['{"a": 1}'], **q) for q in QUESTIONS]))
    for mine, theirs, question in zip(ours, there, QUESTIONS, strict=True):
        assert [call["prompt"] for call in mine[1]] == [
            call["prompt"].replace("&#39;", "'").replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", '"')
            if isinstance(call["prompt"], str)
            else call["prompt"]
            for call in theirs[1]
        ]
        for call in (*mine[1], *theirs[1]):
            del call["prompt"]
        assert mine[1] == theirs[1], question
        if question.get("stream"):  # the ends of a stream of calls differ: there no chunk has the role alone
            assert _arguments(mine[0]) == _arguments(theirs[0]) and mine[0][-1]["choices"][0]["finish_reason"]
        elif isinstance(mine[0], dict) and mine[0]["choices"][0]["message"].get("tool_calls"):
            assert mine[0] == theirs[0]


def _arguments(chunks: list[dict[str, Any]]) -> str:
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    return "".join(
        d["tool_calls"][0]["function"]["arguments"] if d.get("tool_calls") else d.get("content") or "" for d in deltas
    )


def test_a_model_chooses_its_tools() -> None:
    tools = [WEATHER, CLOCK]
    said = ["functions.weather", '{"town": "x"}', "functions.clock", "{}", "<|im_end|>"]
    answer, calls = ask(chatml_function_calling, said, messages=DIALOGUE, tools=tools, tool_choice="auto")
    choice = answer["choices"][0]
    assert [c["function"] for c in choice["message"]["tool_calls"]] == [
        {"name": "weather", "arguments": '{"town": "x"}'},
        {"name": "clock", "arguments": "{}"},
    ]
    assert choice["finish_reason"] == "tool_calls" and answer["usage"]["total_tokens"] == 14
    assert HOW in calls[0]["prompt"] and calls[-1]["prompt"].endswith(
        'functions.weather:\n{"town": "x"}\nfunctions.clock:\n{}\n'
    )
    assert [call["held"] for call in calls] == [True] * 5 and calls[0]["stop"] == [":"]
    answer, calls = ask(
        chatml_function_calling, ["message", "free text"], messages=DIALOGUE, tools=tools, tool_choice="auto"
    )
    assert answer["choices"][0]["message"]["content"] == "free text" and not calls[1]["held"]
    assert calls[1]["max_tokens"] == 9 and calls[1]["prompt"].endswith("assistant\nmessage:\n")
    for choice, words in (
        ("sometimes", "'sometimes'"),
        (NAMED | {"function": {"name": "no"}}, "'no'; there are weather"),
    ):
        with pytest.raises(ParameterError, match=words):
            chatml_function_calling(recording_llama.RecordingLlama(["x"]), DIALOGUE, tools=tools, tool_choice=choice)
    with pytest.raises(ParameterError, match="streams no calls"):
        chatml_function_calling(
            recording_llama.RecordingLlama(said), DIALOGUE, tools=tools, tool_choice="auto", stream=True
        )


# ---- through a Llama


def content(answer: Any) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize("name", ["alpaca", "chatml", "saiga", "chatml-function-calling", "functionary", "llama3"])
def test_a_llama_takes_names_of_both_kinds(name: str, path: Path) -> None:
    with Llama(path, n_ctx=512, chat_format=name, verbose=False) as llm:
        whole = llm.create_chat_completion(DIALOGUE, max_tokens=6, temperature=0)
        chunks = list(llm.create_chat_completion(DIALOGUE, max_tokens=6, temperature=0, stream=True))
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == content(whole)
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"} and whole["usage"]["completion_tokens"] <= 6
        if name in FORMATS:
            prompt = FORMATS[name](messages=DIALOGUE).prompt
            assert llm.detokenize(llm._input_ids, special=True).startswith(prompt.encode()), name


def test_forced_tools_are_held_to_their_parameters(path: Path) -> None:
    for name in ("chatml", "chatml-function-calling"):
        with Llama(path, n_ctx=1024, chat_format=name, verbose=False) as llm:
            answer = llm.create_chat_completion(
                [DIALOGUE[1]], tools=[WEATHER, CLOCK], tool_choice=NAMED, max_tokens=30, temperature=0
            )
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "clock" and json.loads(call["function"]["arguments"]) == {}


def test_answers_are_held_to_openais_json_schema(path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    for name in (None, "chatml", "chatml-function-calling", "llama3"):
        with Llama(path, n_ctx=1024, chat_format=name, verbose=False) as llm:
            wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
            said = content(llm.create_chat_completion([DIALOGUE[1]], response_format=wanted, temperature=0))
            assert json.loads(said)["a"] in (True, False)
            for bad, words in (({"type": "json_schema"}, "needs"), ({"type": "xml"}, "type 'xml' is not known")):
                with pytest.raises(ParameterError, match=words):
                    llm.create_chat_completion([DIALOGUE[1]], response_format=bad)


def test_handlers_and_formats_of_the_user(path: Path) -> None:
    registry = LlamaChatCompletionHandlerRegistry()

    @register_chat_format("shout")
    def shout(messages: Any, **more: Any) -> ChatFormatterResponse:
        return ChatFormatterResponse(messages[-1]["content"].upper(), stop="zzz")

    @register_chat_completion_handler("echo")
    def echo(llama: Llama, messages: Any, temperature: float, top_k: int, **more: Any) -> Any:
        return [messages[-1]["content"], temperature, top_k]

    try:
        with Llama(path, n_ctx=64, chat_format="shout", verbose=False) as llm:
            llm.create_chat_completion([DIALOGUE[1]], max_tokens=1)
            assert llm.detokenize(llm._input_ids).startswith(b"HI")
        with Llama(path, n_ctx=64, chat_format="echo", verbose=False) as llm:
            assert llm.create_chat_completion([DIALOGUE[1]], top_k=5) == ["Hi", 0.2, 5]
        with Llama(path, n_ctx=64, chat_handler=echo, chat_format="chatml", verbose=False) as llm:
            assert llm.create_chat_completion(messages=[DIALOGUE[1]], temperature=1) == ["Hi", 1, 40]
        with pytest.raises(ParameterError, match="'echo' is registered already"):
            register_chat_completion_handler("echo")(echo)
    finally:
        registry.unregister_chat_handler("shout")
        registry.unregister_chat_handler("echo")
    with pytest.raises(LlamaChatCompletionHandlerNotFoundException, match="no chat handler 'echo'; there are llama-2"):
        get_chat_completion_handler("echo")
    with pytest.raises(ParameterError, match="no chat handler 'echo'"):
        registry.unregister_chat_handler("echo")


def test_a_formatter_of_a_template(path: Path) -> None:
    template = "{% for m in messages %}{{ bos_token }}{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}A{% endif %}"
    formatter = Jinja2ChatFormatter(template, eos_token="<|end|>", bos_token="<|begin|>", stop_token_ids=[65])
    response = formatter(messages=[DIALOGUE[1]])
    assert (response.prompt, response.stop, response.added_special) == ("<|begin|>Hi<|end|>A", ["<|end|>"], True)
    assert response.stopping_criteria[0]([1, 65], None) and not response.stopping_criteria[0]([65, 1], None)
    with Llama(path, n_ctx=64, chat_handler=formatter.to_chat_handler(), verbose=False) as llm:
        llm.create_chat_completion([DIALOGUE[1]], max_tokens=1)
        assert llm.detokenize(llm._input_ids, special=True).startswith(b"<|begin|>Hi<|end|>A")


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system", "tool"]), st.text(max_size=5)), max_size=5))
def test_any_messages_make_a_prompt(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": text} for role, text in turns]
    for name, form in FORMATS.items():
        prompt = form(messages=messages).prompt
        for role, text in turns:
            assert role not in ("user", "assistant") or text in prompt or name == "saiga", name
