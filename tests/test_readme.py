"""What the README of version 0.3.0 told users to type composes, and means the same as it did then."""

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
    now = plain(compose(command.split()))
    for key, value in THEN[command].items():
        found = at(now, "features.normalisation.name" if key == "features.normalisation" else key)
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
