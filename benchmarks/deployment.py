"""What real clients cost: a message to a warm client, and VGG-15 to three of them, beside a bare Flower app.

    python benchmarks/deployment.py [--json PATH] [--clients 3] [--rounds 3] [--messages 10] [--only warm|fedser|bare]

SuperLink, SuperNodes and clients are processes on this machine, without TLS. *warm*: queries without arrays, one after
the other, to one client; of each the round trip, and what our process takes from claiming the message to having pushed
the reply, the handler left out, by the clock and of the CPU: what is not of Flower's own polling. *fedser*: a round of
training with clients that load VGG-15's weights (59 MB) and send them back, through the grid and the federation of a
run. *bare*: a Flower app that sends the same arrays to stock SuperNodes (`flwr run`), adds the replies up, and does
nothing else. Medians of rounds 2 to the last; memory is the peak of the SuperLink's process, and of the largest
SuperNode.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
APP = """
[project]
name = "bare"
version = "0.1.0"
[tool.flwr.app]
publisher = "bare"
[tool.flwr.app.components]
serverapp = "bare:server"
clientapp = "bare:client"
[tool.flwr.app.config]
clients = 3
rounds = 3
sizes = ""
"""
BARE = """
import json, time
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server = ServerApp()
client = ClientApp()

@client.train()
def train(message, context):
    arrays = {key: record[key].numpy() for key, record in message.content.array_records.items()}
    return Message(packed(arrays), reply_to=message)

def packed(arrays):
    content = RecordDict()
    for key, array in arrays.items():
        content[key] = ArrayRecord()
        content[key][key] = Array(array)
    return content

@server.main()
def main(grid, context):
    config = context.run_config
    arrays = {k: np.random.default_rng(0).standard_normal(n).astype(np.float32) for k, n in json.loads(config["sizes"])}
    while len(nodes := list(grid.get_node_ids())) < config["clients"]:
        time.sleep(0.1)
    for round in range(config["rounds"]):
        start = time.perf_counter()
        content = packed(arrays)
        waiting = set(grid.push_messages([Message(content, node, "train", group_id=str(round)) for node in nodes]))
        sums = {key: np.zeros_like(array) for key, array in arrays.items()}
        while waiting:
            for reply in grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                for key in sums:
                    sums[key] += reply.content[key][key].numpy()
            time.sleep(0.1)
        arrays = {key: total / len(nodes) for key, total in sums.items()}
        print("SECONDS", time.perf_counter() - start, flush=True)
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def process(command, log, **environment):
    """A process, which gets SIGINT in the end."""
    with Path(log).open("w") as out:
        started = subprocess.Popen(
            [str(word) for word in command], stdout=out, stderr=out, env=os.environ | QUIET | environment
        )
    try:
        yield started
    finally:
        started.send_signal(2)
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            started.kill()


def flower(name):
    """The command of that name, of this Python's environment."""
    return Path(sys.executable).with_name(name)


@contextlib.contextmanager
def superlink(folder, *more):
    """A SuperLink → its address, and its process."""
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")
    command = [flower("flower-superlink"), "--insecure", "--host", host, "--port", port, *more]
    command += ["--disable-runtime-dependency-installation"]
    with process(command, folder / "superlink.log", FLWR_HOME=str(folder / "superlink")) as started:
        while True:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                break
            time.sleep(0.1)
        yield address, started


def peak(pid):
    """The most memory that a process had, in bytes."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def children(pid):
    """The ids of a process's children."""
    return [
        int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()
    ]


def worker(address, name):
    """A client that does nothing, with everything around it that `fedser-client` has."""
    from flwr.app import ConfigRecord, Message, RecordDict
    from transport import idle_app

    from fedser.deployment import client, flower, grid

    idle, inner = idle_app(), flower._answer

    def app(message, context):
        if message.metadata.message_type == f"query.{grid.ROSTER}":
            return Message(RecordDict({"config": ConfigRecord({"name": name})}), reply_to=message)
        context.node_config["partition-id"] = int(message.content[grid.TO]["number"])
        return idle(message, context)

    def timed(address, token, app):
        spent = []

        def within(message, context):
            start = time.perf_counter(), time.process_time()
            reply = app(message, context)
            spent.extend([time.perf_counter() - start[0], time.process_time() - start[1]])
            return reply

        start = time.perf_counter(), time.process_time()
        inner(address, token, within)
        clock, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        print("OVERHEAD", clock - spent[0], cpu - spent[1], flush=True)

    flower._answer = timed
    with client.SuperNode(flower.Link(address), None, poll=0.5) as beside:
        flower.client_app(beside.address, app, beside.stop)


@contextlib.contextmanager
def deployed(clients, folder):
    """The run's grid with its clients → it, the SuperLink's process and the clients' processes."""
    from flwr.app import ConfigRecord, RecordDict

    from fedser.deployment import flower, grid

    with contextlib.ExitStack() as stack:
        address, link = stack.enter_context(superlink(folder, "--isolation", "process"))
        started = []
        for number in range(clients):
            command = [sys.executable, __file__, "--worker", address, f"{number:03d}"]
            more = {"FLWR_HOME": str(folder / str(number))}
            started.append(stack.enter_context(process(command, folder / f"{number:03d}.log", **more)))
        behind = stack.enter_context(flower.server_app(flower.Link(address)))
        greeting = RecordDict({"config": ConfigRecord({})})
        found = grid.Deployed(behind, greeting, 600.0, threading.Event())
        found.gather(clients, 300)
        yield found, link, started


def warm(messages):
    """Seconds of round trips, and of what is ours in them."""
    from flwr.app import ConfigRecord, Message, RecordDict

    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        with deployed(1, Path(folder)) as (grid, *_):
            for _ in range(messages):
                start = time.perf_counter()
                grid.send_and_receive([Message(RecordDict({"config": ConfigRecord({})}), 1, "query")])
                seconds.append(time.perf_counter() - start)
        said = (Path(folder) / "000.log").read_text().splitlines()
    said = [line.split()[1:] for line in said if line.startswith("OVERHEAD")][1:]  # the first is the greeting
    clock, cpu = ([float(each[at]) for each in said] for at in (0, 1))
    ours = {"ours": statistics.median(clock), "ours_most": max(clock), "ours_cpu": statistics.median(cpu)}
    return {"round_trip": statistics.median(seconds)} | ours


def fedser(clients, rounds):
    """Seconds per round of fedser's."""
    from transport import timed_rounds

    from fedser.federation.server_app import Federation

    with tempfile.TemporaryDirectory() as folder, deployed(clients, Path(folder)) as (grid, link, started):
        seconds = timed_rounds(Federation(grid, clients, {}, threading.Event(), window=clients), clients, rounds)
        nodes = [child for each in started for child in children(each.pid)]
        return figures(seconds, link.pid, nodes)


def bare(clients, rounds):
    """Seconds per round of a bare app."""
    from transport import CLASSES

    from fedser.federation import transport
    from fedser.models.vgg15 import VGG15

    sizes = json.dumps([[key, array.size] for key, array in transport.pack(VGG15(CLASSES)).items()])
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = Path(place)
        address, link = stack.enter_context(superlink(folder))
        nodes = []
        for number in range(clients):
            command = [flower("flower-supernode"), "--insecure", "--superlink", address, "--port", free_port()]
            more = {"FLWR_HOME": str(folder / str(number))}
            nodes.append(stack.enter_context(process(command, folder / f"{number}.log", **more)))
        for name in ("operator", "app"):
            (folder / name).mkdir()
        connection = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{address}"\ninsecure = true\n'
        (folder / "operator" / "config.toml").write_text(connection)
        (folder / "app" / "pyproject.toml").write_text(APP)
        (folder / "app" / "bare.py").write_text(BARE)
        config = f"clients={clients} rounds={rounds} sizes='{sizes}'"
        command = [flower("flwr"), "run", folder / "app", "here", "--stream", "--run-config", config]
        environment = os.environ | QUIET | {"FLWR_HOME": str(folder / "operator")}
        told = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
        seconds = [float(line.split()[1]) for line in told.stdout.splitlines() if line.startswith("SECONDS")]
        if len(seconds) < rounds:
            sys.exit(told.stdout + told.stderr)
        return figures(seconds, link.pid, [node.pid for node in nodes])


def figures(seconds, link, nodes):
    return {
        "seconds_per_round": statistics.median(seconds[1:] or seconds),
        "rounds": [round(each, 2) for each in seconds],
        "superlink_peak_bytes": peak(link),
        "supernode_peak_bytes": max(map(peak, nodes)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=10)
    parser.add_argument("--only", choices=["warm", "fedser", "bare"])
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ |= QUIET
    if arguments.worker:
        with contextlib.suppress(KeyboardInterrupt):
            worker(*arguments.worker)
        return

    report = {"load": os.getloadavg()[0]}
    if arguments.only in (None, "warm"):
        report["warm"] = found = warm(arguments.messages)
        print(
            f"a message to a warm client: {found['round_trip']:.2f} s, of which ours {found['ours']:.3f} s (at most ",
            end="",
        )
        print(f"{found['ours_most']:.3f} s; {found['ours_cpu']:.3f} s of CPU; goal: 0.3 s)", flush=True)
    for side, measure in (("fedser", fedser), ("bare", bare)):
        if arguments.only in (None, side):
            report[side] = found = measure(arguments.clients, arguments.rounds)
            print(f"{side:8}{found['seconds_per_round']:7.2f} s a round {found['rounds']}", end="")
            print(f", SuperLink {found['superlink_peak_bytes'] / 1e9:.2f} GB", end="")
            print(f", a SuperNode {found['supernode_peak_bytes'] / 1e9:.2f} GB", flush=True)
    if "fedser" in report and "bare" in report:
        report["ratio"] = report["fedser"]["seconds_per_round"] / report["bare"]["seconds_per_round"]
        print(f"\nfedser takes {report['ratio']:.2f} × the bare app's time (goal: 1.2)")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
