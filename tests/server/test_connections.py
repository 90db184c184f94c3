"""Connections: how many, how long a head may take and be, several addresses; and what is told while a prompt is computed."""

import gc
import json
import re
import socket
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Client, serving
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from waiting import until

from pyggml.model.model import Model

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
BODY = b'{"prompt": "hello", "max_tokens": 2}'


@pytest.fixture
def hasty(model: Model) -> Iterator[Client]:
    with serving(model, n_slots=1, n_ctx=2048, most_connections=3, header_timeout=0.4) as client:
        yield client


def read_all(link: socket.socket) -> bytes:
    link.settimeout(20)
    data = b""
    while part := link.recv(65536):
        data += part
    return data


def read_answer(link: socket.socket) -> bytes:
    """One of several on a connection, however many parts it comes in."""
    link.settimeout(20)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = link.recv(1)
        assert byte, head
        head += byte
    (length,) = re.findall(rb"\r\ncontent-length: (\d+)\r\n", head)
    body = b""
    while len(body) < int(length):
        part = link.recv(int(length) - len(body))
        assert part, body
        body += part
    return head + body


def test_a_head_that_does_not_come(hasty: Client) -> None:
    """Neither one that is never begun nor one that comes drop by drop is waited for; a body may take longer."""
    with socket.create_connection((hasty.host, hasty.port)) as link:
        assert read_all(link).startswith(b"HTTP/1.1 408 ")
    start = time.monotonic()
    with socket.create_connection((hasty.host, hasty.port)) as link:
        try:
            for byte in HEAD * 100:
                link.sendall(bytes([byte]))
                time.sleep(0.02)
        except OSError:
            pass
        assert time.monotonic() - start < 10
    with socket.create_connection((hasty.host, hasty.port)) as link:
        link.sendall(HEAD + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(BODY))
        time.sleep(0.8)
        link.sendall(BODY)
        assert read_all(link).startswith(b"HTTP/1.1 200 ")


def test_the_second_head_on_a_connection(hasty: Client) -> None:
    with socket.create_connection((hasty.host, hasty.port)) as link:
        link.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
        assert read_answer(link).startswith(b"HTTP/1.1 200 ")
        link.sendall(HEAD)
        assert b"HTTP/1.1 408 " in read_all(link)


def test_a_head_that_is_too_long(hasty: Client) -> None:
    with socket.create_connection((hasty.host, hasty.port)) as link:
        told = b"HTTP/1.1 431 "
        try:
            for i in range(2000):
                link.sendall(b"POST / HTTP/1.1\r\n" if i == 0 else b"x-%d: %s\r\n" % (i, b"y" * 400))
            told = read_all(link)
        except OSError:  # a connection that is closed with bytes unread takes the answer along
            pass
        assert told.startswith(b"HTTP/1.1 431 ")
    assert hasty.get("/health")[0] == 200


@pytest.mark.parametrize("path", [b"/v1/completions", b"/v1/messages", b"/health"])
def test_an_answer_to_http_1_0_is_not_chunked(hasty: Client, path: bytes) -> None:
    body = b'{"prompt": "hello", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "stream": true}'
    method = b"GET" if path == b"/health" else b"POST"
    request = b"%s %s HTTP/%s\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"
    for version in (b"1.0", b"1.1"):
        with socket.create_connection((hasty.host, hasty.port)) as link:
            link.sendall(request % (method, path, version, len(body), body))
            head, _, data = read_all(link).partition(b"\r\n\r\n")
        chunked = version == b"1.1" and path != b"/health"
        assert head.startswith(b"HTTP/1.1 200 ") and (b"transfer-encoding: chunked" in head) == chunked
        assert chunked or data.startswith((b"data: {", b"event: ", b'{"status":"ok"}'))
        assert chunked or data.endswith((b"\n\n", b"}"))


def test_blanks_around_a_headers_value_are_no_part_of_it(hasty: Client) -> None:
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: \tlocalhost \t\r\ncontent-encoding:identity \r\nconnection: close \r\n"
    )
    with socket.create_connection((hasty.host, hasty.port)) as link:
        link.sendall(head + b"content-length: %d \r\n\r\n" % len(BODY) + BODY)
        assert read_all(link).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("at", [None, 0, 90, 400], ids=["whole", "head apart", "head in two", "body in two"])
def test_another_protocol_is_offered(hasty: Client, at: int | None) -> None:
    """As Java's client and curl --http2 do: HTTP/1.1 answers, several times on one connection, and bodies are read."""
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
    head = HEAD + offer + b"x: %s\r\ncontent-length: %d\r\n\r\n" % (b"y" * 150, len(BODY))
    with socket.create_connection((hasty.host, hasty.port)) as link:
        for last in (False, False, True):
            data = head.replace(b"connection:", b"connection: close,") + BODY if last else head + BODY
            cut = len(head) + (5 if last else 0) if at == 0 else at
            for part in (data[:cut], data[cut:]) if cut is not None else (data,):
                link.sendall(part)
                time.sleep(0.02)
            answer = read_all(link) if last else read_answer(link)
            assert answer.startswith(b"HTTP/1.1 200 "), answer


@pytest.mark.parametrize(("around", "status"), [
    (b"1e;%s\r\n" % (b"x" * 200_000), 431),
    (b"%x\r\n%s\r\n0\r\n%s" % (len(BODY), BODY, b"a: b\r\n" * 60_000), 431),
    (b"zz\r\n", 400),
], ids=["extension", "trailers", "no size"])  # fmt: skip
def test_what_stands_around_a_body(hasty: Client, around: bytes, status: int) -> None:
    with socket.create_connection((hasty.host, hasty.port)) as link:
        data = b""
        try:
            link.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
            link.sendall(around)
            data = link.recv(65536)
        except OSError:  # as above
            data = data or b"HTTP/1.1 %d " % status
        assert data.startswith(b"HTTP/1.1 %d " % status), data
    assert hasty.get("/health")[0] == 200


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x00\xa5\x01", b"CONNECT a:80 HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
def test_what_is_no_request(hasty: Client, data: bytes) -> None:
    with socket.create_connection((hasty.host, hasty.port)) as link:
        link.sendall(data)
        head, _, body = read_all(link).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ") and json.loads(body)["error"]["code"] == 400


WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.mark.parametrize(
    ("behind", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (HEAD + b"content-length: x\r\n\r\n", 400),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD + b"x: " + b"y" * 400_000, 431),
        (HEAD[:30], 408),
    ],
    ids=["garbage", "head", "body", "long", "late"],
)
def test_requests_before_one_that_is_wrong_are_answered(hasty: Client, behind: bytes, status: int) -> None:
    batcher = hasty.served.engine.batcher
    step = batcher.step
    batcher.step = lambda: (time.sleep(0.03), step())[1]  # what is wrong is there before the first answer
    with socket.create_connection((hasty.host, hasty.port)) as link:
        link.sendall(WHOLE * 3 + behind)
        told = [read_answer(link) for _ in range(3)] + [read_all(link)]
    assert [int(answer[9:12]) for answer in told] == [200, 200, 200, status]


def test_a_stream_that_waits_is_kept_open(model: Model) -> None:
    ask = {"prompt": "hello", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "stream": True}
    with serving(model, n_slots=1, ping=0.03) as client:
        batcher = client.served.engine.batcher
        step = batcher.step
        batcher.step = lambda: (time.sleep(0.1), step())[1]
        for path in ("/v1/completions", "/completion", "/v1/chat/completions", "/v1/messages"):
            for more, pings in (({}, True), ({"sse_ping_interval": -1 if path[1] == "v" else 1}, False)):
                data = client.raw("POST", path, json.dumps({**ask, **more}).encode())[2]
                assert bool(re.search(rb"^: ping$|^event: ping$", data, re.MULTILINE)) == pings, (path, more, data)


def test_a_connection_keeps_nothing_of_requests_that_are_answered(
    hasty: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[RequestResponseCycle]] = []
    begin = RequestResponseCycle.__init__

    def counted(self: RequestResponseCycle, *args: Any, **more: Any) -> None:
        made.append(weakref.ref(self))
        begin(self, *args, **more)

    monkeypatch.setattr(RequestResponseCycle, "__init__", counted)
    with socket.create_connection((hasty.host, hasty.port)) as link:
        for _ in range(20):
            link.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert read_answer(link).startswith(b"HTTP/1.1 200 ")
        gc.collect()
        assert len(made) == 20 and sum(one() is not None for one in made) <= 2


def test_a_client_of_several_requests_that_goes_away_frees_the_slot(slow: Client) -> None:
    body = b'{"prompt": "hello", "max_tokens": 2000}'
    with socket.create_connection((slow.host, slow.port)) as link:
        link.sendall((HEAD + b"content-length: %d\r\n\r\n" % len(body) + body) * 3)
        until(lambda: not slow.served.idle)
    until(lambda: slow.served.idle)
    assert slow.served.engine.counters.tokens < 200


def test_more_connections_than_there_may_be(hasty: Client) -> None:
    forever = {"prompt": "hello", "max_tokens": 100000, "ignore_eos": True}
    with hasty.open_stream("/v1/completions", forever) as first, hasty.open_stream("/v1/completions", forever):
        next(first)
        with socket.create_connection((hasty.host, hasty.port)):
            status, headers, data = hasty.raw("GET", "/health")
            assert status == 503 and headers["retry-after"] == "1" and b"3 connections are open" in data
        next(first)
    for _ in range(100):
        if hasty.raw("GET", "/health")[0] == 200:
            return
        time.sleep(0.05)
    raise AssertionError("connections that ended count")


def test_several_addresses(model: Model) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving(model, n_slots=1, host="127.0.0.1, ::1") as client:
        other = Client(f"http://[::1]:{client.port}")
        for one in (client, other):
            assert one.ok("/v1/completions", json.loads(BODY))["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("path", ["/completion", "/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_how_far_a_prompt_is(model: Model, path: str) -> None:
    text = "many words " * 120
    asked = {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text, "input": text}
    body = {**asked, "max_tokens": 3, "max_output_tokens": 3, "return_progress": True, "timings_per_token": True}
    with serving(model, n_slots=1, n_ctx=2048) as client:
        for cached in (False, True):
            events = client.stream(path, body)
            told = [e["prompt_progress"] for e in events if "prompt_progress" in e]
            assert told[0]["processed"] == told[0]["cache"] and (told[0]["cache"] > 0) == cached
            assert [p["processed"] for p in told] == sorted({p["processed"] for p in told})
            assert told[-1]["processed"] == told[-1]["total"] > 900 and len({p["total"] for p in told}) == 1
            first = next(e["timings"] for e in events if "prompt_progress" in e)
            assert first["prompt_n"] == 0 == first["predicted_n"] and first["prompt_ms"] == 0.0
            assert cached or len(told) > 2, "in parts"
            assert sum("timings" in e for e in events) > len(told)
            assert not any("prompt_progress" in e for e in client.stream(path, {**body, "return_progress": False}))


def test_probabilities_after_all_stages(client: Client) -> None:
    body = {
        "prompt": "hello",
        "n_predict": 4,
        "n_probs": 5,
        "post_sampling_probs": True,
        "temperature": 1.0,
        "top_k": 3,
        "seed": 1,
    }
    found = client.ok("/completion", body)["completion_probabilities"]
    for one in found:
        tops = [top["prob"] for top in one["top_probs"]]
        assert 0 < one["prob"] <= 1 and 1 <= len(tops) <= 3 and sum(tops) == pytest.approx(1.0, abs=1e-4)
        assert any(top["id"] == one["id"] and top["prob"] == pytest.approx(one["prob"]) for top in one["top_probs"])


def test_what_an_answer_was_made_of(client: Client) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    assert "__verbose" not in client.ok("/v1/chat/completions", body)
    told = client.ok("/v1/chat/completions", {**body, "verbose": True})["__verbose"]
    assert told["prompt"] == "[user]hi[assistant]" and told["generation_settings"]["n_predict"] == 3


@pytest.mark.parametrize(("body", "status"), [
    ({"continue_final_message": True, "add_generation_prompt": False}, 200),
    ({"continue_final_message": True}, 400),
    ({"continue_final_message": "sometimes", "add_generation_prompt": False}, 400),
    ({}, 200),
], ids=str)  # fmt: skip
def test_a_message_that_is_continued(client: Client, body: dict, status: int) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, "}]
    got, found = client.post("/apply-template", {"messages": messages, **body})
    assert got == status, found
    if status == 200:
        assert found["prompt"] == "[user]hi[assistant]Well, "
    assert client.post("/apply-template", {"messages": [*messages, messages[-1]], **body})[0] in (400, status)


def test_many_requests_in_one(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(model, n_slots=1) as client:
        assert client.post("/predict", {"instances": []})[0] == 404
    monkeypatch.setenv("AIP_MODE", "PREDICTION")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/there")
    chat = {
        "@requestFormat": "chatCompletions",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 2,
        "stream": True,
    }
    with serving(model, n_slots=2) as client:
        found = client.ok(
            "/there",
            {
                "instances": [
                    chat,
                    {"@requestFormat": "/completion", "prompt": "x", "n_predict": 2},
                    {},
                    {"@requestFormat": "x"},
                ]
            },
        )
        first, second, *wrong = found["predictions"]
        assert first["choices"][0]["finish_reason"] == "length" and second["stop_type"] == "limit"
        assert [one["error"]["code"] for one in wrong] == [400, 400]
        for body in ({}, {"instances": []}, {"instances": 5}, {"instances": [chat] * 200}):
            assert client.post("/there", body)[0] == 400
