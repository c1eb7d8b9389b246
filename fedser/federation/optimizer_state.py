"""Each client's optimizer moments between rounds, in files that never leave the client.

Round r reads the newest generation before r and writes its own beside it; two generations stay, so that a round done
again starts from the same state (the paper's released clients live on between rounds).
"""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save


class OptimizerState:
    """The moments of one client, under `folder` (one folder per client)."""

    def __init__(self, folder: Path):
        self.folder = folder

    def restore(self, optimizer: torch.optim.Optimizer, round: int) -> None:
        """Loads what the client had before `round`; a client that has not trained yet keeps its fresh optimizer."""
        earlier = [number for number in self._generations() if number < round]
        if not earlier:
            return
        tensors = load_file(self._file(max(earlier)))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def save(self, optimizer: torch.optim.Optimizer, round: int) -> None:
        """Writes the moments after `round`, atomically, and drops what is older than the generation before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = optimizer.state_dict()["state"]
        tensors = {f"{i}.{key}": torch.as_tensor(value).cpu() for i, s in state.items() for key, value in s.items()}
        scratch = self._file(round).with_suffix(f".{os.getpid()}")
        scratch.write_bytes(save(tensors))
        scratch.replace(self._file(round))
        for number in sorted(self._generations())[:-2]:
            self._file(number).unlink()

    def _file(self, round: int) -> Path:
        return self.folder / f"round-{round:05d}.safetensors"

    def _generations(self) -> list[int]:
        return [int(path.stem.removeprefix("round-")) for path in self.folder.glob("round-*.safetensors")]
