"""Kernels in C, compiled where a compiler is, that give what PyTorch's own give, to the bit.

A library is compiled once for a processor and lies in fedser's cache. Nothing is used before it has given PyTorch's
bits on this machine: where there is no compiler, or PyTorch rounds otherwise, its own operations stay.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from fedser.runs import cache

log = logging.getLogger(__name__)
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")
CONTRACTIONS = ("fast", "off")  # whether a product and a sum are rounded once
SECONDS_TO_COMPILE = 60


def libraries(name: str, *options: str) -> "list[ctypes.CDLL]":
    """The kernels of a C file beside this one, as each contraction rounds them; none where they can't be compiled."""
    return [library for way in CONTRACTIONS if (library := _library(name, way, *options))]


@functools.cache
def _library(name: str, contraction: str, *options: str) -> "ctypes.CDLL | None":
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or os.environ.get("FEDSER_KERNELS") == "0":
        return None
    source = Path(__file__).with_name(f"{name}.c")
    command = [compiler, *FLAGS, *options, f"-ffp-contract={contraction}", str(source), "-lm"]
    known = hashlib.sha256(source.read_bytes() + "\0".join([*command[:-2], _processor()]).encode()).hexdigest()[:16]
    file = cache.folder() / "kernels" / f"{name}-{known}.so"
    try:
        if not file.exists():
            _compile(command, file)
        return ctypes.CDLL(str(file))
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("%s.c can't be used: %s", name, error)
        return None


def _compile(command: list[str], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # a rename, so that nobody loads half of it
        made = Path(folder, file.name)
        subprocess.run([*command, "-o", str(made)], check=True, capture_output=True, timeout=SECONDS_TO_COMPILE)
        made.replace(file)


def _processor() -> str:
    """What machine code is made for: another processor that reads the same cache has its own."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
