"""The configuration: composed once by Hydra, checked with messages that say what to change, resolved to plain values.

Nothing heavy is imported here: `fedser --help` and a misspelt key answer at once.
"""

import difflib
import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedser.config import checks, identity
from fedser.errors import FedserError, InputError

log = logging.getLogger(__name__)

OmegaConf.register_new_resolver(
    "fedser_run_name", lambda *, _root_: identity.run_name(plain(_root_)), use_cache=False, replace=True
)
OmegaConf.register_new_resolver("fedser_add", lambda *terms: sum(terms), replace=True)


def directory() -> Path:
    """The folder of the YAML files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def compose(overrides=()) -> DictConfig:
    """The configuration that these command-line overrides compose to.

    Raises InputError for an unknown group option or key, naming the nearest one that exists.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    with initialize_config_dir(config_dir=str(directory()), version_base="1.3"):
        try:
            return hydra_compose("config", overrides=list(overrides))
        except HydraException as error:
            raise InputError(explain(error, overrides)) from error


def plain(config) -> dict:
    """The configuration as resolved plain values, without Hydra's own section. A missing `???` stays as it is."""
    if not isinstance(config, DictConfig):
        return config
    keys = [key for key in config if key != "hydra"]
    return OmegaConf.to_container(OmegaConf.masked_copy(config, keys), resolve=True, throw_on_missing=False)


def build(node, **more):
    """The object a `_target_` node describes, None for None.

    Raises the FedserError that the object itself raised (Hydra would wrap it), InputError for anything else.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node, **more) if node is not None else None
    except InstantiationException as error:
        if isinstance(error.__cause__, FedserError):
            raise error.__cause__ from None
        raise InputError(" ".join(str(error).split())) from error


def explain(error: Exception, overrides=()) -> str:
    """Hydra's own message in one line, with the nearest names for what was misspelt in the overrides."""
    message = " ".join(str(error).split("\n")[0].split())
    if message.startswith("Ambiguous value"):
        return f"{message} For a sweep over several values, begin with -m."
    known = _known_names()
    for override in overrides:
        name = override.lstrip("+~").split("=")[0]
        value = override.partition("=")[2]
        options = [path.stem for path in (directory() / name.split("@")[0]).glob("*.yaml")]
        wrong_options = [option for option in value.split(",") if options and option not in options]
        if wrong_options:
            near = difflib.get_close_matches(wrong_options[0], options, n=1)
            nearest = f"; did you mean {name}={near[0]}?" if near else "."
            return f"{name} has no option '{wrong_options[0]}'{nearest} There are: {', '.join(sorted(options))}."
        if name and not options and name not in known and not override.startswith(("+", "hydra")):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            nearest = f" Did you mean '{near[0]}'?" if near else ""
            return f"There is no key '{name}'.{nearest} (Hydra: {message})"
        if f"'{name}'" in message:
            return f"{message} Other options of {name.split('.')[0]}= have that key; the chosen one has not."
    return message


def _known_names() -> list[str]:
    names: set[str] = set()

    def walk(node, prefix):
        for key, value in node.items():
            path = f"{prefix}{key}"
            names.add(path)
            if isinstance(value, dict):
                walk(value, f"{path}.")

    for path in directory().rglob("*.yaml"):
        group = path.parent.relative_to(directory()).as_posix().replace("/", ".")
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if group == "experiment" or not isinstance(node, dict):
            continue
        node.pop("defaults", None)
        node.pop("hydra", None)
        names.add(group)
        walk(node, "" if group == "." else f"{group}.")
        if group == "attack":
            walk(node, f"attacks.{path.stem}.")
    return sorted(names - {"."})


def settle(config: DictConfig) -> dict:
    """Plain values, checked, with the settings that mean nothing taken out.

    Raises InputError naming the key and saying what to set instead.
    """
    try:
        settings = plain(config)
    except OmegaConfBaseException as error:
        raise InputError(" ".join(str(error).split())) from error
    checks.shape(settings)
    for key in ("attacks", "curve", "adaptive"):
        if isinstance(settings["evaluation"].get(key), str):
            settings["evaluation"][key] = [settings["evaluation"][key]]
    for attack in [settings["attack"], *settings["attacks"].values(), checks.training_attack(settings)]:
        if attack and attack.get("eps") is not None and attack["name"] in identity.attacks_without_eps():
            log.warning("%s has no ε: attack.eps=%s is ignored", attack["name"], attack["eps"])
            attack["eps"] = None
    for part in (settings["attack"], settings["attacks"], settings["defence"]):
        _absolute_sources(part)
    checks.values(settings)
    return settings


def _absolute_sources(node) -> None:
    """Makes the `source` of attacks, a run's folder, absolute: workers have a working folder of their own."""
    if isinstance(node, dict):
        if isinstance(node.get("source"), str):
            node["source"] = str(Path(node["source"]).expanduser().absolute())
        for part in node.values():
            _absolute_sources(part)
