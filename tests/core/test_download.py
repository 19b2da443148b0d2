import gzip
import hashlib
import io
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm_core import download as download_module
from rnnlm_core import store as store_module
from rnnlm_core import transfer
from rnnlm_core.catalogue import CATALOGUE
from rnnlm_core.config import RunConfig
from rnnlm_core.download import Source, download, resolve
from rnnlm_core.errors import DataError, IntegrityError, NetworkError, UsageError
from rnnlm_core.inspection import inspect
from rnnlm_core.store import Store

NOVEL = b"The Time Traveller (for so it will be convenient to speak of him)\r\n" * 40


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Site:
    """A web site on this machine: `pages` maps a path to its bytes; what is not there is a 404.

    `failing` holds the status codes to answer first; `cut_short` says how often a body ends early, `unsized` which
    bodies come without their length, `stalling` which stop in the middle, `dripping` which never end, `endless` which
    do not even end their headers.
    """

    address: str = ""
    pages: dict[str, bytes] = field(default_factory=dict)
    failing: dict[str, list[int]] = field(default_factory=dict)
    cut_short: dict[str, int] = field(default_factory=dict)
    unsized: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    stalling: set[str] = field(default_factory=set)
    endless: set[str] = field(default_factory=set)
    dripping: set[str] = field(default_factory=set)
    zipped: set[str] = field(default_factory=set)
    moved: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    logins: list[str | None] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path
        self.asked.append(path)
        self.agents.append(request.headers["User-Agent"])
        self.logins.append(request.headers["Authorization"])
        if path in self.silent:
            self.closing.wait(30)
            return
        if self.failing.get(path):
            request.send_error(self.failing[path].pop(0))
            return
        if path in self.endless:
            self._drip(request, b"HTTP/1.0 200 OK\r\nX: ", b"x")
            return
        if path in self.moved:
            request.send_response(302)
            request.send_header("Location", self.moved[path])
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if path not in self.pages:
            request.send_error(404)
            return
        body = self.pages[path]
        request.send_response(200)
        if path in self.zipped:
            request.send_header("Content-Encoding", "gzip")
            body = gzip.compress(body)
        if path in self.dripping:
            request.end_headers()
            self._drip(request, b"", b"x" * 100)
            return
        if path not in self.unsized:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        half = body[: len(body) // 2]
        if path in self.stalling:
            request.wfile.write(half)
            self.closing.wait(30)
        elif self.cut_short.get(path):
            self.cut_short[path] -= 1
            request.wfile.write(half)
        else:
            request.wfile.write(body)

    def _drip(self, request: BaseHTTPRequestHandler, first: bytes, drop: bytes) -> None:
        try:
            request.wfile.write(first)
            while not self.closing.wait(0.01):
                request.wfile.write(drop)
        except OSError:  # the other side has hung up
            return


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, *arguments: object) -> None:
            """Keep the test's output clean."""

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield site
        site.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RNNLM_MIRROR", raising=False)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which nobody waits for."""
    slept: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", slept.append)
    return slept


@pytest.fixture
def dead() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def _publish(monkeypatch: pytest.MonkeyPatch, *addresses: str, content: bytes = NOVEL) -> Source:
    """Let the catalogue's `time-machine` be `content`, to be had from `addresses`; return what it resolves to."""
    entry = CATALOGUE["time-machine"]
    file = replace(entry.files[0], sha256=_sha256(content), num_bytes=len(content), addresses=addresses)
    monkeypatch.setitem(CATALOGUE, "time-machine", replace(entry, files=(file,)))
    return resolve("time-machine")


def _brought(source: Source, store: Store) -> dict[str, bytes]:
    text = download(source, store)
    folder = store.open(text.handle)
    files = {path.stem: path.read_bytes() for path in folder.glob("*.txt")}
    assert text.sha256 == {split: _sha256(content) for split, content in files.items()}
    assert text.num_bytes == sum(map(len, files.values()))
    return files


def _nothing_was_kept(store: Store) -> bool:
    return not [path for path in store.root.rglob("*") if path.is_file()]


# ---------------------------------------------------------------- named corpora over HTTP


def test_a_named_corpus_is_downloaded_and_kept_byte_for_byte(
    site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pages["/timemachine.txt"] = NOVEL
    source = _publish(monkeypatch, f"{site.address}/timemachine.txt")
    assert _brought(source, store) == {"whole": NOVEL}
    assert site.agents == ["rnnlm/0.1"]


def test_resolving_a_named_corpus_asks_nobody(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _publish(monkeypatch, f"{site.address}/timemachine.txt")
    assert source == Source("time-machine", "catalogue", "", (("whole", _sha256(NOVEL)),))
    assert source.cache_identity() == (("whole", _sha256(NOVEL)),)
    assert site.asked == []


def test_a_mirror_by_address_is_asked_first(site: Site, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pages["/corpora/timemachine.txt"] = NOVEL
    monkeypatch.setenv("RNNLM_MIRROR", f"{site.address}/corpora/")
    assert _brought(_publish(monkeypatch, f"{site.address}/public.txt"), store) == {"whole": NOVEL}
    assert site.asked == ["/corpora/timemachine.txt"]


def test_a_mirror_by_folder_is_asked_first(
    site: Site, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timemachine.txt").write_bytes(NOVEL)
    monkeypatch.setenv("RNNLM_MIRROR", str(tmp_path))
    assert _brought(_publish(monkeypatch, f"{site.address}/public.txt"), store) == {"whole": NOVEL}
    assert site.asked == []


def test_a_mirror_without_the_file_falls_back_to_the_public_address(
    site: Site, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pages["/public.txt"] = NOVEL
    monkeypatch.setenv("RNNLM_MIRROR", str(tmp_path))
    assert _brought(_publish(monkeypatch, f"{site.address}/public.txt"), store) == {"whole": NOVEL}


def test_a_mirror_of_another_scheme_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_MIRROR", "ftp://user:secret@127.0.0.1/corpora")
    with pytest.raises(UsageError, match=r"only http and https .*user:[*]{3}@.*: correct RNNLM_MIRROR") as caught:
        download(resolve("time-machine"), store)
    assert "secret" not in str(caught.value)


def test_a_dead_address_is_passed_over(site: Site, dead: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pages["/second.txt"] = NOVEL
    assert _brought(_publish(monkeypatch, f"{dead}/first.txt", f"{site.address}/second.txt"), store) == {"whole": NOVEL}


def test_a_wrong_digest_is_passed_over_when_another_address_is_right(
    site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pages |= {"/first.txt": b"<html>moved</html>", "/second.txt": NOVEL}
    source = _publish(monkeypatch, f"{site.address}/first.txt", f"{site.address}/second.txt")
    assert _brought(source, store) == {"whole": NOVEL}
    assert site.asked == ["/first.txt", "/second.txt"]


def test_a_wrong_digest_everywhere_names_both_digests(
    site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = NOVEL.replace(b"Time", b"time")
    site.pages["/timemachine.txt"] = other
    source = _publish(monkeypatch, f"{site.address}/timemachine.txt")
    message = f"digest mismatch, expected sha256 {_sha256(NOVEL)}: .*/timemachine.txt has sha256 {_sha256(other)}"
    with pytest.raises(IntegrityError, match=message):
        download(source, store)
    assert _nothing_was_kept(store)


def test_a_wrong_file_in_the_mirror_folder_is_noticed(
    dead: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timemachine.txt").write_bytes(NOVEL[:-1])
    monkeypatch.setenv("RNNLM_MIRROR", str(tmp_path))
    source = _publish(monkeypatch, f"{dead}/public.txt")
    with pytest.raises(
        IntegrityError, match=r"timemachine\.txt has sha256 .*public\.txt \(no connection\): correct or unset"
    ):
        download(source, store)


def test_a_body_that_is_always_cut_short_is_not_taken_for_the_text(
    site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pages["/timemachine.txt"] = NOVEL
    site.cut_short["/timemachine.txt"] = 100
    source = _publish(monkeypatch, f"{site.address}/timemachine.txt")
    with pytest.raises(NetworkError, match=r"timemachine\.txt \(body cut short\)"):
        download(source, store)
    assert len(site.asked) == 3
    assert _nothing_was_kept(store)


def test_a_body_cut_short_once_is_fetched_anew_from_its_start(site: Site, store: Store) -> None:
    site.pages["/novel.txt"] = NOVEL
    site.cut_short["/novel.txt"] = 1
    assert _brought(resolve(f"{site.address}/novel.txt"), store) == {"whole": NOVEL}
    assert len(site.asked) == 2


def test_a_body_cut_short_without_a_length_is_noticed_by_its_digest(site: Site, store: Store) -> None:
    site.pages["/novel.txt"] = NOVEL
    site.unsized.add("/novel.txt")
    assert _brought(resolve(f"{site.address}/novel.txt#sha256={_sha256(NOVEL)}"), store) == {"whole": NOVEL}
    site.cut_short["/novel.txt"] = 1
    got = _sha256(NOVEL[: len(NOVEL) // 2])
    with pytest.raises(IntegrityError, match=rf"expected sha256 {_sha256(NOVEL)}: .* has sha256 {got}"):
        download(resolve(f"{site.address}/novel.txt#sha256={_sha256(NOVEL)}"), store)


@pytest.mark.parametrize("where", ["silent", "stalling"])
def test_a_server_that_falls_silent_is_asked_thrice_and_given_up(
    where: str, site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT_SECONDS", 0.2)
    site.pages["/timemachine.txt"] = NOVEL
    getattr(site, where).add("/timemachine.txt")
    source = _publish(monkeypatch, f"{site.address}/timemachine.txt")
    with pytest.raises(NetworkError, match=r"timemachine\.txt \(timed out\)"):
        download(source, store)
    assert len(site.asked) == 3
    assert _nothing_was_kept(store)


def test_an_overloaded_server_is_asked_again_after_growing_pauses(
    site: Site, store: Store, pauses: list[float]
) -> None:
    site.pages["/novel.txt"] = NOVEL
    site.failing["/novel.txt"] = [500, 503]
    assert _brought(resolve(f"{site.address}/novel.txt"), store) == {"whole": NOVEL}
    assert len(site.asked) == 3
    first, second = pauses
    assert 0.25 <= first <= 0.75
    assert 0.5 <= second <= 1.5


def test_two_downloads_do_not_pause_alike(site: Site, store: Store, pauses: list[float]) -> None:
    for name in ("/a", "/b"):
        site.pages[name] = NOVEL
        site.failing[name] = [500]
        download(resolve(f"{site.address}{name}"), store)
    assert pauses[0] != pauses[1]


@pytest.mark.parametrize(("code", "requests"), [(500, 3), (503, 3), (429, 3), (404, 1), (403, 1)])
def test_an_answer_that_will_not_change_is_not_asked_for_again(
    code: int, requests: int, site: Site, store: Store
) -> None:
    site.failing["/novel.txt"] = [code] * 9
    with pytest.raises(NetworkError, match=rf"novel\.txt \(HTTP {code}\)"):
        download(resolve(f"{site.address}/novel.txt"), store)
    assert len(site.asked) == requests


def test_a_damaged_text_in_the_store_is_fetched_once_more(
    site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pages["/timemachine.txt"] = NOVEL
    source = _publish(monkeypatch, f"{site.address}/timemachine.txt")
    handle = download(source, store).handle
    (store.path(handle) / "whole.txt").write_bytes(NOVEL[:-1] + b"!")
    assert "damaged" in store.fault(handle)
    assert _brought(source, store) == {"whole": NOVEL}
    assert len(site.asked) == 2


KILLED = """
import sys
from pathlib import Path
from rnnlm_core.download import download, resolve
from rnnlm_core.store import Store

download(resolve(sys.argv[1]), Store(Path(sys.argv[2])))
"""


def test_a_kill_in_the_middle_leaves_no_part_of_a_text(
    site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pages["/novel.txt"] = NOVEL * 100
    site.stalling.add("/novel.txt")
    address = f"{site.address}/novel.txt#sha256={_sha256(NOVEL * 100)}"
    child = subprocess.Popen([sys.executable, "-c", KILLED, address, str(store.root)])
    try:
        while not [path for path in store.root.rglob("*") if path.is_file() and path.stat().st_size]:
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGKILL
    assert list(store.handles()) == []
    monkeypatch.setattr(store_module, "ABANDONED_SECONDS", 0)
    assert store.sweep()
    assert _nothing_was_kept(store)
    site.stalling.clear()
    assert _brought(resolve(address), store) == {"whole": NOVEL * 100}


def test_when_nothing_answers_everything_tried_and_both_remedies_are_named(
    site: Site, dead: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNLM_MIRROR", str(tmp_path))
    source = _publish(monkeypatch, f"{site.address}/first.txt", f"{dead}/second.txt")
    with pytest.raises(NetworkError) as caught:
        download(source, store)
    what, tried, remedy = caught.value.args
    assert what == "cannot download"
    assert tried == (
        f"tried {tmp_path}/timemachine.txt (no such file); {site.address}/first.txt (HTTP 404); "
        f"{dead}/second.txt (no connection)"
    )
    assert remedy == (
        "set RNNLM_MIRROR to a folder or address that holds timemachine.txt, "
        "or give a text on this machine with --corpus PATH"
    )
    assert _nothing_was_kept(store)


def test_a_named_corpus_may_come_in_three_files(site: Site, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {"train": b"a b c\n", "valid": b"d e\n", "test": b"f g\n"}
    entry = CATALOGUE["time-machine"]
    files = []
    for split, content in contents.items():
        site.pages[f"/{split}"] = content
        address = f"{site.address}/{split}"
        files.append(replace(entry.files[0], split=split, name=split, sha256=_sha256(content), addresses=(address,)))
    monkeypatch.setitem(CATALOGUE, "time-machine", replace(entry, files=tuple(files), split="given"))
    assert _brought(resolve("time-machine"), store) == contents


def test_the_real_corpora_are_found_in_a_mirror_folder(
    store: Store, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNLM_MIRROR", str(mirror))
    for entry in CATALOGUE.values():
        text = download(resolve(entry.name), store)
        assert text.sha256 == dict(resolve(entry.name).files)


# ---------------------------------------------------------------- archives


def _zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.txt", content)
    return buffer.getvalue()


def _publish_archive(monkeypatch: pytest.MonkeyPatch, folder: Path, archive: bytes, promised: bytes = NOVEL) -> Source:
    """Let the catalogue's `lyrics` be an archive in a mirror folder whose `novel.txt` is promised to be `promised`."""
    entry = CATALOGUE["lyrics"]
    (folder / "novel.zip").write_bytes(archive)
    digests = {"sha256": _sha256(archive), "member_sha256": _sha256(promised)}
    file = replace(
        entry.files[0], name="novel.zip", num_bytes=len(archive), member="novel.txt", addresses=(), **digests
    )
    monkeypatch.setitem(CATALOGUE, "lyrics", replace(entry, files=(file,)))
    monkeypatch.setenv("RNNLM_MIRROR", str(folder))
    return resolve("lyrics")


def test_of_an_archive_the_text_is_kept(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _publish_archive(monkeypatch, tmp_path, _zipped(novel=NOVEL, other=b"something else"))
    assert source.files == (("whole", _sha256(NOVEL)),)
    assert _brought(source, store) == {"whole": NOVEL}
    assert [path.name for path in tmp_path.iterdir() if path != store.root] == ["novel.zip"]


def test_a_text_from_an_archive_has_the_handle_of_the_text(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "novel.txt").write_bytes(NOVEL)
    packed = download(_publish_archive(monkeypatch, tmp_path, _zipped(novel=NOVEL)), store)
    assert packed == download(resolve(str(tmp_path / "novel.txt")), store)


@pytest.mark.parametrize("archive", [NOVEL, b"", _zipped(other=NOVEL)], ids=["no zip", "nothing", "no such member"])
def test_an_archive_without_the_text_is_refused(
    archive: bytes, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _publish_archive(monkeypatch, tmp_path, archive)
    with pytest.raises(IntegrityError, match=r"not a zip archive with novel\.txt: .*novel\.zip: download it again"):
        download(source, store)
    assert _nothing_was_kept(store)


def test_an_archive_with_another_text_is_refused(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _publish_archive(monkeypatch, tmp_path, _zipped(novel=b"another text"))
    with pytest.raises(IntegrityError, match=f"{_sha256(NOVEL)} .*{_sha256(b'another text')}"):
        download(source, store)
    assert _nothing_was_kept(store)


def test_an_archive_that_is_not_the_published_one_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _publish_archive(monkeypatch, tmp_path, _zipped(novel=NOVEL))
    (tmp_path / "novel.zip").write_bytes(_zipped(novel=NOVEL, other=b""))
    with pytest.raises(IntegrityError, match=r"digest mismatch, expected sha256 .*novel\.zip has sha256"):
        download(source, store)


def test_the_lyrics_come_out_of_their_archive(store: Store, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_MIRROR", str(mirror))
    (content,) = _brought(resolve("lyrics"), store).values()
    assert len(content.decode()) == 63_282
    assert content.decode().startswith("想要有直升机\n")


# ---------------------------------------------------------------- one text, many places


def test_the_same_text_has_the_same_handle_from_anywhere(
    site: Site, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pages["/timemachine.txt"] = NOVEL
    (tmp_path / "novel.txt").write_bytes(NOVEL)
    named = download(_publish(monkeypatch, f"{site.address}/timemachine.txt"), store)
    own = download(resolve(str(tmp_path / "novel.txt")), store)
    address = download(resolve(f"{site.address}/timemachine.txt"), store)
    assert named == own == address


# ---------------------------------------------------------------- addresses


def test_an_address_is_downloaded_as_it_is(site: Site, store: Store) -> None:
    site.pages["/books/novel.txt"] = NOVEL
    source = resolve(f"{site.address}/books/novel.txt")
    assert (source.name, source.kind, source.cache_identity()) == ("novel", "address", None)
    assert _brought(source, store) == {"whole": NOVEL}


def test_an_address_with_its_digest_is_checked(site: Site, store: Store) -> None:
    site.pages["/novel.txt"] = NOVEL
    good = resolve(f"{site.address}/novel.txt#sha256={_sha256(NOVEL).upper()}")
    assert good.cache_identity() == (("whole", _sha256(NOVEL)),)
    assert _brought(good, store) == {"whole": NOVEL}
    wrong = resolve(f"{site.address}/novel.txt#sha256={'0' * 64}")
    with pytest.raises(IntegrityError, match=f"expected sha256 {'0' * 64}: .* has sha256 {_sha256(NOVEL)}"):
        download(wrong, store)


def test_an_address_does_not_ask_the_mirror(
    site: Site, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNLM_MIRROR", str(tmp_path))
    with pytest.raises(
        NetworkError, match=r"tried http://[^;]*novel\.txt \(HTTP 404\): check the address, or give a text"
    ):
        download(resolve(f"{site.address}/novel.txt"), store)


def test_an_address_that_gives_nothing_is_refused(site: Site, store: Store) -> None:
    site.pages["/empty.txt"] = b""
    address = site.address.replace("http://", "http://me:secret@")
    with pytest.raises(DataError, match=r"the text is empty: http://me:[*]{3}@.*/empty\.txt") as caught:
        download(resolve(f"{address}/empty.txt"), store)
    assert "secret" not in str(caught.value)
    assert _nothing_was_kept(store)


@pytest.mark.parametrize("fragment", ["sha256=abc", "md5=" + "0" * 32, "chapter-1", "sha256=" + "g" * 64])
def test_a_digest_is_written_in_one_way(fragment: str) -> None:
    with pytest.raises(UsageError, match=f"a digest is written #sha256= and 64 hexadecimal digits: #{fragment}"):
        resolve(f"http://127.0.0.1/novel.txt#{fragment}")


@pytest.mark.parametrize(
    "address", ["ftp://127.0.0.1/a.txt", "file:///etc/hostname", "http:///a.txt", "s3://bucket/a.txt"]
)
def test_other_schemes_are_refused(address: str) -> None:
    with pytest.raises(UsageError, match=f"only http and https addresses can be downloaded: {address}"):
        resolve(address)


def test_a_malformed_address_is_refused() -> None:
    with pytest.raises(UsageError, match=r"not an address: http://\[::1/a\.txt"):
        resolve("http://[::1/a.txt")


def test_a_password_is_not_shown(dead: str, store: Store) -> None:
    address = dead.replace("http://", "http://me:s3cret@")
    with pytest.raises(NetworkError, match=r"tried http://me:[*]{3}@127") as caught:
        download(resolve(f"{address}/a.txt"), store)
    assert "s3cret" not in str(caught.value)


def test_an_address_without_a_path_is_named_by_its_host() -> None:
    assert resolve("http://127.0.0.1:8/").name == "127.0.0.1"


# ---------------------------------------------------------------- files and folders


def test_a_file_is_taken_as_it_lies(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_bytes(b"\xef\xbb\xbf" + NOVEL)
    source = resolve(str(path))
    assert source == Source("novel.txt", "local", str(path), (("whole", _sha256(path.read_bytes())),))
    assert _brought(source, store) == {"whole": path.read_bytes()}


def test_the_identity_of_a_file_is_its_content(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md"):
        (tmp_path / name).write_bytes(NOVEL)
    first, second = (resolve(str(tmp_path / name)) for name in ("a.txt", "b.md"))
    assert first.cache_identity() == second.cache_identity()


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "novel.txt").write_bytes(NOVEL)
    assert resolve("~/novel.txt").location == str(tmp_path / "novel.txt")


def test_a_folder_s_texts_are_joined_in_the_order_of_their_names(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "books"
    (folder / "c").mkdir(parents=True)
    (folder / "b.txt").write_bytes(b"second\n")
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbffirst")
    (folder / "c" / "d.txt").write_bytes(b"\xef\xbb\xbfthird")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "notes.md").write_bytes(b"not a text")
    (folder / "folder.txt").mkdir()
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    source = resolve(str(folder))
    assert [split for split, _ in source.files] == ["whole"]
    assert _brought(source, store) == {"whole": b"first\nsecond\nthird\n"}


def test_a_folder_of_three_splits_is_kept_apart(store: Store, tmp_path: Path) -> None:
    contents = {"train": b"a b c\n", "valid": b"d e\n", "test": b"f g"}
    for split, content in contents.items():
        (tmp_path / f"{split}.txt").write_bytes(content)
    source = resolve(str(tmp_path))
    assert [split for split, _ in source.files] == ["train", "valid", "test"]
    assert _brought(source, store) == contents


def test_a_folder_that_lacks_a_split_is_one_text(store: Store, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{split}\n")
    assert _brought(resolve(str(tmp_path)), store) == {"whole": b"test\ntrain\n"}


@settings(deadline=None, max_examples=30)
@given(parts=st.lists(st.binary(min_size=1, max_size=20), min_size=2, max_size=4))
def test_the_promised_digest_of_a_folder_is_that_of_its_joined_text(
    parts: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("books")
    for i, part in enumerate(parts):
        (folder / f"{i}.txt").write_bytes(part)
    text = download(resolve(str(folder)), Store(tmp_path_factory.mktemp("store")))
    assert text.sha256 == dict(resolve(str(folder)).files)


def test_a_text_that_changes_meanwhile_is_noticed(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_bytes(b"before")
    source = resolve(str(path))
    path.write_bytes(b"after")
    message = f"the text changed while it was read: .*sha256 {_sha256(b'before')} before, {_sha256(b'after')} now"
    with pytest.raises(IntegrityError, match=message):
        download(source, store)
    assert _nothing_was_kept(store)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"the file is empty: .*/empty\.txt: give a text"):
        resolve(str(tmp_path / "empty.txt"))


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    for split, content in {"train": b"a", "valid": b"", "test": b"b"}.items():
        (tmp_path / f"{split}.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"the file is empty: .*/valid\.txt"):
        resolve(str(tmp_path))


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("words")
    with pytest.raises(DataError, match=r"the folder holds no text \(\*\.txt\)"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["missing.txt", "books/missing", "~/missing.txt"])
def test_a_missing_file_is_named_and_the_named_corpora_listed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=f"no such file or folder: {name}: .*python-docs, time-machine, shakespeare"):
        resolve(name)


def test_a_home_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match=r"cannot read the text: ~nobody-of-this-name/novel\.txt: "):
        resolve("~nobody-of-this-name/novel.txt")


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "novel.txt").write_bytes(NOVEL)

    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(download_module, "file_sha256", forbidden)
    with pytest.raises(DataError, match=r"cannot read the text: .*novel\.txt: Permission denied"):
        resolve(str(tmp_path / "novel.txt"))


def test_a_misspelt_name_gets_a_suggestion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match=r"unknown corpus: time-machin: did you mean time-machine\? \(known: python-docs"
    ):
        resolve("time-machin")
    with pytest.raises(UsageError, match=r"unknown corpus: xyzzy: known: python-docs, .*; or give the path of a text"):
        resolve("xyzzy")


@pytest.mark.parametrize("name", ["", " "])
def test_no_name_is_not_the_current_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "novel.txt").write_bytes(NOVEL)
    with pytest.raises(UsageError, match=f"unknown corpus: '{name}': known: "):
        resolve(name)


# ---------------------------------------------------------------- Python's own documentation


def test_the_embedded_text_needs_no_network(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    source = resolve("python-docs")
    assert source.kind == "embedded"
    (content,) = _brought(source, store).values()
    assert len(content) > 400_000
    assert b"The " in content
    inspect(source, RunConfig())


# ---------------------------------------------------------------- limits


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(transfer, "FEWEST_BYTES_PER_SECOND", 10**6)
    monkeypatch.setattr(transfer, "CHUNK", 100)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("where", ["dripping", "endless"])
def test_a_server_that_drips_is_given_up(where: str, site: Site, store: Store) -> None:
    site.pages["/slow.txt"] = b""
    getattr(site, where).add("/slow.txt")
    with pytest.raises(NetworkError, match=r"tried .*/slow.txt \(too slow, [\d,]+ bytes in \d+ s\)"):
        download(resolve(f"{site.address}/slow.txt"), store)
    assert len(site.asked) == 1
    assert _nothing_was_kept(store)


def test_a_drip_that_never_fills_a_block_is_given_up_as_well(
    site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading waits until a block is full: what judges the pace must not wait with it."""
    monkeypatch.setattr(transfer, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(transfer, "CHUNK", 1 << 30)
    site.pages["/slow.txt"] = b""
    site.dripping.add("/slow.txt")
    with pytest.raises(NetworkError, match=r"\(too slow, 0 bytes in \d+ s\)"):
        download(resolve(f"{site.address}/slow.txt"), store)


def test_bytes_that_never_end_are_given_up_however_fast_they_come(
    site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "MOST_SECONDS", 0.3)
    site.pages["/endless.txt"] = b""
    site.dripping.add("/endless.txt")
    with pytest.raises(NetworkError, match=r"\(not done after 0 s, [\d,]+ bytes\)"):
        download(resolve(f"{site.address}/endless.txt"), store)
    assert _nothing_was_kept(store)


def test_a_slow_server_is_passed_over_when_another_is_fast(
    site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PATIENCE_SECONDS", 1)
    monkeypatch.setattr(transfer, "FEWEST_BYTES_PER_SECOND", 10**6)
    site.pages |= {"/slow.txt": b"", "/fast.txt": NOVEL}
    site.dripping.add("/slow.txt")
    source = _publish(monkeypatch, f"{site.address}/slow.txt", f"{site.address}/fast.txt")
    assert _brought(source, store) == {"whole": NOVEL}


def test_a_login_stays_with_the_host_it_was_given_for(site: Site, store: Store) -> None:
    site.pages["/novel.txt"] = NOVEL
    elsewhere = site.address.replace("127.0.0.1", "localhost")
    site.moved = {"/a": "/b", "/b": f"{elsewhere}/novel.txt"}
    assert _brought(resolve(f"{site.address.replace('//', '//me:secret@')}/a"), store) == {"whole": NOVEL}
    assert [login is not None for login in site.logins] == [True, True, False]


@pytest.mark.parametrize("zipped", [False, True])
def test_more_bytes_than_promised_are_not_taken(
    zipped: bool, site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pages["/novel.txt"] = b"x" * (5 << 20)
    site.zipped |= {"/novel.txt"} if zipped else set()  # 5 kB on the wire
    source = _publish(monkeypatch, f"{site.address}/novel.txt")
    limit = 2 * len(NOVEL) + (1 << 20)
    with pytest.raises(IntegrityError, match=rf"digest mismatch, .*/novel.txt more than {limit:,} bytes"):
        download(source, store)
    assert _nothing_was_kept(store)


def test_a_few_redirects_are_followed_and_no_more(site: Site, store: Store) -> None:
    site.pages["/novel.txt"] = NOVEL
    site.moved = {"/a": "/b", "/b": f"{site.address}/c", "/c": "/novel.txt", "/z": "/a"}
    assert _brought(resolve(f"{site.address}/a"), store) == {"whole": NOVEL}
    with pytest.raises(IntegrityError, match=r"download refused: .*/z more than 3 redirects"):
        download(resolve(f"{site.address}/z"), store)


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x"])
def test_a_redirect_to_another_scheme_is_refused(target: str, site: Site, store: Store) -> None:
    site.moved = {"/a": target}
    with pytest.raises(IntegrityError, match=rf"download refused: .*/a redirects to {target[: target.index(':')]}"):
        download(resolve(f"{site.address}/a"), store)


@pytest.mark.parametrize(
    ("source", "target", "allowed"),
    [
        ("https://a.org/x", "https://b.org/x", True),
        ("https://a.org/x", "http://a.org/x", False),
        ("http://a.org/x", "https://a.org/x", True),
        ("https://a.org/x", "https://127.0.0.1/x", False),
        ("https://a.org/x", "https://[::1]/x", False),
        ("https://a.org/x", "https://169.254.169.254/latest", False),
        ("https://a.org/x", "https://10.0.0.1/x", False),
        ("https://a.org/x", "https://localhost/x", False),
        ("https://a.org/x", "https://printer.local/x", False),
        ("http://127.0.0.1/x", "http://127.0.0.1/y", True),
    ],
)
def test_where_a_redirect_may_lead(source: str, target: str, allowed: bool) -> None:
    if allowed:
        transfer._check_redirect(source, target)
    else:
        with pytest.raises(transfer.RefusedError, match="redirects to "):
            transfer._check_redirect(source, target)


def test_an_archive_that_unpacks_to_far_more_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = _zipped(novel=b"\0" * (50 << 20))
    source = _publish_archive(monkeypatch, tmp_path, bomb)
    assert len(bomb) < (50 << 20) / 200
    with pytest.raises(IntegrityError, match="the archive unpacks to more than 200 times its size"):
        download(source, store)
    assert _nothing_was_kept(store)
