"""Every op: its number, the shape rule of those that can be computed here, and one builder each.

One file a family, named as the family's kernels; `rules.py` holds what they share. Knows nothing of how a node is
computed. Rules and the use of op_params follow the builder of the same name in ggml.c.
"""

from pyggml.ops.attention import flash_attn_ext as flash_attn_ext
from pyggml.ops.concat import concat as concat
from pyggml.ops.copy import cont as cont
from pyggml.ops.copy import cpy as cpy
from pyggml.ops.copy import dup as dup
from pyggml.ops.diag_mask import diag_mask_inf as diag_mask_inf
from pyggml.ops.diag_mask import diag_mask_zero as diag_mask_zero
from pyggml.ops.elementwise import add as add
from pyggml.ops.elementwise import add1 as add1
from pyggml.ops.elementwise import div as div
from pyggml.ops.elementwise import mul as mul
from pyggml.ops.elementwise import sub as sub
from pyggml.ops.fill import TriType as TriType
from pyggml.ops.fill import arange as arange
from pyggml.ops.fill import diag as diag
from pyggml.ops.fill import fill as fill
from pyggml.ops.fill import tri as tri
from pyggml.ops.glu import glu as glu
from pyggml.ops.glu import swiglu as swiglu
from pyggml.ops.matmul import mul_mat as mul_mat
from pyggml.ops.norm import rms_norm as rms_norm
from pyggml.ops.numbers import VIEW_OPS as VIEW_OPS
from pyggml.ops.numbers import GluOp as GluOp
from pyggml.ops.numbers import Op as Op
from pyggml.ops.numbers import UnaryOp as UnaryOp
from pyggml.ops.pad import pad as pad
from pyggml.ops.pad import pad_reflect_1d as pad_reflect_1d
from pyggml.ops.pad import roll as roll
from pyggml.ops.parts import acc as acc
from pyggml.ops.parts import set_part as set_part
from pyggml.ops.repeat import repeat as repeat
from pyggml.ops.repeat import repeat_back as repeat_back
from pyggml.ops.rope import ROPE_IMROPE as ROPE_IMROPE
from pyggml.ops.rope import ROPE_MODES as ROPE_MODES
from pyggml.ops.rope import ROPE_MROPE as ROPE_MROPE
from pyggml.ops.rope import ROPE_NEOX as ROPE_NEOX
from pyggml.ops.rope import ROPE_NORMAL as ROPE_NORMAL
from pyggml.ops.rope import ROPE_VISION as ROPE_VISION
from pyggml.ops.rope import rope as rope
from pyggml.ops.rope import rope_pairs as rope_pairs
from pyggml.ops.rows import get_rows as get_rows
from pyggml.ops.rows import set_rows as set_rows
from pyggml.ops.rules import RULES as RULES
from pyggml.ops.rules import can_repeat as can_repeat
from pyggml.ops.rules import check as check
from pyggml.ops.soft_max import soft_max as soft_max
from pyggml.ops.soft_max import soft_max_back as soft_max_back
from pyggml.ops.timestep_embedding import timestep_embedding as timestep_embedding
from pyggml.ops.unary import scale as scale
from pyggml.ops.unary import unary as unary
from pyggml.ops.views import permute as permute
from pyggml.ops.views import reshape as reshape
from pyggml.ops.views import transpose as transpose
from pyggml.ops.views import view as view
