"""A store alone on its machine, and one that shares what it publishes: the same suite."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from rnnlm_core import store as store_module
from rnnlm_core.errors import IntegrityError, ResourceError
from rnnlm_core.remote import connect
from rnnlm_core.store import Handle, Store, file_sha256, write_atomically


@pytest.fixture(params=["alone", "file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, address: Callable[[str], str]) -> Store:
    """An empty store, with and without a remote."""
    remote = None if request.param == "alone" else connect(address(request.param))
    return Store(tmp_path / "store", remote)


def _is_noticed(store: Store, handle: Handle, fault: str) -> None:
    """What is damaged here is not believed: an error, or the copy of the remote is taken in its place."""
    assert store.fault(handle) == fault
    if store.remote is None:
        with pytest.raises(IntegrityError, match=f"artifact {handle} {re.escape(fault)}: .*: run the same command"):
            store.open(handle)
    else:
        assert store.open(handle) == store.path(handle)
        assert store.fault(handle) == ""


def _put(store: Store, **files: str) -> Handle:
    with store.draft("text") as draft:
        for name, content in files.items():
            (draft.folder / f"{name}.txt").write_text(content)
        return draft.publish()


def _everything_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_is_put_can_be_opened(store: Store) -> None:
    handle = _put(store, whole="words")
    folder = store.open(handle)
    assert folder == store.path(handle) == store.root / "text" / handle.sha256
    assert (folder / "whole.txt").read_text() == "words"
    assert store.fault(handle) == ""


def test_a_handle_is_the_digest_of_the_manifest(store: Store) -> None:
    handle = _put(store, whole="words")
    manifest = (store.open(handle) / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == handle.sha256
    assert json.loads(manifest) == {
        "kind": "text",
        "files": {"whole.txt": {"bytes": 5, "sha256": hashlib.sha256(b"words").hexdigest()}},
    }


def test_a_handle_is_shown_short() -> None:
    assert str(Handle("text", "0123456789abcdef" * 4)) == "text:0123456789ab"


def test_files_in_folders_are_kept(store: Store) -> None:
    with store.draft("model") as draft:
        (draft.folder / "a" / "b").mkdir(parents=True)
        (draft.folder / "a" / "b" / "c.bin").write_bytes(b"\x00\xff")
        handle = draft.publish()
    assert (store.open(handle) / "a" / "b" / "c.bin").read_bytes() == b"\x00\xff"
    (store.path(handle) / "a" / "b" / "c.bin").write_bytes(b"\x00\xfe")
    _is_noticed(store, handle, "has a damaged a/b/c.bin")


def test_equal_content_is_kept_once(store: Store) -> None:
    first = _put(store, train="a", test="b")
    before = _everything_in(store.root)
    again = _put(store, test="b", train="a")
    assert again == first
    assert _everything_in(store.root) == before


def test_equal_content_has_the_same_handle_in_any_store(tmp_path: Path) -> None:
    assert _put(Store(tmp_path / "a"), whole="x") == _put(Store(tmp_path / "b"), whole="x")


def test_other_content_other_names_and_other_kinds_have_other_handles(store: Store) -> None:
    with store.draft("corpus") as draft:
        (draft.folder / "whole.txt").write_text("x")
        other_kind = draft.publish()
    handles = [_put(store, whole="x"), _put(store, whole="y"), _put(store, train="x"), other_kind]
    assert len({handle.sha256 for handle in handles}) == 4


def test_a_missing_artifact_is_an_integrity_error_with_its_place_and_remedy(store: Store) -> None:
    handle = Handle("text", "0" * 64)
    with pytest.raises(IntegrityError, match=r"artifact text:000000000000 is missing: .*: run the same command again"):
        store.open(handle)


def test_a_changed_byte_is_noticed(store: Store) -> None:
    handle = _put(store, whole="words")
    (store.path(handle) / "whole.txt").write_text("wordz")
    _is_noticed(store, handle, "has a damaged whole.txt")


def test_a_file_cut_short_is_noticed(store: Store) -> None:
    handle = _put(store, whole="words")
    (store.path(handle) / "whole.txt").write_text("word")
    _is_noticed(store, handle, "has a damaged whole.txt")


def test_a_missing_file_is_noticed(store: Store) -> None:
    handle = _put(store, train="a", test="b")
    (store.path(handle) / "test.txt").unlink()
    _is_noticed(store, handle, "lacks test.txt")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"kind": "text", "files": {}}'])
def test_a_changed_manifest_is_noticed(store: Store, content: bytes) -> None:
    handle = _put(store, whole="words")
    (store.path(handle) / "manifest.json").write_bytes(content)
    _is_noticed(store, handle, "has a changed manifest")


def test_a_manifest_that_is_gone_is_noticed(store: Store) -> None:
    handle = _put(store, whole="words")
    (store.path(handle) / "manifest.json").unlink()
    _is_noticed(store, handle, "is missing")


@pytest.mark.parametrize("damage", ["byte", "file", "manifest"])
def test_publishing_again_repairs_a_damaged_artifact(store: Store, damage: str) -> None:
    handle = _put(store, whole="words")
    folder = store.path(handle)
    if damage == "byte":
        (folder / "whole.txt").write_text("wordz")
    else:
        (folder / {"file": "whole.txt", "manifest": "manifest.json"}[damage]).unlink()
    assert store.fault(handle)
    assert _put(store, whole="words") == handle
    assert (store.open(handle) / "whole.txt").read_text() == "words"


def test_a_draft_that_fails_leaves_nothing(store: Store) -> None:
    def fail() -> None:
        with store.draft("text") as draft:
            (draft.folder / "whole.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert _everything_in(store.root) == ["text"]


def test_a_draft_that_is_not_published_leaves_nothing(store: Store) -> None:
    with store.draft("text") as draft:
        (draft.folder / "whole.txt").write_text("half")
    assert _everything_in(store.root) == ["text"]


def test_a_damaged_artifact_that_several_publish_at_once_is_mended_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes away the good copy that another one has just put in the damaged one's place."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    often = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(30):
            handle = _put(store, whole="words", more="lines")
            (store.path(handle) / "more.txt").write_text("damaged")
            with ThreadPoolExecutor(4) as pool:
                at_once = [pool.submit(lambda: store.open(_put(store, whole="words", more="lines"))) for _ in range(4)]
            assert [each.result() for each in at_once] == [store.path(handle)] * 4
    finally:
        sys.setswitchinterval(often)
    assert not list(store.root.glob("text/.draft-*"))


def test_what_was_mended_in_between_is_not_removed_as_damaged(store: Store) -> None:
    handle = _put(store, whole="words")
    assert store.remove_damaged(handle) == ""
    (store.path(handle) / "whole.txt").write_text("wordz")
    assert store.remove_damaged(handle) == "has a damaged whole.txt"
    assert not store.path(handle).exists()


def test_a_rename_that_fails_is_not_hidden(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, place: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="Input"):
        _put(store, whole="words")


def test_a_root_that_cannot_be_written_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match=r"cannot write artifacts: .*file/text"):
        _put(Store(tmp_path / "file"), whole="words")


def test_writing_atomically_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert _everything_in(tmp_path) == ["a", "a/b.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.json"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert _everything_in(tmp_path) == ["b.json"]


def test_a_file_s_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x00" * 3_000_000 + b"end")
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"\x00" * 3_000_000 + b"end").hexdigest()


def test_a_file_that_was_added_is_noticed(store: Store) -> None:
    with store.draft("text") as draft:
        (draft.folder / "whole.txt").write_text("abc")
        handle = draft.publish()
    assert store.fault(handle) == ""
    (store.path(handle) / "more.txt").write_text("def")
    _is_noticed(store, handle, "has a file too many, more.txt")


# Leftovers


def test_a_removed_artifact_is_gone_and_can_be_made_again(store: Store) -> None:
    handle = _put(store, a="content")
    store.remove(handle)
    assert store.fault(handle) == "is missing"
    assert list((store.root / handle.kind).iterdir()) == []
    store.remove(handle)
    assert _put(store, a="content") == handle


def test_every_artifact_is_listed(store: Store) -> None:
    assert list(store.handles()) == []
    made = {_put(store, a=str(i)) for i in range(5)}
    with store.draft("thing"):
        assert set(store.handles()) == made


def test_young_drafts_are_left_alone(store: Store) -> None:
    left = store.root / "thing" / ".draft-left"
    left.mkdir(parents=True)
    assert store.sweep() == []
    os.utime(left, (0, 0))
    assert store.sweep() == [left]
    assert not left.exists()


def test_a_draft_of_another_process_is_swept_once_that_is_killed(store: Store) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from rnnlm_core.store import Store\n"
        "with Store(Path(sys.argv[1])).draft('thing') as draft:\n"
        "    os.utime(draft.folder, (0, 0)); print('writing', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    assert store.sweep() == []
    child.kill()
    child.communicate()
    assert len(store.sweep()) == 1
    assert list((store.root / "thing").iterdir()) == []


def test_a_full_disk_is_told_with_the_bytes_needed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    path = store.root / "file.json"
    store.root.mkdir(parents=True, exist_ok=True)
    with pytest.raises(ResourceError, match=r"no space left: .* has 10 bytes free, 11 are needed: free some space"):
        write_atomically(path, b"x" * 11)
    assert list(store.root.iterdir()) == []
    write_atomically(path, b"x" * 10)


def test_a_disk_that_fills_up_while_a_draft_is_written_is_named_with_the_room_there_was(store: Store) -> None:
    def fill() -> None:
        with store.draft("corpus") as draft:
            (draft.folder / "train.parquet").write_bytes(b"x" * 1000)
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ResourceError, match=r"no space left: .*/corpus had [\d,]+ bytes free, the corpus needs more"):
        fill()
    assert list(store.root.rglob("*.parquet")) == []


def test_another_error_of_the_disk_is_not_taken_for_a_full_one(store: Store) -> None:
    with pytest.raises(OSError, match="Input/output error"), store.draft("corpus"):
        raise OSError(errno.EIO, "Input/output error")
