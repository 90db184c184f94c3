"""The page's files as the server sends them: who gets them, and what a browser is told to forbid."""

import re
from importlib import metadata

import pytest
from pyggml_server import page
from serving import Client, serving

from pyggml.model.model import Model


def test_every_file_is_sent_with_its_type_and_the_policy(client: Client) -> None:
    assert len(page.PATHS) > 10
    for path, file in page.PATHS.items():
        status, headers, data = client.raw("GET", path)
        assert (status, data) == (200, file.read_bytes())
        assert headers["content-type"].split(";")[0] in ("text/html", "text/css", "text/javascript", "image/svg+xml")
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'self';") and "unsafe" not in policy and "*" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert client.raw("GET", path, headers={"if-none-match": headers["etag"]})[0::2] == (304, b"")


def test_the_page_names_no_other_host_and_no_html() -> None:
    for file in page.FOLDER.iterdir():
        text = file.read_text()
        hosts = [host for host in re.findall(r"https?://([\w.-]+)", text) if host != "www.w3.org"]
        assert hosts == [], file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            file.name
        )


def test_every_file_that_the_page_names_is_there() -> None:
    named = set()
    for file in page.FOLDER.iterdir():
        text = file.read_text()
        named |= {f"/page/{name}" for name in re.findall(r'from "\./([\w.]+)"', text)}
        named |= {f"/{name}" for name in re.findall(r'(?:src|href)="(page/[\w.]+)"', text)}
    assert named == set(page.PATHS) - {"/", "/index.html"}


def test_a_file_that_is_none_of_the_page_is_not_there(client: Client) -> None:
    for path in ("/page/", "/page/..%2fpage.py", "/page/../page.py", "/page.py", "/page/nothing.js"):
        assert client.raw("GET", path)[0] == 404
    assert client.raw("POST", "/")[0] == 405


def test_without_ui_there_is_no_page(model: Model) -> None:
    with serving(model, ui=False) as client:
        assert {client.raw("GET", path)[0] for path in page.PATHS} == {404}
        assert client.get("/health")[0] == 200


def test_behind_a_prefix_and_a_key_the_page_is_for_all_and_the_rest_is_not(model: Model) -> None:
    with serving(model, api_prefix="/llm", api_keys=("secret",)) as client:
        status, headers, _ = client.raw("GET", "")
        assert (status, headers["location"]) == (307, "/llm/")
        for path in page.PATHS:
            assert client.raw("GET", path)[0] == 200
        for path in ("/props", "/v1/models", "/slots", "/page/x"):
            assert client.raw("GET", path)[0] == 401


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://192.168.7.7:9931", "192.168.7.7:9931", 200),
        ("http://[fd00::7]:9931", "[fd00::7]:9931", 200),
        ("http://192.168.7.7:9931", "192.168.7.8:9931", 403),
        ("http://192.168.7.7:80", "192.168.7.7:9931", 403),
        ("http://evil.example:9931", "evil.example:9931", 403),  # a name may be made to lead here
        ("null", "null", 403),
    ],
)
def test_the_page_may_be_opened_by_the_servers_address(client: Client, origin: str, host: str, status: int) -> None:
    assert client.raw("GET", "/v1/models", headers={"Origin": origin, "Host": host})[0] == status


def test_an_installed_package_has_the_page() -> None:
    """A wheel's record lists its files; an editable installation has none of the package's."""
    record = {str(file) for file in metadata.files("pyggml") or ()}
    if "pyggml_server/app.py" not in record:
        pytest.skip("pyggml is installed in place, not from a wheel; .ci/run installs one")
    assert {f"pyggml_server/page/{file.name}" for file in page.FOLDER.iterdir()} <= record
