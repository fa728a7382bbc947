"""Random crop and flip of a whole batch of uint8 images by one gather, on the images' device.

Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from toolchain.data.samples import Augment


def augment(images_BCHW: Tensor, how: Augment, generator: torch.Generator) -> Tensor:
    """Crop and flip with offsets drawn from ``generator``; zeros are black, before normalisation.

    The draws depend on ``how`` and the batch size alone, not on the images. ``generator`` is a CPU's
    whatever device the images are on, so that they are changed in the same way on all.
    """
    count, padding = len(images_BCHW), how.crop
    if not padding and not how.flip:
        return images_BCHW
    top_B = torch.randint(2 * padding + 1, (count,), generator=generator)
    left_B = torch.randint(2 * padding + 1, (count,), generator=generator)
    flip_B = torch.zeros(count, dtype=torch.int64)
    if how.flip:
        flip_B = (torch.rand(count, generator=generator) < 0.5).long()
    # Together: a copy to a GPU costs more than what is in it.
    drawn_3B = torch.stack([top_B, left_B, flip_B]).to(images_BCHW.device, non_blocking=True)
    top_B, left_B, flip_B = drawn_3B.unbind()
    return crop_and_flip(images_BCHW, padding, top_B, left_B, flip_B.bool())


def crop_and_flip(
    images_BCHW: Tensor, padding: int, top_B: Tensor, left_B: Tensor, flip_B: Tensor
) -> Tensor:
    """Pad all sides with zeros, cut the original size at (top, left), then mirror where asked.

    Offsets are pixels of the padded image, in [0, 2 * padding], on the images' device.
    """
    device = images_BCHW.device
    count, channels, height, width = images_BCHW.shape
    padded_BHWC = F.pad(images_BCHW.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    rows, columns = height + 2 * padding, width + 2 * padding
    column_W = torch.arange(width, device=device)
    column_BW = torch.where(flip_B[:, None], width - 1 - column_W, column_W) + left_B[:, None]
    image_B1 = torch.arange(count, device=device)[:, None]
    row_BH = image_B1 * rows + top_B[:, None] + torch.arange(height, device=device)
    position_BHW = row_BH[:, :, None] * columns + column_BW[:, None, :]
    pixels = padded_BHWC.reshape(count * rows * columns, channels)
    picked = pixels.index_select(0, position_BHW.flatten())
    return picked.view(count, height, width, channels).permute(0, 3, 1, 2)
