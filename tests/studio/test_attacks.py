"""Attacks on the studio, one a line: what is sent, and what may come back. None may succeed, crash it or hold it up."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from served import Client, studio

SOON = 20.0
"""Seconds within which every attack is answered, on a machine that does much else."""


def refused(reply: Any, *statuses: int) -> None:
    """Not answered with content, and nothing is told of folders, secrets or code."""
    assert reply.status in statuses, (reply.status, reply.body[:300])
    for secret in (b"secret-place", b"Traceback", b"/site-packages/"):
        assert secret not in reply.body
    assert len(reply.body) < 2500


# --- names and addresses --------------------------------------------------------------------------------------------

REBINDING = (
    *("localtest.me:{port}", "127.0.0.1.nip.io:{port}", "2130706433:{port}", "0x7f000001:{port}", "0177.0.0.1:{port}"),
    *("localhost.:{port}", "[::ffff:127.0.0.1]:{port}", "[0:0:0:0:0:0:0:1]:{port}", "127.0.0.2:{port}"),
    *("127.0.0.1:0{port}", "127.0.0.1:{port},evil.example", "lòcalhost:{port}", "LOCALHOST:{port}"),
    *("127.0.0.1:{port}/", "127.0.0.1:{port} ", "127.0.0.1:{port}\x0b"),
)  # fmt: skip


@pytest.mark.parametrize("host", REBINDING)
def test_names_that_lead_here_are_not_its_own(client: Client, host: str) -> None:
    lines = [f"Host: {host.format(port=client.port)}", f"Cookie: {client.cookie}", "Connection: close", "", ""]
    reply = client.raw(("GET /api/state HTTP/1.1\r\n" + "\r\n".join(lines)).encode())
    if host.endswith(" "):  # white space around a value is not part of it
        assert b'"runs"' in reply
        return
    assert reply.split(b" ")[1] in (b"400", b"403")
    assert b'"runs"' not in reply


@pytest.mark.parametrize(
    "headers",
    [
        {"x_forwarded_host": "127.0.0.1:{port}"},
        {"forwarded": "host=127.0.0.1:{port};for=127.0.0.1"},
        {"x_original_url": "/"},
        {"x_rewrite_url": "/"},
        {"x_http_method_override": "GET"},
        {"x_real_ip": "127.0.0.1"},
    ],
)
def test_headers_of_proxies_are_ignored(client: Client, headers: dict[str, str]) -> None:
    given = {name: value.format(port=client.port) for name, value in headers.items()}
    refused(client.get("/api/state", host="evil.example", **given), 403)
    refused(client.get("/api/state", cookie=None, **given), 403)
    refused(client.post("/api/view", {"view": "head"}, origin="http://evil.example", **given), 403)


# --- requests within requests ---------------------------------------------------------------------------------------

HEAD = "Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
INNER = "GET /api/state HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
SMUGGLED = {
    "both lengths": "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}",
    "two lengths": "Content-Length: 2\r\nContent-Length: 60\r\n\r\n{{}}{inner}",
    "signed length": "Content-Length: +2\r\n\r\n{{}}{inner}",
    "no length": "\r\n{inner}",
    "hidden chunked": "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n{inner}",
    "chunked twice": "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n{inner}",
    "not chunked": "Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{{}}{inner}",
    "space in a name": "Content-Length : 2\r\n\r\n{{}}{inner}",
    "folded": "X: a\r\n Content-Length: 99\r\nContent-Length: 2\r\n\r\n{{}}{inner}",
    "bare newlines": "Content-Length: 2\n\n{{}}{inner}",
    "chunk extension": "Transfer-Encoding: chunked\r\n\r\n2;x={inner}\r\n{{}}\r\n0\r\n\r\n",
    "wrong chunk": "Transfer-Encoding: chunked\r\n\r\n-1\r\n{{}}\r\n0\r\n\r\n{inner}",
    "null in a value": "X: a\x00b\r\nContent-Length: 2\r\n\r\n{{}}{inner}",
}


@pytest.mark.parametrize("how", SMUGGLED)
def test_a_request_in_a_request_has_no_access(client: Client, how: str) -> None:
    # the outer request has the cookie, the inner one has not: it must not be answered in its name
    body = SMUGGLED[how].format(inner=INNER.format(port=client.port))
    sent = f"POST /api/live/pause HTTP/1.1\r\n{HEAD.format(port=client.port)}Cookie: {client.cookie}\r\n{body}"
    reply = client.raw(sent.encode("latin-1"))
    assert b'"runs"' not in reply
    assert b"500" not in reply.split(b"\r\n")[0]


@pytest.mark.parametrize(
    "lines",
    [
        "GET / HTTP/1.1\r\n{own}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        "GET /api/state HTTP/1.1\r\n{own}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        "HTTP2-Settings: AAMAAABk\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "CONNECT 127.0.0.1:22 HTTP/1.1\r\n{own}\r\n",
        "GET http://127.0.0.1:22/ HTTP/1.1\r\n{own}\r\n",
        "GET /api/state HTTP/0.9\r\n\r\n",
        "GET  /api/state  HTTP/1.1\r\n{own}\r\n",
        "GET /api/state\x00 HTTP/1.1\r\n{own}\r\n",
        "GET /" + "a" * 40_000 + " HTTP/1.1\r\n{own}\r\n",
        "GET /api/state HTTP/1.1\r\n{own}" + "".join(f"X-{n}: {'y' * 90}\r\n" for n in range(400)) + "\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["websocket", "h2c", "h2", "connect", "address", "0.9", "spaces", "null", "long path", "headers", "tls"],
)  # fmt: skip
def test_other_protocols_are_not_spoken(client: Client, lines: str) -> None:
    sent = lines.format(own=f"Host: 127.0.0.1:{client.port}\r\nConnection: close\r\n")  # without a cookie
    reply = client.raw(sent.encode("latin-1"))
    assert not reply.startswith((b"HTTP/1.1 101", b"HTTP/1.1 200", b"HTTP/1.1 5"))
    assert b"SSH" not in reply
    assert b'"runs"' not in reply
    assert client.get("/api/state").status == 200


# --- cookies --------------------------------------------------------------------------------------------------------


def test_a_cookie_that_another_server_sets_opens_nothing_and_locks_nobody_out(client: Client) -> None:
    name = f"headway-studio-{client.port}"
    for evil in (f"{name}=x", f"{name}=", f"{name}=x; {name}=y", f'"{name}"=z', f" {name} = x", "=; ;;=", "\xff=\xfe"):
        refused(client.get("/api/state", cookie=evil), 403)
        assert client.get("/api/state", cookie=f"{evil}; {client.cookie}").status == 200
        assert client.get("/api/state", cookie=f"{client.cookie}; {evil}").status == 200
    for near in (client.cookie[:-1], client.cookie + "x", client.cookie.upper(), client.cookie.replace("=", "==")):
        refused(client.get("/api/state", cookie=near), 403)


def test_pages_cannot_be_framed_and_links_tell_nothing(client: Client) -> None:
    for path in ("/", "/assets/studio.js", "/nowhere"):
        reply = client.get(path)
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert client.token.encode() not in reply.body + json.dumps(reply.headers).encode()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", None])
def test_a_form_of_another_site_changes_nothing(client: Client, kind: str, origin: str | None) -> None:
    before = client.get("/api/live/events").json()["session"]
    for path in ("/api/live", "/api/live/play", "/api/live/stop", "/api/view"):
        refused(client.post(path, {"text": "a", "view": "head"}, origin=origin, content_type=kind), 403)
    refused(client.post("/api/live", {"text": "a"}, content_type=kind), 415)  # and none of its own
    assert client.get("/api/live/events").json()["session"] == before


# --- sizes ----------------------------------------------------------------------------------------------------------

BOMBS = (
    *("swin(height=4096, width=4096)", "swinv2(height=65536, width=65536)", "learned(max_length=1000000000)"),
    *("learned(max_length=" + "9" * 250 + ")", "shaw(clip=10000000000)", "t5(buckets=4000000000)"),
    *("yarn(beta_fast=1e308)", "yarn(beta_slow=5e-324)", "rotary(base=1e999)", "rotary(base=nan)", "rotary(base=-inf)"),
    *("rotary(" + "(" * 280, "[" * 300, "rotary(base=" + "-" * 281 + "1)", "rotary(base=9**9**9)"),
    *("rotary(base=(1,)*10**9)"),
    *("__import__('os').system('x')", "rotary(base=open('/etc/passwd'))", "rotary.__class__", "../../etc/passwd"),
    *("\u202erotary", "ｒｏｔａｒy\u200d", "rotary\x00", "<img src=x onerror=alert(1)>", "rotary(base='<script>')"),
)  # fmt: skip


@pytest.mark.parametrize("spec", BOMBS)
def test_no_method_is_a_bomb(client: Client, spec: str) -> None:
    begun = time.monotonic()
    refused(client.view("head", model={"fresh": {"position": spec}}), 400)
    refused(client.view("head", others=[{"fresh": {"position": spec}}]), 400, 200)  # of no use to this view
    refused(client.view("whatif", options={"change": "swap", "position": spec}), 400)
    refused(client.post("/api/live", {"position": spec, "text": "a b c"}), 400)
    assert time.monotonic() - begun < SOON


BODIES: dict[str, bytes] = {
    "deep lists": b'{"view": "head", "options": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "deep objects": b'{"a":' * 150_000,
    "many keys": json.dumps({"view": "head", "options": {f"k{n}": n for n in range(60_000)}}).encode(),
    "many models": json.dumps({"view": "head", "others": [{"fresh": {}}] * 50_000}).encode(),
    "long number": b'{"view": "head", "layer": ' + b"9" * 900_000 + b"}",
    "endless number": b'{"view": "step", "options": {"lr_sgd": 1e999}}',
    "tiny number": b'{"view": "step", "options": {"lr_adam": 1e-999}}',
    "not a number": b'{"view": "head", "query": NaN}',
    "negative": b'{"view": "vectors", "options": {"positions": -1}}',
    "ten megabytes": b'{"view": "head", "text": "' + b"x" * 10_000_000 + b'"}',
    "compressed": b"\x1f\x8b\x08\x00" + b"\x00" * 1000,
    "utf-16": json.dumps({"view": "head"}).encode("utf-16"),
    "utf-7": b'{"view": "+ADw-script+AD4-"}',
    "a mark before": b"\xef\xbb\xbf" + b'{"view": "head"}',
    "escapes": b'{"view": "' + b"\\u0000" * 100_000 + b'"}',
    "nothing": b"",
    "a prototype": b'{"view": "head", "__proto__": {"x": 1}, "constructor": 1}',
}


@pytest.mark.parametrize("what", BODIES)
def test_no_body_is_a_bomb(client: Client, what: str) -> None:
    begun = time.monotonic()
    with contextlib.suppress(ConnectionError):  # closed before all was sent
        refused(client.ask("POST", "/api/view", BODIES[what]), 400, 413)
    assert time.monotonic() - begun < SOON
    assert client.get("/api/state").status == 200


TEXTS = {
    "one long word": "x" * 100_000,
    "marks": "a" + "\u0301" * 50_000,
    "spaces": " " * 99_999 + "a",
    "controls": "".join(map(chr, range(32))) * 20 + " a",
    "directions": "\u202e\u2066abc\u2069\u200f \ufeff a b",
    "halves": "\ud800 \udfff a",
    "emoji": "👩‍👩‍👧‍👦 " * 100,
    "quotes": "'" * 2000 + ' "' * 500,
    "markup": "<img src=x onerror=alert(1)> </script> ${1} {0} %s",
    "templates": "{tokens} {label} `code` {0.__class__}",
}


@pytest.mark.parametrize("what", TEXTS)
def test_no_text_is_a_bomb(client: Client, what: str) -> None:
    begun = time.monotonic()
    for view in ("head", "stepper", "split"):
        reply = client.view(view, TEXTS[what])
        assert reply.status in (200, 400), reply.body[:300]
        assert len(reply.body) < 4_000_000
        assert not any(letter in reply.body.decode() for letter in "\u202e\u2066\u200f\x1b\x00")
    assert time.monotonic() - begun < SOON


@pytest.mark.parametrize(
    "query",
    ["source=../../etc/passwd", "source=%00", "level=99999999999999999999", "level=-1", "row=1e9", "how=__class__",
     "source=" + "x" * 9000, "level=%D9%A3", "source=a&source=b", "level=0x10"],
)  # fmt: skip
def test_tiles_are_of_maps_that_were_shown(client: Client, query: str) -> None:
    refused(client.get(f"/api/tiles?{query}"), 400, 404)


@pytest.mark.parametrize("since", ["1-1;", "١-١", "-1-0", "0-0\n", "9" * 20 + "-0", "<script>", "%s" * 3])
def test_events_are_told_by_number(client: Client, since: str) -> None:
    refused(client.get(f"/api/live/events?since={quote(since)}"), 400)


# --- folders that a stranger wrote ----------------------------------------------------------------------------------


def _header(size: int, text: bytes = b"") -> bytes:
    return struct.pack("<Q", size) + text


def _tensors(**tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return _header(len(text), text)


WEIGHTS: dict[str, bytes] = {
    "empty": b"",
    "short": b"\x01",
    "endless header": _header(2**63),
    "header of all memory": _header(2**40, b"{}"),
    "no json": _header(4, b"xxxx"),
    "deep json": _header(200_000, b"[" * 200_000),
    "negative": _tensors(a={"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}) + bytes(16),
    "beyond the end": _tensors(a={"dtype": "F32", "shape": [4], "data_offsets": [0, 2**50]}),
    "backwards": _tensors(a={"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}) + bytes(16),
    "overlapping": _tensors(
        a={"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        b={"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
    ) + bytes(24),
    "huge shape": _tensors(a={"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}) + bytes(16),
    "odd type": _tensors(a={"dtype": "PICKLE", "shape": [4], "data_offsets": [0, 16]}) + bytes(16),
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.",
}  # fmt: skip


def _weights(run: Path, data: bytes) -> None:
    for file in run.glob("checkpoints/*/model.safetensors"):
        file.write_bytes(data)


def _link(target: str, name: str) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        for file in run.glob(name):
            file.unlink()
            file.symlink_to(target)

    return act


def _pipe(name: str) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        for file in run.glob(name):
            file.unlink()
            os.mkfifo(file)

    return act


def _settings(**more: Any) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        text = (run / "settings.json").read_text()
        found = json.loads(text)
        found.pop("seal", None)
        found["config"] = {**found.get("config", found.get("model", {})), **more}
        (run / "settings.json").write_text(json.dumps(found))

    return act


FOLDERS: dict[str, Callable[[Path], None]] = {
    **{f"weights: {name}": (lambda run, data=data: _weights(run, data)) for name, data in WEIGHTS.items()},
    "weights are a link": _link("/etc/passwd", "checkpoints/*/model.safetensors"),
    "weights are endless": _link("/dev/zero", "checkpoints/*/model.safetensors"),
    "weights are a pipe": _pipe("checkpoints/*/model.safetensors"),
    "settings are a link": _link("/etc/passwd", "settings.json"),
    "settings are endless": _link("/dev/zero", "settings.json"),
    "settings are deep": lambda run: run.joinpath("settings.json").write_text("[" * 200_000) and None,
    "settings are large": _settings(dim=200_000),
    "settings are wide": _settings(dim=3072, layers=64),
    "settings are a bomb": _settings(position="swin(height=4096, width=4096)"),
    "settings are markup": _settings(position="<img src=x onerror=alert(1)>"),
    "a folder in a circle": lambda run: run.joinpath("checkpoints", "step-9").symlink_to(run),
}  # fmt: skip


def test_no_folder_is_a_bomb(folders: list[Path], tmp_path: Path) -> None:
    made = tmp_path / "made"
    for number, act in enumerate(FOLDERS.values()):
        shutil.copytree(folders[0], made / f"run-{number:02}")
        act(made / f"run-{number:02}")
    with studio([made]) as client:
        client.enter()
        begun = time.monotonic()
        runs = {one["title"]: one["id"] for one in client.get("/api/state").json()["runs"]}
        for number, what in enumerate(FOLDERS):
            identity = runs.get(f"run-{number:02}")
            if identity is None:
                assert what.startswith("settings"), what  # not listed at all
                continue
            reply = client.view("head", "to be", model={"run": identity})
            assert reply.status in ((200, 400) if what == "a folder in a circle" else (400,)), (what, reply.body[:300])
            assert b"root:" not in reply.body, what
            assert str(tmp_path).encode() not in reply.body, what
        assert time.monotonic() - begun < 2 * SOON
    assert not Path("pwned").exists()


# --- many at once ---------------------------------------------------------------------------------------------------


def test_many_who_ask_at_once_hold_up_nobody(client: Client) -> None:
    host = f"Host: 127.0.0.1:{client.port}\r\nCookie: {client.cookie}\r\n".encode()
    with contextlib.ExitStack() as held:
        for _ in range(60):
            one = held.enter_context(socket.create_connection(("127.0.0.1", client.port), timeout=5))
            one.sendall(b"GET /api/live/events?since=0-0 HTTP/1.1\r\n" + host + b"\r\n")
        assert client.get("/api/state").status == 200
        assert client.view("head", "somebody else").status == 200
