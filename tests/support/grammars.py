"""Whether a text is one that a grammar describes."""

from pyggml.grammar import Matcher, parse


def fits(grammar: str, text: str) -> bool:
    machine = Matcher(parse(grammar))
    state = machine.start
    for char in text:
        following = machine.advance(state, ord(char))
        if following is None:
            return False
        state = following
    return state.may_end
