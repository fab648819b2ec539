"""A U-Net for pictures and volumes: what is where, from fine to coarse and back, a map a structure.

It answers for every point of a record, so that its outputs are as large as its inputs. Pictures and
volumes have the same definition: only the number of axes differs. BatchNorm is not offered: it
mixes the records of a batch.

Source: Ronneberger et al. 2015, arXiv:1505.04597, section 2; Cicek et al. 2016, arXiv:1606.06650
(volumes); GroupNorm: Wu and He 2018, arXiv:1803.08494. Convolutions are padded, and upsampled maps
have as many channels as those that they join.
"""

import math
from itertools import pairwise

import torch
from torch import nn

from privacy.errors import StudyError
from shared_models import sections
from shared_models.inputs import InputSpec

GROUPS_MAX = 8  # GroupNorm: at least two channels a group at the default widths
LAYERS = {
    2: (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d),
    3: (nn.Conv3d, nn.ConvTranspose3d, nn.MaxPool3d),
}


class Unet(nn.Module):
    """Two convolutions a size, ``channels`` of them from the record's own size down."""

    def __init__(
        self, depth: int, axes: int, outputs: int, channels: tuple[int, ...] = (16, 32, 64)
    ) -> None:
        """Make the layers for records of ``depth`` channels and two or three ``axes``."""
        super().__init__()
        convolution, transposed, pooling = LAYERS[axes]
        self.down = nn.ModuleList(
            _block(axes, shallow, deep) for shallow, deep in pairwise((depth, *channels))
        )
        self.pool = pooling(2)
        rising = list(pairwise(reversed(channels)))
        self.wider = nn.ModuleList(
            transposed(deep, shallow, kernel_size=2, stride=2) for deep, shallow in rising
        )
        self.up = nn.ModuleList(_block(axes, 2 * shallow, shallow) for _, shallow in rising)
        self.out = convolution(channels[0], outputs, kernel_size=1)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs, *sizes) logits of (B, C, *sizes) float32 records."""
        maps, kept = records, []
        for place, block in enumerate(self.down):
            maps = block(self.pool(maps) if place else maps)  # (B, 16, H, W) -> (B, 32, H/2, W/2)
            kept.append(maps)
        kept.pop()
        for wider, block in zip(self.wider, self.up, strict=True):
            fine = wider(maps)  # (B, 64, H/4, W/4) -> (B, 32, H/2, W/2)
            maps = block(torch.cat((fine, kept.pop()), dim=1))  # (B, 64, ...) -> (B, 32, ...)
        logits: torch.Tensor = self.out(maps)  # (B, 16, H, W) -> (B, outputs, H, W)
        return logits


def build_unet(section: sections.Unet, spec: InputSpec, outputs: int) -> Unet:
    """Build the network that ``section`` describes, for pictures or volumes of ``spec``.

    Raises:
        StudyError: the records are neither, or cannot be halved often enough.
    """
    if spec.kind not in {"image", "volume"}:
        raise StudyError(
            f"model.name: 'unet' expected pictures or volumes as input, found {spec.kind}"
        )
    depth, *sizes = spec.shape
    step = 2 ** (len(section.channels) - 1)
    if any(size % step for size in sizes):
        raise StudyError(
            f"model.channels: expected sides that are multiples of {step} for "
            f"{len(section.channels)} sizes, found {'x'.join(map(str, sizes))}",
            "write fewer channels, or cut records to such a size",
        )
    return Unet(depth, len(sizes), outputs, section.channels)


def _block(axes: int, shallow: int, deep: int) -> nn.Sequential:
    convolution = LAYERS[axes][0]
    layers: list[nn.Module] = []
    for width in (shallow, deep):
        layers += [
            convolution(width, deep, kernel_size=3, padding=1),
            nn.GroupNorm(math.gcd(GROUPS_MAX, deep), deep),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
