"""What chat templates are told beside messages: --chat-template-kwargs, --reasoning and their like, for every command that converses.

Owns these flags, after llama.cpp's common/arg.cpp, and the step from them to a template's variables.
"""

import json
from typing import Any

from pyggml_cli.flags import Flag, Row, Values, choice


def variables(text: str) -> dict[str, Any]:
    """`--chat-template-kwargs`: a JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError('must be a JSON object such as {"enable_thinking": false}')
    return found


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
]


def template_variables(values: Values) -> dict[str, Any]:
    """The variables that the flags set."""
    found: dict[str, Any] = {**values.template_variables}
    if values.reasoning != "auto":
        found["enable_thinking"] = values.reasoning == "on"
    if values.reasoning_effort is not None:
        found["reasoning_effort"] = values.reasoning_effort
    return found
