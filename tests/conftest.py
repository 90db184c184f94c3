"""Fixtures that every test may ask for. Puts tests/support on the path."""

import collections
import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _pytest.assertion import util as assertion_util
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

sys.path.insert(0, str(Path(__file__).parent / "support"))
import machine
from peer import Peer
from peer_archs import ArchPeer
from peer_build import PeerMissing, Say, ensure_peer, ensure_smollm2
from peer_programs import Programs, ensure_programs
from programs import Newest

if TYPE_CHECKING:
    from pyggml.backend.cuda.device import CudaDevice

# A busy machine is no failure: neither compiling a kernel nor drawing an example has to be quick. CI repeats itself.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
if hasattr(providers, "_get_local_constants"):
    # examples take numbers and texts from the sources of the modules that are loaded: other ones in each process, by the
    # files that it was given before, and mutants were found in seconds or in minutes
    providers._get_local_constants = providers.Constants

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so do processes that a script starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


HERE = Path(__file__).parent
OPTIONAL = {"server": "uvicorn"}
"""Folders of tests, and what their conftest.py cannot be read without: where it is not installed the folder is left out."""
collect_ignore = [folder for folder, needed in OPTIONAL.items() if importlib.util.find_spec(needed) is None]
LONG = (
    "e2e/test_against_llamacpp.py", "e2e/test_bit_identity.py", "rpc/test_archs_rpc.py", "e2e/test_cold_start.py",
    "server/test_reference.py", "e2e/test_real_models.py", "ops/test_supports.py", "ops/test_matmul.py",
    "model/test_arch_memory.py", "tokenizer/test_tokenizer_newest.py", "server/test_openapi.py", "server/test_page.py",
    "cuda/test_cubins.py", "model/test_archs.py", "test_benchmarks.py", "model/test_users_files.py",
    "rpc/test_unheard.py", "rpc/test_newest.py", "ops/test_rows.py", "tokenizer/test_tokenizer.py",
    "rpc/test_peers.py",
    "backend/test_pool_protocol.py", "cli/test_hub.py", "jit/test_compiling.py", "sampler/test_sampler_peer.py",
    "e2e/test_deaths.py", "memory/test_memory.py", "compat/test_own_tests.py", "chat/test_reply_peer.py",
    "jit/test_jit.py", "server/test_zoo.py", "server/test_page_text.py", "model/test_encoders.py",
    "e2e/test_three_commands.py", "cli/test_early_interrupts.py", "cli/test_context_shift.py",
    "simd/test_columns.py", "rpc/test_processes.py",
    "server/test_lost.py", "cuda/test_archs.py", "server/test_load.py", "e2e/test_documented_commands.py",
    "rpc/test_conformance_sample.py", "cuda/test_layer.py", "rpc/test_stock_server.py", "quants/test_bits.py",
    "backend/test_thread_pool.py", "grammar/test_grammar_peer.py", "runtime/test_batcher.py", "cli/test_golden.py",
    "cli/test_terminal.py", "chat/test_chat.py", "jit/test_kernel_cache.py",
    "peer/test_peer.py", "rpc/test_encoders_rpc.py", "backend/test_few_layers_archs.py", "cli/test_texts.py",
    "test_architecture.py",
)  # fmt: skip
"""Files that take longest, first: whoever took one at the end would keep the other processes waiting."""


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # pytest-xdist would put files with many tests first
    assertion_util.running_on_ci = lambda: False  # there it explains how megabytes differ, for minutes
    gone = [name for name in LONG if not (HERE / name).is_file()]
    assert not gone, f"tests/conftest.py names files that are not there: {gone}"


def pytest_collection_finish() -> None:
    machine.forget()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    machine.share(item.path.relative_to(HERE).parts[0] if item.path.is_relative_to(HERE) else "")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    yield
    if nextitem is None or nextitem.path != item.path:
        machine.forget()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[pytest.CollectReport]:
    """Each of pytest-xdist's processes begins elsewhere in a folder: what one has compiled the others find there."""
    report = yield
    if isinstance(collector, pytest.Directory) and report.result and "PYTEST_XDIST_WORKER" in os.environ:
        number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        first = len(report.result) * number // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        report.result = report.result[first:] + report.result[:first]
    return report


def pytest_report_header() -> list[str]:
    return [f"tests/{folder} is left out: {OPTIONAL[folder]} is not installed" for folder in collect_ignore]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files, the longest first; of the others those with most tests."""
    counts = collections.Counter(item.path for item in items)
    rank = {HERE / name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: (rank.get(item.path, len(LONG)), -counts[item.path], str(item.path)))


@contextlib.contextmanager
def or_skipped() -> Iterator[None]:
    """What cannot be had is a skip; with PYGGML_REQUIRE_PEER set (CI) a failure."""
    try:
        yield
    except PeerMissing as reason:
        if os.environ.get("PYGGML_REQUIRE_PEER"):
            raise
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Say:
    """Tells, in a line that is seen at once, what takes minutes."""
    plugins = request.config.pluginmanager
    reporter, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(text)

    return line


@pytest.fixture(scope="session")
def peer(say: Say) -> Iterator[Peer]:
    """The stock llama.cpp of RPC protocol 7.0.0; built on first use."""
    with or_skipped():
        made = Peer(*ensure_peer(say))
    yield made
    made.close()


@pytest.fixture(scope="session")
def newest(say: Say) -> Newest:
    """The programs of llama.cpp of RPC protocol 8.0.0; built on first use."""
    with or_skipped():
        return Newest(ensure_programs(say))


@pytest.fixture(scope="session")
def arch_peer(newest: Newest) -> ArchPeer:
    """That llama.cpp, asked for the logits of its tiny models."""
    return ArchPeer(Programs(newest.bin, newest.source))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct.Q4_1.gguf: the llama architecture, 30 layers, 49152 tokens."""
    with or_skipped():
        return ensure_smollm2()


@pytest.fixture(scope="session")
def card() -> "CudaDevice":
    """A real GPU. Tests that ask for more name it first: nothing is built or fetched where there is none."""
    from pyggml.backend.cuda import cuda_devices, why_no_cuda

    reason = why_no_cuda()
    if reason is not None:
        pytest.skip(reason)
    return cuda_devices()[0]
