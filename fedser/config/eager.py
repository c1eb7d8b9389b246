"""torch without its compiler: what a process that compiles nothing is spared, two seconds of imports and their memory.

torch imports `torch._dynamo` at an optimizer's first step, among others, to say there where the graph of what is
compiled around it is to break. Without a compiler that says nothing, and the numbers are the same to the bit.
"""

import functools
import inspect
import sys
from collections.abc import Callable


def method(decorated: Callable) -> None:
    """Makes a method that torch keeps out of compiled graphs run as it is, unless the compiler is there already."""
    if "torch._dynamo" not in sys.modules and inspect.isfunction(raw := getattr(decorated, "__wrapped__", None)):
        setattr(raw, "__dynamo_disable", raw)


@functools.cache
def optimizers() -> None:
    """The same for torch's optimizers and their steps."""
    from torch import optim

    if "torch._dynamo" in sys.modules:
        return
    for each in vars(optim.Optimizer).values():
        method(each)
    for kind in vars(optim).values():
        step = getattr(kind, "step", None)
        if inspect.isfunction(step) and step.__code__.co_name == "_use_grad":
            kind.step = _stepping(inspect.unwrap(step))


def _stepping(step: Callable) -> Callable:
    """What `torch.optim.optimizer._use_grad_for_differentiable` makes of a step, but for the breaks of a graph."""
    import torch

    def stepped(self, *arguments, **more):
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *arguments, **more)

    return stepped
