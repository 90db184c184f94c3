"""The chat format chatml-function-calling: tools for models that know ChatML and no tools.

Owns its prompt and its questions, after chatml_function_calling in llama_chat_format.py of 0.3.36. Different from there: texts
are not escaped as HTML is; a message is free text, of max_tokens at most; several calls may follow each other, and
tool_choice="required" is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pyggml.api.arguments import ParameterError
from pyggml.api.chat_formats import text_of
from pyggml.api.chat_handlers import OF_COMPLETIONS, as_chat, called, forced_tool, grammar_for, texts
from pyggml.api.tool_calls import as_tools

END = "<|im_end|>"
HOW = (
    "\n\nYou can respond to users messages with either a single message or one or more function calls."
    "\n\nTo respond with a message begin the message with 'message:', use the following format:"
    "\n\nmessage:\n<message>"
    "\n\nTo respond with one or more function calls begin the message with 'functions.<function_name>:', use the following "
    "format:"
    '\n\nfunctions.<function_name>:\n{ "arg1": "value1", "arg2": "value2" }'
    '\nfunctions.<function_name>:\n{ "arg1": "value1", "arg2": "value2" }'
)


def prompt_of(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """The messages up to where the answer begins; tools stand behind the system's message."""
    out = []
    for message in messages:
        role, text = message["role"], text_of(message)
        out.append(f"<|im_start|>{role}\n")
        if role == "system":
            out += [text, _listed(tools) if tools else "", f"{END}\n"]
        elif role == "user":
            out += [text, f"{END}\n"]
        elif role == "assistant":
            if text:
                out += ["message:\n" if tools else "", text, f"{END}\n"]
            if "tool_calls" in message:
                calls = [call["function"] for call in message["tool_calls"]]
                out += [f"functions.{call['name']}:\n{call['arguments']}" for call in calls] + [f"{END}\n"]
    return "".join([*out, "<|im_start|>assistant\n"])


def _listed(tools: Sequence[Mapping[str, Any]]) -> str:
    parts = ["\n\nYou have access to the following functions:\n"]
    for tool in tools:
        function = tool["function"]
        parts.append(f"\nfunctions.{function['name']}:\n{json.dumps(function.get('parameters', {}), sort_keys=True)}\n")
    return "".join([*parts, HOW])


def chatml_function_calling(
    llama: Any,
    messages: Sequence[Mapping[str, Any]],
    functions: Sequence[Mapping[str, Any]] | None = None,
    function_call: Any = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: Any = None,
    response_format: Mapping[str, Any] | None = None,
    grammar: Any = None,
    stop: str | list[str] | None = None,
    logprobs: bool | None = None,
    top_logprobs: int | None = None,
    stream: bool = False,
    **sampling: Any,
) -> Any:
    """A chat's answer; with tools and "auto" the model first says whether it calls one, and which. Raises ParameterError."""
    tools, tool_choice = as_tools(functions, function_call, tools, tool_choice)
    options = {name: value for name, value in sampling.items() if name in OF_COMPLETIONS}
    options |= {"stop": [*texts(stop), END]}
    numbers = (top_logprobs or 0) if logprobs else None
    if tool_choice in (None, "none") or not tools:
        kept = grammar_for(None, response_format, grammar)
        answer = llama.create_completion(
            prompt=prompt_of(messages), grammar=kept, stream=stream, logprobs=numbers, **options
        )
        return as_chat(answer, stream)
    prompt = prompt_of(messages, tools)
    tool = forced_tool(tools, tool_choice)
    if tool is not None:
        name = tool["function"]["name"]
        answer = llama.create_completion(
            prompt=f"{prompt}functions.{name}:\n", grammar=grammar_for(tool, None, None), stream=stream, **options
        )
        return as_chat(answer, stream, name)
    if tool_choice not in ("auto", "required"):
        raise ParameterError(f"tool_choice={tool_choice!r:.60}: must be 'none', 'auto', 'required' or name a function")

    def next_one(prompt: str, other: Sequence[str]) -> Any:
        """Which tool comes next, or one of the others."""
        called = [f'"functions.{tool["function"]["name"]}:"' for tool in tools]
        choices = " | ".join([*called, *(f'"{text}"' for text in other)])
        asked = {**options, "temperature": 0, "stop": [":"], "max_tokens": None}
        return llama.create_completion(prompt=prompt, grammar=f"root ::= {choices}\n", stream=False, **asked)

    head = next_one(prompt, ["message:"] if tool_choice == "auto" else [])
    said = head["choices"][0]["text"]
    if said.startswith("message"):
        answer = llama.create_completion(prompt=f"{prompt}message:\n", stream=stream, logprobs=numbers, **options)
        return as_chat(answer, stream)
    if stream:
        raise ParameterError(
            "chatml-function-calling streams no calls that the model chooses: name the tool, or stream=False"
        )
    by_name = {f"functions.{tool['function']['name']}": tool for tool in tools}
    calls: list[tuple[str, Any]] = []
    while said in by_name:
        tool = by_name[said]
        prompt += f"{said}:\n"
        answer = llama.create_completion(
            prompt=prompt, grammar=grammar_for(tool, None, None), stream=False, **{**options, "max_tokens": None}
        )
        calls.append((tool["function"]["name"], answer))
        if answer["choices"][0]["finish_reason"] == "length":
            break
        prompt += f"{answer['choices'][0]['text']}\n"
        said = next_one(prompt, [END])["choices"][0]["text"]
    return called(head, calls)
