"""Which of the networks that share one set of tensors is seen: student, in-network teacher, or latent.

    student   Q(M . W)                          what ships
    teacher   Q(M . W) + (1 - M) . W            PQK's in-network teacher
    latent    W                                 the network as if nothing were attached

A view is a switch on every attached module, never a copy: optimizers, ``state_dict`` and ``deepcopy``
need no special case.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from torch import nn


class View(Enum):
    """The network that a forward pass computes."""

    STUDENT = "student"
    TEACHER = "teacher"
    LATENT = "latent"


class Viewed(nn.Module):
    """A module whose output depends on the view; ``view`` is set by `use_view` and is not state."""

    view: View = View.STUDENT


@contextmanager
def use_view(network: nn.Module, view: View) -> Iterator[nn.Module]:
    """Inside the block ``network`` computes as ``view``; the views before it are restored."""
    viewed = [module for module in network.modules() if isinstance(module, Viewed)]
    before = [module.view for module in viewed]
    try:
        for module in viewed:
            module.view = view
        yield network
    finally:
        for module, was in zip(viewed, before, strict=True):
            module.view = was
