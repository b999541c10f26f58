"""Whom the server of `dvt-fast look` answers, and what no request can do."""

import re
import socket

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
from starlette.testclient import TestClient

from dvt_fast.errors import InputError
from dvt_fast.look.model import Shown
from dvt_fast.look.server import Address, is_local, listen, make_app
from dvt_fast.look.session import Session
from look_samples import settled

TOKEN = "the-token-that-was-printed"
HERE = Address("127.0.0.1", 8765)


@pytest.fixture
def client(tmp_path):
    """Makes a client of the application, at `address`, with three images."""
    sessions = []

    def build(address=HERE):
        images = [tmp_path / f"{i}.png" for i in range(3)]
        sessions.append(Session(images, lambda path, progress: Shown(b"picture", b"data"), lambda *_: "failed"))
        app = make_app(sessions[-1], address)
        return TestClient(app, base_url=f"http://{address.host}:{address.port}")

    yield build
    for session in sessions:
        session.close()


def test_the_page_and_what_it_asks_for(client):
    browser = client()
    page = browser.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"/look.js", "/look.css", "/icon.svg"} == set(files)
    for file in (*files, "/data.js", "/tile.js"):
        assert browser.get(file).status_code == 200, file
    assert browser.get("/api/images").json() == {"images": ["0.png", "1.png", "2.png"]}
    assert browser.get("/api/images/1/data").status_code == 404
    assert settled(lambda: browser.get("/api/images/1").json()) == {"state": "ready"}
    assert browser.get("/api/images/1/data").content == b"data"
    assert browser.get("/api/images/1/picture").content == b"picture"


@pytest.mark.parametrize("path", ["/", "/api/images", "/api/images/7", "/look.js", "/nothing", "/api/images/0/data"])
def test_every_answer_forbids_the_browser_to_go_elsewhere(client, path):
    for headers in ({}, {"host": "evil.example"}):
        answer = client().get(path, headers=headers)
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy.pop("default-src") == "'none'"
        assert set(policy.values()) == {"'self'", "'none'"}
        assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:8765", "localhost:9000", "[::1]:1", "LOCALHOST"])
def test_this_machine_has_these_names(client, host):
    assert client().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.evil.example", "1.2.3.4", "", "["],
)
def test_another_name_is_refused(client, host):
    assert client().get("/api/images", headers={"host": host}).status_code == 403


def test_of_all_addresses_numbers_are_known_and_foreign_names_are_not(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "Robot")
    address = Address("0.0.0.0", 80, TOKEN)
    assert all(map(address.is_called, ["192.168.1.20:80", "[fe80::1]:80", "robot", "robot.local:80", "localhost"]))
    assert not any(map(address.is_called, ["evil.example", "robot.evil.example", "1.2.3.4.evil.example", ""]))
    assert address.url == f"http://Robot:80/?token={TOKEN}"


@pytest.mark.parametrize("site, status", [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)])
def test_other_sites_may_not_ask(client, site, status):
    browser = client()
    for path in ("/api/images", "/api/images/0", "/look.js"):
        assert browser.get(path, headers={"sec-fetch-site": site}).status_code == status
    assert browser.get("/", headers={"sec-fetch-site": site}).status_code == 200  # a link may lead here


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(client, method):
    browser = client()
    for path in ("/", "/api/images", "/api/images/0"):
        assert browser.request(method, path).status_code == 405


@pytest.mark.parametrize("index", ["3", "-1", "99999999999", "9" * 5000, "0.png", "..%2f..%2fetc%2fpasswd", "%00", "١"])
def test_an_image_is_asked_for_by_its_number_alone(client, index):
    browser = client()
    for path in (f"/api/images/{index}", f"/api/images/{index}/picture", f"/api/images/{index}/data"):
        assert browser.get(path).status_code == 404
    for path in ("/../model.py", "/%2e%2e/model.py", "/look.js/../../model.py", "/assets/look.js", "//etc/passwd"):
        assert browser.get(path).status_code == 404


def test_a_token_is_asked_for_and_then_kept_in_a_cookie(client):
    browser = client(Address("127.0.0.1", 8765, TOKEN))
    for path in (
        "/",
        "/look.js",
        "/api/images",
        "/api/images/0",
        "/nothing",
        "/?token=wrong",
        "/?token=",
        "/?token=%C3%A9",
    ):
        answer = browser.get(path)
        assert answer.status_code == 403 and "set-cookie" not in answer.headers and TOKEN not in answer.text
    assert browser.get("/", headers={"cookie": "dvt_fast_look_8765=wrong"}).status_code == 403
    assert browser.post("/").status_code == 403
    answer = browser.get(f"/?token={TOKEN}")
    assert answer.status_code == 200
    name, *attributes = answer.headers["set-cookie"].split("; ")
    assert name == f"dvt_fast_look_8765={TOKEN}" and {"HttpOnly", "SameSite=Strict"} <= set(attributes)
    assert browser.get("/api/images").status_code == 200  # by the cookie
    assert browser.get("/", headers={"host": "evil.example"}).status_code == 403


def test_without_a_token_no_cookie_is_set(client):
    assert "set-cookie" not in client().get("/?token=x").headers


def test_which_addresses_need_no_token():
    assert all(map(is_local, ["127.0.0.1", "localhost", "::1"]))
    assert not any(map(is_local, ["0.0.0.0", "::", "192.168.1.20", "robot"]))


def test_addresses_that_cannot_be_listened_on():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert port > 0
        with pytest.raises(InputError, match=rf"cannot listen on 127\.0\.0\.1, port {port}: .*in use; .*--port 0"):
            listen("127.0.0.1", port)
    with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.1"):  # an address for documentation
        listen("192.0.2.1", 0)
