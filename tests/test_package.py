"""The wheel: what `pip install .` puts on a machine works from any folder, configuration included."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that the checkout stays clean; without isolation, so that nothing is downloaded."""
    pytest.importorskip("setuptools", minversion="77")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = ["pyproject.toml", "README.md", "LICENSE", "fedser", "conf"]
    subprocess.run(["cp", "-r", *[str(ROOT / name) for name in files], str(source)], check=True)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(target),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (file,) = target.glob("fedser-*.whl")
    return file


def test_configuration_and_data_travel_with_it(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"fedser/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert len(expected) > 30 and expected <= inside
    assert "fedser/data/corpora/demos_counts.csv" in inside
    code = {f"fedser/{path.relative_to(ROOT / 'fedser')}" for path in (ROOT / "fedser").rglob("*.py")}
    assert code <= inside
    tops = {name.split("/")[0] for name in inside}
    assert tops == {"fedser", next(top for top in tops if top.endswith(".dist-info"))}


def test_it_composes_without_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = (
        "import fedser; from fedser.config import paths, validation as v; print(fedser.__file__, paths.directory());"
        "print(v.validate(fedser.compose(['experiment=chang2022', 'attack=pgd', 'defence=two_stage'])).model.name)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    package, conf, model = done.stdout.split()
    assert Path(package).is_relative_to(tmp_path) and Path(conf) == tmp_path / "site/fedser/conf" and model == "vgg15"
