"""The field's corpora as they lie on disk, several at once, other targets and other people's folds."""

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import FIXTURES, SMALL
from omegaconf import OmegaConf

from fedser import compose, report, run
from fedser.config import identity
from fedser.config.schema import parse
from fedser.config.settings import Dataset, Partition, Settings
from fedser.config.validation import plain, tidy, validate
from fedser.data import corpora
from fedser.data.corpora import crema_d, emovo, esd, iemocap, meld, msp_improv, msp_podcast, nemo, savee, tess
from fedser.data.partition import ClientSplit, partition, repeated
from fedser.errors import InputError
from fedser.preparation import prepare
from fedser.report import tables
from fedser.report.analysis import models

CONF = Path(__file__).parent.parent / "conf"
EMODB = FIXTURES / "emodb"


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write(root, name, *lines):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def load(name, **changes):
    """The corpus as its own file has it, but for some keys."""
    node = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / f"{name}.yaml"), resolve=True)
    return corpora.load(parse(Dataset, Dataset.opened(node | changes), "dataset."))


def by_clip(table, *columns):
    """The columns' values by the clips' names."""
    return {Path(row["path"]).stem: tuple(row[list(columns)]) for _, row in table.iterrows()}


# --- CREMA-D --------------------------------------------------------------------------------------------------------


@pytest.fixture
def crema(tmp_path):
    names = ["1001_IEO_ANG_HI", "1002_DFA_SAD_XX", "1002_ITH_HAP_LO", "1076_MTI_SAD_XX"]
    touch(tmp_path, *(f"AudioWAV/{name}.wav" for name in names))
    write(tmp_path, "VideoDemographics.csv", "ActorID,Age,Sex,Race,Ethnicity", "1001,51,Male,X,Y", "1002,21,Female,X,Y")
    head = '"","FileName","VoiceVote","VoiceLevel","FaceVote","FaceLevel","MultiModalVote","MultiModalLevel"'
    rows = ['"1","1001_IEO_ANG_HI","N","1","A","2","A","3"', '"2","1002_DFA_SAD_XX","A:D","1","S","2","S","3"']
    return write(
        tmp_path, "processedResults/summaryTable.csv", head, *rows, '"3","1002_ITH_HAP_LO","H","1","H","2","H:N","3"'
    )


def test_crema_d_intended_and_heard(crema, caplog):
    assert by_clip(crema_d.read(crema), "speaker", "emotion", "sex", "text", "level") == {
        "1001_IEO_ANG_HI": ("1001", "anger", "m", "IEO", "HI"),
        "1002_DFA_SAD_XX": ("1002", "sadness", "f", "DFA", "XX"),
        "1002_ITH_HAP_LO": ("1002", "happiness", "f", "ITH", "LO"),
    }  # the clip with nothing in it is not among them
    assert not caplog.text
    voice = by_clip(crema_d.read(crema, labels="voice"), "emotion")
    assert voice == {"1001_IEO_ANG_HI": ("neutral",), "1002_ITH_HAP_LO": ("happiness",)}
    assert "CREMA-D: 1 clips left out: without a majority in VoiceVote" in caplog.text
    both = by_clip(crema_d.read(crema, labels="multimodal"), "emotion")
    assert both == {"1001_IEO_ANG_HI": ("anger",), "1002_DFA_SAD_XX": ("sadness",)}
    with pytest.raises(InputError, match=r"summaryTable\.csv: says nothing of .*1003_IEO_ANG_HI"):
        crema_d.read(touch(crema, "AudioWAV/1003_IEO_ANG_HI.wav"), labels="voice")


def test_crema_d_without_its_tables(tmp_path, caplog):
    root = touch(tmp_path, "AudioWAV/1001_IEO_ANG_HI.wav")
    assert crema_d.read(root)["sex"].isna().all() and "no" in caplog.text and "VideoDemographics.csv" in caplog.text
    with pytest.raises(InputError, match=r"there is no processedResults/summaryTable\.csv in .*dataset\.root="):
        crema_d.read(root, labels="voice")
    write(root, "VideoDemographics.csv", "Actor,Sex", "1001,Male")
    with pytest.raises(InputError, match=r"VideoDemographics\.csv: no column ActorID in its header \(Actor, Sex\)"):
        crema_d.read(root)


# --- IEMOCAP --------------------------------------------------------------------------------------------------------


def session(root, number, dialog, **codes):
    """A dialog's clips and its label file."""
    lines = [f"[6.2901 - 8.2357]\t{dialog}_{turn}\t{code}\t[2.5000, 2.5000, 2.5000]" for turn, code in codes.items()]
    evaluation = f"Session{number}/dialog/EmoEvaluation"
    write(
        root,
        f"{evaluation}/{dialog}.txt",
        "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]",
        "",
        *lines,
        "C-E2:\tNeutral;\t()",
    )
    touch(root, f"{evaluation}/._{dialog}.txt", f"Session{number}/dialog/wav/{dialog}.wav")
    return touch(root, *(f"Session{number}/sentences/wav/{dialog}/{dialog}_{turn}.wav" for turn in codes))


def test_iemocap_speakers_sessions_and_labels(tmp_path, caplog):
    session(tmp_path, 1, "Ses01F_impro01", F000="neu", M000="exc", F001="xxx")
    session(tmp_path, 2, "Ses02M_script01_1b", F000="hap", M003="fru", MXX0="ang")
    columns = ("speaker", "emotion", "sex", "session", "dialog")
    assert by_clip(iemocap.read(tmp_path), *columns) == {
        "Ses01F_impro01_F000": ("01F", "neutral", "f", "Session1", "Ses01F_impro01"),
        "Ses01F_impro01_M000": (
            "01M",
            "happiness",
            "m",
            "Session1",
            "Ses01F_impro01",
        ),  # the last letter says who speaks
        "Ses02M_script01_1b_F000": ("02F", "happiness", "f", "Session2", "Ses02M_script01_1b"),
        "Ses02M_script01_1b_M003": ("02M", "frustration", "m", "Session2", "Ses02M_script01_1b"),
        "Ses02M_script01_1b_MXX0": ("02M", "anger", "m", "Session2", "Ses02M_script01_1b"),
    }
    assert "IEMOCAP: 1 clips left out: annotators differ" in caplog.text
    assert set(iemocap.read(tmp_path, impro=True)["session"]) == {"Session1"}
    assert set(iemocap.read(tmp_path, excitement="excitement")["emotion"]) >= {"excitement", "happiness"}
    corpus = load("iemocap", root=str(tmp_path), client="session")
    assert corpus.classes == ["anger", "happiness", "neutral", "sadness"] and len(corpus.table) == 4
    assert set(corpus.table["client"]) == {"Session1", "Session2"}


def test_commands_of_official_splits_compose():
    sessions = [
        "partition.split.column=session",
        "partition.split.train=[Session1,Session2]",
        "partition.split.test=Session5",
    ]
    for name, words in (("iemocap", sessions), ("meld", []), ("msp_podcast", [])):
        dealt = ["partition=iid", "partition.clients=8", "partition/split=column"]
        settings = validate(compose([f"dataset={name}", "dataset.root=DIR", *dealt, *words]))
        assert settings.partition.column == ("session" if words else "split")


def test_iemocap_says_what_it_lacks(tmp_path):
    with pytest.raises(InputError, match=r"IEMOCAP: there is no Session1 or .* in .*dataset\.root="):
        iemocap.read(tmp_path)
    session(tmp_path, 1, "Ses01F_impro01", F000="neu")
    touch(tmp_path, "Session1/sentences/wav/Ses01F_impro02/Ses01F_impro02_F000.wav")
    with pytest.raises(InputError, match="impro02_F000.wav: has no line in .*EmoEvaluation"):
        iemocap.read(tmp_path)


# --- MELD -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def friends(tmp_path):
    """Numbers begin anew in each part; a listed clip of train and one of dev were never published."""
    head = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
    said = '1,"Oh, my God!",Chandler,joy,positive,0,{},8,21,"00:16:16,059","00:16:21,731"'
    lines = {"train": [said.format(0), said.format(1), "3,Yes,Joey,anger,n,125,3,8,21,0,1"]}
    lines |= {
        "dev": [said.format(0), "2,No,Joey,anger,n,110,7,8,21,0,1"],
        "test": [said.format(0).replace("joy", "fear")],
    }
    for part, folder in meld.PARTS.items():
        write(tmp_path, f"{part}_sent_emo.csv", head, *lines[part])
        touch(tmp_path, f"{folder}/dia0_utt0.wav", f"{folder}/dia0_utt0.mp4")
    touch(tmp_path, "output_repeated_splits_test/final_videos_testdia0_utt0.wav")
    return touch(tmp_path, "train_splits/dia0_utt1.wav")


def test_meld_parts(friends):
    table = meld.read(friends)
    assert table[["speaker", "emotion", "split", "text", "dialog"]].values.tolist() == [
        ["Chandler", "fear", "test", "Oh, my God!", "test 0"],
        ["Chandler", "happiness", "train", "Oh, my God!", "train 0"],
        ["Chandler", "happiness", "train", "Oh, my God!", "train 0"],
        ["Chandler", "happiness", "validation", "Oh, my God!", "dev 0"],
    ]
    assert table["path"].is_unique and Path(table["path"][0]).parent.name == "output_repeated_splits_test"


def test_meld_has_to_be_extracted(friends):
    (friends / "train_splits/dia0_utt1.wav").unlink()
    with pytest.raises(InputError, match=r"train_sent_emo\.csv: lists dia0_utt1, of which there is no audio"):
        meld.read(friends)
    (friends / "train_splits/dia0_utt0.wav").unlink()
    with pytest.raises(InputError, match=r"no \.wav in .*train_splits; extract the videos' sound.*ffmpeg -i"):
        meld.read(friends)


# --- MSP-IMPROV, MSP-Podcast ----------------------------------------------------------------------------------------


def test_msp_improv(tmp_path, caplog):
    names = ["S01A-F01-P-FM01", "S02H-M06-R-MM02", "S02H-M06-R-MM03", "S02H-M06-T-MM04"]
    touch(tmp_path, *(f"session1/S01A/P/MSP-IMPROV-{name}.wav" for name in names))
    lines = [
        f"UTD-IMPROV-{name}.avi; {code}; A:2.8; V:3.4; D:3.1 ; N:4.0;" for name, code in zip(names, "AHXO", strict=True)
    ]
    write(tmp_path, "Evaluation.txt", *lines, "Evaluation1; Sad; Depressed; A:3.000000; V:2.000000; D:3 ; N:4;")
    assert by_clip(msp_improv.read(tmp_path), "speaker", "emotion", "sex", "session", "scenario", "kind") == {
        "MSP-IMPROV-S01A-F01-P-FM01": ("F01", "anger", "f", "session1", "S01A", "P"),
        "MSP-IMPROV-S02H-M06-R-MM02": ("M06", "happiness", "m", "session6", "S02H", "R"),
        "MSP-IMPROV-S02H-M06-T-MM04": ("M06", "other", "m", "session6", "S02H", "T"),
    }
    assert "MSP-IMPROV: 1 clips left out" in caplog.text
    write(tmp_path, "Evaluation.txt", *lines[1:])
    with pytest.raises(InputError, match=r"Evaluation\.txt: says nothing of .*F01-P-FM01\.wav"):
        msp_improv.read(tmp_path)


@pytest.mark.parametrize(("audio", "listed"), [("Audios", "labels_consensus.csv"), ("Audio", "labels_concensus.csv")])
def test_msp_podcast(tmp_path, caplog, audio, listed):
    rows = [
        "N,30,Male,Test1",
        "A,39,Female,Train",
        "U,Unknown,Unknown,Development",
        "U,,,Train",
        "X,39,Male,Train",
        "H,1,Male,Test2",
    ]
    files = [f"MSP-PODCAST_0001_{number:04d}.wav" for number in range(len(rows))]
    touch(tmp_path, *(f"{audio}/{name}" for name in files))
    lines = [f"{name},{row}" for name, row in zip(files, rows, strict=True)]
    write(tmp_path, f"Labels/{listed}", "FileName,EmoClass,SpkrID,Gender,Split_Set", *lines)
    table = msp_podcast.read(tmp_path)
    assert by_clip(table.astype(object).fillna("-"), "speaker", "emotion", "sex", "split") == {
        "MSP-PODCAST_0001_0000": ("30", "neutral", "m", "test"),
        "MSP-PODCAST_0001_0001": ("39", "anger", "f", "train"),
        "MSP-PODCAST_0001_0002": ("-", "surprise", "-", "validation"),
        "MSP-PODCAST_0001_0003": ("-", "surprise", "-", "train"),
    }
    assert "1 clips left out: annotators differ" in caplog.text and "1 clips left out: in another set" in caplog.text
    (tmp_path / audio / files[0]).unlink()
    with pytest.raises(InputError, match=rf"{listed}: lists {files[0]}, of which there is no audio"):
        msp_podcast.read(tmp_path)


# --- those whose names say it all -----------------------------------------------------------------------------------


def test_emovo(tmp_path):
    root = touch(tmp_path, "f2/gio-f2-b2.wav", "m1/tri-m1-d1.wav")
    assert by_clip(emovo.read(root), "speaker", "emotion", "sex", "text") == {
        "gio-f2-b2": ("f2", "happiness", "f", "b2"), "tri-m1-d1": ("m1", "sadness", "m", "d1"),
    }  # fmt: skip


def test_nemo(tmp_path):
    root = touch(tmp_path, "samples/EB0_anger_1.wav", "samples/SK0_surprised_2.wav")
    head = "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage"
    rows = [
        "EB0_anger_1.wav\tanger\tOn jest.\ton jest\t EB0\tfemale\t24",
        "SK0_surprised_2.wav\tsurprised\tTak, to\ttak\tSK0\tmale\t30",
    ]
    write(root, "data.tsv", head, *rows)
    assert by_clip(nemo.read(root), "speaker", "emotion", "sex", "text") == {
        "EB0_anger_1": ("EB0", "anger", "f", "On jest."), "SK0_surprised_2": ("SK0", "surprise", "m", "Tak, to"),
    }  # fmt: skip
    write(root, "data.tsv", head, *rows, "XX0_fear_1.wav\tfear\ta\ta\tXX0\tmale\t3")
    with pytest.raises(InputError, match=r"data\.tsv: lists XX0_fear_1\.wav, of which there is no audio"):
        nemo.read(root)


def test_tess_and_its_misnamed_clip(tmp_path):
    root = touch(tmp_path, "OAF_neutral/OA_bite_neutral.wav", "YAF_surprise/YAF_back_ps.wav")
    assert by_clip(tess.read(root), "speaker", "emotion", "sex", "text") == {
        "OA_bite_neutral": ("OAF", "neutral", "f", "bite"), "YAF_back_ps": ("YAF", "surprise", "f", "back"),
    }  # fmt: skip
    with pytest.raises(InputError, match="the same utterance twice"):  # as it is in a copy that many have
        tess.read(touch(root, "copy/YAF_back_ps.wav"))


def test_savee_in_both_layouts(tmp_path):
    nested = touch(tmp_path / "nested", "JE/n23.wav", "KL/n23.wav", "KL/sa01.wav")
    flat = touch(tmp_path / "flat", "ALL/JE_n23.wav", "ALL/KL_n23.wav", "ALL/KL_sa01.wav")
    left, right = (savee.read(root).drop(columns="path") for root in (nested, flat))
    pd.testing.assert_frame_equal(left, right)
    assert left.values.tolist() == [
        ["JE", "neutral", "m", "23"], ["KL", "neutral", "m", "23"], ["KL", "sadness", "m", "01"],
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"the same utterance twice, .*ALL/JE_n23\.wav and .*JE/n23\.wav"):
        savee.read(touch(nested, "ALL/JE_n23.wav"))
    with pytest.raises(InputError, match="ALL/n23.wav is not named like JE_n23, or n23 in a folder JE"):
        savee.read(touch(tmp_path / "lost", "ALL/n23.wav"))


def test_esd_languages(tmp_path):
    root = touch(tmp_path, "0010/Neutral/0010_000189.wav", "0011/Angry/train/0011_000539.wav")
    assert by_clip(esd.read(root), "speaker", "emotion", "text") == {
        "0010_000189": ("0010", "neutral", "mandarin 189"), "0011_000539": ("0011", "anger", "english 189"),
    }  # fmt: skip
    assert list(esd.read(root, language="english")["speaker"]) == ["0011"]
    with pytest.raises(InputError, match=r"0012_000001\.wav: is in none of the folders angry"):
        esd.read(touch(root, "0012/0012_000001.wav"))


@pytest.mark.parametrize(
    ("read", "name", "message"),
    [
        (crema_d.read, "1001_IEO_JOY_HI.wav", "unknown emotion code 'JOY' .*ANG anger"),
        (emovo.read, "foo-f2-b2.wav", "unknown emotion code 'foo'"),
        (tess.read, "OAF_back_calm.wav", "unknown emotion code 'calm'"),
        (savee.read, "JE_x01.wav", "unknown emotion code 'x'"),
        (emovo.read, "song.wav", "song.wav is not named like gio-f2-b2"),
    ],
)
def test_names_that_say_nothing(tmp_path, read, name, message):
    with pytest.raises(InputError, match=message):
        read(touch(tmp_path, name))


@pytest.mark.parametrize("read", [meld.read, msp_improv.read, msp_podcast.read, nemo.read, iemocap.read, tess.read])
def test_an_empty_folder_names_the_key(tmp_path, read):
    with pytest.raises(InputError, match=r"dataset\.root="):
        read(tmp_path)


# --- several corpora at once ----------------------------------------------------------------------------------------

CODES = {"01": "neutral", "03": "happiness", "05": "anger", "08": "surprise"}


@pytest.fixture(scope="module")
def actors(tmp_path_factory):
    """A little RAVDESS: two actors, six clips each of three of EMO-DB's emotions and of one that it has not."""
    root, noise = tmp_path_factory.mktemp("ravdess"), np.random.default_rng(0)
    for actor in ("01", "02"):
        for code in CODES:
            for take in range(6):
                name = f"03-01-{code}-01-0{1 + take % 2}-{1 + take // 2:02d}-{actor}.wav"
                (root / f"Actor_{actor}").mkdir(exist_ok=True)
                soundfile.write(root / f"Actor_{actor}" / name, noise.normal(0, 0.1, 12_000), 16_000)
    return root


@pytest.fixture(scope="module")
def mixed(actors):
    """The overrides of a small run on both."""
    places = [f"dataset.corpora.emodb.root={EMODB}", f"dataset.corpora.ravdess.root={actors}"]
    return [word for word in SMALL if not word.startswith("dataset")] + ["dataset=mixed", *places]


@pytest.fixture(scope="module")
def composed(mixed):
    """composed(changes, emodb={…}, …) → the settings of the data, changed; composed once, which takes half a second."""
    values = plain(compose(mixed))

    def change(changes=None, **of_parts):
        known = values["dataset"]["corpora"]
        parts = {name: node | of_parts.get(name, {}) for name, node in known.items()}
        dataset = values["dataset"] | {"corpora": parts} | (changes or {})
        return Settings.of(tidy(copy.deepcopy(values | {"dataset": dataset}), quiet=True))

    return change


def test_mixed_corpora_have_their_common_classes(composed, caplog):
    settings = composed()
    assert list(settings.plain["dataset"]["corpora"]) == ["emodb", "ravdess"]
    corpus = corpora.load(settings.dataset)
    assert corpus.classes == ["anger", "happiness", "neutral"]
    assert Counter(corpus.table["client"]) == {"emodb/14": 9, "emodb/15": 9, "ravdess/01": 18, "ravdess/02": 18}
    assert Counter(corpus.table["corpus"]) == {"emodb": 18, "ravdess": 36}
    assert {"emodb/a01", "ravdess/01"} <= set(corpus.table["text"])  # no sentence of one is taken for the other's
    assert "emodb: 24 clips left out: of boredom, disgust, fear, sadness, which other corpora" in caplog.text
    assert "ravdess: 12 clips left out: of surprise, which" in caplog.text
    assert set(corpora.load(composed({"client": "corpus"}).dataset).table["client"]) == {"emodb", "ravdess"}
    assert corpora.load(composed(ravdess={"drop": ["neutral"]}).dataset).classes == ["anger", "happiness"]


@pytest.mark.parametrize(
    ("changes", "of_ravdess", "message"),
    [
        (
            {},
            {"drop": ["neutral", "anger"]},
            "emotions in common: emodb has anger, .*; ravdess has happiness, surprise",
        ),
        ({"parts": ["emodb", "ravdes"]}, {}, r"no corpus 'ravdes'; did you mean ravdess\?"),
        ({"parts": ["emodb", "emodb"]}, {}, "must be two corpora or more, each named once"),
        ({"parts": ["emodb"]}, {}, "must be two corpora or more"),
        ({"parts": "emodb"}, {}, "dataset.parts=emodb must be a list"),
        ({"parts": ["emodb", "manifest"]}, {}, r"dataset\.corpora\.manifest\.root must be set"),
        ({"root": "somewhere"}, {}, "dataset.root: mixed corpora have a folder each"),
        ({}, {"root": "/nowhere"}, "no folder /nowhere"),
        ({}, {"channel": 3}, r"dataset\.corpora\.ravdess\.channel=3 must be a word"),
        ({}, {"classes": "all"}, r"dataset\.corpora\.ravdess\.classes=all must be a list"),
        (
            {},
            {"chanel": "song"},
            r"dataset\.corpora\.ravdess\.chanel: read has no such setting. Did you mean 'channel'",
        ),
    ],
)
def test_mixed_corpora_that_do_not_go_together(composed, changes, of_ravdess, message):
    with pytest.raises(InputError, match=message) as caught:
        settings = composed(changes, ravdess=of_ravdess)
        settings.dataset.component.check()
        corpora.load(settings.dataset)
    assert "\n" not in str(caught.value)


def test_mixed_corpora_are_trained_on_and_reported(mixed, tmp_path):
    result = run(compose([*mixed, "defence=none", "attack=none"]), tmp_path / "run")
    assert (
        result.metrics["uar/original"] >= 0
        and len(json.loads((tmp_path / "run/evaluation.json").read_text())["clients"]) == 4
    )
    (corpus,) = models.corpora(report.load([tmp_path / "run"]))
    table = next(table for table in tables.all_tables(corpus) if table.name == "corpora")
    kept = pd.read_csv(tmp_path / "run/utterances.csv", dtype=str)
    rows = table.data[table.data["condition"] == "original"].set_index("corpus")
    for part, own in kept.groupby(kept["speaker"].str.partition("/")[0]):
        recalls = own["correct/original"].astype(float).groupby(own["emotion"]).mean()
        assert rows.loc[part, "uar"] == pytest.approx(recalls.mean()) and rows.loc[part, "clips"] == len(own)
    assert set(rows.index) == {"emodb", "ravdess"}


# --- what is recognised ---------------------------------------------------------------------------------------------


def test_target_is_the_label(small, tmp_path):
    node = {"root": str(EMODB), "drop": ["boredom"]}
    speakers, sexes = (load("emodb", target=target, **node) for target in ("speaker", "sex"))
    assert speakers.classes == ["14", "15"] and sexes.classes == ["f", "m"] and len(speakers.table) == 36
    assert [speakers.classes[label] for label in speakers.table["label"]] == list(speakers.table["speaker"])
    plain = load("emodb", **node)
    pd.testing.assert_frame_equal(plain.table.drop(columns="label"), sexes.table.drop(columns="label"))
    words = ["dataset.target=speaker", "partition=iid", "partition.clients=2", "defence=none", "attack=none"]
    result = small(*words)
    kept = pd.read_csv(result.folder / "utterances.csv", dtype=str)
    assert (kept["emotion"] == kept["speaker"]).all() and set(kept["emotion"]) == {"14", "15"}
    (corpus,) = models.corpora(report.load([result.folder]))
    assert corpus.classes == ("14", "15") and tables.all_tables(corpus)


def test_targets_that_there_are_not(tmp_path, settings):
    with pytest.raises(InputError, match=r"dataset\.target=speaker: with partition=speaker .*set partition=iid"):
        settings("dataset.target=speaker")
    with pytest.raises(InputError, match=r"dataset\.target=speaker: partition/split=speaker tests on .*split=random"):
        settings("dataset.target=speaker", "partition=iid", "partition/split=speaker")
    touch(tmp_path, "JE/n23.wav", "KL/a01.wav")
    with pytest.raises(InputError, match=r"dataset\.target=sex: there is nothing to tell apart in \[m\]"):
        load("savee", root=str(tmp_path), target="sex")
    write(tmp_path, "list.csv", "path,speaker,emotion,sex", "JE/n23.wav,a,x,m", "KL/a01.wav,b,y,")
    with pytest.raises(InputError, match=r"dataset\.target=sex: .*a01\.wav has no sex \(1 of 2 clips like that\)"):
        load("manifest", root=str(tmp_path / "list.csv"), target="sex")


def test_a_run_of_before_has_emotions():
    node = OmegaConf.to_container(OmegaConf.load(CONF / "dataset/emodb.yaml"), resolve=True)
    assert parse(Dataset, Dataset.opened({key: node[key] for key in node if key != "target"})).target == "emotion"


# --- machines, rooms, birds: nobody speaks --------------------------------------------------------------------------


@pytest.fixture
def machines(tmp_path):
    clips = sorted((EMODB / "wav").glob("*.flac"))
    lines = [f"{clip},{'fan' if place % 2 else 'pump'}" for place, clip in enumerate(clips)]
    write(tmp_path, "machines.csv", "path,emotion", *lines)
    return ["dataset=manifest", f"dataset.root={tmp_path / 'machines.csv'}"]


def test_other_domains_need_no_speakers(small, machines, settings):
    with pytest.raises(InputError, match=r"partition=speaker: .*\.flac has no speaker \(42 of 42 .*set partition=iid"):
        prepare(settings(*machines))
    with pytest.raises(InputError, match=r"partition\.clients must be set"):
        prepare(settings(*machines, "partition=iid"))
    with pytest.raises(InputError, match="partition/split=speaker: 42 of 42 clips have no speaker"):
        prepare(settings(*machines, "partition=iid", "partition.clients=2", "partition/split=speaker"))
    result = small(*machines, "partition=iid", "partition.clients=3", "defence=none", "attack=none")
    kept = pd.read_csv(result.folder / "utterances.csv", dtype=str)
    assert kept["speaker"].isna().all() and set(kept["emotion"]) == {"fan", "pump"}
    (corpus,) = models.corpora(report.load([result.folder]))
    named = {table.name: table for table in tables.all_tables(corpus)}
    assert "speakers" not in named and "corpora" not in named and corpus.models[0].estimates["original"].interval


def test_sentences_of_nobody_are_not_one_speakers():
    frame = pd.DataFrame({"speaker": None, "text": ["x", "x", "y", "z"]})
    splits = [ClientSplit(0, "a", np.array([0, 2]), np.array([], int), np.array([1, 3]))]
    assert repeated(frame, splits) == {"test": 2, "speaker": 0, "sentence": 1}


# --- other people's folds -------------------------------------------------------------------------------------------


def split_of(split, options):
    node = OmegaConf.to_container(OmegaConf.load(CONF / "partition/speaker.yaml"))
    chosen = OmegaConf.to_container(OmegaConf.load(CONF / f"partition/split/{split}.yaml")) | options
    return parse(Partition, Partition.opened(node | {"split": chosen}), "partition.")


def write_fold(folder, **parts):
    """A fold's files as EmoBox has them; a length of its own for each clip, which nobody may believe."""
    for part, wavs in parts.items():
        lines = [
            json.dumps({"key": f"emodb-{wav}", "wav": wav, "emo": "x", "length": -1.0, "channel": 3}) for wav in wavs
        ]
        write(folder, f"emodb_{part}_fold_1.jsonl", *lines)
    return folder


def speakers_table(clips=6):
    """Clips of two speakers in folders of their own, whose numbers begin anew in each."""
    who = np.repeat(["a", "b"], clips)
    paths = [f"/corpus/{name}/clip{place % clips}.wav" for place, name in enumerate(who)]
    return pd.DataFrame({"path": paths, "speaker": who, "client": who, "label": np.arange(2 * clips) % 2})


def wavs(*places):
    return [f"downloads/emodb/{place[0]}/clip{place[1]}.mp4" for place in places]


def split(frame, folder, **options):
    return {each.name: each for each in partition(frame, split_of("file", {"folder": str(folder), **options}), 0)}


def test_a_fold_is_joined_by_relative_path(tmp_path, caplog):
    parts = {"train": wavs("a0", "a1", "b0", "b2"), "valid": wavs("a2"), "test": wavs("a3", "b3", "b4")}
    found = split(speakers_table(), write_fold(tmp_path, **parts))
    assert [list(rows) for rows in (found["a"].train, found["a"].validation, found["a"].test)] == [[0, 1], [2], [3]]
    assert [list(rows) for rows in (found["b"].train, found["b"].validation, found["b"].test)] == [[6, 8], [], [9, 10]]
    assert f"{tmp_path}: 4 of 12 clips of the corpus are in no file of it, and left out" in caplog.text


def test_a_fold_without_validation_by_names_alone(tmp_path):
    frame = speakers_table().assign(path=[f"/corpus/{name}{place}.flac" for name in "ab" for place in range(6)])
    write_fold(
        tmp_path,
        train=["x/wav/a0.wav", "x/wav/a1.wav", "x/wav/b0.wav", "x/wav/b1.wav"],
        test=[f"y/{n}{p}.wav" for n in "ab" for p in (2, 3, 4, 5)],
    )
    found = split(frame, tmp_path)
    assert len(found["a"].test) == 4 and not len(found["a"].validation)
    joined = frame.assign(path=[f"/corpus/{name}/n{place}.wav" for name in "ab" for place in range(6)])
    flat = [f"savee/{name}_n{place}.wav" for name in "ab" for place in range(6)]  # SAVEE in its other layout
    write_fold(tmp_path, train=flat[::2], test=flat[1::2])
    assert list(split(joined, tmp_path)["b"].train) == [6, 8, 10]


def test_a_client_without_training_clips_is_unseen(tmp_path):
    some = {"train": wavs("a0", "a1", "a2"), "test": wavs("a3", "b0", "b1", "b2")}
    found = split(speakers_table(), write_fold(tmp_path, **some))
    assert found["a"].seen and not found["b"].seen and list(found["b"].test) == [6, 7, 8]
    write_fold(tmp_path, train=wavs("a0", "a1", "a2"), test=wavs("b0", "b1", "b2", "b3"))
    with pytest.raises(InputError, match=r"tests clients whom nobody trains on.*partition=iid partition\.clients=10"):
        split(speakers_table(), tmp_path)


def test_folds_that_do_not_fit(tmp_path):
    def refused(message, folder=tmp_path, frame=None, **options):
        with pytest.raises(InputError, match=message) as caught:
            split(speakers_table() if frame is None else frame, folder, **options)
        assert "\n" not in str(caught.value)

    refused(r"folder=.*nowhere: there is no such folder", tmp_path / "nowhere")
    refused(r"has no files \*_train_\*\.jsonl, where one is needed")
    write_fold(tmp_path, train=wavs("a0", "a1", "b0", "b1"), test=wavs("a2", "b2", "c7"))
    refused(r"test_fold_1\.jsonl: names downloads/emodb/c/clip7\.mp4, which the corpus has not \(1 of 3 .*unknown=skip")
    assert len(split(speakers_table(), tmp_path, unknown="skip")) == 2
    refused("6 of 12|are in no file of it, .*is it this corpus's fold", frame=speakers_table(10), unknown="skip")
    write_fold(tmp_path, test=wavs("a2", "b1"))
    refused(r"test_fold_1\.jsonl: /corpus/b/clip1\.wav is in train too")
    write(tmp_path, "emodb_test_fold_1.jsonl", '{"wav": "a/clip2.wav"}', "nonsense")
    refused(r"test_fold_1\.jsonl, line 2: is no JSON object with a key wav")
    write(tmp_path, "emodb_test_fold_2.jsonl", '{"wav": "a/clip2.wav"}')
    refused(r"has 2 files \*_test_\*\.jsonl, where one is needed")


def test_a_real_run_on_a_fold(small, settings, tmp_path):
    clips = sorted(path.stem for path in (EMODB / "wav").glob("*.flac"))
    own = {"train": clips[::2], "valid": clips[1::4], "test": clips[3::4]}
    folder = write_fold(
        tmp_path / "fold_1",
        **{part: [f"downloads/emodb/wav/{clip}.wav" for clip in each] for part, each in own.items()},
    )
    words = [
        "partition/split=file",
        f"partition.split.folder={folder}",
        "selection=best",
        "defence=none",
        "attack=none",
    ]
    result = small(*words)
    kept = pd.read_csv(result.folder / "utterances.csv", dtype=str)
    assert sorted(Path(path).stem for path in kept["utterance"]) == sorted(own["test"])
    before = identity.digest(identity.training(settings(*words)))
    write_fold(folder, test=[f"{clip}.wav" for clip in own["test"][1:]])
    assert identity.digest(identity.training(settings(*words))) != before  # the lists count, not where they lie
    with pytest.raises(InputError, match=r"partition\.split\.folder must be set"):
        settings("partition.split=file")
