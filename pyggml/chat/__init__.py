"""Chat: `ChatTemplate` writes messages as a model's prompt, `Conversation` keeps one going turn by turn.

Owns the names that other packages use; must not know a model. Importing it is cheap: Jinja runs in another process.
"""

from pyggml.chat.conversation import Conversation, Turn
from pyggml.chat.formats import built_in_names
from pyggml.chat.plain import PlainDialogue
from pyggml.chat.sandbox import ChatError
from pyggml.chat.template import KEY, ChatTemplate, prompt_tokens

__all__ = [
    "KEY",
    "ChatError",
    "ChatTemplate",
    "Conversation",
    "PlainDialogue",
    "Turn",
    "built_in_names",
    "prompt_tokens",
]
