"""The memory of each text stage, and whether it grows with the text."""

import shutil
from collections.abc import Iterator
from typing import Any

from benchmarks import targets
from benchmarks.measure import Pool, Series, Worker
from benchmarks.rows import Figure, Row, Setting
from benchmarks.texts import put, write_long
from rnnlm_core.store import Store

NUM_BYTES = 74_000_000
TIMES = 10
STAGES = ("tokenize", "vocabulary", "corpus", "statistics")
PEER = "d2l 0.17.6, all in one"


def memory(setting: Setting) -> Iterator[Row]:
    """Every stage in a process of its own, on a text and on one ten times as long; then all of it beside the book's."""
    size = 100_000 if setting.quick else NUM_BYTES
    path = setting.folder / "long.txt"
    for level in ("char", "word"):
        peaks: dict[int, dict[str, float]] = {}
        peer = 0.0
        for times in (1, TIMES):
            write_long(path, times * size)
            peaks[times] = _peaks(setting, level)
            if times == 1:
                worker = Worker("book.text", {"path": str(path), "level": level})
                peer = _alone(worker).facts["peak"] / 1e6
            path.unlink()
        for stage in STAGES:
            short, long = (Figure.single(peaks[times][stage]) for times in (1, TIMES))
            yield Row(
                case="memory",
                name=f"{stage}, {level}s of {TIMES * size / 1e6:.0f} MB",
                unit="MB",
                ours=long,
                peer_name=f"ours at {size / 1e6:.0f} MB",
                peer=short,
                ratio=long.median / short.median,
                target=targets.MEMORY_AT_MOST,
                at_most=True,
            )
        most = max(peaks[1].values())
        yield Row(
            case="memory",
            name=f"largest stage, {level}s of {size / 1e6:.0f} MB",
            unit="MB",
            ours=Figure.single(most),
            peer_name=PEER,
            peer=Figure.single(peer),
            ratio=most / peer,
        )


def _peaks(setting: Setting, level: str) -> dict[str, float]:
    """Return the largest memory of each stage in megabytes, one after the other on the same store."""
    store = Store(setting.folder / "memory")
    handles = {"text": put(setting.folder / "long.txt", store).sha256}
    num_tokens: dict[str, int] = {}
    peaks = {}
    for stage in STAGES:
        settings: dict[str, Any] = {
            "stage": stage,
            "level": level,
            "store": str(store.root),
            "handles": handles,
            "num_tokens": num_tokens,
        }
        facts = _alone(Worker("ours.text_stage", settings)).facts
        peaks[stage] = facts["peak"] / 1e6
        handles = {**handles, facts["kind"]: facts["sha256"]}
        num_tokens = facts["num_tokens"]
    shutil.rmtree(store.root)
    return peaks


def _alone(worker: Worker) -> Series:
    """Let a worker do one block in a new process: the peak of an old one is that of all it has done."""
    with Pool() as pool:
        return pool.compare({"": worker}, rounds=1, warm_up=0)[""]
