"""What llama-server makes of conversations by each of the reference's chat templates (/apply-template), kept once asked.

Owns the conversations and the asking. Dates in kept answers become today's.
"""

import contextlib
import hashlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

from kept import kept
from programs import Newest

DATES = ("%b %d %Y", "%d %b %Y", "%Y-%m-%d", "%d %B %Y", "%B %d, %Y", "%Y/%m/%d")


def _tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}", "parameters": parameters}}


def _call(arguments: str) -> dict[str, Any]:
    return {"id": "call00001", "type": "function", "function": {"name": "find", "arguments": arguments}}


USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
FIND = _tool(
    "find", where={"type": "string", "description": "A place"}, n={"type": "integer", "description": "How many"}
)
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "find", "content": '{"found": true}'}
CALLING = {"role": "assistant", "content": None, "tool_calls": [_call('{"where": "Köln", "n": 2}')]}
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "user": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "developer": {"messages": [{**SYSTEM, "role": "developer"}, USER]},
    "three": {
        "messages": [SYSTEM, USER, {"role": "assistant", "content": "Hello <b> é"}, {**USER, "content": "So?\n"}]
    },
    "reasoned": {
        "messages": [USER, {"role": "assistant", "content": "Hello", "reasoning_content": "Thought."}, USER],
    },
    "without thinking": {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}},
    "with effort": {"messages": [USER], "chat_template_kwargs": {"reasoning_effort": "high"}},
    "tools": {"messages": [USER], "tools": [FIND, _tool("stop")]},
    "called": {"messages": [USER, CALLING, RESULT], "tools": [FIND]},
    "answered": {
        "messages": [
            *(USER, {**CALLING, "content": "Let me see.", "reasoning_content": "Hm."}, {**RESULT, "content": "12"}),
            *({"role": "assistant", "content": "Twelve."}, {**USER, "content": "Thanks"}),
        ],
        "tools": [FIND],
    },
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in ("One", "Two")]}]},
    "no reply": {"messages": [SYSTEM, USER], "add_generation_prompt": False},
}


def answers(newest: Newest, model: Path, template: Path) -> dict[str, str | None]:
    """conversation -> the prompt, None where the template refuses it."""
    asked = json.dumps([template.read_text(encoding="utf-8"), CONVERSATIONS, model.name, str(newest.bin)])
    name = f"template-{template.stem}-{hashlib.sha256(asked.encode()).hexdigest()[:24]}"
    made = json.loads(kept(name, lambda: json.dumps(_ask(newest, model, template)).encode(), "peer", "templates"))
    then, now = date.fromisoformat(made["day"]), datetime.now()
    out = {}
    for key, text in made["prompts"].items():
        for form in DATES if text is not None else ():
            text = text.replace(then.strftime(form), now.strftime(form))
        out[key] = text
    return out


def _ask(newest: Newest, model: Path, template: Path) -> dict[str, Any]:
    with _server(newest, model, template) as address:
        return {
            "day": date.today().isoformat(),
            "prompts": {name: _apply(address, body) for name, body in CONVERSATIONS.items()},
        }


def _apply(address: str, body: dict[str, Any]) -> str | None:
    request = urllib.request.Request(
        f"{address}/apply-template", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            prompt = json.load(answer)["prompt"]
            assert isinstance(prompt, str)
            return prompt
    except urllib.error.HTTPError as refused:
        assert refused.code in (400, 500), refused
        return None


@contextlib.contextmanager
def _server(newest: Newest, model: Path, template: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [newest.bin / "llama-server", "-m", model, "--jinja", "--chat-template-file", template]
    command += ["--port", str(port), "-c", "256", "--no-warmup", "-t", "1", "-np", "1", "-dev", "none"]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None and time.monotonic() < deadline, f"llama-server with {template.name} ended"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                break
            time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()
