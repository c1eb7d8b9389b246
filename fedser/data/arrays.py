"""Arrays on disk that grow along their first axis, and clips of any length one after the other in one.

Waveforms that came as 16 bits are kept as such where that is exact, which is half the bytes.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedser.features.audio import PCM
from fedser.features.normalisation import Sums

PIECE = 1 << 22  # numbers copied at a time


class Growing:
    """A .npy file that arrays [k, *shape] are appended to; `close` writes how many rows came. Float32, or with `pcm`
    int16 as long as that is exact.

    Plain writes: on a full disk they raise, where a mapped file would kill the process.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], pcm: bool = False):
        self.path, self.shape, self.rows = path, shape, 0
        self._open(np.int16 if pcm else np.float32)

    def append(self, rows: np.ndarray) -> None:
        """Rows float32 [k, *shape]."""
        if self.dtype == np.int16:
            scaled = rows * PCM
            with np.errstate(invalid="ignore"):  # what is out of range shows in the comparison
                narrow = scaled.astype(np.int16)
            if not np.array_equal(narrow, scaled):
                self._widen()
                return self.append(rows)
            rows = narrow
        self._file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.rows += len(rows)

    def close(self) -> None:
        """Writes the header with the final shape, and all of it to the disk."""
        self._file.seek(0)
        self._header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _open(self, dtype: type) -> None:
        self.dtype = np.dtype(dtype)
        self._file = open(self.path, "wb")  # noqa: SIM115  # until `close`
        self._header()

    def _header(self) -> None:
        # NumPy leaves room for the first axis to grow, so that both headers have the same length.
        header = {"descr": self.dtype.newbyteorder("<").str, "fortran_order": False, "shape": (self.rows, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def _widen(self) -> None:
        """Goes on in float32, with what there is so far."""
        self.close()
        narrow = self.path.with_suffix(".int16")
        self.path.rename(narrow)
        self.rows = 0
        self._open(np.float32)
        for piece in np.array_split(there := np.load(narrow, mmap_mode="r"), -(-there.size // PIECE) or 1):
            self.append(piece.astype(np.float32) / PCM)
        narrow.unlink()


class Ragged:
    """Clips of any length in one array `flat` [sum of lengths, *shape]; indexed by rows as an array of clips would be.

    lengths: how many steps each clip has, int64 [clips].
    """

    def __init__(self, flat: np.ndarray, lengths: np.ndarray):
        self.flat, self.lengths = flat, lengths
        self.ends = np.cumsum(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """These clips float32 [n, longest of them, *shape], zeros behind their ends."""
        rows = np.asarray(rows, dtype=np.int64)
        longest = int(self.lengths[rows].max()) if len(rows) else 0
        padded = np.zeros((len(rows), longest, *self.flat.shape[1:]), np.float32)
        for clip, row in zip(padded, rows, strict=True):
            part = self.flat[self.ends[row] - self.lengths[row] : self.ends[row]]
            np.divide(part, PCM if part.dtype == np.int16 else 1, out=clip[: len(part)], casting="unsafe")
        return padded

    def sums(self, rows: np.ndarray) -> Sums:
        """Sums over the steps of these clips, without what they are padded with."""
        bins = self.flat.shape[-1]
        nothing = Sums(0, np.zeros(bins), np.zeros(bins))
        return sum((Sums.of(self[[row]]) for row in rows), nothing)
