"""/openapi.json: what each route takes, in OpenAPI 3.1, for programs that make clients of it and for tests that try to break it.

Owns the schemas of bodies; the routes are app.py's, and what a field means is checked where it is read. A field that is not named
here is not read.
"""

from collections.abc import Callable, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyggml.chat.request import REASONING_FORMATS
from pyggml_server import (
    FINGERPRINT,
    anthropic,
    budget,
    embeddings,
    native,
    native_completion,
    openai,
    responses,
    slots,
)
from pyggml_server.chat import ROLES
from pyggml_server.embeddings import MOST_TEXTS
from pyggml_server.fields import I32
from pyggml_server.incoming import served_by
from pyggml_server.openai import MOST_PROMPTS
from pyggml_server.requests import LONGEST_STOP, MOST_CHOICES, MOST_LOGPROBS, MOST_STOPS
from pyggml_server.sampling import MOST_BIASES, MOST_BREAKERS, MOST_STAGES, NUMBERS
from pyggml_server.served import Served
from pyggml_server.streams import answer

Schema = dict[str, Any]


def _number(low: float | None = None, high: float | None = None, kind: str = "number") -> Schema:
    """A number; null is as not given, everywhere."""
    bounds = {"minimum": low, "maximum": high}
    return {"type": [kind, "null"], **{name: value for name, value in bounds.items() if value is not None}}


def _integer(low: int = -I32 - 1, high: int = I32) -> Schema:
    return _number(low, high, "integer")


def _array(items: Schema, low: int = 0, high: int | None = None) -> Schema:
    return {"type": "array", "items": items, "minItems": low, **({} if high is None else {"maxItems": high})}


def _any_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _choice(*values: Any) -> Schema:
    return {"enum": list(values)}


def _object(properties: dict[str, Schema], *required: str) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


FLAG: Schema = {"type": ["boolean", "null"]}
TEXT: Schema = {"type": "string"}
NULL: Schema = {"type": "null"}
ANY: Schema = {"type": "object"}
TOKENS = _array({"type": "integer", "minimum": 0})
STOP = _any_of(TEXT, _array({"type": "string", "maxLength": LONGEST_STOP}, 0, MOST_STOPS), NULL)
PROMPT = _any_of(
    TEXT, TOKENS, _array(_any_of(TEXT, TOKENS), 1, MOST_PROMPTS), _object({"prompt_string": TEXT}, "prompt_string")
)
BIASES = _any_of(
    {"type": "object", "additionalProperties": _any_of({"type": "number"}, _choice(False)), "maxProperties": MOST_BIASES},
    _array({"type": "array", "prefixItems": [_any_of({"type": "integer"}, TEXT), _any_of({"type": "number"}, _choice(False))],
            "minItems": 2, "maxItems": 2}, 0, MOST_BIASES),
    NULL,
)  # fmt: skip
SAMPLING: dict[str, Schema] = {
    **{name: _number() for name in NUMBERS},
    "repeat_penalty": _number(1e-30),
    "dry_base": _number(),
    "dry_allowed_length": _integer(),
    "dry_sequence_breakers": _any_of(TEXT, _array(TEXT, 0, MOST_BREAKERS), NULL),
    "top_k": _integer(),
    "min_keep": _integer(0),
    "mirostat": _any_of(_choice(0, 1, 2), NULL),
    "seed": _integer(-(1 << 63), (1 << 64) - 1),
    "repeat_last_n": _integer(-1),
    "dry_penalty_last_n": _integer(-1),
    "samplers": _any_of({"type": "string", "maxLength": MOST_STAGES}, _array(TEXT, 0, MOST_STAGES), NULL),
    "logit_bias": BIASES,
    "ignore_eos": FLAG,
    "grammar": {"type": ["string", "null"]},
    "json_schema": _any_of(ANY, FLAG),
}
"""How tokens are chosen."""
COMMON: dict[str, Schema] = {
    **SAMPLING,
    "model": TEXT,
    "max_tokens": _integer(-1),
    "stop": STOP,
    "n": _integer(1, MOST_CHOICES),
    "stream": FLAG,
    "stream_options": _any_of(_object({"include_usage": FLAG}), NULL),
    "cache_prompt": FLAG,
    "id_slot": _integer(-1),
    "lora": _any_of(_array(_object({"id": _integer(0), "scale": _number()}, "id", "scale")), NULL),
    "return_progress": FLAG,
    "timings_per_token": FLAG,
    "post_sampling_probs": FLAG,
    "verbose": FLAG,
    "sse_ping_interval": _integer(-1),
    "n_keep": _integer(-1),
    "n_discard": _integer(0),
    "n_indent": _integer(0),
    "t_max_predict_ms": _integer(-1, (1 << 63) - 1),
    "reasoning_budget_tokens": _integer(-1),
    "reasoning_budget_message": {"type": ["string", "null"]},
    "reasoning_budget_start_tag": {"type": ["string", "null"]},
    "reasoning_budget_end_tags": _any_of(TEXT, _array(TEXT, 0, budget.MOST_TAGS), NULL),
    "reasoning_budget_end_tag": {"type": ["string", "null"]},
    "reasoning_control": FLAG,
}
"""What all completions take."""
NATIVE: dict[str, Schema] = {
    **COMMON,
    "n_predict": _integer(-1),
    "n_probs": _integer(0, MOST_LOGPROBS),
    "return_tokens": FLAG,
    "response_fields": _any_of(TEXT, _array(TEXT, 0, 64), NULL),
}
PART = _object({"type": _choice("text"), "text": TEXT}, "type", "text")
CALL = _object(
    {"id": TEXT, "type": _choice("function"), "function": _object({"name": TEXT, "arguments": TEXT}, "name")},
    "function",
)
MESSAGE = _object(
    {"role": _choice(*ROLES), "content": _any_of(TEXT, _array(PART, 1)), "reasoning_content": TEXT, "tool_calls": _array(CALL),
     "tool_call_id": TEXT, "name": TEXT},
    "role", "content",
)  # fmt: skip
NAME: Schema = {"type": "string", "pattern": r"^[A-Za-z0-9_.:/-]{1,128}$"}
FUNCTION = _object({"name": NAME, "description": TEXT, "parameters": ANY}, "name")
TOOL = _object({"type": _choice("function"), "function": FUNCTION}, "type", "function")
THINKING: dict[str, Schema] = {
    "chat_template_kwargs": _any_of(ANY, NULL),
    "reasoning_format": _any_of(_choice(*REASONING_FORMATS), NULL),
    "thinking_budget_tokens": _integer(-1),
}
CHAT: dict[str, Schema] = {
    **COMMON,
    **THINKING,
    "messages": _array(MESSAGE, 1),
    "tools": _array(TOOL),
    "tool_choice": _any_of(
        _choice("none", "auto", "required"),
        _object({"type": _choice("function"), "function": _object({"name": TEXT}, "name")}, "function"),
    ),
    "parallel_tool_calls": FLAG,
    "add_generation_prompt": FLAG,
    "continue_final_message": _any_of(FLAG, _choice("content", "reasoning_content")),
    "response_format": _any_of(
        _object({"type": _choice("text", "json_object"), "schema": ANY}, "type"),
        _object(
            {"type": _choice("json_schema"), "json_schema": _object({"schema": ANY}, "schema")}, "type", "json_schema"
        ),
        NULL,
    ),
    "logprobs": FLAG,
    "top_logprobs": _integer(0, 20),
}
BLOCK = _any_of(
    PART,
    _object({"type": _choice("thinking"), "thinking": TEXT}, "type", "thinking"),
    _object({"type": _choice("tool_use"), "id": TEXT, "name": TEXT, "input": ANY}, "type", "id", "name"),
    _object(
        {"type": _choice("tool_result"), "tool_use_id": TEXT, "content": _any_of(TEXT, _array(PART))},
        "type",
        "tool_use_id",
    ),
)
MESSAGES: dict[str, Schema] = {
    **{name: schema for name, schema in {**COMMON, **THINKING}.items() if name in anthropic.SAME},
    "model": TEXT,
    "system": _any_of(TEXT, _array(PART), NULL),
    "messages": _array(
        _object(
            {"role": _choice("user", "assistant", "system"), "content": _any_of(TEXT, _array(BLOCK, 1))},
            "role",
            "content",
        ),
        1,
    ),
    "stop_sequences": STOP,
    "tools": _array(_object({"name": NAME, "description": TEXT, "input_schema": ANY}, "name")),
    "tool_choice": _any_of(
        _object({"type": _choice("auto", "any", "none"), "disable_parallel_tool_use": FLAG}, "type"),
        _object({"type": _choice("tool"), "name": TEXT}, "type", "name"),
        NULL,
    ),
    "thinking": _any_of(
        _object({"type": _choice("enabled", "disabled", "adaptive"), "budget_tokens": _integer(-1)}, "type"), NULL
    ),
}
ITEM = _any_of(
    _object({"type": _choice("message"), "role": _choice(*ROLES), "content": _any_of(TEXT, _array(
        _object({"type": _choice("input_text", "output_text", "text"), "text": TEXT}, "type", "text")))}, "role", "content"),
    _object({"type": _choice("function_call"), "call_id": TEXT, "name": TEXT, "arguments": TEXT}, "type", "call_id", "name", "arguments"),
    _object({"type": _choice("function_call_output"), "call_id": TEXT, "output": TEXT}, "type", "call_id", "output"),
    _object({"type": _choice("reasoning")}, "type"),
)  # fmt: skip
RESPONSES: dict[str, Schema] = {
    **{
        name: schema
        for name, schema in {**COMMON, **THINKING, "parallel_tool_calls": FLAG}.items()
        if name in responses.SAME
    },
    "model": TEXT,
    "input": _any_of(TEXT, _array(ITEM, 1)),
    "instructions": {"type": ["string", "null"]},
    "max_output_tokens": _integer(1),
    "tools": _array(_object({"type": _choice("function"), **FUNCTION["properties"]}, "type", "name")),
    "tool_choice": _any_of(
        _choice("none", "auto", "required"), _object({"type": _choice("function"), "name": TEXT}, "name")
    ),
    "text": _any_of(_object({"format": _object({"type": _choice("text", "json_object")}, "type")}), NULL),
    "metadata": _any_of(ANY, NULL),
}
RERANK = _object(
    {"query": TEXT, "documents": _array(TEXT, 1, MOST_TEXTS), "top_n": _integer(1), "return_documents": FLAG},
    "query",
    "documents",
)
FORM: dict[str, Schema] = {"embd_normalize": _integer(-1), "encoding_format": _any_of(_choice("float", "base64"), NULL)}
Endpoint = Callable[..., Any]
BODIES: dict[Endpoint, Schema] = {
    openai.completions: _object(
        {**COMMON, "prompt": PROMPT, "echo": FLAG, "logprobs": _integer(0, MOST_LOGPROBS), "best_of": _integer(1, MOST_CHOICES)}, "prompt"
    ),
    openai.chat_completions: _object(CHAT, "messages"),
    budget.control: _object({"id": {"type": "string", "minLength": 1}, "action": _choice(budget.END), "model": TEXT}, "id", "action"),
    native.count_chat: _object(CHAT, "messages"),
    native.apply_template: _object(CHAT, "messages"),
    native_completion.completion: _object({**NATIVE, "prompt": PROMPT}, "prompt"),
    native_completion.infill: _object(
        {**NATIVE, "input_prefix": TEXT, "input_suffix": TEXT, "prompt": TEXT,
         "input_extra": _array(_object({"filename": TEXT, "text": TEXT}, "text"))},
        "input_prefix", "input_suffix",
    ),
    native.tokenize: _object({"content": _any_of(TEXT, TOKENS), "add_special": FLAG, "parse_special": FLAG, "with_pieces": FLAG}),
    native.detokenize: _object({"tokens": TOKENS}),
    native.lora_adapters: _array(_object({"id": _integer(0), "scale": _number()}, "id", "scale")),
    slots.slot_action: _object({"filename": TEXT}),
    responses.responses: _object(RESPONSES, "input"),
    responses.count: _object(RESPONSES, "input"),
    anthropic.messages: _object(MESSAGES, "messages"),
    anthropic.count_tokens: _object(MESSAGES, "messages"),
    embeddings.openai: _object({"model": TEXT, "input": PROMPT, **FORM}, "input"),
    embeddings.native: _object({"content": PROMPT, **FORM}, "content"),
    embeddings.rerank: RERANK,
}  # fmt: skip
"""What each endpoint of a POST takes."""
ERROR = _object(
    {
        "error": _object(
            {"code": {"type": "integer"}, "message": TEXT, "type": TEXT, "param": {"type": ["string", "null"]}},
            "code",
            "message",
        )
    },
    "error",
)


def _offered(served: Served, endpoint: Endpoint) -> bool:
    """Whether this server answers it at all."""
    if endpoint in (embeddings.openai, embeddings.native, embeddings.rerank):
        return served.embedder is not None and (endpoint is embeddings.rerank) == (served.embedder.pooling == "rank")
    if endpoint is native_completion.infill:
        return served.embedder is None and None not in (
            served.tokenizer.fim_pre,
            served.tokenizer.fim_suf,
            served.tokenizer.fim_mid,
        )
    if endpoint is native.metrics:
        return served.settings.metrics
    if endpoint in (slots.slots, slots.slot_action):
        return served.settings.slots and served.embedder is None
    computes = (
        openai.completions,
        openai.chat_completions,
        native_completion.completion,
        responses.responses,
        anthropic.messages,
        budget.control,
    )
    return served.embedder is None or endpoint not in (*computes, native.lora_adapters)


def _operation(route: Route, method: str) -> Schema:
    endpoint = route.endpoint
    about = (endpoint.__doc__ or "").strip().partition("\n")[0]
    events = {"text/event-stream": {"schema": TEXT}}
    json_of: Schema = {"application/json": {"schema": {}}}
    text = {"text/plain": {"schema": TEXT}} if endpoint is native.metrics else {}
    made: Schema = {
        "summary": about,
        "responses": {
            "200": {
                "description": "the answer",
                "content": {**json_of, **text, **(events if method == "POST" else {})},
            },
            "4XX": {
                "description": "what is wrong with the request",
                "content": {"application/json": {"schema": ERROR}},
            },
            "503": {
                "description": "too many wait, or the server is ending",
                "content": {"application/json": {"schema": ERROR}},
            },
        },
    }
    if method == "POST" and endpoint in BODIES:
        needed = endpoint is not slots.slot_action
        made["requestBody"] = {"required": needed, "content": {"application/json": {"schema": BODIES[endpoint]}}}
    if endpoint is slots.slot_action:
        made["parameters"] = [
            {"name": "slot", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}},
            {"name": "action", "in": "query", "required": True, "schema": _choice("erase", "save", "restore")},
        ]
    if endpoint is slots.slots:
        made["parameters"] = [{"name": "fail_on_no_slot", "in": "query", "schema": TEXT}]
    return made


def document(served: Served, routes: Iterable[Route]) -> Schema:
    """All that this server offers of these routes."""
    paths: dict[str, Schema] = {}
    for route in routes:
        if not _offered(served, route.endpoint) or route.endpoint is page_of:
            continue
        path = served.settings.api_prefix + route.path
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = _operation(route, method)
    keys = {"key": {"type": "http", "scheme": "bearer"}}
    secured = {"components": {"securitySchemes": keys}, "security": [{"key": []}]} if served.settings.api_keys else {}
    about = {
        "title": "pyggml-server",
        "version": FINGERPRINT,
        "description": "The routes of OpenAI, Anthropic and llama-server.",
    }
    return {"openapi": "3.1.0", "info": about, "paths": paths, **secured}


async def page_of(request: Request) -> Response:
    """GET /openapi.json: this description."""
    served = served_by(request)
    return answer(document(served, request.app.state.offered))
