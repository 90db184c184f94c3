"""The arguments of kernels that multiply with weights.

One class for all: experts.py and dequant_fallback.py call matvec.py's and tile.py's kernels with a copy of their own record, which holds
the arguments of both.
"""

from typing import NamedTuple


class ProductArgs(NamedTuple):
    """length: blocks of 32 a row; of floats elements (tile.py). padded: blocks in a plane (matvec.py). column_bytes: from one
    column's planes, or panel of activations, to the next. panels_from, pairs_from: words of the table of experts.py where
    its parts begin. work_bytes: what tile.rows needs of a thread. row_blocks: blocks a row, of a type that is dequantised
    first. panels_each: panels of activations a matrix."""

    length: int = 0
    padded: int = 0
    column_bytes: int = 0
    panels_from: int = 0
    pairs_from: int = 0
    work_bytes: int = 0
    row_blocks: int = 0
    panels_each: int = 0
