"""What tests make once and keep in the cache folder, under a name that says all that it depends on. Must not know what it
is.
"""

import hashlib
import zlib
from collections.abc import Callable

from pyggml.cachedir import PrivateFolder

SEAL = 32  # bytes of a SHA-256 digest


def kept(name: str, make: Callable[[], bytes], *folder: str) -> bytes:
    """The bytes of this name; made where there are none, or damaged ones. Two processes may make the same at once."""
    place = PrivateFolder(*folder)
    data = place.read(name)
    if data is not None and hashlib.sha256(data[SEAL:]).digest() == data[:SEAL]:
        return zlib.decompress(data[SEAL:])
    made = make()
    body = zlib.compress(made, 1)
    place.write(name, hashlib.sha256(body).digest() + body)
    return made
