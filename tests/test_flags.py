"""Every sanity flag, raised and clear, on records worked out by hand."""

import pytest

from fedser.evaluation.sanity import flags


def attack(name, eps=0.05, knowledge="white-box", **more):
    return {"settings": {"name": name, "norm": "Linf", "eps": eps, **more}, "threat": f"{name}: {knowledge}, Linf"}


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
SQUARE = attack("square", knowledge="black-box", steps=100)
MORE_DRAWS = attack("eot_pgd", steps=5, labels="true", eot=20, adaptive=True)


def vary(one, **changes):
    settings = one["settings"] | changes
    (key, value), *_ = changes.items()
    return one | {"settings": settings, "as": f"{settings['name']}@{key}={value:g}"}


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
        record({"adversarial/pgd": 0.3, "adversarial/square": 0.2}, [PGD, SQUARE]),
        record({"adversarial/pgd": 0.3, "adversarial/square": 0.5}, [PGD, SQUARE]),
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
        record({"adversarial/pgd": 0.4, "adversarial/pgd@eps=1": 0.005}, [PGD, vary(PGD, eps=1)]),
    ),
    "adaptive_weaker": (
        record({"randomised_adversarial/pgd": 0.5, "adaptive/pgd": 0.55}, [PGD]),
        record({"randomised_adversarial/pgd": 0.5, "adaptive/pgd": 0.4}, [PGD]),
    ),
    "noise_as_strong": (
        record({"adversarial/fgsm": 0.9, "adversarial/noise": 0.9}, [FGSM, attack("noise")]),
        record({"adversarial/fgsm": 0.4, "adversarial/noise": 0.9}, [FGSM, attack("noise")]),
    ),
    "uar_raised": (
        record({"original": 0.5, "adversarial/pgd": 0.55}, [PGD]),
        record({"original": 0.5, "adversarial/pgd": 0.505, "adversarial/noise": 0.6}, [PGD, attack("noise")]),
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
    clear, *others = found
    assert (clear["flag"], clear["status"]) == ("uar_raised", "clear")
    assert {flag["status"] for flag in others} == {"not checked"}
    assert all(flag["detail"].startswith("needs") for flag in others)


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


@pytest.mark.parametrize(
    ("kind", "clean", "named"),
    [("randomised_adversarial", "randomised", "oblivious pgd"), ("adaptive", "randomised", "adaptive pgd")],
)
def test_an_attack_on_the_randomised_model_is_held_against_that_without_attack(kind, clean, named):
    case = record({clean: 0.5, f"{kind}/pgd": 0.6}, [PGD])
    (flag,) = [flag for flag in flags(case) if flag["flag"] == "uar_raised"]
    assert flag["status"] == "raised"
    assert flag["detail"] == f"{named} leaves 60.0%, no attack 50.0%."


ADAPTIVE = {
    "multi_step_weaker": record({"adaptive/fgsm": 0.3, "adaptive/pgd": 0.4}, [FGSM, PGD]),
    "ensemble_weaker": record({"adaptive/pgd": 0.3, "adaptive/autoattack": 0.4}, [PGD, ENSEMBLE]),
    "black_box_stronger": record({"adaptive/pgd": 0.3, "adaptive/square": 0.2}, [PGD, SQUARE]),
    "not_converged": record({"adaptive/pgd": 0.3, "adaptive/pgd@steps=10": 0.2}, [PGD, vary(PGD, steps=10)]),
    "noise_as_strong": record({"randomised_adversarial/noise": 0.5, "adaptive/pgd": 0.5}, [PGD, attack("noise")]),
    "not_monotone": record(
        {"randomised": 0.7, "adaptive/pgd": 0.3, "adaptive/pgd@eps=0.1": 0.4}, [PGD, vary(PGD, eps=0.1)]
    ),
    "large_eps_survived": record(
        {"randomised": 0.7, "adaptive/pgd": 0.4, "adaptive/pgd@eps=1": 0.3}, [PGD, vary(PGD, eps=1)]
    ),
}


@pytest.mark.parametrize(("labels", "status"), [("true", "raised"), (True, "raised"), ("predicted", "clear")])
def test_away_from_true_labels_a_huge_change_leaves_nothing_and_from_others_chance(labels, status):
    one = attack("pgd", steps=5, labels=labels)
    found = flags(record({"adversarial/pgd": 0.4, "adversarial/pgd@eps=1": 0.1}, [one, vary(one, eps=1)]))
    (flag,) = [flag for flag in found if flag["flag"] == "large_eps_survived"]
    assert flag["status"] == status


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


# --- What a paired test supports, and what one or two clips could be --------------------------------------------------


def by_clients(right, clips=10, draws=1):
    """A condition of two classes: per client how many clips of each class are right, in all draws."""
    matrices = {
        str(client): [[a * draws, (clips - a) * draws], [(clips - b) * draws, b * draws]]
        for client, (a, b) in enumerate(right)
    }
    total = [[sum(matrix[row][column] for matrix in matrices.values()) for column in (0, 1)] for row in (0, 1)]
    recalls = [row[place] / sum(row) for place, row in enumerate(total)]
    return {"uar": sum(recalls) / 2, "matrix": total, "by_client": matrices, "draws": draws}


def beside(one, other, kind="adversarial"):
    """PGD, which got `one`, beside FGSM, which got `other`."""
    case = record({"original": 1.0}, [FGSM, PGD], classes=2)
    case["conditions"] |= {f"{kind}/fgsm": other, f"{kind}/pgd": one}
    return next(flag for flag in flags(case) if flag["flag"] == "multi_step_weaker")


LOW = [(5, 5)] * 10


@pytest.mark.parametrize(
    ("right", "severity"),
    [
        ([(7, 6)] * 10, "significant"),  # three clips of every client
        ([(9, 8), *LOW[1:]], "minor"),  # as many as three points, all of one client
        ([(6, 5), (6, 5), (5, 6), *LOW[3:]], "minor"),  # three clips of three clients: one and a half points
        ([(9, 9), (9, 9), (9, 9), (1, 1), *LOW[4:]], "minor"),  # gains and losses
    ],
)
@pytest.mark.parametrize("draws", [1, 3])
def test_a_contradiction_is_significant_where_a_paired_test_over_clients_supports_it(right, severity, draws):
    flag = beside(by_clients(right, draws=draws), by_clients(LOW))
    assert (flag["status"], flag["severity"]) == ("raised", severity)


def test_without_two_clients_nothing_is_supported():
    assert beside(by_clients([(9, 9)], clips=100), by_clients([(5, 5)], clips=100))["severity"] == "minor"
    assert beside({"uar": 0.9}, {"uar": 0.1})["severity"] == "minor"


def test_what_is_not_raised_has_no_severity_and_the_significant_come_first():
    assert beside(by_clients(LOW), by_clients(LOW))["severity"] == ""
    case = record(
        {"original": 0.5, "adversarial/fgsm": 0.3, "adversarial/pgd": 0.55}, [FGSM, PGD], {"pgd": lengths(0.06)}
    )
    found = [(flag["flag"], flag["severity"]) for flag in flags(case) if flag["status"] == "raised"]
    assert found == [("budget_breached", "significant"), ("multi_step_weaker", "minor"), ("uar_raised", "minor")]


def test_noise_that_does_exactly_as_well_is_significant():
    case = record({"original": 1.0}, [FGSM, attack("noise")], classes=2)
    case["conditions"] |= {"adversarial/fgsm": by_clients(LOW), "adversarial/noise": by_clients(LOW)}
    (flag,) = [flag for flag in flags(case) if flag["flag"] == "noise_as_strong"]
    assert flag["severity"] == "significant"
    case["conditions"]["adversarial/fgsm"] = by_clients([(4, 3), (6, 7), *LOW[2:]])  # as well on average only
    (flag,) = [flag for flag in flags(case) if flag["flag"] == "noise_as_strong"]
    assert (flag["status"], flag["severity"]) == ("raised", "minor")


@pytest.mark.parametrize(("clips", "severity"), [(100, "minor"), (150, "significant")])
def test_gradients_that_vanish_on_two_clips_are_minor(clips, severity):
    case = record({"adversarial/pgd": 0.3}, [PGD], {"pgd": lengths(zero=0.02)}, classes=2)
    case["conditions"]["original"] |= {"matrix": [[clips // 2, 0], [0, clips // 2]]}
    (flag,) = [flag for flag in flags(case) if flag["flag"] == "gradients_vanish"]
    assert flag["severity"] == severity


def test_above_chance_is_significant_with_its_whole_interval():
    away = attack("pgd", steps=5, labels="predicted")
    grid = [away, vary(away, eps=1)]
    for right, severity in (([(8, 8)] * 10, "significant"), ([(9, 9), (2, 2), (6, 6), (5, 6)], "minor")):
        case = record({"original": 1.0, "adversarial/pgd": 1.0}, grid, classes=2)
        case["conditions"]["adversarial/pgd@eps=1"] = by_clients(right)
        (flag,) = [flag for flag in flags(case) if flag["flag"] == "large_eps_survived"]
        assert (flag["status"], flag["severity"]) == ("raised", severity)
