"""Two stores that share one place: what one publishes the other has, and nothing is believed unread."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from rnnlm_core import remote as remote_module
from rnnlm_core.checkpoint import Checkpoints, Snapshot, unlisted_copies
from rnnlm_core.corpus import build_corpus
from rnnlm_core.download import download, resolve
from rnnlm_core.errors import IntegrityError, ResourceError, UsageError
from rnnlm_core.mapped_ids import mapped_ids
from rnnlm_core.remote import Remote, connect
from rnnlm_core.store import MANIFEST, Handle, Store
from rnnlm_core.tokenize import tokenize
from rnnlm_core.vocabulary import build_vocabulary

CONTENT = {"whole.txt": b"words", "part/more.bin": b"\x00\xff" * 5000, "empty.txt": b""}


@pytest.fixture(params=["file", "s3"])
def remote(request: pytest.FixtureRequest, address: Callable[[str], str]) -> Remote:
    """An empty place, a folder or a bucket."""
    return connect(address(request.param))


@pytest.fixture
def one(tmp_path: Path, remote: Remote) -> Store:
    """The store of a host."""
    return Store(tmp_path / "one", remote)


@pytest.fixture
def other(tmp_path: Path, remote: Remote) -> Store:
    """The store of another host."""
    return Store(tmp_path / "other", remote)


def put(store: Store, content: dict[str, bytes] = CONTENT, kind: str = "text") -> Handle:
    with store.draft(kind) as draft:
        for name, data in content.items():
            (draft.folder / name).parent.mkdir(exist_ok=True)
            (draft.folder / name).write_bytes(data)
        return draft.publish()


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def there(handle: Handle, name: str = MANIFEST) -> str:
    return f"{handle.kind}/{handle.sha256}/{name}"


def leftovers(store: Store) -> list[Path]:
    return list(store.root.glob("*/.draft-*"))


def test_what_one_host_publishes_another_has(one: Store, other: Store) -> None:
    handle = put(one)
    assert other.fault(handle) == "is missing"
    assert other.loss(handle) == ""
    folder = other.open(handle)
    assert folder == other.path(handle)
    assert contents(folder) == contents(one.path(handle))
    assert {name: data for name, data in contents(folder).items() if name != MANIFEST} == CONTENT
    assert leftovers(other) == []


def test_names_and_bytes_there_are_those_here(one: Store, remote: Remote) -> None:
    handle = put(one)
    assert remote.names() == sorted(there(handle, name) for name in (*CONTENT, MANIFEST))
    assert {name: remote.read(there(handle, name)) for name in CONTENT} == CONTENT
    assert hashlib.sha256(remote.read(there(handle)) or b"").hexdigest() == handle.sha256
    assert list(remote.handles()) == [handle]
    assert list(remote.handles("model")) == []


def test_what_nobody_has_is_missing(other: Store) -> None:
    handle = Handle("text", "0" * 64)
    assert other.bring(handle) == other.loss(handle) == "is missing"
    with pytest.raises(IntegrityError, match="is missing"):
        other.open(handle)
    assert leftovers(other) == []


def test_an_upload_without_its_manifest_is_none_and_the_next_one_ends_it(
    one: Store, other: Store, remote: Remote
) -> None:
    handle = put(one)
    remote.withdraw(handle)
    remote.remove(there(handle, "whole.txt"))
    assert other.bring(handle) == other.loss(handle) == "is missing"
    assert put(one) == handle
    assert other.bring(handle) == ""


def test_an_upload_that_is_killed_before_its_manifest_is_not_believed(
    one: Store, other: Store, remote: Remote, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from rnnlm_core.remote import connect\n"
        "from rnnlm_core.store import Store\n"
        "with Store(Path(sys.argv[1]), connect(sys.argv[2])).draft('text') as draft:\n"
        "    (draft.folder / 'whole.txt').write_text('words'); draft.publish()"
    )
    for point, whole in (("uploading", False), ("uploaded", True)):
        died = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "third"), str(remote)],
            env={**os.environ, "RNNLM_CRASH": point}, check=False,
        )  # fmt: skip
        assert died.returncode == -9
        (handle,) = Store(tmp_path / "third").handles()
        assert there(handle, "whole.txt") in remote.names()
        assert (other.bring(handle) == "") == whole
    assert put(one, {"whole.txt": b"words"}) == handle


@pytest.mark.parametrize("how", ["flipped", "cut", "longer", "removed", "manifest flipped", "manifest of another"])
def test_a_damaged_copy_is_withdrawn_and_uploaded_again_by_who_makes_it_again(
    how: str, one: Store, other: Store, remote: Remote
) -> None:
    handle = put(one)
    name = there(handle, MANIFEST if how.startswith("manifest") else "whole.txt")
    if how == "removed":
        remote.remove(name)
    elif how == "manifest of another":
        remote.write(name, remote.read(there(put(one, {"x": b"y"}))) or b"")
    else:
        data = {"flipped": b"wordz", "cut": b"wor", "longer": b"words and more"}
        remote.write(name, data.get(how) or (remote.read(name) or b"").replace(b"words", b"wordz") + b" ")
    fault = other.bring(handle)
    assert fault.startswith(f"is missing, and the copy in {remote} ")
    assert not other.path(handle).exists()
    assert leftovers(other) == []
    assert other.bring(handle) == "is missing"
    assert put(other) == handle
    assert other.fault(handle) == ""
    assert Store(other.root.parent / "third", remote).bring(handle) == ""


def test_a_damaged_artifact_here_gives_way_to_the_copy(one: Store) -> None:
    handle = put(one)
    (one.path(handle) / "whole.txt").write_bytes(b"wordz")
    assert one.bring(handle) == ""
    assert (one.path(handle) / "whole.txt").read_bytes() == b"words"


@pytest.mark.parametrize("name", ["../../../loot.txt", "/tmp/rnnlm-loot.txt", "part/../../../loot.txt"])  # noqa: S108
def test_a_manifest_that_leads_out_of_its_folder_is_none(
    name: str, other: Store, remote: Remote, tmp_path: Path
) -> None:
    """Whoever can write there can write a manifest to any digest of his own choice."""
    entry = {"bytes": 4, "sha256": hashlib.sha256(b"loot").hexdigest()}
    manifest = json.dumps({"kind": "text", "files": {name: entry}}).encode()
    handle = Handle("text", hashlib.sha256(manifest).hexdigest())
    remote.write(there(handle), manifest)
    assert "has a changed manifest" in other.bring(handle)
    assert list(tmp_path.rglob("*loot*")) == []


def test_a_removed_artifact_is_gone_here_alone_and_a_discarded_one_everywhere(
    one: Store, other: Store, remote: Remote
) -> None:
    handle = put(one)
    one.remove(handle)
    assert remote.holds(handle)
    one.discard(handle)
    one.discard(handle)
    assert not remote.holds(handle)
    assert remote.names() == []
    assert other.bring(handle) == "is missing"


def test_what_every_host_makes_by_itself_is_not_uploaded(one: Store, remote: Remote, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the time traveller spoke and we listened. " * 50)
    tokens = tokenize(download(resolve(str(text)), one).handle, "none", "char", one)
    words = build_vocabulary(tokens, (80, 10, 10), 1, (), one)
    corpus = build_corpus(tokens, words.handle, (80, 10, 10), 0, one)
    mapped_ids(corpus.handle, "train", words.size, one)
    assert {handle.kind for handle in one.handles()} == {"text", "tokens", "vocabulary", "corpus", "ids"}
    assert {handle.kind for handle in remote.handles()} == {"text", "tokens", "vocabulary", "corpus"}


def test_a_file_is_written_at_once(remote: Remote) -> None:
    remote.write("records/x", b"old")
    remote.write("records/x", b"new")
    assert remote.read("records/x") == b"new"
    assert remote.names() == ["records/x"]
    remote.remove("records/x")
    remote.remove("records/x")
    assert remote.read("records/x") is None


# Leftovers


def test_what_an_upload_left_is_removed_a_day_later(
    one: Store, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, half = put(one), put(one, {"a": b"b", "c": b"d"})
    remote.withdraw(half)
    remote.write(f"text/{half.sha256}/.a.1234.tmp", b"")
    remote.write("records/train-x", b"{}")
    assert remote.sweep() == []
    monkeypatch.setattr(remote_module, "FORGOTTEN", -remote_module.FORGOTTEN)
    assert remote.sweep() == [there(half, name) for name in (".a.1234.tmp", "a", "c")]
    assert remote.names() == sorted([*(there(whole, name) for name in (*CONTENT, MANIFEST)), "records/train-x"])


# Checkpoints


def snapshot(step: int) -> Snapshot:
    return Snapshot({"w": torch.full((3,), float(step))}, {"step": step})


def test_a_training_begun_on_one_host_goes_on_on_another(one: Store, other: Store, remote: Remote) -> None:
    for step in range(3):
        Checkpoints(one, "key").save(snapshot(step))
    found, faults = Checkpoints(other, "key").load()
    assert faults == []
    assert found is not None
    assert (found.facts, found.tensors["w"].tolist()) == ({"step": 2}, [2.0] * 3)
    Checkpoints(other, "key").save(snapshot(3))
    assert len(list(remote.handles("checkpoint"))) == 2
    Checkpoints(other, "key").clear()
    assert remote.names() == []
    assert Checkpoints(Store(one.root.parent / "third", remote), "key").load() == (None, [])


def test_a_damaged_list_here_gives_way_to_the_one_there(one: Store) -> None:
    checkpoints = Checkpoints(one, "key")
    checkpoints.save(snapshot(1))
    checkpoints.pointer.write_text("[")
    found, faults = checkpoints.load()
    assert found is not None
    assert faults == [f"damaged checkpoint list {checkpoints.pointer}"]


def test_a_checkpoint_is_complete_here_before_the_upload_fails(
    one: Store, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Remote, handle: Handle, folder: Path) -> None:
        raise ResourceError("away")

    monkeypatch.setattr(Remote, "upload", away)
    with pytest.raises(ResourceError, match="away"):
        Checkpoints(one, "key").save(snapshot(7))
    found, _ = Checkpoints(Store(one.root), "key").load()
    assert found is not None
    assert found.facts == {"step": 7}


def test_checkpoints_that_no_list_names_are_found(one: Store, remote: Remote) -> None:
    Checkpoints(one, "key").save(snapshot(1))
    assert list(unlisted_copies(remote)) == []
    remote.remove("checkpoint/key.json")
    assert list(unlisted_copies(remote)) == list(remote.handles("checkpoint"))


# Addresses


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("/shared/folder", "must be an address such as s3://bucket/folder or file:///shared/folder: /shared/folder: "),
        ("s3://", "must be an address"),
        ("s4://bucket", "unknown kind of address in `RNNLM_STORE`: s4: known: file, s3, "),
        ("simplecache::s3://bucket", "unknown kind of address"),
        ("s3://key:hunter2@bucket/x", r"names a place, no keys and no options: s3://\*\*\*@bucket: put keys into"),
        ("s3://bucket/x?endpoint_override=evil", "no keys and no options"),
    ],
)
def test_what_is_no_address_is_refused(url: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        connect(url)
    assert "hunter2" not in str(caught.value)


def test_a_folder_or_bucket_that_is_not_there_is_not_made(remote: Remote, tmp_path: Path) -> None:
    """A share that is not mounted shall not become a folder of this machine."""
    url = "s3://no-such-bucket/x" if str(remote).startswith("s3") else (tmp_path / "not" / "mounted").as_uri()
    with pytest.raises(ResourceError, match=f"no such bucket or folder: {url} "):
        connect(url)
    assert not (tmp_path / "not").exists()


def test_a_package_that_is_not_here_is_named() -> None:
    with pytest.raises(ResourceError, match=r"gs:// needs a package: gs://bucket/x: .*gcsfs"):
        connect("gs://bucket/x")


def test_a_server_that_does_not_answer_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "ATTEMPTS", 1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:10")
    with pytest.raises(
        ResourceError, match=r"the shared store cannot be used: s3://away-9/x \(.*connect.*\): see to"
    ) as e:
        connect("s3://away-9/x")
    assert len(e.value.lines) == 1
    assert "hunter2" not in str(e.value)


def test_a_server_that_goes_away_ends_what_is_done_and_what_was_made_stays_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from servers import BUCKET, object_store

    monkeypatch.setattr(remote_module, "ATTEMPTS", 1)
    with object_store() as server:
        os.environ.update(server.settings)
        store = Store(tmp_path / "store", connect(f"s3://{BUCKET}/goes-away"))
        first = put(store, {"a": b"b"})
    for ask in (lambda: put(store), lambda: store.bring(Handle("text", "0" * 64)), lambda: store.discard(first)):
        with pytest.raises(ResourceError, match=f"the shared store cannot be used: s3://{BUCKET}/goes-away "):
            ask()
    alone = Store(store.root)
    (second,) = alone.handles("text")
    assert (alone.path(second) / "whole.txt").read_bytes() == CONTENT["whole.txt"]
    assert alone.fault(second) == ""
    assert leftovers(store) == []


def test_what_refuses_is_an_error_of_one_line(one: Store, remote: Remote) -> None:
    if str(remote).startswith("s3"):
        pytest.skip("moto asks nobody for keys")
    folder = Path(urlsplit(str(remote)).path)
    (folder / "text").write_text("in the way")
    with pytest.raises(ResourceError, match=r"the shared store cannot be used: file://.* \(.*\): see to the address"):
        put(one)
    assert len(list(one.handles("text"))) == 1


def test_without_an_address_fsspec_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tasks import workspace\n"
        "assert workspace.store().remote is None\n"
        "with workspace.store().draft('text') as draft:\n"
        "    (draft.folder / 'x').write_text('y'); workspace.store().open(draft.publish())\n"
        "assert not {'fsspec', 'pyarrow', 'rnnlm_core.remote'} & set(sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RNNLM_STORE"}
    subprocess.run([sys.executable, "-c", code], env=environment | {"RNNLM_HOME": str(tmp_path)}, check=True)


def test_a_training_goes_on_from_whichever_host_came_further(one: Store, other: Store) -> None:
    import torch

    from rnnlm_core.checkpoint import Checkpoints, Snapshot

    def snapshot(epochs: int) -> Snapshot:
        return Snapshot({"model.w": torch.tensor(float(epochs))}, {"history": [{}] * epochs, "place": None})

    Checkpoints(one, "key").save(snapshot(1))
    for epochs in (2, 3):
        Checkpoints(other, "key").save(snapshot(epochs))
    found, faults = Checkpoints(one, "key").load()
    assert found is not None
    assert (float(found.tensors["model.w"]), faults) == (3.0, [])
    Checkpoints(one, "key").save(snapshot(4))
    found, _ = Checkpoints(other, "key").load()
    assert found is not None
    assert float(found.tensors["model.w"]) == 4.0
