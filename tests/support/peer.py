"""The stock llama.cpp as tests see it: oracle, client and server. Must not be loaded into the test's own process, save
for ggml's pure functions (`ggml`); everything else runs in processes of its own, through peer_worker.py. Requests that
need no server share one process (peer_process.py): starting Python and llama_cpp takes longer than most of them.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peer_build
from kept import file_digest, kept
from peer_process import WORKER, PeerProcess

from pyggml.cachedir import cache_dir
from pyggml.dtypes import GGMLType, row_size

# enum llama_ftype (llama.h): what a whole file is quantised to
FTYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_M": 12}
FTYPES |= {"Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32}

GREEDY = {"temp": 0.0, "repeat_penalty": 1.0}


def _address(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


class GGML:
    """ggml's pure functions, in this process. Values are float32 (rows, ne0), blocks are bytes (rows, row size)."""

    def __init__(self, lib_dir: Path) -> None:
        self.base = ctypes.CDLL(str(lib_dir / "libggml-base.so.0"))
        self.cpu = ctypes.CDLL(str(lib_dir / "libggml-cpu.so.0"))
        self.base.ggml_quantize_chunk.restype = ctypes.c_size_t
        size, pointer = ctypes.c_int64, ctypes.c_void_p
        self.base.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]

    def quantize_chunk(self, dtype: GGMLType, x: np.ndarray) -> np.ndarray:
        """What llama-quantize writes into files."""
        x, out = self._rows_out(dtype, x)
        done = self.base.ggml_quantize_chunk(dtype, _address(x), _address(out), 0, *x.shape, None)
        assert done == out.nbytes
        return out

    def quantize_row_ref(self, dtype: GGMLType, x: np.ndarray) -> np.ndarray:
        """quantize_row_*_ref; for F16 and BF16 the conversion of a row."""
        special = {"F16": "ggml_fp32_to_fp16_row", "BF16": "ggml_fp32_to_bf16_row_ref"}
        return self._convert(self.base, special.get(dtype.name, f"quantize_row_{_lower(dtype)}_ref"), dtype, x)

    def quantize_row(self, dtype: GGMLType, x: np.ndarray) -> np.ndarray:
        """The vectorised version that prepares activations; its bytes may differ from quantize_row_*_ref."""
        return self._convert(self.cpu, f"quantize_row_{_lower(dtype)}", dtype, x)

    def dequantize_row(self, dtype: GGMLType, blocks: np.ndarray, ne0: int) -> np.ndarray:
        """float32 (rows, ne0). ggml has no such function for Q8_1."""
        special = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}
        blocks = np.ascontiguousarray(blocks, np.uint8).reshape(-1, row_size(dtype, ne0))
        out = np.empty((blocks.shape[0], ne0), np.float32)
        function = self.base[special.get(dtype.name, f"dequantize_row_{_lower(dtype)}")]
        function(_address(blocks), _address(out), ctypes.c_int64(out.size))
        return out

    def _convert(self, library: ctypes.CDLL, name: str, dtype: GGMLType, x: np.ndarray) -> np.ndarray:
        x, out = self._rows_out(dtype, x)
        library[name](_address(x), _address(out), ctypes.c_int64(x.size))
        return out

    def _rows_out(self, dtype: GGMLType, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = np.atleast_2d(np.ascontiguousarray(x, np.float32))
        return x, np.zeros((x.shape[0], row_size(dtype, x.shape[1])), np.uint8)


def _lower(dtype: GGMLType) -> str:
    return dtype.name.lower().replace("_k", "_K")


class PeerServer:
    """A running stock server: `endpoint`, and `log()`, its output with one line for each command it served."""

    def __init__(self, endpoint: str, process: "subprocess.Popen[bytes]", output: Path) -> None:
        self.endpoint = endpoint
        self.process = process
        self._output = output

    def log(self) -> str:
        return self._output.read_text(errors="replace")

    def count(self, command: str) -> int:
        """How often a command was served: "alloc_buffer", "set_tensor", "graph_compute", "graph_recompute" ..."""
        return self.log().count(f"[{command}]")


class Peer:
    def __init__(self, site: Path, vendor: Path) -> None:
        self.site = site
        self.vendor = vendor
        self.lib_dir = site / "llama_cpp" / "lib"
        self._ggml: GGML | None = None
        self._process = PeerProcess(self.env)
        self.keep = True

    def close(self) -> None:
        """End what was started and still runs."""
        self._process.close()

    @property
    def ggml(self) -> GGML:
        if self._ggml is None:
            self._ggml = GGML(self.lib_dir)
        return self._ggml

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process that can `import llama_cpp`."""
        more = {"PYTHONPATH": str(self.site), "OMP_WAIT_POLICY": "passive", "GGML_NO_BACKTRACE": "1"}
        return {**os.environ, **more}

    def run(
        self,
        script: str | Path,
        *args: str,
        input: str | None = None,  # noqa: A002 - subprocess's word
        timeout: float = 600,
        env: dict[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a Python script (its text, or a Path) with the peer importable. A failure shows the end of its stderr."""
        what = [str(script)] if isinstance(script, Path) else ["-c", script]
        done = subprocess.run(
            [sys.executable, *what, *args],
            env={**self.env, **(env or {})},
            input=input,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
        assert done.returncode == 0, f"peer process ended with {done.returncode}:\n{done.stderr[-4000:]}"
        return done

    def quantize_model(self, src: Path, dst: Path | None, ftype: str, pure: bool = False) -> Path:
        """`src` requantised by llama_model_quantize; kept in the cache, and linked to `dst` when one is given.

        `ftype` is a key of FTYPES. `pure` gives every matrix the one type, the embeddings too.
        """
        models = cache_dir("peer") / "models"
        models.mkdir(exist_ok=True)
        made = models / f"{src.stem}-{src.stat().st_size}.{ftype}{'-pure' if pure else ''}.gguf"
        with peer_build.locked(models / "lock"):
            if not made.exists():
                fresh = made.with_suffix(f".{os.getpid()}")
                self._worker("quantize", fresh, src=str(src), ftype=FTYPES[ftype], pure=pure)
                fresh.rename(made)
        if dst is None:
            return made
        dst.symlink_to(made)
        return dst

    def logits(
        self,
        model: Path,
        token_ids: Sequence[int],
        *,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        flash_attn: bool = False,
        n_threads: int = 2,
        type_k: GGMLType = GGMLType.F16,
        type_v: GGMLType = GGMLType.F16,
        endpoints: Sequence[str] = (),
        tensor_split: Sequence[float] | None = None,
    ) -> np.ndarray:
        """float32 (tokens, n_vocab): the logits after each of `token_ids`, with nothing put before them."""
        context = {"n_ctx": n_ctx, "n_batch": n_batch, "n_ubatch": n_ubatch, "n_threads": n_threads}
        context |= {"flash_attn": flash_attn, "type_k": int(type_k), "type_v": int(type_v)}
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "logits.npy"
            tokens = [int(token) for token in token_ids]
            self._worker("logits", out, tokens=tokens, **_model(model, endpoints, tensor_split), **context)
            return np.asarray(np.load(out))

    def steps(
        self, model: Path, steps: Sequence[Sequence[Any]], *, endpoints: Sequence[str] = (),
        tensor_split: Sequence[float] | None = None, adapters: Sequence[Path] = (), **context: Any,
    ) -> np.ndarray:  # fmt: skip
        """float32 (decodes, n_vocab): the logits of the last token of each decode.

        Steps, all in one process, on one model: ("open", name, fields of llama_context_params), ("decode", name,
        tokens), ("shift", name, n_keep, n_discard), ("clear", name), ("free", name), ("adapt", name, [(number in
        `adapters`, scale)...]). `context` holds fields for all of them.
        """
        context = {"n_ctx": 1024, "n_batch": 1024, "n_threads": 2, "n_threads_batch": 2, "flash_attn_type": 0} | context
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "logits.npy"
            p = {"steps": list(steps), "context": context, **_model(model, endpoints, tensor_split)}
            if adapters:
                p["adapters"] = [str(path) for path in adapters]
            self._worker("steps", out, **p)
            return np.asarray(np.load(out))

    def endless(
        self, model: Path, tokens: Sequence[int], n_predict: int, n_keep: int, *, endpoints: Sequence[str] = (),
        **context: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """{"tokens", "n_shifts"}: greedy tokens after a prompt; a full context is shifted as the completion tool does it."""
        context = {"n_threads": 2, "n_threads_batch": 2, "flash_attn_type": 1} | context
        p = {"tokens": list(tokens), "n_predict": n_predict, "n_keep": n_keep, "context": context}
        return self._json("endless", **p, **_model(model, endpoints, None))

    def generate(
        self,
        model: Path,
        prompt: str | Sequence[int],
        n_predict: int = 32,
        *,
        sampling: dict[str, Any] = GREEDY,
        seed: int = 42,
        ignore_eos: bool = False,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        flash_attn: bool = False,
        n_threads: int = 2,
        type_k: GGMLType = GGMLType.F16,
        type_v: GGMLType = GGMLType.F16,
        endpoints: Sequence[str] = (),
        tensor_split: Sequence[float] | None = None,
    ) -> dict[str, Any]:
        """{"prompt_tokens", "tokens", "text", "log"}; `sampling` goes to llama_cpp's Llama.generate.

        A prompt given as text is tokenised with special tokens, and with a BOS only where the file asks for one.
        """
        context = {"n_ctx": n_ctx, "n_batch": n_batch, "n_ubatch": n_ubatch, "n_threads": n_threads}
        context |= {"flash_attn": flash_attn, "type_k": int(type_k), "type_v": int(type_v)}
        given = {"prompt": prompt, "tokens": None} if isinstance(prompt, str) else {"tokens": [int(t) for t in prompt]}
        given |= {"n_predict": n_predict, "sampling": sampling, "seed": seed, "ignore_eos": ignore_eos}
        return self._json("generate", **given, **_model(model, endpoints, tensor_split), **context)

    def rpc_generate(
        self, endpoints: Sequence[str], model: Path, prompt: str | Sequence[int], n_predict: int = 32, **options: Any
    ) -> dict[str, Any]:
        """`generate` by a stock client that puts every layer on the servers at `endpoints` (numeric IPv4:port).

        Asserts that llama.cpp placed weights on each of them: a registration that fails makes it run locally instead.
        """
        result = self.generate(model, prompt, n_predict, endpoints=endpoints, **options)
        for endpoint in endpoints:
            assert f"[{endpoint}] model buffer size" in result["log"], result["log"][-4000:]
        return result

    def tokenize(
        self, model: Path, texts: Sequence[str], *, add_special: bool = True, parse_special: bool = False
    ) -> list[list[int]]:
        """llama_tokenize of each text, by a model file or a vocabulary file."""
        options = {"add_special": add_special, "parse_special": parse_special}
        tokens: list[list[int]] = self._json("tokenize", model=str(model), texts=list(texts), **options)["result"]
        return tokens

    @contextlib.contextmanager
    def rpc_server(
        self,
        port: int | None = None,
        cache_dir: Path | None = None,
        n_threads: int = 2,
        n_devices: int = 1,
        debug: bool = True,
    ) -> Iterator[PeerServer]:
        """A stock server at 127.0.0.1 (a free port when none is given), ready to accept; killed at the end. Without
        `debug` it does not log the commands that it serves, and its threads wait as they do by default."""
        if port is None:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
        endpoint = f"127.0.0.1:{port}"
        p = {"endpoint": endpoint, "cache_dir": str(cache_dir) if cache_dir else None}
        p |= {"n_threads": n_threads, "n_devices": n_devices}
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "server.log"
            command = [sys.executable, str(WORKER), "serve", json.dumps(p)]
            env = {**self.env, "GGML_RPC_DEBUG": "1"} if debug else {**os.environ, "PYTHONPATH": self.env["PYTHONPATH"]}
            with (
                open(output, "wb") as log,
                subprocess.Popen(command, stdout=log, stderr=log, env=env) as process,
            ):
                server = PeerServer(endpoint, process, output)
                try:
                    _wait_until_listening(server, port)
                    yield server
                finally:
                    process.kill()

    def _worker(self, command: str, out: Path, **p: Any) -> str:
        """What the library logged. Servers stay registered with a process: whoever uses some gets one of its own.

        An answer that depends on nothing but the request is kept on disk.
        """
        asked = {**p, "out": str(out)}
        if p.get("endpoints"):
            return self.run(WORKER, command, json.dumps(asked)).stderr
        if command == "quantize" or not self.keep:
            return self._process.request(command, asked)

        def make() -> bytes:
            log = self._process.request(command, asked).encode()
            return struct.pack("<I", len(log)) + log + out.read_bytes()

        files = {"model": file_digest(Path(p["model"]))}
        if "adapters" in p:
            files["adapters"] = [file_digest(Path(path)) for path in p["adapters"]]
        answer = self.kept(WORKER, [command, {**p, **files}], make)
        (length,) = struct.unpack_from("<I", answer)
        out.write_bytes(answer[4 + length :])
        return answer[4 : 4 + length].decode()

    def kept(self, script: Path, asked: Any, make: Callable[[], bytes]) -> bytes:
        """What a script of the peer answers to `asked`, which says all that the answer depends on beside the script and
        the build; from an earlier run if it is the same."""
        key = json.dumps([self.site.parent.name, script.read_text(), asked])
        return kept(f"{script.stem}-{hashlib.sha256(key.encode()).hexdigest()[:40]}", make, "peer", "answers")

    def _json(self, command: str, **p: Any) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "result.json"
            log = self._worker(command, out, **p)
            result = json.loads(out.read_text(encoding="utf-8"))
        result = result if isinstance(result, dict) else {"result": result}
        return {**result, "log": log}


def _model(model: Path, endpoints: Sequence[str], tensor_split: Sequence[float] | None) -> dict[str, Any]:
    split = list(tensor_split) if tensor_split else None
    return {"model": str(model), "endpoints": list(endpoints), "n_gpu_layers": 99, "tensor_split": split}


def _wait_until_listening(server: PeerServer, port: int) -> None:
    """Looks for the listening socket in the kernel's table: a trial connection would occupy the server."""
    wanted = f"0100007F:{port:04X} 00000000:0000 0A"
    deadline = time.monotonic() + 60
    while wanted not in Path("/proc/net/tcp").read_text():
        assert server.process.poll() is None, f"stock server ended:\n{server.log()[-4000:]}"
        assert time.monotonic() < deadline, f"stock server does not listen at {server.endpoint}:\n{server.log()}"
        time.sleep(0.05)
