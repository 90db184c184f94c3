"""Models by the names of repositories: which file is chosen, fetched once, found again without a network, and what is
said where it cannot be had. The hub is a stand-in on the loopback address."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stand_in import Hub, hub_stand_in
from pyggml_cli import bench, cli, hub, server
from serving import Client
from text_model import write_text_model

NAMES = [
    "README.md",
    "a-Q2_K.gguf",
    "a-Q4_K_M.gguf",
    "a-q8_0.gguf",
    "imatrix.gguf",
    "mmproj-a-Q4_K_M.gguf",
    "sub/mtp-a-Q4_K_M.gguf",
    "z-BF16-00001-of-00002.gguf",
    "z-BF16-00002-of-00002.gguf",
]


@pytest.mark.parametrize(
    ("names", "quant", "chosen"),
    [
        (NAMES, "", "a-Q4_K_M.gguf"),
        (NAMES, "q8_0", "a-q8_0.gguf"),
        (NAMES, "Q2_K", "a-Q2_K.gguf"),
        (NAMES, "BF16", "z-BF16-00001-of-00002.gguf"),
        (NAMES, "Q2", None),  # a QUANT is whole: behind it stands a point or a hyphen
        (NAMES, "Q5_K_M", None),
        ([name for name in NAMES if "Q4" not in name], "", "a-q8_0.gguf"),
        (["b-F16.gguf", "a-F16.gguf"], "", "a-F16.gguf"),
        (["Q8_0/a-00001-of-00002.gguf", "Q8_0/a-00002-of-00002.gguf"], "", "Q8_0/a-00001-of-00002.gguf"),
        (["mmproj.gguf", "README.md"], "", None),
    ],
)
def test_the_file_of_a_quant(names: list[str], quant: str, chosen: str | None) -> None:
    """As llama.cpp's find_best_model, but for the order, which is the names'."""
    assert hub.choose(names, quant) == chosen
    assert hub.choose(names[::-1], quant) == chosen


def test_the_choice_is_llama_cpps(sources: dict[str, str]) -> None:
    """The words that it goes by, read out of common/download.cpp."""
    text = sources["download.cpp"]
    body = text[text.index("static bool gguf_filename_is_model(") :]
    assert tuple(re.findall(r'find\("([^"]+)"\)', body[: body.index("\n}")])) == hub.NO_MODELS
    assert f'tags = {{"{hub.FIRST_CHOICES[0]}", "{hub.FIRST_CHOICES[1]}"}}' in text
    assert 't + "[.-]", std::regex::icase' in text


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Three models; that of BF16 is in several files."""
    made: Path = tmp_path_factory.mktemp("hub")
    write_text_model(made / "m-Q4_K_M.gguf", seed=1)
    write_text_model(made / "m-Q8_0.gguf", seed=2)
    (made / "BF16").mkdir()
    write_text_model(made / "BF16" / "m-BF16.gguf", seed=3, split=8)
    found = {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*.gguf")}
    assert len(found) == 2 + 3
    return {**found, "README.md": b"x", "mmproj-m-Q4_K_M.gguf": b"x"}


@pytest.fixture
def there(files: dict[str, bytes]) -> Iterator[Hub]:
    with hub_stand_in() as made:
        made.repos["some/model-GGUF"] = files
        yield made


def run(there: Hub, home: Path, *args: str, tool: str = "cli", **more: str) -> "subprocess.CompletedProcess[str]":
    """A command, and no traceback of it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LLAMA_ARG_"))}
    env = {**kept, **there.environment(home), **more}
    done = subprocess.run(
        [sys.executable, "-m", f"pyggml_cli.{tool}", *args], capture_output=True, text=True, timeout=300, env=env
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


COMPLETE = ("-p", "hello", "-n", "8", "--temp", "0", "--ignore-eos", "-no-cnv", "-c", "64")


def text_of(there: Hub, home: Path, *args: str, **more: str) -> str:
    done = run(there, home, *args, *COMPLETE, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fetched_once_and_found_again_without_the_hub(there: Hub, tmp_path: Path, files: dict[str, bytes]) -> None:
    own = {}
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf"):
        (tmp_path / name).write_bytes(files[name])
        own[name] = text_of(there, tmp_path / "other", "-m", str(tmp_path / name))
    assert there.asked == []
    assert len(set(own.values())) == 2
    home = tmp_path / "home"
    first = run(there, home, "-hf", "some/model-GGUF", *COMPLETE)
    assert first.stdout == own["m-Q4_K_M.gguf"]
    assert "fetching some/model-GGUF/m-Q4_K_M.gguf, once" in first.stderr
    assert text_of(there, home, "-hf", "some/model-GGUF:q8_0") == own["m-Q8_0.gguf"]
    again = run(there, home, "-hfr", "some/model-GGUF:Q8_0", *COMPLETE)
    assert (again.stdout, "fetching" in again.stderr) == (own["m-Q8_0.gguf"], False)
    fetched = [path for method, path, _ in there.asked if method == "GET" and "/resolve/" in path]
    assert sorted(path.rsplit("/", 1)[-1] for path in fetched) == ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]
    asked = len(there.asked)
    offline = text_of(there, home, "-hf", "some/model-GGUF:Q8_0", "--offline")
    assert (offline, len(there.asked)) == (own["m-Q8_0.gguf"], asked)
    gone = run(there, home, "-hf", "some/model-GGUF", *COMPLETE, HF_ENDPOINT="http://127.0.0.1:9")
    assert gone.stdout == own["m-Q4_K_M.gguf"]
    assert "note: some/model-GGUF: the hub cannot be reached, the file is the cache's" in gone.stderr
    listed = run(there, home, "-cl", HF_HUB_CACHE=str(home / "hub"), PYGGML_CACHE=str(tmp_path / "cache")).stdout
    assert listed == "number of models in cache: 2\n   1. some/model-GGUF:Q4_K_M\n   2. some/model-GGUF:Q8_0\n"


def test_all_files_of_a_split_model_and_one_that_is_named(there: Hub, tmp_path: Path) -> None:
    split = text_of(there, tmp_path, "-hf", "some/model-GGUF:BF16")
    fetched = [path for method, path, _ in there.asked if method == "GET" and "/resolve/" in path]
    assert [path.rsplit("/", 1)[-1] for path in fetched] == [f"m-BF16-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    named = text_of(there, tmp_path, "-hf", "some/model-GGUF", "-hff", "BF16/m-BF16-00002-of-00003.gguf", "--offline")
    assert named == split
    del there.repos["some/model-GGUF"]
    there.repos["some/model-GGUF"] = {"m-00001-of-00002.gguf": b"x"}
    cut = run(there, tmp_path / "other", "-hf", "some/model-GGUF", *COMPLETE)
    assert cut.stderr.endswith("m-00002-of-00002.gguf is not in some/model-GGUF, which has 1 files\n")


def test_tokens(there: Hub, tmp_path: Path) -> None:
    there.tokens["some/model-GGUF"] = "hf_secret"
    assert text_of(there, tmp_path / "1", "-hf", "some/model-GGUF", "--hf-token", "hf_secret")
    assert text_of(there, tmp_path / "2", "-hf", "some/model-GGUF", HF_TOKEN="hf_secret")
    none = run(there, tmp_path / "3", "-hf", "some/model-GGUF", *COMPLETE)
    assert none.returncode == 1 and "no such repository, or it is private and wants a token" in none.stderr
    assert {token for _, _, token in there.asked} == {"hf_secret", ""}


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["-hf", "some/nothing"], 1, "some/nothing: there is no such repository, or it is private"),
        (
            ["-hf", "some/model-GGUF:Q5_K_M"],
            1,
            "some/model-GGUF: no Q5_K_M there; there: BF16/m-BF16-00001-of-00003.gguf",
        ),
        (["-hf", "some/model-GGUF", "-hff", "x.gguf"], 1, "some/model-GGUF: no file x.gguf there; there: BF16/"),
        (["-hf", "some/texts"], 1, "some/texts: no GGUF file there"),
        (["-hf", "some/gated"], 1, "some/gated: m.gguf: who may have it is asked for a token"),
        (["-hf", "some/climbing"], 1, "some/climbing: no GGUF file there"),
        (["-hf", "some/broken"], 1, "some/broken: the hub answered with status 500"),
        (["-hf", "some/closed"], 1, "some/closed: m.gguf: the hub answered with status 410"),
        (
            ["-hf", "some/model-GGUF", "--offline"],
            1,
            "some/model-GGUF: it is not in the cache; without --offline it is fetched",
        ),
        (["-hf", "model"], 2, "must be USER/REPO or USER/REPO:QUANT"),
        (["-hf", "../../etc/passwd"], 2, "must be USER/REPO or USER/REPO:QUANT"),
        (["-hf", "a/b:../c"], 2, "must be USER/REPO or USER/REPO:QUANT"),
        (["-hf", "a/.."], 1, "a/..: "),
        (["-hff", "x.gguf"], 2, "--hf-file names a file of a repository: give that with -hf"),
        (["-hf", "a/b", "-m", "x.gguf"], 2, "-m names a file, -hf a repository: give one of them"),
    ],
)
def test_what_is_wrong_is_one_line(there: Hub, tmp_path: Path, args: list[str], code: int, told: str) -> None:
    there.repos |= {"some/texts": {"README.md": b"x"}, "some/gated": {"m.gguf": b"x"}, "some/broken": {"m.gguf": b"x"}}
    there.repos["some/climbing"] = {"../../../climbs.gguf": there.repos["some/model-GGUF"]["m-Q4_K_M.gguf"]}
    there.gated.add("some/gated")
    there.repos["some/closed"] = {"m.gguf": b"x"}
    there.broken |= {"some/broken": 500, "some/closed/resolve": 410}
    done = run(there, tmp_path, *args, *COMPLETE)
    assert (done.returncode, done.stdout) == (code, "")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("fetching ")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and told in lines[0]
    assert not list(tmp_path.parent.rglob("climbs.gguf"))


def test_a_file_that_is_cut_off_is_not_taken(there: Hub, tmp_path: Path, files: dict[str, bytes]) -> None:
    there.repos["some/model-GGUF"] = {"m.gguf": files["m-Q8_0.gguf"][:1000]}
    done = run(there, tmp_path, "-hf", "some/model-GGUF", *COMPLETE)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ")


def test_without_the_package_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert cli.main(["-hf", "a/b", "-p", "x"]) == 1
    assert capsys.readouterr().err == f"error: {hub.MISSING}\n"


def test_nothing_is_imported_where_nothing_is_fetched(tmp_path: Path) -> None:
    path = write_text_model(tmp_path / "m.gguf")
    code = f"import sys; from pyggml_cli import cli; cli.main(['-m', {str(path)!r}, '-p', 'x', '-n', '1', '-no-cnv']); print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("False\n"), done.stderr


def test_other_commands(there: Hub, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("hello world " * 40)
    model = ("-hf", "some/model-GGUF:Q8_0")
    perplexity = run(there, tmp_path, *model, "-f", str(tmp_path / "t.txt"), "-c", "32", tool="perplexity")
    assert perplexity.returncode == 0 and "PPL" in perplexity.stdout, perplexity.stderr
    embedding = run(there, tmp_path, *model, "-p", "hello", tool="embedding")
    assert embedding.returncode == 0 and embedding.stdout, embedding.stderr
    batched = run(there, tmp_path, *model, "-c", "64", "-npp", "4", "-ntg", "2", "-npl", "1", tool="batched_bench")
    assert batched.returncode == 0 and batched.stdout, batched.stderr
    both = "some/model-GGUF:Q8_0,some/model-GGUF"
    made = run(there, tmp_path, "-hf", both, "-p", "4", "-n", "0", "-r", "1", "-o", "csv", tool="bench")
    assert made.returncode == 0 and made.stdout.count("m-Q8_0.gguf") == made.stdout.count("m-Q4_K_M.gguf") == 1, (
        made.stderr
    )
    many = run(there, tmp_path, "-hff", "x.gguf", tool="bench")
    assert (many.returncode, "-hff names 1 files of 0 repositories" in many.stderr) == (2, True)
    draft = text_of(there, tmp_path, *model, "-hfd", "some/model-GGUF", "--offline")
    assert draft == text_of(there, tmp_path, *model, "--offline")


def test_the_server_has_the_name_that_was_given(there: Hub, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LLAMA_ARG_"))}
    argv = [sys.executable, "-m", "pyggml_cli.server", "--port", "0", "-hf", "some/model-GGUF:Q8_0", "-c", "64"]
    env = {**kept, **there.environment(tmp_path)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            client = Client(process.stdout.readline().split()[-1])
            assert [one["id"] for one in client.get("/v1/models")[1]["data"]] == ["some/model-GGUF:Q8_0"]
            assert client.ok("/v1/completions", {"prompt": "hello", "max_tokens": 4})["model"] == "some/model-GGUF:Q8_0"
        finally:
            process.terminate()
        assert process.wait(60) == 0


def test_the_same_flags_everywhere() -> None:
    for rows in (cli.ROWS, server.ROWS, [*bench.GENERAL, *bench.TESTS]):
        names = {name for row in rows for name in row.names}
        assert {"-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-hft", "--hf-token"} <= names
