"""A model's weights by name, as `load_state_dict` takes them; in training they are two flat vectors.

A model's file is a safetensors file: tensors by name, and what is needed to rebuild the model in its metadata.
"""

import copy
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from fedser.errors import InputError

PARAMETERS, BUFFERS = "parameters", "buffers"
ABOUT = "fedser"  # the one key of the metadata: of several, safetensors would shuffle the order


def layout(model: nn.Module) -> dict[str, list[Tensor]]:
    """Which of the model's tensors are in which flat vector, in order. Integer buffers are in neither."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    return {PARAMETERS: list(model.parameters()), BUFFERS: buffers}


def named(flat: dict[str, np.ndarray], model: nn.Module) -> dict[str, Tensor]:
    """The state_dict of a model like this one whose weights are the flat vectors; integer buffers are this one's."""
    model = copy.deepcopy(model)
    for key, tensors in layout(model).items():
        vector_to_parameters(torch.tensor(flat[key]), tensors)
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in model.state_dict().items()}


def serialised(tensors: dict[str, Tensor], about: dict) -> bytes:
    """The content of a model's file; `about` is what can be written as JSON, floats exactly. Equal for equal input."""
    return save(tensors, metadata={ABOUT: json.dumps(about, sort_keys=True, ensure_ascii=False)})


def read(file: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors by name, and what is said about them, of a model's file. Nothing is unpickled.

    Raises InputError for a file that is none, with the reason.
    """
    try:
        with safe_open(file, framework="pt") as found:
            about = json.loads((found.metadata() or {}).get(ABOUT, "null"))
            tensors = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"{file} is not there: a run has its model when it has finished.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error}).") from error
    if set(tensors) == {PARAMETERS, BUFFERS} and about is None:
        raise InputError(
            f"{file} was made by fedser 0.3.0 or older: it has neither its tensors' names nor the mean and deviation "
            "of its inputs. The same command as then, in a new folder, trains it again."
        )
    if not isinstance(about, dict):
        raise InputError(f"{file} is no model of fedser's: its metadata say nothing of classes, features and network.")
    return tensors, about


def fill(model: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Copies tensors that were read from a file into a model of the same form. Raises InputError for another form."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{file} is of a model with other classes or layers ({' '.join(str(error).split())})."
        ) from error
