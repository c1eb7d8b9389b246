"""The settings of a run: one frozen model per group, bounds beside the field, open parts as components.

>>> settings = validate(compose(["attack=pgd", "rounds=3"]))
>>> settings.client.lr, settings.attack.name
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, PrivateAttr

from fedser.config import components, eager
from fedser.config.components import Component, component
from fedser.config.schema import Count, Fraction, Group, Names, NonNegative, Positive, Whole, must, parse, shown
from fedser.errors import InputError

Precision = Literal["fp32", "bf16"]
Address = Annotated[str, Field(pattern=r"^(auto|.*:\d+)$"), must("must be null, auto, HOST:PORT or ray://HOST:PORT")]


def _node(key: str, optional: bool = False) -> Any:
    """The type of a field that holds a component; `key` is the field's place in the configuration."""

    def read(node: Any) -> Component | None:
        return None if optional and node is None else component(key, node)

    return Annotated[Component | None if optional else Component, PlainValidator(read)]


class Open(Group):
    """A group that chooses a component: keys that are not its own are the component's options."""

    name: str

    @classmethod
    def opened(cls, values: Any) -> Any:
        """The group's values with its component's options apart from its own keys."""
        if not isinstance(values, dict):
            return values
        own = {key: value for key, value in values.items() if key in cls.model_fields}
        return own | {"component": {key: value for key, value in values.items() if key not in own or key == "name"}}


class Dataset(Open):
    component: _node("dataset")
    root: Annotated[str, must("must be the path of a folder or file")] | None = None
    classes: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    client: str = "speaker"
    target: Literal["emotion", "speaker", "sex"] = "emotion"  # runs of before had no choice
    on_bad_audio: Literal["error", "skip"] = "error"
    credit: str | None = None  # runs of before had none
    language_code: str | None = None
    frames: Count | None = None
    rounds: Count | None = None


class LogMels(Group):
    """Log-Mel spectrograms, all clips with as many frames."""

    name: str
    sample_rate: Count
    frames: Count
    mels: Count
    window: Count
    hop: Count
    fmin: NonNegative
    fmax: Positive
    floor: Positive
    normalisation: _node("features.normalisation")
    ragged: ClassVar = False
    cache: ClassVar = "none"

    @property
    def front_end(self) -> dict[str, Any]:
        """The settings that decide the log-Mels before normalisation."""
        return self.model_dump(exclude={"name", "normalisation"})

    @property
    def least(self) -> int:
        """How many samples a clip must have."""
        return self.window

    @property
    def shape(self) -> tuple[int, int]:
        """Of a clip: frames, mel bins."""
        return self.frames, self.mels

    @property
    def waveforms(self) -> "Waveforms":
        """The waveforms that these log-Mels are made of."""
        plain = {"_target_": "fedser.features.normalisation.Unchanged", "name": "none"}
        more = {"kind": "waveform", "seconds": None, "cache": "none", "normalisation": plain}
        return parse(Waveforms, {"name": "waveform", "sample_rate": self.sample_rate} | more)


class Waveforms(Group):
    """Waveforms as they are, each as long as it is."""

    name: str
    kind: Literal["waveform"]
    sample_rate: Count
    seconds: Positive | None
    cache: Literal["auto", "states", "pooled", "none"]
    normalisation: _node("features.normalisation")
    ragged: ClassVar = True
    least: ClassVar = 1

    @property
    def front_end(self) -> dict[str, Any]:
        """The settings that decide the samples."""
        return self.model_dump(exclude={"name", "normalisation", "cache"})

    @property
    def limit(self) -> int | None:
        """How many samples a clip has at most; None for as many as there are."""
        return None if self.seconds is None else round(self.seconds * self.sample_rate)

    @property
    def shape(self) -> tuple[int, int]:
        """Of a clip of half a second: samples, and one number each."""
        return self.sample_rate // 2, 1


Features = LogMels | Waveforms


def _read_features(values: Any) -> Features:
    kind = Waveforms if isinstance(values, dict) and "kind" in values else LogMels
    found = parse(kind, values, "features.")
    if found.ragged and found.normalisation.name != "none":
        raise InputError(
            f"features.normalisation={found.normalisation.name} is of mel bins, which features={found.name} does not "
            "have: set features/normalisation=none."
        )
    return found


def _at_random() -> Component:
    return component("partition.split", {"_target_": "fedser.data.split.random", "name": "random"})


class Partition(Open):
    component: _node("partition")
    test: Annotated[float, Field(gt=0, lt=1)]
    validation: Annotated[float, Field(ge=0, lt=1)]
    split: _node("partition.split") = Field(default_factory=_at_random)  # runs of before had no choice

    @property
    def validated(self) -> set[str]:
        """Whose validation utterances there may be, as far as the settings tell: "seen" clients', which train, or
        "unseen" ones'. A split from outside shows it when it is made."""
        if not str(self.split.get("_target_")).startswith("fedser."):
            return {"seen", "unseen"}
        own = self.split.get("validation")
        held_out = isinstance(own, int | float)  # so many speakers, and not values of a column
        unseen = {"unseen"} if held_out and (own or self.column) else set()
        return unseen | ({"seen"} if self.validation or (own and not held_out) else set())

    @property
    def column(self) -> str | None:
        """The column of the corpus's table that the split goes by, if it goes by one."""
        return self.split.get("column")


class Model(Open):
    component: _node("model")

    @property
    def checkpoint(self) -> str | None:
        """The file or folder that a part of the network comes from, if it comes from one."""
        return self.component.get("checkpoint")


class Client(Group):
    name: str
    epochs: Count
    batch_size: Count
    lr: Positive
    schedule: _node("client.schedule")
    weight_decay: NonNegative
    clip_norm: Positive | None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    class_weights: Literal["none", "balanced"]
    optimizer: _node("client.optimizer")
    optimizer_state: Literal["reset", "persist", "average"]
    state_folder: str | None
    timeout: Positive | None
    threads: Count
    precision: Precision
    attack_precision: Precision
    tf32: bool

    def build_optimizer(self, parameters: Iterable) -> Any:
        """A fresh optimizer for these parameters."""
        return self.optimizer_maker()(parameters)

    def optimizer_maker(self) -> Callable[[Iterable], Any]:
        """What makes fresh optimizers of parameters; to look up their class and options takes Hydra milliseconds."""
        eager.optimizers()
        return self.optimizer.maker(**({"weight_decay": self.weight_decay} if self.weight_decay else {}))


class Defence(Group):
    name: str
    training: _node("defence.training", optional=True)
    inference: _node("defence.inference", optional=True)


class Strategy(Open):
    component: _node("strategy")
    fraction_train: Fraction


class Sanity(Group):
    attack: str
    steps_factor: Annotated[int, Field(ge=2)]
    eps_factors: tuple[Positive, ...]


class Evaluation(Group):
    name: str
    every: Count | None
    attacks: Names
    curve: Names
    adaptive: Names
    eps: Positive | None
    grid: dict[str, tuple | None] | None
    sanity: Sanity | None
    draws: Count
    fraction: Fraction
    gradients: bool
    utterances: bool
    example: bool
    validation: bool = False  # runs of before had no choice
    groups: Names = ()
    min_support: Count = 5
    batch_size: Count
    precision: Precision


class Simulation(Group):
    name: str
    backend: Literal["ray", "serial"]
    device: Literal["auto", "cpu", "cuda"]
    actors: Count | None
    num_cpus: Positive
    num_gpus: NonNegative | None
    total_gpus: NonNegative | None
    probe: bool
    address: Address | None
    min_reply_fraction: Fraction
    stacked: Count = 1  # runs of before had no choice


class Deployment(Group):
    """Clients on machines of their own, behind a Flower SuperLink."""

    name: str
    backend: Literal["deploy"]
    device: Literal["auto", "cpu", "cuda"]
    superlink: Annotated[str, Field(pattern=r"^.+:\d+$"), must("must be HOST:PORT")]
    ca: str | None
    secret: str | None
    clients: Count
    wait: Positive
    patience: Positive
    utterances: bool
    min_reply_fraction: Fraction
    address: ClassVar = None
    probe: ClassVar = False
    stacked: ClassVar = 1


def _read_simulation(values: Any) -> Simulation | Deployment:
    deployed = isinstance(values, dict) and values.get("backend") == "deploy"
    return parse(Deployment if deployed else Simulation, values, "simulation.")


class Checkpoint(Group):
    every: Count | None
    keep: Literal["last", "evaluated"]
    updates: Whole = 0  # runs of before had no choice


class Selection(Group):
    name: Literal["last", "best"]
    attack: str | None
    every: Count | None


def _by_name(key: str) -> Any:
    """The type of a field that holds components by name."""

    def read(nodes: Any) -> dict[str, Component]:
        if not isinstance(nodes, dict):
            raise InputError(f"{key}={shown(nodes)} must be components by name: choose options of the group.")
        return {name: component(f"{key}.{name}", node, name) for name, node in nodes.items()}

    return Annotated[dict[str, Component], PlainValidator(read)]


def _no_detector() -> Component:
    return component("detector", {"name": "none"})


class Settings(Group):
    """All settings of a run; `plain` are the same as YAML has them."""

    dataset: Dataset
    features: Annotated[Features, PlainValidator(_read_features)]
    partition: Partition
    model: Model
    client: Client
    attack: _node("attack")
    attacks: _by_name("attacks")
    augment: _by_name("augment") = Field(default_factory=dict)
    corruption: _by_name("corruption") = Field(default_factory=dict)
    defence: Defence
    strategy: Strategy
    batch_norm: Literal["auto", "aggregate", "local", "recompute"] = "aggregate"
    averaging: _node("averaging")
    detector: _node("detector") = Field(default_factory=_no_detector)  # runs of before had no choice
    selection: Selection
    evaluation: Evaluation
    simulation: Annotated[Simulation | Deployment, PlainValidator(_read_simulation)]
    logger: _node("logger")
    checkpoint: Checkpoint
    seed: Annotated[int, Field(ge=0)]
    rounds: Count
    reuse: bool
    resume: bool
    optimized_metric: str
    modules: tuple[str, ...] = ()
    variant: dict[str, Any] | None = None

    _plain: dict = PrivateAttr()

    @classmethod
    def of(cls, plain: dict) -> "Settings":
        """The settings of resolved plain values. Raises InputError naming the first that does not fit."""
        opened = {
            key: field.annotation.opened(plain[key])
            for key, field in cls.model_fields.items()
            if key in plain and isinstance(field.annotation, type) and issubclass(field.annotation, Open)
        }
        settings = parse(cls, plain | opened)
        settings._plain = plain
        components.search(settings.modules)
        return settings

    @property
    def plain(self) -> dict:
        """As they were read: what is written to `config.yaml` and sent to workers."""
        return self._plain

    @property
    def refines(self) -> bool:
        """Whether the final model may be another than the last round's, by averaging or selection."""
        return bool(self.averaging) or self.selection.name != "last"

    def components(self) -> Iterator[Component]:
        """All components that are used whatever is measured: of training, the defence at inference and
        the detector."""
        yield from (group.component for group in (self.dataset, self.partition, self.model, self.strategy))
        yield self.partition.split
        yield from (self.features.normalisation, self.client.optimizer, self.client.schedule, self.logger)
        yield from (self.averaging, self.detector, *self.augment.values(), *self.corruption.values())
        yield from filter(None, (self.defence.training, self.defence.inference))
