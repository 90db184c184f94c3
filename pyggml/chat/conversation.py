"""A conversation that grows: each turn adds tokens to those before, so that the KV cache keeps what was said.

Owns messages and their tokens.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyggml.atomic_file import atomic_file
from pyggml.chat.reply import ReplyParser
from pyggml.chat.request import Options, Prepared, ReasoningTokens, prepare
from pyggml.chat.sandbox import ChatError
from pyggml.chat.template import ChatTemplate, prompt_tokens
from pyggml.grammar import Trigger
from pyggml.prefix import common_prefix
from pyggml.regular_file import open_regular

if TYPE_CHECKING:
    from pyggml.tokenizer import Tokenizer

LARGEST_FILE = 64 << 20  # bytes


class Turn(NamedTuple):
    """All tokens up to where the reply begins; the first `n_kept` were there before, `new` are to be evaluated."""

    tokens: list[int]
    n_kept: int

    @property
    def new(self) -> list[int]:
        return self.tokens[self.n_kept :]


class _State(NamedTuple):
    """What was known when a turn began: for going back to it."""

    n_messages: int
    tokens: list[int]
    prompt: str
    reply: str | None


class Conversation:
    """>>> turn = conversation.add_user("Hello")      # evaluate turn.new, generate
    >>> parser = conversation.parser()                # reads the reply
    >>> conversation.add_assistant(tokens, text)          # what the model answered, without the token that ended it
    """

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: "Tokenizer",
        system: str = "",
        variables: Mapping[str, Any] | None = None,
        reasoning_format: str = "auto",
    ) -> None:
        """`variables`: what the template is told beside the messages; `reasoning_format`: as `Options` has it."""
        self.template = template
        told = dict(variables or {})
        thinks = bool(told.pop("enable_thinking", True))
        self._options = Options(reasoning_format=reasoning_format, enable_thinking=thinks, variables=told)
        self._prepared: Prepared | None = None  # the last turn
        self._tokenizer = tokenizer
        self._system = system
        self.messages: list[dict[str, str]] = []
        self.clear()

    def clear(self) -> None:
        """Forget all but the system's message."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []
        self.tokens: list[int] = []  # of the whole conversation
        self._prompt = ""  # the text that the last turn ended with
        self._reply: str | None = None  # and what was answered
        self._turns: list[_State] = []

    def add_user(self, text: str) -> Turn:
        """The user's turn. On an error (ChatError) nothing is changed."""
        messages = [*self.messages, {"role": "user", "content": text}]
        prepared = prepare(self.template, messages, self._options)
        prompt = prepared.prompt
        tokens, n_kept = self._continued(prompt)
        self._turns.append(_State(len(self.messages), self.tokens, self._prompt, self._reply))
        self.messages, self.tokens, self._prompt, self._reply = messages, tokens, prompt, None
        self._prepared = prepared
        return Turn(tokens, n_kept)

    @property
    def prepared(self) -> Prepared:
        """The last turn's prompt, and how its reply is to be read."""
        assert self._prepared is not None, "nobody asked"
        return self._prepared

    def parser(self) -> ReplyParser:
        """What tells the answer from reasoning in the reply to the last turn; its text has the names of `shown` tokens."""
        return self.prepared.parser()

    @property
    def shown(self) -> frozenset[int]:
        """The control tokens that are markers in the reply to the last turn."""
        return self.prepared.shown(self._tokenizer)

    @property
    def grammar_trigger(self) -> Trigger | None:
        """When a grammar of the answer begins to hold in the reply to the last turn; None: at once."""
        return self.prepared.after_reasoning

    @property
    def reasoning_tokens(self) -> ReasoningTokens | None:
        """Between which tokens the reply to the last turn reasons."""
        return self.prepared.reasoning_tokens(self._tokenizer)

    def add_assistant(self, tokens: list[int], text: str, reasoning: str = "", written: str | None = None) -> None:
        """The model's turn: answer and reasoning, and all that it wrote if that is more than the answer."""
        assert self.messages and self.messages[-1]["role"] == "user", "nobody asked"
        said = {"role": "assistant", "content": text}
        self.messages.append(said | ({"reasoning_content": reasoning} if reasoning else {}))
        self.tokens = [*self.tokens, *tokens]
        self._reply = text if written is None else written

    def undo(self) -> str | None:
        """Take the last turn back, question and answer; the question, or None if there was none."""
        if not self._turns:
            return None
        state = self._turns.pop()
        text = self.messages[state.n_messages]["content"]
        self.messages = self.messages[: state.n_messages]
        self.tokens, self._prompt, self._reply = state.tokens, state.prompt, state.reply
        return text

    def save(self, path: str | Path) -> None:
        """Write the messages as JSON. Raises ChatError."""
        data = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1)
        try:
            with atomic_file(path, "saved conversation", _is_saved) as (file, finish):
                file.write(f"{data}\n".encode("utf-8", "surrogatepass"))
                finish()
        except (OSError, ValueError) as e:
            raise ChatError(f"{path}: {getattr(e, 'strerror', None) or e}") from None

    def load(self, path: str | Path) -> None:
        """Take over the messages of a file that `save` wrote; on an error (ChatError) nothing is changed."""
        try:
            with open_regular(path) as file:
                data = file.read(LARGEST_FILE + 1)
            if len(data) > LARGEST_FILE:
                raise ChatError(f"{path}: larger than {LARGEST_FILE} bytes: not a saved conversation")
            content = json.loads(data.decode("utf-8", "surrogatepass"))
        except OSError as e:
            raise ChatError(f"{path}: {e.strerror}") from None
        except (ValueError, RecursionError) as e:
            raise ChatError(f"{path}: not a saved conversation: {' '.join(str(e).split())}") from None
        messages = content.get("messages") if isinstance(content, dict) else None
        if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
            raise ChatError(f'{path}: not a saved conversation: no list "messages" of role and content')
        self.clear()
        kept = ("role", "content", "reasoning_content")
        self.messages = [{key: m[key] for key in kept if key in m} for m in messages]
        if self.messages and self.messages[-1]["role"] == "user":  # it was saved without an answer
            self.messages.pop()
        users = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        self._turns = [_State(i, [], "", None) for i in users]

    def _continued(self, prompt: str) -> tuple[list[int], int]:
        """Tokens of `prompt`, and how many of those already there they begin with.

        The reply is kept as the model wrote it, also where its tokens are not those that its text is cut into.
        """
        tokens = prompt_tokens(self._tokenizer, prompt)
        rest = None if self._reply is None else _after(prompt, self._prompt, self._reply)
        n = len(self.tokens)
        if rest is not None and tokens[:n] != self.tokens:
            return [*self.tokens, *self._tokenizer.encode(rest, add_special=False, parse_special=True)], n
        return tokens, common_prefix(tokens, self.tokens)


def _after(prompt: str, before: str, reply: str) -> str | None:
    """What `prompt` adds to `before` and `reply`; the template may have taken white space from around the reply."""
    if not prompt.startswith(before):
        return None
    rest = prompt[len(before) :]
    if rest.startswith(reply):
        return rest[len(reply) :]
    bare, rest = reply.strip(), rest.lstrip()
    return rest[len(bare) :] if rest.startswith(bare) else None


def _is_saved(head: bytes) -> bool:
    """Whether a file that begins so is one that `save` wrote, or one like it."""
    return head.lstrip().startswith(b"{") and b'"messages"' in head


def _is_message(message: object) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("reasoning_content", ""), str):
        return False
    return all(isinstance(message.get(key), str) for key in ("role", "content"))
