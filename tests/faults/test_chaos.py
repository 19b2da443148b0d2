"""Commands that are killed, stopped, started together, and whose files are damaged, at random: the same command again
ends with the bits of a run that nobody disturbed.

Each seed is a story of up to three disturbances and the final run; what was done is printed (`-s`) and told by a
failure. `RNNLM_SEEDS` chooses the seeds: a number, or FIRST-LAST. With a store that hosts share, in a bucket, what lies
there must be whole as well, and a second host finds everything done.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from commands import Commands, Running, Undisturbed
from homes import (
    SMALL,
    artifacts,
    let_time_pass,
    stages_that_count,
    store_of,
    trainings_of,
    wait_until_alone,
    what_is_wrong,
)

from rnnlm_core.config import CELLS
from rnnlm_core.crashpoints import POINTS, REMOTE_POINTS

if TYPE_CHECKING:
    from servers import ObjectStore

NUM_STAGES = 9


def seeds(wanted: str) -> range:
    """Read `12` (0 to 11) or `100-199`."""
    first, dash, last = wanted.partition("-")
    return range(int(first), int(last) + 1) if dash else range(int(first))


SEEDS = seeds(os.environ.get("RNNLM_SEEDS", "12"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Story:
    """What happens to one home."""

    def __init__(
        self, commands: Commands, seed: int, seconds: float, name: str = "", settings: dict[str, str] | None = None
    ) -> None:
        self.commands, self.draw, self.seconds = commands, random.Random(seed), seconds
        self.settings = settings or {}
        self.points = POINTS + (REMOTE_POINTS if settings else ())
        self.cell = CELLS[seed % len(CELLS)]
        self.home = commands.home(name or f"seed-{seed}")
        self.command = [*SMALL, "--cells", self.cell]
        self.told: list[str] = []
        self.lost_runs = False

    def tell(self, what: str) -> None:
        self.told.append(what)

    def start(self, *arguments: str, **environment: str) -> Running:
        """Start the command of this story."""
        return self.commands.start(self.home, *self.command, *arguments, **self.settings, **environment)

    def moment(self) -> float:
        """Draw when to strike: often early, where files appear one after the other, and seldom after the end."""
        return self.draw.uniform(0.0, self.draw.choice([0.3, 0.6, 1.0]) * self.seconds)

    def interrupt(self, number: signal.Signals, *codes: int) -> None:
        """Start the command and send it a signal; it ends with one of `codes`, or was faster."""
        running = self.start()
        moment = self.moment()
        ended = running.ends_within(moment)
        running.send(number)
        code = running.wait()
        self.tell(f"{number.name} after {moment:.1f} s, exit {code}")
        assert code in (codes if not ended else (0,)) or code == 0, running.output()
        wait_until_alone(self.home)

    def kill(self) -> None:
        self.interrupt(signal.SIGKILL, -9)

    def terminate(self) -> None:
        # By the signal itself as long as nobody listens: the first moments.
        self.interrupt(signal.SIGTERM, 143, -15)

    def press_ctrl_c(self) -> None:
        self.interrupt(signal.SIGINT, 130, -2)

    def kill_training(self) -> None:
        """Kill the process that trains, as the kernel does when memory runs out."""
        running = self.start()
        while not running.ends_within(0.05):
            if trainings := trainings_of(self.home):
                running.ends_within(self.draw.uniform(0.0, 4.0))
                with suppress(psutil.NoSuchProcess):
                    trainings[0].kill()
                break
        self.tell(f"training killed, exit {running.wait()}")
        assert running.wait() in (0, 5), running.output()

    def crash(self) -> None:
        """Die at a crash point."""
        point = f"{self.draw.choice(self.points)}@{self.draw.choice([1, 1, 2])}"
        running = self.start(RNNLM_CRASH=point)
        self.tell(f"crash at {point}, exit {running.wait()}")
        assert running.wait() in (0, 5, -9), running.output()
        wait_until_alone(self.home)

    def together(self) -> None:
        """Start the command twice and kill one of them."""
        first, second = (self.start() for _ in range(2))
        moment = self.moment()
        first.ends_within(moment)
        first.send(signal.SIGKILL)
        self.tell(f"one of two killed after {moment:.1f} s, exit {first.wait()} and {second.wait()}")
        assert second.wait() == 0, second.output()
        wait_until_alone(self.home)

    def damage_artifact(self) -> None:
        folders = sorted(folder for kind, folder in artifacts(self.home).items())
        if folders:
            folder = self.draw.choice(folders)
            if self.draw.random() < 0.2:
                shutil.rmtree(folder)
                self.tell(f"{folder.parent.name} removed")
            else:
                self.damage(self.draw.choice(sorted(path for path in folder.rglob("*") if path.is_file())))

    def damage_record(self) -> None:
        records = sorted((self.home / "artifacts" / "results").glob("*-*"))
        if records:
            self.damage(self.draw.choice(records))

    def damage_checkpoint_list(self) -> None:
        for path in sorted((store_of(self.home) / "checkpoint").glob("*.json"))[:1]:
            self.damage(path)

    def damage(self, path: Path) -> None:
        """Remove a file, empty it, cut it, or flip one of its bits."""
        whole = path.read_bytes()
        how = self.draw.choice(["removed", "emptied", "cut", "flipped", "flipped"]) if whole else "removed"
        self.tell(f"{path.parent.parent.name}/{path.name} {how}")
        if how == "removed":
            path.unlink()
            return
        bit = self.draw.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes({"emptied": b"", "cut": whole[: self.draw.randrange(len(whole))], "flipped": flipped}[how])

    def lose_run(self) -> None:
        """Delete a run in MLflow, as one does in its user interface."""
        if (self.home / "mlflow.db").exists():
            with closing(sqlite3.connect(self.home / "mlflow.db")) as database, database:
                database.execute("UPDATE runs SET lifecycle_stage = 'deleted', deleted_time = 1")
            self.lost_runs = True
            self.tell("runs deleted")

    def lose_mlflow(self) -> None:
        for path in self.home.glob("mlflow.db*"):
            path.unlink()
        self.lost_runs = True
        self.tell("mlflow.db removed")


INTERRUPTIONS: list[Callable[[Story], None]] = [
    Story.kill, Story.kill, Story.kill, Story.terminate, Story.press_ctrl_c, Story.kill_training,
    Story.crash, Story.crash, Story.together,
]  # fmt: skip
DAMAGES: list[Callable[[Story], None]] = [
    Story.damage_artifact, Story.damage_artifact, Story.damage_record, Story.damage_checkpoint_list,
    Story.lose_run, Story.lose_mlflow,
]  # fmt: skip


def check_end(story: Story, expected: set[str]) -> None:
    """Run the command to its end and check everything that must be true then."""
    commands, home = story.commands, story.home
    let_time_pass(home)
    found = stages_that_count(home)
    running = story.start("--json", "out.json")
    assert running.wait() == 0, running.output()
    wait_until_alone(home)
    assert list(what_is_wrong(home, commands.prefect)) == []
    assert set(artifacts(home)) == expected
    stages = json.loads((home / "out.json").read_text())["tasks"]
    assert sum(stages.values()) == NUM_STAGES
    assert stages["cached"] >= len(found), "what was whole has been done again"
    if story.lost_runs:  # what was recorded in them is told by `verify` until `doctor` has been there
        assert commands.run(home, "doctor", **story.settings) == 0, (home / "output.txt").read_text()
    verify = commands.start(home, "verify", **story.settings)
    assert verify.wait() == 0, verify.output()


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_the_same_command_ends_with_the_same_bits(
    seed: int, commands: Commands, undisturbed: dict[str, Undisturbed]
) -> None:
    story = Story(commands, seed, undisturbed[CELLS[0]].seconds)
    live_through(story, seed, undisturbed[story.cell].artifacts)
    shutil.rmtree(story.home)


def live_through(story: Story, seed: int, expected: set[str]) -> None:
    """Let happen what the seed says, and check the end."""
    draw = story.draw
    try:
        for _ in range(draw.choice([1, 1, 2, 3])):
            draw.choice(INTERRUPTIONS)(story)
            if draw.random() < 0.3:
                draw.choice(DAMAGES)(story)
        check_end(story, expected)
    finally:
        print(f"seed {seed}, {story.cell}: {'; '.join(story.told)}")


@pytest.mark.parametrize("seed", SEEDS)
def test_with_a_shared_store_too_and_a_second_host_finds_it_all_done(
    seed: int, commands: Commands, undisturbed: dict[str, Undisturbed], bucket: "ObjectStore"
) -> None:
    from servers import BUCKET

    prefix = f"seed-{seed}"
    settings = bucket.settings | {"RNNLM_STORE": f"s3://{BUCKET}/{prefix}"}
    story = Story(commands, seed, undisturbed[CELLS[0]].seconds, f"shared-{seed}", settings)
    expected = undisturbed[story.cell].artifacts
    live_through(story, seed, expected)
    assert {name for name in expected if not name.startswith("ids:")} <= whole_in(bucket, prefix)
    # Another host, tracking in the same place: nothing of the first but what lies in the bucket, and MLflow's runs.
    second = commands.home(f"second-{seed}")
    tracked = {"MLFLOW_TRACKING_URI": f"sqlite:///{story.home / 'mlflow.db'}"}
    running = commands.start(second, *story.command, "--json", "out.json", **settings, **tracked)
    assert running.wait() == 0, running.output()
    assert json.loads((second / "out.json").read_text())["tasks"] == {"executed": 0, "cached": NUM_STAGES}
    assert set(artifacts(second)) == {name for name in expected if not name.startswith("ids:")}
    shutil.rmtree(story.home)
    shutil.rmtree(second)


def whole_in(bucket: "ObjectStore", prefix: str) -> set[str]:
    """Return the artifacts under a prefix; each that has its own manifest must be whole."""
    keys = {key.removeprefix(f"{prefix}/") for key in bucket.names() if key.startswith(f"{prefix}/")}
    found = set()
    for key in sorted(key for key in keys if key.endswith("/manifest.json")):
        kind, sha256, _ = key.split("/")
        manifest = bucket.read(f"{prefix}/{key}")
        assert hashlib.sha256(manifest).hexdigest() == sha256, key
        for name, entry in json.loads(manifest)["files"].items():
            content = bucket.read(f"{prefix}/{kind}/{sha256}/{name}")
            assert hashlib.sha256(content).hexdigest() == entry["sha256"], (key, name)
        found.add(f"{kind}:{sha256}")
    return found


def test_a_crash_at_each_point_in_turn_loses_nothing(commands: Commands, undisturbed: dict[str, Undisturbed]) -> None:
    left = list(POINTS)
    homes = 0
    while left:
        # Each crash leaves the work a little further. What a command passed before it died is reached in another home.
        story = Story(commands, homes * len(CELLS), 0.0, f"points-{homes}")
        homes += 1
        reached = []
        for point in left:
            running = story.start(RNNLM_CRASH=point)
            code = running.wait()
            wait_until_alone(story.home)
            if code == 0:
                break
            assert code == -9 or (code == 5 and "SIGKILL" in running.output()), (point, running.output())
            reached.append(point)
        assert reached, f"{left[0]} is never reached"
        left = [point for point in left if point not in reached]
        check_end(story, undisturbed[story.cell].artifacts)
    print(f"{len(POINTS)} crash points, in {homes} homes")
