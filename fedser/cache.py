"""The cache folder: what can be made again. `FEDSER_CACHE` moves it; entries appear whole or not at all."""

import contextlib
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
def publish(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target`; on success it becomes `target` in one rename.

    If another process has published the same entry meanwhile, theirs stays and ours is dropped: entries are
    named by the hash of what made them, so both hold the same.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)  # mkdtemp makes it private
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
