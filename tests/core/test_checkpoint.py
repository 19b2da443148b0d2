import json
from pathlib import Path

import pytest
import torch

from rnnlm_core.checkpoint import KEPT, Checkpoints, Snapshot, pending
from rnnlm_core.store import Handle, Store


def snapshot(number: int) -> Snapshot:
    tensors = {"model.w": torch.full((2, 3), float(number)), "random.data": torch.arange(4, dtype=torch.uint8)}
    return Snapshot(tensors, {"best_epoch": number, "history": [{"loss": 0.1 + number}]})


def artifacts(store: Store) -> list[Path]:
    """The checkpoints in the store, newest first as the pointer says."""
    digests = json.loads((store.root / "checkpoint" / "key.json").read_text())
    return [store.path(Handle("checkpoint", digest)) for digest in digests]


def folders(store: Store) -> set[Path]:
    return {path for path in (store.root / "checkpoint").iterdir() if path.is_dir()}


def test_a_training_without_checkpoint_starts_anew(store: Store) -> None:
    assert Checkpoints(store, "key").load() == (None, [])


def test_a_snapshot_comes_back_bit_for_bit(store: Store) -> None:
    odd = torch.tensor([1e-45, -0.0, torch.inf, 1 / 3])
    strided = torch.arange(6.0).reshape(2, 3).t()
    Checkpoints(store, "key").save(Snapshot({"odd": odd, "strided": strided}, {"loss": 1 / 3}))
    loaded, faults = Checkpoints(store, "key").load()
    assert loaded is not None
    assert faults == []
    assert loaded.facts == {"loss": 1 / 3}
    assert loaded.tensors["odd"].view(torch.int32).tolist() == odd.view(torch.int32).tolist()
    assert torch.equal(loaded.tensors["strided"], strided)


def test_the_newest_comes_back_and_the_last_two_are_kept(store: Store) -> None:
    checkpoints = Checkpoints(store, "key")
    for number in range(5):
        checkpoints.save(snapshot(number))
    loaded, _ = checkpoints.load()
    assert loaded is not None
    assert loaded.facts["best_epoch"] == 4
    assert KEPT == 2
    assert folders(store) == set(artifacts(store))
    assert len(artifacts(store)) == 2


def test_saving_the_same_snapshot_again_keeps_the_one_before(store: Store) -> None:
    checkpoints = Checkpoints(store, "key")
    for number in (1, 2, 2):
        checkpoints.save(snapshot(number))
    assert len(artifacts(store)) == 2
    assert folders(store) == set(artifacts(store))


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_a_damaged_newest_falls_back_to_the_one_before(name: str, store: Store) -> None:
    checkpoints = Checkpoints(store, "key")
    checkpoints.save(snapshot(1))
    checkpoints.save(snapshot(2))
    damaged = artifacts(store)[0] / name
    damaged.write_bytes(damaged.read_bytes()[:-3])
    loaded, faults = checkpoints.load()
    assert loaded is not None
    assert loaded.facts["best_epoch"] == 1
    (fault,) = faults
    assert damaged.parent.name[:12] in fault
    assert "damaged" in fault or "changed manifest" in fault


def test_when_all_are_damaged_each_is_told(store: Store) -> None:
    checkpoints = Checkpoints(store, "key")
    checkpoints.save(snapshot(1))
    checkpoints.save(snapshot(2))
    for folder in artifacts(store):
        (folder / "state.json").unlink()
    loaded, faults = checkpoints.load()
    assert loaded is None
    assert ["lacks state.json" in fault for fault in faults] == [True, True]


@pytest.mark.parametrize("data", [b"", b'["abc', b"\xff", b"{}", b"[1]"], ids=repr)
def test_a_damaged_pointer_is_told_and_replaced(data: bytes, store: Store) -> None:
    checkpoints = Checkpoints(store, "key")
    checkpoints.save(snapshot(1))
    checkpoints.pointer.write_bytes(data)
    loaded, faults = checkpoints.load()
    assert loaded is None
    assert ["damaged checkpoint list" in fault for fault in faults] == [True]
    checkpoints.save(snapshot(2))
    again, faults = checkpoints.load()
    assert again is not None
    assert faults == []


def test_trainings_do_not_see_each_other(store: Store) -> None:
    Checkpoints(store, "key").save(snapshot(1))
    assert Checkpoints(store, "other").load() == (None, [])
    Checkpoints(store, "other").clear()
    assert Checkpoints(store, "key").load()[0] is not None


def test_clearing_leaves_nothing(store: Store) -> None:
    checkpoints = Checkpoints(store, "key")
    checkpoints.clear()
    checkpoints.save(snapshot(1))
    checkpoints.clear()
    assert list((store.root / "checkpoint").iterdir()) == []
    assert checkpoints.load() == (None, [])


def test_a_save_that_fails_leaves_the_one_before(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(store, "key")
    checkpoints.save(snapshot(1))
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoints.save(Snapshot({}, {"odd": object()}))
    loaded, _ = checkpoints.load()
    assert loaded is not None
    assert loaded.facts["best_epoch"] == 1
    assert folders(store) == set(artifacts(store))


def test_a_checkpoint_of_another_training_is_not_taken(store: Store) -> None:
    Checkpoints(store, "other").save(snapshot(1))
    ours = Checkpoints(store, "key")
    ours.pointer.write_text(Checkpoints(store, "other").pointer.read_text())
    loaded, (fault,) = ours.load()
    assert loaded is None
    assert fault.endswith("is that of another training, other")


def test_trainings_in_the_same_state_have_checkpoints_of_their_own(store: Store) -> None:
    for key in ("key", "other"):
        Checkpoints(store, key).save(snapshot(1))
    Checkpoints(store, "key").clear()
    assert Checkpoints(store, "other").load()[0] is not None
    assert pending(store) == ["other"]


def test_an_artifact_that_is_no_checkpoint_is_skipped_and_told(store: Store) -> None:
    Checkpoints(store, "key").save(snapshot(1))
    with store.draft("checkpoint") as draft:  # whole as an artifact, its digest in the list
        (draft.folder / "state.json").write_text('{"key": "key", "facts": {}}')
        (draft.folder / "state.safetensors").write_bytes(b"\x80\x04")
        handle = draft.publish()
    pointer = Checkpoints(store, "key").pointer
    pointer.write_text(json.dumps([handle.sha256, *json.loads(pointer.read_text())]))
    loaded, faults = Checkpoints(store, "key").load()
    assert loaded is not None
    assert loaded.facts["best_epoch"] == 1
    (fault,) = faults
    assert f"checkpoint:{handle.sha256[:12]} is no checkpoint (SafetensorError" in fault
