"""Whatever stands behind a key is accepted or refused in one line: never a traceback."""

import logging
import random

import pytest

from fedser.config.compose import compose
from fedser.config.validation import plain, validate
from fedser.errors import InputError

GROUPS = """attack defence strategy model client partition features evaluation simulation logger dataset experiment
    defence/training defence/inference features/normalisation checkpoint detector""".split()
VALUES = """-1 0 1 2.5 1e30 -inf inf nan null true false abc '' [] [1,2] [a,b] {a:1} [null] ${attack} ??? fgsm none cnn4 2
    [[1]] {_target_:os.getcwd} {_target_:[1]} {} -0.5 /nonexistent a/b 0x10 default [fgsm,pgd] auto 1,2 a=b""".split()
OTHERS = [[], [], ["attack=pgd", "defence=two_stage"], ["evaluation=matrix"], ["strategy=dp"], ["dataset=emodb"]]
CASES = 40  # of several overrides each
PER_CASE = 8


def keys(node: dict, prefix: str = ""):
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")


@pytest.fixture(scope="module")
def every_key():
    found = sorted(set(keys(plain(compose([])))) | set(GROUPS) | {f"{group}.no_such_key" for group in GROUPS})
    named = [key for key in found if not key.startswith("attacks.")]
    return named + random.Random(0).sample([key for key in found if key.startswith("attacks.")], 40)


@pytest.mark.parametrize("case", range(CASES))
def test_any_override_is_accepted_or_refused_in_one_line(every_key, case):
    logging.disable(logging.WARNING)
    draw = random.Random(case)
    try:
        for _ in range(PER_CASE):
            sign, key, value = draw.choice(["", "", "", "+", "++", "~"]), draw.choice(every_key), draw.choice(VALUES)
            word = f"~{key}" if sign == "~" else f"{sign}{key}={value}"
            words = [*draw.choice(OTHERS), word]
            try:
                validate(compose(words))
            except InputError as error:
                assert error.exit_code == 2 and str(error) and "\n" not in str(error), words
            except Exception as error:
                assert isinstance(error, InputError), f"{words}: {type(error).__name__}: {error}"
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["strategy=-inf"], "strategy has no option '-inf'"),
        (["logger=[1,2]"], "logger has no option '1'"),
        (["dataset=emodb", "dataset.root=-1"], "dataset.root=-1 must be the path of a folder or file"),
        (["attack.method._target_=1"], "attack.method._target_=1 must be the import path"),
        (["rounds=nan"], "rounds=nan must be a whole number of at least 1"),
    ],
)
def test_traps(words, says):
    with pytest.raises(InputError) as raised:
        validate(compose(words))
    assert str(raised.value).startswith(says)


def test_a_misordered_experiment_gets_hydras_true_message(tmp_path):
    (tmp_path / "experiment").mkdir()
    defaults = "defaults:\n  - override /dataset: emodb\n  - /model: vgg15\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{defaults}rounds: 3\n")
    with pytest.raises(
        InputError, match="experiment/mine: Override 'dataset : emodb' is defined before 'model: vgg15'"
    ):
        compose(["experiment=mine"], config_dir=tmp_path)
