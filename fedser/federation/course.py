"""A training under way, round by round, and which model it would end with: averaged over rounds, selected of them."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from fedser.config.protocol import UNSEEN, Protocol
from fedser.config.settings import Settings
from fedser.federation import server_app, strategies
from fedser.federation.optimizer_state import MOMENTS
from fedser.federation.server_app import Federation
from fedser.runs.checkpoint import State

Weights = dict[str, np.ndarray]
FINAL, AVERAGE, BEST = "final/", "average/", "best/"  # arrays of a checkpoint


class Final:
    """The model that a training would end with after each of its rounds.

    `averaging`, `batch_norm` and `selection` of the settings decide it. `validated` gives a model's UAR on the clients'
    validation utterances after a round, `normalised` a model with the batch-norm statistics that it is to have.
    """

    def __init__(
        self,
        settings: Settings,
        validated: Callable[[int, Weights], float],
        normalised: Callable[[Weights], Weights],
        due: Callable[[int], bool],
    ):
        self.averaging, self.selection = settings.averaging.build(), settings.selection
        self.rounds, self.validated, self.normalised, self.due = settings.rounds, validated, normalised, due
        self.best: Weights | None = None
        self.uar = self.round = None

    def __call__(self, round: int, weights: Weights) -> tuple[Weights, dict]:
        """The model after a round that ended with these weights, and what the history keeps of its selection."""
        if self.averaging:
            weights = dict(self.averaging(weights))
        if self.selection.name == "last":
            return self.normalised(weights) if self.due(round) else weights, {}
        row = {}
        if round % self.selection.every == 0 or round == self.rounds:
            weights = self.normalised(weights)
            uar = self.validated(round, weights)
            if self.uar is None or uar > self.uar:
                self.best, self.uar, self.round = weights, uar, round
            row = {"selection/uar": uar, "selection/round": self.round}
        return self.best or weights, row

    def state(self) -> tuple[dict, Weights]:
        """What to go on from: plain values, and arrays by name."""
        arrays = {AVERAGE + key: array for key, array in (self.averaging.state() if self.averaging else {}).items()}
        arrays |= {BEST + key: array for key, array in (self.best or {}).items()}
        return {"uar": self.uar, "round": self.round}, {FINAL + key: array for key, array in arrays.items()}

    def restore(self, plain: Mapping, arrays: Weights) -> None:
        """Goes on from a state."""
        self.uar, self.round = plain["uar"], plain["round"]
        if self.averaging:
            self.averaging.restore(_below(FINAL + AVERAGE, arrays))
        self.best = _below(FINAL + BEST, arrays) or None


class Course:
    """A training under way; iterating yields (round, the model it would end with, the history's row).

    `last` are the weights of the last round as the strategy left them: what the next round starts from. `due` says
    after which rounds a model is looked at.
    """

    def __init__(
        self,
        federation: Federation,
        settings: Settings,
        selection: Protocol,
        weights: Weights,
        due: Callable[[int], bool],
        state: State,
    ):
        self.federation, self.settings, self.selection = federation, settings, selection
        self.start, self.last = state.round, weights
        self.strategy = strategies.build_strategy(settings.strategy, len(federation.trainers))
        self.final = Final(settings, self._validated, federation.normalised, due)
        if state.arrays:
            self.last = {key: state.arrays[key] for key in self.last}
            strategies.restore(self.strategy, state.strategy, state.arrays)
            self.final.restore(state.final, state.arrays)

    def __iter__(self) -> Iterator[tuple[int, Weights, dict]]:
        rounds = server_app.train_rounds(self.federation, self.strategy, self.last, self.settings, self.start)
        for round, self.last, row in rounds:
            model, more = self.final(round, _model(self.last))
            yield round, model, row | more

    @functools.cached_property
    def raw(self) -> Weights:
        """The last round's model before averaging and selection, once there is one."""
        return self.federation.normalised(_model(self.last))

    def kept(self, state: State) -> State:
        """A checkpoint's state with all that the training goes on from."""
        strategy, arrays = strategies.state(self.strategy)
        final, more = self.final.state()
        return replace(state, arrays=self.last | arrays | more, strategy=strategy, final=final)

    def _validated(self, round: int, weights: Weights) -> float:
        """Of the speakers that are held out to select by; of all clients where there are none such."""
        metrics = self.federation.evaluate(round, weights, self.selection).metrics()
        name = self.selection.conditions[0].name
        return metrics.get(f"uar/{UNSEEN}{name}", metrics.get(f"uar/{name}"))


def _model(weights: Weights) -> Weights:
    return {key: array for key, array in weights.items() if key != MOMENTS}


def _below(prefix: str, arrays: Weights) -> Weights:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
