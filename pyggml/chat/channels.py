"""gpt-oss's answers (harmony): messages with a channel and perhaps a recipient each.

Owns reading them and the grammar of their calls. Fact: the model's chat template, and llama.cpp's common/chat.cpp
(common_chat_params_init_gpt_oss).
"""

import re
from collections.abc import Sequence

from pyggml.chat.answer import Call, Message, held_back
from pyggml.chat.tool_grammar import Tool, call_grammar, literal

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>", START)
TRIGGERS = (r"to=functions\.",)
TO = re.compile(r"to=(?:functions\.)?([^\s<]+)")


def read(text: str, final: bool) -> Message:
    """Analysis is what is thought, commentary to a function a call, all else what is said. The prompt ends in a message's
    head."""
    reasoning: list[str] = []
    content: list[str] = []
    calls: list[Call] = []
    at = 0
    while at < len(text):
        body = text.find(MESSAGE, at)
        if body < 0:
            if final and CHANNEL not in text[at:] and not calls and not reasoning and not content:
                content.append(text[at:])  # not in its format at all
            break
        head, body = text[at:body], body + len(MESSAGE)
        found = [(end, mark) for mark in ENDS if (end := text.find(mark, body)) >= 0]
        end, mark = min(found, default=(len(text), ""))
        said = text[body:end] if mark else held_back(text[body:], ENDS, final)
        to = TO.search(head)
        if to is not None:
            calls.append(Call(to[1], said))
        elif "analysis" in head:
            reasoning.append(said)
        else:
            content.append(said)
        at = end + (len(mark) if mark and mark != START else 0)
        if text.startswith(START, at):
            at += len(START)
    return Message("".join(content), "".join(reasoning), tuple(calls))


def grammar(tools: Sequence[Tool], whole: bool) -> str:
    """GBNF of a call from its recipient on; `whole`: of all of a message."""
    rest = f'[^<]{{0,20}} ({literal(CHANNEL)} [a-z]{{0,12}} [^<]{{0,20}})? ("<|constrain|>" [a-z]{{0,8}})? {literal(MESSAGE)}'
    calls = [(tool, f"{literal(f'to=functions.{tool.name}')} {rest} {{args}}") for tool in tools]
    before = f'({literal(CHANNEL)} "commentary")? " "?' if whole else ""
    return call_grammar(calls, before, "", False)
