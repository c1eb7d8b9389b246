"""The moments of optimizers between rounds: none, each client's own, or their mean.

*persist*: each client's own, in files that never leave the client.

Round r reads the generation that the server names, the one the client wrote when it last took part, and writes its own
beside it, so that a round done again starts from the same state: after a worker died, or after the whole run was
killed and resumed from its last checkpoint (the paper's released clients live on between rounds).

*average*: the server averages them with the weights, and the next round's clients go on from them (Chen et al. 2020 do
so with Adam's second moments). A client's few steps are then those of an optimizer that has seen everybody's gradients.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from fedser.display import size
from fedser.errors import InputError, RunError
from fedser.runs.files import write_whole

MOMENTS = "moments"  # of weights and messages: the mean of clients' moments [M]


class OptimizerState:
    """The moments of one client, under `folder` (one folder per client)."""

    def __init__(self, folder: Path):
        self.folder = folder

    def restore(self, optimizer: torch.optim.Optimizer, round: int) -> None:
        """Loads what the client had after `round`; 0 leaves the optimizer fresh. Raises RunError when it is gone."""
        if not round:
            return
        file = self.file(round)
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"the optimizer's moments of round {round} can't be read from {file}: {error}. All clients' machines "
                "must see that folder (client.state_folder=…); resume=false starts the run over."
            ) from error
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def save(self, optimizer: torch.optim.Optimizer, round: int, keep: set[int]) -> None:
        """Writes the moments after `round`, atomically, and drops all other generations but those to `keep`."""
        state = optimizer.state_dict()["state"]
        tensors = {f"{i}.{key}": torch.as_tensor(value).cpu() for i, s in state.items() for key, value in s.items()}
        write_whole(self.file(round), save(tensors))
        for path in self.folder.glob("round-*.safetensors"):
            if path not in {self.file(number) for number in keep | {round}}:
                path.unlink(missing_ok=True)

    def file(self, round: int) -> Path:
        """Where the moments after `round` are."""
        return self.folder / f"round-{round:05d}.safetensors"


def flat(optimizer: torch.optim.Optimizer) -> np.ndarray:
    """An optimizer's moments as one vector [M], float32, zeros where a parameter has none yet."""
    parts = [np.zeros(0, np.float32)]
    for parameter, key, shape in _moments(optimizer):
        value = optimizer.state[parameter].get(key)
        value = torch.zeros(shape) if value is None else torch.as_tensor(value)
        parts.append(value.detach().float().cpu().numpy().reshape(-1))
    return np.concatenate(parts)


def fill(optimizer: torch.optim.Optimizer, vector: np.ndarray) -> None:
    """Gives a fresh optimizer the moments of a vector [M]; all zeros leave it fresh."""
    if not vector.any():
        return
    state: dict[int, dict[str, torch.Tensor]] = {}
    numbers = {parameter: number for number, parameter in enumerate(_parameters(optimizer))}
    at = 0
    for parameter, key, shape in _moments(optimizer):
        size = shape.numel()
        state.setdefault(numbers[parameter], {})[key] = torch.tensor(vector[at : at + size]).view(shape)
        at += size
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _moments(optimizer: torch.optim.Optimizer) -> Iterator[tuple[torch.Tensor, str, torch.Size]]:
    """(parameter, key, shape) of every tensor that an optimizer of this kind keeps, in a fixed order."""
    kept = {key: value.dim() > 0 for key, value in sorted(_kept(optimizer).items())}
    for parameter in _parameters(optimizer):
        for key, whole in kept.items():
            yield parameter, key, parameter.shape if whole else torch.Size([])


def _kept(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What an optimizer of this kind keeps for a parameter, found by a step with another."""
    probe = torch.nn.Parameter(torch.zeros(8))
    probe.grad = torch.ones(8)
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    copy = type(optimizer)([{"params": [probe], **group}])
    copy.step()
    return {key: value for key, value in copy.state[probe].items() if torch.is_tensor(value)}


def folder_of(state: Path, number: int) -> Path:
    """The folder of client `number`: by number, as a speaker's name is the corpus's and may be no file name."""
    return state / f"client-{number:05d}"


def bytes_per_parameter(optimizer: torch.optim.Optimizer) -> int:
    """The size of an optimizer's memory per parameter (Adam: two float32, 8 bytes)."""
    return sum(value.element_size() for value in _kept(optimizer).values() if value.numel() == 8)


def gone(folder: Path, names: Sequence[str], moments: Sequence[int]) -> str | None:
    """Whose moments are missing under `folder` if client i has kept its own after round `moments[i]` (0: never)."""
    for client, (name, round) in enumerate(zip(names, moments, strict=True)):
        file = OptimizerState(folder_of(folder, client)).file(round)
        if round and not file.is_file():
            return f"the optimizer's moments of client '{name}' after round {round} are gone ({file})"
    return None


def check_room(folder: Path, clients: int, generations: int, each: int) -> None:
    """Raises InputError when so many generations of so many clients' moments, `each` bytes long, do not fit there."""
    needed = generations * clients * each
    there = sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))
    room = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free + there
    if needed > room:
        raise InputError(
            f"client.optimizer_state=persist needs {size(needed)} for the moments of {clients} clients, "
            f"{generations} times, and {folder} has room for {size(room)}: set client.state_folder=… or "
            "client.optimizer_state=reset."
        )
