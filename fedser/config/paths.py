"""Where the YAML files are: fedser's own, and those of the user's folders that stand before them."""

import functools
from pathlib import Path

from omegaconf import DictConfig, OmegaConf


def directory() -> Path:
    """The folder of fedser's YAML files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def options(group: str, folders: tuple[str, ...] = ()) -> dict[str, Path]:
    """The YAML files of a group ("attack", "defence/training") by name; a user's stand in for ours of the same name."""
    places = [directory(), *map(Path, reversed(folders))]
    return {file.stem: file for place in places for file in sorted((place / group).glob("*.yaml"))}


@functools.cache
def content(file: Path) -> dict:
    """The keys of a YAML file, interpolations left as they are; none where it is no mapping."""
    found = OmegaConf.load(file)
    return OmegaConf.to_container(found, resolve=False) if isinstance(found, DictConfig) else {}
