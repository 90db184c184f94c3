"""JSON that arrives in pieces: a value passed on as it is written, an object read member by member.

Owns the steps over a `Reader`; what is no JSON is passed on as it is.
"""

import json
from collections.abc import Callable
from typing import Any

from pyggml.chat.reply.reader import SPACE, Emit, Reader, Step

Member = Callable[[str], Step[None]]


def value(reader: Reader, emit: Emit) -> Step[None]:
    """Pass one value on, as written."""
    yield from reader.space()
    if not (yield from reader.more()):
        return
    if reader.text[0] == '"':
        yield from _string(reader, emit)
    elif reader.text[0] in "{[":
        yield from _nested(reader, emit)
    else:
        emit((yield from reader.word(",]}" + SPACE)))


def string(reader: Reader) -> Step[str]:
    """Take a string and return what it says; another value is returned as written."""
    parts: list[str] = []
    yield from value(reader, parts.append)
    text = "".join(parts)
    try:
        said = json.loads(text)
    except ValueError:
        return text
    return said if isinstance(said, str) else text


def members(reader: Reader, member: Member) -> Step[None]:
    """Read an object; `member` is called with each key, and takes the value."""
    yield from reader.space()
    if not (yield from reader.take("{")):
        return
    while True:
        yield from reader.space()
        if (yield from reader.take("}")) or not (yield from reader.more()):
            return
        if reader.text[0] != '"':
            return
        key = yield from string(reader)
        yield from reader.space()
        if not (yield from reader.take(":")):
            return
        yield from member(key)
        yield from reader.space()
        if not (yield from reader.take(",")):
            yield from reader.space()
            yield from reader.take("}")
            return


def _string(reader: Reader, emit: Emit) -> Step[None]:
    emit('"')
    reader.text = reader.text[1:]
    while (yield from reader.more()):
        n = next((i for i, c in enumerate(reader.text) if c in '"\\'), len(reader.text))
        emit(reader.text[:n])
        reader.text = reader.text[n:]
        if reader.text[:1] == '"':
            emit('"')
            reader.text = reader.text[1:]
            return
        if reader.text:
            while len(reader.text) < 2 and not reader.ended:
                yield
            emit(reader.text[:2])
            reader.text = reader.text[2:]


def _nested(reader: Reader, emit: Emit) -> Step[None]:
    depth = 0
    while (yield from reader.more()):
        n = next((i for i, c in enumerate(reader.text) if c in '"{}[]'), len(reader.text))
        emit(reader.text[:n])
        reader.text = reader.text[n:]
        if not reader.text:
            continue
        if reader.text[0] == '"':
            yield from _string(reader, emit)
            continue
        depth += 1 if reader.text[0] in "{[" else -1
        emit(reader.text[0])
        reader.text = reader.text[1:]
        if depth == 0:
            return


def dump(data: Any) -> str:
    """JSON as llama.cpp writes it into arguments: no escapes beyond ASCII."""
    return json.dumps(data, ensure_ascii=False)
