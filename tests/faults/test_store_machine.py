"""Whatever happens to the store, in whatever order: what it opens is what was made, and the chain makes it again.

The same for a store that hosts share, whose copies are damaged as well.
"""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from rnnlm_core import store as store_module
from rnnlm_core.corpus import build_corpus
from rnnlm_core.download import download, resolve
from rnnlm_core.errors import IntegrityError
from rnnlm_core.remote import connect
from rnnlm_core.store import MANIFEST, Handle, Store, file_sha256, write_atomically
from rnnlm_core.tokenize import tokenize
from rnnlm_core.vocabulary import build_vocabulary

EXAMPLES = int(os.environ.get("RNNLM_EXAMPLES", "25"))
"""How many histories of the store are tried; `make faults` asks for more."""
TEXT = "the time traveller spoke and we listened until the lamps burned low. " * 8
SHARES = (80, 10, 10)
CONFIGS = [("char", 1), ("word", 1), ("word", 9)]
STAGES = 4

Chain = tuple[Handle, ...]


class Crash(BaseException):
    """The process dies here."""


def run_chain(store: Store, text: Path, config: tuple[str, int], stages: int = STAGES) -> Chain:
    """Run the first stages of the chain: text, tokens, vocabulary, corpus."""
    level, min_freq = config
    handles = [download(resolve(str(text)), store).handle]
    if stages > 1:
        tokens = tokenize(handles[0], "none", level, store)
        handles.append(tokens.handle)
    if stages > 2:
        handles.append(build_vocabulary(tokens, SHARES, min_freq, (), store).handle)
    if stages > 3:
        handles.append(build_corpus(tokens, handles[2], SHARES, 0, store).handle)
    return tuple(handles)


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of each file of a folder."""
    return {p.relative_to(folder).as_posix(): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


class Undisturbed:
    """What the chain makes when nobody disturbs it, for each config."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "text.txt"
            text.write_text(TEXT)
            store = Store(Path(folder) / "store")
            self.chains = {config: run_chain(store, text, config) for config in CONFIGS}
            self.tokens = {config: tokenize(self.chains[config][0], "none", config[0], store) for config in CONFIGS}
            self.contents = {handle: contents(store.path(handle)) for handle in store.handles()}


class StoreMachine(RuleBasedStateMachine):
    """A store that is used, damaged, killed in the middle, swept and used again."""

    live = Bundle("live")
    undisturbed: Undisturbed | None = None

    @initialize()
    def begin(self) -> None:
        if StoreMachine.undisturbed is None:
            StoreMachine.undisturbed = Undisturbed()
        self.truth = StoreMachine.undisturbed
        self.folder = Path(tempfile.mkdtemp(prefix="rnnlm-machine-"))
        self.text = self.folder / "text.txt"
        self.text.write_text(TEXT)
        self.store = self.new_store("store")
        self.config = CONFIGS[0]
        self.drafts: list[tuple[Any, Path]] = []
        self.abandoned: set[Path] = set()
        self.no_power_fails = mock.patch.object(os, "fsync")  # and a disk is slow
        self.no_power_fails.start()

    def new_store(self, name: str) -> Store:
        """Return the store of a host."""
        return Store(self.folder / name)

    def teardown(self) -> None:
        if hasattr(self, "no_power_fails"):
            self.no_power_fails.stop()
        for manager, _ in getattr(self, "drafts", []):
            manager.__exit__(None, None, None)
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    # What is done on purpose

    @rule(config=st.sampled_from(CONFIGS))
    def change_the_config(self, config: tuple[str, int]) -> None:
        self.config = config

    @rule(stages=st.integers(1, STAGES))
    def run_stages(self, stages: int) -> None:
        """The chain as far as this stage; a damaged input is an error that names it, never a result."""
        try:
            handles = run_chain(self.store, self.text, self.config, stages)
        except IntegrityError as error:
            raise AssertionError(f"what was published a moment ago does not open: {error}") from error
        assert handles == self.truth.chains[self.config][:stages]

    @rule(config=st.sampled_from(CONFIGS))
    def run_the_last_stage_alone(self, config: tuple[str, int]) -> None:
        """A stage reads what earlier ones left: it refuses what is damaged, or returns the true result."""
        _, cut, words, corpus = self.truth.chains[config]
        tokens = self.truth.tokens[config]
        if self.store.bring(cut) or self.store.bring(words):
            try:
                build_corpus(tokens, words, SHARES, 0, self.store)
            except IntegrityError:
                return
            raise AssertionError("a damaged input was read")
        assert build_corpus(tokens, words, SHARES, 0, self.store).handle == corpus

    @rule(number=st.integers(0, 20))
    def remove_an_artifact(self, number: int) -> None:
        if handles := list(self.store.handles()):
            handle = handles[number % len(handles)]
            self.store.remove(handle)
            assert self.store.fault(handle) == "is missing"

    @rule(threads=st.integers(2, 4))
    def publish_the_same_at_once(self, threads: int) -> None:
        """All get the same handle, whoever is first."""
        found: list[Chain] = []
        ready = threading.Barrier(threads)

        def publish() -> None:
            ready.wait()
            found.append(run_chain(self.store, self.text, self.config, 1))

        workers = [threading.Thread(target=publish) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert found == [self.truth.chains[self.config][:1]] * threads

    @rule(target=live)
    def begin_a_draft(self) -> Path:
        """A writer that lives, and has been at it for long."""
        manager = self.store.draft("text")
        draft = manager.__enter__()
        (draft.folder / "part").write_bytes(b"so far")
        self.age(draft.folder)
        self.drafts.append((manager, draft.folder))
        return draft.folder

    @rule(folder=consumes(live))
    def give_up_a_draft(self, folder: Path) -> None:
        (entry,) = (entry for entry in self.drafts if entry[1] == folder)
        self.drafts.remove(entry)
        entry[0].__exit__(None, None, None)
        assert not folder.exists()

    @rule()
    def sweep(self) -> None:
        removed = set(self.store.sweep())
        assert removed == self.abandoned
        assert not any(path.exists() for path in self.abandoned)
        self.abandoned = set()

    # What happens to it

    def victim(self, number: int) -> Path | None:
        files = [
            p for handle in self.store.handles() for p in sorted(self.store.path(handle).rglob("*")) if p.is_file()
        ]
        return files[number % len(files)] if files else None

    def harm(self, number: int, how: Callable[[Path], object]) -> None:
        if (path := self.victim(number)) is not None:
            how(path)

    @rule(number=st.integers(0, 99))
    def lose_a_file(self, number: int) -> None:
        self.harm(number, Path.unlink)

    @rule(number=st.integers(0, 20))
    def lose_an_artifact(self, number: int) -> None:
        if handles := list(self.store.handles()):
            shutil.rmtree(self.store.path(handles[number % len(handles)]))

    @rule(number=st.integers(0, 99), place=st.integers(0, 10**6), bit=st.integers(0, 7))
    def flip_a_bit(self, number: int, place: int, bit: int) -> None:
        def flip(path: Path) -> None:
            content = bytearray(path.read_bytes())
            if content:
                content[place % len(content)] ^= 1 << bit
                path.write_bytes(content)

        self.harm(number, flip)

    @rule(number=st.integers(0, 99), share=st.floats(0, 0.99))
    def cut_a_file(self, number: int, share: float) -> None:
        self.harm(number, lambda path: os.truncate(path, int(path.stat().st_size * share)))

    @rule(number=st.integers(0, 99), name=st.sampled_from(["stray.txt", ".hidden", "more/deep.bin"]))
    def add_a_stray_file(self, number: int, name: str) -> None:
        def add(path: Path) -> None:
            (path.parent / name).parent.mkdir(exist_ok=True)
            (path.parent / name).write_bytes(b"nobody's")

        self.harm(number, add)

    @rule(number=st.integers(0, 99))
    def swap_the_manifest(self, number: int) -> None:
        """A whole manifest, but another artifact's."""
        others = list(self.store.handles())
        if others:
            other = self.store.path(others[number % len(others)]) / MANIFEST
            mine = self.store.path(others[(number + 1) % len(others)]) / MANIFEST
            if other.exists() and mine.parent.exists():
                mine.write_bytes(other.read_bytes())

    @rule(old=st.booleans())
    def die_with_half_a_draft(self, old: bool) -> None:
        folder = Path(tempfile.mkdtemp(prefix=store_module.DRAFT, dir=self.kind_folder("text")))
        (folder / "half.txt").write_bytes(b"hal")
        if old:
            self.age(folder)
            self.abandoned.add(folder)

    @rule(old=st.booleans())
    def die_with_half_a_file(self, old: bool) -> None:
        descriptor, name = tempfile.mkstemp(
            prefix=".x.", suffix=store_module.UNFINISHED, dir=self.kind_folder("tokens")
        )
        os.write(descriptor, b"hal")
        os.close(descriptor)
        if old:
            self.age(Path(name))
            self.abandoned.add(Path(name))

    @rule(
        call=st.sampled_from(["rename", "rename-after", "replace", "sync", "manifest"]),
        number=st.integers(1, 4),
        config=st.sampled_from(CONFIGS),
    )
    def die_while_publishing(self, call: str, number: int, config: tuple[str, int]) -> None:
        """The n-th call of this kind is the last thing the process does: nothing tidies up behind it."""
        count = 0

        def dies(real: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
            def call_or_die(*arguments: Any, **more: Any) -> Any:
                nonlocal count
                count += 1
                if count < number:
                    return real(*arguments, **more)
                if after:
                    real(*arguments, **more)
                raise Crash

            return call_or_die

        before = self.drafts_there()
        patches = {
            "rename": lambda: mock.patch.object(Path, "rename", dies(Path.rename)),
            "rename-after": lambda: mock.patch.object(Path, "rename", dies(Path.rename, after=True)),
            "replace": lambda: mock.patch.object(Path, "replace", dies(Path.replace)),
            "sync": lambda: mock.patch.object(store_module, "sync_file", dies(store_module.sync_file)),
            "manifest": lambda: mock.patch.object(Path, "write_bytes", dies(Path.write_bytes)),
        }
        with mock.patch.object(store_module.shutil, "rmtree"), patches[call]():  # the dead tidy nothing up
            try:
                run_chain(self.store, self.text, config)
                write_atomically(self.store.root / "noted.json", b"{}")
            except Crash:
                pass
        for path in self.drafts_there() - before:
            self.age(path)
            self.abandoned.add(path)

    # What must hold after each of them

    @invariant()
    def what_opens_is_what_was_made(self) -> None:
        if not hasattr(self, "store"):
            return
        for handle in self.store.handles():
            try:
                folder = self.store.open(handle)
            except IntegrityError:
                continue
            assert contents(folder) == self.truth.contents[handle], handle

    @invariant()
    def who_lives_keeps_its_draft(self) -> None:
        for _, folder in getattr(self, "drafts", []):
            assert (folder / "part").read_bytes() == b"so far"

    @rule()
    def heal(self) -> None:
        """The same commands again, and everything is as if nothing had happened."""
        for config in CONFIGS:
            assert run_chain(self.store, self.text, config) == self.truth.chains[config]
        for chain in self.truth.chains.values():
            for handle in chain:
                assert contents(self.store.open(handle)) == self.truth.contents[handle]

    def kind_folder(self, kind: str) -> Path:
        (self.store.root / kind).mkdir(parents=True, exist_ok=True)
        return self.store.root / kind

    def drafts_there(self) -> set[Path]:
        there = [
            *self.store.root.glob(f"*/{store_module.DRAFT}*"),
            *self.store.root.rglob(f".*{store_module.UNFINISHED}"),
        ]
        return set(there)

    @staticmethod
    def age(path: Path) -> None:
        """Make it older than what is left alone for its youth."""
        long_ago = time.time() - 2 * store_module.ABANDONED_SECONDS
        os.utime(path, (long_ago, long_ago))


class SharedStoreMachine(StoreMachine):
    """The same store with a remote, in a folder: another host looks in, copies are lost and damaged."""

    def new_store(self, name: str) -> Store:
        (self.folder / "shared").mkdir(exist_ok=True)
        return Store(self.folder / name, connect((self.folder / "shared").as_uri()))

    @rule(number=st.integers(0, 20))
    def another_host_asks(self, number: int) -> None:
        """It gets what was made, or nothing; and what it made itself the others can have."""
        other = self.new_store("other")
        handles = sorted(self.truth.contents, key=str)
        handle = handles[number % len(handles)]
        if not other.bring(handle):
            assert contents(other.path(handle)) == self.truth.contents[handle]
        shutil.rmtree(other.root, ignore_errors=True)

    @rule(config=st.sampled_from(CONFIGS))
    def another_host_runs_the_chain(self, config: tuple[str, int]) -> None:
        other = self.new_store("other")
        assert run_chain(other, self.text, config) == self.truth.chains[config]
        shutil.rmtree(other.root)

    @rule(number=st.integers(0, 99), place=st.integers(0, 10**6), how=st.sampled_from(["flip", "cut", "lose"]))
    def harm_a_copy(self, number: int, place: int, how: str) -> None:
        files = sorted(path for path in (self.folder / "shared").rglob("*") if path.is_file())
        if not files:
            return
        path = files[number % len(files)]
        content = bytearray(path.read_bytes())
        if how == "lose" or not content:
            path.unlink()
        elif how == "cut":
            os.truncate(path, place % len(content))
        else:
            content[place % len(content)] ^= 1 << place % 8
            path.write_bytes(content)


TestStore = StoreMachine.TestCase
TestSharedStore = SharedStoreMachine.TestCase
TestStore.settings = TestSharedStore.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
