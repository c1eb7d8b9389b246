"""How many clients run at a time and what each is given: settings fitted to machines, before anything starts."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedser.config.settings import Settings, Simulation
from fedser.data.partition import ClientSplit
from fedser.display import duration
from fedser.errors import InputError
from fedser.federation.strategies import clients_per_round
from fedser.simulation import ray_cluster
from fedser.simulation.probe import Probe
from fedser.simulation.resources import Machine, this_machine

log = logging.getLogger(__name__)
SHARE_OF_A_GPU = 0.25  # what a client is given where nothing was measured
ROOM_ON_A_CARD = 0.9  # the share of its memory that clients may take
DRIVER_BYTES = 2**30  # left to this process
SMALL_REPLY = 2**20  # bytes
SECONDS_PER_CLIENT = 0.02  # for its messages, whatever it does
LEAST_STORE = 100 * 2**20  # bytes of the object store beside the global model and the replies under way


@dataclass(frozen=True)
class Plan:
    """How many clients run at a time (`actors`), where, and what each is given.

    `clients` there are in all, `unseen` of them do not train, `clients_per_round` train in a round. `seconds_per_round`
    and `peak_bytes`, a worker's memory, are estimates; None where nothing was measured.
    """

    backend: str
    actors: int
    num_cpus: float
    num_gpus: float
    total_gpus: float
    reply_bytes: int = 0
    address: str | None = None
    clients: int = 0
    unseen: int = 0
    clients_per_round: int = 0
    seconds_per_round: float | None = None
    peak_bytes: int | None = None
    stacked: int = 1

    @property
    def window(self) -> int:
        """How many messages may be on their way. So many that no actor waits for the server to look; of small ones as
        many as make tasks of several clients."""
        each = max(2 * self.stacked, 2 if self.reply_bytes > SMALL_REPLY else 16)
        return each * self.actors + 8

    @property
    def store_bytes(self) -> int:
        """Ray's object store. Small, as each process pays for every page of it that it ever touched.

        It has room for this round's and the last round's global model, and for each actor a reply under way and one
        that waits to be added; should that not do, Ray puts the rest on disk.
        """
        return LEAST_STORE + (2 * self.actors * self.stacked + 3) * self.reply_bytes

    def __str__(self) -> str:
        sampled = f", {self.clients_per_round} a round" if self.clients_per_round < self.clients - self.unseen else ""
        who = f"{self.clients} clients{f', {self.unseen} of them held out' if self.unseen else ''}{sampled}"
        if self.backend == "serial":
            return f"{who} · one at a time in this process"
        if self.backend == "deploy":
            return f"{who} · on machines of their own, SuperLink {self.address}"
        where = f" at {self.address}" if self.address else ""
        gpu = f" and {self.num_gpus:g} GPU" if self.num_gpus else ""
        time = f" · about {duration(self.seconds_per_round)} a round" if self.seconds_per_round else ""
        waves = math.ceil(self.clients_per_round / self.actors)  # so often the actors take up new clients
        often = f"{waves} wave{'s' if waves > 1 else ''}"
        return f"{who} · {self.actors} at a time on Ray{where}, each with {self.num_cpus:g} CPU{gpu} · {often}{time}"


@dataclass(frozen=True)
class Capacity:
    """The machines on which clients may run; `free` is what other jobs leave of a Ray that is not this run's own."""

    machines: list[Machine]
    free: Machine | None = None

    @property
    def joined(self) -> bool:
        """Whether they are those of a Ray that is not this run's own."""
        return self.free is not None

    @property
    def cpus(self) -> float:
        """Cores, all machines together."""
        return sum(machine.cpus for machine in self.machines)

    @property
    def gpus(self) -> float:
        """GPUs, all machines together."""
        return sum(machine.gpus for machine in self.machines)

    @property
    def most(self) -> Machine:
        """The most cores and GPUs that any of the machines has."""
        return Machine(*(max(getattr(machine, key) for machine in self.machines) for key in ("cpus", "gpus")))

    @property
    def has(self) -> str:
        """The beginning of a message about `most`."""
        return "no machine of the Ray cluster has more than" if self.joined else "this machine has"

    def fits(self, request: "Request") -> int:
        """How many clients have cores, GPUs and, where that is known, memory at a time."""
        return sum(int(min(request.places(machine), request.in_memory(machine))) for machine in self.machines)


@dataclass(frozen=True)
class Request:
    """One client's share of a machine, and how many clients a machine has room for; `memory` in bytes."""

    cpus: float
    gpus: float
    memory: int | None = None

    def places(self, machine: Machine) -> int:
        """As many as Ray, and Flower's `pool_size_from_resources`, put on the machine."""
        places = int(machine.cpus / self.cpus)
        return min(places, self.on_gpus(machine)) if self.gpus else places

    def on_gpus(self, machine: Machine) -> int:
        """A fraction of a GPU must fit on one card: two clients of 0.6 do not share what is left of two."""
        if self.gpus < 1:
            return int(machine.gpus) * int(1 / self.gpus + 1e-9)
        return int(machine.gpus / self.gpus)

    def in_memory(self, machine: Machine) -> float:
        """As many as the machine's free memory holds; infinity where nothing is known."""
        return machine.memory // self.memory if self.memory and machine.memory is not None else math.inf


def plan(
    settings: Settings, splits: Sequence[ClientSplit] | int, reply_bytes: int = 0, probed: Probe | None = None
) -> Plan:
    """Fits the settings to this machine, or to the cluster at `simulation.address`.

    `splits` are the clients', or just how many clients there are; `reply_bytes` is the size of one packed model;
    `probed` is what one client was measured to take.
    Raises InputError, saying which key to change, when not even one client has a place, or no cluster answers.
    """
    wanted = settings.simulation
    clients = splits if isinstance(splits, int) else len(splits)
    unseen = 0 if isinstance(splits, int) else sum(not split.seen for split in splits)
    chosen = clients_per_round(settings.strategy, clients - unseen)
    common = {"reply_bytes": reply_bytes, "clients": clients, "unseen": unseen, "clients_per_round": chosen}
    common["stacked"] = wanted.stacked
    if wanted.backend == "deploy":
        return Plan("deploy", clients, 1, 0.0, 0.0, **common, address=wanted.superlink)
    if wanted.backend == "serial":
        if wanted.address is not None:
            raise InputError(
                f"simulation.address={wanted.address} joins a Ray cluster, but simulation.backend=serial runs without "
                "Ray: choose another simulation=…, or leave simulation.address null."
            )
        return Plan("serial", 1, 1, 0.0, 0.0, **common)
    capacity = survey(wanted, reply_bytes)
    asked = min(wanted.actors or 0, clients)  # 0: as many as fit
    request = _request(settings, capacity, asked or chosen, probed)
    _check(asked, capacity, request)
    if probed is not None and (probed.device == "cuda") != (request.gpus > 0):
        probed = None  # measured on another kind of device than the clients will have
    if probed is not None:
        wish = asked or min(capacity.fits(request), clients)
        request = replace(request, memory=probed.peak_bytes + (0 if capacity.joined else 2 * reply_bytes))
        _warn_of_memory(settings, capacity, request, wish, probed)
    actors = asked or min(max(capacity.fits(request), 1), clients)
    _warn_of_turns(settings, capacity, request, actors)
    seconds = None
    if probed is not None and not isinstance(splits, int):
        at_once = actors if request.gpus else min(actors, capacity.cpus / settings.client.threads)
        seconds = _seconds_per_round(settings, splits, probed, at_once)
    return Plan(
        "ray", actors, request.cpus, request.gpus, capacity.gpus, **common, address=wanted.address,
        seconds_per_round=seconds, peak_bytes=probed.peak_bytes if probed else None,
    )  # fmt: skip


def survey(wanted: Simulation, reply_bytes: int = 0) -> Capacity:
    """The machines of the Ray cluster at `simulation.address`, or that this process has joined; else this machine.

    Of this machine's memory, what the driver and Ray's object store take is left out.
    """
    with ray_cluster.joined(wanted.address):
        if (machines := ray_cluster.machines()) is not None:
            return Capacity(machines, free=ray_cluster.free())
    here = this_machine(wanted.total_gpus)
    taken = DRIVER_BYTES + LEAST_STORE + 4 * reply_bytes
    free = ray_cluster.free_before() or here.memory
    return Capacity([replace(here, memory=max(free - taken, 0))])


def _request(settings: Settings, capacity: Capacity, at_once: int, probed: Probe | None) -> Request:
    """A client's cores, one for each of several threads as far as a machine has so many, and its share of a GPU."""
    wanted, threads = settings.simulation, settings.client.threads
    cpus = wanted.num_cpus if threads == 1 else max(wanted.num_cpus, min(threads, capacity.most.cpus))
    if wanted.num_gpus is not None:
        return Request(cpus, float(wanted.num_gpus))
    if not capacity.gpus or wanted.device == "cpu":
        return Request(cpus, 0.0)
    if probed is None or not probed.gpu_peak_bytes:
        return Request(cpus, SHARE_OF_A_GPU)
    of_use = math.ceil(min(at_once, capacity.cpus / cpus) / capacity.gpus)
    on_a_card = max(1, min(_on_a_card(probed), of_use))
    return Request(cpus, math.floor(1e4 / on_a_card) / 1e4)  # Ray counts in ten-thousandths and may round up


def _on_a_card(probed: Probe) -> int:
    """How many clients a GPU's memory holds."""
    return int(ROOM_ON_A_CARD * probed.gpu_bytes / probed.gpu_peak_bytes)


def _check(asked: int, capacity: Capacity, request: Request) -> None:
    """Raises InputError when no client, or not as many as asked for, can have what it needs."""
    if request.gpus > capacity.most.gpus:
        raise InputError(
            f"simulation.num_gpus={request.gpus:g} per client, but {capacity.has} {capacity.most.gpus:g} GPUs: "
            "choose simulation=cpu, or lower simulation.num_gpus."
        )
    if request.gpus > 1 and request.gpus != int(request.gpus):
        raise InputError(
            f"simulation.num_gpus={request.gpus:g} must be a fraction of one GPU or a whole number of them."
        )
    if request.cpus > capacity.most.cpus and (capacity.joined or not asked):
        raise InputError(
            f"simulation.num_cpus={request.cpus:g} per client, but {capacity.has} {capacity.most.cpus:g} CPU cores: "
            f"set simulation.num_cpus to at most {capacity.most.cpus:g}."
        )
    if request.gpus and (on_gpus := sum(map(request.on_gpus, capacity.machines))) < asked:
        raise InputError(
            f"simulation.actors={asked} with simulation.num_gpus={request.gpus:g} each do not fit on "
            f"{capacity.gpus:g} GPUs: set simulation.actors to at most {on_gpus}, or lower simulation.num_gpus."
        )
    if capacity.joined and (places := capacity.fits(request)) < max(asked, 1):
        raise InputError(
            f"{max(asked, 1)} clients at a time with {request.cpus:g} CPU and {request.gpus:g} GPU each do not fit on "
            f"the Ray cluster, which has places for {places}: lower simulation.actors, simulation.num_cpus or "
            "simulation.num_gpus."
        )


def _warn_of_turns(settings: Settings, capacity: Capacity, request: Request, actors: int) -> None:
    """Says where clients wait for each other, or for other jobs, and which keys help."""
    threads = settings.client.threads
    if actors * max(request.cpus, threads) > capacity.cpus:
        log.warning(
            "%d clients at a time, each with %g CPU and client.threads=%d, share %g cores: they will take turns "
            "(lower simulation.actors or client.threads)", actors, request.cpus, threads, capacity.cpus,
        )  # fmt: skip
    if capacity.joined and (capacity.free.cpus < actors * request.cpus or capacity.free.gpus < actors * request.gpus):
        log.warning(
            "the Ray cluster has %g of %g CPUs and %g of %g GPUs free: some of the %d clients at a time will wait "
            "until other jobs end (lower simulation.actors)",
            capacity.free.cpus, capacity.cpus, capacity.free.gpus, capacity.gpus, actors,
        )  # fmt: skip


def _warn_of_memory(settings: Settings, capacity: Capacity, request: Request, wish: int, probed: Probe) -> None:
    """Says where clients are fewer than `wish` for want of memory, or may run out of it, and which keys help."""
    model = "model.width" if settings.model.component.get("width") else "the size of the model"
    smaller = f"lower client.batch_size, evaluation.batch_size or {model}"
    fit = sum(request.in_memory(machine) for machine in capacity.machines)
    if fit < wish:
        free = sum(machine.memory for machine in capacity.machines)
        fits = f"{int(fit)} fit at a time, not {wish}" if fit else "it may run out"
        log.warning(
            "one client takes about %s of memory and %s are free: %s (%s)",
            _gib(request.memory), _gib(free), fits, smaller,
        )  # fmt: skip
    at_once = int(1 / request.gpus + 1e-9) if 0 < request.gpus < 1 else 1
    if request.gpus and (fit := _on_a_card(probed)) < at_once:
        fits = f"{fit} fit at a time, not {at_once}" if fit else "it may run out"
        log.warning(
            "one client takes about %s of GPU memory and a card has %s: %s (raise simulation.num_gpus, or %s)",
            _gib(probed.gpu_peak_bytes), _gib(probed.gpu_bytes), fits, smaller,
        )  # fmt: skip


def _seconds_per_round(settings: Settings, splits: Sequence[ClientSplit], probed: Probe, at_once: float) -> float:
    """The time of a round's local training with so many clients at work at once: at least that of the longest."""
    per_sample = settings.client.epochs * probed.seconds_per_training_sample + probed.seconds_to_start_per_sample
    seconds = [SECONDS_PER_CLIENT + len(split.train) * per_sample for split in splits if split.seen]
    return max(sum(seconds) * settings.strategy.fraction_train / at_once, max(seconds))


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
