"""The command with a file of presets and with the caches: which models it has, and that each is loaded as its section says."""

import os
import shutil
from pathlib import Path

import pytest
from served_process import running
from text_model import write_text_model

COMMIT = "0123456789abcdef" * 2 + "01234567"
BODY = {"prompt": "hello", "max_tokens": 8, "ignore_eos": True}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The hub's folder, with org/tiny:Q8_0 in it."""
    base = tmp_path / "hub" / "models--org--tiny"
    snapshot = base / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text(COMMIT)
    write_text_model(snapshot / "tiny-Q8_0.gguf", n_ctx=1024, seed=7)
    return tmp_path / "hub"


def test_presets_and_cached_models(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_text_model(tmp_path / "own.gguf", n_ctx=1024, seed=8)
    monkeypatch.setenv("LLAMA_CACHE", str(cache))
    ini = tmp_path / "models.ini"
    text = (
        "[*]\nc = 512\nnp = 2\nport = 1\n[org/tiny:q8_0]\nnp = 1\nalias = small\nload-on-startup = on\n"
        f"[own]\nmodel = {tmp_path}/own.gguf\nn-predict = 3\n[twice]\nhf-repo = org/tiny:Q8_0\noffline = on\n"
    )
    ini.write_text(text)
    with running("--models-preset", str(ini)) as (_, client):
        listed = {one["id"]: one for one in client.get("/v1/models")[1]["data"]}
        assert {name: one["source"] for name, one in listed.items()} == {
            "org/tiny:Q8_0": "cache",
            "own": "preset",
            "twice": "preset",
        }
        assert listed["org/tiny:Q8_0"]["aliases"] == ["small"]
        assert len(client.get("/slots?model=small")[1]) == 1
        assert client.ok("/v1/completions", {**BODY, "model": "small"})["model"] == "org/tiny:Q8_0"
        own = client.ok("/v1/completions", {"prompt": "hello", "ignore_eos": True, "model": "own"})
        assert own["usage"]["completion_tokens"] == 3
        slots = client.get("/slots?model=own")[1]
        assert (len(slots), slots[0]["n_ctx"]) == (2, 256)
        ini.write_text(text + "dedup-cache-models = on\n[more]\nmodel = nothing.gguf\n")
        names = {one["id"] for one in client.get("/v1/models?reload=1")[1]["data"]}
        assert names == {"own", "twice", "more"}
        assert client.ok("/v1/completions", {**BODY, "model": "small"}), "hidden, but there"
        told = client.post("/v1/completions", {**BODY, "model": "more"})[1]["error"]["message"]
        assert told.startswith("model 'more' cannot be loaded: ") and str(tmp_path) not in told
        ini.write_text("[*")
        assert client.get("/v1/models?reload=1")[0] == 500
        assert {one["id"] for one in client.get("/v1/models")[1]["data"]} == names
    said = capfd.readouterr().err
    assert "[*]: port makes no difference" in said and f"{ini}, the caches: 3 models" in said


def test_the_caches_alone(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from pyggml_cli import server

    monkeypatch.setenv("LLAMA_CACHE", str(cache))
    with running("--models-cache", "-c", "512") as (_, client):
        assert client.ok("/v1/completions", {**BODY, "model": "org/tiny:Q8_0"})["choices"][0]["text"]
    shutil.rmtree(cache)
    os.mkdir(cache)
    assert server.main(["--models-cache"]) == 2
    assert "the caches: there is no model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--models-preset", "gone.ini"], "gone.ini"),
        (["--models-preset", "two.ini", "--models-max", "1"], "2 models have load-on-startup, and --models-max is 1"),
        (["--models-preset", "two.ini", "-m", "x"], "--models-preset serves several models"),
        (["--models-cache", "--sleep-idle-seconds", "3"], "--sleep-idle-seconds: of one model, not of --models-cache"),
    ],
)
def test_flags_that_contradict(
    flags: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyggml_cli import server

    section = "[{0}]\nmodel = {0}.gguf\nload-on-startup = 1\n"
    (tmp_path / "two.ini").write_text(section.format("a") + section.format("b"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path))
    assert server.main(flags) != 0
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said
