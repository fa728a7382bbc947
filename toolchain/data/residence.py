"""Where samples lie while a network sees them: on its device if they fit, so that it need not wait.

A split that was copied to a GPU is drawn from, augmented and normalised there, with the offsets that a
CPU would draw: where the samples lie changes no pixel.
"""

from __future__ import annotations

import torch

from toolchain.data.samples import Split

# Of the memory that is free when a split is first asked for; networks and activations need the rest.
FREE_SHARE = 0.25


def resident(split: Split, device: str, free_bytes: int | None = None) -> Split:
    """The split in the memory of ``device`` if it fits there, otherwise as it is.

    Args:
        split: Its own pixels, those of a part only, are what is copied.
        device: Torch device string.
        free_bytes: Memory that is free there; asked of the device when None.
    """
    if split.size_bytes is None:
        return split
    if not split.is_on(device):
        if free_bytes is None:
            free_bytes = torch.cuda.mem_get_info(torch.device(device))[0]
        if split.size_bytes > FREE_SHARE * free_bytes:
            return split
    return split.on(device)
