"""torch without its compiler: what a process that compiles nothing is spared, two seconds of imports and their memory.

torch imports `torch._dynamo` at an optimizer's first step, among others, to say there where the graph of what is
compiled around it is to break. Without a compiler that says nothing, and the numbers are the same to the bit.
"""

import inspect
import sys
from collections.abc import Callable


def method(decorated: Callable) -> None:
    """Makes a method that torch keeps out of compiled graphs run as it is, unless the compiler is there already."""
    if "torch._dynamo" not in sys.modules and inspect.isfunction(raw := getattr(decorated, "__wrapped__", None)):
        setattr(raw, "__dynamo_disable", raw)


def optimizer(kind: Callable) -> None:
    """The same for a class of optimizers and its steps; nothing for what is no class of torch.optim's kind."""
    from torch.optim import Optimizer

    if "torch._dynamo" in sys.modules or not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        return
    for each in vars(Optimizer).values():
        method(each)
    if getattr(getattr(kind.step, "__code__", None), "co_name", None) == "_use_grad":
        kind.step = _stepping(inspect.unwrap(kind.step))


def _stepping(step: Callable) -> Callable:
    """What `torch.optim.optimizer._use_grad_for_differentiable` makes of a step, but for the breaks of a graph."""
    import torch

    def stepped(self, *arguments, **more):
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *arguments, **more)

    return stepped
