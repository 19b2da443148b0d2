"""Archives from anyone: one named member is read to a name of ours, nothing else is touched."""

import hashlib
import io
import stat
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm_core.catalogue import CATALOGUE
from rnnlm_core.download import Source, download, resolve
from rnnlm_core.errors import IntegrityError
from rnnlm_core.store import Store

TEXT = b"The Time Traveller (for so it will be convenient to speak of him)\n" * 20
MEMBER = "novel.txt"
Publish = Callable[[bytes], Source]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Return a function that makes an archive a corpus, its digest right, of which `MEMBER` should be `TEXT`."""
    place = tmp_path / "mirror"
    place.mkdir()
    monkeypatch.setenv("RNNLM_MIRROR", str(place))
    entry = CATALOGUE["lyrics"]

    def put(archive: bytes) -> Source:
        (place / "novel.zip").write_bytes(archive)
        file = replace(
            entry.files[0], name="novel.zip", member=MEMBER, num_bytes=len(archive), addresses=(),
            sha256=hashlib.sha256(archive).hexdigest(), member_sha256=hashlib.sha256(TEXT).hexdigest(),
        )  # fmt: skip
        monkeypatch.setitem(CATALOGUE, "lyrics", replace(entry, files=(file,)))
        return resolve("lyrics")

    return put


@pytest.fixture
def check_refused(publish: Publish, store: Store, tmp_path: Path) -> Callable[..., None]:
    """Return a function that checks that an archive is refused in one line and leaves nothing anywhere."""

    def check(archive: bytes, message: str = "not a zip archive with novel.txt") -> None:
        with pytest.raises(IntegrityError, match=message) as caught:
            download(publish(archive), store)
        (line,) = caught.value.lines
        assert line.isprintable()
        assert [path.name for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()] == ["novel.zip"]

    return check


@pytest.fixture
def check_harmless(publish: Publish, tmp_path: Path) -> Callable[[bytes], None]:
    """Return a function that checks that an archive is refused in one line, or has the right text."""

    def check(archive: bytes) -> None:
        said: list[str] = []
        try:
            num_bytes = download(publish(archive), Store(tmp_path / "store")).num_bytes
        except IntegrityError as error:
            said, num_bytes = error.lines, len(TEXT)
        assert len(said) <= 1
        assert num_bytes == len(TEXT)

    return check


def _member(name: str, mode: int = 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (mode | (0 if stat.S_IFMT(mode) else stat.S_IFREG)) << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def _zip(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def _patched(archive: bytes, signature: bytes, offset: int, data: bytes) -> bytes:
    """Return the archive with a field of every header of one kind replaced."""
    changed = bytearray(archive)
    place = archive.find(signature)
    assert place >= 0
    while place >= 0:
        changed[place + offset : place + offset + len(data)] = data
        place = archive.find(signature, place + 1)
    return bytes(changed)


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
WHOLE = _zip((MEMBER, TEXT))
LEADING_OUT = [
    "../novel.txt",
    "../../../../../../etc/cron.d/rnnlm",
    "/etc/cron.d/rnnlm",
    "//etc/cron.d/rnnlm",
    "..\\novel.txt",
    "C:\\rnnlm.txt",
    "a/../../novel.txt",
    "./novel.txt",
    "~/novel.txt",
    "whole.txt",
    "member.txt",
    "manifest.json",
    "a" * 5000,
    "novel.txt/",
    "con.txt",
    "line\nend\x1b[31m.txt",
]


@pytest.mark.parametrize("name", LEADING_OUT, ids=lambda name: name[:24])
def test_members_that_lead_out_are_never_written(name: str, publish: Publish, store: Store, tmp_path: Path) -> None:
    """The text is found beside them, and they leave nothing."""
    handle = download(publish(_zip((name, b"evil"), (MEMBER, TEXT), (name + "2", b"evil"))), store).handle
    assert {path.name for path in store.path(handle).iterdir()} == {"whole.txt", "manifest.json"}
    assert (store.path(handle) / "whole.txt").read_bytes() == TEXT
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"novel.zip", "whole.txt", "manifest.json"}


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", MEMBER])
def test_a_text_that_is_a_link_is_refused(target: str, check_refused: Callable[..., None]) -> None:
    check_refused(
        _zip((_member(MEMBER, stat.S_IFLNK | 0o777), target.encode())), "a link in an archive is not followed"
    )


def test_a_text_behind_a_linked_folder_is_not_looked_for(check_refused: Callable[..., None]) -> None:
    link = _member("folder", stat.S_IFLNK | 0o777)
    check_refused(_zip((link, b"/etc"), ("folder/novel.txt", TEXT)))


def test_of_members_with_one_name_the_digest_decides(
    publish: Publish, store: Store, check_refused: Callable[..., None]
) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive = _zip((MEMBER, TEXT), (MEMBER, b"another text"))
    check_refused(archive, "the text changed while it was read")
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive = _zip((MEMBER, b"another text"), (MEMBER, TEXT))
    assert download(publish(archive), store).num_bytes == len(TEXT)


def test_a_name_with_more_behind_its_end_is_another_text(check_refused: Callable[..., None]) -> None:
    archive = _zip(("novel.txt_hidden", b"another text"))
    check_refused(archive.replace(b"novel.txt_hidden", b"novel.txt\0hidden"), "the text changed|not a zip archive")


def test_an_encrypted_text_is_refused(check_refused: Callable[..., None]) -> None:
    archive = _patched(_patched(WHOLE, LOCAL, 6, b"\x01\0"), CENTRAL, 8, b"\x01\0")
    check_refused(archive, "not a zip archive with novel.txt: .*encrypted")


def test_a_folder_in_place_of_the_text_is_refused(check_refused: Callable[..., None]) -> None:
    check_refused(_zip((_member("novel.txt/", stat.S_IFDIR | 0o755), b"")))


@pytest.mark.parametrize("method", [1, 6, 9, 12, 14, 93, 95, 98, 99])
def test_a_method_that_is_not_the_one_used_is_refused(method: int, check_refused: Callable[..., None]) -> None:
    field = struct.pack("<H", method)
    check_refused(_patched(_patched(WHOLE, LOCAL, 8, field), CENTRAL, 10, field))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_stream_is_refused_however_it_is_packed(method: int, check_refused: Callable[..., None]) -> None:
    whole = _zip((MEMBER, TEXT), method=method)
    start = whole.index(MEMBER.encode()) + len(MEMBER)
    for place in (start, start + 4, start + 12, start + 30):
        damaged = bytearray(whole)
        damaged[place : place + 4] = b"\xff\xff\xff\xff"
        check_refused(bytes(damaged))


@pytest.mark.parametrize("claimed", [0, 10])
def test_a_text_longer_than_it_says_is_refused(claimed: int, check_refused: Callable[..., None]) -> None:
    check_refused(_patched(WHOLE, CENTRAL, 24, struct.pack("<I", claimed)), "not a zip archive|the text changed")


@pytest.mark.parametrize("field", [20, 24, 38, 42], ids=["packed size", "size", "attributes", "place"])
@pytest.mark.parametrize("claimed", [1, 2**31, 2**32 - 2, 2**32 - 1], ids=hex)
def test_a_field_that_lies_gives_no_other_text(
    field: int, claimed: int, check_harmless: Callable[[bytes], None]
) -> None:
    check_harmless(_patched(WHOLE, CENTRAL, field, struct.pack("<I", claimed)))


def test_members_that_share_their_bytes_give_no_other_text(check_harmless: Callable[[bytes], None]) -> None:
    """The trick of the bombs without nesting: many names, one stream."""
    archive = _zip((MEMBER, TEXT), *((f"{i:04}.txt", b"x") for i in range(300)))
    check_harmless(_patched(archive, CENTRAL, 42, struct.pack("<I", 0)))


def test_an_archive_in_an_archive_is_bytes_like_any_other(check_refused: Callable[..., None]) -> None:
    nested = _zip((MEMBER, TEXT))
    for _ in range(5):
        nested = _zip((MEMBER, nested), ("bomb.zip", nested))
    check_refused(nested, "the text changed while it was read")


def test_a_bomb_is_left_after_two_hundred_times_its_size(check_refused: Callable[..., None]) -> None:
    bomb = _zip((MEMBER, bytes(30 << 20)))
    check_refused(bomb, "the archive unpacks to more than 200 times its size")


def test_a_bomb_that_says_it_is_small_is_refused(check_refused: Callable[..., None]) -> None:
    bomb = _patched(_zip((MEMBER, bytes(30 << 20))), CENTRAL, 24, struct.pack("<I", 100))
    check_refused(bomb)


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (8, b"\xff\xff"),
        (10, b"\xff\xff"),
        (12, b"\xff\xff\xff\x7f"),
        (16, b"\xff\xff\xff\x7f"),
        (16, b"\xff\xff\xff\xff"),
        (12, bytes(4)),
        (20, b"\xff\xff"),
    ],
)
def test_an_end_that_lies_gives_no_other_text(
    offset: int, data: bytes, check_harmless: Callable[[bytes], None]
) -> None:
    check_harmless(_patched(WHOLE, END, offset, data))


@pytest.mark.parametrize("kept", [0, 1, 4, 30, -1, -22, -60])
def test_a_part_of_an_archive_is_refused(kept: int, check_refused: Callable[..., None]) -> None:
    check_refused(WHOLE[:kept])


def test_a_name_that_is_no_text_is_refused(check_refused: Callable[..., None]) -> None:
    archive = _zip(("nové.txt", b"x"), (MEMBER, TEXT))
    check_refused(archive.replace("é".encode(), b"\xff\xff"))


def test_no_archive_gives_another_text(check_harmless: Callable[[bytes], None]) -> None:
    whole = {m: _zip((MEMBER, TEXT), ("other.txt", b"x" * 50), method=m) for m in (0, 8, 12, 14)}
    patches = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4)

    @settings(deadline=None, max_examples=300, database=None, derandomize=True)
    @given(st.sampled_from(sorted(whole)), patches)
    def check(method: int, changes: list[tuple[float, bytes]]) -> None:
        data = bytearray(whole[method])
        for share, patch in changes:
            place = int(share * len(data))
            data[place : place + len(patch)] = patch
        check_harmless(bytes(data))

    check()
