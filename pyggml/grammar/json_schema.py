"""A JSON schema to a grammar, in GBNF.

Owns the rules for each kind of node and their names. The text is that which llama.cpp makes
(common/json-schema-to-grammar.cpp): the same rules under the same names.
"""

import json
import logging
import re
from typing import Any

from pyggml.errors import GrammarError
from pyggml.grammar.json_nodes import (
    MAX_DEPTH,
    AllOf,
    AnyOf,
    Anything,
    Array,
    Const,
    Integer,
    Node,
    Object,
    Primitive,
    RefNode,
    String,
    Tuple,
    read_schema,
)
from pyggml.grammar.json_text import (
    InvalidPattern,
    UnsupportedPattern,
    literal,
    pattern_rule,
    repetition,
    whole_numbers,
)
from pyggml.grammar.parser import MAX_LENGTH, parse
from pyggml.number_text import json_integer

_PLACE = re.compile(r"grammar, line (?P<line>\d+): (?P<what>.*?)( at (the line's end|['\"].*))?$")
"""What parser.py says of a rule."""

log = logging.getLogger(__name__)

_SPACE = '| " " | "\\n"{1,2} [ \\t]{0,20}'

# name -> text and the rules that it uses
_BUILTIN: dict[str, tuple[str, tuple[str, ...]]] = {
    "boolean": ('("true" | "false")', ()),
    "decimal-part": ("[0-9]{1,16}", ()),
    "integral-part": ("[0] | [1-9] [0-9]{0,15}", ()),
    "number": (
        '("-"? integral-part) ("." decimal-part)? ([eE] [-+]? integral-part)?',
        ("integral-part", "decimal-part"),
    ),
    "integer": ('("-"? integral-part)', ("integral-part",)),
    "value": (
        "object | array | string | number | boolean | null",
        ("object", "array", "string", "number", "boolean", "null"),
    ),
    "object": (
        '"{" space ( string ":" space value ("," space string ":" space value)* )? space "}"',
        ("string", "value"),
    ),
    "array": ('"[" space ( value ("," space value)* )? space "]"', ("value",)),
    "uuid": ('"\\"" ' + ' "-" '.join(f"[0-9a-fA-F]{{{n}}}" for n in (8, 4, 4, 4, 12)) + ' "\\""', ()),
    "char": (r'[^"\\\x7F\x00-\x1F] | [\\] (["\\bfnrt] | "u" [0-9a-fA-F]{4})', ()),
    "string": ('"\\"" char* "\\""', ("char",)),
    "null": ('"null"', ()),
    "date": ('[0-9]{4} "-" ( "0" [1-9] | "1" [0-2] ) "-" ( "0" [1-9] | [1-2] [0-9] | "3" [0-1] )', ()),
    "time": (
        '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ( "." [0-9]{3} )? '
        '( "Z" | ( "+" | "-" ) ( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9] )',
        (),
    ),
    "date-time": ('date "T" time', ("date", "time")),
    "date-string": ('"\\"" date "\\""', ("date",)),
    "time-string": ('"\\"" time "\\""', ("time",)),
    "date-time-string": ('"\\"" date-time "\\""', ("date-time",)),
}
_RESERVED = {"root", *_BUILTIN}
_CLASS_ESCAPES = {"\\": "\\\\", "]": "\\]", "[": "\\[", "-": "\\-", "^": "\\x5E", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def json_schema_to_grammar(schema: str | dict[str, Any]) -> str:
    """The GBNF text of a JSON schema, given as text or parsed. Raises GrammarError.

    A regular expression that no grammar can be written for counts as any string, and the log says so.
    """
    if isinstance(schema, str):
        if len(schema) > MAX_LENGTH:
            raise GrammarError(f"JSON schema: {len(schema)} characters, more than {MAX_LENGTH}")
        try:
            schema = json.loads(schema, parse_constant=_no_constant, parse_int=json_integer)
        except RecursionError:
            raise GrammarError("JSON schema: nested too deeply to be read") from None
        except ValueError as reason:
            raise GrammarError(f"JSON schema: not JSON: {reason}") from None
    converter = Converter()
    converter.visit(read_schema(schema), "", 0)
    rules = sorted(converter.rules.items())
    text = "".join(f"{name} ::= {text}\n" for name, text in rules)
    try:
        parse(text)
    except GrammarError as reason:  # what is quoted there, the user has not written
        found = _PLACE.match(str(reason))
        if found is None:
            raise GrammarError(f"JSON schema: {reason}") from None
        where = rules[int(found["line"]) - 1][0]
        raise GrammarError(f"JSON schema: too large a grammar: {found['what']}, in what became {where!r}") from None
    return text


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _dump(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as reason:
        raise GrammarError(f"JSON schema: a value that JSON cannot hold: {reason}") from None


class Converter:
    """Rules of one schema, or of several: each then with a `ref_prefix` of its own, as references have equal names."""

    def __init__(self) -> None:
        self.rules = {"space": _SPACE}
        self.resolving: set[str] = set()
        self.ref_prefix = ""
        self._size = 0  # characters of all rules that were added
        self._made: dict[tuple[str, str], str] = {}  # by the name that was wanted and the text: the first rule of it
        self._next: dict[str, int] = {}  # by wanted name: of which number a name may be free; -1: itself
        self._trial: list[tuple[str, int, str]] | None = None  # by a pattern: wanted name, its number before, rule

    def add_rule(self, name: str, text: str) -> str:
        """Adds the rule, under another name if there is a different one of this name; returns the name."""
        # runs of other characters become one hyphen
        plain = "".join(char if char.isascii() and (char.isalnum() or char == "-") else "\0" for char in name)
        while "\0\0" in plain:
            plain = plain.replace("\0\0", "\0")
        plain = plain.replace("\0", "-")
        key = self._rule(plain, text)
        self._size += len(key) + len(text)
        if self._size > MAX_LENGTH:  # before more time goes into what parser.py refuses
            raise GrammarError(f"JSON schema: too large a grammar: more than {MAX_LENGTH} characters")
        self.rules[key] = text
        return key

    def _rule(self, plain: str, text: str) -> str:
        """The first of `plain`, `plain`0, `plain`1 ... that is free or has this text. Each is looked at once, however
        many are asked for."""
        key = self._made.get((plain, text))
        if key is not None and self.rules.get(key) == text:
            return key
        before = i = self._next.get(plain, -1)
        while True:
            key = plain if i < 0 else f"{plain}{i}"
            there = self.rules.get(key, text)
            known = self._made.get((plain, there))
            if known is None or self.rules.get(known) != there:
                self._made[plain, there] = key
            i += 1
            if there == text:
                break
        self._next[plain] = i
        if self._trial is not None:
            self._trial.append((plain, before, "" if key in self.rules else key))
        return key

    def builtin(self, name: str, rule: str | None = None) -> str:
        """Adds the rule `rule`, by default of the same name, and those that it uses."""
        text, uses = _BUILTIN[rule or name]
        added = self.add_rule(name, text)
        for other in uses:
            if other not in self.rules:
                self.builtin(other)
        return added

    def visit(self, node: Node, name: str, depth: int) -> str:
        """Adds the rules of a node; returns the name of its own."""
        if depth > 2 * MAX_DEPTH:
            raise GrammarError(f"JSON schema: references lead more than {2 * MAX_DEPTH} schemas deep")
        rule = f"{name}-" if name in _RESERVED else name or "root"
        prefix = f"{name}-" if name else ""
        match node:
            case Primitive():
                return self._primitive(rule, node.name)
            case Anything():
                return self.add_rule(rule, self.builtin("value"))
            case RefNode():
                return self.add_rule(rule, self._reference(node, depth))
            case Const():
                texts = " | ".join(literal(_dump(value)) for value in node.values)
                return self.add_rule(rule, texts if node.single else f"({texts})")
            case AnyOf():
                names = [
                    self.visit(child, f"{prefix or 'alternative-'}{i}", depth + 1)
                    for i, child in enumerate(node.children)
                ]
                return self.add_rule(rule, " | ".join(names))
            case AllOf():
                return self._all_of(node, name, rule, depth)
            case Object():
                if not node.properties and isinstance(node.additional, Anything):
                    return self.add_rule(rule, self.builtin("object"))
                members = [(p.name, p.node) for p in node.properties]
                required = {p.name for p in node.properties if p.required}
                return self.add_rule(rule, self._object(members, required, prefix, node.additional, depth))
            case Tuple():
                items = [self.visit(item, f"{prefix}tuple-{i}", depth + 1) for i, item in enumerate(node.items)]
                return self.add_rule(rule, '"[" space ' + ' "," space '.join(items) + ' space "]"')
            case Array():
                if isinstance(node.items, Anything) and node.low == 0 and node.high is None:
                    return self._primitive(rule, "array")
                item = self.visit(node.items, f"{prefix}item", depth + 1)
                inside = repetition(item, node.low, node.high, '"," space')
                return self.add_rule(rule, f'"[" space {inside} space "]"')
            case String():
                return self._string(node, rule)
            case Integer():
                if node.low is None and node.high is None:
                    return self._primitive(rule, "integer")
                return self.add_rule(rule, f"({whole_numbers(node.low, node.high)})")

    def _primitive(self, rule: str, name: str) -> str:
        return self.builtin("root", name) if rule == "root" else self.builtin(name)

    def _string(self, node: String, rule: str) -> str:
        if node.pattern:
            return self._pattern(node.pattern, rule)
        if node.form == "uuid":
            return self._primitive(rule, "uuid")
        if node.form:
            return self.add_rule(rule, self.builtin(f"{node.form}-string"))
        if node.low or node.high is not None:
            return self.add_rule(rule, f'"\\"" {repetition(self.builtin("char"), node.low, node.high)} "\\""')
        return self._primitive(rule, "string")

    def _pattern(self, pattern: str, rule: str) -> str:
        trial = self._trial = []
        try:
            return self.add_rule(rule, f'"\\"" ({pattern_rule(pattern, rule, self.add_rule)}) "\\""')
        except UnsupportedPattern as reason:
            self._trial = None
            for plain, number, added in reversed(trial):
                self._next[plain] = number
                self.rules.pop(added, None)
            log.warning("JSON schema: pattern %.60s is not supported (%s): any string is accepted", pattern, reason)
            return self.add_rule(rule, self.builtin("string"))
        except InvalidPattern as reason:
            raise GrammarError(f"JSON schema: pattern {pattern!r:.60}: {reason}") from None
        finally:
            self._trial = None

    def _reference(self, node: RefNode, depth: int) -> str:
        words = node.ref[1:]
        name = f"{self.ref_prefix}ref" + "".join(
            c if c.isascii() and (c.isalnum() or c == "-") else "\0" for c in words
        )
        while "\0\0" in name:
            name = name.replace("\0\0", "\0")
        name = name.replace("\0", "-")
        if name not in self.rules and node.ref not in self.resolving:
            assert node.target is not None
            self.resolving.add(node.ref)
            name = self.visit(node.target, name, depth + 1)
            self.resolving.discard(node.ref)
        return name

    def _all_of(self, node: AllOf, name: str, rule: str, depth: int) -> str:
        required: set[str] = set()
        members: list[tuple[str, Node]] = []
        counts: dict[str, int] = {}

        def add(child: Node | None, is_required: bool, hops: int) -> None:
            if hops > MAX_DEPTH:
                raise GrammarError(f"JSON schema: allOf follows more than {MAX_DEPTH} references in a row")
            if isinstance(child, RefNode):
                add(child.target, is_required, hops + 1)
            elif isinstance(child, Object):
                members.extend((p.name, p.node) for p in child.properties)
                if is_required:
                    required.update(p.name for p in child.properties)
            elif isinstance(child, Const) and not child.single:
                for value in child.values:
                    text = literal(_dump(value))
                    counts[text] = counts.get(text, 0) + 1

        for child in node.children:
            if isinstance(child, AnyOf):
                for alternative in child.children:
                    add(alternative, False, 0)
            else:
                add(child, True, 0)
        common = sorted(text for text, count in counts.items() if count == len(node.children))
        if common:
            return self.add_rule(rule, f"({' | '.join(common)})")
        return self.add_rule(rule, self._object(members, required, f"{name}-" if name else "", None, depth))

    def _object(
        self, members: list[tuple[str, Node]], required: set[str], prefix: str, additional: Node | None, depth: int
    ) -> str:
        """Required members in their order, then any of the optional ones in theirs, then others."""
        pairs: dict[str, str] = {}  # name -> the rule of the whole member; "*" for others
        for name, node in members:
            value = self.visit(node, prefix + name, depth + 1)
            pairs[name] = self.add_rule(f"{prefix}{name}-kv", f'{literal(_dump(name))} space ":" space {value}')
        first = [name for name, _ in members if name in required]
        optional = [name for name, _ in members if name not in required]
        if additional is not None:
            value = self._other_value(additional, f"{prefix}additional", depth)
            if members:
                key = self.add_rule(f"{prefix}additional-k", self._other_keys([name for name, _ in members]))
            else:
                key = self.builtin("string")
            pairs["*"] = self.add_rule(f"{prefix}additional-kv", f'{key} ":" space {value}')
            optional.append("*")
        if not first and not optional:
            return '"{" space "}"'
        rule = '"{" space ' + ' "," space '.join(pairs[name] for name in first)
        if optional:
            choices = " | ".join(self._optional(optional, pairs, prefix))
            rule += f' ( "," space ( {choices} ) )?' if first else f" ({choices} )?"
        return rule + ' space "}"'

    def _other_value(self, additional: Node, name: str, depth: int) -> str:
        if isinstance(additional, Anything):
            return self.builtin("value")
        return self.visit(additional, f"{name}-value", depth + 1)

    def _optional(self, names: list[str], pairs: dict[str, str], prefix: str) -> list[str]:
        """For each name: the members from there on, of which it is the first one present."""
        choices: list[str] = []
        rest = ""  # the rule of what may follow, with a space before it
        for name in reversed(names):
            comma = f'( "," space {pairs[name]} )'
            choices.append(pairs[name] + (f" {comma}*" if name == "*" else "") + rest)
            follow = f"{comma}{'*' if name == '*' else '?'}{rest}"
            i = len(names) - len(choices)
            if i:
                rest = " " + self.add_rule(f"{prefix}{names[i - 1]}-rest", follow)
        return choices[::-1]

    def _other_keys(self, names: list[str]) -> str:
        """A JSON string that is none of these: along the tree of their characters, leaving it somewhere."""
        tree: dict[str, Any] = {}
        for name in names:
            node = tree
            for char in name:
                node = node.setdefault(char, {})
        char = self.builtin("char")

        def leaving(node: dict[str, Any]) -> str:
            out = []
            for sign in sorted(node):
                inside = f"({leaving(node[sign])})" if node[sign] else f"{char}+"
                out.append(f"[{_CLASS_ESCAPES.get(sign, sign)}] {inside}")
            if node:
                out.append(f'[^"{"".join(_CLASS_ESCAPES.get(sign, sign) for sign in sorted(node))}] {char}*')
            return " | ".join(out)

        if max(map(len, names)) > MAX_DEPTH:
            raise GrammarError(f"JSON schema: a property's name longer than {MAX_DEPTH} beside additionalProperties")
        return f'["] ( {leaving(tree)} ){"" if "" in names else "?"} ["]'
