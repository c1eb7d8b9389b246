"""The cache folder: what can be made again. `FEDSER_CACHE` moves it; entries appear whole or not at all."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fedser.errors import InputError


def folder(*parts: str) -> Path:
    """The path of a cache entry, under `FEDSER_CACHE` or `~/.cache/fedser`. Nothing is created."""
    root = os.environ.get("FEDSER_CACHE") or Path.home() / ".cache" / "fedser"
    return Path(root).expanduser().joinpath(*parts)


@contextlib.contextmanager
def lock(file: Path) -> Iterator[None]:
    """Holds a lock for one process; the kernel lets go when it dies.

    Raises BlockingIOError when another holds it, InputError when the cache can't be written.
    """
    with contextlib.ExitStack() as held:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(held.enter_context(file.open("w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            raise InputError(f"The cache {file.parent} can't be written: {error}. Set FEDSER_CACHE.") from error
        yield


@contextlib.contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yields an empty hidden folder beside `target`; on success it becomes `target` in one rename, else it is removed.

    If another process has published the same entry meanwhile, theirs stays and ours is removed: entries are named by
    the hash of what made them, so both hold the same.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield made
        made.chmod(0o755)  # mkdtemp makes it private
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
