"""What is refused: requests that are wrong in any way, with 4xx and the field's name, while a running stream goes on; who has no
key; pages of other origins."""

import gzip
import json
import platform
import random
from typing import Any

import pytest
from pyggml_server import requests
from serving import Client, serving

from pyggml.grammar import parse, vocabulary
from pyggml.model.model import Model

COMPLETION = {"prompt": "hello", "max_tokens": 4}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}

WRONG: list[tuple[str, dict[str, Any], str | None]] = [
    ("/v1/chat/completions", {**CHAT, "reasoning_budget_tokens": -2}, "reasoning_budget_tokens"),
    ("/v1/chat/completions", {**CHAT, "reasoning_budget_message": 1}, "reasoning_budget_message"),
    ("/v1/completions", {**COMPLETION, "reasoning_budget_start_tag": 1}, "reasoning_budget_start_tag"),
    ("/v1/completions", {**COMPLETION, "reasoning_budget_end_tags": [1]}, "reasoning_budget_end_tags"),
    ("/v1/chat/completions", {**CHAT, "reasoning_control": "yes"}, "reasoning_control"),
    ("/v1/chat/completions/control", {"action": "reasoning_end"}, "id"),
    ("/v1/chat/completions/control", {"id": 5, "action": "reasoning_end"}, "id"),
    ("/v1/chat/completions/control", {"id": "chatcmpl-1"}, "action"),
    ("/v1/chat/completions/control", {"id": "chatcmpl-1", "action": "stop"}, "action"),
    ("/v1/completions", {}, "prompt"),
    ("/v1/completions", {"prompt": 5}, "prompt"),
    ("/v1/completions", {"prompt": []}, "prompt"),
    ("/v1/completions", {**COMPLETION, "n_indent": -1}, "n_indent"),
    ("/v1/completions", {**COMPLETION, "n_keep": -2}, "n_keep"),
    ("/v1/completions", {**COMPLETION, "sse_ping_interval": -2}, "sse_ping_interval"),
    ("/v1/completions", {**COMPLETION, "n_discard": -1}, "n_discard"),
    ("/v1/completions", {**COMPLETION, "t_max_predict_ms": -2}, "t_max_predict_ms"),
    ("/v1/completions", {"prompt": [1, "a", None]}, "prompt"),
    ("/v1/completions", {"prompt": [999999]}, "prompt"),
    ("/v1/completions", {"prompt": "x" * 5000}, "prompt"),
    ("/v1/completions", {**COMPLETION, "max_tokens": "many"}, "max_tokens"),
    ("/v1/completions", {**COMPLETION, "max_tokens": 1.5}, "max_tokens"),
    ("/v1/completions", {**COMPLETION, "max_tokens": -2}, "max_tokens"),
    ("/v1/completions", {**COMPLETION, "temperature": True}, "temperature"),
    ("/v1/completions", {**COMPLETION, "temperature": 1e300}, "temperature"),
    ("/v1/completions", {**COMPLETION, "repeat_penalty": 0}, "repeat_penalty"),
    ("/v1/completions", {**COMPLETION, "top_k": 1 << 40}, "top_k"),
    ("/v1/completions", {**COMPLETION, "n": 0}, "n"),
    ("/v1/completions", {**COMPLETION, "n": 1000}, "n"),
    ("/v1/completions", {**COMPLETION, "best_of": 3}, "best_of"),
    ("/v1/completions", {**COMPLETION, "stop": [1]}, "stop"),
    ("/v1/completions", {**COMPLETION, "stop": ["x"] * 1000}, "stop"),
    ("/v1/completions", {**COMPLETION, "logit_bias": {"hello": "x"}}, "logit_bias"),
    ("/v1/completions", {**COMPLETION, "logit_bias": [[1e9, 1]]}, "logit_bias"),
    ("/v1/completions", {**COMPLETION, "logit_bias": {"x" * 1025: 1}}, "logit_bias"),
    ("/v1/completions", {**COMPLETION, "samplers": ["nothing"]}, "samplers"),
    ("/v1/completions", {**COMPLETION, "samplers": "k" * 65}, "samplers"),
    ("/v1/completions", {**COMPLETION, "grammar": "root ::= ("}, "grammar"),
    ("/v1/completions", {**COMPLETION, "grammar": "root ::= " + '"a" | ' * 5000 + '"a"'}, "grammar"),
    ("/v1/completions", {**COMPLETION, "json_schema": {"pattern": "^" + "a|" * 100_000 + "$"}}, "json_schema"),
    ("/v1/completions", {**COMPLETION, "grammar": "root ::= 'x'", "json_schema": {}}, "json_schema"),
    ("/v1/completions", {**COMPLETION, "json_schema": {"type": "nothing"}}, "json_schema"),
    ("/v1/completions", {**COMPLETION, "json_schema": {"enum": list(range(5001))}}, "json_schema"),
    ("/v1/completions", {**COMPLETION, "prompt": ["x"] * 64, "n": 64, "grammar": "root ::= 'x'"}, None),
    ("/v1/completions", {**COMPLETION, "suffix": "end"}, "suffix"),
    ("/v1/completions", {**COMPLETION, "stream": "yes"}, "stream"),
    ("/v1/chat/completions", {}, "messages"),
    ("/v1/chat/completions", {"messages": []}, "messages"),
    ("/v1/chat/completions", {"messages": ["hi"]}, "messages[0]"),
    ("/v1/chat/completions", {"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ("/v1/chat/completions", {**CHAT, "top_logprobs": 2}, "top_logprobs"),
    ("/v1/chat/completions", {**CHAT, "response_format": {"type": "xml"}}, "response_format.type"),
    ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ("/v1/chat/completions", {**CHAT, "chat_template_kwargs": []}, "chat_template_kwargs"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "param"), WRONG, ids=[f"{p.split('/')[2]} {q} {i}" for i, (p, _, q) in enumerate(WRONG)]
)
def test_a_wrong_field_is_named(client: Client, path: str, body: dict, param: str | None) -> None:
    status, found = client.post(path, body)
    assert status == 400, found
    error = found["error"]
    assert error["param"] == param and error["code"] == 400, error
    assert "\n" not in error["message"] and "Traceback" not in error["message"] and error["message"]


def test_a_prompt_that_is_too_long_is_told_with_its_numbers(client: Client) -> None:
    error = client.post("/v1/completions", {"prompt": "x" * 5000})[1]["error"]
    assert error["type"] == "exceed_context_size_error" and error["n_ctx"] == 512 and error["n_prompt_tokens"] == 5000


def damaged(rng: random.Random) -> bytes:
    """A body that cannot be right."""
    _, body, _ = rng.choice(WRONG)
    text = json.dumps(rng.choice([body, COMPLETION, CHAT])).encode()
    kind = rng.randrange(9)
    if kind == 0:
        return text[: rng.randrange(len(text))]
    if kind == 1:
        return rng.randbytes(rng.randrange(1, 300)) + b"\xff"
    if kind == 2:
        return b'{"messages": ' + b"[" * rng.randrange(10, 100_000)
    if kind == 3:
        return b'{"prompt": "x", "max_tokens": ' + b"9" * rng.randrange(20, 10_000) + b"}"
    if kind == 4:
        return rng.choice([b"null", b"[]", b"3", b'"x"', b"", b"NaN", b'{"prompt": NaN}', b'{"prompt": Infinity}'])
    if kind == 5:
        return b'{"prompt": "\\ud800"}'
    if kind == 6:
        return b'{"prompt": {"a": ' * 500 + b"1" + b"}" * 1000
    if kind == 7:
        field = rng.choice(("temperature", "top_k", "seed", "stop", "n", "logit_bias", "samplers", "grammar", "stream"))
        wrong = rng.choice(([[]], {"a": []}, {"b": {}}, [None, 1], [[1, 2, 3]]))
        return json.dumps({"prompt": "x", "messages": [], field: wrong}).encode()
    at = rng.randrange(len(text))
    return text[:at] + bytes([rng.randrange(128, 256)]) + text[at:]


def test_two_hundred_malformed_requests_leave_a_running_stream_unharmed(client: Client) -> None:
    rng = random.Random(7)
    body = {"prompt": "hello", "max_tokens": 400, "ignore_eos": True}
    alone = client.ok("/v1/completions", {**body, "cache_prompt": False})["choices"][0]["text"]
    said, sent = "", 0
    with client.open_stream("/v1/completions", body) as events:
        for event in events:
            said += "".join(c["text"] for c in event["choices"])
            while sent < 200 and sent < len(said):
                path = rng.choice(
                    (
                        "/v1/completions",
                        "/v1/chat/completions",
                        "/completion",
                        "/infill",
                        "/apply-template",
                        "/v1/messages",
                        "/v1/responses",
                    )
                )
                status, _, answer = client.raw("POST", path, damaged(rng), {"content-type": "application/json"})
                assert 400 <= status < 500, (status, answer)
                assert set(json.loads(answer)["error"]) >= {"code", "message", "type", "param"}
                sent += 1
    assert sent == 200 and said == alone


@pytest.mark.parametrize(("value", "status"), [
    ("[" * 254 + "]" * 254, 200), ("[" * 256 + "]" * 256, 400), ("1e999", 400), ("[-1e400]", 400), ("1e308", 200),
    ("[" + "0," * 999_999 + "0]", 200), ("[" + "[]," * (1 << 19) + "0]", 413), ('"\\ud83d\\ude00"', 200), ('"\\ud83d"', 400),
], ids=lambda value: str(value)[:12])  # fmt: skip
def test_what_a_body_may_be(client: Client, value: str, status: int) -> None:
    """What is read can be written again, takes a bounded memory, and is read where streams go on."""
    body = f'{{"input": "x", "max_output_tokens": 1, "metadata": {{"a": {value}}}}}'
    got, _, data = client.raw("POST", "/v1/responses", body.encode())
    assert got == status, data[:300]
    if status == 200:
        assert json.loads(data)["metadata"] == json.loads(value.join(('{"a":', "}")))


@pytest.mark.parametrize(
    ("headers", "data", "status"),
    [
        ({"content-encoding": "gzip"}, gzip.compress(b'{"content": "a"}', mtime=0), 415),
        ({"content-encoding": "deflate"}, b'{"content": "a"}', 415),
        ({"content-encoding": "Identity"}, b'{"content": "a"}', 200),
        ({}, b'\xef\xbb\xbf{"content": "a"}', 200),
        ({}, '\ufeff{"content": "a"}'.encode("utf-16-le"), 400),
        ({"content-type": "application/json; charset=iso-8859-1"}, b'{"content": "\xe9"}', 400),
    ],
)
def test_how_a_body_may_be_written(client: Client, headers: dict[str, str], data: bytes, status: int) -> None:
    """UTF-8, with or without a mark of its byte order, and as it is: llama-server answers the same."""
    got, _, found = client.raw("POST", "/tokenize", data, headers)
    assert got == status and (status != 200 or json.loads(found) == {"tokens": [ord("a")]}), found


def test_variables_of_a_template_have_any_names(client: Client) -> None:
    names = ("self", "messages", "parts", "add_generation_prompt", "template", "args", "kwargs", "", "a b", "__class__")
    body = {**CHAT, "chat_template_kwargs": dict.fromkeys(names, 7)}
    assert client.post("/apply-template", body) == (200, {"prompt": "[user]hello[assistant]"})


def test_texts_that_take_too_much(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "LONGEST_TEXT", 100)
    for path, body in (
        ("/v1/completions", {"prompt": "x" * 101}),
        ("/tokenize", {"content": "x" * 101}),
        ("/infill", {"input_prefix": "x", "input_suffix": "x" * 101}),
        ("/infill", {"input_prefix": "", "input_suffix": "", "input_extra": [{"text": "x" * 101}]}),
    ):
        status, found = client.post(path, body)
        assert status == 400 and "101 characters, at most 100" in found["error"]["message"], found
    assert client.ok("/tokenize", {"content": "x" * 100})["tokens"] == [ord("x")] * 100


def test_choices_share_what_was_made_of_a_grammar(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(vocabulary, "parse", lambda text, **more: read.append(text) or parse(text, **more))
    body = {
        "prompt": ["a", "b"],
        "n": 3,
        "grammar": 'root ::= "x" [0-9]{2} | "y" [a-f]{2}',
        "temperature": 1.5,
        "seed": 4,
    }
    alone = [
        client.ok("/v1/completions", {**body, "prompt": prompt, "n": 1, "seed": 4 + i})["choices"][0]["text"]
        for i, prompt in enumerate("aaabbb")
    ]
    del read[:]
    assert [c["text"] for c in client.ok("/v1/completions", body)["choices"]] == alone and len(set(alone)) > 1
    assert len(read) == 1


def test_other_paths_and_methods(client: Client) -> None:
    for method, path, wanted in (
        ("GET", "/nowhere", 404), ("GET", "/../etc/passwd", 404), ("GET", "/v1/completions", 405), ("DELETE", "/v1/models", 405),
        ("PUT", "/v1/chat/completions", 405), ("POST", "/slots/" + "9" * 5000, 404),
        ("POST", "/v1/completions/", 404), ("GET", "/health/", 404), ("GET", "/health//", 404),
    ):  # fmt: skip
        status, _, data = client.raw(method, path)
        assert status == wanted and json.loads(data)["error"]["code"] == wanted
    assert set(client.raw("PUT", "/lora-adapters")[1]["allow"].split(", ")) == {"GET", "HEAD", "POST"}
    status, headers, data = client.raw("OPTIONS", "/v1/completions")
    assert (status, headers["allow"], data) == (200, "POST", b"")
    assert client.raw("OPTIONS", "/nowhere")[0] == 404


def test_bodies_have_a_limit(model: Model) -> None:
    with serving(model, largest_body=1000) as client:
        assert client.post("/v1/completions", {"prompt": "x" * 2000})[0] == 413
        connection = client.connection()
        connection.request("POST", "/v1/completions", iter([b'{"prompt": "'] + [b"x" * 100] * 30), encode_chunked=True,
                           headers={"transfer-encoding": "chunked"})  # fmt: skip
        assert connection.getresponse().status == 413
        connection.close()
        assert client.ok("/v1/completions", COMPLETION)["choices"]


def test_bodies_have_a_time(model: Model) -> None:
    with serving(model, body_timeout=0.2) as client:
        connection = client.connection()
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("content-length", "50")
        connection.endheaders(b'{"prompt":')
        assert connection.getresponse().status == 408
        connection.close()


def test_keys(model: Model) -> None:
    with serving(model, api_keys=("one", "tw\u00f6")) as client:
        assert client.get("/health")[0] == 200
        for path in ("/v1/models", "/slots", "/props", "/metrics", "/nowhere"):
            assert client.get(path)[0] == 401, path
        status, found = client.post("/v1/completions", COMPLETION, authorization="Bearer two")
        assert status == 401 and found["error"]["type"] == "authentication_error"
        assert client.post("/v1/completions", COMPLETION, authorization="Bearer on")[0] == 401
        ends = {"id": "chatcmpl-1", "action": "reasoning_end"}  # of another's answer
        assert client.post("/v1/chat/completions/control", ends)[0] == 401
        status, found = client.post("/v1/chat/completions/control", ends, authorization="Bearer one")
        assert status == 200 and found == {"success": False, "message": "no active completion for this id"}
        assert client.post("/v1/completions", COMPLETION, authorization="Bearer one")[0] == 200
        assert client.post("/v1/completions", COMPLETION, **{"x-api-key": "one"})[0] == 200


def test_pages_of_other_origins(model: Model, client: Client) -> None:
    """Off unless asked; what no page sends has no origin and is served."""
    other = {"origin": "https://elsewhere.example"}
    status, headers, _ = client.raw("POST", "/v1/completions", json.dumps(COMPLETION).encode(), other)
    assert status == 403 and "access-control-allow-origin" not in headers
    assert "access-control-allow-origin" not in client.raw("OPTIONS", "/v1/completions", None, other)[1]
    assert client.post("/v1/completions", COMPLETION, origin=f"http://localhost:{client.port}")[0] == 200
    for allowed in (("*",), (other["origin"],)):
        with serving(model, n_slots=1, cors_origins=allowed, api_keys=("k",)) as shared:
            status, headers, _ = shared.raw("OPTIONS", "/v1/completions", None, other)
            assert status == 200 and headers["access-control-allow-origin"] == other["origin"]
            status, headers, _ = shared.raw("POST", "/v1/completions", json.dumps(COMPLETION).encode(), other)
            assert status == 401 and headers["access-control-allow-origin"] == other["origin"]


@pytest.mark.parametrize(
    ("host", "settings", "status"),
    [
        ("evil.example:9931", {}, 403),
        ("evil.example", {}, 403),
        ("LOCALHOST:9931", {}, 200),
        ("chat.localhost", {}, 200),
        ("127.0.0.1:1", {}, 200),
        ("192.168.7.7", {}, 200),  # an address leads to whoever has it
        ("[::1]:9931", {}, 200),
        ("", {}, 200),
        ("good.example", {"cors_origins": ("https://good.example",)}, 200),
        ("evil.example", {"cors_origins": ("https://good.example",)}, 403),
        ("evil.example", {"cors_origins": ("*",)}, 200),
        ("evil.example", {"api_keys": ("k",)}, 200),  # it would have to know the key
        ("any.example", {"host": "0.0.0.0"}, 200),  # for others too: they may call it what they like
    ],
)
def test_a_name_that_was_made_to_lead_here_is_not_answered(
    model: Model, host: str, settings: dict[str, Any], status: int
) -> None:
    with serving(model, **settings) as client:
        client.host = "127.0.0.1"
        key = {"authorization": "Bearer k"}
        for path in ("/slots", "/v1/models", "/"):
            assert client.raw("GET", path, headers={"Host": host, **key})[0] == status
        assert client.raw("GET", "/health", headers={"Host": platform.node(), **key})[0] == 200
