"""Kernels that tests alone ask for, for `python -m pyggml_cli.cubins make FOLDER --also cuda_test_kernels`."""

from pyggml.kernels.cuda.spec import Spec

_OWN = "cuda_intrinsic_kernels."

SPECS = [
    *(Spec(f"{_OWN}numbers", name) for name in ("integers", "floats", "angles", "packs")),
    *(Spec(f"{_OWN}exchange", name) for name in ("warps", "moves", "tickets", "counts")),
    *(Spec(f"{_OWN}tiles", name) for name in ("bytes_32", "bytes_16")),
    *(Spec(f"{_OWN}tiles", name, (i,)) for name in ("halves", "loads") for i in (0, 1)),
]
