"""A machine's resources for clients: cores, GPUs, memory. Nothing here starts CUDA or Ray."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
MEMORY = (("sys/fs/cgroup", "memory.max"), ("sys/fs/cgroup/memory", "memory.limit_in_bytes"))  # control groups v2, v1
CPUS = (("sys/fs/cgroup", "cpu.max"), ("sys/fs/cgroup/cpu", "cpu.cfs_quota_us"))


@dataclass(frozen=True)
class Machine:
    """Cores, GPUs, and the bytes of memory that are free (None: unknown)."""

    cpus: float
    gpus: float
    memory: int | None = None


def this_machine(gpus: float | None = None) -> Machine:
    """The machine of this process. `gpus` says how many there are, None: those that torch sees."""
    import torch

    # Counting goes through the driver's library; `is_available` could start CUDA in this process.
    return Machine(cores(), float(torch.cuda.device_count() if gpus is None else gpus), free_memory())


def cores(root: Path = ROOT) -> float:
    """The cores that this process may use: those it is bound to, or a container's quota of them if that is less."""
    allowed = float(len(os.sched_getaffinity(0)))
    for file in _limits(root, "cpu", CPUS):
        if file.name == "cpu.max":
            quota, period = file.read_text().split()
        else:
            quota, period = file.read_text().strip(), file.with_name("cpu.cfs_period_us").read_text()
        if quota not in ("max", "-1"):
            allowed = min(allowed, math.ceil(int(quota) / int(period)))
    return allowed


def free_memory(root: Path = ROOT) -> int:
    """The bytes that new processes can take: what the system has available, or what is left of a container's limit."""
    rooms = [int(_table(root / "proc/meminfo")["MemAvailable:"]) * 1024]
    for file in _limits(root, "memory", MEMORY):
        if (limit := file.read_text().strip()) == "max":
            continue
        v2 = file.name == "memory.max"
        used = int(file.with_name("memory.current" if v2 else "memory.usage_in_bytes").read_text())
        cached = int(_table(file.with_name("memory.stat"))["inactive_file" if v2 else "total_inactive_file"])
        rooms.append(max(int(limit) - used + cached, 0))
    return min(rooms)


def own_peak() -> int:
    """The bytes that this process has held at most; mapped files, which others may share, don't count.

    Not getrusage's ru_maxrss: a process inherits that from the one that started it.
    """
    status = _table(ROOT / "proc/self/status")
    return (int(status["VmHWM:"]) - int(status["RssFile:"])) * 1024


def processor(root: Path = ROOT) -> str:
    """The processor's model, e.g. "AMD EPYC 7B13", as far as the system tells."""
    lines = (root / "proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def cards(root: Path = ROOT) -> list[str]:
    """The models of the NVIDIA cards, from the driver's files."""
    files = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    return [file.read_text().partition("Model:")[2].splitlines()[0].strip() for file in files]


def _limits(root: Path, controller: str, places) -> Iterator[Path]:
    """The files that limit this process's control group and the groups around it."""
    table = root / "proc/self/cgroup"
    for line in table.read_text().splitlines() if table.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        place, name = places[bool(controllers)]
        base = root / place
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base) and (folder / name).is_file():
                yield folder / name


def _table(file: Path) -> dict[str, str]:
    """The first two words of each line."""
    return dict(line.split()[:2] for line in file.read_text().splitlines() if len(line.split()) > 1)
