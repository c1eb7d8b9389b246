"""Each client's optimizer moments between rounds, in files that never leave the client.

Round r reads the generation that the server names, the one the client wrote when it last took part, and writes its own
beside it, so that a round done again starts from the same state: after a worker died, or after the whole run was
killed and resumed from its last checkpoint (the paper's released clients live on between rounds).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from fedser.display import size
from fedser.errors import InputError, RunError
from fedser.runs.files import write_whole


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


def folder_of(state: Path, number: int) -> Path:
    """The folder of client `number`: by number, as a speaker's name is the corpus's and may be no file name."""
    return state / f"client-{number:05d}"


def bytes_per_parameter(optimizer: torch.optim.Optimizer) -> int:
    """The size of an optimizer's memory per parameter (Adam: two float32, 8 bytes)."""
    probe = torch.nn.Parameter(torch.zeros(8))
    probe.grad = torch.ones(8)
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    copy = type(optimizer)([{"params": [probe], **group}])
    copy.step()
    kept = [value for value in copy.state[probe].values() if torch.is_tensor(value) and value.numel() == 8]
    return sum(value.element_size() for value in kept)


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
