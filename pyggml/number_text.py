"""Numbers that people write: ASCII digits. Python's own reading also takes `1_000` and the digits of other scripts, and
fails in its own words for numbers of more than 4300 digits."""

MOST_DIGITS = 1000


def whole_number(text: str) -> int:
    """`12`, `-3`; spaces around it do not count. Raises ValueError, without a text for the user."""
    return int(_plain(text))


def real_number(text: str) -> float:
    """`0.5`, `1e-3`, `inf`, `nan`; spaces around it do not count. Raises ValueError, without a text for the user."""
    return float(_plain(text))


def json_integer(digits: str) -> int:
    """json's `parse_int`. Raises ValueError."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits, of which {MOST_DIGITS} are read at most")
    return int(digits)


def _plain(text: str) -> str:
    if not text.isascii() or "_" in text or len(text) > MOST_DIGITS:
        raise ValueError
    return text
