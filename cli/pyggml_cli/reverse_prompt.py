"""`-r TEXT`: the texts as the flags give them."""

from pyggml_cli.completion_flags import unescape
from pyggml_cli.flags import UsageError, Values


def reverse_prompts(values: Values) -> list[str]:
    """Raises UsageError."""
    if "" in values.reverse_prompt:
        raise UsageError("-r needs a text")
    return [unescape(text) if values.escape else text for text in values.reverse_prompt]
