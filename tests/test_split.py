"""Who is trained on and who is tested: clips at random, whole speakers, whole sentences, a column of one's own."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FIXTURES, SMALL
from safetensors.numpy import load_file

from fedser import compose, report, run
from fedser.config import paths
from fedser.config.schema import parse
from fedser.config.settings import Partition
from fedser.config.validation import validate
from fedser.data.partition import partition, repeated
from fedser.display import Display, uars
from fedser.errors import InputError, Interrupted
from fedser.evaluate import evaluate
from fedser.evaluation.metrics import confusion, uar
from fedser.features.normalisation import Sums, zscore
from fedser.federation import transport
from fedser.models.lengths import logits
from fedser.preparation import prepare
from fedser.report import tables, text
from fedser.report.analysis import models

KINDS = ("train", "validation", "test")
GOLDEN_TEST, GOLDEN_VALIDATION = [11, 16, 18, 22, 23, 24, 32, 38], [14, 17, 19, 20, 21, 29, 33, 37]


def table(speakers=10, clips=40, classes=4, sentences=5):
    """Speakers s0, s1, …, of whom every third is a woman, each with all classes and sentences."""
    who = np.repeat(np.arange(speakers), clips)
    number = np.tile(np.arange(clips), speakers)
    columns = {"speaker": [f"s{i}" for i in who], "client": [f"s{i}" for i in who]}
    columns |= {"sex": ["f" if i % 3 == 0 else "m" for i in who], "label": (number + who) % classes}
    return pd.DataFrame(columns | {"text": [f"t{i}" for i in (number // classes) % sentences]})


def settings_of(split="random", options=None, *, name="speaker", **more):
    """The partition's settings: its file's and the split's, with these changes."""
    node = paths.content(paths.directory() / "partition" / f"{name}.yaml") | more
    chosen = paths.content(paths.directory() / "partition" / "split" / f"{split}.yaml") | (options or {})
    return parse(Partition, Partition.opened(node | {"split": chosen}), "partition.")


def splits_of(frame, split="random", options=None, *, seed=0, **more):
    return partition(frame, settings_of(split, options, **more), seed)


def rows_of(splits, *kinds):
    return np.concatenate([getattr(split, kind) for split in splits for kind in kinds or KINDS])


def held_out(splits, kind="test"):
    return [split.name for split in splits if not split.seen and len(getattr(split, kind))]


# --- At random -------------------------------------------------------------------------------------------------------


def test_random_is_what_a_configuration_without_a_split_has():
    node = paths.content(paths.directory() / "partition" / "speaker.yaml") | {"validation": 0.25}
    found, before = (
        splits_of(table(3), validation=0.25),
        partition(table(3), parse(Partition, Partition.opened(node)), 0),
    )
    for one, other in zip(found, before, strict=True):
        assert all((getattr(one, kind) == getattr(other, kind)).all() for kind in KINDS)
    assert found[0].test.tolist() == GOLDEN_TEST and found[0].validation.tolist() == GOLDEN_VALIDATION  # of 0.3.0


# --- Speakers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_speakers_are_held_out_whole_and_balanced(seed):
    frame = table(30)
    splits = splits_of(frame, "speaker", seed=seed, test=0.25)
    assert len(splits) == 30 and rows_of(splits).size == len(frame) == len(set(rows_of(splits)))
    assert len(held_out(splits)) == len(held_out(splits, "validation")) == 6
    for kind in ("test", "validation"):
        women = [name for name in held_out(splits, kind) if int(name[1:]) % 3 == 0]
        assert len(women) == 2  # of ten in thirty
    for split in splits:
        assert set(frame["speaker"].iloc[rows_of([split])]) == {split.name}
        assert (len(split.train), len(split.test)) in ((30, 10), (0, 40), (0, 0))


def test_the_seen_speakers_keep_the_test_clips_that_they_have_otherwise():
    frame = table()
    plain, found = ({split.name: split for split in splits_of(frame, kind)} for kind in ("random", "speaker"))
    seen = [name for name, split in found.items() if split.seen]
    assert len(seen) == 6
    assert all((plain[name].test == found[name].test).all() for name in seen)


def test_who_is_held_out_depends_on_the_seed_and_on_nothing_else():
    frame = table()
    found = [held_out(splits_of(frame, "speaker", seed=seed)) for seed in (0, 0, 1, 2, 3)]
    assert found[0] == found[1] and len({tuple(names) for names in found}) > 1
    others = splits_of(frame, "speaker", name="iid", clients=4)
    assert held_out(others) == found[0]


def test_the_shares_of_classes_are_about_those_of_all():
    random = np.random.default_rng(0)
    rows = [(f"s{i}", "m", label) for i in range(40) for label in range(4) for _ in range(random.integers(1, 30))]
    frame = pd.DataFrame(rows, columns=["speaker", "sex", "label"]).assign(client=lambda each: each["speaker"])
    whole = np.bincount(frame["label"]) / len(frame)

    def distance(splits):
        tested = [rows_of([split], "test") for split in splits if not split.seen]
        return np.abs(np.bincount(frame["label"].iloc[np.concatenate(tested)]) / sum(map(len, tested)) - whole).sum()

    found = [distance(splits_of(frame, "speaker", seed=seed)) for seed in range(4)]
    names = np.random.default_rng(1).permuted(np.tile(np.arange(40), (40, 1)), axis=1)[:, :8]
    counts = pd.crosstab(frame["speaker"], frame["label"]).loc[[f"s{i}" for i in range(40)]].to_numpy()
    drawn = counts[names].sum(axis=1)
    anyhow = np.abs(drawn / drawn.sum(axis=1, keepdims=True) - whole).sum(axis=1)
    assert np.mean(found) < 0.7 * np.mean(anyhow)


@pytest.mark.parametrize(
    ("options", "count"), [({"test": 3}, 3), ({"test": 0.01}, 1), ({"test": 0}, 0), ({"test": 0.44}, 4)]
)
def test_speakers_may_be_counted_or_a_share(options, count):
    splits = splits_of(table(), "speaker", options | {"validation": 0})
    assert len(held_out(splits)) == count and not held_out(splits, "validation")


def test_where_clients_are_no_speakers_the_held_out_leave_all_of_them():
    frame = table()
    splits = splits_of(frame, "speaker", name="iid", clients=4)
    unseen = [split for split in splits if not split.seen]
    assert [split.name for split in splits if split.seen] == [f"client-{i}" for i in range(4)]
    assert len(unseen) == 4 and all(set(frame["speaker"].iloc[rows_of([each])]) == {each.name} for each in unseen)
    seen = rows_of([split for split in splits if split.seen])
    assert not set(frame["speaker"].iloc[seen]) & {each.name for each in unseen}
    assert len(seen) == 6 * 40


def test_a_client_with_a_speakers_name_stays():
    frame = table().assign(client=lambda each: "s" + (each.index % 10).astype(str))
    splits = splits_of(frame, "speaker")
    assert len({split.name for split in splits}) == len(splits) == 14
    assert all(split.name.startswith("unseen s") for split in splits if not split.seen)
    assert sorted(rows_of(splits)) == list(range(len(frame)))


def test_speakers_by_a_column():
    frame = table(6).assign(fold=lambda each: each["speaker"].map(
        {"s0": "test", "s1": "dev", "s2": "validation", "s3": "train", "s4": "train", "s5": "train"}))  # fmt: skip
    splits = splits_of(frame, "speaker", {"column": "fold"})
    assert held_out(splits) == ["s0"] and held_out(splits, "validation") == ["s1", "s2"]
    frame.loc[0, "fold"] = "train"
    with pytest.raises(InputError, match=r"column=fold: speaker 's0' has train and test clips, and must be wholly"):
        splits_of(frame, "speaker", {"column": "fold"})
    with pytest.raises(InputError, match="fold leaves no speaker to train on"):
        splits_of(frame.assign(fold="test"), "speaker", {"column": "fold"})


@pytest.mark.parametrize(("options", "said"), [
    ({"test": 8, "validation": 2}, r"test=8 and partition\.split\.validation=2 hold out 10 of 10 speakers and leave none"),
    ({"test": 0.6, "validation": 0.5}, "hold out 11 of 10 speakers"),
    ({"test": 2.5}, r"split\.test=2\.5 must be a whole number of speakers, or a share below 1"),
    ({"column": "fold"}, r"split\.column=fold: the corpus has no such column\. It has speaker, client, sex, label, text"),
])  # fmt: skip
def test_bad_shares_of_speakers(options, said):
    with pytest.raises(InputError, match=said):
        splits_of(table(), "speaker", options)


# --- Sentences -------------------------------------------------------------------------------------------------------


def test_no_sentence_is_both_trained_on_and_tested():
    frame = table(6, 80, sentences=10)
    splits = splits_of(frame, "sentence", validation=0.25)
    trained, tested = (set(frame["text"].iloc[rows_of(splits, kind)]) for kind in ("train", "test"))
    assert len(tested) == 2 and not trained & tested and len(trained) == 8
    assert all(len(split.test) and len(split.validation) == 16 for split in splits)
    assert repeated(frame, splits) == {"test": 96, "speaker": 0, "sentence": 0}
    others = {tuple(sorted(set(frame["text"].iloc[rows_of(splits_of(frame, "sentence", seed=seed), "test")])))
              for seed in range(5)}  # fmt: skip
    assert len(others) > 1


def test_two_sentences_are_enough_and_one_is_not():
    frame = table(3, sentences=2)
    assert len(set(frame["text"].iloc[rows_of(splits_of(frame, "sentence"), "test")])) == 1
    with pytest.raises(InputError, match="in column text there is but one sentence: 't0'"):
        splits_of(frame.assign(text="t0"), "sentence")
    with pytest.raises(InputError, match=r"column=text: the corpus has no such column"):
        splits_of(frame.drop(columns="text"), "sentence")
    with pytest.raises(InputError, match=r"column=text: 1 of 120 clips have nothing in it"):
        splits_of(frame.assign(text=[None, *frame["text"][1:]]), "sentence")
    alone = frame.assign(
        text=["t0" if who == "s1" else text for who, text in zip(frame["speaker"], frame["text"], strict=True)]
    )
    with pytest.raises(InputError, match=r"Client 's1' keeps 0 of 40 clips"):
        for seed in range(8):  # sooner or later it is that sentence
            splits_of(alone, "sentence", seed=seed)


# --- A column --------------------------------------------------------------------------------------------------------


def test_a_column_says_it_clip_by_clip():
    frame = table(2, 10).assign(split=["train", "train", "dev", "validation", "test"] * 4)
    first, second = splits_of(frame, "column")
    assert (first.train.tolist(), first.validation.tolist(), first.test.tolist()) == (
        [0, 1, 5, 6],
        [2, 3, 7, 8],
        [4, 9],
    )
    assert second.test.tolist() == [14, 19]
    named = frame.assign(part=frame["split"].replace({"train": "a", "test": "b"}))
    (again, _) = splits_of(
        named, "column", {"column": "part", "train": ["a", "dev"], "validation": "validation", "test": "b"}
    )
    assert again.train.tolist() == [0, 1, 2, 5, 6, 7] and again.test.tolist() == [4, 9]


@pytest.mark.parametrize(("values", "said"), [
    (["train", "tset", "exam", "test"] * 5, r"column=split: 10 of 20 clips have other values than train, validation, dev, test: value 'tset' \(and 1 more\)"),
    (["train", None, "test", "dev"] * 5, "column=split: 5 of 20 clips have nothing in it"),
    (["train", "test"] * 5 + ["test", "dev"] * 5, r"leaves client 's1' without clips to train on\. .*partition/split=speaker partition\.split\.column=split"),
    (["train", "dev"] * 10, "leaves no test clip of a client that trains"),
    (["train", *["test"] * 9, *["train"] * 10], "leaves client 's0' one clip to train on"),
])  # fmt: skip
def test_a_column_with_something_else_in_it(values, said):
    with pytest.raises(InputError, match=said):
        splits_of(table(2, 10).assign(split=values), "column")


def test_a_client_without_test_clips_goes_on(caplog):
    from fedser.data.partition import warn_of_gaps

    frame = table(2, 10).assign(split=["train", "test"] * 5 + ["train", "dev"] * 5)
    splits = splits_of(frame, "column")
    assert len(splits[1].test) == 0
    warn_of_gaps(frame, splits, ["a"])
    assert "1 of 2 clients have no test utterance: s1" in caplog.text


# --- What is said ----------------------------------------------------------------------------------------------------


def test_sentences_that_are_trained_on_are_counted():
    frame = table(2, 10, sentences=5).assign(text=["x", "y"] * 5 + ["z"] * 9 + ["x"])
    frame["split"] = ["test", "test", *["train"] * 8, *["train"] * 9, "test"]
    splits = splits_of(frame, "column")
    assert repeated(frame, splits) == {"test": 3, "speaker": 2, "sentence": 3}  # s1 says x in the test alone
    frame.loc[0, "text"] = None
    assert repeated(frame, splits) == {"test": 3, "speaker": 1, "sentence": 2}
    assert repeated(frame.drop(columns="text"), splits) is None


@pytest.mark.corpus
def test_in_emodb_all_but_one_test_clip_share_speaker_and_sentence_with_a_training_clip(data_folder):
    from fedser.data.corpora import emodb

    frame = emodb.read(data_folder / "emodb")
    frame = frame.assign(client=frame["speaker"], label=pd.factorize(frame["emotion"])[0])
    assert repeated(frame, splits_of(frame)) == {"test": 108, "speaker": 107, "sentence": 108}
    assert repeated(frame, splits_of(frame, "sentence"))["sentence"] == 0
    splits = splits_of(frame, "speaker")
    assert len(held_out(splits)) == 2 == frame[frame["speaker"].isin(held_out(splits))]["sex"].nunique()


# --- Runs ------------------------------------------------------------------------------------------------------------

WORDS = ["partition/split=speaker", "partition.split.test=1", "partition.split.validation=1", "partition.validation=0.2",
         "batch_norm=local", "features.normalisation=zscore_client", "client.optimizer_state=average", "attack=fgsm",
         "selection=best", "selection.every=1", "evaluation.draws=2"]  # fmt: skip


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """The fixture's clips dealt to six speakers who are none."""
    file = tmp_path_factory.mktemp("manifest") / "clips.csv"
    emotions = {
        "W": "anger",
        "L": "boredom",
        "E": "disgust",
        "A": "fear",
        "F": "happiness",
        "T": "sadness",
        "N": "neutral",
    }
    rows = [
        {"path": path, "speaker": f"v{place % 6}", "emotion": emotions[path.stem[5]], "sex": "fm"[place % 2],
         "text": path.stem[2:5]}
        for place, path in enumerate(sorted((FIXTURES / "emodb").rglob("*.flac")))
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(file, index=False)
    return file


def words(manifest, *more):
    corpus = ["dataset=manifest", f"dataset.root={manifest}"]
    return [*(word for word in SMALL if not word.startswith("dataset")), *corpus, *more]


@pytest.fixture(scope="module")
def made(manifest, tmp_path_factory):
    """A finished run with one speaker held out to test on and one to select by."""
    return run(compose(words(manifest, *WORDS)), tmp_path_factory.mktemp("made") / "run")


def test_unseen_speakers_have_figures_of_their_own(made):
    metrics, record = made.metrics, json.loads((made.folder / "evaluation.json").read_text())
    conditions = ["original", "randomised", "adversarial/fgsm", "randomised_adversarial/fgsm"]
    for row in (metrics, made.history[-1]):
        for kind in ("uar", "accuracy"):
            assert all(f"{kind}/{who}{name}" in row for who in ("", "unseen/") for name in conditions)
            assert all(f"{kind}/{who}validation/original" in row for who in ("", "unseen/"))
    assert made.history[0]["train/clients"] == 4 and "uar/unseen/original" in made.history[0]
    ((test,), (validation,)) = metrics["unseen"]["test"], metrics["unseen"]["validation"]
    assert test != validation and metrics["clients"] == 6 and len(record["clients"]) == 4
    assert set(record["unseen"]["clients"]) == {test, validation}
    assert record["unseen"]["clients"][test]["utterances"] == 7 == sum(metrics["counts"]["unseen"].values())
    assert sum(metrics["counts"]["test"].values()) == 4 == np.sum(record["conditions"]["original"]["matrix"])
    assert np.sum(record["unseen"]["conditions"]["original"]["matrix"]) == 7
    assert metrics["uar/unseen/original"] == uar(np.array(record["unseen"]["conditions"]["original"]["matrix"]))
    assert not any("unseen" in name for name in record["conditions"]) and metrics["repeated"]["test"] == 4


def test_the_model_is_selected_by_the_speaker_held_out_for_it(made):
    chosen = max(row["selection/uar"] for row in made.history)
    assert made.history[-1]["selection/uar"] == made.metrics["uar/unseen/validation/original"] == chosen


def test_the_unseen_are_named_in_the_table_of_clips(made):
    clips = pd.read_csv(made.folder / "utterances.csv")
    assert set(clips[clips["unseen"] == 1]["speaker"]) == set(made.metrics["unseen"]["test"])
    assert (clips["unseen"] == 1).sum() == 7 and (clips["unseen"] == 0).sum() == 4
    with np.load(made.folder / "example.npz") as shown:  # of one who trains, though the first by name may not
        assert re.search(r"client (\w+)", str(shown["title"]))[1] not in sum(made.metrics["unseen"].values(), [])


def test_an_unseen_speaker_is_heard_by_everybodys_statistics_and_mean_layers(made, manifest):
    prepared = prepare(validate(compose(words(manifest, *WORDS))))
    weights = load_file(sorted((made.folder / "weights").glob("round-*"))[-1])
    unseen = np.array([not split.seen for split in prepared.splits])
    transport.unpack(weights, prepared.model)
    mean = prepared.plan().clients_per_round, weights["local"][unseen]
    assert mean[0] == 4 and (mean[1][0] == mean[1][1]).all()
    (split,) = (split for split in prepared.splits if not split.seen and len(split.test))
    everyone = sum(
        (Sums.of(prepared.store.frames[each.train]) for each in prepared.splits), Sums.of(prepared.store.frames[:0])
    )
    x = torch.from_numpy(zscore(everyone)(prepared.store.frames[split.test])).unsqueeze(1)
    y, lengths = (torch.from_numpy(part[split.test]) for part in (prepared.store.labels, prepared.store.lengths))
    with torch.no_grad():
        predicted = logits(prepared.model.eval(), x, lengths).argmax(1)
    record = json.loads((made.folder / "evaluation.json").read_text())
    assert confusion(y, predicted, 7).tolist() == record["unseen"]["conditions"]["original"]["by_client"][split.name]


def test_an_evaluation_made_anew_says_the_same(made):
    here = ["simulation=serial", "logger=none", "evaluation.attacks=[]", "evaluation.draws=1"]
    again = evaluate(made.folder, here)
    before = json.loads((made.folder / "evaluation.json").read_text())
    for part in (lambda record: record, lambda record: record["unseen"]):
        assert part(again)["conditions"]["original"] == part(before)["conditions"]["original"]
    half = evaluate(made.folder, [*here, "evaluation.fraction=0.5"])
    assert np.sum(half["unseen"]["conditions"]["original"]["matrix"]) == 4


def test_terminal_and_report_do_not_mix_them(made):
    column = list(uars(made.metrics).columns[0].cells)
    assert column == ["original", "randomised", "adversarial", "randomised adversarial",
                      *(f"unseen {kind}" for kind in ("original", "randomised", "adversarial", "randomised adversarial"))]  # fmt: skip
    runs = report.load([made.folder])
    assert not runs[0].problems and not any("unseen" in name for name in runs[0].uar)
    assert len(runs[0].evaluations[0].utterances) == 4
    ((model,),) = [corpus.models for corpus in models.corpora(runs)]
    assert model.estimates["original"].utterances == 4 and model.unseen["original"].utterances == 7
    assert model.unseen["original"].uar == made.metrics["uar/unseen/original"]
    shown = tables.unseen(models.corpora(runs)[0])
    assert shown.data["utterances"][0] == 7 and shown.data["uar"][0] == model.unseen["original"].uar
    page = text.environment().from_string("{% import 'parts.html' as parts with context %}{% include 'setup.html' %}")
    page = page.render(corpus=models.corpora(runs)[0], tables={"unseen": shown}, text=text)
    counted = made.metrics["repeated"]
    assert f"{counted['speaker']} of {counted['test']} test clips of speakers who are trained on share" in page
    assert "Unseen speakers" in page and "adversarial · FGSM" in page


def test_an_interrupted_run_goes_on_to_the_same_numbers(made, manifest, tmp_path):
    def show(display, row):
        if row["round"] == 2:
            raise Interrupted("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Display, "round", show)
        with pytest.raises(Interrupted):
            run(compose(words(manifest, *WORDS, "reuse=false")), tmp_path / "run")
    done = run(compose(words(manifest, *WORDS, "reuse=false")), tmp_path / "run")
    assert done.metrics["resumed_after"] == [1]
    for name in ("history.jsonl", "evaluation.json", "utterances.csv"):
        assert (done.folder / name).read_bytes() == (made.folder / name).read_bytes(), name


PLAIN = ["attack=none", "defence=none", "rounds=1", "partition/split=speaker", "partition.split.test=1"]


@pytest.mark.parametrize("more", [
    ["strategy=centralised"], ["strategy=fedmedian", "client.optimizer_state=persist"],
    ["partition=iid", "partition.clients=3", "strategy.fraction_train=0.5", "batch_norm=recompute"],
], ids=lambda more: more[0])  # fmt: skip
def test_whatever_else_is_chosen_the_unseen_do_not_train(manifest, tmp_path, more):
    result = run(compose(words(manifest, *PLAIN, *more)), tmp_path / "run")
    assert 0 <= result.metrics["uar/unseen/original"] <= 1
    assert result.history[0]["train/clients"] == (
        2 if "partition=iid" in more else 5 - len(result.metrics["unseen"]["validation"])
    )
    assert set(result.metrics["unseen"]) == {"test", "validation"}


def test_a_normalisation_that_knows_no_strangers_is_refused_before_anything_starts(manifest, tmp_path):
    with pytest.raises(
        InputError, match=r"minmax_client normalises each client by its own training clips, .*zscore_global"
    ):
        run(compose(words(manifest, *PLAIN, "features.normalisation=minmax_client")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_manifests_own_split(manifest, tmp_path, caplog):
    frame = pd.read_csv(manifest)
    frame["split"] = ["train", "train", "train", "dev", "test", "train", "train"] * 6
    frame.to_csv(tmp_path / "clips.csv", index=False)
    chosen = [
        "attack=none",
        "defence=none",
        "rounds=1",
        "partition.split=column",
        "selection=best",
        "selection.every=1",
    ]
    result = run(compose(words(tmp_path / "clips.csv", *chosen)), tmp_path / "run")
    assert "nothing reads" not in caplog.text and "unseen" not in result.metrics
    assert sum(result.metrics["counts"]["test"].values()) == 6 and "uar/validation/original" in result.metrics
    frame["split"] = frame["split"].replace("dev", "train")
    frame.to_csv(tmp_path / "clips.csv", index=False)
    with pytest.raises(
        InputError, match="selection=best chooses by validation utterances, and partition/split=column leaves none"
    ):
        run(compose(words(tmp_path / "clips.csv", *chosen)), tmp_path / "other")


@pytest.mark.parametrize("bad", [["partition/split=speker"], ["partition/split=speaker", "partition.split.test=-1"]])
def test_misspelt_splits_are_named(bad):
    with pytest.raises(InputError, match=r"partition[/.]split"):
        validate(compose(bad))
