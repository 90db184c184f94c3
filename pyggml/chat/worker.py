"""A process of its own that renders Jinja templates, so that a template can take neither memory nor time without end.

Owns Jinja's environment and the process's limits; must not know what a template is for, and imports nothing of pyggml:
it is run as a script by sandbox.py, with the seconds that one answer may compute. One line of JSON in, [template, variables];
one out, {"text"} or {"error"}.
"""

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.debug  # Jinja imports it when something fails, which may be too late
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import SandboxedEnvironment

MEMORY = 768 << 20  # bytes of address space; Python and Jinja take some 100 MiB of it
LARGEST_OUTPUT = 8 << 20  # characters


class Refused(Exception):
    """What a template says with raise_exception."""


class Generation(Extension):
    """{% generation %} marks what a model is trained on; it adds nothing to the text (transformers)."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's way

    def parse(self, parser: Parser) -> Node | list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Missing(jinja2.ChainableUndefined):
    """What is not defined: nothing in a text, and so are its parts, as in llama.cpp."""

    def __add__(self, other: Any) -> Any:
        return other if isinstance(other, str) else super().__add__(other)

    def __radd__(self, other: Any) -> Any:
        return other if isinstance(other, str) else super().__radd__(other)


class Environment(SandboxedEnvironment):
    """What reaches for Python's insides ends the rendering; Jinja by itself would print nothing in its place.

    Lists may be appended to: they are of this rendering alone.
    """

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise jinja2.exceptions.SecurityError(
            f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe"
        )


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: no escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=_plain
    )


def _plain(value: Any) -> Any:
    """What is no JSON: a filter's lazy result is the list that it makes, and what is not defined is null."""
    if isinstance(value, jinja2.Undefined):
        return None
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def raise_exception(message: object) -> NoReturn:
    """What templates refuse messages with. Raises Refused."""
    raise Refused(str(message))


def strftime_now(form: str) -> str:
    """The time as a template wants it (datetime.strftime)."""
    return datetime.now().strftime(form)


def environment() -> Environment:
    """Jinja as chat templates expect it (transformers, utils/chat_template_utils.py)."""
    made = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], undefined=Missing)
    made.filters.update(tojson=tojson, safe=str)  # nothing is escaped here, nor is what is added to it
    made.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return made


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """The text. Raises Refused beyond LARGEST_OUTPUT characters, and what the template raises."""
    pieces: list[str] = []
    size = 0
    for piece in template.generate(variables):
        size += len(piece)
        if size > LARGEST_OUTPUT:
            raise Refused(f"its text is longer than {LARGEST_OUTPUT} characters")
        pieces.append(piece)
    return "".join(pieces)


def answer(jinja: Environment, made: dict[str, jinja2.Template], line: str) -> dict[str, str]:
    """`made`: the template used last, compiled."""
    source, variables = json.loads(line)
    try:
        if source not in made:
            made.clear()
            made[source] = jinja.from_string(source)
        return {"text": render(made[source], variables)}
    except jinja2.TemplateSyntaxError as e:
        return {"error": f"line {e.lineno}: {e.message}"}
    except Refused as e:
        return {"error": str(e)}
    except RecursionError:
        return {"error": "it is nested too deeply, or calls itself without end"}
    except MemoryError:
        made.clear()
        return {"error": f"it needs more than {MEMORY >> 20} MiB"}
    except Exception as e:  # whatever a template's expressions raise
        return {"error": f"{type(e).__name__}: {e}"}


def limit_memory() -> None:
    """Where the system knows such limits; files cannot be written either."""
    with contextlib.suppress(ImportError):
        import resource

        for what, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
            with contextlib.suppress(ValueError, OSError):  # a stricter limit holds already
                resource.setrlimit(what, (limit, limit))


def main() -> None:
    jinja = environment()
    made: dict[str, jinja2.Template] = {}
    limit_memory()
    seconds = float(sys.argv[1])
    clock = hasattr(signal, "setitimer")
    for line in sys.stdin:
        if clock:  # the signal ends the process, also within one long operation
            signal.setitimer(signal.ITIMER_PROF, seconds)
        reply = json.dumps(answer(jinja, made, line))
        if clock:
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(reply, flush=True)


if __name__ == "__main__":
    main()
