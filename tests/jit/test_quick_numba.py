"""What makes Numba's front end quicker changes nothing that it makes, and leaves the functions of others as they are."""

import gc
import hashlib
import importlib.util
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from kept import kept

from pyggml import quick_numba
from pyggml.jit import CALL, Spec, store

CPU = (Spec("matvec", "rows", ("Q8_0",)), Spec("rope", "table"), Spec("attention_rows", "weigh", ("f16", 3), CALL))
CUDA = (("rope", "rope", ()), ("matvec_one", "products", ("Q4_0",)))

MAKE = """
import sys
from pyggml import quick_numba
if sys.argv[1] == "plain":
    quick_numba.quicken = lambda package: None
if sys.argv[1] == "wrong":  # operators are remembered by how many numbers they take, not of which types
    text = open(quick_numba.__file__).read()
    assert text.count("found[args]") == 2 and text.count("args not in found") == 1
    text = text.replace("found[args]", "found[len(args)]").replace("args not in found", "len(args) not in found")
    exec(text, vars(quick_numba))
quick_numba.quicken(sys.argv[2])
import importlib
changed = hasattr(importlib.import_module(sys.argv[2] + ".core.ir").Loc, "__deepcopy__")
assert changed == (sys.argv[1] != "plain"), sys.argv
"""
MAKE_CPU = f"""{MAKE}
import re
from pyggml.jit import Spec, compiling
for spec in {[tuple(spec) for spec in CPU]!r}:
    text = compiling.with_assembly(Spec(*spec))[1]
    print(re.sub(r"B\\d+v\\d+B", "", text))  # Numba counts functions, and puts the number into their symbols
"""
MAKE_CUDA = f"""{MAKE}
from pyggml.kernels.cuda.device import build
from pyggml.kernels.cuda.spec import Spec
for spec in {CUDA!r}:
    print(build.ptx(build.kernel(Spec(*spec)), (9, 0)))
"""


def run(script: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def made(way: str, package: str, script: str, *depends: str) -> str:
    """What `script` prints, kept under a name that says all that it depends on."""
    parts = (script, Path(quick_numba.__file__).read_text(), version("numba"), version("llvmlite"), *depends)
    name = f"{package}-{way}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"
    return kept(name, lambda: run(script, way, package).encode(), "quick").decode()


def of_cpus(way: str) -> str:
    return made(way, "numba", MAKE_CPU, store.folder().path.name, *(store.file_name(spec) for spec in CPU))


def test_kernels_of_cpus() -> None:
    assert of_cpus("plain") == of_cpus("quick") and of_cpus("plain").count("retq") >= len(CPU)


def test_what_is_remembered_wrongly_is_noticed() -> None:
    with pytest.raises(AssertionError):
        assert run(MAKE_CPU, "wrong", "numba") == of_cpus("plain")


def test_kernels_of_gpus() -> None:
    if importlib.util.find_spec("numba_cuda") is None:
        pytest.skip("numba-cuda is not installed: pip install '.[cuda]'")
    from pyggml.backend.cuda import compiled
    from pyggml.backend.cuda.toolkit import find_library
    from pyggml.kernels.cuda.spec import Spec as CudaSpec

    if find_library("nvvm") is None:
        pytest.skip("no libNVVM: pip install '.[cuda]'")
    sources = [compiled.key(CudaSpec(*spec), (9, 0)) for spec in CUDA]
    plain, quick = (made(way, "numba.cuda", MAKE_CUDA, *sources) for way in ("plain", "quick"))
    assert plain == quick and plain.count(".entry") == len(CUDA)


OTHERS = """
import sys, types
from pyggml.quick_numba import quicken
quicken("numba")
import numba
module = types.ModuleType("theirs")
sys.modules["theirs"] = module
exec('''
import numba
SCALE = 2
@numba.njit(inline="always")
def scaled(x):
    return x * SCALE
def twice(x):
    return scaled(x) + scaled(x + 1)
''', module.__dict__)
print(numba.njit(module.twice)(3), end=" ")
module.SCALE = 5
print(numba.njit(module.twice)(3), numba.njit(module.twice)(1.5))
"""


def test_functions_of_others_are_read_anew() -> None:
    assert run(OTHERS).split() == ["14", "35", "20.0"]


def test_the_collector_goes_on_as_it_was() -> None:
    assert gc.isenabled()
    with quick_numba.no_collector():
        assert not gc.isenabled()
        with quick_numba.no_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="compiler"), quick_numba.no_collector():
        raise ValueError("compiler")
    assert gc.isenabled()
