"""Source code as part of what a run is: the same settings under changed code are another run.

Code is found as text and never imported here, so that naming a run stays quick.
"""

import ast
import functools
import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedser.errors import InputError

PACKAGE = Path(__file__).parent.parent
# What cannot change a number: it decides where clients run, and what is kept or shown of the results.
SILENT = (
    "__main__.py",
    "display.py",
    "evaluate.py",
    "listen.py",
    "predict.py",
    "privacy",
    "report",
    "runs",
    "simulation",
)
SILENT_IN_TRAINING = (*SILENT, "evaluation")


@functools.cache
def own(silent: tuple[str, ...] = SILENT) -> str:
    """The hash of fedser's own modules, but for those named by a path's first part."""
    files = sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.c")])
    return _digest(file for file in files if file.relative_to(PACKAGE).parts[0] not in silent)


def foreign(targets: Iterable[str]) -> dict[str, str]:
    """Per module that these import paths lead to, outside fedser and installed packages, the hash of its source.

    And of the source of every module that it imports, likewise outside of both.
    """
    found = {}
    for target in targets:
        name = target.rpartition(".")[0]
        while name and _source(name) is None:
            name = name.rpartition(".")[0]
        if name and name not in found:
            found[name] = _digest(sorted(_reached(name, _source(name), set())))
            _check_unchanged(name, found[name])
    return found


_known: dict[str, str] = {}  # the first hash of each module in this process


def _check_unchanged(name: str, digest: str) -> None:
    """Raises InputError where a module's source is no longer that which this process has imported."""
    if _known.setdefault(name, digest) != digest and name in sys.modules:
        raise InputError(f"The source of {name} has changed since this process imported it: start a new one.")
    _known[name] = digest


def _source(name: str) -> Path | None:
    """The file of a module of the user's own; None for fedser's, installed ones, and packages without code."""
    top = name.partition(".")[0]
    if top in ("fedser", *sys.stdlib_module_names) or not any(map(_is_own, places(top))):
        return None  # to look further would import the packages on the way, torch for one
    return next((Path(place) for place in places(name) if place.endswith(".py") and _is_own(place)), None)


def places(name: str) -> list[str]:
    """Where a module's code is: its file, and the folders of a package."""
    try:
        spec = sys.modules[name].__spec__ if name in sys.modules else importlib.util.find_spec(name)
    except Exception:  # a package that is imported on the way may fail in any: none of its modules are found then
        return []
    return [spec.origin or "", *(spec.submodule_search_locations or ())] if spec else []


def _is_own(place: str) -> bool:
    return os.path.isabs(place) and not any(place.startswith(f"{folder}{os.sep}") for folder in _installed())


@functools.cache
def _installed() -> tuple[str, ...]:
    """Where installed packages and Python's own modules lie."""
    places = {sysconfig.get_path(key) for key in ("purelib", "platlib", "stdlib", "platstdlib")}
    return tuple(places | {folder for folder in sys.path if folder.endswith("-packages")})


def _reached(name: str, file: Path, seen: set[Path]) -> set[Path]:
    """The file and those of the user's own modules that it imports, and so on."""
    seen.add(file)
    for module in _imports(name, file):
        parts = module.split(".")
        for cut in range(1, len(parts) + 1):  # `import a.b` runs a's code too
            found = _source(".".join(parts[:cut]))
            if found is not None and found not in seen:
                _reached(".".join(parts[:cut]), found, seen)
    return seen


def _imports(name: str, file: Path) -> Iterator[str]:
    """The names that a module's source imports: modules, and what may be one (`from package import this`)."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package) if package else base
            yield from (f"{base}.{alias.name}".strip(".") for alias in node.names)


def _digest(files: Iterable[Path]) -> str:
    """Sixteen hexadecimal digits of the contents."""
    total = hashlib.blake2b(digest_size=8)
    for file in files:
        total.update(hashlib.blake2b(file.read_bytes()).digest())
    return total.hexdigest()
