"""`Llama.create_chat_completion` as a whole: by the model file's template, by a named format, or by the user's handler.

Owns which of these answers, and which names there are from the beginning.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from pyggml.api.chat_completion import ChatCompletions
from pyggml.api.chat_formats import FORMATS
from pyggml.api.chat_handlers import (
    LlamaChatCompletionHandler,
    LlamaChatCompletionHandlerRegistry,
    chat_formatter_to_chat_completion_handler,
)
from pyggml.api.chatml_functions import chatml_function_calling
from pyggml.api.checks import check
from pyggml.api.embedding import Embeddings
from pyggml.api.tokenizers import MissingPackageError
from pyggml.chat import built_in_names

OF_THE_FILE = ("functionary", "functionary-v1", "functionary-v2")
"""Names of llama-cpp-python's for models whose files bring a template that shows tools: that template is used."""

_REGISTRY = LlamaChatCompletionHandlerRegistry()
for _name, _format in FORMATS.items():
    _REGISTRY.register_chat_completion_handler(_name, chat_formatter_to_chat_completion_handler(_format))
_REGISTRY.register_chat_completion_handler("chatml-function-calling", chatml_function_calling)

_PARAMETERS = inspect.signature(ChatCompletions.create_chat_completion).parameters
_NAMES = list(_PARAMETERS)[1:]
_DEFAULTS = {name: _PARAMETERS[name].default for name in _NAMES[1:]}


def chat_formats() -> list[str]:
    """Every name that `Llama(chat_format=...)` takes: registered ones, and llama.cpp's."""
    return sorted({*_REGISTRY.names(), *OF_THE_FILE, *built_in_names()})


class HandledChats(Embeddings):
    """The part of `Llama` that leaves messages to a handler, where there is one."""

    chat_handler: LlamaChatCompletionHandler | None

    @functools.wraps(ChatCompletions.create_chat_completion)
    def create_chat_completion(self, *args: Any, **given: Any) -> Any:  # type: ignore[override]
        """As in ChatCompletions; a handler gets all arguments by their names."""
        named = dict(zip(_NAMES, args, strict=False))
        check({**named, **given})
        handler = self.chat_handler
        if handler is None and self.chat_format in _REGISTRY.names():
            handler = _REGISTRY.get_chat_completion_handler_by_name(str(self.chat_format))
        if handler is None:
            return super().create_chat_completion(*args, **given)
        return handler(llama=self, **{**_DEFAULTS, **named, **given})

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """As create_chat_completion, in the classes of the package openai. Raises MissingPackageError."""
        try:
            from openai.types.chat import ChatCompletion, ChatCompletionChunk
        except ImportError:
            raise MissingPackageError(
                "create_chat_completion_openai_v1 needs the package openai: pip install openai"
            ) from None
        answer = self.create_chat_completion(*args, **kwargs)
        if isinstance(answer, Mapping):
            return ChatCompletion(**answer)
        return (ChatCompletionChunk(**chunk) for chunk in answer)
