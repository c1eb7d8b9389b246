"""How many clients run at a time: by cores, GPUs and memory, of one machine or a cluster, with what a probe measured."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedser.errors import InputError
from fedser.runs import cache
from fedser.simulation import backend, probe, resources
from fedser.simulation.plan import DRIVER_BYTES, LEAST_STORE, SECONDS_PER_CLIENT, Capacity, survey
from fedser.simulation.resources import Machine

GIB = 2**30
PROBED = probe.Probe("cpu", peak_bytes=GIB, seconds_per_training_sample=0.01, seconds_to_start_per_sample=0)
ON_A_CARD = replace(PROBED, device="cuda", gpu_peak_bytes=3 * GIB, gpu_bytes=24 * GIB)

OF_CNN4 = ("width", "bn_momentum", "bn_eps", "norm")


def splits(*sizes):
    parts = ({"train": np.arange(size), "test": np.arange(max(size // 4, 1))} for size in sizes)
    return [SimpleNamespace(**each, validation=np.arange(0), seen=True) for each in parts]


def fails_elsewhere(classes):
    """A model that passes every check of its settings."""
    raise RuntimeError("no weights to be had")


@pytest.fixture
def plan(settings, monkeypatch):
    """plan(machines, *overrides, clients=…, …) → the plan for such machines; a list of them is a joined cluster."""

    def make(machines, *overrides, clients=68, reply_bytes=0, probed=None, free=None):
        capacity = Capacity(machines, free or Machine(1e3, 1e3)) if isinstance(machines, list) else Capacity([machines])
        monkeypatch.setattr("fedser.simulation.plan.survey", lambda wanted, reply_bytes: capacity)
        return backend.plan(settings(*overrides), clients, reply_bytes, probed)

    return make


class TestPlan:
    def test_serial_needs_no_ray(self, settings):
        plan = backend.plan(settings(), 68)
        assert plan.backend == "serial" and str(plan) == "68 clients · one at a time in this process"

    def test_as_many_as_fit(self, plan):
        here = Machine(8.0, 1.0)
        found = plan(here, "simulation=gpu", "simulation.num_gpus=0.25")
        assert (found.actors, found.num_gpus) == (4, 0.25)
        assert plan(here, "simulation=cpu").actors == 8
        assert plan(here, "simulation=cpu", "simulation.num_cpus=3").actors == 2
        assert plan(here, "simulation=cpu", "client.threads=4").actors == 2
        assert plan(here, "simulation=cpu", clients=3).actors == 3

    def test_a_fraction_fits_on_one_card(self, plan):
        here = Machine(64.0, 2.0)
        assert plan(here, "simulation=gpu", "simulation.num_gpus=0.6").actors == 2
        assert plan(here, "simulation=gpu", "simulation.num_gpus=0.3").actors == 6
        assert plan(here, "simulation=gpu", "simulation.num_gpus=2").actors == 1
        with pytest.raises(InputError, match="whole number"):
            plan(here, "simulation=gpu", "simulation.num_gpus=1.5")
        assert plan(here, "simulation=auto").actors == 8

    def test_auto_without_a_gpu_is_cpu(self, plan):
        assert plan(Machine(2.0, 0.0), "simulation=auto").num_gpus == 0
        assert plan(Machine(2.0, 1.0), "simulation=auto", "simulation.device=cpu").num_gpus == 0

    def test_what_cannot_fit_is_refused(self, plan):
        here = Machine(2.0, 0.0)
        with pytest.raises(InputError, match=r"simulation\.num_gpus=1 .* has 0 GPUs"):
            plan(here, "simulation=gpu", "simulation.num_gpus=1")
        with pytest.raises(InputError, match=r"simulation\.num_cpus=4 .* 2 CPU cores"):
            plan(here, "simulation=cpu", "simulation.num_cpus=4")
        with pytest.raises(InputError, match=r"simulation\.num_gpus=2 .* has 0 GPUs"):
            plan(here, "simulation=auto", "simulation.num_gpus=2")
        with pytest.raises(InputError, match="at most 2"):
            plan(Machine(8.0, 1.0), "simulation=gpu", "simulation.num_gpus=0.5", "simulation.actors=3")

    def test_more_actors_than_cores_is_a_warning(self, plan, caplog):
        assert plan(Machine(2.0, 0.0), "simulation=cpu", "simulation.actors=4").actors == 4
        assert "take turns" in caplog.text

    def test_more_threads_than_cores_is_a_warning_that_names_both_keys(self, plan, caplog):
        assert plan(Machine(4.0, 0.0), "simulation=cpu", "client.threads=2").actors == 2
        assert not caplog.text
        assert plan(Machine(4.0, 0.0), "simulation=cpu", "client.threads=2", "simulation.actors=3").actors == 3
        assert "take turns" in caplog.text
        assert "simulation.actors" in caplog.text and "client.threads" in caplog.text

    def test_how_it_reads(self, plan):
        here = Machine(2.0, 0.0)
        whole, tenth = plan(here, "simulation=cpu"), plan(here, "simulation=cpu", "strategy.fraction_train=0.1")
        assert str(whole) == "68 clients · 2 at a time on Ray, each with 1 CPU · 34 waves"
        assert str(tenth) == "68 clients, 7 a round · 2 at a time on Ray, each with 1 CPU · 4 waves"
        timed = plan(here, "simulation=cpu", clients=splits(*[20] * 68), probed=PROBED)
        assert str(timed).endswith("34 waves · about 14 s a round")
        for seconds, words in ((0.0444, "0.044 s"), (89, "89 s"), (150, "2.5 min"), (7200, "2 h")):
            assert f"about {words} a round" in str(replace(timed, seconds_per_round=seconds))


class TestCluster:
    """Places are counted machine by machine, as Flower does."""

    def test_places_are_the_sum_over_machines(self, plan):
        assert plan([Machine(3.0, 0.0), Machine(5.0, 0.0)], "simulation=cpu", "simulation.num_cpus=2").actors == 3
        cards = [Machine(8.0, 1.0), Machine(8.0, 2.0), Machine(8.0, 0.0)]
        assert plan(cards, "simulation=gpu", "simulation.num_gpus=0.6").actors == 3
        assert plan(cards, "simulation=gpu", "simulation.num_gpus=0.5", "simulation.actors=4").actors == 4

    def test_as_flower_counts(self, plan, monkeypatch):
        from flwr.simulation.ray_transport import ray_actor

        machines = [Machine(3.0, 1.0), Machine(6.0, 2.0), Machine(16.0, 0.0)]
        nodes = [{"Resources": {"CPU": m.cpus, "GPU": m.gpus}} for m in machines]
        monkeypatch.setattr(ray_actor.ray, "nodes", lambda: nodes)
        for cpus, gpus in ((1, 0.0), (2, 0.0), (0.3, 0.0), (0.5, 0.25), (2, 1), (1, 0.5), (4, 0.2)):
            chosen = f"simulation.num_cpus={cpus}", f"simulation.num_gpus={gpus}"
            found = plan(machines, "simulation=gpu", *chosen, clients=1000)
            assert found.actors == ray_actor.pool_size_from_resources({"num_cpus": cpus, "num_gpus": gpus})

    def test_what_no_machine_has_is_refused(self, plan):
        machines = [Machine(2.0, 1.0), Machine(4.0, 0.0)]
        with pytest.raises(InputError, match=r"num_cpus=5 .* no machine of the Ray cluster .* 4 CPU cores"):
            plan(machines, "simulation=cpu", "simulation.num_cpus=5")
        with pytest.raises(InputError, match="places for 6: lower simulation.actors"):
            plan(machines, "simulation=cpu", "simulation.actors=7")
        with pytest.raises(InputError, match="places for 0"):  # cores here, the card there
            plan(machines, "simulation=gpu", "simulation.num_cpus=4", "simulation.num_gpus=1")

    def test_what_others_hold_is_a_warning(self, plan, caplog):
        assert plan([Machine(4.0, 0.0)], "simulation=cpu", free=Machine(4.0, 0.0)).actors == 4 and not caplog.text
        assert plan([Machine(4.0, 0.0)], "simulation=cpu", free=Machine(1.0, 0.0)).actors == 4
        assert "1 of 4 CPUs" in caplog.text and "will wait" in caplog.text


class TestProbed:
    """What was measured decides how many fit into memory, and what a round takes."""

    def test_memory_bounds_the_clients(self, plan, caplog):
        here = Machine(64.0, 0.0, 6 * GIB)
        assert plan(here, "simulation=cpu", probed=PROBED).actors == 6
        assert "takes about 1.0 GiB" in caplog.text and "6 fit at a time, not 64" in caplog.text
        assert plan(here, "simulation=cpu", probed=PROBED, reply_bytes=GIB // 2).actors == 3
        assert plan([here, here], "simulation=cpu", probed=PROBED).actors == 12
        caplog.clear()
        assert plan(here, "simulation=cpu", "simulation.actors=8", probed=PROBED).actors == 8
        assert "6 fit at a time, not 8" in caplog.text
        caplog.clear()
        assert plan(here, "simulation=cpu", clients=5, probed=PROBED).actors == 5 and not caplog.text

    def test_not_even_one_is_a_warning_that_says_what_to_lower(self, plan, caplog):
        assert plan(Machine(64.0, 0.0, GIB // 2), "simulation=cpu", probed=PROBED).actors == 1
        assert "takes about 1.0 GiB of memory and 0.5 GiB are free" in caplog.text
        for key in ("client.batch_size", "evaluation.batch_size", "model.width"):
            assert key in caplog.text

    def test_a_card_is_shared_by_as_many_as_its_memory_holds(self, plan):
        here = Machine(64.0, 2.0)
        found = plan(here, "simulation=auto", probed=ON_A_CARD)
        assert (found.actors, found.num_gpus) == (14, 0.1428)  # 0.9 · 24 / 3 is 7 on each, and 7 · 0.1429 > 1
        assert plan(here, "simulation=auto", clients=6, probed=ON_A_CARD).num_gpus == 0.3333  # three on each will do
        assert plan(Machine(4.0, 2.0), "simulation=auto", probed=ON_A_CARD).num_gpus == 0.5
        tight = replace(ON_A_CARD, gpu_peak_bytes=30 * GIB)
        assert plan(here, "simulation=auto", probed=tight).num_gpus == 1
        assert plan(here, "simulation=auto").num_gpus == 0.25

    def test_a_crowded_card_is_a_warning(self, plan, caplog):
        plan(Machine(64.0, 1.0), "simulation=gpu", "simulation.num_gpus=0.125", probed=ON_A_CARD)
        assert "3.0 GiB of GPU memory and a card has 24.0 GiB: 7 fit at a time, not 8" in caplog.text
        assert "simulation.num_gpus" in caplog.text

    def test_what_was_measured_elsewhere_is_not_used(self, plan):
        found = plan(Machine(4.0, 1.0, 4 * GIB), "simulation=gpu", clients=splits(5, 5), probed=PROBED)
        assert found.seconds_per_round is None and found.peak_bytes is None

    def test_seconds_per_round(self, plan):
        def seconds(cpus, *overrides, sizes=(20, 40, 60), probed=PROBED):
            overrides = ["simulation=cpu", "client.epochs=2", *overrides]
            here = Machine(cpus, 0.0)
            return plan(here, *overrides, clients=splits(*sizes), probed=probed).seconds_per_round

        assert seconds(1.0, "defence=none") == pytest.approx(120 * 2 * 0.01 + 3 * SECONDS_PER_CLIENT)
        assert seconds(2.0, "defence=none") == pytest.approx(seconds(1.0, "defence=none") / 2)
        assert seconds(2.0, "defence=none", "simulation.actors=3") == seconds(2.0, "defence=none")  # they take turns
        assert seconds(3.0, "defence=none") == pytest.approx(60 * 2 * 0.01 + SECONDS_PER_CLIENT)  # the longest client
        adversarial = 120 * (2 * 0.01 + 0.05) + 3 * SECONDS_PER_CLIENT  # once a round, whatever the epochs
        started = replace(PROBED, seconds_to_start_per_sample=0.05)
        assert seconds(1.0, "defence=two_stage", "attack=fgsm", probed=started) == pytest.approx(adversarial)
        sampled = seconds(1.0, "defence=none", "strategy.fraction_train=0.5", sizes=(20, 20, 20, 20))
        assert sampled == pytest.approx(40 * 2 * 0.01 + 2 * SECONDS_PER_CLIENT)


class TestMachine:
    def test_this_one(self):
        here = resources.this_machine()
        assert 1 <= here.cpus <= os.cpu_count() and here.memory > 0 and here.gpus >= 0
        assert resources.this_machine(3).gpus == 3
        assert resources.processor() and isinstance(resources.cards(), list)

    def test_own_peak_stays_when_memory_is_given_back(self):
        before = resources.own_peak()
        np.ones(30_000_000)
        assert resources.own_peak() > before or before > 240e6

    @pytest.fixture
    def root(self, tmp_path):
        """A machine's files: root(path=content, …) writes them; 8 GiB are available at first."""

        def write(**files):
            for path, content in {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8388608 kB\n", **files}.items():
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).write_text(str(content))
            return tmp_path

        return write

    def test_without_control_groups(self, root):
        assert resources.free_memory(root()) == 8 * GIB
        assert resources.cores(root()) == len(os.sched_getaffinity(0))

    def test_control_groups_v2(self, root):
        group, around = "sys/fs/cgroup/a/b/", "sys/fs/cgroup/a/"
        files = {
            "proc/self/cgroup": "0::/a/b\n",
            f"{group}memory.max": "max\n",
            f"{around}memory.max": 4 * GIB,
            f"{around}memory.current": 3 * GIB,
            f"{around}memory.stat": f"anon 5\ninactive_file {GIB}\n",
            f"{group}cpu.max": "50000 100000\n",
            f"{around}cpu.max": "max 100000\n",
        }
        assert resources.free_memory(root(**files)) == 2 * GIB
        assert resources.cores(root(**files)) == 1
        assert resources.free_memory(root(**files | {"proc/meminfo": "MemAvailable: 1024 kB\n"})) == 2**20

    def test_control_groups_v1(self, root):
        group = "sys/fs/cgroup/memory/docker/x/"
        files = {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n",
            f"{group}memory.limit_in_bytes": 4 * GIB,
            f"{group}memory.usage_in_bytes": GIB,
            f"{group}memory.stat": "inactive_file 1\ntotal_inactive_file 0\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 2**63 - 4096,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": GIB,
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
            "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000",
        }
        assert resources.free_memory(root(**files)) == 3 * GIB
        assert resources.cores(root(**files)) == min(2, len(os.sched_getaffinity(0)))

    def test_cards_are_named_by_the_drivers_files(self, root):
        files = {"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA H200\nIRQ: 5\n"}
        assert resources.cards(root(**files)) == ["NVIDIA H200"]
        assert resources.processor(root(**{"proc/cpuinfo": "x: 1\nmodel name\t: AMD EPYC\n"})) == "AMD EPYC"

    def test_the_driver_and_the_store_are_left_out(self, settings):
        wanted = settings("simulation=cpu").simulation
        (here,) = survey(wanted, reply_bytes=GIB).machines
        assert 0 <= here.memory <= max(resources.free_memory() - DRIVER_BYTES - LEAST_STORE - 3 * GIB, 0)


def test_what_is_compiled_at_first_is_no_part_of_a_rounds_time():
    client = SimpleNamespace(device=torch.device("cpu"))
    times = iter([2 * probe.QUICK, 0.0])
    assert probe._Client._seconds(client, lambda: time.sleep(next(times))) < probe.QUICK
    assert not list(times)


class TestProbe:
    @pytest.fixture
    def probed(self, settings, tmp_path, monkeypatch):
        """probed(*overrides) → the probe of the small experiment with the defaults of simulation=auto, its own cache."""
        from fedser.config.protocol import Protocols

        monkeypatch.setenv("FEDSER_CACHE", str(tmp_path))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

        def run(*overrides):
            chosen = settings("simulation=auto", "features.frames=100", *overrides)
            return probe.probe(chosen, 7, splits(30, 12), Protocols.of(chosen).attacks, chosen.features.shape)

        return run

    def test_measures_once(self, probed, monkeypatch):
        found = probed("defence=two_stage")
        assert found.device == "cpu" and 100 * 2**20 < found.peak_bytes < 4 * GIB
        assert found.seconds_per_training_sample > 0 and found.seconds_to_start_per_sample > 0
        (kept,) = cache.folder("probes").iterdir()
        assert json.loads((kept / "probe.json").read_text())["peak_bytes"] == found.peak_bytes
        monkeypatch.setattr(sys, "executable", "/nowhere")  # no second process
        assert probed("defence=two_stage") == found
        assert probed("defence=two_stage", "seed=5", "strategy=krum", "rounds=9") == found

    def test_a_failing_probe_is_a_warning_with_the_reason(self, probed, caplog):
        assert probed(f"model._target_={__name__}.fails_elsewhere", *(f"~model.{key}" for key in OF_CNN4)) is None
        assert "cores alone" in caplog.text and "no weights to be had" in caplog.text
        assert not list(cache.folder("probes").glob("*"))

    def test_only_where_it_is_wanted(self, probed, monkeypatch):
        monkeypatch.setattr(sys, "executable", "/nowhere")
        assert probed("simulation.probe=false") is None
        assert probed("simulation.backend=serial") is None

    def test_a_probe_that_runs_out_of_memory_is_a_warning(self, tmp_path):
        """With 6 GiB to address there is no room for 64 channels of 30 samples with 20,000 frames."""
        program = f"""if True:
            import resource, sys
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            from conftest import SMALL
            from test_simulation import splits
            from fedser.config.compose import compose
            from fedser.config.validation import validate
            from fedser.simulation.probe import probe
            settings = validate(compose([*SMALL, "simulation=auto", "features.frames=20000",
                                       "client.batch_size=30", "model.width=64"]))
            resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
            print("found", probe(settings, 7, splits(30), {{}}, settings.features.shape))
        """
        environment = os.environ | {"FEDSER_CACHE": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100
        )
        assert "found None" in done.stdout, done.stderr
        assert "cores alone" in done.stderr and "memory" in done.stderr


def test_the_summary_tells_the_plan(small):
    result = small("defence=none", "attack=none", "rounds=1")
    assert result.metrics["plan"] == "2 clients · one at a time in this process"
