"""A sweeper that optimises, as Hydra's plugins do: it goes on from the best value of one key, by what its jobs return."""

import json
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper


class Climb(Sweeper):
    """`key` with each of `values`, then `then` with the best of them; writes what it saw into hydra.sweep.dir."""

    def __init__(self, key=None, values=(), then=None):
        self.key, self.values, self.then = key, list(values), then

    def setup(self, *, hydra_context, task_function, config):
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        def launch(batch, first):
            returned = self.launcher.launch([[*arguments, *words] for words in batch], initial_job_idx=first)
            return [1 * job.return_value for job in returned]

        figures = launch([[f"{self.key}={value}"] for value in self.values], 0)
        best = max(range(len(figures)), key=lambda place: (figures[place] == figures[place], figures[place]))
        last = launch([[f"{self.key}={self.values[best]}", self.then]], len(figures))
        Path(self.config.hydra.sweep.dir, "climb.json").write_text(
            json.dumps([str(figure) for figure in figures + last])
        )


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="climb",
    node={"_target_": f"{Climb.__module__}.Climb", "key": None, "values": [], "then": None},
)
