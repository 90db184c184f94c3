"""What a model's reply means: answer, reasoning and calls of tools, while it is written.

Owns the names that other packages use. Read in this order: `deltas` (the values), `reader` (text in pieces), one file for
each shape of calls (`json_calls`, `named_calls`, `tagged_calls`, `nested_calls`, `python_calls`, `gemma_calls`), one for each
form of replies (`marked`, `harmony`, `recipients`, `addressed`), `formats` (which model writes how), `parser` (pieces in, deltas out).
"""

from pyggml.chat.reply.deltas import Call, Delta, Reply, new_id
from pyggml.chat.reply.formats import form_of
from pyggml.chat.reply.parser import ReplyParser

__all__ = ["Call", "Delta", "Reply", "ReplyParser", "form_of", "new_id"]
