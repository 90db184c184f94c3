"""A conversation as the text that a model was trained on: the file's template, a format by name, or the user's own.

Owns the choice between them and the form of messages.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyggml.chat.formats import Format, built_in, built_in_names
from pyggml.chat.sandbox import ChatError, render

if TYPE_CHECKING:
    from pyggml.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Message = Mapping[str, Any]
DEFAULT = "chatml"  # where the file brings no template, as in llama.cpp
KEY = "tokenizer.chat_template"


class ChatTemplate:
    """`render(messages)` gives the prompt. `source` is Jinja's text, or "" for a format that goes by a name."""

    def __init__(self, source: str | Format, bos: str = "", eos: str = "") -> None:
        """`bos`, `eos`: the texts of these tokens, which templates write themselves."""
        self.source = source if isinstance(source, str) else ""
        self._format = None if isinstance(source, str) else source
        self.bos, self.eos = bos, eos

    @classmethod
    def choose(
        cls, metadata: Mapping[str, Any], tokenizer: "Tokenizer", wanted: str | None = None, tools: bool = False
    ) -> "ChatTemplate":
        """The template `wanted` (a name of formats.py, or Jinja), else the file's, else chatml. Raises ChatError.

        tools  prefer the file's template for conversations with tools, if it has one of its own for them
        """
        bos, eos = (
            "" if token is None else tokenizer.token_bytes(token).decode("utf-8", "replace")
            for token in (tokenizer.bos, tokenizer.eos)
        )
        if wanted is not None:
            named = built_in(wanted)
            if named is None and "{" not in wanted:
                names = ", ".join(built_in_names())
                raise ChatError(f"chat template {wanted[:40]!r} is neither Jinja nor a known name; known are: {names}")
            return cls(wanted if named is None else named, bos, eos)
        source = metadata.get(f"{KEY}.tool_use") if tools else None
        source = metadata.get(KEY) if source is None else source
        if source is None:
            log.info("the file has no %s: %s is used", KEY, DEFAULT)
            source = built_in(DEFAULT)
            assert source is not None
        elif not isinstance(source, str):
            raise ChatError(f"{KEY} must be a string, it is a {type(source).__name__}")
        return cls(source, bos, eos)

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, parts: bool = False, /, **variables: Any
    ) -> str:
        """The text of `messages`, by default up to where the reply begins; `variables`, of any names, are for the file's template.

        Each message is a mapping with "role" and "content". `parts`: contents that are lists stay so, for templates that
        take them; else they must be texts, and become one. Raises ChatError.
        """
        plain = [_plain(i, message, parts and not self._format) for i, message in enumerate(messages)]
        if self._format is not None:
            texts = [{"role": m["role"], "content": m.get("content") or ""} for m in plain]
            return self._format(texts, add_generation_prompt)
        given = {
            "messages": plain,
            "bos_token": self.bos,
            "eos_token": self.eos,
            **(
                {"add_generation_prompt": True} if add_generation_prompt else {}
            ),  # as in llama.cpp, where it is not False
            **variables,
        }
        return render(self.source, given)


def _plain(i: int, message: Message, parts: bool) -> dict[str, Any]:
    """The message with its content as one text, or with `parts` as it is."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ChatError(f"message {i} is not a dict with a role and a content")
    content = message.get("content")
    if isinstance(content, list) and parts:
        return dict(message)
    if isinstance(content, list):
        kinds = [part.get("type") if isinstance(part, Mapping) else None for part in content]
        odd = next((kind for kind in kinds if kind != "text"), "text")
        if odd != "text":
            raise ChatError(f"message {i}: its content has a part of type {odd!r}, only text is known here")
        content = "\n".join(str(part.get("text", "")) for part in content)
    if content is not None and not isinstance(content, str):
        raise ChatError(f"message {i}: its content is a {type(content).__name__}, not a text")
    if content is None and not (message.get("tool_calls") or message.get("function_call")):
        raise ChatError(f"message {i} has no content")
    return {**message, "content": content} if "content" in message else dict(message)


def prompt_tokens(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Tokens of a rendered prompt: special tokens are read, and BOS is there once if the vocabulary wants it."""
    tokens = tokenizer.encode(text, add_special=False, parse_special=True)
    if tokenizer.add_bos and tokenizer.bos is not None and tokens[:1] != [tokenizer.bos]:
        tokens.insert(0, tokenizer.bos)
    return tokens
