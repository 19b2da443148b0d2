"""Addresses from anyone: which are asked at all, where they may lead, what of them is shown."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
import urllib3

from rnnlm_core import transfer
from rnnlm_core.catalogue import CATALOGUE
from rnnlm_core.download import download, resolve, without_password
from rnnlm_core.errors import IntegrityError, NetworkError, RnnlmError, UsageError
from rnnlm_core.store import Store
from rnnlm_core.transfer import RefusedError, is_loopback

DIGEST = "#sha256=" + "a" * 64
HERE = [
    "127.0.0.1",
    "127.1",
    "127.255.255.254",
    "0x7f.1",
    "0x7f000001",
    "2130706433",
    "017700000001",
    "0177.0.0.01",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "a.localhost",
    "127.0.0.1.",
]
INNER = [
    "0.0.0.0",  # noqa: S104 - nothing is bound to it
    "0",
    "[::]",
    "10.0.0.1",
    "0xa.1",
    "167772161",
    "172.16.0.1",
    "192.168.1.1",
    "0xc0a80101",
    "100.64.0.1",
    "169.254.169.254",
    "0xa9fea9fe",
    "2852039166",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::]",
    "[fe80::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "router",
    "printer.local",
    "metadata.google.internal",
    "nas.lan",
    "box.home.arpa",
]
OUTER = ["example.org", "8.8.8.8", "[2606:4700:4700::1111]", "[::ffff:8.8.8.8]", "0x08080808", "localhost.example.org"]


def _prepared(host: str) -> str:
    """Return the host that a request would go to, as the library has it after a redirect."""
    prepared = requests.Request("GET", f"http://{host}/x").prepare().url
    assert prepared is not None
    return urlsplit(prepared).hostname or ""


# ---------------------------------------------------------------- what is asked


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/hostname",
        "FILE:///etc/hostname",
        "file://localhost/etc/hostname",
        "ftp://example.org/a.txt",
        "data://text/plain,hello",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "dict://127.0.0.1:11211/stats",
        "ssh://example.org/a.txt",
        "unix:///var/run/docker.sock",
        "jar:https://example.org!/a",
        "javascript://example.org/%0aalert(1)",
        "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
        "://example.org/a.txt",
        "http://",
        "https://:80/a.txt",
        "https://user@/a.txt",
        "http:///etc/passwd",
    ],
)
@pytest.mark.parametrize("digest", ["", DIGEST])
def test_only_http_and_https_are_asked(address: str, digest: str) -> None:
    with pytest.raises(RnnlmError) as caught:
        resolve(address + digest)
    assert caught.value.exit_code in (2, 3)
    (line,) = caught.value.lines
    assert line.isprintable()


@pytest.mark.parametrize("host", [*OUTER, *INNER])
def test_plain_http_needs_a_digest(host: str) -> None:
    with pytest.raises(UsageError, match=r"an http address needs the digest of its text: .*: use https, or"):
        resolve(f"http://{host}/a.txt")
    assert resolve(f"http://{host}/a.txt{DIGEST}").kind == "address"
    assert resolve(f"https://{host}/a.txt").kind == "address"


@pytest.mark.parametrize("host", HERE)
def test_what_one_serves_oneself_needs_no_digest(host: str) -> None:
    assert resolve(f"http://{host}:8000/a.txt").kind == "address"


def test_whatever_the_catalogue_names_is_known_by_its_digest() -> None:
    files = [file for entry in CATALOGUE.values() for file in entry.files]
    assert files
    assert all(len(file.sha256) == 64 and file.num_bytes for file in files)


@pytest.mark.parametrize("mirror", ["file:///etc", "ftp://example.org", "unix:///run/x.sock", "://x"])
def test_a_mirror_of_another_scheme_is_refused(mirror: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_MIRROR", mirror)
    with pytest.raises(UsageError, match=r"only http and https addresses can be downloaded: .*: correct RNNLM_MIRROR"):
        download(resolve("time-machine"), store)


# ---------------------------------------------------------------- where a redirect leads


@pytest.mark.parametrize("host", HERE)
def test_this_machine_is_known_in_every_disguise(host: str) -> None:
    assert is_loopback(_prepared(host))
    assert transfer._is_inner(_prepared(host))


@pytest.mark.parametrize("host", INNER)
def test_this_network_is_known_in_every_disguise(host: str) -> None:
    assert transfer._is_inner(_prepared(host))
    assert not is_loopback(_prepared(host))


@pytest.mark.parametrize("host", OUTER)
def test_the_world_outside_is_no_part_of_it(host: str) -> None:
    assert not transfer._is_inner(_prepared(host))
    assert not is_loopback(_prepared(host))


@pytest.mark.parametrize("host", ["１２７.0.0.1", "127。0。0。1", "ｌocalhost", "①②⑦.0.0.1", "127%2e0.0.1"])
def test_other_scripts_are_no_disguise(host: str) -> None:
    """The library turns them into what they look like before it connects, and that is what is judged."""
    try:
        prepared = _prepared(host)
    except requests.exceptions.InvalidURL:
        return
    assert transfer._is_inner(prepared) or "%" in prepared


@pytest.mark.parametrize("host", [h for h in [*HERE, *INNER] if not any(c.isalpha() and c not in "xabcdef" for c in h)])
def test_a_disguise_that_connects_is_one_we_know(host: str) -> None:
    """Whatever number the socket library takes a host for, we take it for the same."""
    try:
        (found, *_) = socket.getaddrinfo(_prepared(host), 80, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return
    ours = transfer._address(_prepared(host))
    assert ours is not None
    assert str(ours) in (found[4][0], found[4][0].rpartition(":")[2]) or ours == transfer._address(found[4][0])


@pytest.mark.parametrize("host", [*HERE, *INNER])
def test_no_redirect_leads_inwards(host: str) -> None:
    target = requests.Request("GET", f"https://{host}/latest/meta-data").prepare().url
    assert target is not None
    with pytest.raises(RefusedError, match="redirects to an address of this network"):
        transfer._check_redirect("https://example.org/x", target)


@pytest.mark.parametrize("login", ["example.org@", "example.org:80@", "example.org%2F@", "a%40example.org@"])
def test_a_login_that_looks_like_a_host_is_no_host(login: str) -> None:
    target = requests.Request("GET", f"https://{login}127.0.0.1/x").prepare().url
    assert target is not None
    assert urllib3.util.parse_url(target).host == "127.0.0.1"
    with pytest.raises(RefusedError, match="redirects to an address of this network"):
        transfer._check_redirect("https://example.org/x", target)


@pytest.mark.parametrize(
    ("source", "target", "verified", "allowed"),
    [
        ("http://127.0.0.1/x", "http://example.org/x", False, False),
        ("http://127.0.0.1/x", "http://example.org/x", True, True),
        ("http://127.0.0.1/x", "https://example.org/x", False, True),
        ("http://127.0.0.1/x", "http://localhost/x", False, True),
        ("http://127.0.0.1/x", "http://10.0.0.1/x", False, False),
        ("https://example.org/x", "http://example.org/x", True, False),
    ],
)
def test_a_redirect_is_held_to_the_same_rule(source: str, target: str, verified: bool, allowed: bool) -> None:
    expected = contextlib.nullcontext() if allowed else pytest.raises(RefusedError, match=r"redirects to (plain )?http")
    with expected:
        transfer._check_redirect(source, target, verified)


# ---------------------------------------------------------------- servers that mean harm


@dataclass
class Rogue:
    """A server that answers what it is told to, byte by byte."""

    address: str = ""
    answer: bytes = b""
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def rogue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rogue]:
    made = Rogue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            with contextlib.suppress(ConnectionError):  # the other side may have had enough
                self.wfile.write(made.answer)

        def log_message(self, *arguments: object) -> None:
            """Keep the test's output clean."""

    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield made
        server.shutdown()
        thread.join()


def _redirect(target: bytes) -> bytes:
    return b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\nLocation: " + target + b"\r\n\r\n"


@pytest.mark.parametrize(
    "target",
    [
        b"file:///etc/hostname",
        b"ftp://127.0.0.1/x",
        b"data:text/plain,x",
        b"gopher://127.0.0.1:6379/_x",
        b"http+unix://%2Frun%2Fx.sock/",
        b"http://10.0.0.1/x",
        b"http://169.254.169.254/latest",
        b"http://example.org/x",
        b"//example.org/x",
        b"http://[::1",
        b"http://a:b:c/",
        b"\xff\xfe",
        b"http://" + b"a" * 70_000 + b".org/",
        b"http://" + b"a" * 300 + b"/",
        b"http://*/x",
        b"http://.../x",
        b"http:///x",
    ],
    ids=lambda target: repr(target[:30]),
)
def test_a_hostile_redirect_ends_in_one_line(target: bytes, rogue: Rogue, store: Store) -> None:
    rogue.answer = _redirect(target)
    with pytest.raises((IntegrityError, NetworkError)) as caught:
        download(resolve(f"{rogue.address}/a.txt"), store)
    (line,) = caught.value.lines
    assert line.isprintable()
    assert not [path for path in store.root.rglob("*") if path.is_file()]


def test_a_redirect_to_itself_ends(rogue: Rogue, store: Store) -> None:
    rogue.answer = _redirect(b"/a.txt")
    with pytest.raises(IntegrityError, match="more than 3 redirects"):
        download(resolve(f"{rogue.address}/a.txt"), store)
    assert len(rogue.asked) == 4


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 100,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/9.9 200 OK\r\n\r\nx",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 -1 OK\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"HTTP/1.1 302 Found\r\n\r\n",
        OK + b"A: " + b"x" * 70_000 + b"\r\n\r\n",
        OK + b"A: x\r\n" * 200 + b"\r\n",
        OK + b"Content-Length: 10\r\n\r\nabc",
        OK + b"Content-Length: -5\r\n\r\n",
        OK + b"Content-Length: abc\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffffff\r\nabc\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc",
        OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        OK + b"Content-Encoding: gzip, gzip, gzip, gzip, gzip, gzip, gzip\r\nContent-Length: 3\r\n\r\nabc",
        OK + b"Content-Encoding: deflate\r\nContent-Length: 3\r\n\r\nabc",
        OK + b"Content-Length: 6\r\n\r\n<html>",
    ],
    ids=lambda answer: repr(answer[:20] + answer[-20:]),
)
def test_a_hostile_answer_ends_in_one_line_or_fails_its_digest(answer: bytes, rogue: Rogue, store: Store) -> None:
    rogue.answer = answer
    with pytest.raises((IntegrityError, NetworkError)) as caught:
        download(resolve(f"{rogue.address}/a.txt{DIGEST}"), store)
    (line,) = caught.value.lines
    assert line.isprintable()
    assert not [path for path in store.root.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "disposition", [b'attachment; filename="../../evil.txt"', b"attachment; filename=/etc/cron.d/x", b"inline"]
)
@pytest.mark.parametrize("path", ["/..%2f..%2fevil.txt", "/%2e%2e/evil.txt", "/a%00b.txt", "/" + "a" * 3000])
def test_a_server_does_not_choose_where_its_file_lies(
    disposition: bytes, path: str, rogue: Rogue, store: Store, tmp_path: Path
) -> None:
    rogue.answer = OK + b"Content-Disposition: " + disposition + b"\r\nContent-Length: 5\r\n\r\nhello"
    handle = download(resolve(rogue.address + path), store).handle
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} == {"whole.txt", "manifest.json"}
    assert (store.path(handle) / "whole.txt").read_bytes() == b"hello"


# ---------------------------------------------------------------- what is shown


SECRET = "hunter2-canary"  # noqa: S105 - of nothing


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"https://me:{SECRET}@example.org/a.txt", "https://me:***@example.org/a.txt"),
        (f"https://:{SECRET}@example.org/a.txt", "https://:***@example.org/a.txt"),
        (f"https://{SECRET}@example.org/a.txt", "https://***@example.org/a.txt"),
        (f"https://me:{SECRET}@x@example.org/a.txt", "https://me:***@example.org/a.txt"),
        (f"https://me:a:{SECRET}@example.org/a.txt", "https://me:***@example.org/a.txt"),
        (f"https://example.org/a.txt?token={SECRET}", "https://example.org/a.txt?token=***"),
        (
            f"https://example.org/a?b=1&X-Amz-Signature={SECRET}&c=2",
            "https://example.org/a?b=1&X-Amz-Signature=***&c=2",
        ),
        (f"https://example.org/a?API_KEY={SECRET}", "https://example.org/a?API_KEY=***"),
        (f"https://example.org/a?password={SECRET}#sha256=aa", "https://example.org/a?password=***#sha256=aa"),
        ("https://example.org/a@b.txt?page=2&lang=en", "https://example.org/a@b.txt?page=2&lang=en"),
    ],
)
def test_a_secret_of_an_address_is_not_shown(address: str, shown: str) -> None:
    assert without_password(address) == shown


@pytest.fixture
def nobody() -> str:
    """A host and port of this machine where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    "address",
    [
        f"http://me:{SECRET}@NOBODY/a.txt",
        f"http://{SECRET}@NOBODY/a.txt",
        f"http://NOBODY/a.txt?token={SECRET}",
        f"http://me:{SECRET}@example.org/a.txt",
        f"ftp://me:{SECRET}@example.org/a.txt",
        f"https://me:{SECRET}@[::1/a.txt",
    ],
)
def test_a_secret_is_in_no_message(address: str, nobody: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0)
    with pytest.raises(RnnlmError) as caught:
        download(resolve(address.replace("NOBODY", nobody)), store)
    assert SECRET not in str(caught.value)
    assert "a.txt" in str(caught.value)


def test_a_secret_of_the_mirror_is_in_no_message(nobody: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0)
    monkeypatch.setenv("RNNLM_MIRROR", f"http://me:{SECRET}@{nobody}/x?key={SECRET}")
    entry = CATALOGUE["time-machine"]
    unpublished = replace(entry, files=tuple(replace(file, addresses=()) for file in entry.files))
    monkeypatch.setitem(CATALOGUE, "time-machine", unpublished)
    with pytest.raises(NetworkError, match=r"tried http://me:[*]{3}@") as caught:
        download(resolve("time-machine"), store)
    assert SECRET not in str(caught.value)
