"""Adversarial clips to be listened to: a client writes some of its test clips, under attacks on the waveform, as WAV.

A message of its own, which only the app here answers: audio stays where the client is, and its reply is empty.
"""

from pathlib import Path

import numpy as np
import torch
from flwr.app import Message, RecordDict

from fedser.attacks.waveform import Listening, Spoken, snr
from fedser.evaluation import measure
from fedser.features import audio
from fedser.federation.client_app import ClientState, make_app, normaliser
from fedser.federation.client_data import ClientData
from fedser.randomness import derive
from fedser.runs.files import dumps, write_whole

ACTION = "listen"  # of the query
FOLDER = "listening"  # of a run's folder
FILE = "clip.json"


def listen(state: ClientState, data: ClientData, message: Message) -> RecordDict:
    """Writes the client's first test clips that are recognised, as many as the message says, under each attack.

    `FOLDER/<attack>/<clip>/` has `original.wav`, `adversarial.wav`, `difference.wav` at its true level and once more
    louder by the attack's dB, and `clip.json`. Without the randomisation at inference.
    """
    config, size = message.content["config"], state.settings.evaluation.batch_size
    state.load(message.content)
    samples, spoken = _heard(state, data, normaliser(state, data, config))
    victim = Listening(state.model, spoken.front)
    predicted = measure.predict(victim, spoken.x, size, spoken.lengths)
    order = (predicted != samples.y.cpu()).int().argsort(stable=True)[: config["clips"][data.number]]
    rows, chosen = data.rows("test")[order.numpy()], order.to(samples.y.device)
    x, y, lengths, predicted = spoken.x[chosen], samples.y[chosen], spoken.lengths[chosen], predicted[order]
    for name, attack in state.attacks.items():
        seed = derive(state.settings.seed, ACTION, name, data.name)
        made = measure.attacked(attack, victim, x, y, {"predictions": predicted, "lengths": lengths}, None, size, seed)
        found = [predicted, measure.predict(victim, made, size, lengths)]
        x_pcm, made_pcm = (audio.to_pcm(each.cpu().numpy()) for each in (x, made))
        rounded = [torch.from_numpy(audio.from_pcm(each)).to(x.device) for each in (x_pcm, made_pcm)]
        found += [measure.predict(victim, each, size, lengths) for each in rounded]
        answers = [[state.classes[int(label)] for label in each] for each in (y, *found)]
        levels = snr(*rounded, lengths).tolist()
        for place, row in enumerate(rows):
            path = Path(state.clients.store.table["path"].iloc[row]).relative_to(state.clients.store.base)
            about = _about([each[place] for each in answers]) | {"clip": path.as_posix(), "client": data.name}
            about |= {"attack": name, "snr": attack.snr, "snr_of_files": levels[place]}
            target, real = Path(config["folder"]) / name / "-".join(path.with_suffix("").parts), int(lengths[place])
            _write(
                target,
                x_pcm[place, 0, :real, 0],
                made_pcm[place, 0, :real, 0],
                state.settings.features.sample_rate,
                about,
            )
    return RecordDict()


def _heard(state: ClientState, data: ClientData, normalise) -> tuple:
    """The client's test samples and the waveforms that they are made of: themselves, where the network listens."""
    rows = data.rows("test")
    samples = state.samples(data, rows, normalise)
    itself = Spoken(samples.x, samples.lengths, lambda x, lengths: (x, lengths))
    return samples, state.spoken(data, rows, normalise) or itself


def _about(answers: list[str]) -> dict:
    truth, before, after, *rounded = answers
    return {
        "class": truth,
        "predicted": dict(zip(("original", "adversarial"), rounded, strict=True)),
        "unchanged": rounded == [before, after],  # by the rounding to 16 bits
    }


def _write(folder: Path, original: np.ndarray, adversarial: np.ndarray, rate: int, about: dict) -> None:
    """A clip's files, of int16 [samples]: original and difference add up to the adversarial one to the bit."""
    difference = adversarial.astype(np.int32) - original
    louder = audio.to_pcm(audio.from_pcm(difference) * 10 ** (about["snr"] / 20))
    files = {"original": original, "adversarial": adversarial, "difference": audio.clipped(difference)}
    files[f"difference+{about['snr']:g}dB"] = louder
    for name, samples in files.items():
        audio.write(folder / f"{name}.wav", samples, rate)
    write_whole(folder / FILE, dumps(about | {"files": list(files)}, indent=1).encode())


app = make_app(more={ACTION: listen})
