"""Who answers messages in place of the model file's template: formatters and handlers under names, and the user's own.

Owns the registry of llama_cpp.llama_chat_format, and the step from a prompt's text to a chat's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from pyggml.api.arguments import ParameterError
from pyggml.api.chat_completion import answer_grammar, chat_chunks, whole_chat
from pyggml.api.chat_formats import ChatFormatterResponse
from pyggml.api.tool_calls import as_tools
from pyggml.chat import ChatTemplate
from pyggml.grammar import LlamaGrammar

LlamaChatCompletionHandler = Callable[..., Any]
"""Called with llama=, messages= and what else `create_chat_completion` was given; gives what that gives."""


class LlamaChatCompletionHandlerNotFoundException(ParameterError):
    """A name that nobody has registered."""


class ChatFormatter(Protocol):
    """Writes messages as a prompt."""

    def __call__(self, *, messages: Sequence[Mapping[str, Any]], **more: Any) -> ChatFormatterResponse: ...


class LlamaChatCompletionHandlerRegistry:
    """Handlers by their names; there is one registry."""

    _chat_handlers: dict[str, LlamaChatCompletionHandler] = {}  # noqa: RUF012, shared on purpose

    def register_chat_completion_handler(
        self, name: str, chat_handler: LlamaChatCompletionHandler, overwrite: bool = False
    ) -> None:
        """Raises ParameterError where the name is taken."""
        if name in self._chat_handlers and not overwrite:
            raise ParameterError(f"a chat handler {name!r} is registered already; overwrite=True takes its place")
        self._chat_handlers[name] = chat_handler

    def unregister_chat_handler(self, name: str) -> None:
        """Raises ParameterError where there is none."""
        if self._chat_handlers.pop(name, None) is None:
            raise ParameterError(f"no chat handler {name!r} is registered")

    def names(self) -> list[str]:
        """Those registered."""
        return list(self._chat_handlers)

    def get_chat_completion_handler_by_name(self, name: str) -> LlamaChatCompletionHandler:
        """Raises LlamaChatCompletionHandlerNotFoundException."""
        if name not in self._chat_handlers:
            known = ", ".join(self._chat_handlers)
            raise LlamaChatCompletionHandlerNotFoundException(f"no chat handler {name!r}; there are {known}")
        return self._chat_handlers[name]


def get_chat_completion_handler(name: str) -> LlamaChatCompletionHandler:
    """Raises LlamaChatCompletionHandlerNotFoundException."""
    return LlamaChatCompletionHandlerRegistry().get_chat_completion_handler_by_name(name)


def register_chat_completion_handler(name: str) -> Callable[[LlamaChatCompletionHandler], LlamaChatCompletionHandler]:
    """A decorator: from then on `Llama(chat_format=name)` answers through this function."""

    def decorator(f: LlamaChatCompletionHandler) -> LlamaChatCompletionHandler:
        LlamaChatCompletionHandlerRegistry().register_chat_completion_handler(name, f)
        return f

    return decorator


def register_chat_format(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: from then on `Llama(chat_format=name)` writes its prompts with this function."""

    def decorator(f: Callable[..., Any]) -> Callable[..., Any]:
        register_chat_completion_handler(name)(chat_formatter_to_chat_completion_handler(f))
        return f

    return decorator


class Jinja2ChatFormatter:
    """Writes messages with a template, which is rendered in a process of its own."""

    def __init__(
        self,
        template: str,
        eos_token: str,
        bos_token: str,
        add_generation_prompt: bool = True,
        stop_token_ids: list[int] | None = None,
    ) -> None:
        self.template, self.eos_token, self.bos_token = template, eos_token, bos_token
        self.add_generation_prompt = add_generation_prompt
        self.stop_token_ids = None if stop_token_ids is None else set(stop_token_ids)
        self._template = ChatTemplate(template, bos_token, eos_token)

    def __call__(self, *, messages: Sequence[Mapping[str, Any]], **more: Any) -> ChatFormatterResponse:
        """Raises ChatError."""
        prompt = self._template.render(messages, self.add_generation_prompt, **more)
        ends = self.stop_token_ids
        criteria = None if ends is None else [lambda ids, logits: int(ids[-1]) in ends]
        return ChatFormatterResponse(prompt, [self.eos_token], criteria, added_special=True)

    def to_chat_handler(self) -> LlamaChatCompletionHandler:
        """What `Llama(chat_handler=...)` takes."""
        return chat_formatter_to_chat_completion_handler(self)


def chat_formatter_to_chat_completion_handler(formatter: Callable[..., Any]) -> LlamaChatCompletionHandler:
    """A handler that completes the prompt that `formatter` writes.

    A tool that tool_choice names must be called: the answer is held to its parameters."""

    def handler(
        *,
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
        shown = {"functions": functions, "function_call": function_call, "tools": tools, "tool_choice": tool_choice}
        found = formatter(messages=messages, **shown)
        tools, tool_choice = as_tools(functions, function_call, tools, tool_choice)
        tool = forced_tool(tools, tool_choice)
        completion = llama.create_completion(
            prompt=llama.tokenize(found.prompt.encode(), add_bos=not found.added_special, special=True),
            stop=[text for text in (*texts(stop), *texts(found.stop)) if text],
            stopping_criteria=found.stopping_criteria,
            grammar=grammar_for(tool, response_format, grammar),
            logprobs=(top_logprobs or 0) if logprobs else None,
            stream=stream,
            **{name: value for name, value in sampling.items() if name in OF_COMPLETIONS},
        )
        return as_chat(completion, stream, None if tool is None else tool["function"]["name"])

    return handler


OF_COMPLETIONS = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "max_tokens", "presence_penalty"),
    *("frequency_penalty", "repeat_penalty", "tfs_z", "mirostat_mode", "mirostat_tau", "mirostat_eta", "model"),
    *("logits_processor", "logit_bias"),
)
"""What a chat's parameters and a completion's have in common."""


def texts(stop: str | list[str] | None) -> list[str]:
    """One text or several, as a list."""
    return [stop] if isinstance(stop, str) else list(stop or [])


def forced_tool(tools: Sequence[Mapping[str, Any]] | None, choice: Any) -> Mapping[str, Any] | None:
    """The tool that must be called. Raises ParameterError where it is not among those there."""
    if not isinstance(choice, Mapping) or tools is None:
        return None
    name = choice["function"]["name"]
    for tool in tools:
        if tool["function"]["name"] == name:
            return tool
    known = ", ".join(str(tool["function"]["name"]) for tool in tools)
    raise ParameterError(f"tool_choice names the tool {name!r}; there are {known}")


def grammar_for(tool: Mapping[str, Any] | None, response_format: Mapping[str, Any] | None, grammar: Any) -> Any:
    """What holds the answer to a tool's parameters, to JSON, or to what was given."""
    if tool is not None:
        return LlamaGrammar.from_json_schema(tool["function"].get("parameters") or {"type": "object"})
    return answer_grammar(response_format, grammar)


def as_chat(completion: Any, stream: bool, tool: str | None = None) -> Any:
    """A completion's dicts as a chat's; with `tool` its text is what the tool is called with."""
    if tool is None:
        return chat_chunks(completion) if stream else whole_chat(completion)
    return _called_chunks(completion, tool) if stream else called(completion, [(tool, completion)])


def called(head: Mapping[str, Any], calls: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The answer that calls tools: (name, the completion that has its arguments) of each, which are counted together."""
    made = [
        {
            "id": f"call__{i}_{name}_{completion['id']}",
            "type": "function",
            "function": {"name": name, "arguments": completion["choices"][0]["text"]},
        }
        for i, (name, completion) in enumerate(calls)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": made}
    if len(made) == 1:
        message["function_call"] = made[0]["function"]
    plain = whole_chat(dict(head))
    choice = {**plain["choices"][0], "message": message, "finish_reason": "tool_calls"}
    usage = {name: sum(completion["usage"][name] for _, completion in calls) for name in plain["usage"]}
    return {**plain, "choices": [choice], "usage": usage}


def _called_chunks(chunks: Iterator[dict[str, Any]], tool: str) -> Iterator[dict[str, Any]]:
    for chunk in chat_chunks(chunks):
        choice = chunk["choices"][0]
        text = choice["delta"].get("content")
        delta: dict[str, Any] = choice["delta"]
        if text is not None:
            call = {"name": tool, "arguments": text}
            identity = f"call__0_{tool}_{chunk['id'].removeprefix('chat')}"
            tool_call = {"index": 0, "id": identity, "type": "function", "function": call}
            delta = {"role": None, "content": None, "function_call": call, "tool_calls": [tool_call]}
        reason = "tool_calls" if choice["finish_reason"] else None
        yield {**chunk, "choices": [{**choice, "delta": delta, "finish_reason": reason}]}
