"""Corpora: file names become a table, and everything that is wrong with a corpus is said by file, row or key."""

import csv
import importlib.resources
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from fedser.config.compose import compose
from fedser.config.schema import parse
from fedser.config.settings import Dataset
from fedser.config.validation import validate
from fedser.data import corpora
from fedser.data.corpora import demos, emodb, manifest, ravdess
from fedser.errors import InputError

CONF = Path(__file__).parent.parent / "conf" / "dataset"
EMODB = Path(__file__).parent / "fixtures" / "emodb"


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def config(name, **changes):
    """The corpus's own file with some of its keys changed, as `load` takes it."""
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=True)
    return parse(Dataset, Dataset.opened(node | changes), "dataset.")


def demos_counts():
    text = importlib.resources.files("fedser.data.corpora").joinpath("demos_counts.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


@pytest.fixture(scope="module")
def demos_tree(tmp_path_factory):
    """All 9,697 names of DEMoS, as empty files."""
    root = tmp_path_factory.mktemp("demos")
    (root / "DEMOS").mkdir()
    (root / "NEU").mkdir()
    for row in demos_counts():
        for code, emotion in demos.EMOTIONS.items():
            for number in range(int(row[emotion])):
                name = f"{row['sex']}_{row['speaker']}_{code}{number + 1:02d}{'ab'[number % 2]}.wav"
                prefix = "NEU/" if code == "neu" else f"DEMOS/{('NP', 'PR')[number % 3 == 0]}_"
                (root / f"{prefix}{name}").touch()
    return root


# --- EMO-DB ---------------------------------------------------------------------------------------------------------


def test_emodb_reads_names():
    table = emodb.read(EMODB.absolute())
    assert len(table) == 42
    assert Counter(table["speaker"]) == {"14": 21, "15": 21}
    assert set(Counter(table["emotion"]).values()) == {6} and set(table["emotion"]) == set(emodb.EMOTIONS.values())
    first = table.iloc[0]
    assert first["path"] == str(EMODB.absolute() / "wav" / "14a01Aa.flac")
    assert first.drop("path").to_dict() == {
        "speaker": "14", "emotion": "fear", "sex": "f", "text": "a01", "version": "a",
    }  # fmt: skip
    assert set(table[table["speaker"] == "15"]["sex"]) == {"m"}


def test_order_depends_on_neither_layout_nor_format(tmp_path):
    names = ["03a01Fa", "03b02Wa", "08a01Na"]
    one = touch(tmp_path / "one", *(f"wav/{name}.wav" for name in names))
    other = touch(tmp_path / "other", "z/03a01Fa.FLAC", "a/03b02Wa.WAV", "08a01Na.flac")
    left, right = (emodb.read(root).drop(columns="path") for root in (one, other))
    pd.testing.assert_frame_equal(left, right)


def test_hidden_files_are_no_audio(tmp_path):
    root = touch(tmp_path, "wav/03a01Fa.wav", "wav/._03a01Fa.wav", "__MACOSX/wav/03a01Wa.wav", "wav/notes.txt")
    assert len(emodb.read(root)) == 1


def test_links_are_followed(tmp_path):
    touch(tmp_path / "disk", "03a01Fa.wav")
    (tmp_path / "emodb").mkdir()
    (tmp_path / "emodb" / "wav").symlink_to(tmp_path / "disk")
    assert list(emodb.read(tmp_path / "emodb")["path"]) == [str(tmp_path / "emodb" / "wav" / "03a01Fa.wav")]


@pytest.mark.corpus
def test_emodb_whole(data_folder):
    table = emodb.read(data_folder / "emodb")
    assert Counter(table["emotion"]) == {
        "anger": 127, "boredom": 81, "neutral": 79, "happiness": 71, "fear": 69, "sadness": 62, "disgust": 46,
    }  # fmt: skip
    assert Counter(table.drop_duplicates("speaker")["sex"]) == {"f": 5, "m": 5}


# --- RAVDESS --------------------------------------------------------------------------------------------------------


def test_ravdess_reads_names(tmp_path):
    root = touch(tmp_path, "Actor_12/03-01-06-02-01-02-12.wav", "Actor_01/03-01-02-01-02-01-01.wav")
    first, second = ravdess.read(root).drop(columns="path").to_dict("records")
    assert first == {
        "speaker": "01", "emotion": "calm", "sex": "m", "channel": "speech", "intensity": "normal", "text": "02",
        "repetition": "01",
    }  # fmt: skip
    assert second == {
        "speaker": "12", "emotion": "fear", "sex": "f", "channel": "speech", "intensity": "strong", "text": "01",
        "repetition": "02",
    }  # fmt: skip


def test_ravdess_keeps_speech_and_song_apart(tmp_path):
    root = touch(tmp_path, "03-01-06-02-01-02-12.wav", "03-02-06-02-01-02-12.wav")
    assert list(ravdess.read(root)["channel"]) == ["speech"]
    assert list(ravdess.read(root, channel="song")["channel"]) == ["song"]
    with pytest.raises(InputError, match="nothing of channel 'sung'"):
        ravdess.read(root, channel="sung")


@pytest.mark.corpus
def test_ravdess_whole(data_folder):
    table = ravdess.read(data_folder / "ravdess")
    assert Counter(table["emotion"]) == {name: 96 if name == "neutral" else 192 for name in ravdess.EMOTIONS.values()}
    assert Counter(table["speaker"]) == {f"{actor:02d}": 60 for actor in range(1, 25)}
    assert Counter(table["sex"]) == {"f": 720, "m": 720}


# --- DEMoS ----------------------------------------------------------------------------------------------------------


def test_demos_names_give_the_true_counts(demos_tree):
    table = demos.read(demos_tree)
    assert len(table) == 9697 and (table["emotion"] != "neutral").sum() == 9365
    found = Counter(zip(table["speaker"], table["sex"], table["emotion"], strict=True))
    wanted = {
        (row["speaker"], row["sex"], emotion): int(row[emotion])
        for row in demos_counts()
        for emotion in demos.EMOTIONS.values()
        if int(row[emotion])
    }
    assert found == wanted
    assert set(table["speaker"]) == {f"{speaker:02d}" for speaker in range(1, 70) if speaker != 35}
    assert set(table[table["emotion"] == "neutral"]["group"].isna()) == {True}


def test_demos_drops_neutral_as_the_paper_does(demos_tree):
    corpus = corpora.load(config("demos", root=str(demos_tree)))
    assert len(corpus.table) == 9365 and corpus.table["client"].nunique() == 68
    assert corpus.classes == ["anger", "disgust", "fear", "guilt", "happiness", "sadness", "surprise"]
    with_neutral = corpora.load(config("demos", root=str(demos_tree), drop=[], classes=[*corpus.classes, "neutral"]))
    assert len(with_neutral.table) == 9697 and with_neutral.table["label"].max() == 7


# --- what can be wrong with any of them -----------------------------------------------------------------------------


@pytest.mark.parametrize("read", [emodb.read, ravdess.read, demos.read])
def test_missing_and_empty_roots_name_the_key(tmp_path, read):
    with pytest.raises(InputError, match=r"no folder .*nowhere.*dataset\.root="):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no \.wav or \.flac .*dataset\.root="):
        read(tmp_path)


@pytest.mark.parametrize(
    ("read", "name", "message"),
    [
        (emodb.read, "03a01Xa.wav", "03a01Xa.wav: unknown emotion code 'X' .*W anger"),
        (ravdess.read, "03-01-09-01-01-01-01.wav", "unknown emotion code '09' .*01 neutral"),
        (demos.read, "NP_m_02_foo01a.wav", "unknown emotion code 'foo' .*rab anger"),
        (emodb.read, "song.wav", "song.wav is not named like 03a01Fa"),
        (ravdess.read, "03-01-01.wav", "is not named like 03-01-06-01-02-01-12"),
        (demos.read, "XX_m_02_rab01a.wav", "is not named like NP_f_01_col01a"),
    ],
)
def test_names_that_say_nothing(tmp_path, read, name, message):
    with pytest.raises(InputError, match=message):
        read(touch(tmp_path, name))


def test_an_utterance_found_twice(tmp_path):
    with pytest.raises(InputError, match=r"same utterance twice, .*a/03a01Fa\.wav and .*b/03a01Fa\.flac"):
        emodb.read(touch(tmp_path, "a/03a01Fa.wav", "b/03a01Fa.flac"))


# --- manifest -------------------------------------------------------------------------------------------------------


def write_manifest(folder, *lines, encoding="utf-8"):
    touch(folder, "one.wav", "wav/two.flac")
    path = folder / "list.csv"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_manifest_keeps_ids_as_text(tmp_path, encoding):
    path = write_manifest(
        tmp_path,
        "path, speaker, emotion, sex, site",
        f"{tmp_path}/one.wav, 02, joy, Male, NA",
        "",
        "wav/two.flac, 01, anger, ,",
        encoding=encoding,
    )
    table = manifest.read(path)
    assert list(table["path"]) == [str(tmp_path / "wav/two.flac"), str(tmp_path / "one.wav")]
    assert list(table["speaker"]) == ["01", "02"]
    assert table["sex"].isna().tolist() == [True, False] and table["sex"].iloc[1] == "m"
    assert table["site"].iloc[1] == "NA"  # a name like any other


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,speaker", "one.wav,01"], r"list\.csv: no column emotion in its header \(path, speaker\)"),
        (["path,speaker,emotion"], "lists no utterances"),
        (["path,speaker,emotion", "one.wav,1,joy", "three.wav,1,joy"], r"line 3: names no file: .*three\.wav"),
        (["path,speaker,emotion", "one.wav,1,joy", "", "./one.wav,1,joy"], r"line 4: repeats .*one\.wav"),
        (["path,speaker,emotion", "one.wav,,joy"], "line 2: has no speaker"),
        (["path,speaker,emotion", "one.wav,1, "], "line 2: has no emotion"),
        (["path,speaker,emotion,sex", "one.wav,1,joy,x"], "line 2: has sex 'x': write f or m"),
        (["path,speaker,emotion", "one.wav,1,joy,more"], "more cells than its header"),
        (["path,speaker,emotion", "one.wav,1,joy", "wav/two.flac,1,joy,more"], "can't be read as CSV"),
    ],
)
def test_manifest_says_which_line_is_wrong(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        manifest.read(write_manifest(tmp_path, *lines))


@pytest.mark.parametrize("separator", ["\t", ";"])
def test_manifest_with_other_separators_and_gender(tmp_path, separator):
    lines = ["path,speaker,emotion,gender", 'one.wav,01,"joy, or so",Female', "wav/two.flac,2,anger,"]
    path = write_manifest(
        tmp_path, *(line.replace(",", separator).replace(f"joy{separator}", "joy,") for line in lines)
    )
    table = manifest.read(path)
    assert table[["speaker", "emotion"]].values.tolist() == [["01", "joy, or so"], ["2", "anger"]]
    assert table["sex"].fillna("-").tolist() == ["f", "-"] and "gender" not in table


def test_manifest_columns_that_nobody_reads_are_named(tmp_path, caplog):
    path = write_manifest(
        tmp_path, "path,speaker,emotion,gendre,site,sex", "one.wav,1,joy,f,a,", "wav/two.flac,2,anger,m,b,m"
    )
    corpora.load(config("manifest", root=str(path), client="site"))
    assert f"{path}: nothing reads its columns gendre (read are" in caplog.text
    caplog.clear()
    corpora.load(config("manifest", root=str(path), client="gendre"))
    assert "nothing reads its columns site " in caplog.text


def test_manifest_that_is_no_text(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00\x81path")
    with pytest.raises(InputError, match="can't be read as CSV"):
        manifest.read(tmp_path / "list.csv")


def test_manifest_must_be_a_file(tmp_path):
    with pytest.raises(InputError, match=r"no file .*dataset\.root="):
        manifest.read(tmp_path)


def test_manifest_through_load_infers_classes_and_takes_any_client(tmp_path):
    path = write_manifest(
        tmp_path, "path,speaker,emotion,site", "one.wav,01,sadness,north", "wav/two.flac,02,anger,south"
    )
    corpus = corpora.load(config("manifest", root=str(path), client="site"))
    assert corpus.classes == ["anger", "sadness"]
    assert list(corpus.table["label"]) == [1, 0] and list(corpus.table["client"]) == ["north", "south"]


# --- load -----------------------------------------------------------------------------------------------------------


def test_load_labels_in_the_order_of_classes():
    corpus = corpora.load(config("emodb", root=str(EMODB)))
    assert corpus.name == "emodb" and len(corpus.classes) == 7
    assert [corpus.classes[label] for label in corpus.table["label"]] == list(corpus.table["emotion"])
    assert list(corpus.table["client"]) == list(corpus.table["speaker"])
    assert all(Path(path).is_absolute() for path in corpus.table["path"])


def test_load_hands_the_reader_its_own_settings(tmp_path):
    root = touch(tmp_path, "03-01-06-02-01-02-12.wav", "03-02-06-02-01-02-12.wav")
    for channel in ("speech", "song"):
        corpus = corpora.load(config("ravdess", root=str(root), channel=channel))
        assert list(corpus.table["channel"]) == [channel]


def test_dropping_an_emotion_takes_its_class_too():
    corpus = corpora.load(config("emodb", root=str(EMODB), drop=["boredom", "neutral"]))
    assert corpus.classes == ["anger", "disgust", "fear", "happiness", "sadness"]
    assert len(corpus.table) == 30 and list(corpus.table.index) == list(range(30))


def test_a_misspelt_drop_is_noticed(caplog):
    corpora.load(config("emodb", root=str(EMODB), drop=["bordom"]))
    assert "emodb has no bordom (it has anger, boredom" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": None}, r"dataset\.root is not set"),
        ({"client": "village"}, r"dataset\.client: there is no column 'village' .*emotion, path, sex, speaker, text"),
        (
            {"classes": ["anger", "fear"]},
            r"\.flac: '\w+' is not in dataset\.classes .*30 utterances like that: boredom,",
        ),
        ({"classes": ["anger", "anger"]}, "names an emotion twice"),
        (
            {"drop": ["anger", "boredom", "disgust", "fear", "happiness", "neutral"]},
            "nothing to tell apart in .sadness.",
        ),
        ({"_target_": "fedser.data.corpora.emodb.reed"}, r"dataset: .*emodb has no reed; did you mean read\?"),
        ({"_target_": "pathlib.Path"}, "its reader must return a pandas.DataFrame, not PosixPath"),
    ],
)
def test_load_says_which_key_is_wrong(changes, message):
    with pytest.raises(InputError, match=message):
        corpora.load(config("emodb", **{"root": str(EMODB), **changes}))


def test_a_manifest_must_be_named():
    with pytest.raises(InputError, match=r"dataset\.root must be set"):
        validate(compose(["dataset=manifest"]))
    with pytest.raises(InputError, match=r"dataset\.root is not set"):
        corpora.load(config("manifest", root=None))


def test_load_notices_an_utterance_without_client(tmp_path):
    path = write_manifest(tmp_path, "path,speaker,emotion,site", "one.wav,1,joy,north", "wav/two.flac,1,anger,")
    with pytest.raises(InputError, match=r"two\.flac has no site"):
        corpora.load(config("manifest", root=str(path), client="site"))


def without_emotions(root):
    """A reader that says too little."""
    return pd.DataFrame({"path": [], "speaker": []})


def test_a_reader_of_ones_own_must_keep_to_the_columns():
    with pytest.raises(InputError, match=r"no column emotion \(it has path, speaker\)"):
        corpora.load(config("emodb", root=str(EMODB), _target_=f"{__name__}.without_emotions"))


def test_the_table_of_a_corpus_needs_no_torch():
    code = "import sys, fedser.data.corpora, fedser.data.corpora.demos, fedser.data.corpora.manifest; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
