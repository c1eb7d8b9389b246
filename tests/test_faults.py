"""What goes wrong on the clients, for real: workers killed, hanging, out of time, raising."""

import json

import pytest

from fedser.errors import RunError

COMMON = ["partition=iid", "partition.clients=2", "attack=fgsm", "defence=two_stage", "client.epochs=1", "reuse=false",
          "client.optimizer_state=persist", "features.frames=32", "evaluation.draws=2"]  # fmt: skip


@pytest.fixture
def faulty(small, tmp_path):
    """faulty(fault, *overrides, at=…): the small run with a fault on one client (at=0: on each)."""

    def go(fault, *overrides, at=4, **options):
        marks = tmp_path / f"marks-{fault}"
        target = ["client.optimizer._target_=faults.adam", f"+client.optimizer.marks={marks}",
                  f"+client.optimizer.at={at}", f"+client.optimizer.fault={fault}"]  # fmt: skip
        return small(*COMMON, *target, *overrides, **options)

    return go


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    from conftest import SMALL

    from fedser import compose, run

    return run(compose([*SMALL, *COMMON]), tmp_path_factory.mktemp("undisturbed") / "run")


def same(one, other):
    # Not model.safetensors: its metadata say by which optimizer it was made, here one with a fault.
    weights = [f"weights/{file.name}" for file in (one.folder / "weights").iterdir()]
    for name in ("history.jsonl", *weights, "evaluation.json", "utterances.csv", "example.npz"):
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), name


@pytest.mark.ray
@pytest.mark.parametrize("fault", ["die", "deaf"])
def test_a_worker_that_dies_or_is_ended_is_replaced_and_its_client_done_again(
    callers_ray, faulty, undisturbed, tmp_path, fault
):
    # The one that is deaf is waited for that long; the healthy ones must be done by then, also beside other load.
    timeout = 120 if fault == "die" else 15
    result = faulty(fault, "simulation=cpu", "simulation.actors=2", f"client.timeout={timeout}")
    same(undisturbed, result)
    assert (tmp_path / f"marks-{fault}").stat().st_size == 6  # 1 to check, 2 + 2 clients, 1 done again


@pytest.mark.ray
def test_a_client_that_always_kills_its_worker_ends_in_an_error(callers_ray, faulty, tmp_path):
    with pytest.raises(RunError, match=r"client 'client-[01]': its worker failed or died"):
        faulty("die", "simulation=cpu", at=0)
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"


@pytest.mark.ray
def test_a_failing_client_does_not_wait_for_a_hanging_one(callers_ray, small, tmp_path):
    """The other client would hang for an hour."""
    target = [
        "client.optimizer._target_=faults.first_fails_second_hangs",
        f"+client.optimizer.marks={tmp_path / 'marks'}",
    ]
    with pytest.raises(RunError, match=r"client 'client-[01]': ValueError: as asked"):
        small(*COMMON, *target, "simulation=cpu", "simulation.actors=2")


@pytest.mark.parametrize("simulation", ["serial", pytest.param("cpu", marks=pytest.mark.ray)])
def test_a_hanging_client_runs_out_of_time(request, faulty, simulation):
    if simulation == "cpu":
        request.getfixturevalue("callers_ray")
    with pytest.raises(RunError, match=r"client 'client-[01]': TimeoutError: no answer within client\.timeout=3 s"):
        faulty("hang", f"simulation={simulation}", "client.timeout=3")


def test_going_on_without_one_that_is_out_of_time(faulty, tmp_path):
    result = faulty("hang", "client.timeout=3", "simulation.min_reply_fraction=0.5")
    assert [row.get("train/missing") for row in result.history] == [None, ["client-0"]]
    assert result.history[1]["train/clients"] == 1


def test_a_fast_client_is_not_disturbed(faulty, undisturbed):
    same(undisturbed, faulty("hang", "client.timeout=100", at=99))


def test_out_of_gpu_memory_says_what_to_set(faulty):
    with pytest.raises(
        RunError, match=r"client 'client-[01]': OutOfMemoryError.*1 clients on the card.*simulation\.num_gpus"
    ):
        faulty("oom")
