"""Training pictures turned, shifted and mirrored at random, each by its own draws.

It draws nothing itself and changes no record: the trainer hands it copies and draws. What befalls a
picture hangs on that picture and its draws alone, so that clipping bounds it as it bounds a record.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch users know

from shared_models.sections import Augment

DRAWS = 4  # of a picture: turn, shift across, shift down, mirror


def augment(pictures: torch.Tensor, draws: torch.Tensor, how: Augment) -> torch.Tensor:
    """Return each picture turned, shifted and mirrored; what comes in at an edge is the edge's.

    Args:
        pictures: (B, C, H, W).
        draws: (B, 4) uniform in [0, 1), of their own for every picture.
        how: the largest turn and shift, either way, and whether half of them are mirrored.

    Returns:
        (B, C, H, W) bilinear in the pixels' own units: a picture need not be square.

    Guarantee: given the draws, each result is a function of its own picture: one more or less
    changes a sum of clipped gradients by that one's, as without augmentation.
    """
    height, width = pictures.shape[2:]
    signed = 2 * draws[:, :3].to(pictures) - 1  # (B, 3) in [-1, 1)
    turn, across, down = signed.T[..., None, None]  # (B, 1, 1) each
    angle = turn * math.radians(how.rotate_degrees)
    x = torch.arange(width).to(pictures) - (width - 1) / 2  # (W,) pixels from the middle
    y = (torch.arange(height).to(pictures) - (height - 1) / 2)[:, None]  # (H, 1)
    # Where each new pixel is taken from, in pixels: (B, H, W).
    source_x = angle.cos() * x - angle.sin() * y + across * how.shift_pixels
    source_y = angle.sin() * x + angle.cos() * y + down * how.shift_pixels
    if how.flip:
        source_x = torch.where(draws[:, 3, None, None].to(x.device) < 0.5, -source_x, source_x)
    grid = torch.stack([2 * source_x / width, 2 * source_y / height], dim=-1)  # (B, H, W, 2)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
