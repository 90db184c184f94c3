"""All of the reference's chat templates render conversations as llama-server does: tools, calls, results, reasoning."""

from pathlib import Path
from typing import Any

import pytest
from peer_programs import source
from peer_templates import CONVERSATIONS, answers
from programs import Newest

from pyggml.cachedir import cache_dir
from pyggml.chat import ChatError, ChatTemplate, Options, prepare
from pyggml.gguf import GGUFFile
from pyggml.tokenizer import Tokenizer

OTHERWISE = {  # template -> conversations that differ, and why
    "Apertus-8B-Instruct": (None, "llama-server does not see that it can think, and tells it not to"),
    "fireworks-ai-llama-3-firefunction-v2": (
        ("tools", "called", "answered"),
        "llama-server does not show it the tools",
    ),
    **dict.fromkeys(
        (
            "HuggingFaceTB-SmolLM3-3B",
            "google-gemma-2-2b-it",
            "llama-cpp-rwkv-world",
            "microsoft-Phi-3.5-mini-instruct",
            "google-translategemma-4b-it",
        ),
        (("tools", "called", "answered"), "it shows no tools, and they are described to it in a message"),
    ),
    "LFM2.5-8B-A1B": (("parts",), "it takes parts, which llama-server joins by a line break"),
    "mistralai-Ministral-3-14B-Reasoning-2512": (("parts",), "the same"),
}


def _templates() -> list[Path]:
    return sorted((source(cache_dir("peer")) / "models/templates").glob("*.jinja"))


def _ours(template: ChatTemplate, body: dict[str, Any]) -> str | None:
    variables = dict(body.get("chat_template_kwargs", {}))
    options = Options(
        tools=tuple(body.get("tools", ())),
        enable_thinking=variables.pop("enable_thinking", True),
        variables=variables,
        add_generation_prompt=body.get("add_generation_prompt", True),
    )
    try:
        return prepare(template, body["messages"], options).prompt
    except ChatError:
        return None


def test_prompts_equal_llama_servers(newest: Newest, smollm2: Path) -> None:
    with GGUFFile.open(smollm2) as file:
        tokenizer = Tokenizer.from_metadata(file.metadata)
        wrong, n = {}, 0
        for path in _templates():
            theirs = answers(newest, smollm2, path)
            template = ChatTemplate.choose(file.metadata, tokenizer, path.read_text(encoding="utf-8"))
            names, _ = OTHERWISE.get(path.stem, ((), ""))
            for name, body in CONVERSATIONS.items():
                if names is not None and name not in names:
                    n += 1
                    ours = _ours(template, body)
                    if ours != theirs[name]:
                        wrong[f"{path.stem}: {name}"] = (ours, theirs[name])
            if names:
                assert any(_ours(template, CONVERSATIONS[name]) != theirs[name] for name in names), path.stem
    assert wrong == {} and n > 800, (len(wrong), n, list(wrong))


def test_a_wrong_prompt_is_noticed(newest: Newest, smollm2: Path) -> None:
    """Messages as they come, without what llama.cpp makes of them for a template."""
    path = next(path for path in _templates() if path.stem.startswith("Qwen3.5"))
    body = CONVERSATIONS["answered"]
    theirs = answers(newest, smollm2, path)["answered"]
    naive = ChatTemplate(path.read_text(encoding="utf-8"), "", "").render
    with pytest.raises(ChatError):
        naive(body["messages"], tools=body["tools"])
    assert naive(CONVERSATIONS["user"]["messages"], enable_thinking=False) != theirs
