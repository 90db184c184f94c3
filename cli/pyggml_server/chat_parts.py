"""One answer to messages as it comes: the parts that a parser reads, for protocols that have one answer a request.

Owns waiting for them.
"""

from collections.abc import AsyncIterator

from pyggml.chat import Delta
from pyggml.runtime.sequence import Sequence as Text
from pyggml_server.answers import Answer
from pyggml_server.chat import Chat
from pyggml_server.engine import Progress


async def parts(running: Answer, asked: Chat) -> AsyncIterator[list[Delta] | Progress | None]:
    """What is new, step by step, or how far the prompt is; None where nothing came for the time of a ping."""
    parser = asked.parser()
    async with running:
        async for got in running.each_or_pause(asked.options.ping):
            if got is None:
                yield None
                continue
            _, update = got
            if update.progress is not None:
                yield update.progress
                continue
            new = parser.feed(update.text)
            if update.finish is not None:
                yield [*new, *parser.finish()]
                return
            if new:
                yield new


async def all_parts(running: Answer, asked: Chat) -> list[Delta]:
    """The whole answer, pieces of one part joined."""
    joined: list[Delta] = []
    async for new in parts(running, asked):
        assert not isinstance(new, Progress), "of a stream"
        for delta in new or ():
            last = joined[-1] if joined else None
            if last is not None and _alike(last, delta):
                joined[-1] = Delta(
                    last.content + delta.content,
                    last.reasoning + delta.reasoning,
                    last.call,
                    last.id,
                    last.name,
                    last.arguments + delta.arguments,
                )
            else:
                joined.append(delta)
    return joined


def _alike(a: Delta, b: Delta) -> bool:
    if a.call is not None or b.call is not None:
        return a.call == b.call
    return bool(a.content) == bool(b.content)


def cached(text: Text) -> tuple[int, int]:
    """Tokens of the prompt that were computed, and that were there."""
    return text.n_prompt - text.n_reused, text.n_reused
