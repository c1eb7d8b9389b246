"""fedser: robust federated speech emotion recognition.

>>> from fedser import compose, run
>>> result = run(compose(["attack=pgd", "rounds=3"]))
>>> result.metrics["uar/original"]

>>> from fedser import load
>>> load(result.folder).predict("clip.wav")

Imports are lazy so that `fedser --help` does not load torch, Flower or Ray.
"""

__version__ = "0.3.0"
__all__ = ["__version__", "compose", "load", "run"]


def compose(overrides=(), config_dir=None):
    """The configuration that these command-line overrides compose to; see `fedser.config.compose.compose`."""
    from fedser.config.compose import compose

    return compose(overrides, config_dir)


def run(config, folder=None, grid=None):
    """Runs one experiment and returns its result; see `fedser.experiment.run`."""
    from fedser.experiment import run

    return run(config, folder, grid)


def load(run, clips=(), modules=()):
    """The trained model of a run, from waveforms to probabilities; see `fedser.models.recogniser.load`."""
    from fedser.models.recogniser import load

    return load(run, clips, modules)
