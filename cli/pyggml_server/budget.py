"""How long an answer may reason, as a request says it (tools/server/server-schema.cpp: reasoning_budget_tokens and those behind it;
server-common.cpp: oaicompat_chat_params_parse).

Owns these fields, and the route that ends the reasoning of an answer under way (server-context.cpp: post_control).
"""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from pyggml.errors import PyggmlError
from pyggml.sampler import SamplerChain
from pyggml.sampler.budget import BudgetParams, Tokens, budget_of
from pyggml_server.errors import RequestError
from pyggml_server.fields import Fields
from pyggml_server.incoming import body_of, served_by
from pyggml_server.served import Served
from pyggml_server.streams import answer

MOST_TAGS = 16
END = "reasoning_end"
"""The one action that an answer under way can be asked for."""


def budget(
    fields: Fields, served: Served, marks: tuple[Tokens, tuple[Tokens, ...], Tokens] | None = None
) -> BudgetParams | None:
    """Of a chat whose reply has these `marks` of reasoning (budget_of). Else, and outside of chats, they are those that the request
    names: reasoning_budget_start_tag and reasoning_budget_end_tags. None: no end is set. Raises RequestError."""
    settings = served.settings
    wanted = fields.integer("reasoning_budget_tokens", -1, low=-1)
    if marks is None:
        marks = _marks(fields, served)
    elif not fields.has("reasoning_budget_tokens"):
        wanted = fields.integer("thinking_budget_tokens", -1, low=-1)
    message = fields.text("reasoning_budget_message", settings.reasoning_budget_message)
    said = _tokens(fields, "reasoning_budget_message", served, message)
    return budget_of(marks, settings.reasoning_budget if wanted == -1 else wanted, said, controlled(fields))


def controlled(fields: Fields) -> bool:
    """Whether the reasoning of the answer may be ended while it is made. Raises RequestError."""
    return bool(fields.boolean("reasoning_control", False))


async def control(request: Request) -> Response:
    """POST /v1/chat/completions/control: end the reasoning of an answer under way."""
    served = served_by(request)
    fields = await body_of(request)
    completion, action = str(fields.text("id", "")), fields.text("action", "")
    if not completion:
        raise RequestError("missing completion id", param="id")
    if action != END:
        raise RequestError(f"unknown control action, {END} is the one that there is", param="action")
    wrong = await asyncio.wrap_future(served.engine.call(lambda: _end(served, completion)))
    return answer({"success": False, "message": wrong} if wrong else {"success": True})


def _end(served: Served, completion: str) -> str:
    """On the engine's thread: end the reasoning of all choices of an answer; what speaks against it, or nothing."""
    tasks = served.engine.under_way(completion)
    if not tasks:
        return "no active completion for this id"
    if not tasks[0].controlled:
        return "reasoning control not enabled for this completion"
    for task in tasks:
        sampler = task.text.sampler
        if isinstance(sampler, SamplerChain) and sampler.budget is not None:
            sampler.budget.end()
    return ""


def _marks(fields: Fields, served: Served) -> tuple[Tokens, tuple[Tokens, ...], Tokens] | None:
    name = "reasoning_budget_start_tag"
    start = _tokens(fields, name, served, fields.text(name, ""))
    named = fields.first("reasoning_budget_end_tags", "reasoning_budget_end_tag")
    ends = [_tokens(fields, named, served, text) for text in fields.texts(named, MOST_TAGS)]
    ends = [end for end in ends if end]
    return (start, tuple(ends), ()) if start and ends else None


def _tokens(fields: Fields, name: str, served: Served, text: str) -> Tokens:
    try:
        return tuple(served.tokenizer.encode(text, add_special=False, parse_special=True))
    except PyggmlError as reason:
        raise RequestError(f"{fields.name(name)}: {reason}", param=fields.name(name)) from None
