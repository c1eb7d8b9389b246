"""How arrays travel: a model is two flat float32 vectors, its parameters and its batch-norm buffers.

Apart, because server optimisers may step parameters but must never step running variances (they would go negative);
flat, because moving and adding one array is cheaper than ninety. Integer buffers (`num_batches_tracked`) stay home.

Between processes a vector never goes through `np.save` or a pickle of its own. The global model is put into Ray's
object store once and mapped by every worker. On the server's machine a worker's model lies in memory that the server
reads (`shared_memory`): a reply says where, and the next client's model is loaded elsewhere until the server has added
it up. On other machines a reply is copied into the object store.
"""

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import nn

from fedser.federation import shared_memory
from fedser.models.kernels import libraries
from fedser.models.weights import BUFFERS, PARAMETERS, layout

KEYS = (PARAMETERS, BUFFERS)
CHUNK = 1 << 17  # elements added up at a time, so that the running sum stays in the processor's cache


class Packed:
    """A model's weights as two vectors that its own tensors are views of: to load or to send them is one copy.

    Only for models whose parameters and float buffers are float32. The model must be on its device already.
    """

    def __init__(self, model: nn.Module):
        self._tensors = layout(model)
        self._vectors = {key: _flatten(tensors) for key, tensors in self._tensors.items()}
        # A GPU copies asynchronously from pinned memory only; on a CPU the vectors are their own staging area.
        self._host = {
            key: torch.empty(vector.shape, pin_memory=True) if vector.is_cuda else vector
            for key, vector in self._vectors.items()
        }

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Copies {"parameters": [P], "buffers": [B]} into the model.

        Raises ValueError when they belong to another architecture.
        """
        for key, vector in list(self._vectors.items()):
            if weights[key].size != vector.numel():
                raise ValueError(f"{weights[key].size} {key} do not fit a model of {vector.numel()}")
            if shared_memory.own and not vector.is_cuda:
                self._move(key)
            if vector.is_cuda:
                torch.cuda.current_stream(vector.device).synchronize()  # the last copy may still be under way
            np.copyto(self._host[key].numpy(), weights[key])
            if vector.is_cuda:
                vector.copy_(self._host[key], non_blocking=True)

    def _move(self, key: str) -> None:
        """Gives the model a vector that nobody else reads, of any content."""
        here = self._host[key].numpy()
        slot = shared_memory.own.find(here)
        if slot and not slot.lent:
            return
        taken = shared_memory.own.take(here.size)
        if taken is None and slot is None:
            return
        vector = torch.from_numpy(np.empty_like(here) if taken is None else taken)
        self._vectors[key] = self._host[key] = vector
        _point(self._tensors[key], vector)

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights on the CPU. On a CPU these are the model's own memory, good until the next change."""
        for key, vector in self._vectors.items():
            if vector.is_cuda:
                self._host[key].copy_(vector)
        return {key: host.numpy() for key, host in self._host.items()}


def pack(model: nn.Module) -> dict[str, np.ndarray]:
    """The model's weights as {"parameters": [P], "buffers": [B]}, copies on the CPU."""
    return {key: array.copy() for key, array in Packed(model).arrays().items()}


def unpack(weights: dict[str, np.ndarray], model: nn.Module) -> None:
    """Copies packed weights into the model, in place. Raises ValueError when they belong to another architecture."""
    Packed(model).load(weights)


class Flat(Array):
    """One vector as Flower's Array that keeps it as it is.

    Pickled by Ray, the vector goes into the object store beside the pickle. A `shared` one is put there once (`share`),
    whatever the number of messages it is in, and stays as long as this object lives; each message carries a reference.
    Where Flower itself serialises, between real SuperNodes, `data` has the bytes of an ordinary Array.
    """

    def __init__(self, vector: np.ndarray, shared: bool = False):
        self.__dict__.update(dtype=str(vector.dtype), shape=tuple(vector.shape), stype="numpy.ndarray")
        self.__dict__.update(vector=vector, shared=shared, reference=None)

    def numpy(self) -> np.ndarray:
        """The vector itself; read-only where it lies in the object store."""
        return self.vector

    @property
    def data(self) -> bytes:
        return Array(self.vector).data

    # Between machines a message names the class of each of its parts, and Flower knows but its own.
    @functools.cached_property
    def _plain(self) -> Array:
        return Array(self.vector)

    @property
    def children(self):
        return self._plain.children

    def slice_array(self):
        return self._plain.slice_array()

    def deflate(self) -> bytes:
        return self._plain.deflate()

    def __reduce__(self):
        return (Flat, (self.vector,)) if self.reference is None else (_fetch, (self.reference,))


@functools.lru_cache(maxsize=2)
def _fetch(reference) -> Flat:
    """The vector behind a reference. A worker keeps the last parameters and buffers, in case they come again."""
    import ray

    return Flat(ray.get(reference))


def to_record(key: str, vector: np.ndarray, shared: bool = False) -> ArrayRecord:
    """One vector as the ArrayRecord that Flower's strategies aggregate."""
    record = ArrayRecord()
    record[key] = Flat(vector, shared)  # ArrayRecord(dict) would rebuild the array from its bytes
    return record


def from_record(record: ArrayRecord) -> np.ndarray:
    """The vector of a record made by `to_record`."""
    (array,) = record.values()
    return array.numpy()


def to_records(weights: dict[str, np.ndarray], shared: bool = False) -> dict[str, ArrayRecord]:
    """Packed weights as the records of a message."""
    return {key: to_record(key, vector, shared) for key, vector in weights.items()}


def from_records(content: RecordDict) -> dict[str, np.ndarray]:
    """The packed weights of a message."""
    return {key: from_record(content[key]) for key in KEYS}


def detach(content: RecordDict) -> None:
    """Copies a reply's vectors, in place, out of the memory that they share with the client's model."""
    for key, record in _records(content):
        content[key] = to_record(key, from_record(record).copy())


def share(content: RecordDict) -> None:
    """Puts a message's shared vectors into Ray's object store, where they are not there yet.

    Before the message is pickled: a reference that Ray makes while it pickles another object would never be let go.
    """
    import ray

    for _, record in _records(content):
        for array in record.values():
            if isinstance(array, Flat) and array.shared and array.reference is None:
                array.__dict__["reference"] = ray.put(array.vector)


class Lent(Array):
    """What stands in a message for a vector that the receiver reads where it lies."""

    def __init__(self, reference: shared_memory.Reference):
        self.__dict__.update(dtype="float32", shape=(reference.size,), stype="numpy.ndarray", reference=reference)

    def __reduce__(self):
        return Lent, (self.reference,)


def lend(content: RecordDict) -> None:
    """Has a reply's large vectors, in place, read where they lie, where this process shares its memory."""
    for key, record in _records(content) if shared_memory.own else ():
        if reference := shared_memory.own.lend(from_record(record)):
            content[key] = ArrayRecord()
            content[key][key] = Lent(reference)


def borrow(content: RecordDict) -> None:
    """Puts the vectors, in place, where a reply says where they are. Raises OSError where their process has ended."""
    for key, record in _records(content):
        (array,) = record.values()
        if isinstance(array, Lent):
            content[key] = to_record(key, shared_memory.borrow(array.reference))


def forget(content: Mapping) -> None:
    """Empties the records of vectors, which Flower leaves cycles to: they would stay until the collector comes by."""
    for _, record in _records(content):
        record.clear()


def _records(content: Mapping) -> list[tuple[str, ArrayRecord]]:
    # And not `content.array_records`, which leaves such a cycle.
    return [(key, record) for key, record in content.items() if isinstance(record, ArrayRecord)]


class Average:
    """The weighted mean of vectors that come one after the other; memory does not grow with their number.

    `total` is the sum of the weights to be expected; what is missing from it in the end is made up for. In float32 it
    is, bit for bit, the sum that Flower's FedAvg computes over the same replies in the same order.
    """

    def __init__(self, total: float, dtype=np.float32):
        self.total, self.dtype = total, dtype
        self.seen = 0.0
        self._sum: np.ndarray | None = None

    def add(self, parts: list[tuple[float, np.ndarray]]) -> None:
        """Adds (weight, vector) pairs, in this order, to the running sum."""
        if not parts:
            return
        size = parts[0][1].size
        if self._sum is None:
            self._sum = np.zeros(size, self.dtype)
        shares, vectors = zip(*((weight / self.total, vector) for weight, vector in parts), strict=True)
        if not (size > CHUNK and _add_in_c(self._sum, shares, vectors)):
            _add(self._sum, shares, vectors)
        for weight, _ in parts:
            self.seen += weight

    def result(self) -> np.ndarray:
        """The mean, float32."""
        if self.seen != self.total:
            self._sum *= self.dtype(self.total / self.seen)
        return self._sum.astype(np.float32, copy=False)


def _add(sum: np.ndarray, shares: Sequence[float], vectors: Sequence[np.ndarray]) -> None:
    """Adds the vectors' shares, one after the other, in to the running sum."""
    size, dtype = sum.size, sum.dtype.type
    product = np.empty(min(CHUNK, size), dtype)
    for start in range(0, size, CHUNK):
        piece = slice(start, min(start + CHUNK, size))
        scaled = product[: piece.stop - start]
        for share, vector in zip(shares, vectors, strict=True):
            np.multiply(vector[piece], dtype(share), out=scaled)
            sum[piece] += scaled


def _add_in_c(sum: np.ndarray, shares: Sequence[float], vectors: Sequence[np.ndarray]) -> bool:
    """The same in less time, to the bit; False where that can't be had, and then nothing was added."""
    plain = all(each.dtype == np.float32 and each.flags.c_contiguous and each.size == sum.size for each in vectors)
    if not (plain and sum.dtype == np.float32 and (add := _kernel())):
        return False
    add(sum, shares, vectors)
    return True


@functools.cache
def _kernel() -> Callable | None:
    """`_add` in C, once it has given NumPy's bits; None where it can't be had."""
    found = libraries("average")
    if not found:
        return None

    def add(sum: np.ndarray, shares: Sequence[float], vectors: Sequence[np.ndarray]) -> None:
        pointers = (ctypes.c_void_p * len(vectors))(*(vector.ctypes.data for vector in vectors))
        weights = np.array(shares, np.float32)
        numbers = ctypes.c_int64(len(vectors)), ctypes.c_int64(sum.size)
        found[-1].add(ctypes.c_void_p(sum.ctypes.data), pointers, ctypes.c_void_p(weights.ctypes.data), *numbers)

    drawn = np.random.default_rng(0).standard_normal((4, 5000)).astype(np.float32)
    ours, numpys = drawn[0].copy(), drawn[0].copy()
    for way, sum in ((add, ours), (_add, numpys)):
        way(sum, [0.1, 0.25, 1 / 3], list(drawn[1:]))
    return add if np.array_equal(ours, numpys) else None


def _flatten(tensors: list[torch.Tensor]) -> torch.Tensor:
    """One vector with the tensors' values, which become views of it."""
    if not tensors:
        return torch.zeros(0)
    vector = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    _point(tensors, vector)
    return vector


def _point(tensors: list[torch.Tensor], vector: torch.Tensor) -> None:
    """Makes the tensors views of a vector."""
    for tensor, part in zip(tensors, vector.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.data = part.view(tensor.shape)
