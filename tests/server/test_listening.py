"""What is closed before anybody knows of it, as too many connections are open; and TLS, whose handshake may never come."""

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
from http.client import HTTPSConnection
from pathlib import Path

import pytest
from mutants import Mutant, assert_caught
from pyggml_server import listening
from pyggml_server.listening import Accepted, Listening
from serving import serving
from waiting import until

from pyggml.model.model import Model


class Doors:
    """Two addresses at which two connections may be open together, and one late one."""

    def __init__(self) -> None:
        accepted = Accepted(2)
        self.listening = [Listening(socket.create_server(("127.0.0.1", 0)).detach(), accepted) for _ in range(2)]
        self.callers: list[socket.socket] = []

    def enter(self) -> socket.socket:
        """What is accepted, at one address and at the other by turns."""
        where = self.listening[len(self.callers) % 2]
        self.callers.append(socket.create_connection(where.getsockname(), 10))
        return where.accept()[0]

    def close(self) -> None:
        for sock in (*self.listening, *self.callers):
            sock.close()


def test_too_many_are_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "LATE", 1)
    with contextlib.closing(Doors()) as doors, contextlib.ExitStack() as stack:
        kept = [stack.enter_context(doors.enter()) for _ in range(3)]
        for _ in range(2):
            with pytest.raises(ConnectionAbortedError):
                stack.enter_context(doors.enter())
            assert doors.callers[-1].recv(1) == b"", "it is hung up on"
        kept[1].close()
        stack.enter_context(doors.enter()).sendall(b"!")
        assert doors.callers[-1].recv(1) == b"!"
        with pytest.raises(ConnectionAbortedError):
            stack.enter_context(doors.enter())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(key, certificate) of this machine, by itself."""
    if shutil.which("openssl") is None:
        missing = "no openssl here, which makes certificates"
        if os.environ.get("PYGGML_REQUIRE_PEER"):
            pytest.fail(missing)
        pytest.skip(missing)
    folder: Path = tmp_path_factory.mktemp("tls")
    key, made = str(folder / "key.pem"), str(folder / "cert.pem")
    kind = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", *kind, *name, "-keyout", key, "-out", made], check=True, capture_output=True)
    return key, made


def test_handshakes_that_never_come(
    model: Model, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch, wait: float = 20.0
) -> None:
    """Who says nothing keeps a place for as long as a head may take; what is beyond them is closed at once."""
    monkeypatch.setattr(listening, "LATE", 2)
    key, made = certificate
    trusted = ssl.create_default_context(cafile=made)
    with (
        serving(model, n_slots=1, ssl_key=key, ssl_cert=made, most_connections=3, header_timeout=0.4) as client,
        contextlib.ExitStack() as stack,
    ):

        def healthy() -> bool:
            with contextlib.closing(HTTPSConnection(client.host, client.port, timeout=10, context=trusted)) as link:
                try:
                    link.request("GET", "/health")
                    return link.getresponse().status == 200
                except OSError:
                    return False

        assert healthy()
        silent = [stack.enter_context(socket.create_connection((client.host, client.port), 10)) for _ in range(10)]
        for sock in silent:
            sock.settimeout(0.1)

        def n_open() -> int:
            number = 0
            for sock in silent:
                try:
                    sock.recv(1)
                except TimeoutError:
                    number += 1
                except OSError:
                    pass
            return number

        assert n_open() <= 5
        until(healthy, wait)
        until(lambda: n_open() == 0, wait)


MUTANTS: dict[str, Mutant] = {
    "no limit": (Listening, "accept", "not self._accepted.add(connection)", "False"),
    "what is closed counts": (Accepted, "add", "one.fileno() < 0", "False"),
    "what is open does not": (Accepted, "add", "one.fileno() < 0", "True"),
}
PATIENT: Mutant = (listening, "listen", "ssl_handshake_timeout=seconds", "ssl_handshake_timeout=None")


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    assert_caught(monkeypatch, MUTANTS[mutant], test_too_many_are_closed_at_once)


def test_patience_is_caught(model: Model, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyggml_server.serve.listen", lambda *args: listening.listen(*args))  # by its name there
    assert_caught(monkeypatch, PATIENT, test_handshakes_that_never_come, model=model, certificate=certificate, wait=1.0)
