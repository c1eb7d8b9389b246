"""What deploy/ and docs/deployment.md tell to type exists; the scripts refuse what is wrong before they start anything."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import FIXTURES
from processes import rounds, until

from fedser import compose, run

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
EMODB = FIXTURES / "emodb"
pytestmark = pytest.mark.skipif(not DEPLOY.exists(), reason="installed without the checkout")


def script(name: str, *words, **environment) -> subprocess.CompletedProcess:
    command = [str(DEPLOY / name), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment or None)


@pytest.mark.parametrize("name", ["local.sh", "keys.sh"])
def test_scripts_parse(name):
    assert not subprocess.run(["bash", "-n", str(DEPLOY / name)], capture_output=True).stderr


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "-c N"),
        (["-c", "0"], "-c N"),
        (["-c", "three", "--root", "."], "-c N"),
        (["-c"], "-c needs a value"),
        (["-c", "3"], "--root DIR"),
        (["-c", "3", "--root", "nowhere"], "there is none at nowhere"),
        (["-c", "3", "--root", ".", "--port", "x"], "--port x"),
        (["-c", "3", "--root", ".", "--unsafe"], "--unsafe is no option"),
    ],
)
def test_local_refuses_in_one_line(words, says, tmp_path):
    done = script("local.sh", *words, HOME=str(tmp_path), PATH="/usr/bin:/bin")
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_keys_are_made_once_and_certificates_name_their_hosts(tmp_path):
    keys = tmp_path / "keys"
    assert script("keys.sh", "-o", keys, "certificates", "hub.example", "127.0.0.1").returncode == 0
    assert script("keys.sh", "-o", keys, "node", "03").returncode == 0
    verified = subprocess.run(
        ["openssl", "verify", "-CAfile", keys / "ca.pem", "-verify_hostname", "hub.example", keys / "superlink.pem"],
        capture_output=True,
    )
    assert verified.returncode == 0, verified.stderr
    text = subprocess.run(
        ["openssl", "x509", "-in", keys / "superlink.pem", "-noout", "-text"], capture_output=True, text=True
    ).stdout
    assert "DNS:hub.example, IP Address:127.0.0.1" in text
    private = [keys / name for name in ("ca.key", "superlink.key", "secret", "03")]
    assert all(file.stat().st_mode & 0o77 == 0 for file in private)
    assert (keys / "03.pub").read_text().startswith("ecdsa-sha2-nistp384 ")
    before = {file.name: file.read_bytes() for file in (keys / "ca.pem", keys / "ca.key", keys / "secret", keys / "03")}
    script("keys.sh", "-o", keys, "certificates", "hub.example")
    script("keys.sh", "-o", keys, "node", "03", "08")
    assert before == {name: (keys / name).read_bytes() for name in before} and (keys / "08").exists()


@pytest.mark.parametrize(
    "words", [[], ["node"], ["node", "a b"], ["node", "../a"], ["certificates", "a/b"], ["both", "x"]]
)
def test_keys_refuses_in_one_line(words, tmp_path):
    done = script("keys.sh", "-o", tmp_path / "keys", *words)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "keys").exists()


def test_compose_names_what_exists():
    found = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE))
    services = found["services"]
    for service in services.values():
        if build := service.get("build"):
            assert build["target"] in targets and (DEPLOY / build["context"] / build["dockerfile"]).exists()
        assert set(service.get("secrets", ())) <= set(found["secrets"])
        assert set(service["networks"]) <= set(found["networks"])
        assert set(service.get("depends_on", ())) <= set(services)
    clients = {name: service for name, service in services.items() if name.startswith("client-")}
    # Nobody who holds clips reaches the SuperLink but through the proxy, and nobody gets another's key.
    assert all(service["networks"] == ["outside"] for service in clients.values()) and services["superlink"][
        "networks"
    ] == ["inside"]
    assert all(set(service["secrets"]) == {"ca", name.replace("client", "key")} for name, service in clients.items())
    server = shlex.split(services["server"]["command"])
    compose(["simulation=deploy", *server])
    assert f"simulation.clients={len(clients)}" in server


def test_the_proxy_lets_nothing_through_but_the_fleet():
    places = dict(re.findall(r"location (\S+) \{\s*(\S+)", (DEPLOY / "nginx.conf").read_text()))
    assert places == {"/v1/fleet/": "proxy_pass", "/": "return"}


def test_the_docs_commands_exist():
    text = (ROOT / "docs" / "deployment.md").read_text().replace("\\\n", " ")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    known = {*project["project"]["scripts"], "pip", "flower-superlink", "flower-supernode", "flwr"}
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    commands = [words for line in lines if (words := shlex.split(line, comments=True))]
    assert len(commands) > 8
    for command, *words in commands:
        assert command in known or (ROOT / command).exists(), command
        if command == "fedser":
            compose(words)
        if command == "flwr" and words[0] == "run":
            compose(["simulation=deploy", *shlex.split(json.loads(words[-1].partition("=")[2]))])


def test_the_flower_app_holds_no_code_and_names_what_exists():
    app = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["fab-include"] == ["LICENSE"]
    from fedser.deployment import app as module
    from fedser.deployment.flower import MANIFEST

    for kind, reference in app["components"].items():
        path, _, name = reference.partition(":")
        assert path == module.__name__ and type(getattr(module, name)).__name__.lower() == kind
    assert tomllib.loads(MANIFEST.format(version="0"))["tool"]["flwr"]["app"]["components"] == app["components"]


@pytest.mark.loopback
def test_local_ends_as_the_simulation_and_starts_a_killed_client_again(tmp_path):
    own = ["rounds=3", "model.width=2", "features.frames=64", "evaluation.every=3", "strategy.fraction_train=1.0"]
    own += ["attack=fgsm", "logger=none", "reuse=false"]
    words = ["-c", "2", "--root", EMODB, "--home", tmp_path / "home", *own, f"hydra.run.dir={tmp_path / 'run'}"]
    environment = os.environ | {"FEDSER_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    log = tmp_path / "log"
    with log.open("wb") as out:
        command = [str(DEPLOY / "local.sh"), *map(str, words)]
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)

    def client(speaker):
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().decode().split("\0")
                mine = f"\nPPid:\t{process.pid}\n" in (folder / "status").read_text()
                if mine and {"--speaker", speaker} <= set(command):
                    return int(folder.name)

    try:
        until(lambda: rounds(tmp_path / "run") >= 1, process)
        os.kill(client("14"), signal.SIGKILL)
        assert process.wait(120) == 0, log.read_text()
    finally:
        process.terminate()
        process.wait(60)
    assert "client '14' ended with 137 and is started again" in log.read_text()
    simulated = run(compose(["dataset=emodb", f"dataset.root={EMODB}", "simulation=serial", *own]), tmp_path / "alone")
    here, there = tmp_path / "run", simulated.folder
    assert (here / "history.jsonl").read_bytes() == (there / "history.jsonl").read_bytes()
    tables = [json.loads((folder / "summary.json").read_text()) for folder in (here, there)]
    found, known = ({key: value for key, value in table.items() if key.startswith("uar/")} for table in tables)
    assert found == known and found
