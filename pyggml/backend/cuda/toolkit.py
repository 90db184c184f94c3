"""Which toolkit of CUDA compiles kernels here: its major version, the drivers that take what it makes, where its libraries
lie. Owns these facts.
"""

from __future__ import annotations

DRIVERS = {12: "driver 525", 13: "driver 580"}
"""What brings each major version of CUDA: that driver takes machine code of all toolkits of the version, and no earlier one
does (NVIDIA's CUDA Compatibility: minor version compatibility)."""


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
