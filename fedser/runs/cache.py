"""The cache folder: what can be made again. `FEDSER_CACHE` moves it; entries appear whole or not at all."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def folder(*parts: str) -> Path:
    """The path of a cache entry, under `FEDSER_CACHE` or `~/.cache/fedser`. Nothing is created."""
    root = os.environ.get("FEDSER_CACHE") or Path.home() / ".cache" / "fedser"
    return Path(root).expanduser().joinpath(*parts)


@contextlib.contextmanager
def lock(file: Path) -> Iterator[None]:
    """Holds a lock for one process; the kernel lets go when it dies.

    Raises BlockingIOError when another holds it, OSError when the cache can't be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextlib.contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target`; on success it becomes `target` in one rename, else it is removed."""
    made = scratch(target)
    try:
        yield made
        install(made, target)
    finally:
        remove(made)


def scratch(target: Path) -> Path:
    """A new empty folder beside `target`, hidden."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))


def install(made: Path, target: Path) -> None:
    """Renames `made` to `target`.

    If another process has published the same entry meanwhile, theirs stays and ours is removed: entries are named by
    the hash of what made them, so both hold the same.
    """
    made.chmod(0o755)  # mkdtemp makes it private
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        remove(made)


def remove(made: Path) -> None:
    """Removes a folder made by `scratch`, if it is still there."""
    shutil.rmtree(made, ignore_errors=True)
