"""llama-server's own tests (tools/server/tests/unit of its source distribution), run against llama-server and against pyggml-server.

`python tests/support/peer_server_tests.py [-k EXPRESSION] [FILE ...]` prints how many passed, failed and were refused, file by
file, and what failed; `--markdown` docs/server_tests.md. Nothing of those tests is kept here: a copy is made in a temporary folder,
where comparisons with what the real models say become comparisons with what llama-server says of our files of the same shapes
(peer_server_models.py, peer_server_answers.py).
"""

import argparse
import ast
import contextlib
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forked_servers import CLIENT
from kept import kept
from peer_programs import Programs, ensure_programs
from peer_server_models import DOWNLOADS, FILES, ensure_models
from programs import Newest
from waiting import until

HERE = Path(__file__).resolve().parent
PLUGIN = HERE / "peer_server_answers.py"
LIMIT = 900  # seconds for all tests of one server

REFUSED: Mapping[str, str] = {
    r"test_(vision_api|mcp_servers|tools_builtin|proxy|stream)\.py": "images, agents",
    r"test_router\.py::test_router_(remote_preset|download_model|delete_model)": "models are fetched by the hub's own tools, not by requests",
    r"test_systemone\.py": "classifiers of a kind of their own",
    r"test_slot_save\.py::.*(multimodal|image|media)": "images",
    r"test_compat_anthropic\.py::test_anthropic_(vision|tool_result_with_image)": "images are refused with 400, there with 500",
    r"test_security\.py::test_(cors_proxy|local_media|cors_origins_default)": "images, agents",
    r"test_security\.py::test_cors_options": "pages of other origins are not allowed unless --cors-origins names them",
    r"test_compat_anthropic\.py::test_anthropic_empty_messages": "a request without messages is refused, as by Anthropic",
    r"test_chat_completion\[.*This is not a chat template": "a template without a variable is taken for a wrong name",
    r"test_slot_save\.py::.*(legacy|damaged)": "files of slots are of pyggml's own form, with a digest",
    r"test_slot_save\.py::test_slot_restore_(preserves|checkpoints)": "with a window of 32 tokens llama-server fails them too",
    r"test_compat_oai_responses\.py::.*telemetry": "an answer that is cut off is response.incomplete, as OpenAI has it",
    r"test_speculative\.py::test_(synth|with_and_without)": "guesses that are accepted at random, for benchmarks",
}
"""Which tests are of something that pyggml-server does not offer or does otherwise, and what that is."""

ANYHOW = "test_no_ui"
"""Tests that count although llama-server as we build it fails them: it has no page."""

CONFTEST = """
import pytest
from utils import *

@pytest.fixture(autouse=True)
def stop_server_after_each_test():
    yield
    for server in set(server_instances):
        server.stop()
"""
CHANGE = """
files, folder = {files!r}, {folder!r}
found, out, skip = {{}}, [], False
for flag, value in zip(argv, [*argv[1:], ""]):
    if skip:
        skip = False
    elif flag in ("--hf-repo", "--hf-file", "--hf-repo-draft"):
        found[flag], skip = value, True
    elif flag != "--offline":
        out.append(flag)
for flag, name in (("--hf-repo", "--model"), ("--hf-repo-draft", "--model-draft")):
    if flag in found:
        key = found[flag] + "|" + (found.get("--hf-file", "") if flag == "--hf-repo" else "")
        if key not in files:
            sys.exit("no such file: " + key)
        out += [name, os.path.join(folder, files[key])]
for flag, value in (("-ctk", "f32"), ("-ctv", "f32"), ("-fa", "off"), ("--threads", "1")):
    if flag not in out:
        out += [flag, value]
argv = out + {more!r}
"""
"""Python that puts our files in the place of those of a hub. Both servers compute attention in F32: their logits are then the same
to 1e-5, and so is what is drawn from them with the same seed."""
SEVERAL = """
if not {"--model", "--models-preset", "--models-dir"} & set(argv):
    argv.append("--models-cache")
argv.append("--offline")
"""
"""A server that names no model has those of the caches; with pyggml-server they are asked for."""
STARTS = """#!{python} -IS
import os, sys
argv = sys.argv[1:]
{change}
os.execv({command}[0], [*{command}, *argv])
"""


def refused(test: str) -> str | None:
    """Why a test is not for pyggml-server; None: it is."""
    return next((why for pattern, why in REFUSED.items() if re.search(pattern, test)), None)


class _Comparisons(ast.NodeTransformer):
    """`assert a == b` becomes `assert same(line, a, b)`."""

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        test = node.test
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
            line = ast.Constant(node.lineno)
            node.test = ast.Call(ast.Name("same", ast.Load()), [line, test.left, test.comparators[0]], [])
            node.msg = None
        return node


def _copied(source: Path, folder: Path) -> Path:
    """The tests of `source`, in a tree like its own, with the changes that this file's first lines tell."""
    theirs, ours = source / "tools/server/tests", folder / "tools/server/tests"
    (ours / "unit").mkdir(parents=True)
    (folder / "models").symlink_to(source / "models")
    for path in sorted(theirs.glob("unit/*.py")):
        tree = _Comparisons().visit(ast.parse(path.read_text()))
        (ours / "unit" / path.name).write_text(ast.unparse(ast.fix_missing_locations(tree)))
    utils = (
        (theirs / "utils.py").read_text().replace("dict(response.headers)", "response.headers")
    )  # whose names have no case
    (ours / "utils.py").write_text(utils + "\nfrom peer_server_answers import match_regex, same\n")
    (ours / "pytest.ini").write_text((theirs / "pytest.ini").read_text())
    (ours / "conftest.py").write_text(CONFTEST)
    (ours / "peer_server_answers.py").write_text(PLUGIN.read_text())
    (ours / "wget.py").write_text("def download(url, out):\n    raise OSError(url)\n")
    (ours / "tmp").mkdir()
    for name in DOWNLOADS:
        (ours / "tmp" / name).symlink_to(ensure_models() / name)
    return ours


def _fill_cache(folder: Path) -> None:
    """Our files in the place of repositories that were fetched before."""
    for (repository, file), name in FILES.items():
        if file:
            continue
        repository, _, quant = repository.partition(":")
        repo = folder / f"models--{repository.replace('/', '--')}"
        commit = hashlib.sha1(repository.encode()).hexdigest()
        (repo / "refs").mkdir(parents=True)
        (repo / "refs/main").write_text(commit)
        (repo / "snapshots" / commit).mkdir(parents=True)
        model = f"{repository.partition('/')[2].removesuffix('-GGUF')}-{quant or 'F32'}.gguf"
        (repo / "snapshots" / commit / model).symlink_to(ensure_models() / name)


@contextmanager
def _program(folder: Path, command: Sequence[str] | None, server_flags: Sequence[str]) -> Iterator[Path]:
    """What starts the server: this command, or a fork of one process that has imported pyggml-server."""
    path, link = folder / "server", folder / "socket"
    files = {f"{repository}|{file}": name for (repository, file), name in FILES.items()}
    change = CHANGE.format(files=files, folder=str(ensure_models()), more=list(server_flags))
    if command is not None:
        path.write_text(STARTS.format(python=sys.executable, change=change, command=list(command)))
        path.chmod(0o755)
        yield path
        return
    path.write_text(CLIENT.format(python=sys.executable, change=change + SEVERAL, path=str(link)))
    path.chmod(0o755)
    alone = {
        **os.environ,
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }  # a process that forks must have no threads
    process = subprocess.Popen(
        [sys.executable, str(HERE / "forked_servers.py"), str(link)], stdin=subprocess.PIPE, env=alone
    )
    try:
        until(link.exists)
        yield path
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.terminate()
        process.wait(10)


@contextmanager
def _run(
    programs: Programs,
    mode: str,
    answers: bytes,
    command: Sequence[str] | None,
    tests: Sequence[str],
    more: Sequence[str],
    sample: bool = False,
    server_flags: Sequence[str] = (),
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Run them: what was noted, and how each test ended."""
    with tempfile.TemporaryDirectory(prefix="server-tests-") as name:
        folder = Path(name)
        place = _copied(programs.source, folder)
        _fill_cache(place / "tmp")
        noted, report = folder / "answers", folder / "report"
        noted.write_bytes(answers)
        env = {**os.environ, "ANSWERS_MODE": mode, "ANSWERS_FILE": str(noted), "ANSWERS_REPORT": str(report)}
        env["ANSWERS_REFUSED"] = json.dumps([*REFUSED])
        env["ANSWERS_SAMPLE"] = "1" if sample else ""
        env |= {"LLAMA_CACHE": "tmp", "PYTHONPATH": str(place)}
        argv = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "peer_server_answers",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow",
        ]
        with open(folder / "log", "w") as log, _program(folder, command, server_flags) as program:
            env["LLAMA_SERVER_BIN_PATH"] = str(program)
            subprocess.run(
                [*argv, *more, *tests], cwd=place, env=env, stdout=log, stderr=log, timeout=LIMIT, check=False
            )
        ended = _joined(report)
        if not ended:
            raise AssertionError((folder / "log").read_text()[-3000:])
        if keep := os.environ.get("SERVER_TESTS_LOG"):
            Path(keep).write_text((folder / "log").read_text())
        yield _joined(noted), ended


def _joined(path: Path) -> dict[str, Any]:
    """What the processes wrote beside this file; of a test that one has refused and another not seen, that."""
    found: dict[str, Any] = {}
    for part in sorted(path.parent.glob(f"{path.name}.*.json")):
        found |= json.loads(part.read_text())
    return found


def _files(programs: Programs) -> list[str]:
    return [
        f"unit/{p.name}"
        for p in sorted((programs.source / "tools/server/tests/unit").glob("*.py"))
        if not refused(p.name)
    ]


def reference_answers(programs: Programs) -> bytes:
    """What llama-server says of our files where that is not what the tests have: JSON, kept once asked; and how its own tests end."""
    sources = [PLUGIN, HERE / "peer_server_models.py", programs.bin / "llama-server"]
    digest = hashlib.sha256((inspect.getsource(_Comparisons) + inspect.getsource(_copied) + CHANGE).encode())
    for path in sources:
        digest.update(hashlib.sha256(path.read_bytes()).digest())

    def ask() -> bytes:
        command = [str(programs.bin / "llama-server"), "--no-warmup"]
        with _run(programs, "record", b"{}", command, _files(programs), ("-n", "2", "--durations=25")) as (
            noted,
            ended,
        ):
            return json.dumps({"answers": noted, "ended": ended}).encode()

    return kept(f"server-tests-{digest.hexdigest()[:24]}", ask, "peer", "answers")


def run(
    programs: Programs,
    tests: Sequence[str] = (),
    more: Sequence[str] = (),
    jobs: int = 1,
    sample: bool = False,
    server_flags: Sequence[str] = (),
) -> dict[str, tuple[str, str]]:
    """How each test ended against pyggml-server: passed, failed, skipped, or refused, and why.

    A test that llama-server itself fails with our files is not run: it tells nothing. `sample`: each function with its first
    arguments alone. `server_flags`: further ones of pyggml-server.
    """
    known = json.loads(reference_answers(programs))
    answers = json.dumps(known["answers"]).encode()
    left = [test for test, (ended, _) in known["ended"].items() if ended == "failed" and not re.search(ANYHOW, test)]
    away = [flag for test in left for flag in ("--deselect", test)]
    spread = ["-n", str(jobs)] if jobs > 1 else []
    flags = [*away, *spread, *more]
    with _run(programs, "replay", answers, None, tests or _files(programs), flags, sample, server_flags) as (_, found):
        return {test: (ended, refused(test) or why) for test, (ended, why) in found.items()}


def table(found: Mapping[str, tuple[str, str]]) -> str:
    """Passed, failed, refused and skipped of each file, as Markdown."""
    counts: dict[str, Counter[str]] = {}
    for test, (ended, _) in found.items():
        counts.setdefault(Path(test.partition("::")[0]).name, Counter())[ended] += 1
    kinds = ("passed", "failed", "refused", "skipped")
    lines = [f"| file | {' | '.join(kinds)} |", "| --- | --- | --- | --- | --- |"]
    for name, of in sorted(counts.items()):
        lines.append(f"| {name} | {' | '.join(str(of[kind]) for kind in kinds)} |")
    total = sum(counts.values(), Counter[str]())
    return "\n".join([*lines, f"| all | {' | '.join(str(total[kind]) for kind in kinds)} |"])


def document(found: Mapping[str, tuple[str, str]], files: Sequence[str]) -> str:
    """docs/server_tests.md: the table, and what is left out: `files` as a whole."""
    away = Counter(why for ended, why in found.values() if ended == "refused")
    left = [f"| {why} | {n} |" for why, n in away.items()]
    return "\n".join([
        "# llama-server's own tests",
        "",
        "pyggml-server is run against the tests that llama.cpp b11549 has of its server (tools/server/tests/unit), by",
        "`python tests/support/peer_server_tests.py -n 2`, which takes two to six minutes; the suite runs a sample of them. The models",
        "are files of the same shapes with random weights; where a test compares with what the real model says, or counts, it is",
        "compared with what llama-server says of the same file. This page is what `--markdown` prints.",
        "",
        table(found),
        "",
        "Skipped are those that the reference skips itself. Not run are its slow tests, which download models, and the files of what is not",
        f"offered: {', '.join(f'`{name}`' for name in files)}. Refused are single tests:",
        "",
        "| why | tests |",
        "| --- | --- |",
        *left,
        "",
        "On a machine whose cores others keep busy a test with a time limit may fail (a start within 60 s, a slot that is busy after 0.1 s);"
        " alone each of them passes.",
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", help="unit/test_*.py, perhaps with ::test (all)")
    parser.add_argument("-k", default="", help="as pytest has it")
    parser.add_argument("--sample", action="store_true", help="each function with its first arguments alone")
    parser.add_argument("--rpc", action="store_true", help="with the layers on two stock RPC servers")
    parser.add_argument("--markdown", action="store_true", help="docs/server_tests.md")
    parser.add_argument("-n", type=int, default=1, help="tests at once (1)")
    options = parser.parse_args()
    more = ["-k", options.k] if options.k else []
    with contextlib.ExitStack() as stack:
        flags: list[str] = []
        if options.rpc:
            newest = Newest(ensure_programs())
            servers = [stack.enter_context(newest.rpc_server()) for _ in range(2)]
            flags = ["--rpc", ",".join(server.endpoint for server in servers), "-ngl", "99"]
        found = run(ensure_programs(), options.files, more, options.n, options.sample, flags)
    if options.markdown:
        unit = ensure_programs().source / "tools/server/tests/unit"
        print(document(found, sorted(path.name for path in unit.glob("*.py") if refused(path.name))))
        return 0
    for test, (ended, why) in found.items():
        if ended == "failed":
            print(f"{test}\n    {why}")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
