"""Intrinsics for a thread's place and for synchronising: barriers, exchange within a warp."""

from pyggml.kernels.cuda.device.intrinsic import intrinsic


def _register(name: str) -> str:
    return f"%r = call i32 @llvm.nvvm.read.ptx.sreg.{name}()\nret i32 %r"


def _sreg(name: str, register: str):
    needs = (f"declare i32 @llvm.nvvm.read.ptx.sreg.{register}()",)
    return intrinsic(name, "i32", [], _register(register), needs=needs)


thread = _sreg("thread", "tid.x")
"""Number of the thread in its block. Blocks have one dimension here; lane = thread & 31."""
block_x = _sreg("block_x", "ctaid.x")
block_y = _sreg("block_y", "ctaid.y")
block_z = _sreg("block_z", "ctaid.z")
blocks_x = _sreg("blocks_x", "nctaid.x")
blocks_y = _sreg("blocks_y", "nctaid.y")
blocks_z = _sreg("blocks_z", "nctaid.z")
threads = _sreg("threads", "ntid.x")

barrier = intrinsic(
    "barrier", "void", [], "call void @llvm.nvvm.barrier0()\nret void", needs=("declare void @llvm.nvvm.barrier0() #1",)
)
"""All threads of the block meet; shared memory written before is seen after."""

_SHUFFLE = ("declare {i32, i1} @llvm.nvvm.shfl.sync.i32(i32, i32, i32, i32, i32) #1",)


def _shuffle(mode: int, floats: bool) -> str:
    value = "%v = bitcast float %a0 to i32\n" if floats else "%v = add i32 %a0, 0\n"
    call = f"%p = call {{i32, i1}} @llvm.nvvm.shfl.sync.i32(i32 -1, i32 {mode}, i32 %v, i32 %a1, i32 31)\n"
    out = "%x = extractvalue {i32, i1} %p, 0\n"
    return value + call + out + ("%r = bitcast i32 %x to float\nret float %r" if floats else "ret i32 %x")


shuffle_xor_f32 = intrinsic("shuffle_xor_f32", "f32", ["f32", "i32"], _shuffle(3, True), needs=_SHUFFLE)
"""The value of lane (own number xor n). All 32 lanes of the warp take part."""
shuffle_xor_i32 = intrinsic("shuffle_xor_i32", "i32", ["i32", "i32"], _shuffle(3, False), needs=_SHUFFLE)
shuffle_f32 = intrinsic("shuffle_f32", "f32", ["f32", "i32"], _shuffle(0, True), needs=_SHUFFLE)
"""The value of lane n."""
shuffle_i32 = intrinsic("shuffle_i32", "i32", ["i32", "i32"], _shuffle(0, False), needs=_SHUFFLE)
warp_barrier = intrinsic(
    "warp_barrier", "void", [], "call void @llvm.nvvm.bar.warp.sync(i32 -1)\nret void",
    needs=("declare void @llvm.nvvm.bar.warp.sync(i32) #1",),
)  # fmt: skip
"""The lanes of a warp meet; what one wrote to shared memory before the others see after."""
