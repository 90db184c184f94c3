"""When a grammar begins to hold that does not hold from the beginning. Owns that value alone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Trigger:
    """When a grammar begins to hold.

    words     texts, the first of which to appear is the beginning of what the grammar describes
    after     a text after which, and after white space, that begins; "": none
    starts    texts that count only where nothing but white space was written before
    silent    before and after a part in which none of these counts (reasoning); None: there is none
    written   what the prompt has of the reply already
    """

    words: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    after: str = ""
    silent: tuple[str, str] | None = None
    written: str = ""
