"""The local server admits only the browser that opened the printed address, on its own page."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from served import Client, studio

PRIVATE = ["/", "/assets/studio.js", "/api/state", "/api/live/events", "/report/x", "/nowhere"]


@pytest.fixture
def closed() -> Iterator[Client]:
    """A studio that no browser has opened."""
    with studio() as found:
        yield found


def test_the_token_leads_in_and_becomes_a_strict_cookie(closed: Client) -> None:
    first = closed.enter()
    assert first.status == 200
    assert b'http-equiv="refresh" content="0; url=/"' in first.body
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'sha256-" in first.headers["content-security-policy"]
    parts = {part.strip().lower() for part in first.headers["set-cookie"].split(";")[1:]}
    assert parts == {"path=/", "httponly", "samesite=strict"}
    assert closed.token not in first.headers["set-cookie"]
    assert closed.token.encode() not in first.body
    assert closed.get("/").status == 200
    # finding the address later, in a history or a log, gives no access
    again = closed.get(f"/?token={closed.token}", cookie=None)
    assert b"refresh" in again.body
    assert "set-cookie" not in again.headers
    assert closed.get("/", cookie=None).status == 403
    # but a browser that was admitted continues
    assert closed.get(f"/?token={closed.token}").status == 303


def test_a_first_hit_that_comes_to_nothing_locks_nobody_out(closed: Client) -> None:
    for _ in range(40):  # previews of the link, which keep no cookie
        assert closed.get(f"/?token={closed.token}", cookie=None).status == 200
    first, second = (
        closed.get(f"/?token={closed.token}", cookie=None).headers["set-cookie"].partition(";")[0] for _ in range(2)
    )
    assert first != second
    # one browser: the first that comes back with its cookie
    assert closed.get("/api/state", cookie=second).status == 200
    for late in (first, f"headway-studio-{closed.port}=", None):
        assert closed.get("/api/state", cookie=late).status == 403
    assert "set-cookie" not in closed.get(f"/?token={closed.token}", cookie=None).headers


def test_a_link_from_another_site_leads_on(closed: Client) -> None:
    # before anybody is in, a link without the token shows nothing, and after that only the way to the page itself
    assert closed.get("/", cookie=None, sec_fetch_site="cross-site").status == 403
    assert closed.get(f"/?token={closed.token}", cookie=None, sec_fetch_site="cross-site").status == 200
    closed.enter()
    assert closed.get("/").status == 200
    linked = closed.get("/", cookie=None, sec_fetch_site="cross-site")
    assert (linked.status, b"refresh" in linked.body, b"main.js" in linked.body) == (200, True, False)
    assert closed.get("/api/state", cookie=None, sec_fetch_site="cross-site").status == 403
    assert closed.get("/", cookie=None, sec_fetch_site="same-origin").status == 403


def test_the_address_is_handed_over_in_a_file_that_only_its_user_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    from headway.studio.server import Studio

    opened = Studio()
    seen: list[tuple[int, str, str]] = []

    def browser(address: str) -> bool:
        page = Path(unquote(urlparse(address).path))
        seen.append((page.stat().st_mode & 0o777, page.read_text(), address))
        opened.guard.entered.set()
        return True

    monkeypatch.setattr("webbrowser.open", browser)
    opened.open_browser()
    ((mode, text, address),) = seen
    assert mode == 0o600
    assert opened.url in text
    assert address.startswith("file://")
    assert opened.token not in address
    assert not Path(unquote(urlparse(address).path)).exists()
    opened.close()


def test_slow_connections_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.studio.server.ARRIVAL", 0.4)
    with studio() as client:
        client.enter()
        host = f"Host: 127.0.0.1:{client.port}\r\nCookie: {client.cookie}\r\n".encode()
        post = b"POST /api/view HTTP/1.1\r\n" + host + b"Content-Type: application/json\r\nContent-Length: 90\r\n\r\n"
        whole = b"GET /api/state HTTP/1.1\r\n" + host + b"\r\n"
        for begun in (b"", b"GET / HTTP/1.1\r\nHost:", post + b'{"view"', whole + b"GET /api"):
            with socket.create_connection(("127.0.0.1", client.port), timeout=5) as slow:
                start = time.monotonic()
                with contextlib.suppress(ConnectionError):
                    slow.sendall(begun)
                    for _ in range(40):  # a byte now and then does not keep it open
                        time.sleep(0.05)
                        if begun:
                            slow.sendall(b"x")
                        if select.select([slow], [], [], 0)[0] and not slow.recv(65536):
                            break
                assert 0.3 < time.monotonic() - start < 1.9, begun
        # a slow answer is not a slow connection
        monkeypatch.setattr("headway.studio.routes.view", lambda *_: time.sleep(0.8) or {}["late"])
        assert client.view("head", "something new").status == 500


def test_so_many_connections_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.studio.server.CONNECTIONS", 5)
    with studio() as client, contextlib.ExitStack() as held:
        client.enter()
        for _ in range(5):
            held.enter_context(socket.create_connection(("127.0.0.1", client.port), timeout=5))
        time.sleep(0.2)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            client.get("/api/state")
        held.close()
        time.sleep(0.2)
        assert client.get("/api/state").status == 200


def test_a_wrong_token_opens_nothing_and_spends_nothing(closed: Client) -> None:
    for query in ("token=", "token=x", f"token={closed.token}x", f"token=x&token={closed.token}", "token=%ff", "tok"):
        assert closed.get(f"/?{query}").status == 403, query
    assert closed.get(f"/api/state?token={closed.token}").status == 403
    assert closed.get(f"//?token={closed.token}").status == 403
    assert closed.ask("HEAD", f"/?token={closed.token}").status == 403
    assert closed.post(f"/?token={closed.token}").status == 403
    assert closed.get(f"/?token={closed.token}", host="evil.example").status == 403
    assert closed.enter().status == 200


@pytest.mark.parametrize("path", PRIVATE)
def test_nothing_without_the_cookie(closed: Client, path: str) -> None:
    assert closed.get(path).status == 403
    assert closed.get(path, cookie=f"headway-studio-{closed.port}=").status == 403
    assert closed.get(path, cookie=f"headway-studio-{closed.port}=guess").status == 403
    assert closed.post(path, {}).status == 403


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost", "127.0.0.1:{port}.evil.example",
     "evil.example@127.0.0.1:{port}", "127.0.0.1:{port}@evil", "LOCALHOST.evil:{port}", "[::1]", "127.1:{port}",
     "0.0.0.0:{port}", "127.0.0.1:{port}:80", ""],
)  # fmt: skip
def test_a_foreign_host_is_refused(client: Client, host: str) -> None:
    for path in ("/", "/api/state"):
        assert client.get(path, host=host.format(port=client.port)).status == 403


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
def test_its_own_names_are_known(client: Client, name: str) -> None:
    host = f"{name}:{client.port}"
    assert client.get("/api/state", host=host).status == 200
    assert client.post("/api/live/pause", host=host, origin=f"http://{host}").status != 403


def test_a_request_with_no_host_or_two(client: Client) -> None:
    lines = [f"Cookie: {client.cookie}", "Connection: close"]
    own = f"Host: 127.0.0.1:{client.port}"
    for hosts in ([], [own, "Host: evil.example"], ["Host: evil.example", own], [own, own]):
        reply = client.raw("\r\n".join(["GET /api/state HTTP/1.1", *hosts, *lines, "", ""]).encode())
        assert reply.split(b" ")[1] in (b"400", b"403"), hosts
        assert b"runs" not in reply
    # an address in the request line does not stand in for the Host header
    reply = client.raw("\r\n".join(["GET http://evil.example/api/state HTTP/1.0", *lines, "", ""]).encode())
    assert reply.split(b" ")[1] in (b"400", b"403")


@pytest.mark.parametrize(
    "origin",
    [None, "", "null", "http://evil.example", "http://127.0.0.1", "http://127.0.0.1:1", "https://127.0.0.1:{port}",
     "http://127.0.0.1:{port}.evil.example", "http://localhost:{port}", "http://127.0.0.1:{port}/"],
)  # fmt: skip
def test_changes_come_from_the_own_origin_only(client: Client, origin: str | None) -> None:
    given = None if origin is None else origin.format(port=client.port)
    for path in ("/api/view", "/api/live", "/api/live/stop"):
        assert client.post(path, {"view": "head"}, origin=given).status == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site", "nonsense"])
def test_requests_that_other_pages_start_are_refused(client: Client, site: str) -> None:
    assert client.get("/api/state", sec_fetch_site=site).status == 403
    assert client.get("/assets/studio.js", sec_fetch_site=site).status == 403
    assert client.post("/api/view", {"view": "head"}, sec_fetch_site=site).status == 403
    assert client.get("/", sec_fetch_site=site).status == 200  # a link may lead here, if the browser has the cookie
    assert client.get("/api/state", sec_fetch_site="same-origin").status == 200


def test_every_answer_carries_the_policy(client: Client) -> None:
    answers = [
        client.get("/"),
        client.get("/assets/studio.js"),
        client.get("/api/state"),
        client.get("/nowhere"),
        client.get("/", cookie=None),
        client.post("/api/view", {}),
        client.get("/", host="evil.example"),
    ]
    for answer in answers:
        assert answer.headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert "server" not in answer.headers


def test_no_cors_preflight_is_answered(client: Client) -> None:
    asked = {"origin": "http://evil.example", "access_control_request_method": "POST"}
    reply = client.ask("OPTIONS", "/api/view", **asked)
    assert reply.status == 403
    own = client.ask("OPTIONS", "/api/view")
    assert own.status == 405
    assert not [name for name in own.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "path",
    ["/assets/../guard.py", "/assets/..%2f..%2fstudio%2fguard.py", "/assets/%2e%2e/%2e%2e/cli.py",
     "/assets//etc/passwd",
     "/assets/%2Fetc%2Fpasswd", "/assets/studio.js%00.css", "/assets/..\\..\\cli.py", "/assets/", "/assets/en.json/..",
     "/assets/..;/studio.js", "/report/..%2f..%2fetc%2fpasswd", "/report/%2e%2e", "/report/../../settings.json",
     "/report//etc/passwd", "/report/compared"],
)  # fmt: skip
def test_paths_lead_nowhere(client: Client, path: str) -> None:
    reply = client.get(path)
    assert reply.status in (400, 404)
    assert len(reply.body) < 300


@pytest.mark.parametrize("identity", ["../compared", "/etc", "..", "my run", "a/b", "compared", "", "x" * 500, 3, None])
def test_artefacts_are_known_by_id_only(client: Client, folders: list[Path], identity: object) -> None:
    for body in ({"model": {"run": identity}}, {"others": [{"run": identity}]}, {"results": identity or 0.5}):
        reply = client.view("head", **body)
        if body.get("results") == 0.5 and identity is None:
            body["results"] = 1
        assert reply.status == 400, (identity, body)
        assert "secret-place" not in reply.json()["error"]
    reply = client.view("head", model={"run": str(folders[0])})
    assert reply.status == 400


def test_other_methods_are_refused(client: Client) -> None:
    assert client.post("/api/state").status == 405
    assert client.get("/api/view").status == 405
    assert client.ask("DELETE", "/api/live").status == 405
    assert client.ask("PUT", "/assets/studio.js", b"x").status == 405
    assert client.ask("TRACE", "/").status == 405


def test_large_bodies_are_refused(client: Client) -> None:
    large = json.dumps({"view": "head", "text": "x" * (1 << 20)}).encode()
    assert client.ask("POST", "/api/view", large).status == 413
    # and when the length is not told, as soon as it is too much
    head = "\r\n".join([
        "POST /api/view HTTP/1.1", f"Host: 127.0.0.1:{client.port}", f"Origin: http://127.0.0.1:{client.port}",
        f"Cookie: {client.cookie}", "Content-Type: application/json", "Transfer-Encoding: chunked", "Connection: close",
        "", "",
    ])  # fmt: skip
    chunks = b"%x\r\n%s\r\n" % (1 << 19, b"x" * (1 << 19))
    assert client.raw(head.encode() + 3 * chunks + b"0\r\n\r\n").split(b" ")[1] == b"413"
    assert client.get("/api/state").status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", None])
def test_only_json_is_read(client: Client, kind: str | None) -> None:
    assert client.post("/api/view", {"view": "head"}, content_type=kind).status == 415


def test_reports_have_a_policy_of_their_own(client: Client) -> None:
    (one,) = client.get("/api/state").json()["comparisons"]
    reply = client.get(f"/report/{one['id']}")
    policy = reply.headers["content-security-policy"]
    assert reply.status == 200
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "'unsafe" not in policy
    assert "'sha256-" in policy
    assert "connect-src" not in policy  # a report asks for nothing
    assert client.get(f"/report/{one['id']}", sec_fetch_site="cross-site").status == 403


def test_scripts_in_texts_stay_text(client: Client) -> None:
    text = "<script>alert(1)</script> </script><img src=x onerror=alert(2)> &amp; \u2028 '\""
    reply = client.view("head", text)
    assert reply.headers["content-type"].startswith("application/json")
    assert reply.status == 200
    assert "script" in reply.json()["meta"]["tokens"]
    bad = client.view("head", options={"<b>": 1})
    assert bad.status == 400
    assert bad.headers["content-type"].startswith("application/json")
    page = client.get("/?x=<script>alert(1)</script>")
    assert page.status == 303
    assert b"alert" not in client.get("/<script>alert(1)</script>").body
