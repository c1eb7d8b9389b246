"""All randomness derives from (seed, keys...): the same numbers whatever the number of actors or their order."""

import contextlib
import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *keys: int | str) -> int:
    """A 63-bit seed for one purpose, e.g. `derive(seed, "train", round, client)`.

    Hashing the keys keeps neighbouring seeds, rounds and clients independent of each other, which
    `seed + round` does not (seed 0 in round 1 would equal seed 1 in round 0).
    """
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in (seed, *keys))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *keys: int | str) -> "torch.Generator":
    """A CPU generator seeded by `derive(seed, *keys)`."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *keys))


@contextlib.contextmanager
def torch_seeded(seed: int, device: "torch.device"):
    """A block in which torch's generators, the CPU's and `device`'s, start from `seed`; afterwards all is as before."""
    import torch

    devices = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        # torch.manual_seed would reseed every GPU, and those of `devices` alone are put back.
        torch.default_generator.manual_seed(seed)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


@contextlib.contextmanager
def seeded(seed: int):
    """A block in which Python's and NumPy's global generators start from `seed`; afterwards they are as before."""
    import numpy as np

    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
