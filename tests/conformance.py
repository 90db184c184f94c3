"""The reference's own op tests, run by its own RPC client against our server: passed, failed and refused of each op.

    python tests/conformance.py                              every op of language models
    python tests/conformance.py SET_ROWS CPY -p type_src=f16  some of them, cases that match a regular expression
    python tests/conformance.py --sample 5                   a few cases of each, always the same

Only cases that ggml's CPU backend supports are run: its results are what ours are compared with, within the tests' own
limits. Exit code 0 when all passed. Owns the table and the choice of cases. PYTHONPATH decides which sources the server
runs; several of these programs may run at once.
"""

import argparse
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))

from conformance_run import SILENCE, Case, End, OtherServer, Outcome, OwnServer, all_cases, run, sample

DOCUMENT = Path(__file__).parents[1] / "docs" / "conformance.md"
ROW = re.compile(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \|$", re.MULTILINE)

LANGUAGE_MODEL_OPS = """
    DUP ADD ADD_ID ADD1 ACC SUB MUL DIV SQR SQRT LOG SIN COS SUM SUM_ROWS CUMSUM MEAN ARGMAX COUNT_EQUAL REPEAT CONCAT
    NORM RMS_NORM L2_NORM GROUP_NORM MUL_MAT MUL_MAT_ID OUT_PROD SCALE SET CPY CONT GET_ROWS SET_ROWS DIAG
    DIAG_MASK_INF DIAG_MASK_ZERO SOFT_MAX ROPE ROPE_BACK CLAMP ARGSORT TOP_K PAD ROLL ARANGE TRI FILL LEAKY_RELU
    FLASH_ATTN_EXT SSM_CONV SSM_SCAN RWKV_WKV6 RWKV_WKV7 GATED_LINEAR_ATTN GATED_DELTA_NET SOLVE_TRI TIMESTEP_EMBEDDING
    LIGHTNING_INDEXER DSV4_HC_COMB DSV4_HC_PRE DSV4_HC_POST POOL_1D POOL_2D
    ABS SGN NEG STEP TANH ELU RELU SIGMOID GELU GELU_QUICK SILU HARDSWISH HARDSIGMOID EXP EXPM1 SOFTPLUS GELU_ERF
    XIELU FLOOR CEIL ROUND TRUNC REGLU GEGLU SWIGLU SWIGLU_OAI GEGLU_ERF GEGLU_QUICK SWIGLU_CLAMP
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])  # type: ignore[union-attr]
    parser.add_argument("ops", nargs="*", help="names as the tests print them (all of language models)")
    parser.add_argument("-p", "--params", metavar="REGEX", help="only cases whose parameters contain this")
    parser.add_argument("--sample", type=int, metavar="N", help="at most N cases of each op")
    parser.add_argument("--all", action="store_true", help="also ops and fused groups beyond those of language models")
    parser.add_argument("--list", action="store_true", help="print the cases and run nothing")
    parser.add_argument("--endpoint", metavar="HOST:PORT", help="a server that runs already")
    parser.add_argument(
        "--protocol",
        choices=("7", "8"),
        default="7",
        help="of the reference: 7.0.0 or 8.0.0, which has newer tests (7)",
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of the server (2)")
    parser.add_argument(
        "--silence",
        type=float,
        default=SILENCE,
        metavar="S",
        help="seconds a case may take: some quantise 1 G weights (300)",
    )
    parser.add_argument("--slowest", type=int, default=0, metavar="N", help="also print the N slowest cases")
    parser.add_argument(
        "--document", action="store_true", help="write the counts of whole ops into docs/conformance.md"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print every case as it ends")
    flags = parser.parse_args(argv)
    if flags.document and (flags.sample or flags.params or flags.protocol != "7"):
        parser.error("--document needs all cases of an op, those of 7.0.0")
    return flags


def choose(flags: argparse.Namespace) -> list[Case]:
    cases = all_cases(flags.protocol)
    unknown = sorted(set(flags.ops) - {c.op for c in cases})
    if unknown:
        raise SystemExit(f"the reference tests no {', '.join(unknown)}")
    if flags.ops:
        cases = [c for c in cases if c.op in flags.ops]
    elif not flags.all:
        cases = [c for c in cases if c.op in LANGUAGE_MODEL_OPS.split()]
    if flags.params:
        cases = [c for c in cases if re.search(flags.params, c.params)]
    cases = [c for c in cases if c.supported]
    cases.sort(key=lambda c: c.op)
    return sample(cases, flags.sample) if flags.sample else cases


def table(outcomes: Sequence[Outcome]) -> str:
    counts = Counter((o.case.op, o.end) for o in outcomes)
    counts += Counter(("total", o.end) for o in outcomes)
    seconds = Counter[str]()
    for o in outcomes:
        seconds[o.case.op] += o.seconds  # type: ignore[assignment]
        seconds["total"] += o.seconds  # type: ignore[assignment]
    head = f"{'op':28}{'passed':>8}{'failed':>8}{'refused':>8}{'seconds':>9}"
    ops = [*sorted({o.case.op for o in outcomes}), "total"]
    rows = (f"{op:28}" + "".join(f"{counts[op, end]:8}" for end in End) + f"{seconds[op]:9.1f}" for op in ops)
    return "\n".join((head, *rows))


def document(outcomes: Sequence[Outcome], text: str) -> str:
    """`text` of docs/conformance.md with the rows of these ops in place of its own, and all of them added up."""
    rows = {op: [int(n) for n in counts] for op, *counts in ROW.findall(text) if op != "all"}
    counts = Counter((o.case.op, o.end) for o in outcomes)
    rows |= {op: [counts[op, end] for end in End] for op in {o.case.op for o in outcomes}}
    rows = dict(sorted(rows.items())) | {"all": [sum(column) for column in zip(*rows.values(), strict=True)]}
    table = [" | ".join(["| op", *(end.value for end in End)]) + " |", "| --- | --- | --- | --- |"]
    table += [" | ".join([f"| {op}", *map(str, row)]) + " |" for op, row in rows.items()]
    return text.partition("| op |")[0] + "\n".join(table) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    flags = parse(argv)
    cases = choose(flags)
    if flags.list:
        print("\n".join(map(str, cases)))
        return 0
    if not cases:
        raise SystemExit("no such case")
    for sent in (signal.SIGINT, signal.SIGTERM):  # also where a script has it ignored
        signal.signal(sent, signal.default_int_handler)
    outcomes: list[Outcome] = []
    server = OtherServer(flags.endpoint, flags.protocol) if flags.endpoint else OwnServer(flags.threads, flags.protocol)
    began = time.monotonic()
    try:
        for outcome in run(cases, server, flags.silence):
            outcomes.append(outcome)
            if flags.verbose or outcome.end is End.FAILED:
                print(f"{outcome.end.value}: {outcome.case}: {outcome.why}", flush=True)
    except KeyboardInterrupt:
        print(f"interrupted after {len(outcomes)} of {len(cases)} cases", flush=True)
    finally:
        server.close()
    if not flags.verbose:
        for outcome in outcomes:
            if outcome.end is End.REFUSED:
                print(f"refused: {outcome.case}: {outcome.why}")
    for outcome in sorted(outcomes, key=lambda o: -o.seconds)[: flags.slowest]:
        print(f"{outcome.seconds:.2f} s: {outcome.case}")
    print(f"\n{table(outcomes)}\n\n{len(outcomes)} cases in {time.monotonic() - began:.0f} s")
    if flags.document and len(outcomes) == len(cases):
        DOCUMENT.write_text(document(outcomes, DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0 if len(outcomes) == len(cases) and all(o.end is End.PASSED for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
