"""Composition by Hydra, from our YAML files and the user's; its complaints in words that say what to change.

Nothing heavy is imported here, and what checks settings only where they are needed: `fedser --help` and a misspelt key
answer at once.
"""

import copy
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fedser.config import paths
from fedser.errors import FedserError, InputError, nearest

# What Hydra raises for overrides: its own errors, OmegaConf's, and bare ones where a group is given what is no name.
VALUED = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")  # flags whose next word is a value
COMPLAINTS = (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError)

OmegaConf.register_new_resolver("fedser_run_name", lambda *, _root_: name_of(_root_), use_cache=False, replace=True)
OmegaConf.register_new_resolver("fedser_corpus", lambda *, _root_: corpus_of(_root_), use_cache=False, replace=True)
OmegaConf.register_new_resolver("fedser_add", lambda *terms: sum(terms), replace=True)


def compose(
    overrides: Sequence[str] = (), config_dir: str | Path | None = None, with_hydra: bool = False
) -> DictConfig:
    """The configuration that these command-line overrides compose to; `config_dir` holds YAML files of your own.

    with_hydra: with Hydra's own section.

    Raises InputError for an unknown group option or key, naming the nearest one that exists.
    """
    folders = folders_of(overrides, config_dir)
    words = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]"] if folders else []
    words += [word for word in prepared(overrides, folders) if not word.lstrip("+").startswith("hydra.searchpath=")]
    try:
        if not folders and not with_hydra and (config := _changed(words)) is not None:
            return config
        return _composed(tuple(words), with_hydra)
    except COMPLAINTS as error:
        raise InputError(explain(error, overrides, folders)) from error


def _composed(words: tuple[str, ...], with_hydra: bool = False) -> DictConfig:
    with hydra.initialize_config_dir(config_dir=str(paths.directory()), version_base="1.3"):
        return hydra.compose("config", overrides=list(words), return_hydra_config=with_hydra)


_chosen = functools.lru_cache(maxsize=64)(_composed)


def _changed(words: Sequence[str]) -> DictConfig | None:
    """What Hydra would compose, in a tenth of the time: the choices are kept, values set in a copy of them.

    None where it takes Hydra itself: for more than choices and values that exist, and to say what is wrong with them.
    """
    if not all(re.match(r"[\w./@]+=", word) for word in words):
        return None
    groups = _groups()
    choices = [word for word in words if re.match(r"hydra\.|[^=]*[/@]", word) or word.partition("=")[0] in groups]
    try:
        values = OverridesParser.create().parse_overrides([word for word in words if word not in choices])
        if any(value.is_sweep_override() for value in values):
            return None
        config = copy.deepcopy(_chosen(tuple(choices)))
        for value in values:
            OmegaConf.update(config, value.key_or_group, value.value(), merge=True)
    except COMPLAINTS:
        return None
    return config


@functools.cache
def _groups() -> frozenset[str]:
    return frozenset(paths.groups())


def help_text(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> str:
    """What `fedser --help` says: the template as Hydra fills it, who would copy all of its store for every group."""
    config, folders = compose(overrides, config_dir, with_hydra=True), folders_of(overrides, config_dir)
    groups = [f"{group}: {', '.join(sorted(paths.options(group, folders)))}\n" for group in paths.groups(folders)]
    template = Template(config.hydra.help.template)
    with open_dict(config):
        del config["hydra"]
    return template.safe_substitute(APP_CONFIG_GROUPS="".join(groups), CONFIG=OmegaConf.to_yaml(config))


def name_of(config) -> str:
    """The folder's name of a composed configuration; of one that is invalid, too: the run itself will say why."""
    from fedser.config import identity
    from fedser.config.settings import Settings
    from fedser.config.validation import plain, tidy

    values = plain(config)
    try:
        return identity.run_name(Settings.of(tidy(values, quiet=True)))
    except FedserError:
        return f"invalid-{identity.digest(values)}"


def corpus_of(config) -> str:
    """What people call the corpus of a composed configuration."""
    from fedser.config import identity

    return identity.corpus(config.dataset.name, OmegaConf.select(config, "dataset.root"))


def folders_of(overrides: Sequence[str], config_dir: str | Path | None = None) -> tuple[str, ...]:
    """The user's folders of YAML files, absolute: `config_dir` and those of `hydra.searchpath`.

    Raises InputError for one that is not there.
    """
    named = [config_dir] if config_dir else []
    for word in overrides:
        if word.lstrip("+").startswith("hydra.searchpath="):
            named += re.findall(r"file://([^,\]\s'\"]+)", word)
    folders = [Path(folder).expanduser().absolute() for folder in named]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--config-dir {folder}: there is no such folder.")
        for file in folder.rglob("*/*.yaml"):
            if (paths.directory() / file.relative_to(folder)).exists():
                raise InputError(
                    f"{file} has the name of one of fedser's own files, which Hydra would take: rename it."
                )
    return tuple(map(str, folders))


def prepared(overrides: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
    """The overrides as Hydra gets them.

    `features.normalisation=NAME` stands for the choice of a file, `features/normalisation=NAME`, and so does
    `partition.split=NAME`. All attacks are made known by name, for `evaluation.attacks=[…]` and `attacks.NAME.steps=…`:
    those of the user's folders too. So are all corpora for `dataset=mixed`, as `dataset.corpora.NAME`.
    """
    _make_known(*(tuple(paths.options(group, folders)) for group in ("attack", "dataset")))
    dotted = r"^(features\.normalisation|partition\.split)=(?=[\w,]+$)"
    words = [re.sub(dotted, lambda found: found[0].replace(".", "/"), word) for word in overrides]
    modules = [f"modules=[{','.join(folders)}]"] if folders else []
    flags, rest = [], []  # Hydra's argparse takes overrides in one row only: flags among them go before
    for before, word in itertools.pairwise(["", *words]):
        is_override = before not in VALUED and word[:1] != "-" and ("=" in word or word[:1] == "~")
        (rest if is_override else flags).append(word)
    return [*flags, *modules, *rest]


@functools.lru_cache(maxsize=1)  # the same names as the last time are known already
def _make_known(attacks: tuple[str, ...], corpora: tuple[str, ...]) -> None:
    # Our own attacks go in as they are: as files that Hydra composes they would take half of its time.
    ours = {name: paths.content(file) for name, file in paths.options("attack").items()}
    every = [{f"/attack@_global_.attacks.{name}": name} for name in attacks if name not in ours]
    ConfigStore.instance().store("all_attacks", {"defaults": ["_self_", *every], "attacks": ours}, provider="fedser")
    every = [{f"/dataset@_global_.dataset.corpora.{name}": name} for name in corpora if name != "mixed"]
    ConfigStore.instance().store("all_datasets", {"defaults": every}, provider="fedser")


def explain(error: Exception, overrides: Sequence[str] = (), folders: Sequence[str] = ()) -> str:
    """Hydra's own message in one line, with the nearest names for what was misspelt in the overrides."""
    if (own := _cause(error)) is not None:
        return str(own)
    message = " ".join(
        re.split(r"\n\s*\n|\nAvailable options|\nConfig search path|\n +full_key", str(error))[0].split()
    )
    if message.startswith("Ambiguous value"):
        return f"{message} For a sweep over several values, begin with -m."
    known = _known_names(folders)
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        options = paths.options(key.split("@")[0].replace(".", "/"), folders)
        named = re.findall(r"[^\[\],'\"\s]+", value) if options else []
        if wrong := [option for option in named if option not in options and not option.startswith(("$", "null"))]:
            near = nearest(wrong[0], options, f"; did you mean {key}={{}}?") or "."
            return f"{key} has no option '{wrong[0]}'{near} There are: {', '.join(sorted(options))}."
        if key and not options and key not in known and not override.startswith(("+", "hydra")):
            return f"There is no key '{key}'.{nearest(key, known, ' Did you mean {!r}?')} (Hydra: {message})"
        if f"'{key}'" in message:
            return f"{message} Other options of {key.split('.')[0]}= have that key; the chosen one has not."
    return message


def _cause(error: BaseException | None) -> FedserError | None:
    """Our own error, where Hydra wrapped it."""
    while error is not None and not isinstance(error, FedserError):
        error = error.__cause__
    return error


def _known_names(folders: Sequence[str]) -> list[str]:
    """Every key that some option of some group has, dotted."""
    names: set[str] = set()
    for place in (paths.directory(), *map(Path, folders)):
        for file in place.rglob("*.yaml"):
            group = file.parent.relative_to(place).as_posix().replace("/", ".")
            node = {key: value for key, value in paths.content(file).items() if key not in ("defaults", "hydra")}
            if group == "experiment":
                continue
            names |= {group, *_dotted(node, "" if group == "." else f"{group}.")}
            names |= set(_dotted(node, f"attacks.{file.stem}.")) if group == "attack" else set()
            names |= set(_dotted(node, f"dataset.corpora.{file.stem}.")) if group == "dataset" else set()
    return sorted(names - {"."})


def _dotted(node: dict, prefix: str) -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
