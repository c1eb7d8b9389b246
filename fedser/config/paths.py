"""Where the YAML files are: fedser's own, and those of the user's folders that stand before them."""

import functools
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf


def directory() -> Path:
    """The folder of fedser's YAML files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def groups(folders: Sequence[str] = ()) -> list[str]:
    """The groups of options, ours and the user's: "attack", "defence/training", …."""
    places = [directory(), *map(Path, folders)]
    found = {file.parent.relative_to(place).as_posix() for place in places for file in place.rglob("*/*.yaml")}
    return sorted(group for group in found if group.partition("/")[0] != "hydra")


def options(group: str, folders: Sequence[str] = ()) -> dict[str, Path]:
    """The YAML files of a group ("attack", "defence/training") by name; a user's stand in for ours of the same name."""
    places = [directory(), *map(Path, reversed(folders))]
    return {file.stem: file for place in places for file in sorted((place / group).glob("*.yaml"))}


@functools.cache
def content(file: Path) -> dict:
    """The keys of a YAML file, interpolations left as they are; none where it is no mapping."""
    found = OmegaConf.load(file)
    return OmegaConf.to_container(found, resolve=False) if isinstance(found, DictConfig) else {}
