"""A deployment on loopback: a SuperLink and clients as processes, over TLS, each with its own key and speaker."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from processes import until

from fedser.data.corpora.emodb import EMOTIONS, MALE

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}
CLIENT = "from fedser.__main__ import client; client()"
SUPERLINK = "from flwr.superlink.cli import flower_superlink as run; run()"
FLWR = "from flwr.cli.app import app; app()"


class Place:
    """`folder` holds keys, logs and the speakers' folders; `modules` are extensions that clients allow."""

    def __init__(self, folder: Path, clips: Path, modules: Path):
        self.folder, self.modules, self.processes = folder, modules, {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.speakers = sorted({file.name[:2] for file in clips.rglob("*.flac")})
        for speaker in self.speakers:
            (folder / speaker).mkdir(parents=True)
            for file in clips.rglob(f"{speaker}*.flac"):
                shutil.copy(file, folder / speaker)
        self.list(self.speakers[-1], self.speakers[-1])
        self._certificates()

    def _certificates(self):
        def openssl(*words):
            subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

        elliptic = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes"]
        for name in ("ca", "other"):  # one that the SuperLink has, and one that it has not
            subject = ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"]
            openssl("req", "-x509", *elliptic, "-days", "2", *subject)
        openssl("req", *elliptic, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
        (self.folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        signer = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
        openssl("x509", "-req", "-in", "server.csr", *signer, "-days", "2", "-out", "server.pem", "-extfile", "san")
        for name in (*self.speakers, "late", "stranger", "old", "unknown"):
            words = ["-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", self.folder / f"{name}.node"]
            subprocess.run(["ssh-keygen", *words], check=True)

    def list(self, speaker: str, name: str):
        """A manifest of a speaker's clips, who is called `name` in it. A client of this name is one by its manifest."""
        rows = [
            f"{speaker}/{file.name},{name},{EMOTIONS[file.name[5]]},{'m' if speaker in MALE else 'f'}"
            for file in sorted((self.folder / speaker).iterdir())
        ]
        (self.folder / f"{name}.csv").write_text("\n".join(["path,speaker,emotion,sex", *rows, ""]))

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def start(self, name: str, code: str, *arguments: str) -> subprocess.Popen:
        """A process whose log is NAME.log; one of this name that ran before is gone."""
        home = self.folder / f"home-{name}"
        home.mkdir(exist_ok=True)
        paths = os.pathsep.join(filter(None, sys.path))
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *map(str, arguments)], cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | QUIET | {"HOME": str(home), "FLWR_HOME": str(home / "flwr"), "FEDSER_CACHE": str(home / "cache"), "PYTHONPATH": paths},
            )  # fmt: skip
        self.processes[name] = process
        return process

    def superlink(self):
        """Starts it, and registers the speakers' keys."""
        secured = ["--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key", "--ssl-ca-certfile", "ca.pem"]
        secured += ["--enable-supernode-auth", "--isolation", "process", "--disable-runtime-dependency-installation"]
        started = "Application startup complete"
        before = self.log("superlink").count(started)
        process = self.start("superlink", SUPERLINK, "--host", "127.0.0.1", "--port", self.port, *secured)
        until(lambda: self.log("superlink").count(started) > before, process)
        home = self.folder / "home-flwr" / "flwr"
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink.local]\naddress = "{self.address}"\nroot-certificates = "{self.ca}"\n'
        )
        for speaker in self.speakers:
            self.register(speaker)

    def register(self, key: str):
        done = self.start("flwr", FLWR, "supernode", "register", self.folder / f"{key}.node.pub", "local")
        assert done.wait(60) == 0, self.log("flwr")

    def client(
        self, speaker: str, key: str | None = None, ca: str = "ca.pem", name: str | None = None, code: str = CLIENT
    ) -> subprocess.Popen:
        listed = (self.folder / f"{speaker}.csv").exists()
        words = (
            ["--dataset", "manifest", "--root", f"{speaker}.csv"]
            if listed
            else ["--dataset", "emodb", "--root", speaker]
        )
        words += ["--speaker", speaker, "--superlink", self.address, "--ca", ca]
        words += ["--key", f"{key or speaker}.node", "--poll", "0.3", "--modules", self.modules]
        return self.start(name or speaker, code, *words)

    def log(self, name: str) -> str:
        file = self.folder / f"{name}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def end(self, name: str, how: int = signal.SIGTERM) -> int:
        """Ends a process, and waits for it; its exit code."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(how)
        return process.wait(60)

    def close(self):
        for name in sorted(self.processes, key=lambda name: name == "superlink"):
            self.end(name)
