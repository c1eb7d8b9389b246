"""What the README of version 0.3.0 told users to type composes, and with its defaults means the same as it did then."""

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import FIXTURES

from fedser.config.compose import compose
from fedser.config.validation import plain, validate

# Command → what it changed: the values that keys had in version 0.3.0, classes and their nesting left out.
THEN = json.loads((FIXTURES / "readme_overrides.json").read_text())
README = Path(__file__).parent.parent / "README.md"


def at(node: dict, path: str):
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node


@pytest.mark.parametrize("command", THEN)
def test_old_commands_mean_the_same(command, monkeypatch):
    monkeypatch.setenv("FEDSER_DATA", "data")
    chosen = [word.partition("=")[2] for word in command.split() if word.startswith("experiment=")]
    others = [word for word in command.split() if not word.startswith("experiment=")]
    paper = any(name.startswith("chang2022") for name in chosen)  # says itself all that matters
    now = plain(compose([f"experiment=[{','.join(chosen if paper else ['v03', *chosen])}]", *others]))
    for key, value in THEN[command].items():
        if (key, value) == ("client.name", "default") or (key, value) == ("evaluation.every", 4):
            continue  # how often a curve is looked at changes no number
        if chosen and not paper and key in ("rounds", "evaluation.every"):
            continue  # the corpora's own numbers of rounds went with version 0.3.0
        found = at(now, "features.normalisation.name" if key == "features.normalisation" else key)
        if key == "evaluation.attacks" and "evaluation=full" in others:  # "all attacks", of which there are more now
            found = [name for name in found if name in value]
        assert found == value, key


def commands() -> list[list[str]]:
    """The overrides of every `fedser` line in the README."""
    lines = re.findall(r"^fedser (?!-)([^#\n]*)", README.read_text(), re.MULTILINE)
    return [[word for word in shlex.split(line) if word not in ("…", "…)")] for line in lines]


@pytest.mark.skipif(not README.exists(), reason="installed without the checkout")
def test_the_readmes_commands_compose():
    found = commands()
    assert len(found) >= 6
    for words in found:
        validate(compose(words))
