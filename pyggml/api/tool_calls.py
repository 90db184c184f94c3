"""Calls of tools in answers by the file's template: what the text is held to, and the dicts that say what is called.

Owns the step from a completion's dicts to those of a chat with tool_calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyggml.api.arguments import ParameterError
from pyggml.chat import ChatTemplate, Delta, Options, Prepared, ReplyParser, prepare
from pyggml.grammar import LlamaGrammar


def as_tools(
    functions: Sequence[Mapping[str, Any]] | None,
    function_call: Any,
    tools: Sequence[Mapping[str, Any]] | None,
    choice: Any,
) -> tuple[Sequence[Mapping[str, Any]] | None, Any]:
    """(tools, tool_choice), where the older names for them may have been used."""
    if functions is not None:
        tools = [{"type": "function", "function": function} for function in functions]
    if function_call in ("none", "auto"):
        choice = function_call
    elif isinstance(function_call, Mapping):
        if not isinstance(function_call.get("name"), str):
            raise ParameterError('function_call must be "none", "auto" or {"name": ...}')
        choice = {"type": "function", "function": {"name": function_call["name"]}}
    return tools, choice


def prepared_calls(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], choice: Any
) -> Prepared:
    """The prompt that shows the tools, and what holds calls of them. Reasoning stays part of the text, as in llama_cpp.

    Raises ParameterError for a choice of another form, ChatError for messages, tools or names that are none.
    """
    if isinstance(choice, Mapping):
        function = choice.get("function")
        choice = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(choice, str):
            raise ParameterError('tool_choice must be "none", "auto", "required" or {"function": {"name": ...}}')
    options = Options(tools=tuple(dict(tool) for tool in tools), tool_choice=choice or "auto", reasoning_format="none")
    return prepare(template, messages, options)


def grammar_of(prepared: Prepared, shown: frozenset[int]) -> LlamaGrammar | None:
    """What the answer is held to."""
    if not prepared.grammar:
        return None
    grammar = LlamaGrammar(prepared.grammar)
    grammar.trigger, grammar.shown = prepared.trigger, shown
    return grammar


def parser_of(prepared: Prepared) -> ReplyParser:
    """What reads the answer: of reasoning that the prompt opened, it shows what the model writes."""
    return ReplyParser(prepared.row.form, prepared.tools, reasoning=False)


def with_calls(answer: dict[str, Any], parser: ReplyParser) -> dict[str, Any]:
    """A whole chat whose text is read: what is said, and what is called."""
    choice = answer["choices"][0]
    parser.feed(choice["message"]["content"] or "")
    parser.finish()
    reply = parser.reply
    if not reply.calls:
        return answer
    made = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in reply.calls
    ]
    message: dict[str, Any] = {"role": "assistant", "content": reply.content or None, "tool_calls": made}
    if len(made) == 1:
        message["function_call"] = made[0]["function"]
    reason = "tool_calls" if choice["finish_reason"] == "stop" else choice["finish_reason"]
    return {**answer, "choices": [{**choice, "message": message, "finish_reason": reason}]}


def chunks_with_calls(chunks: Iterator[dict[str, Any]], parser: ReplyParser) -> Iterator[dict[str, Any]]:
    """A chat's chunks whose text is read: each piece of text or of a call as soon as it is known."""
    for chunk in chunks:
        choice = chunk["choices"][0]
        text, reason = choice["delta"].get("content"), choice["finish_reason"]
        if text is None and reason is None:
            yield chunk
            continue
        deltas = parser.feed(text or "") + (parser.finish() if reason is not None else [])
        numbers = choice["logprobs"]
        for delta in deltas:
            yield {**chunk, "choices": [{**choice, "delta": _dict(delta), "logprobs": numbers, "finish_reason": None}]}
            numbers = None
        if reason is not None:
            reason = "tool_calls" if parser.reply.calls and reason == "stop" else reason
            yield {**chunk, "choices": [{**choice, "delta": {}, "finish_reason": reason}]}


def _dict(delta: Delta) -> dict[str, Any]:
    if delta.call is None:
        return {"content": delta.content + delta.reasoning}
    function = {"name": delta.name or None, "arguments": delta.arguments}
    return {"tool_calls": [{"index": delta.call, "id": delta.id or None, "type": "function", "function": function}]}
