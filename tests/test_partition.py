"""Who holds which utterances."""

import numpy as np
import pandas as pd
import pytest

from fedser.config.compose import compose
from fedser.config.paths import directory
from fedser.config.validation import validate
from fedser.data.partition import partition, warn_of_gaps
from fedser.errors import InputError


def table(counts: dict[str, int], classes: int = 4) -> pd.DataFrame:
    clients = np.repeat(list(counts), list(counts.values()))
    return pd.DataFrame({"client": clients, "label": np.arange(len(clients)) % classes})


def splits_of(frame, *overrides, seed=0):
    return partition(frame, validate(compose(overrides)).partition, seed)


def demos() -> pd.DataFrame:
    file = directory().parent / "fedser" / "data" / "corpora" / "demos_counts.csv"
    if not file.exists():  # installed: conf is inside the package
        file = directory().parent / "data" / "corpora" / "demos_counts.csv"
    counts = pd.read_csv(file, dtype={"speaker": str}).drop(columns=["neutral", "sex"]).set_index("speaker")
    rows = [(speaker, label) for speaker, row in counts.iterrows() for label, n in enumerate(row) for _ in range(n)]
    return pd.DataFrame(rows, columns=["client", "label"])


def test_speaker_split_of_demos_is_the_papers():
    splits = splits_of(demos())
    assert len(splits) == 68
    assert sum(len(split.train) for split in splits) == 7491
    assert sum(len(split.test) for split in splits) == 1874
    trained = [len(split.train) for split in splits]
    assert (min(trained), int(np.median(trained)), max(trained)) == (80, 107, 156)


@pytest.mark.parametrize("override", ["partition=speaker", "partition=iid", "partition=dirichlet", "partition=shards"])
def test_every_utterance_belongs_to_exactly_one_client_and_set(override):
    frame = table({"a": 40, "b": 60, "c": 50})
    splits = splits_of(frame, override)
    rows = np.concatenate([np.concatenate([s.train, s.validation, s.test]) for s in splits])
    assert sorted(rows) == list(range(150))
    assert len(splits) == 3


def test_speakers_stay_together_and_validation_is_taken_from_training():
    frame = table({"a": 40, "b": 60})
    for split in splits_of(frame, "partition.validation=0.25"):
        rows = np.concatenate([split.train, split.validation, split.test])
        assert set(frame["client"].iloc[rows]) == {split.name}
    a, b = splits_of(frame, "partition.validation=0.25")
    assert (len(a.train), len(a.validation), len(a.test)) == (24, 8, 8)
    assert (len(b.train), len(b.validation), len(b.test)) == (36, 12, 12)


def test_split_depends_on_the_seed_and_on_nothing_else():
    frame = table({"a": 40, "b": 60})
    first, again, other = splits_of(frame), splits_of(frame), splits_of(frame, seed=1)
    assert all((x.test == y.test).all() for x, y in zip(first, again, strict=True))
    assert any((x.test != y.test).any() for x, y in zip(first, other, strict=True))
    alone = splits_of(frame[frame["client"] == "b"].reset_index(drop=True))
    assert (alone[0].test + 40 == first[1].test).all()  # one speaker's split does not depend on the others


def test_dirichlet_alpha_sets_the_skew():
    frame = table({str(i): 100 for i in range(10)})

    def skew(alpha):
        splits = splits_of(frame, "partition=dirichlet", f"partition.alpha={alpha}")
        commonest = [np.bincount(frame["label"].iloc[s.train]).max() / len(s.train) for s in splits]
        return np.mean(commonest)

    assert skew(0.1) > 0.6 > skew(100.0)
    assert skew(100.0) < 0.4


def test_shards_limit_the_classes_of_a_client():
    frame = table({str(i): 40 for i in range(10)})
    for split in splits_of(frame, "partition=shards", "partition.k=2"):
        rows = np.concatenate([split.train, split.test])
        assert frame["label"].iloc[rows].nunique() <= 4  # a shard may straddle two classes
    one = splits_of(table({"a": 4, "b": 4, "c": 4, "d": 4}), "partition=shards", "partition.k=1")
    assert all(len(np.concatenate([s.train, s.test])) == 4 for s in one)


def test_iid_deals_evenly_to_as_many_clients_as_asked():
    sizes = [
        len(s.train) + len(s.test) for s in splits_of(table({"a": 40, "b": 63}), "partition=iid", "partition.clients=5")
    ]
    assert sorted(sizes) == [20, 20, 21, 21, 21]


def test_too_small_a_speaker_is_named():
    with pytest.raises(
        InputError, match=r"'b' has 2 utterances, too few for a test share of 0\.2: it would keep 2 to train on and 0"
    ):
        splits_of(table({"a": 40, "b": 2}))


@pytest.mark.parametrize("bad", [["partition=iid", "partition.clients=0"], ["partition=dirichlet", "partition.alpha=0"],
                                 ["partition=shards", "partition.k=0"]])  # fmt: skip
def test_impossible_options_are_named(bad):
    with pytest.raises(InputError, match=bad[1].split("=")[0].replace(".", r"\.")):
        splits_of(table({"a": 40, "b": 40}), *bad)


def test_gaps_are_told(caplog):
    frame = pd.DataFrame({"client": ["a"] * 10 + ["b"] * 10, "label": [0, 1] * 5 + [0] * 10})
    warn_of_gaps(frame, splits_of(frame), ["anger", "fear", "joy"])
    assert "no utterance of fear: b" in caplog.text
    assert "No test utterance of joy" in caplog.text
