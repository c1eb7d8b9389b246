"""How arrays travel: a model is two flat float32 vectors, its parameters and its batch-norm buffers.

Apart, because server optimisers may step parameters but must never step running variances (they would go negative);
flat, because moving and adding one array is cheaper than ninety. Integer buffers (`num_batches_tracked`) stay home.

Between processes a vector goes through Ray's object store and never through `np.save` or a pickle of its own: the
global model is put there once and mapped by every worker, a reply is copied into it once and mapped by the server,
which adds it to the running average and lets it go.
"""

import functools
import threading

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import nn

from fedser.models.weights import BUFFERS, PARAMETERS, layout

KEYS = (PARAMETERS, BUFFERS)
CHUNK = 1 << 17  # elements added up at a time, so that the running sum stays in the processor's cache


class Packed:
    """A model's weights as two vectors that its own tensors are views of: to load or to send them is one copy.

    Only for models whose parameters and float buffers are float32. The model must be on its device already.
    """

    def __init__(self, model: nn.Module):
        self._vectors = {key: _flatten(tensors) for key, tensors in layout(model).items()}
        # A GPU copies asynchronously from pinned memory only; on a CPU the vectors are their own staging area.
        self._host = {
            key: torch.empty(vector.shape, pin_memory=True) if vector.is_cuda else vector
            for key, vector in self._vectors.items()
        }

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Copies {"parameters": [P], "buffers": [B]} into the model.

        Raises ValueError when they belong to another architecture.
        """
        for key, vector in self._vectors.items():
            if weights[key].size != vector.numel():
                raise ValueError(f"{weights[key].size} {key} do not fit a model of {vector.numel()}")
            if vector.is_cuda:
                torch.cuda.current_stream(vector.device).synchronize()  # the last copy may still be under way
            np.copyto(self._host[key].numpy(), weights[key])
            if vector.is_cuda:
                vector.copy_(self._host[key], non_blocking=True)

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

    Pickled by Ray, the vector goes into the object store beside the pickle. A `shared` one goes there once, whatever
    the number of messages it is in, and stays as long as this object lives; each message carries a reference. Where
    Flower itself serialises, between real SuperNodes, `data` has the bytes of an ordinary Array.
    """

    def __init__(self, vector: np.ndarray, shared: bool = False):
        self.__dict__.update(dtype=str(vector.dtype), shape=tuple(vector.shape), stype="numpy.ndarray")
        self.__dict__.update(vector=vector, shared=shared, _reference=None, _lock=threading.Lock())

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
        if not self.shared:
            return Flat, (self.vector,)
        import ray

        with self._lock:  # Flower submits messages from several threads
            if self._reference is None:
                self.__dict__["_reference"] = ray.put(self.vector)
        return _fetch, (self._reference,)


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
    for key, record in content.array_records.items():
        content[key] = to_record(key, from_record(record).copy())


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
        product = np.empty(min(CHUNK, size), self.dtype)
        for start in range(0, size, CHUNK):
            piece = slice(start, min(start + CHUNK, size))
            scaled = product[: piece.stop - start]
            for weight, vector in parts:
                np.multiply(vector[piece], self.dtype(weight / self.total), out=scaled)
                self._sum[piece] += scaled
        for weight, _ in parts:
            self.seen += weight

    def result(self) -> np.ndarray:
        """The mean, float32."""
        if self.seen != self.total:
            self._sum *= self.dtype(self.total / self.seen)
        return self._sum.astype(np.float32, copy=False)


def _flatten(tensors: list[torch.Tensor]) -> torch.Tensor:
    """One vector with the tensors' values, which become views of it."""
    if not tensors:
        return torch.zeros(0)
    vector = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    for tensor, part in zip(tensors, vector.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.data = part.view(tensor.shape)
    return vector
