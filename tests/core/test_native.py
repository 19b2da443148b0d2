"""The native kernel is built by the machine's own compiler, once, where nobody else can write."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rnnlm_core import native

needs_compiler = pytest.mark.skipif(native.find_compiler() is None, reason="no C++ compiler here")
BUILD = "from rnnlm_core import native; print(native.load()._name)"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder; what another test has loaded is forgotten, and this test's afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_loaded", native._loaded.__wrapped__)
    monkeypatch.setattr(
        native, "FLAGS", [flag for flag in native.FLAGS if flag != "-O3"]
    )  # built in a tenth of the time
    return tmp_path / "rnnlm"


def compiler(tmp_path: Path, script: str) -> str:
    path = tmp_path / "cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@needs_compiler
def test_it_is_built_once_for_its_owner_alone(cache: Path) -> None:
    native.load()
    (built,) = cache.iterdir()
    assert stat.S_IMODE(built.stat().st_mode) == 0o700
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    before = built.stat()
    native.load()
    assert (built.stat().st_mtime_ns, built.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@needs_compiler
def test_processes_that_build_it_at_once_do_not_disturb_each_other(cache: Path) -> None:
    def build(_: int) -> str:
        done = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    with ThreadPoolExecutor(2) as pool:
        names = set(pool.map(build, range(2)))
    assert names == {str(one) for one in cache.iterdir()}


@needs_compiler
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_what_others_can_write_is_not_executed(cache: Path, mode: int) -> None:
    native.load()
    (built,) = cache.iterdir()
    built.chmod(mode)
    with pytest.raises(native.NotBuiltError, match="can be written by others: remove it"):
        native.load()


@needs_compiler
def test_threads_that_begin_together_build_it_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = native.find_compiler()
    assert found is not None
    built = tmp_path / "built"
    monkeypatch.setenv("CXX", compiler(tmp_path, f'[ "$1" = --version ] || echo >> {built}; exec {found[0]} "$@"'))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: native.load(), range(4)))
    assert len(built.read_text().splitlines()) == 1


@needs_compiler
def test_a_damaged_one_is_built_again(cache: Path) -> None:
    for _ in range(2):  # each in a process that has none in its memory
        subprocess.run([sys.executable, "-c", BUILD], check=True)
        (built,) = cache.iterdir()
        assert built.stat().st_size > 1000
        built.write_bytes(b"")


@needs_compiler
def test_a_folder_that_others_can_write_is_not_believed(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(native.NotBuiltError, match="rnnlm can be written by others: remove it"):
        native.load()


@needs_compiler
def test_a_link_is_not_followed(cache: Path, tmp_path: Path) -> None:
    native.load()
    (built,) = cache.iterdir()
    built.rename(tmp_path / "elsewhere.so")
    built.symlink_to(tmp_path / "elsewhere.so")
    with pytest.raises(native.NotBuiltError, match="is not what it should be: remove it"):
        native.load()


def test_a_compiler_that_is_no_command_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "'g++")
    with pytest.raises(native.NotBuiltError, match=r"CXX is no command: 'g\+\+ \(No closing quotation\)"):
        native.load()


@needs_compiler
def test_without_a_home_there_is_no_kernel_and_no_crash(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(native.NotBuiltError, match="Could not determine home directory"):
        native.load()


def test_without_a_compiler_it_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(native.NotBuiltError, match=r"no C\+\+ compiler here \(c\+\+, g\+\+ or clang\+\+; or set CXX\)"):
        native.load()
    assert not cache.exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('[ "$1" = --version ] || { echo "no such header" >&2; exit 1; }', r"could not build it \(no such header\)"),
        ('[ "$1" = --version ] || exit 3', r"could not build it \(exit code 3\)"),
        ("exit 1", "does not work"),
        ('[ "$1" = --version ] || { printf "\\377" >&2; exit 1; }', r"could not build it"),
        ('[ "$1" = --version ] || exit 0', "FileNotFoundError: .*No such file"),
    ],
)
def test_a_compiler_that_fails_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    with pytest.raises(native.NotBuiltError, match=said):
        native.load()
    assert not cache.exists() or list(cache.iterdir()) == []


@needs_compiler
def test_another_compiler_or_source_builds_its_own(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native.load()
    found = native.find_compiler()
    assert found is not None
    monkeypatch.setenv("CXX", f"{found[0]} -DANOTHER")
    native.load()
    for name in (*native.SOURCES, native.HEADER):
        (tmp_path / name).write_bytes((native.FOLDER / name).read_bytes())
    with (tmp_path / native.HEADER).open("a") as header:
        header.write("// another\n")
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    native.load()
    assert len(list(cache.iterdir())) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_folder_that_cannot_be_written_is_told(cache: Path) -> None:
    cache.parent.chmod(0o500)
    with pytest.raises(native.NotBuiltError, match="Permission denied"):
        native.load()
