"""SentencePiece's compiled table of characters that stand for others (`tokenizer.ggml.precompiled_charsmap`).

Owns its layout: an XOR-compressed double array of 32-bit words that maps sequences of bytes to offsets, and the texts at these
offsets, each ended by a zero byte (llm_tokenizer_ugm_session: xcda_array_view, normalize_prefix).
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyggml.errors import TokenizerError

KEY = "tokenizer.ggml.precompiled_charsmap"
LOOKED_AT = 8  # characters that are looked up together; longer sequences are sought byte by byte
MOST_KNOWN = 1 << 16


class Charsmap:
    """`replaced(text)` puts other characters in place of the longest sequences that the table has."""

    def __init__(self, nodes: list[int], texts: bytes) -> None:
        self._nodes, self._texts = nodes, texts
        safe = [byte for byte in range(1, 128) if self._is_safe(byte)]
        characters = "".join(f"\\x{byte:02x}" for byte in safe)
        self._run = re.compile(f"[{characters}]+(?![^\x00-\x7f])") if safe else None
        self._known: dict[str, tuple[int, str] | None] = {}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "Charsmap | None":
        """None: the file has none. Raises TokenizerError."""
        value = metadata.get(KEY)
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.dtype not in (np.int8, np.uint8):
            raise TokenizerError(f"{KEY} must be an array of bytes")
        data = value.tobytes()
        size = int.from_bytes(data[:4], "little")
        if len(data) < 4 or size + 4 >= len(data):
            raise TokenizerError(f"{KEY} has {len(data)} bytes, its table must have {size} and texts must follow")
        return cls(np.frombuffer(data, "<u4", size // 4, 4).tolist(), data[4 + size :])

    def replaced(self, text: str) -> str:
        """What the table makes of a text. Raises TokenizerError where an entry leads out of it."""
        at, out, known = 0, [], self._known
        ended = text + "\0"  # which no sequence has
        while at < len(text):
            if self._run is not None and (run := self._run.match(text, at)) is not None:
                out.append(run.group())
                at = run.end()
                continue
            for n in range(1, LOOKED_AT + 1):
                here = ended[at : at + n]
                found = known[here] if here in known else self._learn(here)
                if found is not None:
                    break
            else:
                return self._by_bytes(text)
            if not found[0]:
                return self._by_bytes(text)
            at += found[0]
            out.append(found[1])
        return "".join(out)

    def _learn(self, here: str) -> tuple[int, str] | None:
        """How many characters are replaced where `here` stands, and by what; None where that depends on what comes next. No
        character: the table has texts or sequences that are no UTF-8."""
        data = here.encode() + b"\0"
        length, offset, end = self._longest(data, 0)
        made: tuple[int, str] | None
        try:
            if end == len(data) - 1:
                made = None
            elif length:
                made = len(data[:length].decode()), self._text(offset).decode()
            else:
                made = 1, here[0]
        except UnicodeDecodeError:
            made = 0, ""
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
        self._known[here] = made
        return made

    def _by_bytes(self, text: str) -> str:
        """The specification."""
        data, at, out = text.encode(), 0, []
        while at < len(data):
            length, offset, _ = self._longest(data, at)
            if length:
                out.append(self._text(offset))
            else:
                length = _length(data[at])
                out.append(data[at : at + length])
            at += length
        return b"".join(out).decode("utf-8", "replace")

    def _is_safe(self, byte: int) -> bool:
        """Whether this character of ASCII stays as it is before any other of ASCII."""
        step = self._step(self._base(0), byte)
        return step is None or (not step[0] and all(self._step(step[1], other) is None for other in range(128)))

    def _longest(self, data: bytes, at: int) -> tuple[int, int, int]:
        """Bytes of the longest sequence of the table that stands here, 0: none does; where its text is; and which byte, or the end,
        no sequence goes on with."""
        length = offset = 0
        index = self._base(0)
        for end in range(at, len(data)):
            step = self._step(index, data[end])
            if step is None:
                return length, offset, end
            leaf, index = step
            if leaf:
                length, offset = end - at + 1, self._node(index) & 0x7FFFFFFF
        return length, offset, len(data)

    def _step(self, index: int, byte: int) -> tuple[bool, int] | None:
        """Whether a sequence ends with this byte, and where the next one is looked up."""
        if not byte:
            return None
        index ^= byte
        node = self._node(index)
        if node & 0x800000FF != byte:
            return None
        return bool(node >> 8 & 1), index ^ self._base(index)

    def _base(self, index: int) -> int:
        node = self._node(index)
        return node >> 10 << ((node & 1 << 9) >> 6)

    def _node(self, index: int) -> int:
        if index >= len(self._nodes):
            raise TokenizerError(f"{KEY}: an entry leads to word {index} of {len(self._nodes)}")
        return self._nodes[index]

    def _text(self, offset: int) -> bytes:
        end = self._texts.find(b"\0", offset)
        if end < 0:
            raise TokenizerError(f"{KEY}: no text ends behind offset {offset} of {len(self._texts)} bytes")
        return self._texts[offset:end]


def _length(byte: int) -> int:
    """Bytes of the character that begins with this one."""
    return 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
