"""How arrays travel: a model is two flat float32 vectors, its parameters and its batch-norm buffers.

Apart, because server optimisers may step parameters but must never step running variances (they would go negative);
flat, because moving and adding one array is cheaper than ninety. Integer buffers (`num_batches_tracked`) stay home.
"""

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

PARAMETERS, BUFFERS = "parameters", "buffers"


def pack(model: nn.Module) -> dict[str, np.ndarray]:
    """The model's weights as {"parameters": [P], "buffers": [B]}, copies on the CPU."""
    return {
        PARAMETERS: _flat([parameter.detach() for parameter in model.parameters()]),
        BUFFERS: _flat(_float_buffers(model)),
    }


def unpack(weights: dict[str, np.ndarray], model: nn.Module) -> None:
    """Copies packed weights into the model, in place. Raises ValueError when they belong to another architecture."""
    for key, tensors in ((PARAMETERS, list(model.parameters())), (BUFFERS, _float_buffers(model))):
        sizes = [tensor.numel() for tensor in tensors]
        if weights[key].size != sum(sizes):
            raise ValueError(f"{weights[key].size} {key} do not fit a model of {sum(sizes)}")
        flat = torch.tensor(weights[key])  # a copy: what Flower hands out is read-only
        with torch.no_grad():
            for tensor, part in zip(tensors, flat.split(sizes), strict=True):
                tensor.copy_(part.view_as(tensor))


def to_record(key: str, array: np.ndarray) -> ArrayRecord:
    """One vector as the ArrayRecord that Flower's strategies aggregate."""
    return ArrayRecord({key: Array(array)})


def from_record(record: ArrayRecord) -> np.ndarray:
    """The vector of a record made by `to_record`."""
    (array,) = record.values()
    return array.numpy()


def _float_buffers(model: nn.Module) -> list[torch.Tensor]:
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def _flat(tensors) -> np.ndarray:
    if not tensors:
        return np.zeros(0, np.float32)
    return torch.cat([tensor.reshape(-1).float().cpu() for tensor in tensors]).numpy()
