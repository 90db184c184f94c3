"""`Llama.create_chat_completion`: messages in, the dicts of OpenAI's API and llama-cpp-python out.

Owns the step from messages to a prompt and from a completion's dicts to a chat's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pyggml.api.arguments import LogitsProcessor, ParameterError
from pyggml.api.completion import Completions
from pyggml.api.tool_calls import as_tools, chunks_with_calls, grammar_of, parser_of, prepared_calls, with_calls
from pyggml.chat import ChatTemplate, built_in_names, prompt_tokens
from pyggml.grammar import LlamaGrammar


class ChatCompletions(Completions):
    """The part of `Llama` that answers messages."""

    chat_format: str | None

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        functions: Sequence[Mapping[str, Any]] | None = None,
        function_call: Any = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | list[str] | None = None,
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: LogitsProcessor | Iterable[LogitsProcessor] | None = None,
        grammar: str | LlamaGrammar | None = None,
        logit_bias: Mapping[int, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
    ) -> Any:
        """Answer `messages` (dicts with "role" and "content"); a dict, or with `stream` an iterator of dicts.

        The prompt is written by the file's chat template, or by the one that chat_format names; what it has in common with
        the call before is not computed again. `tools` (or `functions`) may be called as tool_choice says: "auto" (default),
        "none", "required", or {"function": {"name": ...}}; arguments follow the tool's schema, and the answer has them as
        `tool_calls`. response_format {"type": "json_object"}, maybe with a "schema", holds the answer to JSON. Other parameters
        as in create_completion. Raises ChatError, ParameterError and ContextError.
        """
        grammar = answer_grammar(response_format, grammar)
        named = self.chat_format if self.chat_format in built_in_names() else None
        template = ChatTemplate.choose(self.model.file.metadata, self._tokenizer, named, tools=bool(tools or functions))
        shown = {"functions": functions, "function_call": function_call, "tools": tools, "tool_choice": tool_choice}
        tools, tool_choice = as_tools(functions, function_call, tools, tool_choice)
        parser = None
        if (tools and tool_choice != "none") or isinstance(tool_choice, Mapping):
            prepared = prepared_calls(template, messages, tools or (), tool_choice)
            if grammar is not None and prepared.grammar:
                raise ParameterError("an answer is held to a grammar (or to JSON) or calls tools, not both")
            grammar = grammar_of(prepared, prepared.shown(self._tokenizer))
            prompt, parser = prepared.prompt, parser_of(prepared)
        else:
            prompt = template.render(messages, **shown)
        texts = [stop] if isinstance(stop, str) else list(stop or [])
        if template.eos:
            texts.append(template.eos)
        completion = self.create_completion(
            prompt_tokens(self._tokenizer, prompt),
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            logprobs=(top_logprobs or 0) if logprobs else None,
            stop=texts,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            repeat_penalty=repeat_penalty,
            top_k=top_k,
            stream=stream,
            seed=seed,
            tfs_z=tfs_z,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            model=model,
            logits_processor=logits_processor,
            grammar=grammar,
            logit_bias=logit_bias,
        )
        if parser is None:
            return chat_chunks(completion) if stream else whole_chat(completion)
        return (
            chunks_with_calls(chat_chunks(completion), parser) if stream else with_calls(whole_chat(completion), parser)
        )


def answer_grammar(response_format: Mapping[str, Any] | None, grammar: str | LlamaGrammar | None) -> Any:
    """What holds the answer: JSON of response_format's schema, or the grammar given. Raises ParameterError, GrammarError."""
    asked = response_format or {}
    kind = asked.get("type", "text")
    if kind == "json_object":
        return LlamaGrammar.from_json_schema(asked.get("schema") or {"type": "object"})
    if kind == "json_schema":
        named = asked.get("json_schema")
        if not isinstance(named, Mapping) or not isinstance(named.get("schema"), Mapping):
            raise ParameterError('response_format of type "json_schema" needs {"json_schema": {"schema": {...}}}')
        return LlamaGrammar.from_json_schema(dict(named["schema"]))
    if kind != "text":
        raise ParameterError(
            f"response_format of type {kind!r} is not known; there are 'text', 'json_object' and 'json_schema'"
        )
    return grammar


def whole_chat(completion: dict[str, Any]) -> dict[str, Any]:
    """A completion's answer as a chat's."""
    choice = completion["choices"][0]
    answer = {
        "index": 0,
        "message": {"role": "assistant", "content": choice["text"]},
        "logprobs": _logprobs(choice["logprobs"]),
        "finish_reason": choice["finish_reason"],
    }
    return {**_head(completion, "chat.completion"), "choices": [answer], "usage": completion["usage"]}


def chat_chunks(chunks: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The role first, then the text piece by piece, then the reason why it ended."""
    begun = False
    for chunk in chunks:
        head = _head(chunk, "chat.completion.chunk")
        if not begun:
            begun = True
            opening = {"index": 0, "delta": {"role": "assistant"}, "logprobs": None, "finish_reason": None}
            yield {**head, "choices": [opening]}
        choice = chunk["choices"][0]
        reason = choice["finish_reason"]
        delta = {} if reason is not None else {"content": choice["text"]}
        part = {"index": 0, "delta": delta, "logprobs": _logprobs(choice["logprobs"]), "finish_reason": reason}
        yield {**head, "choices": [part]}


def _head(completion: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        "id": f"chat{completion['id']}",
        "object": kind,
        "created": completion["created"],
        "model": completion["model"],
    }


def _logprobs(logprobs: dict[str, Any] | None) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    content = [
        {
            "token": token,
            "bytes": None,
            "logprob": value,
            "top_logprobs": [{"token": text, "logprob": p, "bytes": None} for text, p in (top or {}).items()],
        }
        for token, value, top in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
        )
    ]
    return {"content": content, "refusal": None}
