"""Messages as single templates want them, where these differ from OpenAI's form.

Owns a row for each such template, found by a text in it; after the files of llama.cpp's common/parsers/.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Json = dict[str, Any]
SPACE = " \t\r\n\v\f"


class Rewrite(NamedTuple):
    """texts: all in the template; without: none of them is; rewrite: (messages, variables) -> messages."""

    texts: tuple[str, ...]
    without: tuple[str, ...]
    rewrite: Callable[[list[Json], Mapping[str, Any]], list[Json]]


def rewritten(messages: list[Json], source: str, variables: Mapping[str, Any]) -> list[Json]:
    """The messages for the template with this text."""
    for row in ROWS:
        if all(text in source for text in row.texts) and not any(text in source for text in row.without):
            messages = row.rewrite(messages, variables)
    return messages


def _reasoning_of_its_own(messages: list[Json], variables: Mapping[str, Any]) -> list[Json]:
    """K2 Horizon: each of the assistant's messages has reasoning, if only an empty one."""
    return [{"reasoning_content": "", **m} if m["role"] == "assistant" else m for m in messages]


def _thinking(messages: list[Json], variables: Mapping[str, Any]) -> list[Json]:
    """Reasoning is called "thinking" (LFM2)."""
    return [
        {**m, "thinking": m["reasoning_content"]} if isinstance(m.get("reasoning_content"), str) else m
        for m in messages
    ]


def _reasoning(messages: list[Json], variables: Mapping[str, Any]) -> list[Json]:
    """Reasoning is called "reasoning" (Solar Open)."""
    return [
        {"reasoning": m["reasoning_content"], **m} if isinstance(m.get("reasoning_content"), str) else m
        for m in messages
    ]


def _harmony(messages: list[Json], variables: Mapping[str, Any]) -> list[Json]:
    """Reasoning is called "thinking", and stands beside calls in place of the content (gpt-oss)."""
    out = _thinking(messages, variables)
    return [
        {key: value for key, value in m.items() if key != "content"}
        if m.get("tool_calls") and isinstance(m.get("thinking"), str)
        else m
        for m in out
    ]


def _thinking_parts(messages: list[Json], variables: Mapping[str, Any]) -> list[Json]:
    """Reasoning is a part of the content (Ministral 3)."""
    out = []
    for message in messages:
        if message["role"] not in ("system", "assistant"):
            out.append(message)
            continue
        parts: list[Json] = []
        reasoning, content = message.get("reasoning_content"), message.get("content")
        if isinstance(reasoning, str):
            parts.append({"type": "thinking", "thinking": reasoning})
        if isinstance(content, str):
            parts.append({"type": "text", "text": content})
        elif isinstance(content, list):
            parts += content
        rest = {key: value for key, value in message.items() if key != "reasoning_content"}
        out.append({**rest, "content": parts})
    return out


def _trimmed(messages: list[Json], variables: Mapping[str, Any]) -> list[Json]:
    """No white space around contents, which would make the model reason in circles (StepFun 3.5)."""

    def bare(value: Any) -> Any:
        if isinstance(value, list):
            return [{**p, "text": bare(p["text"])} if isinstance(p.get("text"), str) else p for p in value]
        return value.strip(SPACE) if isinstance(value, str) else value

    keys = ("content", "reasoning_content")
    return [{key: bare(value) if key in keys else value for key, value in m.items()} for m in messages]


def _results_in_order(messages: list[Json], variables: Mapping[str, Any]) -> list[Json]:
    """Results in the order of the calls (DeepSeek V4)."""
    out = list(messages)
    order: dict[str, int] = {}
    i = 0
    while i < len(out):
        if out[i]["role"] not in ("user", "tool"):
            if out[i]["role"] == "assistant" and out[i].get("tool_calls"):
                order = {call["id"]: n for n, call in enumerate(out[i]["tool_calls"]) if call.get("id")}
            i += 1
            continue
        end = next((j for j in range(i, len(out)) if out[j]["role"] not in ("user", "tool")), len(out))
        places = [j for j in range(i, end) if out[j]["role"] == "tool"]
        if order:
            results = sorted((out[j] for j in places), key=lambda m: order.get(m.get("tool_call_id", ""), 0))
            for j, result in zip(places, results, strict=True):
                out[j] = result
        i = end
    return out


def _results_with_calls(messages: list[Json], variables: Mapping[str, Any]) -> list[Json]:
    """Calls, their results and what is said of them are one message (Gemma 4's first templates)."""
    out: list[Json] = []
    i = 0
    while i < len(messages):
        message = messages[i]
        i += 1
        if message["role"] != "assistant" or not message.get("tool_calls"):
            out.append(message)
            continue
        calls = message["tool_calls"]
        made: Json = {"role": "assistant", "tool_calls": calls}
        results: list[Json] = []
        while i < len(messages) and messages[i]["role"] == "tool":
            name = calls[len(results)]["function"]["name"] if len(results) < len(calls) else ""
            content = messages[i].get("content")
            with contextlib.suppress(ValueError):
                content = json.loads(content) if isinstance(content, str) else content
            results.append({"name": name or messages[i].get("tool_call_id", ""), "response": content})
            i += 1
        if results:
            made["tool_responses"] = results
        said = messages[i] if i < len(messages) and messages[i]["role"] == "assistant" else {}
        if said.get("content") and not said.get("tool_calls"):
            made["content"] = said["content"]
            i += 1
        if isinstance(message.get("reasoning_content"), str):
            made["reasoning_content"] = message["reasoning_content"]
        out.append(made)
    return out


def _languages(messages: list[Json], variables: Mapping[str, Any]) -> list[Json]:
    """What is to be translated, with the codes of both languages (TranslateGemma)."""
    codes = {f"{side}_lang_code": variables.get(f"{side}_lang_code", "en-GB") for side in ("source", "target")}
    out = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = "\n".join(str(part.get("text", "")) for part in content)
        part = {"type": "text", "text": content or "", **codes}
        out.append({**message, "content": [part] if message["role"] == "user" else content})
    return out


ROWS = [
    Rewrite(("You have access to the following functions in JSONSchema format",), (), _trimmed),
    Rewrite(("[SYSTEM_PROMPT]", "[TOOL_CALLS]", "[ARGS]"), ("[CALL_ID]",), _thinking_parts),
    Rewrite(("<|channel|>",), (), _harmony),
    Rewrite(("<|ifm|im_start|>",), (), _reasoning_of_its_own),
    Rewrite(("<|tool_list_start|>",), (), _thinking),
    Rewrite(("<|begin|>assistant<|think|>", "message.reasoning"), ("message.reasoning_content",), _reasoning),
    Rewrite(("List of tools: [",), ("<|tool_list_start|>",), _thinking),
    Rewrite(("dsml_token", "DSML"), ("function_calls",), _results_in_order),
    Rewrite(("'<|tool_call>call:'",), ("{#- OpenAI Chat Completions:",), _results_with_calls),
    Rewrite(("[source_lang_code]", "[target_lang_code]"), (), _languages),
]
