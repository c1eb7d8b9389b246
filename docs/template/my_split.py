"""A split: each client is tested on its last clips and trained on the first, as the corpus's table orders them."""

import numpy as np

from fedser.config.schema import NonNegative
from fedser.data.split import Parts


def latest(table, rows, settings, *, seed: int, gap: NonNegative = 0.1):
    """Each client's parts by its name; `rows` are its positions in `table`, `settings` those of `partition`."""
    parts = {}
    for name, own in rows.items():
        own = np.sort(own)
        tested = round(settings.test * len(own))
        known = own[: len(own) - tested - round(gap * len(own))]  # clips just before those are left out
        held = round(settings.validation * len(known))
        train, validation = np.split(known, [len(known) - held])
        parts[name] = Parts(train, validation, own[len(own) - tested :])
    return parts
