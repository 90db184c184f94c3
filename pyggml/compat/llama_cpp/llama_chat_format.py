"""llama_cpp.llama_chat_format: named formats, formatters of templates, and handlers.

Owns the names and templates that llama-cpp-python has under its own; what answers is in pyggml.api.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyggml.api.arguments import ParameterError
from pyggml.api.chat_formats import FORMATS, ChatFormatterResponse
from pyggml.api.chat_handlers import (
    ChatFormatter,
    Jinja2ChatFormatter,
    LlamaChatCompletionHandler,
    LlamaChatCompletionHandlerNotFoundException,
    LlamaChatCompletionHandlerRegistry,
    chat_formatter_to_chat_completion_handler,
    get_chat_completion_handler,
    register_chat_completion_handler,
    register_chat_format,
)
from pyggml.api.chatml_functions import chatml_function_calling
from pyggml.api.tokenizers import MissingPackageError
from pyggml.chat import ChatTemplate

CHATML_CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_BOS_TOKEN, CHATML_EOS_TOKEN = "<s>", "<|im_end|>"
_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token@ }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MISTRAL_INSTRUCT_CHAT_TEMPLATE = _MISTRAL.replace("@", " + ' '")
MISTRAL_INSTRUCT_BOS_TOKEN, MISTRAL_INSTRUCT_EOS_TOKEN = "<s>", "</s>"
MIXTRAL_INSTRUCT_CHAT_TEMPLATE = _MISTRAL.replace("@ ", "")
LLAMA3_INSTRUCT_CHAT_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

format_llama2, format_llama3, format_alpaca = FORMATS["llama-2"], FORMATS["llama-3"], FORMATS["alpaca"]
format_qwen, format_oasst_llama, format_openbuddy = FORMATS["qwen"], FORMATS["oasst_llama"], FORMATS["openbuddy"]
format_baichuan, format_baichuan2 = FORMATS["baichuan"], FORMATS["baichuan-2"]
format_redpajama_incite, format_snoozy, format_phind = FORMATS["redpajama-incite"], FORMATS["snoozy"], FORMATS["phind"]
format_intel, format_open_orca, format_mistrallite = FORMATS["intel"], FORMATS["open-orca"], FORMATS["mistrallite"]
format_zephyr, format_pygmalion, format_chatml = FORMATS["zephyr"], FORMATS["pygmalion"], FORMATS["chatml"]
format_mistral_instruct, format_chatglm3 = FORMATS["mistral-instruct"], FORMATS["chatglm3"]
format_openchat, format_saiga, format_gemma = FORMATS["openchat"], FORMATS["saiga"], FORMATS["gemma"]
format = FORMATS["vicuna"]  # noqa: A001, its name there


def hf_tokenizer_config_to_chat_formatter(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> Callable[..., ChatFormatterResponse]:
    """A formatter of the template in a tokenizer_config.json; an empty message of the assistant stands for the answer."""
    missing = [
        key for key in ("chat_template", "bos_token", "eos_token") if not isinstance(tokenizer_config.get(key), str)
    ]
    if missing:
        raise ParameterError(f"the tokenizer's configuration has no text {missing[0]!r}")
    bos, eos = tokenizer_config["bos_token"], tokenizer_config["eos_token"]
    template = ChatTemplate(tokenizer_config["chat_template"], bos, eos)

    def formatter(messages: Sequence[Mapping[str, Any]], **more: Any) -> ChatFormatterResponse:
        asked = [*messages, {"role": "assistant", "content": ""}] if add_generation_prompt else messages
        return ChatFormatterResponse(template.render(asked, False, **more), [eos, bos], added_special=True)

    return formatter


def hf_tokenizer_config_to_chat_completion_handler(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> LlamaChatCompletionHandler:
    """A handler that uses that formatter."""
    return chat_formatter_to_chat_completion_handler(
        hf_tokenizer_config_to_chat_formatter(tokenizer_config, add_generation_prompt)
    )


def hf_autotokenizer_to_chat_formatter(
    pretrained_model_name_or_path: str | os.PathLike[str],
) -> Callable[..., ChatFormatterResponse]:
    """A formatter of a tokenizer of transformers. Raises MissingPackageError."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingPackageError("this formatter needs the package transformers: pip install transformers") from None
    tokenizer: Any = AutoTokenizer.from_pretrained(pretrained_model_name_or_path)

    def formatter(messages: Sequence[Mapping[str, Any]], **more: Any) -> ChatFormatterResponse:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, **more)
        return ChatFormatterResponse(prompt, tokenizer.eos_token, added_special=True)

    return formatter


def hf_autotokenizer_to_chat_completion_handler(
    pretrained_model_name_or_path: str | os.PathLike[str],
) -> LlamaChatCompletionHandler:
    """A handler that uses that formatter."""
    return chat_formatter_to_chat_completion_handler(hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path))


def guess_chat_format_from_gguf_metadata(metadata: Mapping[str, str]) -> str | None:
    """The name of the format whose template this is."""
    named = {
        CHATML_CHAT_TEMPLATE: "chatml",
        MISTRAL_INSTRUCT_CHAT_TEMPLATE: "mistral-instruct",
        MIXTRAL_INSTRUCT_CHAT_TEMPLATE: "mistral-instruct",
        LLAMA3_INSTRUCT_CHAT_TEMPLATE: "llama-3",
    }
    return named.get(metadata.get("tokenizer.chat_template", ""))


class Llava15ChatHandler:
    """A handler for images. Raises ParameterError: pyggml reads none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ParameterError(f"{type(self).__name__}: pyggml has no models for images yet")


class MTMDChatHandler(Llava15ChatHandler):
    """As Llava15ChatHandler; so are the following."""


class Gemma4ChatHandler(Llava15ChatHandler): ...


class ObsidianChatHandler(Llava15ChatHandler): ...


class MoondreamChatHandler(Llava15ChatHandler): ...


class Llava16ChatHandler(Llava15ChatHandler): ...


class NanoLlavaChatHandler(Llava15ChatHandler): ...


class Llama3VisionAlphaChatHandler(Llava15ChatHandler): ...


class MiniCPMv26ChatHandler(Llava15ChatHandler): ...


class Qwen25VLChatHandler(Llava15ChatHandler): ...


Llama3VisionAlpha = Llama3VisionAlphaChatHandler

__all__ = [
    "ChatFormatter",
    "ChatFormatterResponse",
    "Jinja2ChatFormatter",
    "LlamaChatCompletionHandler",
    "LlamaChatCompletionHandlerNotFoundException",
    "LlamaChatCompletionHandlerRegistry",
    "chat_formatter_to_chat_completion_handler",
    "chatml_function_calling",
    "get_chat_completion_handler",
    "register_chat_completion_handler",
    "register_chat_format",
]
