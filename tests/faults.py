"""Optimizers that do to a client what a configuration can be made to do to it; Ray's workers import them from here.

`marks` is a file that counts, by its bytes, how often an optimizer was built, over all processes: with two clients and
one epoch, the fourth one belongs to round 2 (one is built before the first).
"""

import os
import signal
import time
from pathlib import Path

import torch


def adam(params, lr, marks, at=4, eps=1e-7, fused=True, fault=None):
    """Adam, but the `at`-th one built has the fault at its first step (at=0: each one has)."""
    optimizer = torch.optim.Adam(params, lr=lr, eps=eps, fused=fused)
    number = count(Path(marks))
    if at and number != at:
        return optimizer
    step = optimizer.step

    def faulty(*args, **kwargs):
        FAULTS[fault]()
        return step(*args, **kwargs)

    optimizer.step = faulty
    return optimizer


def count(marks):
    """How many have been here, this one included: where a byte that is appended in one go comes to end."""
    with marks.open("ab", buffering=0) as file:
        file.write(b".")
        return file.tell()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise ValueError("as asked")


def hang():
    time.sleep(3600)


def hang_deaf():
    """As code outside of Python does: signals do not get through."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(3600)


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


FAULTS = {"die": die, "fail": fail, "hang": hang, "deaf": hang_deaf, "oom": out_of_memory}


def first_fails_second_hangs(params, lr, marks, eps=1e-7, fused=True):
    """Of a round's two clients the first to come fails, a moment later, and the other one hangs (1 and 2 are checks)."""
    optimizer = torch.optim.Adam(params, lr=lr, eps=eps, fused=fused)
    number = count(Path(marks))

    def step():
        time.sleep(2)
        (fail if number == 3 else hang)()

    optimizer.step = step
    return optimizer
