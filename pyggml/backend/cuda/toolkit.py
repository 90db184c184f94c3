"""Which toolkit of CUDA compiles kernels here: its major version, the drivers that take what it makes, where its libraries
lie. Owns these facts.
"""

from __future__ import annotations

DRIVERS = {12: "driver 525", 13: "driver 580"}
"""What brings each major version of CUDA: that driver takes machine code of all toolkits of the version, and no earlier one
does (NVIDIA's CUDA Compatibility: minor version compatibility)."""

MOST_MAJOR = 20
"""Of compute capabilities that are asked for."""


def toolkit() -> int:
    """The major version of CUDA that machine code is made with: the compiler's packages have that of cuda.bindings, of which
    an environment has one."""
    import cuda.bindings

    return int(cuda.bindings.__version__.partition(".")[0])


def find_library(name: str) -> str | None:
    """The file of a library of the CUDA toolkit ("nvvm", "nvJitLink"), wherever it is installed; None = nowhere."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        return str(load_nvidia_dynamic_lib(name).abs_path)
    except Exception:  # ImportError, and that package's own
        return None


def capabilities() -> list[tuple[int, int]]:
    """Compute capabilities that nvJitLink makes machine code for here, in order; none where it is not there."""
    try:
        from cuda.bindings import nvjitlink
    except ImportError:
        return []

    def known(major: int, minor: int) -> bool:
        try:
            nvjitlink.destroy(nvjitlink.create(1, [f"-arch=sm_{major}{minor}"]))
        except Exception:  # the package's own: an architecture that it does not know, or no library
            return False
        return True

    return [(major, minor) for major in range(5, MOST_MAJOR + 1) for minor in range(10) if known(major, minor)]
