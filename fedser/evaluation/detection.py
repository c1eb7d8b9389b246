"""What a detector of adversarial examples is worth: clients' sums that it is learnt from, and figures of its scores.

Scores are pooled over clients. Beside the detector's stands the simplest one, 1 − the largest softmax (Hendrycks &
Gimpel 2017): a model that is unsure may have been attacked.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedser.detectors.detector import Watched
from fedser.detectors.moments import Moments
from fedser.models.embedding import described

NAME = "detector"  # of the part of an evaluation, of the query's action, of metrics
ORIGINAL = "original"


@torch.no_grad()
def moments(model: nn.Module, inputs: Iterable[Tensor], lengths: Tensor, batch_size: int) -> Moments:
    """Of what the model in eval mode makes of clips, logits and embeddings; `inputs` are sets of them, each [n, …]."""
    model.eval()
    parts = [
        torch.cat(described(model, *part), dim=1)
        for x in inputs
        for part in zip(x.split(batch_size), lengths.split(batch_size), strict=True)
    ]
    return Moments.of(torch.cat(parts).cpu().numpy())


@torch.no_grad()
def scores(watched: Watched, x: Tensor, lengths: Tensor | None, batch_size: int) -> Tensor:
    """The detector's suspicion and 1 − the largest softmax of x [n, 1, T, F]: [2, n], on the CPU."""
    watched.eval()
    real = [None] * len(x) if lengths is None else lengths.to(x.device).split(batch_size)
    found = [torch.empty(2, 0)]
    for part in zip(x.split(batch_size), real, strict=False):
        logits, suspicion = watched.watched(*part)
        found.append(torch.stack([suspicion, 1 - logits.softmax(1).amax(1)]).float().cpu())
    return torch.cat(found, dim=1)


def answer(scored: dict[str, Tensor], predictions: dict[str, Tensor], y: Tensor, clip_by_clip: bool) -> dict:
    """A client's counts per condition of `scored` ([2, n] each), in plain values; the scores only `clip_by_clip`."""
    told = {}
    for condition, (suspicion, unsure) in scored.items():
        wrong, caught = predictions[condition][0] != y.cpu(), suspicion > 0
        counts = {"clips": len(wrong), "caught": int(caught.sum()), "wrong": int(wrong.sum())}
        told[condition] = counts | {"slipped": int((wrong & ~caught).sum())}
        if clip_by_clip:
            told[condition] |= {"score": suspicion.tolist(), "unsure": unsure.tolist()}
    return told


def figures(answers: Sequence[dict]) -> dict[str, dict[str, float | None]]:
    """Per condition, of all clients' answers: shares of the clips `caught` (of original ones: false alarms), `wrong`
    and `slipped` (both wrong and not caught); of attacked ones `auc` and `auc_unsure` against the original ones, None
    where clients told counts only."""
    pooled = {name: _pooled([each[name] for each in answers]) for name in (answers[0] if answers else ())}
    found = {}
    for name, part in pooled.items():
        found[name] = {key: part[key] / part["clips"] for key in ("caught", "wrong", "slipped") if part["clips"]}
        if name != ORIGINAL:
            clean = pooled[ORIGINAL]
            found[name] |= {"auc": auc(clean["score"], part["score"])}
            found[name] |= {"auc_unsure": auc(clean["unsure"], part["unsure"])}
    return {name: part for name, part in found.items() if pooled[name]["clips"]}


def _pooled(parts: list[dict]) -> dict:
    sums = {key: sum(part[key] for part in parts) for key in ("clips", "caught", "wrong", "slipped")}
    return sums | {key: np.concatenate([part.get(key, []) for part in parts]) for key in ("score", "unsure")}


def auc(negatives: np.ndarray, positives: np.ndarray) -> float | None:
    """The share of pairs in which the positive has the higher score, ties half (Mann & Whitney 1947); None for none."""
    if not len(negatives) or not len(positives):
        return None
    ordered = np.sort(negatives)
    below, upto = (np.searchsorted(ordered, positives, side) for side in ("left", "right"))
    return float((below + upto).mean() / 2 / len(ordered))


def metrics(found: dict[str, dict]) -> dict[str, float]:
    """`detector/auc/<attack>` and `detector/false_alarms` of `figures`, where they are known."""
    aucs = {f"{NAME}/auc/{name.partition('/')[2]}": part.get("auc") for name, part in found.items()}
    alarms = {f"{NAME}/false_alarms": found[ORIGINAL]["caught"]} if ORIGINAL in found else {}
    return {key: value for key, value in aucs.items() if value is not None} | alarms
