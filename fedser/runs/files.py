"""Files that appear whole or not at all, and JSON that every reader takes."""

import contextlib
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


def disk_error(error: OSError, doing: str) -> RunError:
    """An OSError while the run was under way, as the user should read it."""
    return RunError(f"{doing} failed: {error}. Free some space or move the folder with hydra.run.dir=…")
