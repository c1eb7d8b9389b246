"""Every sanity flag, raised and clear, on records worked out by hand."""

import pytest

from fedser.evaluation.sanity import flags


def attack(name, eps=0.05, **more):
    return {"settings": {"name": name, "norm": "Linf", "eps": eps, **more}}


def record(uars, attacks, examples=None, classes=4):
    """`uars` by condition; original is 0.9 unless it says otherwise."""
    conditions = {name: {"uar": value} for name, value in ({"original": 0.9} | uars).items()}
    return {
        "classes": list(range(classes)),
        "conditions": conditions,
        "examples": examples or {},
        "attacks": {one["settings"]["name"] if "as" not in one else one["as"]: one for one in attacks},
    }


FGSM, PGD = attack("fgsm"), attack("pgd", steps=5, labels="true")

ENSEMBLE = attack("autoattack", members={"apgd": {}})
MORE_DRAWS = attack("eot_pgd", steps=5, labels="true", eot=20, adaptive=True)


def vary(one, **changes):
    settings = one["settings"] | changes
    (key, value), *_ = changes.items()
    return {"settings": settings, "as": f"{settings['name']}@{key}={value:g}"}


def lengths(linf=0.05, zero=0.0):
    return {"linf": linf, "zero_gradient": zero}


CASES = {
    "multi_step_weaker": (
        record({"adversarial/fgsm": 0.3, "adversarial/pgd": 0.32}, [FGSM, PGD]),
        record({"adversarial/fgsm": 0.3, "adversarial/pgd": 0.305}, [FGSM, PGD]),  # less than a point
    ),
    "ensemble_weaker": (
        record({"adversarial/pgd": 0.3, "adversarial/autoattack": 0.35}, [PGD, ENSEMBLE]),
        record({"adversarial/pgd": 0.3, "adversarial/autoattack": 0.25}, [PGD, ENSEMBLE]),
    ),
    "black_box_stronger": (
        record({"adversarial/pgd": 0.3, "adversarial/square": 0.2}, [PGD, attack("square", steps=100)]),
        record({"adversarial/pgd": 0.3, "adversarial/square": 0.5}, [PGD, attack("square", steps=100)]),
    ),
    "gradients_vanish": (
        record({"adversarial/pgd": 0.3}, [PGD], {"pgd": lengths(zero=0.2)}),
        record({"adversarial/pgd": 0.3}, [PGD], {"pgd": lengths(zero=0.0)}),
    ),
    "not_converged": (
        record({"adversarial/pgd": 0.3, "adversarial/pgd@steps=10": 0.25}, [PGD, vary(PGD, steps=10)]),
        record({"adversarial/pgd": 0.3, "adversarial/pgd@steps=10": 0.295}, [PGD, vary(PGD, steps=10)]),
    ),
    "too_few_draws": (
        record({"adaptive/pgd": 0.4, "adaptive/eot_pgd": 0.3}, [PGD, MORE_DRAWS]),
        record({"adaptive/pgd": 0.4, "adaptive/eot_pgd": 0.395}, [PGD, MORE_DRAWS]),
    ),
    "not_monotone": (
        record({"adversarial/pgd": 0.3, "adversarial/pgd@eps=0.1": 0.4}, [PGD, vary(PGD, eps=0.1)]),
        record({"adversarial/pgd": 0.3, "adversarial/pgd@eps=0.1": 0.1}, [PGD, vary(PGD, eps=0.1)]),
    ),
    "large_eps_survived": (
        record({"adversarial/pgd": 0.4, "adversarial/pgd@eps=1": 0.3}, [PGD, vary(PGD, eps=1)]),
        record({"adversarial/pgd": 0.4, "adversarial/pgd@eps=1": 0.2}, [PGD, vary(PGD, eps=1)]),
    ),
    "adaptive_weaker": (
        record({"randomised_adversarial/pgd": 0.5, "adaptive/pgd": 0.55}, [PGD]),
        record({"randomised_adversarial/pgd": 0.5, "adaptive/pgd": 0.4}, [PGD]),
    ),
    "noise_as_strong": (
        record({"adversarial/fgsm": 0.9, "adversarial/noise": 0.9}, [FGSM, attack("noise")]),
        record({"adversarial/fgsm": 0.4, "adversarial/noise": 0.9}, [FGSM, attack("noise")]),
    ),
    "budget_breached": (
        record({"adversarial/fgsm": 0.4}, [FGSM], {"fgsm": lengths(0.06)}),
        record({"adversarial/fgsm": 0.4}, [FGSM], {"fgsm": lengths(0.05000001)}),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_raised_and_clear(name):
    raised, clear = (next(flag for flag in flags(case) if flag["flag"] == name) for case in CASES[name])
    assert (raised["status"], clear["status"]) == ("raised", "clear")
    assert any(words in raised["detail"] for words in ("%", "of 0.05", "5.0 points", "10.0 points"))


def test_what_cannot_be_compared_is_not_checked():
    found = flags(
        record({"adversarial/deepfool": 0.1}, [{"settings": {"name": "deepfool", "norm": "L2", "eps": None}}])
    )
    assert len(found) == len(CASES)
    assert {flag["status"] for flag in found} == {"not checked"}
    assert all(flag["detail"].startswith("needs") for flag in found)


def test_attacks_of_other_budgets_are_not_compared():
    other = attack("fgsm", eps=0.1)
    (flag,) = [f for f in flags(record({"adversarial/fgsm": 0.1, "adversarial/pgd": 0.4}, [other, PGD]))
               if f["flag"] == "multi_step_weaker"]  # fmt: skip
    assert flag["status"] == "not checked"


def raised(case):
    return {flag["flag"] for flag in flags(case) if flag["status"] == "raised"}


def test_a_large_budget_is_large_beside_the_attacks_own():
    small = vary(PGD, eps=0.005)
    assert not raised(record({"adversarial/pgd": 0.6, "adversarial/pgd@eps=0.005": 0.7}, [PGD, small]))


def test_the_control_need_not_reach_chance():
    noise = attack("noise")
    assert not raised(record({"adversarial/noise": 0.9, "adversarial/noise@eps=1": 0.5}, [noise, vary(noise, eps=1)]))


def test_an_attack_that_helps_is_noticed_where_it_knows_the_labels():
    uars = {"original": 0.5, "adversarial/pgd": 0.7, "adversarial/pgd@eps=0.01": 0.72}
    assert "not_monotone" in raised(record(uars, [PGD, vary(PGD, eps=0.01)]))
    guessing = attack("pgd", steps=5, labels="predicted")
    assert "not_monotone" not in raised(record(uars, [guessing, vary(guessing, eps=0.01)]))


def test_an_ensemble_counts_as_many_steps():
    both = attack("autoattack", members={"apgd": {}})
    assert "multi_step_weaker" in raised(record({"adversarial/fgsm": 0.3, "adversarial/autoattack": 0.5}, [FGSM, both]))


ADAPTIVE = {
    "multi_step_weaker": record({"adaptive/fgsm": 0.3, "adaptive/pgd": 0.4}, [FGSM, PGD]),
    "ensemble_weaker": record({"adaptive/pgd": 0.3, "adaptive/autoattack": 0.4}, [PGD, ENSEMBLE]),
    "black_box_stronger": record({"adaptive/pgd": 0.3, "adaptive/square": 0.2}, [PGD, attack("square")]),
    "not_converged": record({"adaptive/pgd": 0.3, "adaptive/pgd@steps=10": 0.2}, [PGD, vary(PGD, steps=10)]),
    "noise_as_strong": record({"randomised_adversarial/noise": 0.5, "adaptive/pgd": 0.5}, [PGD, attack("noise")]),
    "not_monotone": record(
        {"randomised": 0.7, "adaptive/pgd": 0.3, "adaptive/pgd@eps=0.1": 0.4}, [PGD, vary(PGD, eps=0.1)]
    ),
    "large_eps_survived": record(
        {"randomised": 0.7, "adaptive/pgd": 0.4, "adaptive/pgd@eps=1": 0.3}, [PGD, vary(PGD, eps=1)]
    ),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_attacks_are_held_to_the_same(name):
    (flag,) = [flag for flag in flags(ADAPTIVE[name]) if flag["flag"] == name]
    assert flag["status"] == "raised" and "adaptive" in flag["detail"]


def test_only_attacks_of_the_same_kind_differ_in_their_draws_only():
    steps = attack("eot_pgd", steps=10, labels="true", eot=20)
    (flag,) = [flag for flag in flags(record({"adaptive/pgd": 0.4, "adaptive/eot_pgd": 0.3}, [PGD, steps]))
               if flag["flag"] == "too_few_draws"]  # fmt: skip
    assert flag["status"] == "not checked"


def test_how_many_clips_a_difference_is():
    case = record({"adversarial/fgsm": 0.5, "adversarial/pgd": 0.75}, [FGSM, PGD], classes=2)
    for name, matrix in (("fgsm", [[1, 1], [1, 1]]), ("pgd", [[2, 0], [1, 1]])):
        case["conditions"][f"adversarial/{name}"] |= {"matrix": matrix, "draws": 1}
    case["conditions"]["adversarial/pgd"] |= {"matrix": [[4, 0], [2, 2]], "draws": 2}
    (flag,) = [flag for flag in flags(case) if flag["flag"] == "multi_step_weaker"]
    assert flag["detail"] == "pgd leaves 75.0%, fgsm 50.0% (1 of 4 clips)."


def test_raised_flags_come_first():
    order = [flag["status"] for flag in flags(CASES["not_monotone"][0])]
    assert order == sorted(order, key=("raised", "clear", "not checked").index)
    assert order[0] == "raised"
