"""Files that appear whole or not at all, and JSON that every reader takes."""

import contextlib
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedser.errors import InputError, RunError


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yields where to write what becomes `file` in one step: a reader sees the old or the new one. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield scratch
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


def write_whole(file: Path, content: bytes) -> None:
    """Replaces a file in one step, its folder made where there is none. Raises OSError."""
    with replacing(file) as scratch:
        scratch.write_bytes(content)


def read_json(file: Path):
    """What a JSON file holds, None where there is no such file. Raises InputError naming a damaged one."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error}): move the folder away or delete it.") from error


def dumps(value, indent: int | None = None) -> str:
    """Strict JSON: NaN (a recall without test utterances) becomes null."""
    return json.dumps(_strict(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _strict(value):
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def content_digest(path: str | Path) -> str:
    """The hash of a checkpoint, a file or a folder's own files with their names: the same wherever it lies.

    Raises InputError where there is nothing.
    """
    path = Path(path).expanduser()
    found = sorted(file for file in (path.iterdir() if path.is_dir() else [path]) if file.is_file())
    if not found:
        raise InputError(
            f"There is no checkpoint at {path}: model.checkpoint is a local path, of what was downloaded before."
        )
    return _content(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in found))


@functools.lru_cache  # checkpoints are large, and a run is named more than once
def _content(found: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file, *_ in found:
        with file.open("rb") as content:
            part = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).digest()
        digest.update((file.name if len(found) > 1 else "").encode() + part)
    return digest.hexdigest()


def disk_error(error: OSError, doing: str) -> RunError:
    """An OSError while the run was under way, as the user should read it."""
    return RunError(f"{doing} failed: {error}. Free some space or move the folder with hydra.run.dir=…")
