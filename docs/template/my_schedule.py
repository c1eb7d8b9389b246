"""A schedule: the learning rate falls as one over the square root of the round."""

from fedser.config.schema import Count


class InverseRoot:
    """1 for the first `flat` rounds."""

    def __init__(self, flat: Count = 10):
        self.flat = flat

    def __call__(self, round):
        return (max(round, self.flat) / self.flat) ** -0.5
