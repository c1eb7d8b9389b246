"""What a job returns to a sweeper: `optimized_metric`, and the sweeps that must not be made.

A sweeper that optimises chooses settings by that figure. On test data it would report its own choice as a result, so
validation utterances are the default, and test data are possible with a warning.
"""

import logging
import sys

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fedser.config.protocol import UNSEEN, Protocols
from fedser.config.settings import Settings
from fedser.config.validation import plain, tidy
from fedser.errors import FedserError, InputError, RunError

log = logging.getLogger(__name__)
EXHAUSTIVE = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"  # makes every job, whatever the jobs return
VALIDATION = "/validation/"  # in the name of a metric that may choose settings
DEFAULT = "uar/validation/original"
# A sweep over these may change which metrics there are.
DECISIVE = ("optimized_metric", "partition", "evaluation", "attack", "attacks", "defence", "dataset", "experiment")


class Guard(Callback):
    """Refuses a sweep that must not be made, before its first job; Hydra calls it."""

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        """Ends the process with exit code 2 and one line."""
        if not _optimises(config.hydra) or _decisive_keys_swept(config.hydra):
            return  # the latter is looked at job by job
        try:
            settings = Settings.of(tidy(plain(config), quiet=True))
            Protocols.of(settings)
        except FedserError:
            return  # the jobs say so, and it may be what they change
        try:
            check(settings, config.hydra)
        except InputError as error:
            print(f"fedser: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from error  # an exception would become a warning of Hydra's
        if VALIDATION not in settings.optimized_metric:
            log.warning(
                "optimized_metric=%s is of test data, which choose the settings then: what this sweep finds says "
                "nothing of other data (%s does)", settings.optimized_metric, _advice(settings),
            )  # fmt: skip


def check(settings: Settings, hydra: DictConfig) -> None:
    """Raises InputError where a sweeper is to optimise what there will not be; `hydra` is Hydra's own section.

    Nothing stands in for a figure that is missing: jobs of one sweep, as over splits, must not be compared by figures
    of known speakers and of unknown ones.
    """
    wanted, there = settings.optimized_metric, settings.partition.validated
    whose = "unseen" if UNSEEN in wanted else "seen"
    if not _optimises(hydra) or VALIDATION not in wanted or whose in there:
        return
    if whose == "unseen":
        raise InputError(
            f"a sweeper that optimises {wanted} needs validation utterances of speakers who are held out: set "
            "partition/split=speaker partition.split.validation=0.2."
        )
    if there:
        raise InputError(
            f"a sweeper that optimises {wanted} needs validation utterances of clients that train, and there are only "
            f"those of speakers who are held out: set {_advice(settings)}, or partition.validation=0.1."
        )
    raise InputError(f"a sweeper that optimises {wanted} needs validation utterances: set partition.validation=0.1.")


def _advice(settings: Settings) -> str:
    """A figure of validation utterances to optimise, with what it needs."""
    there, wanted = settings.partition.validated, settings.optimized_metric
    wanted = wanted if VALIDATION in wanted else DEFAULT
    if there == {"unseen"}:
        return f"optimized_metric={wanted.replace('/', f'/{UNSEEN}', 1)}"
    return f"{'' if there else 'partition.validation=0.1 '}optimized_metric={wanted}"


def figure(settings: Settings, metrics: dict) -> float | None:
    """The run's `optimized_metric`; None where it has none.

    Raises RunError where a sweeper is to optimise it.
    """
    value = metrics.get(settings.optimized_metric)
    if value is None and _optimises(HydraConfig.get()):
        has = ", ".join(name for name in metrics if VALIDATION in name) or "none of validation utterances"
        raise RunError(
            f"the run has no {settings.optimized_metric}: its clients have no such utterances. It has {has}."
        )
    return value


def _optimises(hydra: DictConfig) -> bool:
    """Whether this is a sweep whose sweeper goes by what the jobs return."""
    return hydra.mode is not None and hydra.mode.name == "MULTIRUN" and hydra.sweeper._target_ != EXHAUSTIVE


def _decisive_keys_swept(hydra: DictConfig) -> bool:
    words = OverridesParser.create().parse_overrides(list(hydra.overrides.task))
    swept = [word.key_or_group for word in words if word.is_sweep_override()]
    swept += list(hydra.sweeper.get("params") or {})
    return any(key.replace("/", ".").split(".")[0] in DECISIVE for key in swept)
