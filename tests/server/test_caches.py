"""What is kept of prompts: outside the context, in other slots, in files; a model that sleeps; adapters by request; a smaller model's
guesses. Answers are those that come from nothing."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyggml_server.app import make_app
from pyggml_server.served import Served
from pyggml_server.settings import Settings
from pyggml_server.single import Single
from serving import Client, serving, serving_at
from text_model import write_text_model
from tiny_lora import write_lora
from waiting import until

from pyggml.backend.cpu import CPUDevice
from pyggml.model.model import Model
from pyggml.runtime.batcher import Batcher
from pyggml.runtime.context import Context
from pyggml.runtime.draft_model import DraftModel, ModelDrafter
from pyggml.runtime.idle_prompts import IdlePrompts
from pyggml.sampler import SamplerParams
from pyggml.tokenizer import Tokenizer

ONE = {"prompt": "once upon a time there was a long beginning of many words", "n_predict": 6}
OTHER = {"prompt": "something else, which is just as long as the other one was", "n_predict": 6}


def test_a_prompt_outside_the_context(model: Model) -> None:
    for idle, found in ((IdlePrompts(None), True), (IdlePrompts(1000), False)):
        with serving(model, n_slots=1, idle=idle) as client:
            first = client.ok("/completion", ONE)
            client.ok("/completion", OTHER)
            again = client.ok("/completion", ONE)
            assert again["content"] == first["content"]
            assert (again["timings"]["cache_n"] == again["tokens_evaluated"] - 1) == found, again["timings"]


def test_many_choices_have_one_prompt(client: Client) -> None:
    prompt = ONE["prompt"] + " that nobody has sent before"
    before = client.served.engine.counters.prompt_tokens
    found = client.ok("/v1/completions", {"prompt": prompt, "max_tokens": 6, "n": 4})
    n = found["usage"]["prompt_tokens"]
    assert len({choice["text"] for choice in found["choices"]}) == 1, "greedy"
    assert client.served.engine.counters.prompt_tokens - before <= n + 3, "each of the others computes its last token"


def test_a_slot_of_ones_own(client: Client) -> None:
    for slot in (2, 0, 2):
        assert client.ok("/completion", {**ONE, "id_slot": slot})["id_slot"] == slot
    body = {**ONE, "id_slot": 1, "n": 3}
    assert [one["id_slot"] for one in client.ok("/completion", body)] == [1, 1, 1]
    assert client.post("/completion", {**ONE, "id_slot": 4})[0] == 400


@pytest.fixture
def saving(model: Model, tmp_path: Path) -> Iterator[Client]:
    with serving(model, n_slots=2, n_ctx=512, slot_folder=str(tmp_path)) as client:
        yield client


def test_slots_in_files(saving: Client, tmp_path: Path) -> None:
    first = saving.ok("/completion", {**ONE, "id_slot": 0})
    saved = saving.ok("/slots/0?action=save", {"filename": "one.bin"})
    assert saved["n_saved"] == first["tokens_cached"] and saved["n_written"] == (tmp_path / "one.bin").stat().st_size
    assert saving.ok("/slots/0?action=erase", {})["n_erased"] == saved["n_saved"]
    restored = saving.ok("/slots/1?action=restore", {"filename": "one.bin"})
    assert restored["n_restored"] == saved["n_saved"] and restored["n_read"] == saved["n_written"]
    again = saving.ok("/completion", {**ONE, "id_slot": 1})
    assert again["content"] == first["content"] and again["timings"]["prompt_n"] == 1
    assert saving.ok("/slots/1?action=save", {"filename": "one.bin"}), "a saved state may be replaced"


def test_files_of_slots_that_are_refused(saving: Client, tmp_path: Path) -> None:
    assert saving.post("/slots/0?action=save", {"filename": "x"})[0] == 400, "an empty slot"
    saving.ok("/completion", {**ONE, "id_slot": 0})
    for name in (
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc/passwd",
        "a\\b",
        "a\x00b",
        "x" * 256,
        " x",
        ".hidden",
        5,
        None,
        "c:x",
    ):
        for action in ("save", "restore"):
            status, found = saving.post(f"/slots/0?action={action}", {"filename": name})
            assert status == 400 and found["error"]["param"] == "filename", (name, found)
    assert not list(tmp_path.iterdir())
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    for name in ("notes.txt", "folder"):
        status, found = saving.post("/slots/0?action=save", {"filename": name})
        assert status == 400 and str(tmp_path) not in found["error"]["message"], found
    assert (tmp_path / "notes.txt").read_text() == "mine"
    saving.ok("/slots/0?action=save", {"filename": "good"})
    data = bytearray((tmp_path / "good").read_bytes())
    for name, wrong in (
        ("cut", data[:-5]),
        ("empty", b""),
        ("other", b"x" * 500),
        ("changed", data[:200] + b"\x55" + data[201:]),
    ):
        (tmp_path / name).write_bytes(wrong)
        status, found = saving.post("/slots/1?action=restore", {"filename": name})
        assert status == 400 and str(tmp_path) not in found["error"]["message"], found
    assert saving.post("/slots/1?action=restore", {"filename": "missing"})[0] == 400
    assert saving.ok("/slots/1?action=restore", {"filename": "good"})["n_restored"] > 0


def test_files_of_slots_only_where_there_is_a_folder(client: Client) -> None:
    for action in ("save", "restore"):
        assert client.post(f"/slots/0?action={action}", {"filename": "x"})[0] == 501


def test_a_state_of_another_model(saving: Client, model: Model, tmp_path: Path) -> None:
    saving.ok("/completion", {**ONE, "id_slot": 0})
    saving.ok("/slots/0?action=save", {"filename": "one"})
    other = Model.load(write_text_model(tmp_path / "m.gguf", n_ctx=512, seed=6), cpu=CPUDevice())
    with serving(other, n_slots=1, n_ctx=512, slot_folder=str(tmp_path)) as client:
        status, found = client.post("/slots/0?action=restore", {"filename": "one"})
        assert status == 400 and "another model" in found["error"]["message"]
        assert client.ok("/completion", ONE)["timings"]["cache_n"] == 0
    other.close()


def test_adapters_by_request(tmp_path: Path) -> None:
    model = Model.load(write_text_model(tmp_path / "m.gguf", n_ctx=256), cpu=CPUDevice())
    adapter = model.load_adapter(write_lora(tmp_path / "a.gguf", ["blk.0.ffn_gate.weight", "blk.1.ffn_down.weight"]))
    wanted: dict[float, str] = {}
    bodies = {scale: {**ONE, "n_predict": 12, "lora": [{"id": 0, "scale": scale}]} for scale in (0.0, 3.0, 6.0)}
    for scale in bodies:
        with serving(model, n_slots=1, adapters=[(adapter, scale)]) as client:
            wanted[scale] = client.ok("/completion", {**ONE, "n_predict": 12})["content"]
    assert len(set(wanted.values())) == 3
    with serving(model, n_slots=2, n_ctx=512, adapters=[(adapter, 6.0)]) as client:
        with contextlib.ExitStack() as stack:
            streams = [
                (scale, stack.enter_context(client.open_stream("/completion", body)))
                for scale, body in [*bodies.items(), *bodies.items()]
            ]
            for scale, events in streams:
                assert "".join(e["content"] for e in events) == wanted[scale], scale
        assert client.ok("/completion", {**ONE, "n_predict": 12})["content"] == wanted[6.0], "the server's own"
        for wrong in ([{"id": 1, "scale": 1}], [{"id": 0}], {}, [3]):
            assert client.post("/completion", {**ONE, "lora": wrong})[0] == 400
    model.close()


def test_a_smaller_model_guesses_for_every_slot(model: Model) -> None:
    """Here it is the model itself, whose guesses are right."""
    body = {"prompt": "hello there", "n_predict": 30, "ignore_eos": True}
    with serving(model, n_slots=2) as client:
        plain = client.ok("/completion", body)
    small: list[DraftModel] = []

    def make(seq: int, context: Context) -> ModelDrafter:
        if not small:
            small.append(DraftModel(Context(model, context.n_ctx, n_seq_max=2), 4))
        return small[0].drafter(seq)

    with serving(model, n_slots=2, place_drafter=make) as client:
        both = client.ok("/completion", {**body, "n": 2})
        for found in both:
            assert found["content"] == plain["content"]
            assert found["timings"]["draft_n_accepted"] > 15 and "draft_n" in found["timings"]
        assert client.served.engine.counters.draft_kept > 30
        assert all(slot["speculative"] for slot in client.get("/slots")[1])
    small[0].context.close()


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[tuple[Client, Single, list[str]]]:
    path, told = write_text_model(tmp_path / "m.gguf", n_ctx=256), []

    @contextlib.contextmanager
    def opening() -> Iterator[Served]:
        model = Model.load(path, cpu=CPUDevice())
        told.append("open")
        context = Context(model, 256)
        tokenizer = Tokenizer.from_metadata(model.file.metadata)
        settings = Settings(port=0, sampling=SamplerParams(temp=0.0), metrics=True, grace=1.0, api_keys=("k",))
        try:
            yield Served(model, Batcher(context), tokenizer, settings)
        finally:
            context.close()
            model.close()
            told.append("closed")

    made = Single(opening, make_app, 0.3)
    with serving_at(made) as client:
        yield client, made, told
    made.close()
    assert told.count("open") == told.count("closed")


def test_a_model_that_sleeps(sleeper: tuple[Client, Single, list[str]], tmp_path: Path) -> None:
    client, made, told = sleeper
    key = {"x-api-key": "k"}

    def ask(n: int = 4) -> str:
        status, found = client.post("/completion", {"prompt": "hello", "n_predict": n, "ignore_eos": True}, **key)
        assert status == 200, found
        return str(found["content"])

    first = ask()
    until(lambda: made.served.sleeping and told[-1] == "closed")
    assert client.get("/props", **key)[1]["is_sleeping"] and client.get("/health")[0] == 200
    assert client.get("/v1/models", **key)[0] == 200
    assert client.post("/completion", {"prompt": "x"}, **{"x-api-key": "wrong"})[0] == 401
    assert client.get("/slots")[0] == 401 and told == ["open", "closed"], "who has no key wakes nobody"
    total = "llamacpp:tokens_predicted_total 4"
    assert total in client.raw("GET", "/metrics", headers=key)[2].decode()
    assert ask() == first and told[-1] == "open"
    assert not client.get("/props", **key)[1]["is_sleeping"]
    assert "llamacpp:tokens_predicted_total 8" in client.raw("GET", "/metrics", headers=key)[2].decode()
    with client.open_stream("/completion", {"prompt": "hello", "n_predict": 200, "ignore_eos": True}, **key) as events:
        assert sum(len(event["tokens"]) for event in events if not event["stop"]) == 200
    until(lambda: told[-1] == "closed")
    shutil.move(tmp_path / "m.gguf", tmp_path / "gone.gguf")
    status, found = client.post("/completion", {"prompt": "x"}, **key)
    assert status == 503 and "cannot be loaded again" in found["error"]["message"]
    shutil.move(tmp_path / "gone.gguf", tmp_path / "m.gguf")
    assert ask() == first


def test_a_conversation_goes_on_where_its_memory_cannot_go_back_anywhere(tmp_path: Path) -> None:
    """A window: the second turn changes the last message, and what is before it is not computed again."""
    from tiny_archs import tiny_archs

    from pyggml.runtime.checkpoints import CheckpointRule

    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    with tiny_archs(tmp_path) as paths:
        model = Model.load(paths["tinystates"], cpu=CPUDevice())
        first = [
            {"role": "system", "content": "be"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
        ]
        turns = [[*first, {"role": "user", "content": f"{word} things to say and to do"}] for word in ("three", "4")]
        context = Context(model, 128, n_ubatch=8)
        batcher = Batcher(context, 8, rule=CheckpointRule(min_step=8192))
        served = Served(
            model,
            batcher,
            Tokenizer.from_metadata(model.file.metadata),
            Settings(port=0, sampling=SamplerParams(temp=0.0)),
            template,
        )
        with serving_at(served) as client:
            said = []
            for turn in turns:
                made = client.ok("/v1/chat/completions", {"messages": turn, "max_tokens": 3})
                said.append(made["choices"][0]["message"]["content"])
            begun = len(served.tokenizer.encode("[system]be[user]one[assistant]two", add_special=False))
            assert made["usage"]["prompt_tokens_details"]["cached_tokens"] == begun
            fresh = client.ok("/v1/chat/completions", {"messages": turns[1], "max_tokens": 3, "cache_prompt": False})
            assert fresh["choices"][0]["message"]["content"] == said[1]
        context.close()
        model.close()
