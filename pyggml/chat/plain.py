"""A dialogue without a template: what the user types is put between a prefix and a suffix, after all that was said.

Owns its tokens. It stands in for a `Conversation`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pyggml.chat.conversation import Turn
from pyggml.chat.sandbox import ChatError

if TYPE_CHECKING:
    from pyggml.tokenizer import Tokenizer


class PlainDialogue:
    """After the interactive mode of llama.cpp's tools/completion/completion.cpp.

    prompt          what the text begins with
    prefix, suffix  around each of the user's lines; special tokens are read in them, and not in the line
    bos             whether a BOS token comes before the prefix
    """

    def __init__(self, tokenizer: "Tokenizer", prompt: str, prefix: str = "", suffix: str = "", bos: bool = False):
        self._tokenizer = tokenizer
        self._prompt = tokenizer.encode(prompt, add_special=True, parse_special=True)
        self._before = [tokenizer.bos] if bos and tokenizer.bos is not None else []
        self._before += tokenizer.encode(prefix, add_special=False, parse_special=True)
        self._after = tokenizer.encode(suffix, add_special=False, parse_special=True)
        self.messages: list[dict[str, str]] = []
        self.clear()

    def clear(self) -> None:
        """Forget all but the prompt."""
        self.messages = []
        self.tokens = list(self._prompt)
        self._turns: list[tuple[int, list[int]]] = []

    def add_user(self, text: str) -> Turn:
        """The user's line; an empty one lets the model go on. Raises ChatError when there is nothing to go on with."""
        line = self._tokenizer.encode(text, add_special=False, parse_special=False)
        tokens = [*self.tokens, *self._before, *line, *self._after] if text else self.tokens
        if not tokens:
            raise ChatError("nothing to go on with: no prompt, and the model has no BOS token to begin with")
        n_kept = len(self.tokens) if len(tokens) > len(self.tokens) else 0
        self._turns.append((len(self.messages), self.tokens))
        self.messages = [*self.messages, {"role": "user", "content": text}]
        self.tokens = tokens
        return Turn(tokens, n_kept)

    def add_assistant(self, tokens: list[int], text: str, reasoning: str = "", written: str | None = None) -> None:
        """What the model wrote."""
        self.messages = [*self.messages, {"role": "assistant", "content": text}]
        self.tokens = [*self.tokens, *tokens]

    @property
    def grammar_trigger(self) -> None:
        """A grammar holds at once."""
        return None

    @property
    def reasoning_tokens(self) -> None:
        """Nothing is known to be reasoning."""
        return None

    @property
    def shown(self) -> frozenset[int]:
        """No control token is a marker."""
        return frozenset()

    def parser(self) -> None:
        """There is nothing to tell apart."""
        return None

    def undo(self) -> str | None:
        """Take the last turn back; the user's line, or None if there was none."""
        if not self._turns:
            return None
        n, tokens = self._turns.pop()
        text = self.messages[n]["content"]
        self.messages, self.tokens = self.messages[:n], tokens
        return text

    def save(self, path: str | Path) -> None:
        """Raises ChatError."""
        raise ChatError(f"{path}: only conversations by a template are saved; --prompt-cache-all keeps this text")

    def load(self, path: str | Path) -> None:
        """Raises ChatError."""
        raise ChatError(f"{path}: only conversations by a template are loaded")
