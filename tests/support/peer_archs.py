"""The reference's tiny random models, a file an architecture, and what llama.cpp of protocol 8.0.0 says to their tokens.

Owns how the files are written (test-llama-archs of the reference) and the compiler's command line of `arch_driver.cpp`.
"""

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import edit_gguf
import numpy as np
from kept import file_digest, kept
from made_folders import made
from peer_build import PeerMissing, cpu_key, locked
from peer_programs import Programs

from pyggml.cachedir import cache_dir
from pyggml.gguf import GGUFFile

SOURCE = Path(__file__).with_name("arch_driver.cpp")
OPTIONS = ("-std=c++17", "-O1", "-w")
LIBRARIES = ("libllama.so", "libggml.so", "libggml-base.so", "libggml-cpu.so", "libggml-rpc.so")
SEED, STDEV = "7", "0.1"
SCALES = (".scale", ".input_scale")
"""Of NVFP4 weights: for all architectures the reference reads them, but in some it computes with them."""
UNREAD: dict[str, tuple[str, ...]] = {
    "llama": (),
    "gemma4": (),
    "kimi-linear": (*SCALES, ".attn_q.bias", ".attn_k.bias", ".attn_v.bias"),
    "bailingmoe3": (*SCALES, ".attn_q.bias", ".attn_k.bias", ".attn_v.bias"),
    "glm5-next": (*SCALES, ".attn_q.bias", ".attn_k.bias", ".attn_v.bias"),
    "qwen4exp": (*SCALES, ".attn_q.bias", ".attn_k.bias", ".attn_v.bias"),
    "kimi-k3": (*SCALES, ".attn_q.bias", ".attn_k.bias", ".attn_v.bias"),
    "falcon-h1": (*SCALES, ".attn_output.bias", "rope_freqs.weight"),
    "dream": (*SCALES, "output.bias"),
    "llada": (*SCALES, "rope_freqs.weight", ".attn_output.bias", ".ffn_gate.bias", ".ffn_up.bias", ".ffn_down.bias"),
    "ernie4_5": (*SCALES, ".attn_output.bias"),
    "cogvlm": (*SCALES, "rope_freqs.weight"),
    "mpt": (*SCALES, ".attn_k_norm.weight", ".attn_k_norm.bias"),
    "pangu-embedded": (*SCALES, "rope_freqs.weight"),
    "qwen2vl": (*SCALES, "output.bias"),
    "refact": (*SCALES, "rope_freqs.weight", ".attn_output.bias", ".ffn_gate.bias", ".ffn_up.bias", ".ffn_down.bias"),
    "ernie4_5-moe": (*SCALES, ".attn_output.bias"),
    "mimo2": (*SCALES, ".attn_q.bias", ".attn_k.bias", ".attn_v.bias"),
}
"""How the names of tensors end that the reference reads, and does not compute with; SCALES for all others."""


KEYS: dict[str, dict[str, float]] = {"qwen2vl": {"attention.layer_norm_rms_epsilon": 1e-12}}
"""Values in place of those that the reference writes: of qwen2vl it reads no epsilon, and computes with 0."""


QUERIES = re.compile(r"\.attn_(q|k|qkv)\.weight$")
NORMS = re.compile(r"\.attn_(q|k)_norm\.weight$")
EXPERTS = re.compile(r"\.((ffn_(gate|up|down|gate_up)_exps|ffn_gate_inp)\.\w+|exp_probs_b(_vl)?(\.bias)?)$")
N_EXPERT, N_USED = 8, 3
TWO_EXPERTS = ("grovemoe",)
"""Architectures whose files have more tensors by the number of experts."""
UNSHARPENED = ("hrm_text",)
"""Whose computation goes round and round: larger queries make it chaotic."""
SEEDS = {"smallthinker": 12}
"""Of experts, where two of them were nearly as good for a token with the usual one."""


def ensure_archs(programs: Programs) -> Path:
    """The folder of NAME-dense.gguf and NAME-moe.gguf, F32 all; ten seconds when it is new."""
    facts = (str(programs.bin), *(Path(file).read_text(encoding="utf-8") for file in (__file__, edit_gguf.__file__)))

    def make(folder: Path) -> None:
        command = [programs.bin / "test-llama-archs", "-s", SEED, "-d", STDEV, "-o", folder]
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        for path in folder.glob("*.gguf"):
            _sharpen(path, path.with_suffix(".new"))
            path.with_suffix(".new").rename(path)

    return made(cache_dir("peer") / "archs", "\n".join(facts), make)


def _left_out(arch: str, name: str) -> bool:
    """Tensors that the reference writes and reads and does not compute with."""
    return name.endswith(UNREAD.get(arch, SCALES))


def _sharpen(path: Path, target: Path) -> None:
    """The file again, so that small faults show: queries and keys are larger, so that tokens attend to some and not all
    alike; there are N_EXPERT experts and a token uses N_USED, where the reference wrote 2 and 2."""
    arch, moe = path.stem.rsplit("-", 1)
    rng = np.random.default_rng(SEEDS.get(arch, 11))
    replace: dict[str, np.ndarray] = {}
    with GGUFFile.open(path) as file:
        more = moe == "moe" and arch not in TWO_EXPERTS and file.metadata[f"{arch}.expert_count"] == 2
        for name, info in file.tensors.items():
            ne = info.ne[: max(i + 1 for i in range(4) if info.ne[i] > 1 or not i)]
            if _left_out(arch, name):
                continue
            factor = 4 if QUERIES.search(name) else 12 if NORMS.search(name) else 1
            if factor > 1 and arch not in UNSHARPENED:
                replace[name] = factor * info.data.view(np.float32).reshape(ne[::-1])
            elif more and EXPERTS.search(name) and ne[-1] == 2:
                large = 2.0 if "gate_inp" in name or "probs" in name else 1.0
                replace[name] = large * rng.normal(0, float(STDEV), (N_EXPERT, *ne[-2::-1])).astype(np.float32)
        keys: dict[str, float] = {f"{arch}.expert_count": N_EXPERT, f"{arch}.expert_used_count": N_USED} if more else {}
        keys |= {f"{arch}.{key}": value for key, value in KEYS.get(arch, {}).items()}
    edit_gguf.edit(path, target, leave_out=partial(_left_out, arch), replace=replace, metadata=keys)


def ensure_driver(programs: Programs, source: Path = SOURCE) -> Path:
    """The compiled program. Raises PeerMissing."""
    facts = (str(programs.bin), cpu_key(), source.read_text(encoding="utf-8"), *OPTIONS)
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    folder = cache_dir("peer") / "archs"
    folder.mkdir(exist_ok=True)
    program = folder / f"driver-{key}"
    with locked(folder / "lock"):
        if not program.exists():
            fresh = folder / f"fresh.{os.getpid()}"
            includes = (f"-I{programs.source / 'include'}", f"-I{programs.source / 'ggml' / 'include'}")
            names = [str(programs.bin / name) for name in LIBRARIES]
            link = ("-o", str(fresh), *names, f"-Wl,-rpath,{programs.bin}")
            try:
                done = subprocess.run(("c++", *OPTIONS, *includes, str(source), *link), capture_output=True, text=True)
            except FileNotFoundError:
                raise PeerMissing("no C++ compiler on this machine, so llama.cpp cannot be asked for logits") from None
            assert done.returncode == 0, done.stderr[-4000:]
            fresh.rename(program)
    return program


class Script:
    """What the driver does, in order; see arch_driver.cpp."""

    def __init__(
        self, *, n_ctx: int = 256, n_ubatch: int = 256, n_seq_max: int = 1, unified: bool = False, flash: bool = False,
        swa_full: bool = False, embeddings: bool = False, pooling: int = -1,
    ) -> None:  # fmt: skip
        numbers = (n_ctx, n_ubatch, n_seq_max, unified, flash, swa_full, embeddings, pooling)
        self.lines = ["open " + " ".join(str(int(n)) for n in numbers)]

    def decode(self, tokens: Sequence[int], start: int = 0, seq: int = 0, *, outputs: bool = True) -> "Script":
        return self.batch([(token, start + i, seq, outputs) for i, token in enumerate(tokens)])

    def batch(self, rows: Sequence[tuple[int, int, int, bool]]) -> "Script":
        """(token, position, sequence, whether its logits are wanted) each."""
        return self._rows("decode", rows)

    def encode(self, rows: Sequence[tuple[int, int, int]]) -> "Script":
        """(token, position, sequence) each: the texts that the decoder answers, all of them anew."""
        return self._rows("encode", [(*row, True) for row in rows])

    def _rows(self, word: str, rows: Sequence[tuple[int, int, int, bool]]) -> "Script":
        numbers = " ".join(str(int(n)) for row in rows for n in row)
        self.lines.append(f"{word} {len(rows)} {numbers}")
        return self

    def do(self, word: str, *numbers: int) -> "Script":
        self.lines.append(" ".join([word, *(str(n) for n in numbers)]))
        return self


class ArchPeer:
    """llama.cpp, asked for the rows of logits (or embeddings) that a script's decodes give."""

    def __init__(self, programs: Programs) -> None:
        self.folder, self.driver = ensure_archs(programs), ensure_driver(programs)

    def files(self) -> dict[str, Path]:
        """By name: qwen3-dense, qwen3moe-moe, ..."""
        return {path.stem: path for path in sorted(self.folder.glob("*.gguf"))}

    def rows(self, model: Path, script: Script, endpoints: Sequence[str] = ()) -> np.ndarray:
        """(n, length). What depends on the file and the script alone is kept on disk; servers are asked each time."""
        if endpoints:
            return _parsed(self._run(model, script, endpoints))
        asked = json.dumps([self.driver.name, file_digest(model), script.lines])
        name = f"arch_driver-{hashlib.sha256(asked.encode()).hexdigest()[:40]}"
        return _parsed(kept(name, partial(self._run, model, script), "peer", "answers"))

    def _run(self, model: Path, script: Script, endpoints: Sequence[str] = ()) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "rows"
            command = [str(self.driver), str(model), str(out), *endpoints]
            done = subprocess.run(command, input="\n".join(script.lines), capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr[-4000:]
            return out.read_bytes()


def _parsed(data: bytes) -> np.ndarray:
    """Rows, each after its length (arch_driver.cpp: put)."""
    rows, at = [], 0
    while at < len(data):
        n = int.from_bytes(data[at : at + 4], "little")
        rows.append(np.frombuffer(data, np.float32, n, at + 4))
        at += 4 + 4 * n
    return np.array(rows)


def nmse(theirs: np.ndarray, ours: np.ndarray) -> float:
    """Squares of differences by squares of theirs (test-llama-archs.cpp: nmse)."""
    a, b = theirs.astype(np.float64), ours.astype(np.float64)
    return float(((a - b) ** 2).sum() / (a**2).sum())
