"""How many connections a server's process can hold: each takes a file descriptor, of which the system gives so many.

Owns the raising of that limit. Without a descriptor for what else it opens, a server could answer nobody, not even those
who are connected.
"""

import contextlib
import sys

from pyggml.errors import DeviceError

BESIDE = 128  # for files, kernels that are compiled, devices, other processes


def affordable(wanted: int, flag: str, each: int = 1, beside: int = BESIDE) -> int:
    """As many connections as are `wanted` by the flag, or fewer, with a warning, where the system allows no more. `each`:
    descriptors that one may take. Raises DeviceError where not even one can be had."""
    try:
        import resource
    except ImportError:  # not POSIX: there is no such limit
        return wanted
    needed = wanted * each + beside
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (needed, hard):  # the system may allow less than the hard limit says
        if soft != resource.RLIM_INFINITY and soft < needed:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    fewer = (soft - beside) // each
    reason = f"this process may open {soft} files (ulimit -n)"
    if fewer < 1:
        raise DeviceError(f"{reason}; a server needs {beside + each} or more")
    print(f"warning: {flag}: {fewer} instead of {wanted}, as {reason}", file=sys.stderr)
    return fewer
