"""Trust cards: a page, a hub's metadata and the weights of each model."""

import pytest
from conftest import FIXTURES
from omegaconf import OmegaConf
from runs import Made, make_grid, make_run

import fedser
from fedser import report
from fedser.config.compose import compose
from fedser.report.analysis import models
from fedser.report.analysis.card import cards


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    make_grid(folder, ("nature", "fgsm"))
    (found,) = models.corpora(report.load([folder]))
    return found


def figures(card, title):
    (part,) = (part for part in card.parts if part.title == title)
    return part.figures


def test_every_figure_has_its_interval_and_protocol(corpus):
    nature, _ = cards(corpus)
    (clean, *_), robust = figures(nature, "Recognition"), figures(nature, "Robustness")
    estimate = nature.model.estimates["original"]
    assert clean.value.startswith(f"{100 * estimate.uar:.1f} ± ") and clean.interval.startswith("[")
    assert f"{estimate.utterances} clips of 10 speakers; 2 seeds, mean ± sd" in clean.protocol
    for kind, figure in zip(("adversarial", "randomised_adversarial", "adaptive"), robust, strict=True):
        assert figure.value.startswith(f"{100 * corpus.worst(nature.model, kind).uar:.1f} ±")
    assert [part.title for part in nature.parts if not part.figures] == ["Safety on the waveform", "Cost"]
    assert [figure.value for figure in figures(nature, "Privacy")] == ["no guarantee"]
    measured = [each for part in nature.parts for each in part.figures if part.title != "Privacy"]
    assert all(figure.interval and not figure.published for figure in measured)


def with_settings(folder, settings, made=None):
    make_run(folder, made, full=False)
    config = OmegaConf.load(folder / "config.yaml")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.merge(config, settings)))
    (corpus,) = models.corpora(report.load([folder]))
    (card,) = cards(corpus)
    return card


def test_published_values_stand_where_the_setting_is_theirs(tmp_path):
    theirs, ours = ({"model": {"name": name}} for name in ("vgg15", "cnn4"))
    for place, (dataset, settings, expected) in enumerate(
        [("demos", theirs, "94.08 (Chang et al. 2022)"), ("demos", ours, ""), ("emodb", theirs, "")]
    ):
        card = with_settings(tmp_path / str(place), settings, Made(dataset=dataset))
        assert figures(card, "Recognition")[0].published == expected


@pytest.mark.parametrize(("checkpoint", "published", "noted"), [("x", True, False), (None, False, True)])
def test_random_weights_are_marked_and_held_beside_nothing(tmp_path, checkpoint, published, noted):
    model = {"name": "ssl", "backbone": "wavlm", "checkpoint": checkpoint, "tune": "frozen"}
    card = with_settings(tmp_path / "run", {"model": model})
    assert figures(card, "Recognition")[0].published.startswith("67.1") == published
    assert any("random weights" in note for note in card.notes) == noted


def test_a_cards_folder_can_be_published_as_it_is(tmp_path):
    overrides = ["dataset=emodb", f"dataset.root={FIXTURES / 'emodb'}", "simulation=serial", "logger=none", "rounds=1"]
    run = fedser.run(compose([*overrides, "attack=none", "defence=none", "evaluation.every=null"]), tmp_path / "run")
    written = report.write(report.load([run.folder]), tmp_path / "report")
    folder = tmp_path / "report/cards/nature"
    assert {path.name for path in folder.iterdir()} == {"index.html", "README.md", "model.safetensors"}
    assert set(folder.iterdir()) < set(written)
    clip = next((FIXTURES / "emodb").rglob("*.flac"))
    assert fedser.load(folder).predict(clip) == fedser.load(run.folder).predict(clip)
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    (found,) = OmegaConf.to_container(OmegaConf.create(head))["model-index"][0]["results"]
    assert found["metrics"][0]["value"] == pytest.approx(100 * run.metrics["uar/original"], abs=0.05)
    assert "| UAR, original |" in text and f"| Parameters | {run.metrics['cost']['parameters']:,} |" in text
    assert 'href="cards/nature/index.html"' in (tmp_path / "report/index.html").read_text()
    report.write(report.load([make_run(tmp_path / "other", full=False)]), tmp_path / "report")
    assert not (folder / "model.safetensors").exists()  # of the report that was here before
