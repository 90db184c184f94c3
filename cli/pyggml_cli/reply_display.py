"""What a conversation shows of a reply: what is thought between [Start thinking] and [End thinking], then the answer.

Owns the step from a reply's bytes to what stands on the terminal, as llama-cli has it (tools/cli/cli-ui.h:
assistant_turn). What is reasoning and what is the answer a parser of `pyggml.chat` says.
"""

import codecs
from typing import TYPE_CHECKING, TextIO

from pyggml_cli.color import Colors
from pyggml_cli.terminal import text_for

if TYPE_CHECKING:
    from pyggml.chat import Delta, ReplyParser

START, END = "\n[Start thinking]\n\n", "[End thinking]\n\n"


class ReplyDisplay:
    """`feed` takes the reply's bytes as they come, `finish` says that no more will.

    content, reasoning  what was shown of each
    written             all that came, markers too
    """

    def __init__(self, out: TextIO, paint: Colors, parser: "ReplyParser | None") -> None:
        """`parser`: what tells reasoning from the answer; None: all of it is the answer."""
        self.content = self.reasoning = self.written = ""
        self._out, self._paint, self._parser = out, paint, parser
        self._text = text_for(out)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._thinking = False
        self._open = False  # whether something stands on the last line

    def feed(self, data: bytes) -> None:
        """More of the reply."""
        self._read(self._decoder.decode(data))

    def finish(self) -> None:
        """The reply has ended, or was cut off: then [End thinking] may be missing."""
        self._read(self._decoder.decode(b"", final=True))
        if self._parser is not None:
            self._show(self._parser.finish())
        if self._thinking:
            self._out.write(self._paint.reset)
        self._out.flush()

    def _read(self, text: str) -> None:
        if not text:
            return
        self.written += text
        if self._parser is not None:
            self._show(self._parser.feed(text))
        else:
            self.content += text
            self._write(text)
        self._out.flush()

    def _show(self, deltas: "list[Delta]") -> None:
        for delta in deltas:
            text = delta.reasoning or delta.content
            if not text:
                continue
            if bool(delta.reasoning) != self._thinking:
                self._turn()
            if delta.reasoning:
                self.reasoning += text
            else:
                self.content += text
            self._write(text)

    def _turn(self) -> None:
        """From the answer to reasoning, or back."""
        if self._open:
            self._out.write("\n")
        self._thinking = not self._thinking
        self._out.write(f"{self._paint.thought}{START}" if self._thinking else f"{END}{self._paint.reset}")
        self._open = False

    def _write(self, text: str) -> None:
        self._out.write(self._text(text))
        self._open = not text.endswith("\n")
