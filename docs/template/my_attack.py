"""An attack: random corners of the ε-box, of which the worst for the model is kept."""

import torch
from torch.nn import functional


class RandomCorners:
    """Made with the model under attack and its own settings; `fedser.attacks.Adversary` does the rest: it maps
    inputs onto [0, 1], with `eps` scaled likewise, checks the budget, and puts the model back as it was."""

    def __init__(self, model, eps: float, tries: int = 4):
        self.model, self.eps, self.tries = model, eps, tries

    def __call__(self, x, y):
        worst, highest = x, torch.full((len(x),), -torch.inf).to(x)
        for _ in range(self.tries):
            tried = x + self.eps * torch.randn_like(x).sign()
            with torch.no_grad():
                loss = functional.cross_entropy(self.model(tried), y, reduction="none")
            worst = torch.where((loss > highest)[:, None, None, None], tried, worst)
            highest = torch.maximum(loss, highest)
        return worst
