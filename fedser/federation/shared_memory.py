"""Vectors that processes of one machine share: what a client sends is read where it lies, and nothing is copied.

They lie in memory files without a name, which the server opens by the number that they have in the client's process. So
a killed process leaves nothing behind: the kernel frees a file when its last user ends.
"""

import mmap
import os
import time
import uuid
import weakref
from dataclasses import dataclass

import numpy as np

HEAD = mmap.PAGESIZE  # bytes before a vector: whether it is lent, and the file's name
NAME = slice(1, 17)
LEAST = 1 << 20  # bytes of a vector; a smaller one is sent in less time than it is looked for
MOST = 2  # vectors of one size: the model's own, and one that the server has not added up yet
SECONDS_TO_WAIT = 0.2  # for the server to add one up, which takes a hundredth; it may be waiting for a client before


@dataclass(frozen=True)
class Reference:
    """Where a vector of float32 lies: a file of a process on this machine, and what is written at its beginning."""

    process: int
    file: int
    name: bytes
    size: int


class Slot:
    """A file with one vector of `size` float32, which this process writes."""

    def __init__(self, size: int):
        file = os.memfd_create("fedser", os.MFD_CLOEXEC)
        os.ftruncate(file, HEAD + 4 * size)
        self._memory = mmap.mmap(file, HEAD + 4 * size)
        self._memory[NAME] = uuid.uuid4().bytes
        self.vector = np.frombuffer(self._memory, np.float32, size, HEAD)
        self.reference = Reference(os.getpid(), file, bytes(self._memory[NAME]), size)

    @property
    def lent(self) -> bool:
        """Whether somebody else may still read it."""
        return self._memory[0] != 0

    def lend(self) -> Reference:
        """What another process needs to read it, which says itself when it is done."""
        self._memory[0] = 1
        return self.reference


class Slots:
    """The vectors that this process writes and another one reads, some of each size."""

    def __init__(self):
        self._slots: list[Slot] = []

    def take(self, size: int) -> np.ndarray | None:
        """A vector [size] that nobody reads, of any content; None where all are lent or it is too small to share."""
        if 4 * size < LEAST:
            return None
        fitting, end = [slot for slot in self._slots if slot.reference.size == size], time.monotonic() + SECONDS_TO_WAIT
        while not (free := [slot for slot in fitting if not slot.lent]):
            if len(fitting) < MOST:
                free = [Slot(size)]
                self._slots += free
                break
            if time.monotonic() > end:
                return None
            time.sleep(SECONDS_TO_WAIT / 100)
        return free[0].vector

    def find(self, vector: np.ndarray) -> Slot | None:
        """The slot whose vector this is."""
        return next((slot for slot in self._slots if slot.vector.ctypes.data == vector.ctypes.data), None)

    def lend(self, vector: np.ndarray) -> Reference | None:
        """A reference to this vector, or to a copy where it is not one of ours; None where there is no room."""
        slot = self.find(vector)
        if slot is None and vector.dtype == np.float32 and (taken := self.take(vector.size)) is not None:
            np.copyto(taken, vector)
            slot = self.find(taken)
        return slot and slot.lend()


own: Slots | None = None  # this process's, where it has somebody to share with
_mapped: dict[bytes, tuple[int, mmap.mmap]] = {}  # files of others by name, and whose they are


def offer() -> Slot | None:
    """A vector for other processes to try whether they can read it; None on systems that have no such files."""
    return Slot(1) if hasattr(os, "memfd_create") else None


def accept(offered: Reference | None) -> None:
    """Shares vectors from now on, if the process that offers can be read: then it can read this one, too."""
    global own
    try:
        if offered is not None:
            borrow(offered)
            own = own or Slots()
    except OSError:  # it is on another machine, or in a container of its own
        own = None


def borrow(reference: Reference) -> np.ndarray:
    """The vector behind a reference; when it is let go its process may write there again.

    Raises OSError where that process has ended or can't be read.
    """
    if reference.name not in _mapped:
        for name, (process, _) in list(_mapped.items()):
            if not os.path.exists(f"/proc/{process}"):
                del _mapped[name]
        _mapped[reference.name] = reference.process, _map(reference)
    memory = _mapped[reference.name][1]
    vector = np.frombuffer(memory, np.float32, reference.size, HEAD)
    weakref.finalize(vector, memory.__setitem__, 0, 0).atexit = False
    return vector


def _map(reference: Reference) -> mmap.mmap:
    file = os.open(f"/proc/{reference.process}/fd/{reference.file}", os.O_RDWR)
    try:
        if os.pread(file, NAME.stop, 0)[NAME] != reference.name:
            raise OSError(f"process {reference.process} is another one")
        return mmap.mmap(file, HEAD + 4 * reference.size)
    finally:
        os.close(file)
