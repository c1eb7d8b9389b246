"""What a client lets a server ask: a fixed vocabulary of settings, components of an allow-list, evaluations of the run.

A server is not trusted to name code or files. Everything that is about the client's own machine, where its clips lie,
which corpus they are, its device and threads, comes from the client's command line.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flwr.app import Message

from fedser import __version__
from fedser.config import components, identity, paths, sources
from fedser.config.compose import compose
from fedser.config.protocol import Protocol, Protocols
from fedser.config.settings import Settings
from fedser.config.validation import plain, validate
from fedser.data import corpora
from fedser.errors import InputError
from fedser.federation.client_data import of_client

# Groups that come from the server whole; the others are the client's own.
VOCABULARY = (
    "features", "partition", "model", "client", "attack", "attacks", "augment", "corruption", "defence", "strategy",
    "batch_norm", "averaging", "detector", "selection", "evaluation", "seed", "rounds",
)  # fmt: skip
OF_DATASET = ("classes", "drop", "target", "name")  # what a server decides of it
FILES = ("checkpoint", "source", "folder", "root", "state_folder", "modules")  # options that name files
ASKED = ("query", "query.roster", "query.statistics", "query.detector", "train", "evaluate")


def greeting(settings: Settings, **more: Any) -> dict:
    """What a server tells clients of a run, plain: settings of the vocabulary, its version and code, and `more`."""
    told = {key: settings.plain[key] for key in VOCABULARY if key in settings.plain}
    told["client"] = told["client"] | {"state_folder": None}  # that is of a simulation's clients
    told["dataset"] = {key: settings.plain["dataset"].get(key) for key in OF_DATASET}
    return {"settings": told, "version": __version__, "code": _code(settings), **more}


def _code(settings: Settings) -> dict[str, str]:
    """The sources that decide what a client does."""
    own = (settings.dataset.component, settings.logger, settings.strategy.component)  # not run by clients, or not named
    used = [component for component in settings.components() if component not in own]
    return identity.code([*used, *Protocols.of(settings).attacks.values()], sources.SILENT)


class Vetting:
    """A client's side.

    own: overrides as on the command line, of dataset, device and what else is the client's.
    modules: the folders of its own extensions. checkpoint: its file of the backbone.
    least_noise: the deviation of noise, over the norm that updates are clipped to, below which it takes part in no run.
    """

    def __init__(
        self,
        name: str,
        own: list[str],
        modules: tuple[str, ...] = (),
        checkpoint: str | None = None,
        least_noise: float | None = None,
    ):
        self.name, self.checkpoint, self.least_noise = name, checkpoint, least_noise
        self._own = plain(compose([*own, *(f"modules=[{','.join(modules)}]" for _ in modules[:1])]))
        self._allowed = allowed(modules)
        self._pinned: dict[int, str] = {}  # the settings of each run

    def look(self) -> None:
        """Raises InputError where the client's folder has no clips of it, before anything is connected."""
        of_client(corpora.load(validate(self._own).dataset), self.name)

    def experiment(self, told: dict) -> tuple[dict, Settings]:
        """What the handlers go by, of what a server told. Raises InputError for anything that it may not ask."""
        if (theirs := told.get("version")) != __version__:
            raise InputError(f"here is fedser {__version__}, and the server has {theirs}: install the same on both.")
        asked = told["settings"]
        if strange := sorted(set(asked) - {*VOCABULARY, "dataset"}):
            raise InputError(f"the server sets {strange[0]}, which is the client's own.")
        self._check(asked)
        values = self._own | {key: asked[key] for key in VOCABULARY if key in asked}
        values["dataset"] = self._own["dataset"] | {
            key: asked["dataset"][key] for key in OF_DATASET if key in asked["dataset"] and key != "name"
        }
        if "classes" in told:
            values["dataset"]["classes"] = told["classes"]
        values["client"] = values["client"] | {"state_folder": None}
        if self.checkpoint and "checkpoint" in values["model"]:
            values["model"] = values["model"] | {"checkpoint": self.checkpoint}
        settings = validate(values)
        if (theirs := told.get("code")) != (ours := _code(settings)):
            odd = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
            raise InputError(
                f"the server has other code than this client: {', '.join(odd)} differ. Install the same on both."
            )
        if settings.evaluation.utterances or settings.evaluation.example:
            raise InputError(
                "the server asks what became of single clips: set evaluation.utterances=false evaluation.example=false."
            )
        kept = {key: told[key] for key in ("classes", "trainers", "private") if key in told}
        attacks = {name: attack.node for name, attack in Protocols.of(settings).attacks.items()}
        return kept | {"settings": settings.plain, "attacks": attacks}, settings

    def _check(self, asked: dict) -> None:
        for target in components.targets(asked):
            if target not in self._allowed:
                raise InputError(f"the server names {target}, which is no component that this client allows.")
        for key, value in _options(asked):
            if key in FILES and value is not None and not (key == "checkpoint" and self.checkpoint):
                raise InputError(f"the server sets {key}={value}: it may name no files of this machine.")

    def check_noise(self, told: dict) -> None:
        """Raises InputError for a run in which updates would leave with less noise than this client wants. Not of a
        greeting, before which nobody knows."""
        if self.least_noise is None:
            return
        private = told.get("private") or {}
        clipped = private.get("clipping_norm")
        if not clipped or private.get("deviation", 0) < self.least_noise * clipped:
            raise InputError(
                f"this client sends nothing with noise below {self.least_noise:g} of what updates are clipped to: "
                "strategy=dp_fedavg strategy.noise=clients, and a larger strategy.noise_multiplier."
            )

    def pin(self, run: int, experiment: str) -> None:
        """Holds a run to the settings that it began with, by which all later evaluations are held to the same clips.
        Raises InputError where they have changed."""
        if self._pinned.setdefault(run, experiment) != experiment:
            raise InputError("the server has changed the settings in the middle of a run.")

    def check_evaluation(self, message: Message, settings: Settings) -> None:
        """Raises InputError for an evaluation that is not one of the run's settings: by the difference of two, it could
        be told what became of a single clip."""
        known = Protocols.of(settings)
        raw = Protocol(randomised=False, fraction=settings.evaluation.fraction)
        allowed = [known.final, *known.final.parts, known.curve, known.selection, raw]
        asked = json.loads(message.content["config"]["protocol"])
        if asked not in [json.loads(json.dumps(each.plain())) for each in allowed]:
            raise InputError("the server asks for an evaluation that the run's settings do not have.")


def allowed(modules: tuple[str, ...] = ()) -> set[str]:
    """The import paths of all components of the vocabulary that fedser's own configuration files name, and those in
    these folders."""
    places = [paths.directory(), *map(Path, modules)]
    files = [file for folder in places for group in VOCABULARY for file in sorted((folder / group).rglob("*.yaml"))]
    return {target for file in files for target in components.targets(paths.content(file))}


def _options(node: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value in nested settings."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from _options(value)
    elif isinstance(node, list):
        for part in node:
            yield from _options(part)
