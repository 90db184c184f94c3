"""How super-blocks of 256 values pack their bits and their sub-blocks' scales."""

import numpy as np

from pyggml.quants.base import Bytes

VALUES = 256


def blocks_of(columns: Bytes) -> Bytes:
    """(k, groups) -> (super-blocks, 256): the inverse of `search.columns`."""
    return np.ascontiguousarray(columns.T).reshape(-1, VALUES)


def join_planes(q: Bytes, bits: int, across: int) -> Bytes:
    """(n, 256) below 2^bits -> (n, 32 bits): runs of 32 values share bytes, `across` = 8 / bits of them one above the
    other: byte l of a run of 32 bytes has value l + 32 i in its bits from i * bits."""
    runs = q.reshape(len(q), VALUES // 32 // across, across, 32)
    packed = np.zeros((len(q), runs.shape[1], 32), np.uint8)
    for i in range(across):
        packed |= runs[:, :, i] << np.uint8(i * bits)
    return packed.reshape(len(q), 32 * bits)


def split_planes(packed: Bytes, bits: int) -> Bytes:
    """The inverse of `join_planes`: (n, 32 bits) -> (n, 256)."""
    runs = packed.reshape(len(packed), bits, 1, 32)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return ((runs >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(packed), VALUES)


def join_scales_and_minimums(scales: Bytes, minimums: Bytes) -> Bytes:
    """Twice (n, 8) below 64 -> (n, 12): four whole scales, four whole minimums whose upper two bits hold those of the
    others, then the others' lower four."""
    first = scales[:, :4] | ((scales[:, 4:] >> np.uint8(4)) << np.uint8(6))
    second = minimums[:, :4] | ((minimums[:, 4:] >> np.uint8(4)) << np.uint8(6))
    rest = (scales[:, 4:] & np.uint8(15)) | ((minimums[:, 4:] & np.uint8(15)) << np.uint8(4))
    return np.concatenate([first, second, rest], axis=1)


def split_scales_and_minimums(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The inverse of `join_scales_and_minimums` (ggml-quants.c get_scale_min_k4)."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    low, high = rest & np.uint8(15), rest >> np.uint8(4)
    scales = [first & np.uint8(63), low | ((first >> np.uint8(6)) << np.uint8(4))]
    minimums = [second & np.uint8(63), high | ((second >> np.uint8(6)) << np.uint8(4))]
    return np.concatenate(scales, axis=1), np.concatenate(minimums, axis=1)
