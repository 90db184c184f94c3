"""What a chat template can take, found by rendering small conversations with it.

Owns the questions; after llama.cpp's common/jinja/caps.cpp, which watches what a template touches.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pyggml.chat.sandbox import ChatError, render

_WORD = "needle7"


@dataclass(frozen=True)
class Capabilities:
    """system: a message of the system is shown; tools: so are tools; calls: so are calls of them.

    object_arguments  calls have their arguments as objects; else as JSON in a text
    parts, text       contents are shown that are lists of parts; that are texts
    """

    system: bool = True
    tools: bool = False
    calls: bool = False
    object_arguments: bool = False
    parts: bool = True
    text: bool = True


@lru_cache(maxsize=32)
def capabilities(source: str) -> Capabilities:
    """Of the template with this text; of formats that go by a name ("") only text is known to be shown."""
    if not source:
        return Capabilities(parts=False)
    user = {"role": "user", "content": "User"}
    plain = _render(source, [{"role": "user", "content": _WORD}])
    parts = _render(source, [{"role": "user", "content": [{"type": "text", "text": _WORD}]}])
    with_system = _render(source, [{"role": "system", "content": _WORD}, user])
    tools = _render(source, [user], tools=[_tool(_WORD)])
    as_object = _render(source, _called({"arg": _WORD}), tools=[_tool("tool1")])
    as_text = _render(source, _called(f'{{"arg": "{_WORD}"}}'), tools=[_tool("tool1")])
    objects = as_object is not None and _WORD in as_object
    return Capabilities(
        system=with_system is not None and _WORD in with_system,
        tools=tools is not None and _WORD in tools,
        calls=_WORD in (as_object or "") or _WORD in (as_text or ""),
        object_arguments=objects,
        parts=parts is not None and _WORD in parts and '"type"' not in parts and "'type'" not in parts,
        text=plain is not None and _WORD in plain,
    )


def _render(source: str, messages: list[dict[str, Any]], **variables: Any) -> str | None:
    given = {"bos_token": "", "eos_token": "", "add_generation_prompt": True, **variables}
    try:
        return render(source, {"messages": messages, **given})
    except ChatError:
        return None


def _tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"arg": {"type": "string", "description": "d"}}, "required": ["arg"]}
    return {"type": "function", "function": {"name": name, "description": "What it does", "parameters": parameters}}


def _called(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "call00001", "type": "function", "function": {"name": "tool1", "arguments": arguments}}
    return [
        {"role": "user", "content": "User"},
        {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Result", "tool_call_id": "call00001", "name": "tool1"},
        {"role": "assistant", "content": "Said", "reasoning_content": ""},
        {"role": "user", "content": "User"},
    ]
