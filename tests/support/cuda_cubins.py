"""Kernels compiled here for a machine whose compiler is another or missing: `cuda_cubins.py make FOLDER [9.0]` here,
`cuda_cubins.py place FOLDER [9.0]` there, with the same sources.

Names in the kernel cache depend on the versions that are installed; in the folder kernels are named by what they are.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from pyggml.backend.cuda import compiled
from pyggml.kernels.cuda.spec import Spec

LIST = "kernels.json"


def every_spec() -> list[Spec]:
    """What tests, benchmark and models ask for."""
    from cuda_kernels import KERNELS

    kernels = "cuda_intrinsic_kernels."
    found = [expected.spec for expected in KERNELS]
    for head in range(16, 129, 16):
        packed = (0, 1) if head % 32 == 0 else (0,)
        found += [Spec("attention_tile", "attend", (head, split_kv, p)) for split_kv in (0, 1) for p in packed]
    found += [Spec(f"{kernels}numbers", name) for name in ("integers", "floats", "angles", "packs")]
    found += [Spec(f"{kernels}exchange", name) for name in ("warps", "moves")]
    found += [Spec(f"{kernels}tiles", name) for name in ("bytes_32", "bytes_16")]
    found += [Spec(f"{kernels}tiles", name, (i,)) for name in ("halves", "loads") for i in (0, 1)]
    return list(dict.fromkeys(found))


def make(folder: Path, cc: tuple[int, int], specs: Sequence[Spec]) -> int:
    """-> bytes in all. What is in the cache is not compiled again."""
    folder.mkdir(parents=True, exist_ok=True)
    for spec in specs:
        (folder / f"{spec.label}.cubin").write_bytes(compiled.cubin(spec, cc))
    (folder / LIST).write_text(json.dumps(specs))
    return sum((folder / f"{spec.label}.cubin").stat().st_size for spec in specs)


def place(folder: Path, cc: tuple[int, int]) -> int:
    """-> how many kernels lie in this machine's cache now, under the names that it looks for."""
    specs = [Spec(module, factory, tuple(args)) for module, factory, args in json.loads((folder / LIST).read_text())]
    for spec in specs:
        compiled.keep(spec, cc, (folder / f"{spec.label}.cubin").read_bytes())
    return len(specs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("make", "place"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("cc", nargs="?", default="9.0", help="compute capability (9.0)")
    args = parser.parse_args()
    major, minor = (int(n) for n in args.cc.split("."))
    if args.what == "place":
        print(f"{place(args.folder, (major, minor))} kernels placed")
        return
    specs = every_spec()
    size = make(args.folder, (major, minor), specs)
    print(f"{len(specs)} kernels, {size >> 10} KiB")


if __name__ == "__main__":
    main()
