"""A trained model for whoever wants to use it: from a waveform, or a file, to probabilities of emotions.

>>> recogniser = fedser.load("outputs/RUN")
>>> recogniser.predict("clip.wav")
{'anger': 0.93, 'boredom': 0.01, …}
>>> logits = recogniser(waveforms, lengths)  # [B, samples] at recogniser.sample_rate, [B] → [B, classes]
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedser.config import components, trust
from fedser.config.schema import Group, parse
from fedser.config.settings import Settings
from fedser.defences import inference
from fedser.errors import InputError
from fedser.features import audio, normalisation
from fedser.features.front_end import LogMel, fitted
from fedser.features.normalisation import Normaliser, Sums
from fedser.models import weights
from fedser.models.lengths import logits
from fedser.randomness import generator
from fedser.runs import files

log = logging.getLogger(__name__)


class Recogniser(nn.Module):
    """Front end ∘ normaliser ∘ network as one module: waveforms in, logits out. Without `normalise_by`, log-Mels as
    they are.

    classes: the emotions, in the order of the logits.
    network: normalised log-Mels x [B, 1, frames, mels], or waveforms [B, 1, samples, 1] → logits [B, K]; it is given
        the real frames [B] if it takes `lengths`.
    features: `sample_rate`, `frames`, and what else `LogMel` takes, as in `conf/features`; of `kind: waveform` none.
    defence: the run's defence at inference, for `predict(…, defended=True)`; None where it has none.
    """

    def __init__(
        self, classes: Sequence[str], network: nn.Module, features: dict[str, Any], defence: nn.Module | None = None
    ):
        super().__init__()
        self.classes, self.network, self.defence = list(classes), network, defence
        self.sample_rate, self.front_end = features["sample_rate"], None
        if features.get("kind"):  # waveforms as they are
            self.window, self.limit = getattr(network, "least", 1), round((features["seconds"] or 0) * self.sample_rate)
        else:
            self.frames, self.window = features["frames"], features["window"]
            self.front_end = LogMel(**{key: value for key, value in features.items() if key != "frames"})
        self.register_buffer("shift", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveforms [B, samples] at `sample_rate`, of which the first `lengths` [B] samples are real (None: all) →
        logits [B, K], differentiable. Raises InputError where one is shorter than a window."""
        return logits(self.network, *self.inputs(waveforms, lengths))

    def inputs(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The network's inputs [B, 1, frames, mels] (or [B, 1, samples, 1]), and how many of their frames are real
        [B]."""
        frames, real = self.log_mels(waveforms, lengths)
        return ((frames - self.shift) / self.scale).unsqueeze(1), real

    def log_mels(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-Mels [B, frames, mels] before normalisation, those of short waveforms repeated, and the real ones [B].

        Of a network that listens itself the waveforms [B, samples, 1].
        """
        samples = torch.full((len(waveforms),), waveforms.shape[-1]) if lengths is None else lengths
        lengths = samples.to(waveforms.device)
        shortest, longest = (int(limit) for limit in lengths.aminmax())
        if shortest < self.window or longest > waveforms.shape[-1]:
            raise InputError(
                f"Of waveforms of {waveforms.shape[-1]} samples {shortest} to {longest} can't be real: a window alone "
                f"takes {self.window}."
            )
        if self.front_end is None:
            limit = self.limit or waveforms.shape[-1]
            return waveforms[..., :limit, None], lengths.clamp(max=limit)
        return fitted(self.front_end, self.frames, waveforms, lengths)

    @torch.no_grad()
    def predict(
        self,
        clip: "str | Path | np.ndarray | Tensor",
        sample_rate: int | None = None,
        defended: bool = False,
        draws: int = 10,
        seed: int = 0,
    ) -> dict[str, float]:
        """The probability of each class for a clip, in eval mode.

        clip: an audio file, or a waveform [samples] or [samples, channels] of floats, full scale ±1, at `sample_rate`
            Hz (None: the model's own); another rate is resampled.
        defended: behind the run's defence at inference: the mean over so many `draws` of it, which derive from `seed`.

        Raises BadAudio for a clip that can't be used, InputError for `defended` where the run has no such defence.
        """
        if defended and (self.defence is None or draws < 1):
            why = f"draws={draws}, at least one is needed" if self.defence else "this model's run has none"
            raise InputError(f"A prediction behind the defence at inference can't be made: {why}.")
        self.eval()
        if isinstance(clip, str | Path):
            waveform = audio.read(clip, self.sample_rate, self.window)
        else:
            waveform = audio.clean(np.asarray(clip), sample_rate or self.sample_rate, self.sample_rate, self.window)
        x, real = self.inputs(torch.from_numpy(waveform)[None].to(self.shift.device))
        if defended:
            x, real = x.expand(draws, -1, -1, -1), real.expand(draws)
            x, real = inference.apply(self.defence, x, real, generator(seed, "randomise"))
        probabilities = logits(self.network, x, real).softmax(1).mean(0)
        return dict(zip(self.classes, probabilities.tolist(), strict=True))

    def log_mels_of(self, clips: Iterable[str | Path]) -> np.ndarray:
        """Log-Mels [n, frames, mels] of audio files before normalisation. Raises BadAudio."""
        read = (audio.read(clip, self.sample_rate, self.window) for clip in clips)
        return np.concatenate([self.log_mels(torch.from_numpy(waveform)[None])[0].numpy() for waveform in read])

    def normalise_by(self, normaliser: Normaliser) -> None:
        """Shifts and scales log-Mels by this from now on."""
        self.shift, self.scale = torch.tensor(normaliser.shift), torch.tensor(normaliser.scale)


class About(Group):
    """What a model's file says of its run, in its metadata: all that is needed to rebuild the recogniser.

    network, inference, normalisation: components, as the run's settings have them; no `inference`, no defence.
    features: of `LogMel`, and `frames`; or of waveforms.
    frozen: the digest of the checkpoint that the network's frozen part comes from; None where all of it is in the file,
        or the frozen part is random.
    sums: over the training frames of all clients; shift and scale: what they come to, None where each client has its
        own by its own frames.
    batch_norm: how the run's clients and the global model were normalised; where each client kept her own layers
        ("local"), the file has their mean, as for a speaker whom nobody has heard.
    run, fedser, code: the run's name, the version and the digests of the code that made it.
    """

    format: Literal[1]  # another number where older readers would misunderstand
    classes: tuple[str, ...]
    network: dict[str, Any]
    features: dict[str, Any]
    normalisation: dict[str, Any]
    sums: dict[str, Any]
    shift: float | tuple[float, ...] | None
    scale: float | tuple[float, ...] | None
    inference: dict[str, Any] | None
    frozen: str | None = None
    batch_norm: str = "aggregate"
    run: str
    fedser: str
    code: dict[str, str]


def describe(settings: Settings, classes: Sequence[str], everyone: Sums, **more: Any) -> dict:
    """`About` as plain values, of a run with these sums over all clients; `more` are its run, fedser and code."""
    chosen, defence = settings.features.normalisation, settings.defence.inference
    common = normalisation.shared(chosen.build(), everyone)
    return {
        "format": 1,
        "classes": list(classes),
        "network": settings.model.component.node,
        "features": settings.features.front_end,
        "normalisation": chosen.node,
        "sums": everyone.plain(),
        "shift": common.shift.tolist() if common else None,
        "scale": common.scale.tolist() if common else None,
        "inference": defence.node if defence else None,
        "frozen": files.content_digest(checkpoint) if (checkpoint := settings.model.checkpoint) else None,
    } | more


def load(
    run: str | Path,
    clips: Iterable[str | Path] = (),
    modules: Iterable[str | Path] = (),
    checkpoint: str | Path | None = None,
) -> Recogniser:
    """The recogniser of a finished run, in eval mode on the CPU. Nothing is unpickled, and no corpus is needed.

    run: the run's folder, or a `model.safetensors` from anywhere.
    clips: audio files of the speaker to be recognised, for a run that normalises each speaker by herself
        (features/normalisation=zscore_client, minmax_client, …). Without them she is normalised by all training
        speakers' mean and deviation (zscore_client), with a warning, or refused.
    modules: whose code the file may have run besides fedser's and torch's: folders of modules (what was `--config-dir`
        in training), or names of installed ones.
    checkpoint: where the frozen part of the network lies now, if it was moved since the training.

    Raises InputError for a file that is no model of fedser's, and for one that names code from outside.
    """
    file = Path(run).expanduser()
    file = file / "model.safetensors" if file.is_dir() else file
    tensors, found = weights.read(file)
    about, modules = parse(About, found, f"{file}: "), [str(Path(module).expanduser()) for module in modules]
    components.search(module for module in modules if Path(module).is_dir())

    def build(node: dict, **more: Any) -> Any:
        trust.check(node, modules, file)
        return components.build(node, key=str(file), **more)

    moved = {"checkpoint": str(checkpoint)} if checkpoint else {}
    if about.frozen:
        check_frozen(str((about.network | moved)["checkpoint"]), about.frozen, file)
    network = build(about.network | moved, classes=len(about.classes))
    weights.fill(network, tensors, file)
    recogniser = Recogniser(about.classes, network, about.features, build(about.inference) if about.inference else None)
    if about.shift is not None and about.scale is not None:
        recogniser.normalise_by(Normaliser.of(about.shift, about.scale))
    else:
        recogniser.normalise_by(_own(build(about.normalisation), list(clips), recogniser, about, file))
    if about.batch_norm == "local":
        log.warning("%s was trained with batch_norm=local: it has the mean of the clients' own layers.", file)
    return recogniser.eval()


def check_frozen(checkpoint: str, digest: str, file: Path) -> None:
    """Raises InputError where the checkpoint is not the one that the model was trained on."""
    if not Path(checkpoint).expanduser().exists():
        raise InputError(
            f"{file} has what was trained, and its frozen part lies in {checkpoint}, which is not there: say where it "
            "is, fedser.load(…, checkpoint=PATH) or fedser-predict --checkpoint PATH."
        )
    if files.content_digest(checkpoint) != digest:
        raise InputError(f"{file} was trained on another checkpoint than {checkpoint}: its content differs.")


def _own(fit: Any, clips: list, recogniser: Recogniser, about: About, file: Path) -> Normaliser:
    """The normaliser of a speaker with these clips, where each has her own; without any, as for one that is unknown."""
    everyone = Sums.from_plain(about.sums)
    if clips:
        return fit(recogniser.log_mels_of(clips), everyone)
    advice = (
        f"{file} normalises each speaker by herself ({about.normalisation.get('name')}): give clips of the speaker "
        "to be recognised, fedser.load(…, clips=[…]) or fedser-predict --speaker PATH."
    )
    if not hasattr(fit, "unknown"):
        raise InputError(advice)
    log.warning(
        "%s Without them an unknown speaker is normalised by all training speakers' mean and deviation.", advice
    )
    return fit.unknown(everyone)
