"""A partition: clients of so many speakers each."""

import numpy as np


def groups(table, *, seed: int, speakers: int = 2):
    """The rows of each client by its name; `table` has the columns client (the speaker) and label."""
    names = sorted(table["client"].unique())
    chosen = np.random.default_rng(seed).permutation(names)
    parts = [chosen[first : first + speakers] for first in range(0, len(chosen), speakers)]
    return {"+".join(sorted(part)): np.flatnonzero(table["client"].isin(part)) for part in parts}
