"""Whether more clients cost more each: one round of fedser with 68, 272 and 1,088 clients that do nothing.

    python benchmarks/scale.py [--json PATH] [--clients 68 272 1088] [--rounds 4] [--actors 2]

As benchmarks/transport.py: each client loads VGG-15's weights (59 MB) and sends them back. Goals: the time per client
the same within 20 %, the driver's memory flat. Each number of clients runs in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def measure(clients, rounds, actors):
    """Figures of fedser's side of the transport benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "figures.json")
        script = Path(__file__).with_name("transport.py")
        command = [sys.executable, script, "--only", "fedser", "--json", out, "--clients", clients]
        command += ["--rounds", rounds, "--actors", actors]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
        return json.loads(out.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--clients", type=int, nargs="+", default=[68, 272, 1088])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--actors", type=int, default=2)
    arguments = parser.parse_args()

    print(f"{'clients':>8}{'s a round':>11}{'ms a client':>13}{'driver, peak':>14}")
    rows = []
    for clients in arguments.clients:
        figures = measure(clients, arguments.rounds, arguments.actors)
        seconds, peak = figures["seconds_per_round"], figures["peak_rss_bytes"]
        rows.append({"clients": clients, "seconds_per_round": seconds, "peak_rss_bytes": peak})
        rows[-1]["seconds_per_client"] = seconds / clients
        print(f"{clients:8d}{seconds:10.2f}s{1000 * seconds / clients:13.1f}{peak / 1e9:11.2f} GB", flush=True)
    each = [row["seconds_per_client"] for row in rows]
    report = {"rows": rows, "time_per_client_spread": max(each) / min(each) - 1}
    report["memory_growth"] = rows[-1]["peak_rss_bytes"] / rows[0]["peak_rss_bytes"] - 1
    print(f"\ntime per client within {report['time_per_client_spread']:.0%} (goal: 20 %), ", end="")
    print(f"memory of the last against the first {report['memory_growth']:+.0%}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
