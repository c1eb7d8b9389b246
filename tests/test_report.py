"""The report on run folders made by hand, with numbers worked out by hand."""

import json
import math
import subprocess
import sys

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from fedser import report
from fedser.errors import InputError

CLASSES = ["anger", "joy", "sadness"]
CONFIG = """\
dataset: {name: emodb}
model: {name: cnn4}
attack: {name: pgd, eps: 5e-2}
defence: {name: two_stage}
strategy: {name: fedavg}
rounds: 4
seed: 3
"""
FINAL = {
    "uar/original": 0.83251,
    "uar/randomised": 0.8,
    "uar/adversarial/pgd": 0.2,
    "uar/randomised_adversarial/pgd": 0.456,
}


def make_run(
    folder, name="two-stage", config=CONFIG, final=FINAL, rounds=4, status="finished", confusion=True, **summary
):
    """A run evaluated in every second round, whose UARs grow linearly up to `final`."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    records = [{"round": r, "train/loss": 2 / r} for r in range(1, rounds + 1)]
    for record in records:
        if record["round"] % 2 == 0:
            record.update({key: value * record["round"] / rounds for key, value in final.items()})
    (folder / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = {"status": status, "name": name, "rounds": rounds, "seconds": 9.5, **summary}
    (folder / "summary.json").write_text(json.dumps(summary | (final if status == "finished" else {})))
    if confusion:
        matrix = [[8, 1, 1], [0, 5, 5], [2, 2, 16]]
        conditions = {key.removeprefix("uar/"): matrix for key in final}
        content = {"classes": CLASSES, "rounds": rounds, "conditions": conditions, "clients": {}}
        (folder / "confusion.json").write_text(json.dumps(content))
    return folder


def markdown_rows(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in rows]


def assert_is_a_picture(path):
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 300
    assert pixels.std() > 0.02
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50


def test_writes_table_curves_and_confusion_matrices(tmp_path):
    runs = report.load([make_run(tmp_path / "run")])
    written = report.write(runs, tmp_path / "new" / "report")

    assert [path.name for path in written] == ["table.csv", "table.md", "uar-curves.png", "confusion-two-stage.png"]
    row = pd.read_csv(written[0]).iloc[0]
    assert row["name"] == "two-stage"
    settings = ["dataset", "model", "defence", "attack", "strategy"]
    assert list(row[settings]) == ["emodb", "cnn4", "two_stage", "pgd", "fedavg"]
    assert list(row[["eps", "seed", "rounds", "rounds_planned"]]) == [0.05, 3, 4, 4]
    assert {key: row[key] for key in FINAL} == FINAL
    assert row["folder"] == str((tmp_path / "run").resolve())
    (shown,) = markdown_rows(written[1])
    assert (shown["ε"], shown["seed"], shown["rounds"], shown["status"]) == ("0.05", "3", "4", "finished")
    assert (shown["original"], shown["randomised"]) == ("83.3", "80.0")
    assert (shown["adversarial · pgd"], shown["randomised adversarial · pgd"]) == ("20.0", "45.6")
    for path in written[2:]:
        assert_is_a_picture(path)


def test_curves_plot_per_cent_against_rounds(tmp_path):
    figure = report.curves(report.load([make_run(tmp_path / "run")]))
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["original", "randomised", "adversarial · pgd", "randomised adversarial · pgd"]
    line = panels["adversarial · pgd"].get_lines()[0]
    assert list(line.get_xdata()) == [2, 4]
    assert line.get_ydata() == pytest.approx([10, 20])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["two-stage", "chance (33.3 %)"]


def test_confusion_is_normalised_by_row(tmp_path):
    figure = report.confusion(report.load([make_run(tmp_path / "run")])[0])
    axes = figure.axes[0]
    recall = [[80, 10, 10], [0, 50, 50], [10, 10, 80]]
    assert axes.get_images()[0].get_array().tolist() == recall
    assert [text.get_text() for text in axes.texts][:2] == ["80", "8"]
    assert [label.get_text() for label in axes.get_yticklabels()] == CLASSES
    assert axes.get_title() == "original\nUAR 83.3 %"


def test_class_without_test_data_stays_empty(tmp_path):
    folder = make_run(tmp_path / "run")
    content = {"classes": ["a", "$b"], "rounds": 4, "conditions": {"original": [[3, 1], [0, 0]]}, "clients": {}}
    (folder / "confusion.json").write_text(json.dumps(content))
    assert_is_a_picture(report.write(report.load([folder]), tmp_path / "report")[-1])
    recall = report.confusion(report.load([folder])[0]).axes[0].get_images()[0].get_array()
    assert recall.tolist()[0] == [75, 25]
    assert recall.mask.tolist()[1] == [True, True]


def test_finds_nested_runs_in_natural_order_and_none_twice(tmp_path):
    for number in (10, 2, 1):
        make_run(tmp_path / "sweep" / str(number), name=f"job {number}")
    runs = report.load([tmp_path / "sweep" / "2", tmp_path])
    assert [run.name for run in runs] == ["job 2", "job 1", "job 10"]


def test_several_attacks_have_columns_each_in_pairs(tmp_path):
    fgsm = {"uar/original": 0.9, "uar/adversarial/fgsm": 0.4, "uar/adversarial/deepfool": 0.3}
    first = make_run(tmp_path / "a", "first", final=fgsm)
    runs = report.load([first, make_run(tmp_path / "b", "second")])
    frame = report.table(runs)
    assert [column for column in frame.columns if column.startswith("uar/")] == [
        "uar/original",
        "uar/randomised",
        "uar/adversarial/fgsm",
        "uar/adversarial/deepfool",
        "uar/adversarial/pgd",
        "uar/randomised_adversarial/pgd",
    ]
    assert math.isnan(frame["uar/adversarial/fgsm"][1])
    written = report.write(runs, tmp_path / "report")
    assert markdown_rows(written[1])[1]["adversarial · fgsm"] == "–"
    adversarial = report.curves(runs).axes[2]
    assert adversarial.get_title() == "adversarial"
    assert len({str(line.get_linestyle()) for line in adversarial.get_lines()[:3]}) >= 2
    assert_is_a_picture(written[2])


def test_runs_of_one_name_stay_apart(tmp_path):
    runs = report.load([make_run(tmp_path / "a", "x|[y]/z"), make_run(tmp_path / "b", "x|[y]/z")])
    assert report.labels(runs) == ["x|[y]/z", "x|[y]/z #2"]
    written = report.write(runs, tmp_path / "report")
    assert [path.name for path in written[3:]] == ["confusion-x-y-z.png", "confusion-x-y-z-2.png"]
    assert "| x\\|[y]/z #2 |" in written[1].read_text()
    report.show(runs)


def test_failed_run_shows_what_it_has(tmp_path, caplog):
    error = "speaker 03: loss is NaN\nmore"
    folder = make_run(tmp_path / "run", rounds=2, status="failed", confusion=False, error=error)
    runs = report.load([folder])
    written = report.write(runs, tmp_path / "report")
    (shown,) = markdown_rows(written[1])
    assert (shown["status"], shown["rounds"], shown["original"]) == ("failed", "2 / 4", "83.3")
    assert "- two-stage: speaker 03: loss is NaN\n" in written[1].read_text()
    assert [path.name for path in written] == ["table.csv", "table.md", "uar-curves.png"]
    assert caplog.messages == ["two-stage: has no confusion matrices to draw"]


def test_run_that_failed_at_once_is_a_row_of_dashes(tmp_path, caplog):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "summary.json").write_text('{"status": "failed"}')
    written = report.write(report.load([folder]), tmp_path / "report")
    (shown,) = markdown_rows(written[1])
    assert (shown["name"], shown["dataset"], shown["rounds"], shown["status"]) == ("run", "–", "–", "failed")
    assert [path.name for path in written] == ["table.csv", "table.md"]
    assert len(caplog.messages) == 3
    report.show(report.load([folder]))


def test_single_round_with_nan_and_null(tmp_path):
    final = {"uar/original": 0.5, "uar/randomised": math.nan, "uar/adversarial/pgd": None}
    folder = make_run(tmp_path / "run", final={}, rounds=1)
    (folder / "history.jsonl").write_text(json.dumps({"round": 1, **final}) + "\n")
    (folder / "summary.json").write_text(json.dumps({"status": "finished", "name": "one", **final}))
    runs = report.load([folder])
    assert runs[0].curve("original") == ([1], [0.5])
    assert runs[0].curve("randomised") == ([], [])
    written = report.write(runs, tmp_path / "report")
    (shown,) = markdown_rows(written[1])
    assert (shown["original"], shown["randomised"], shown["adversarial · pgd"]) == ("50.0", "–", "–")
    assert [axes.get_title() for axes in report.curves(runs).axes] == ["original"]
    assert_is_a_picture(written[2])


def test_many_long_names_fit(tmp_path):
    for number in range(9):
        make_run(tmp_path / str(number), name=f"{'long-' * 20}attack.eps=0.{number}-{'tail-' * 10}", confusion=False)
    runs = report.load([tmp_path])
    texts = [text.get_text() for text in report.curves(runs).legends[0].get_texts()]
    assert len(set(texts)) == 9
    assert all(f"eps=0.{number}" in text and len(text) <= 42 for number, text in enumerate(texts))
    assert_is_a_picture(report.write(runs, tmp_path / "report")[2])


def test_legend_drops_hashes_where_names_differ_without_them():
    names = ["emodb-none-0123456789abcdef", "emodb-two_stage-fedcba9876543210"]
    assert report.brief(names, 40) == ["emodb-none", "emodb-two_stage"]
    assert report.brief(["a-0123456789", "a-9876543210"], 40) == ["a-0123456789", "a-9876543210"]


def test_resumed_history_counts_the_later_record(tmp_path):
    folder = make_run(tmp_path / "run")
    with (folder / "history.jsonl").open("a") as file:
        file.write('{"round": 4, "uar/original": 0.7}\n')
    assert report.load([folder])[0].curve("original") == ([2, 4], [0.83251 / 2, 0.7])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", '{"status": "finished",\n "name": }', "summary.json:2: not JSON"),
        ("summary.json", "[1]", "summary.json:1: not a JSON object"),
        ("summary.json", '{"uar/original": "high"}', "summary.json:1: uar/original is 'high', not a number"),
        ("history.jsonl", '{"round": 1}\n{"round": 2', "history.jsonl:2: not JSON"),
        ("history.jsonl", '{"round": 1}\n\n{"loss": 2}\n', "history.jsonl:3: has no round"),
        ("confusion.json", '{"classes": ["a", "b"],\n', "confusion.json:2: not JSON"),
        ("confusion.json", '{"classes": ["a"]}', "confusion.json: lacks classes or conditions"),
        ("confusion.json", '{"classes": ["a", "b"], "conditions": {"original": [[1, 2]]}}', "original is not a 2 × 2"),
        ("confusion.json", '{"classes": ["a"], "conditions": {"original": [[null]]}}', "not a count"),
        ("config.yaml", "a: 1\nb: [", "config.yaml:2: not a config"),
        ("config.yaml", "- a", "config.yaml: not a config"),
        ("summary.json", b"\xff\xfe", "summary.json: cannot be read"),
    ],
)
def test_broken_file_is_named(tmp_path, file, content, message, capsys):
    folder = make_run(tmp_path / "run")
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        report.load([folder])
    assert message in str(error.value)
    assert report.main([str(folder), "--output", str(tmp_path / "report")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_half_written_last_line_of_a_run_under_way_is_left_out(tmp_path):
    folder = make_run(tmp_path / "run", status="running")
    with (folder / "history.jsonl").open("a") as file:
        file.write('{"round": 5, "train/lo')
    assert report.load([folder])[0].rounds == 4


def test_wrong_paths_exit_2_with_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for path, message in [("none", "no such folder"), ("empty", "holds no run"), ("file", "is a file")]:
        assert report.main([str(tmp_path / path)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    run = make_run(tmp_path / "run")
    assert report.main([str(run), "--output", str(tmp_path / "file")]) == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_different_corpora_or_classes_warn_once(tmp_path, caplog):
    emodb = make_run(tmp_path / "a")
    ravdess = make_run(tmp_path / "b", config=CONFIG.replace("emodb", "ravdess"))
    report.load([emodb, ravdess])
    assert caplog.messages == ["the runs are of different corpora (emodb, ravdess): their UARs do not compare"]
    caplog.clear()
    fewer = make_run(tmp_path / "c")
    content = {"classes": ["a", "b"], "conditions": {"original": [[1, 0], [0, 1]]}}
    (fewer / "confusion.json").write_text(json.dumps(content))
    runs = report.load([emodb, fewer])
    assert [message.split(" (")[0] for message in caplog.messages] == ["the runs have different classes"]
    assert len(report.write(runs, tmp_path / "report")) == 5


@pytest.mark.parametrize("wide", [True, False])
def test_command_prints_and_writes(tmp_path, capsys, monkeypatch, wide):
    make_run(tmp_path / "runs" / "a", "nature", config=CONFIG.replace("two_stage", "randomise"))
    make_run(tmp_path / "runs" / "b", "[two-stage]")
    monkeypatch.chdir(tmp_path)
    if not wide:
        monkeypatch.setenv("COLUMNS", "50")
        monkeypatch.setattr("rich.console.Console.is_terminal", True)
    assert report.main(["runs"]) == 0
    out = capsys.readouterr().out
    for word in ("dataset emodb", "nature", "[two-stage]", "randomise", "83.3", "45.6", "table.csv"):
        assert word in out
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "confusion-nature.png",
        "confusion-two-stage.png",
        "table.csv",
        "table.md",
        "uar-curves.png",
    ]


def test_help_needs_no_heavy_import():
    code = (
        "import sys; from fedser import report\n"
        "try: report.main(['--help'])\n"
        "except SystemExit: print({'numpy', 'pandas', 'matplotlib', 'rich', 'torch', 'omegaconf'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
