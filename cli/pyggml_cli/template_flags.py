"""What chat templates are told beside messages, and how replies are read: --chat-template-kwargs, --reasoning and their like.

Owns these flags, for every command that converses, after llama.cpp's common/arg.cpp, and the step from them to a template's variables.
"""

import json
from typing import Any

from pyggml_cli.flags import Flag, Row, Values, choice, whole


def variables(text: str) -> dict[str, Any]:
    """`--chat-template-kwargs`: a JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError('must be a JSON object such as {"enable_thinking": false}')
    return found


REASONING_FORMATS = ("none", "auto", "deepseek", "deepseek-legacy")  # as pyggml.chat has them, not imported for --help
VARIABLES: list[Row] = [
    Flag(
        ("--chat-template-kwargs",),
        "template_variables",
        "variables of the chat template, a JSON object",
        variables,
        "JSON",
        {},
    ),
    Flag(
        ("-rea", "--reasoning"),
        "reasoning",
        "whether templates let the model think: sets enable_thinking (auto)",
        choice("on", "off", "auto"),
        "WHETHER",
        "auto",
    ),
    Flag(("--reasoning-effort",), "reasoning_effort", "the template's variable reasoning_effort", str, "EFFORT"),
    Flag(
        ("--reasoning-format",),
        "reasoning_format",
        "none: what is thought is part of the text; deepseek, deepseek-legacy, auto: it is told apart (auto)",
        choice(*REASONING_FORMATS),
        "FORMAT",
        "auto",
    ),
    Flag(
        ("--reasoning-budget",),
        "reasoning_budget",
        "so many tokens may be thought, then the model has to answer; -1: any number (-1)",
        whole(-1),
        "N",
        -1,
    ),
    Flag(
        ("--reasoning-budget-message",),
        "reasoning_budget_message",
        "what is written where thinking is ended so (nothing)",
        str,
        "MESSAGE",
        "",
    ),
    Flag(
        ("--reasoning-preserve",),
        "reasoning_preserve",
        "templates that can keep what was thought in earlier turns do so (on)",
        default=None,
        off=("--no-reasoning-preserve",),
    ),
    Flag(
        ("--skip-chat-parsing",),
        "skip_parsing",
        "leave replies as they are: no tools, no reasoning",
        default=False,
        off=("--no-skip-chat-parsing",),
    ),
]


def template_variables(values: Values) -> dict[str, Any]:
    """The variables that the flags set."""
    found: dict[str, Any] = {**values.template_variables}
    if values.reasoning != "auto":
        found["enable_thinking"] = values.reasoning == "on"
    if values.reasoning_effort is not None:
        found["reasoning_effort"] = values.reasoning_effort
    if values.reasoning_preserve is not None:
        found["preserve_reasoning"] = bool(values.reasoning_preserve)
    return found
