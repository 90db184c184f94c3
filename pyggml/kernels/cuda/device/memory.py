"""Intrinsics for global and shared memory. Addresses are bare: i64 for global memory, i32 for a block's shared memory.

Owns the loads and stores. All loads and stores are aligned to their size.
"""

from typing import Any

from pyggml.kernels.cuda.device.intrinsic import TEXT, asm, intrinsic

HALF_TO_FLOAT = "%h = bitcast i16 %v to half\n%r = fpext half %h to float\nret float %r"
FLOAT_TO_HALF = "%h = fptrunc float %a{n} to half\n%v = bitcast half %h to i16"
BF16_TO_FLOAT = "%w = zext i16 %v to i32\n%s = shl i32 %w, 16\n%r = bitcast i32 %s to float\nret float %r"
FLOAT_TO_BF16 = """%u = bitcast float %a{n} to i32
%nan = fcmp uno float %a{n}, 0.0
%sh = lshr i32 %u, 16
%odd = and i32 %sh, 1
%up = add i32 %odd, 32767
%sum = add i32 %u, %up
%rounded = lshr i32 %sum, 16
%quiet = or i32 %sh, 64
%w = select i1 %nan, i32 %quiet, i32 %rounded
%v = trunc i32 %w to i16"""
"""Rounds to nearest even; a NaN stays one (ggml-impl.h: ggml_compute_fp32_to_bf16)."""


def _pointer(space: int, element: str) -> str:
    """Turn parameter 0 into %p."""
    width = "i64" if space == 1 else "i32"
    return f"%p = inttoptr {width} %a0 to {element} addrspace({space})*\n"


def _load(name: str, space: int, element: str, size: int, result: str, after: str) -> Any:
    address = "i64" if space == 1 else "i32"
    body = _pointer(space, element) + f"%v = load {element}, {element} addrspace({space})* %p, align {size}\n" + after
    return intrinsic(name, result, (address,), body)


def _store(name: str, space: int, element: str, size: int, value: str, before: str, stored: str) -> Any:
    address = "i64" if space == 1 else "i32"
    body = _pointer(space, element) + before
    return intrinsic(
        name, "void", (address, value),
        f"{body}\nstore {element} {stored}, {element} addrspace({space})* %p, align {size}\nret void",
    )  # fmt: skip


def _vector_load(name: str, space: int, kind: str, count: int) -> Any:
    element, address = TEXT[kind], "i64" if space == 1 else "i32"
    vector = f"<{count} x {element}>"
    result = "{" + ", ".join([element] * count) + "}"
    lines = [_pointer(space, vector) + f"%v = load {vector}, {vector} addrspace({space})* %p, align {4 * count}"]
    for i in range(count):
        before = "undef" if i == 0 else f"%r{i - 1}"
        lines.append(f"%e{i} = extractelement {vector} %v, i32 {i}")
        lines.append(f"%r{i} = insertvalue {result} {before}, {element} %e{i}, {i}")
    return intrinsic(name, f"{kind}*{count}", (address,), "\n".join([*lines, f"ret {result} %r{count - 1}"]))


def _vector_store(name: str, space: int, kind: str, count: int) -> Any:
    element, address = TEXT[kind], "i64" if space == 1 else "i32"
    vector = f"<{count} x {element}>"
    lines = [_pointer(space, vector)]
    for i in range(count):
        before = "undef" if i == 0 else f"%v{i - 1}"
        lines.append(f"%v{i} = insertelement {vector} {before}, {element} %a{i + 1}, i32 {i}")
    lines.append(f"store {vector} %v{count - 1}, {vector} addrspace({space})* %p, align {4 * count}\nret void")
    return intrinsic(name, "void", (address, *[kind] * count), "\n".join(lines))


def _family(prefix: str, space: int) -> dict[str, Any]:
    """The loads and stores of one memory. Small integers are i32 in registers, F16 and BF16 are f32."""
    made = {
        "u8": _load(f"{prefix}ld_u8", space, "i8", 1, "i32", "%r = zext i8 %v to i32\nret i32 %r"),
        "i8": _load(f"{prefix}ld_i8", space, "i8", 1, "i32", "%r = sext i8 %v to i32\nret i32 %r"),
        "u16": _load(f"{prefix}ld_u16", space, "i16", 2, "i32", "%r = zext i16 %v to i32\nret i32 %r"),
        "i32": _load(f"{prefix}ld_i32", space, "i32", 4, "i32", "ret i32 %v"),
        "i64": _load(f"{prefix}ld_i64", space, "i64", 8, "i64", "ret i64 %v"),
        "f32": _load(f"{prefix}ld_f32", space, "float", 4, "f32", "ret float %v"),
        "f16": _load(f"{prefix}ld_f16", space, "i16", 2, "f32", HALF_TO_FLOAT),
        "bf16": _load(f"{prefix}ld_bf16", space, "i16", 2, "f32", BF16_TO_FLOAT),
        "i32x4": _vector_load(f"{prefix}ld_i32x4", space, "i32", 4),
        "i32x2": _vector_load(f"{prefix}ld_i32x2", space, "i32", 2),
        "f32x4": _vector_load(f"{prefix}ld_f32x4", space, "f32", 4),
        "f32x2": _vector_load(f"{prefix}ld_f32x2", space, "f32", 2),
        "st_u8": _store(f"{prefix}st_u8", space, "i8", 1, "i32", "%v = trunc i32 %a1 to i8", "%v"),
        "st_u16": _store(f"{prefix}st_u16", space, "i16", 2, "i32", "%v = trunc i32 %a1 to i16", "%v"),
        "st_i32": _store(f"{prefix}st_i32", space, "i32", 4, "i32", "", "%a1"),
        "st_i64": _store(f"{prefix}st_i64", space, "i64", 8, "i64", "", "%a1"),
        "st_f32": _store(f"{prefix}st_f32", space, "float", 4, "f32", "", "%a1"),
        "st_f16": _store(f"{prefix}st_f16", space, "i16", 2, "f32", FLOAT_TO_HALF.replace("{n}", "1"), "%v"),
        "st_bf16": _store(f"{prefix}st_bf16", space, "i16", 2, "f32", FLOAT_TO_BF16.replace("{n}", "1"), "%v"),
        "st_i32x4": _vector_store(f"{prefix}st_i32x4", space, "i32", 4),
        "st_i32x2": _vector_store(f"{prefix}st_i32x2", space, "i32", 2),
        "st_f32x4": _vector_store(f"{prefix}st_f32x4", space, "f32", 4),
        "st_f32x2": _vector_store(f"{prefix}st_f32x2", space, "f32", 2),
    }
    return made


_g = _family("", 1)
ld_u8, ld_i8, ld_u16, ld_i32, ld_i64, ld_f32 = (_g[k] for k in ("u8", "i8", "u16", "i32", "i64", "f32"))
ld_f16, ld_bf16, ld_i32x4, ld_i32x2, ld_f32x4, ld_f32x2 = (
    _g[k] for k in ("f16", "bf16", "i32x4", "i32x2", "f32x4", "f32x2")
)
st_u8, st_u16, st_i32, st_i64, st_f32, st_f16 = (_g["st_" + k] for k in ("u8", "u16", "i32", "i64", "f32", "f16"))
st_bf16, st_i32x4, st_i32x2, st_f32x4, st_f32x2 = (_g["st_" + k] for k in ("bf16", "i32x4", "i32x2", "f32x4", "f32x2"))

_s = _family("s", 3)
sld_u8, sld_i8, sld_u16, sld_i32, sld_f32, sld_f16 = (_s[k] for k in ("u8", "i8", "u16", "i32", "f32", "f16"))
sld_i32x4, sld_i32x2, sld_f32x4, sld_f32x2 = (_s[k] for k in ("i32x4", "i32x2", "f32x4", "f32x2"))
sst_u8, sst_u16, sst_i32, sst_f32, sst_f16 = (_s["st_" + k] for k in ("u8", "u16", "i32", "f32", "f16"))
sst_bf16, sst_i32x4, sst_i32x2, sst_f32x4, sst_f32x2 = (
    _s["st_" + k] for k in ("bf16", "i32x4", "i32x2", "f32x4", "f32x2")
)

shared = intrinsic(
    "shared", "i32", [],
    "%r = ptrtoint [0 x i8] addrspace(3)* @block_memory to i32\nret i32 %r",
    needs=("@block_memory = external addrspace(3) global [0 x i8], align 128",),
)  # fmt: skip
"""Where the block's shared memory begins, a multiple of 128; its size is the launch's. Undefined until the kernel has written it."""

cp_async16 = intrinsic(
    "cp_async16", "void", ["i32", "i64"],
    asm("cp.async.cg.shared.global [$0], [$1], 16;", "r,l,~{memory}", "void", "i32 %a0, i64 %a1"),
)  # fmt: skip
"""Begin to copy 16 bytes from global (second) to shared memory (first), both at multiples of 16. Compute capability 8.0."""
cp_async8, cp_async4 = (
    intrinsic(
        f"cp_async{size}", "void", ["i32", "i64"],
        asm(f"cp.async.ca.shared.global [$0], [$1], {size};", "r,l,~{memory}", "void", "i32 %a0, i64 %a1"),
    )
    for size in (8, 4)
)  # fmt: skip
"""The same of 8 and of 4 bytes."""

cp_async_commit = intrinsic("cp_async_commit", "void", [], asm("cp.async.commit_group;", "~{memory}", "void", ""))
cp_async_wait = intrinsic("cp_async_wait", "void", [], asm("cp.async.wait_group 0;", "~{memory}", "void", ""))
cp_async_wait_one = intrinsic("cp_async_wait_one", "void", [], asm("cp.async.wait_group 1;", "~{memory}", "void", ""))
"""Wait until all groups of copies of this thread but the last one are there."""

add_i32 = intrinsic(
    "add_i32", "i32", ["i64", "i32"],
    asm("atom.acq_rel.gpu.global.add.u32 $0, [$1], $2;", "=r,l,r,~{memory}", "i32", "i64 %a0, i32 %a1"),
)  # fmt: skip
"""Add to an i32 in global memory; -> what was there. What this thread and those that it met at a barrier before have written
is seen by whoever adds to the same place later, and by those that it meets then."""

sadd_i32 = intrinsic(
    "sadd_i32", "i32", ["i32", "i32"],
    asm("atom.shared.add.u32 $0, [$1], $2;", "=r,r,r,~{memory}", "i32", "i32 %a0, i32 %a1"),
)  # fmt: skip
"""Add to an i32 in shared memory; -> what was there. In no order among threads."""
