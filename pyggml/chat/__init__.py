"""Chat: `ChatTemplate` writes messages as a model's prompt, `prepare` does so for a request with tools and reasoning,
`ReplyParser` reads what the model answers, `Conversation` keeps one going turn by turn.

Owns the names that other packages use; must not know a model. Importing it is cheap: Jinja runs in another process.
"""

from pyggml.chat.conversation import Conversation, Turn
from pyggml.chat.formats import built_in_names
from pyggml.chat.plain import PlainDialogue
from pyggml.chat.reply import Call, Delta, Reply, ReplyParser
from pyggml.chat.request import Options, Prepared, prepare
from pyggml.chat.sandbox import ChatError
from pyggml.chat.template import KEY, ChatTemplate, prompt_tokens

__all__ = [
    "KEY",
    "Call",
    "ChatError",
    "ChatTemplate",
    "Conversation",
    "Delta",
    "Options",
    "PlainDialogue",
    "Prepared",
    "Reply",
    "ReplyParser",
    "Turn",
    "built_in_names",
    "prepare",
    "prompt_tokens",
]
