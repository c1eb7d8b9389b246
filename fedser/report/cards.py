"""Trust cards on disk: a folder for each model that can be published as it is, page, README.md and weights."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from fedser.report import text
from fedser.report.analysis.card import Card
from fedser.report.analysis.models import Corpus


def names(cards: Sequence[Card], prefix: str) -> list[str]:
    """A folder's name for each."""
    found = [prefix + (re.sub(r"[^\w.-]+", "-", card.model.label).strip("-") or "model") for card in cards]
    return [name if found.count(name) == 1 else f"{name}-{place}" for place, name in enumerate(found, start=1)]


def write(corpus: Corpus, card: Card, folder: Path) -> list[Path]:
    """index.html, to read and to print; README.md with the metadata that hubs read; the weights of the first seed."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"corpus": corpus, "card": card, "weights": card.run.weights.is_file()}
    pages = {"index.html": ("card.html", {}), "README.md": ("card.md", {"metadata": metadata(corpus, card)})}
    for name, (template, more) in pages.items():
        made = text.environment().get_template(template).render(facts | more)
        (folder / name).write_text(made, encoding="utf-8")
    if facts["weights"]:
        shutil.copyfile(card.run.weights, folder / card.run.weights.name)
    return [folder / name for name in (*pages, *[card.run.weights.name] * facts["weights"])]


def metadata(corpus: Corpus, card: Card) -> str:
    """The YAML front matter of a model card: task, language, corpus, and each UAR as a result."""
    dataset = corpus.name.partition(" ")[0]
    metrics = [
        {"type": "recall", "name": f"UAR, {name}", "value": round(100 * estimate.uar, 1)}
        for name, estimate in card.model.estimates.items()
    ]
    found = {
        "task": {"type": "audio-classification", "name": "Speech Emotion Recognition"},
        "dataset": {"type": dataset, "name": dataset, "split": "test"},
        "metrics": metrics,
    }
    head = {"library_name": "fedser", "pipeline_tag": "audio-classification"}
    language = card.run.setting("dataset.language_code")
    head |= {"language": language} if language else {}
    head |= {"tags": ["speech-emotion-recognition", "federated-learning", "adversarial-robustness"]}
    head |= {"datasets": [dataset], "metrics": ["recall"]}
    head |= {"model-index": [{"name": f"fedser {dataset} {card.model.label}", "results": [found]}]}
    return OmegaConf.to_yaml(OmegaConf.create(head)).strip()
