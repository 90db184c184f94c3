"""Several models behind one address: listed, loaded when they are named, unloaded when others need room, in their turn."""

import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zoos
from mutants import Mutant, assert_caught
from pyggml_server import models
from pyggml_server.models import Found, is_model, listed_in
from pyggml_server.zoo import Zoo
from served_process import running
from text_model import write_text_model
from zoos import BODY, statuses, text, until, write_models, zoo

from pyggml.errors import GGUFError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def test_a_folders_models(folder: Path) -> None:
    assert {name: found.path for name, found in listed_in(folder).items()} == {
        "a": folder / "a.gguf",
        "b": folder / "b.gguf",
        "broken": folder / "broken.gguf",
        "c": folder / "c" / "weights.gguf",
    }


def test_of_a_split_model_the_first_part_is_listed(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for i in (2, 1, 3):
        (tmp_path / "m" / f"m-0000{i}-of-00003.gguf").write_bytes(b"x")
    assert listed_in(tmp_path) == {"m": Found(tmp_path / "m" / "m-00001-of-00003.gguf")}


def test_odd_names_are_listed_and_hide_no_other(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes that are no UTF-8, which JSON cannot hold; no name at all; what is no file, and folders that cannot be read."""
    made = (folder / "a.gguf").read_bytes()
    (tmp_path / "a").mkdir()
    for name in (b"caf\xe9.gguf", "\u65e5 \n'.gguf".encode(), b"..a.gguf", b".gguf", b"a/\xff.gguf"):
        (tmp_path / os.fsdecode(name)).write_bytes(made)
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "fifo.gguf")
    with zoo(tmp_path) as (client, _):
        assert set(statuses(client)) == {"caf\ufffd", "\u65e5 \n'", "..a", "a"}
        for name in statuses(client):
            assert text(client, name)

    def unreadable(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "b").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "is_model", lambda path: unreadable(path) if path.parent.name == "a" else is_model(path))
        assert set(listed_in(tmp_path)) == {"caf\ufffd", "\u65e5 \n'", "..a"}
    assert "its models are left out: Permission denied" in caplog.text


def test_requests_go_to_the_model_that_they_name(folder: Path) -> None:
    with zoo(folder, most=3) as (client, opened):
        assert statuses(client) == dict.fromkeys(("a", "b", "broken", "c"), "unloaded")
        texts = {name: text(client, name) for name in "abc"}
        assert len(set(texts.values())) == 3
        assert {name: text(client, name) for name in "cab"} == texts
        assert opened.events == ["+a", "+b", "+c"]
        assert statuses(client) == {"a": "loaded", "b": "loaded", "broken": "unloaded", "c": "loaded"}
        assert client.get("/props?model=b")[1]["model_alias"] == "b"
        router = client.get("/props")[1]
        assert (router["role"], router["max_instances"], router["models_autoload"]) == ("router", 3, True)
        events = client.stream("/v1/completions", {**BODY, "model": "b"})
        assert "".join(c["text"] for e in events for c in e["choices"]) == texts["b"]
        assert client.ok("/tokenize?model=a", {"content": "hello"})["tokens"]
        assert client.get("/slots?model=a")[0] == 200
        assert "/v1/completions" in client.get("/openapi.json?model=a")[1]["paths"]
        [meta] = [one["meta"] for one in client.get("/models")[1]["data"] if one["id"] == "c"]
        assert meta["n_ctx"] == 2048


def test_the_least_recently_used_goes(folder: Path) -> None:
    with zoo(folder, most=2) as (client, opened):
        for name in "abac":
            text(client, name)
        assert opened.events == ["+a", "+b", "-b", "+c"]
        assert statuses(client) == {"a": "loaded", "b": "unloaded", "broken": "unloaded", "c": "loaded"}
        text(client, "b")
        assert opened.events == ["+a", "+b", "-b", "+c", "-a", "+b"]


def test_requests_under_way_end_before_their_model_goes(folder: Path) -> None:
    with zoo(folder, most=1) as (client, opened):
        whole = client.ok("/v1/completions", {**BODY, "model": "a", "max_tokens": 300})["choices"][0]["text"]
        with client.open_stream("/v1/completions", {**BODY, "model": "a", "max_tokens": 300}) as events:
            first = next(events)
            found: list[str] = []
            others = [threading.Thread(target=lambda name=name: found.append(text(client, name))) for name in "ba"]
            for thread in others:
                thread.start()
            rest = list(events)
            said = "".join(c["text"] for e in (first, *rest) for c in e["choices"])
            for thread in others:
                thread.join(zoos.WAIT)
        assert said == whole
        assert len(found) == 2
        assert opened.events[:3] == ["+a", "-a", "+b"]
        assert all(opened.events[i][0] == "+-"[i % 2] for i in range(len(opened.events))), "one at a time"


def test_loading_and_unloading_by_request(folder: Path) -> None:
    with zoo(folder, autoload=False) as (client, opened):
        status, answer = client.post("/v1/completions", {**BODY, "model": "a"})
        assert (status, answer["error"]["message"]) == (400, "model is not loaded")
        assert client.ok("/models/load", {"model": "a"}) == {"success": True}
        until(lambda: statuses(client)["a"] == "loaded", "a is loaded")
        text(client, "a")
        status, answer = client.post("/models/load", {"model": "a"})
        assert (status, answer["error"]["message"]) == (400, "model is already running")
        assert client.ok("/models/unload", {"model": "a"}) == {"success": True}
        until(lambda: statuses(client)["a"] == "unloaded", "a is unloaded")
        assert opened.events == ["+a", "-a"]
        status, answer = client.post("/models/unload", {"model": "a"})
        assert (status, answer["error"]["message"]) == (400, "model is not running")
        assert client.post("/v1/completions?autoload=true", {**BODY, "model": "b"})[0] == 200


def test_a_model_is_loaded_once_for_all_who_wait(folder: Path) -> None:
    with zoo(folder) as (client, opened):
        go = threading.Event()
        opened.before = lambda name: go.wait(zoos.WAIT) and None
        found: list[str] = []
        threads = [threading.Thread(target=lambda: found.append(text(client, "a"))) for _ in range(5)]
        for thread in threads:
            thread.start()
        until(lambda: statuses(client)["a"] == "loading", "a is being loaded, and the server answers meanwhile")
        go.set()
        for thread in threads:
            thread.join(zoos.WAIT)
        assert len(found) == 5 and len(set(found)) == 1
        assert opened.events == ["+a"]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/completions", {"prompt": "x"}, 400, "model name is missing from the request"),
        ("/v1/chat/completions", {"model": "../a", "messages": []}, 400, "model '../a' not found"),
        ("/v1/completions", {"model": 7}, 400, "model is 7: must be a string"),
        ("/v1/completions", {"model": "broken", "prompt": "x"}, 500, "model 'broken' cannot be loaded: broken.gguf: "),
        ("/models/load", {"model": "nothing"}, 404, "model is not found"),
        ("/models/load", {}, 400, "model name is missing from the request"),
        ("/models/unload", {"model": "nothing"}, 400, "model is not found"),
        ("/v1/completions", [], 400, ""),
        ("/nothing", {}, 404, "there is no /nothing"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, path: str, body: Any, status: int, message: str) -> None:
    with zoo(folder) as (client, _):
        found, answer = client.post(path, body)
        assert found == status and answer["error"]["message"].startswith(message), answer
        assert str(folder) not in json.dumps(answer)
        assert client.get("/slots")[0] == 400
        assert client.raw("GET", "/models/load")[0] == 405
        assert text(client, "a"), "the others are served"
        if body == {"model": "broken", "prompt": "x"}:
            [broken] = [one for one in client.get("/models")[1]["data"] if one["id"] == "broken"]
            assert broken["status"] == {"value": "unloaded", "failed": True, "exit_code": 1}


def test_a_fault_of_ours_says_nothing_of_the_inside(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with zoo(folder) as (client, opened):

        def fault(name: str) -> None:
            raise GGUFError(f"{folder}/{name}.gguf: it is damaged\nhere") if name == "b" else ValueError("a secret")

        opened.before = fault
        told = [client.post("/v1/completions", {**BODY, "model": name})[1]["error"]["message"] for name in "ab"]
        assert told == [
            "model 'a' cannot be loaded; the server's log says more",
            "model 'b' cannot be loaded: b.gguf: it is damaged here",
        ]
        assert "a secret" in caplog.text


def test_keys_prefix_and_the_page_are_for_all_models(folder: Path) -> None:
    with zoo(folder, api_keys=("k",), api_prefix="/p") as (client, _):
        assert client.raw("GET", "/")[0] == 200
        assert client.get("/health")[0] == 200
        for path in ("/v1/models", "/props", "/models"):
            assert client.get(path)[0] == 401
            assert client.get(path, authorization="Bearer k")[0] == 200
        assert client.post("/models/load", {"model": "a"})[0] == 401
        key = {"authorization": "Bearer k"}
        assert client.post("/v1/completions", {**BODY, "model": "a"})[0] == 401
        assert client.post("/v1/completions", {**BODY, "model": "a"}, **key)[0] == 200


def test_models_that_come_and_go(tmp_path: Path) -> None:
    write_text_model(tmp_path / "a.gguf", n_ctx=512)
    with zoo(tmp_path) as (client, opened):
        text(client, "a")
        write_text_model(tmp_path / "b.gguf", n_ctx=512)
        assert set(statuses(client)) == {"a"}
        (tmp_path / "a.gguf").unlink()
        assert client.get("/v1/models?reload=1")[0] == 200
        until(lambda: statuses(client) == {"b": "unloaded"}, "a is gone, b is there")
        assert opened.events == ["+a", "-a"]
        assert client.post("/v1/completions", {**BODY, "model": "a"})[0] == 400


def test_what_is_special_about_models(folder: Path) -> None:
    special: dict[str, dict[str, Any]] = {
        "a": {"at_start": True, "aliases": ("one", "first"), "tags": ("t",), "source": "preset"},
        "b": {"hidden": True},
    }
    with zoo(folder, special=special) as (client, opened):
        until(lambda: statuses(client)["a"] == "loaded", "a is loaded from the start")
        assert set(statuses(client)) == {"a", "broken", "c"}
        [a] = [one for one in client.get("/v1/models")[1]["data"] if one["id"] == "a"]
        assert (a["aliases"], a["tags"], a["source"]) == (["first", "one"], ["t"], "preset")
        said = client.ok("/v1/completions", {**BODY, "model": "one"})
        assert said["model"] == "a" and said["choices"][0]["text"] == text(client, "a") != text(client, "b")
        assert client.post("/models/load", {"model": "first"})[1]["error"]["message"] == "model is already running"
        assert opened.events == ["+a", "+b"]
        special["a"]["tags"] = ("u",)
        assert client.get("/v1/models?reload=1")[0] == 200
        until(lambda: "-a" in opened.events, "a model that is another one now is unloaded")
        assert text(client, "a")
        [a] = [one for one in client.get("/v1/models")[1]["data"] if one["id"] == "a"]
        assert a["tags"] == ["u"]


def test_requests_that_take_longer_than_they_have(folder: Path) -> None:
    with zoo(folder, special={"a": {"patience": 0.2}}) as (client, opened):
        with client.open_stream("/v1/completions", {**BODY, "model": "a", "max_tokens": 1900}) as events:
            next(events)
            assert client.ok("/models/unload", {"model": "a"}) == {"success": True}
            last = list(events)[-1]
        assert last["error"]["message"] == "model 'a' is being unloaded"
        until(lambda: opened.events == ["+a", "-a"], "a is closed")
        assert text(client, "a")


def test_a_list_that_fails_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zoo(folder) as (client, _):
        text(client, "a")

        def fails(folder: Path) -> Any:
            raise PermissionError(13, "Permission denied", str(folder))

        monkeypatch.setattr("zoos.listed_in", fails)
        status, answer = client.get("/v1/models?reload=1")
        assert (status, answer["error"]["message"]) == (500, "the models cannot be listed; the server's log says more")
        assert statuses(client)["a"] == "loaded"


def test_the_end_waits_for_answers_and_closes_all(folder: Path) -> None:
    with zoo(folder) as (client, opened):
        text(client, "a")
        stream = client.open_stream("/v1/completions", {**BODY, "model": "b", "max_tokens": 40})
        events = stream.__enter__()
        next(events)
    assert [c["finish_reason"] for e in events for c in e["choices"]][-1] == "length"
    stream.__exit__(None, None, None)
    assert sorted(opened.events) == ["+a", "+b", "-a", "-b"]


def test_who_leaves_before_a_model_is_loaded_costs_no_other_its_place(folder: Path) -> None:
    with zoo(folder, most=1) as (client, opened):
        with client.open_stream("/v1/completions", {**BODY, "model": "a", "max_tokens": 1500}) as events:
            next(events)
            gone = client.connection()
            gone.request("POST", "/v1/completions", json.dumps({**BODY, "model": "b"}).encode())
            until(lambda: statuses(client)["a"] == "unloading", "a is to go once it is idle")
            gone.close()
            until(lambda: statuses(client)["a"] == "loaded", "nobody waits for b any more")
            asking = [threading.Thread(target=text, args=(client, name)) for name in "bc"]
            for thread in asking:
                thread.start()
                until(lambda: client.served.entries["b"].waiting, "b is wanted first")
        for thread in asking:
            thread.join(zoos.WAIT)
        assert opened.events == ["+a", "-a", "+b", "-b", "+c"], "each has its model before others make room for theirs"


def test_many_clients_of_more_models_than_there_is_room_for(folder: Path) -> None:
    """Each gets the text that it gets alone, also beside those who hang up."""
    with zoo(folder, most=2) as (client, opened):
        alone = {name: text(client, name) for name in "abc"}
        wrong: list[Any] = []

        def ask(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(12):
                name = rng.choice("abc")
                if rng.random() < 0.25:
                    with client.open_stream("/v1/completions", {**BODY, "model": name, "max_tokens": 200}) as events:
                        next(events)
                elif (found := client.post("/v1/completions", {**BODY, "model": name})) and (
                    found[0] != 200 or found[1]["choices"][0]["text"] != alone[name]
                ):
                    wrong.append((name, found))

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(zoos.WAIT)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
        assert sum(value == "loaded" for value in statuses(client).values()) <= 2
        loaded: set[str] = set()
        for event in opened.events:
            (loaded.add if event[0] == "+" else loaded.discard)(event[1:])
            assert len(loaded) <= 2, opened.events


def test_the_command(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with running("--models-dir", str(folder), "--models-max", "1", "-c", "512", "--tags", "tiny") as (_, client):
        assert set(statuses(client)) == {"a", "b", "broken", "c"}
        assert text(client, "a") != text(client, "c")
        assert statuses(client)["a"] == "unloaded"
        told = client.post("/v1/completions", {**BODY, "model": "broken"})[1]["error"]["message"]
        assert told.startswith("model 'broken' cannot be loaded: broken.gguf: ")
    assert "4 models, at most 1 loaded at once" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--models-dir", "/nowhere"], "--models-dir /nowhere: not a folder"),
        (["--models-dir", ".", "-m", "x.gguf"], "--models-dir serves several models, -m and -hf one"),
        (["--models-dir", ".", "--alias", "x"], "--alias names one model"),
        (["--models-dir", "empty"], "--models-dir empty: there is no GGUF file in it"),
    ],
)
def test_flags_that_contradict(flags: list[str], told: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from pyggml_cli import server

    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert server.main(flags) == 2
    assert told in capsys.readouterr().err


MUTANTS: dict[str, tuple[Mutant, Callable[..., Any]]] = {
    "requests are cut off": ((Zoo, "_unload", "if entry.users and not entry.lost:", "if False:"), test_requests_under_way_end_before_their_model_goes),
    "the first in the list goes": ((Zoo, "_make_room", "one.used)", "one.name)"), test_the_least_recently_used_goes),
    "one more than the most": ((Zoo, "_make_room", "len(others) < self.most", "len(others) <= self.most"), test_the_least_recently_used_goes),
    "requests do not count as use": ((Zoo, "acquire", "entry.used = next(self._count)", "pass"), test_the_least_recently_used_goes),
    "who has left is waited for": ((Zoo, "_wait_for", "task.cancel()", "pass"), test_who_leaves_before_a_model_is_loaded_costs_no_other_its_place),
    "requests load in spite of --no-models-autoload": (
        (Zoo, "acquire", "(self.autoload if autoload is None else autoload)", "True"), test_loading_and_unloading_by_request,
    ),
    "where files lie is told": ((Zoo, "_open_on_thread", "told = told_of(reason, entry.found.path)", "told = str(reason)"),
                                test_a_fault_of_ours_says_nothing_of_the_inside),
    "the loop waits for a load": (
        (Zoo, "_loaded", "await self.loads.run(self._open_on_thread, entry)", "self._open_on_thread(entry)"),
        test_a_model_is_loaded_once_for_all_who_wait,
    ),
    "what is another model now stays as it was": (
        (Zoo, "reload", "if other and entry.running:", "if False:"), test_what_is_special_about_models,
    ),
    "nobody is cut off": ((Zoo, "_unload", "entry.found.patience", "None"), test_requests_that_take_longer_than_they_have),
    "a file that is gone stays listed": ((Zoo, "reload", "entry.gone = True", "continue"), test_models_that_come_and_go),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(
    mutant: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, test = MUTANTS[mutant]
    monkeypatch.setattr("zoos.WAIT", 3.0)
    assert_caught(monkeypatch, wrong, test, folder=folder, tmp_path=tmp_path, caplog=caplog)
