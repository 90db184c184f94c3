"""Mutants of the kernels that choose rows by number: what was checked is read a second time, and that is used."""

from pyggml.jit import inline
from pyggml.kernels.cpu import add_id as add_id_family
from pyggml.kernels.cpu import dequant_fallback, indices
from pyggml.kernels.cpu import rows as rows_family
from pyggml.kernels.cpu import ssm as ssm_family


def _unchecked():
    from pyggml import simd as v

    @inline
    def choose(step, addr, wide, limit):
        if wide:
            return v.i64_at(addr)
        return v.np.int64(v.i32_at(addr))

    return choose


def _mutant(factory, *args):
    right, indices.chosen = indices.chosen, _unchecked
    try:
        return factory(*args)
    finally:
        indices.chosen = right


def get_rows(*args):
    return _mutant(rows_family.get_rows if args else dequant_fallback.get_rows, *args)


def set_rows(*args):
    return _mutant(rows_family.set_rows, *args)


def set_quantised_rows(*args):
    return _mutant(rows_family.set_quantised_rows, *args)


def add_id():
    return _mutant(add_id_family.add_id)


def ssm_scan():
    return _mutant(ssm_family.ssm_scan)
