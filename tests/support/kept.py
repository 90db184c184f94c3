"""What tests make once and keep in the cache folder, under a name that says all that it depends on. Must not know what it
is.
"""

import hashlib
import re
from collections.abc import Callable

from pyggml.cachedir import PrivateFolder

SEAL = 32  # bytes of a SHA-256 digest
LARGEST = 1 << 25  # bytes; what is larger is made each time
FORGET_AFTER = 30 * 86400  # seconds since it was made


def kept(name: str, make: Callable[[], bytes], *folder: str) -> bytes:
    """The bytes of this name; made where there are none, or damaged ones. Two processes may make the same at once."""
    place = PrivateFolder(*folder)
    data = place.read(name)
    if data is not None and hashlib.sha256(data[SEAL:]).digest() == data[:SEAL]:
        return data[SEAL:]
    made = make()
    if len(made) <= LARGEST:
        place.write(name, hashlib.sha256(made).digest() + made)
        place.tidy(re.compile(".*"), name, FORGET_AFTER)
    return made
