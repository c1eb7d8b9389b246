"""What it costs to move a model to the clients and back: fedser against stock Flower.

    python benchmarks/transport.py [--json PATH] [--clients 68] [--rounds 5] [--actors 2] [--only stock|fedser]

Clients that do nothing but load VGG-15's weights (59 MB) into their model and send the model back. Stock:
`FedAvg.start`, the state dict in an `ArrayRecord`, as Flower's quickstart does it. fedser: its own round over the same
stock strategy. Each side runs in a process of its own, on the same number of Ray actors; seconds per round are the
median of rounds 2 to the last, messages and aggregation together; memory is the peak of the driver, shared pages
included.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CLASSES = 7


def kept(make):
    """What `make` returned at this worker's first client. What is defined here reaches workers anew each time."""
    import builtins

    if not hasattr(builtins, "kept_by_benchmark"):
        builtins.kept_by_benchmark = make()
    return builtins.kept_by_benchmark


def stock(clients, rounds, actors):
    """Seconds per round of Flower's own loop."""
    import ray
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client, server, moments = ClientApp(), ServerApp(), []

    @client.train()
    def train(message, context):
        import torch  # noqa: F401  (to_torch_state_dict needs it imported)

        from fedser.models.vgg15 import VGG15

        model = kept(lambda: VGG15(CLASSES))
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        reply = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": 100})}
        return Message(RecordDict(reply), reply_to=message)

    @server.main()
    def main(grid, context):
        from fedser.models.vgg15 import VGG15

        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        moments.append(time.perf_counter())
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(VGG15(CLASSES).state_dict()),
            num_rounds=rounds,
            evaluate_fn=lambda round, arrays: moments.append(time.perf_counter()) if round else None,
        )

    with tempfile.TemporaryDirectory(prefix="bench-ray-") as scratch:
        ray.init(num_cpus=actors, include_dashboard=False, log_to_driver=False, _temp_dir=scratch)
        resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        run_simulation(server, client, num_supernodes=clients, backend_config=resources)
    return [after - before for before, after in itertools.pairwise(moments)]


def fedser(clients, rounds, actors):
    """Seconds per round of fedser's."""
    from fedser.federation import transport
    from fedser.federation.server_app import Federation
    from fedser.models.vgg15 import VGG15
    from fedser.simulation import backend

    seconds = []
    stop = threading.Event()

    def serve(grid):
        seconds.extend(timed_rounds(Federation(grid, clients, {}, stop, window=plan.window), clients, rounds))

    size = sum(array.nbytes for array in transport.pack(VGG15(CLASSES)).values())
    plan = backend.Plan("ray", actors, 1, 0.0, 0.0, reply_bytes=size)
    backend.simulate(serve, idle_app(), clients, plan, stop)
    return seconds


def timed_rounds(federation, clients, rounds):
    """Seconds of each round of VGG-15 with these clients, who are there."""
    from flwr.serverapp.strategy import FedAvg

    from fedser.federation import transport
    from fedser.models.vgg15 import VGG15

    seconds = []
    federation.handshake()
    strategy = FedAvg(min_train_nodes=clients, min_available_nodes=clients, arrayrecord_key=transport.PARAMETERS)
    weights = transport.pack(VGG15(CLASSES))
    for round in range(1, rounds + 1):
        start = time.perf_counter()
        weights, *_ = federation.train(strategy, round, weights, list(range(clients)))
        seconds.append(time.perf_counter() - start)
    return seconds


def idle_app():
    """Clients that load the weights and send them back."""
    from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.query()
    def query(message, context):
        numbers = {"num-examples": 100, "count": 1, "total": [0.0], "squares": [0.0]}
        name = ConfigRecord({"name": f"{context.node_config['partition-id']:05d}"})
        return Message(RecordDict({"metrics": MetricRecord(numbers), "config": name}), reply_to=message)

    @app.train()
    def train(message, context):
        from fedser.federation import transport
        from fedser.models.vgg15 import VGG15

        model = kept(lambda: transport.Packed(VGG15(CLASSES)))
        model.load(transport.from_records(message.content))
        metrics = MetricRecord({"num-examples": 100, "loss": 1.0})
        return Message(RecordDict(transport.to_records(model.arrays()) | {"metrics": metrics}), reply_to=message)

    return app


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--clients", type=int, default=68)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--only", choices=["stock", "fedser"], help="one side, in this process")
    arguments = parser.parse_args()
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

    if arguments.only:
        side = {"stock": stock, "fedser": fedser}[arguments.only]
        seconds = side(arguments.clients, arguments.rounds, arguments.actors)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        figures = {
            "seconds_per_round": statistics.median(seconds[1:]),
            "peak_rss_bytes": peak,
            "rounds": [round(value, 3) for value in seconds],
        }
        if arguments.json:
            arguments.json.write_text(json.dumps(figures))
        return

    report = {"clients": arguments.clients, "actors": arguments.actors}
    for side in ("stock", "fedser"):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "figures.json")
            options = ["--clients", arguments.clients, "--rounds", arguments.rounds, "--actors", arguments.actors]
            command = [sys.executable, __file__, "--only", side, "--json", out, *options]
            subprocess.run([str(word) for word in command], check=True, capture_output=True)
            report[side] = json.loads(out.read_text())
    report["ratio"] = report["fedser"]["seconds_per_round"] / report["stock"]["seconds_per_round"]
    print(f"{arguments.clients} clients that do nothing, VGG-15, {arguments.actors} actors\n")
    print(f"{'':10}{'s a round':>12}{'driver, peak':>16}   by round")
    for side in ("stock", "fedser"):
        row = report[side]
        rounds = " ".join(f"{value:.2f}" for value in row["rounds"])
        print(f"{side:10}{row['seconds_per_round']:11.2f}s{row['peak_rss_bytes'] / 1e9:13.2f} GB   {rounds}")
    print(f"\nfedser takes {report['ratio']:.1%} of stock's time (goal: 10 %)")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
