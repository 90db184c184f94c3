"""`pyggml-server` as a process: what it says, what it answers, how it ends; and OpenAI's own client."""

import signal
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from pyggml_cli import cli, server
from served_process import running
from serving import Client
from text_model import write_text_model

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> Iterator[Client]:
    with running("-m", str(smollm2), "-c", "2048", "--alias", "smol") as (_, client):
        yield client


def test_streamed_text_is_that_of_pyggml_cli(smol: Client, smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["-m", str(smollm2), "-p", PROMPT, "-n", "24", "--temp", "0", "--no-display-prompt", "-c", "2048"]
    assert cli.main(argv) == 0
    events = smol.stream("/v1/completions", {"prompt": PROMPT, "max_tokens": 24, "temperature": 0})
    assert "".join(c["text"] for e in events for c in e["choices"]) == capsys.readouterr().out


def test_openais_client(smol: Client) -> None:
    with openai.OpenAI(base_url=f"{smol.address}/v1", api_key="none") as client:
        assert [m.id for m in client.models.list()] == ["smol"]
        messages = [{"role": "user", "content": "Say hello."}]
        options = {"model": "smol", "messages": messages, "max_tokens": 12, "temperature": 0}
        options["extra_body"] = {
            "cache_prompt": False
        }  # a prompt of one token is computed by other kernels, which round otherwise
        whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
        assert whole.choices[0].message.content and whole.usage.completion_tokens <= 12
        assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
        chunks = client.chat.completions.create(**options, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
        text = client.completions.create(model="smol", prompt=PROMPT, max_tokens=4, temperature=0)
        assert text.choices[0].text
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            client.completions.create(model="smol", prompt="x", max_tokens=-7)
        with pytest.raises(openai.NotFoundError):
            client.audio.speech.create(model="smol", input="x", voice="alloy")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_answer_under_way_is_completed_before_the_end(tmp_path: Path, number: int) -> None:
    body = {"prompt": "hello", "max_tokens": 200, "ignore_eos": True}
    path = str(write_text_model(tmp_path / "m.gguf", n_ctx=512))
    with running("-m", path, "-np", "1") as (process, client), client.open_stream("/v1/completions", body) as events:
        next(events)
        process.send_signal(number)
        assert [c["finish_reason"] for e in events for c in e["choices"]][-1] == "length"


def test_without_grace_it_is_told_that_the_server_ends(tmp_path: Path) -> None:
    body = {"prompt": "hello", "ignore_eos": True}
    flags = ("-m", str(write_text_model(tmp_path / "m.gguf", n_ctx=2048)), "-np", "1", "--grace", "0")
    with running(*flags) as (process, client), client.open_stream("/v1/completions", body) as events:
        next(events)
        process.terminate()
        assert "ending" in list(events)[-1]["error"]["message"]


def test_mistakes_end_in_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(write_text_model(tmp_path / "m.gguf"))
    empty = tmp_path / "keys"
    empty.write_text("\n")
    for argv, code, said in (
        (["--ssl-key-file", "x"], 2, "TLS needs both"),
        (["-m", path, "--api-key-file", str(empty)], 2, "there is no key in it"),
        (["-m", path, "--host", "256.1.1.1"], 1, "256.1.1.1 port 9931: cannot listen there"),
        (["-m", path, "--host", "a..b"], 1, "a..b port 9931: cannot listen there: encoding with 'idna' codec failed"),
        (["-m", path, "--ssl-key-file", path, "--ssl-cert-file", path], 1, "no key and certificate"),
        (["-m", path, "--rerank"], 1, "pooling rank needs a classifier"),
        (["-m", path, "-p", "x"], 2, "a flag of the completion tool"),
        (["--chat-template-kwargs", "[]"], 2, "must be a JSON object"),
        (["-m", str(tmp_path / "none.gguf")], 1, "No such file"),
    ):
        assert server.main(argv) == code, argv
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and said in error, error
