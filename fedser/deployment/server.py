"""`simulation=deploy`: the run's server in this process, its clients wherever they are."""

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from fedser.config.settings import Settings
from fedser.deployment import flower
from fedser.deployment.grid import Deployed
from fedser.deployment.roster import Entry, Roster
from fedser.deployment.vetting import greeting
from fedser.errors import InputError, RunError
from fedser.federation import strategies
from fedser.federation.client_app import app as client_app
from fedser.simulation import backend
from fedser.simulation.plan import Plan

log = logging.getLogger(__name__)


@dataclass
class Deployment:
    """The run's clients, who have said who they are."""

    grid: Deployed
    roster: Roster

    link: flower.Link

    def serve(self, work: Callable[[Grid], None], stop: threading.Event) -> None:
        """Runs `work(grid)`; raises what it raises, RunError where the SuperLink is lost."""
        self.grid.stop = stop
        with _explained(self.link):
            work(self.grid)


@contextlib.contextmanager
def _explained(link: flower.Link) -> Iterator[None]:
    """What a lost SuperLink means. Raises RunError."""
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise RunError(
            f"the SuperLink at {link.address} is lost ({why}): start it again, and the same command goes on from the "
            "last checkpoint."
        ) from error


def serve(
    work: Callable[[Grid], None], deployment: Deployment | None, clients: int, plan: Plan, stop: threading.Event
) -> None:
    """Runs `work(grid)` against the deployment's clients, or against so many simulated ones; raises what it raises."""
    if deployment:
        deployment.serve(work, stop)
    else:
        backend.simulate(work, client_app, clients, plan, stop)


@contextlib.contextmanager
def connected(settings: Settings, grid: Grid | None = None) -> Iterator[Deployment | None]:
    """The clients of a deployment, once all are there; None for a simulation. `grid`: where Flower has given one.

    Raises InputError for what no deployment can do and for what a client complains about, RunError where no SuperLink
    answers or clients are missing.
    """
    wanted = settings.simulation
    if wanted.backend != "deploy":
        yield None
        return
    _check(settings)
    link = flower.Link(wanted.superlink, Path(wanted.ca).expanduser() if wanted.ca else None)
    _ = link.certificates  # read before anything is started
    secret = Path(wanted.secret).expanduser().read_bytes() if wanted.secret else None
    withholds = strategies.private(strategies.build_strategy(settings.strategy, wanted.clients)) is not None
    experiment = greeting(settings, withholds=withholds)
    content = RecordDict({"config": ConfigRecord({"experiment": json.dumps(experiment)})})
    own = contextlib.nullcontext(grid) if grid else flower.server_app(link, secret)
    with _explained(link), backend.quiet_flower(), own as grid:
        deployed = Deployed(grid, content, settings.client.timeout, threading.Event())
        roster = Roster([Entry.of(told) for told in deployed.gather(wanted.clients, wanted.wait)])
        deployed.accepted = roster.objection
        yield Deployment(deployed, roster, link)


def _check(settings: Settings) -> None:
    """Raises InputError for what needs all clips in one place, or has clients say more than they will."""
    if (name := settings.partition.name) != "speaker":
        raise InputError(
            f"partition={name} deals out a corpus, and in a deployment clients are who they are: partition=speaker."
        )
    if strategies.pooled(strategies.build_strategy(settings.strategy, settings.simulation.clients)):
        raise InputError(f"strategy={settings.strategy.name} needs all clips in one place: a deployment has none.")
    for key in ("utterances", "example"):
        if getattr(settings.evaluation, key):
            raise InputError(f"evaluation.{key}=true: clients of a deployment do not tell of single clips.")
    if settings.client.timeout is None:
        raise InputError(
            "client.timeout=null: in a deployment a client that hangs would hold the run for ever; e.g. 600."
        )
