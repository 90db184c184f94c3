"""What is to be made of a model's text, by its template: reasoning apart from what is said, calls of tools apart from both.

Owns the choice, for servers and APIs alike.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pyggml.chat import channels
from pyggml.chat.answer import Message, held_back
from pyggml.chat.tool_formats import Generic, ToolFormat, format_of
from pyggml.chat.tool_grammar import Tool, schema_rules

OPEN, CLOSE = "<think>", "</think>"
_OBJECTS = re.compile(r"arguments\s*\|\s*(?:tojson|items)|arguments\.items|arguments is mapping")


class Reader:
    """source     the template's text
    tools      OpenAI's descriptions of those that may be called; none: no call is sought
    reasoning  whether what is thought is told apart
    """

    def __init__(self, source: str, tools: Sequence[Mapping[str, Any]] = (), reasoning: bool = True) -> None:
        self.tools = [_tool(tool) for tool in tools]
        self.given = tools
        self.channels = "<|channel|>" in source
        self.format: ToolFormat | None = format_of(source) if tools else None
        self.thinks = reasoning and CLOSE in source
        self.reasoning = reasoning
        self.opened = False
        self.knows_tools = "tool" in source
        self.objects = _OBJECTS.search(source) is not None

    @property
    def special(self) -> bool:
        """Whether names of control tokens have to be part of the text."""
        return self.channels or (self.format is not None and self.format.special)

    @property
    def generic(self) -> bool:
        """Whether the template says nothing of tools, so that a message must."""
        return isinstance(self.format, Generic)

    def prompt(self, text: str) -> None:
        """The answer follows this prompt, which may have begun what is thought."""
        self.opened = self.thinks and text.rstrip().endswith(OPEN)

    def grammar(self, required: bool, parallel: bool) -> tuple[str, list[str]]:
        """What holds calls to the tools' schemas, and regular expressions of what it waits for; none: it holds from the
        beginning. Raises GrammarError for a bad schema."""
        if self.channels:
            return channels.grammar(self.tools, required), [] if required else list(channels.TRIGGERS)
        assert self.format is not None, "no tools"
        text = self.format.grammar(self.tools, parallel)
        if required:
            return text, self.after_thinking
        if self.generic:
            alternative = 'tool-ws "{" tool-ws "\\"response\\":" tool-ws answer-root tool-ws "}"'
            text = re.sub(r"^root ::= ", "root-call ::= ", text)
            return (
                f"root ::= root-call | {alternative}\n{text}{schema_rules('answer-', {'type': 'string'})}\n",
                self.after_thinking,
            )
        return text, list(self.format.triggers)

    @property
    def after_thinking(self) -> list[str]:
        """What a grammar of all that is said waits for: nothing, or the end of what is thought."""
        return [rf"{CLOSE}\s*()"] if self.opened else []

    def read(self, text: str, final: bool) -> Message:
        """As answer.Parse."""
        if self.channels:
            found = channels.read(text, final)
            return found if self.reasoning else found._replace(content=found.reasoning + found.content, reasoning="")
        reasoning, rest = self._thought(text, final) if self.thinks else ("", text)
        if rest is None:
            return Message(reasoning=reasoning)
        if self.format is None:
            return Message(rest, reasoning)
        content, calls = self.format.read(rest, final, self.tools)
        return Message(content, reasoning, calls)

    def _thought(self, text: str, final: bool) -> tuple[str, str | None]:
        """What is thought, and what comes after it; None: it may go on."""
        body = text
        if not self.opened:
            bare = text.lstrip()
            if not bare.startswith(OPEN):
                return "", None if not final and OPEN.startswith(bare) else text
            body = bare[len(OPEN) :]
        thought, mark, rest = body.partition(CLOSE)
        if mark:
            return thought.strip(), rest.lstrip()
        held = held_back(thought, (CLOSE,), final)
        return held.strip() if final else held.lstrip().rstrip(), None


def _tool(tool: Mapping[str, Any]) -> Tool:
    function = tool.get("function", tool)
    return Tool(str(function["name"]), function.get("parameters") or {"type": "object"})
