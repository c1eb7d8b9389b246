"""A model's weights by name, as `load_state_dict` takes them; in training they are two flat vectors.

Only what is trained counts: a frozen part (parameters that require no gradient) is made anew by whoever builds the
model, from its checkpoint or its seed. A model's file is a safetensors file: tensors by name, and what is needed to
rebuild the model in its metadata.
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
    kept = {id(tensor) for tensor in _kept(model).values()}
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point() and id(buffer) in kept]
    return {PARAMETERS: trained(model), BUFFERS: buffers}


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _kept(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors by name but for those of layers that are frozen: what is saved of it."""
    frozen = {
        f"{name}.{key}".lstrip(".")
        for name, module in model.named_modules()
        if (own := list(module.parameters())) and not any(parameter.requires_grad for parameter in own)
        for key in module.state_dict(keep_vars=True)
    }
    tensors = model.state_dict(keep_vars=True).items()
    return {
        name: tensor
        for name, tensor in tensors
        if name not in frozen and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))
    }


def named(flat: dict[str, np.ndarray], model: nn.Module) -> dict[str, Tensor]:
    """The state_dict of a model like this one whose weights are the flat vectors; integer buffers are this one's.

    What is frozen is left out.
    """
    model = copy.deepcopy(model)
    for key, tensors in layout(model).items():
        vector_to_parameters(torch.tensor(flat[key]), tensors)
    tensors = _kept(model).items()
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors}


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
    """Copies tensors that were read from a file into a model of the same form, which has its frozen part already.

    Raises InputError for another form.
    """
    whole = model.state_dict()
    frozen = {name: whole[name] for name in whole.keys() - _kept(model).keys() - tensors.keys()}
    try:
        model.load_state_dict(tensors | frozen)
    except RuntimeError as error:
        raise InputError(
            f"{file} is of a model with other classes or layers ({' '.join(str(error).split())})."
        ) from error
