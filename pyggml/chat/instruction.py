"""Conversations with tools for templates that know none: they are described in a message, and calls and results are text.

Owns that text; calls have Hermes' marks, which most models know (reply/formats.py: GENERIC).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def described(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with a description of the tools before them, and nothing that only templates with tools understand."""
    out = [_as_text(message) for message in messages]
    if not tools:
        return out
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = (
        f"You can call these tools:\n{listed}\n"
        'To call one, write <tool_call>{"name": NAME, "arguments": {...}}</tool_call> and nothing else.'
    )
    if out and out[0].get("role") in ("system", "developer"):
        return [{**out[0], "content": f"{out[0].get('content') or ''}\n\n{text}"}, *out[1:]]
    return [{"role": "system", "content": text}, *out]


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    if message.get("role") == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"}
    if not message.get("tool_calls"):
        return dict(message)
    calls = [call.get("function", {}) for call in message["tool_calls"]]
    written = [
        f'<tool_call>\n{{"name": {json.dumps(c.get("name"))}, "arguments": {_json(c.get("arguments"))}}}\n</tool_call>'
        for c in calls
    ]
    return {
        "role": "assistant",
        "content": "\n".join([*([message["content"]] if message.get("content") else []), *written]),
    }


def _json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) and arguments else json.dumps(arguments or {}, ensure_ascii=False)
