"""A feature normalisation: the mean of each mel bin over everybody's training frames is taken away, the scale stays."""

from fedser.features.normalisation import Normaliser


class Centred:
    def __call__(self, train, everyone):
        """`train`: the client's own frames [n, T, F]; `everyone`: sums over all clients' (count, total, squares)."""
        return Normaliser.of(everyone.total / everyone.count, 1.0)
