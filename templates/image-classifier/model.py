"""A small convolutional network for 8x8 grey images: 23,090 parameters.

    logits = DigitClassifier()(images)        # images: uint8 [batch, 8, 8], values 0..16 -> float32 [batch, 10]
    label = logits.argmax(dim=1)

It normalises its input itself, so what trains, what evaluates and what serves cannot disagree about scaling.
"""

from __future__ import annotations

import torch
from torch import nn

IMAGE_SIZE = 8  # pixels on a side
MAX_LEVEL = 16  # the scanner counted inked pixels in 4x4 blocks, so a level is 0..16
CLASSES = 10


def convolution(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]


class DigitClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *convolution(1, 24),
            *convolution(24, 32),
            nn.MaxPool2d(2),
            *convolution(32, 48),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(48 * 2 * 2, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # Centred on 0, between -1 and 1, with a channel axis.
        scaled = images.unsqueeze(1).to(torch.float32) / (MAX_LEVEL / 2) - 1.0
        logits: torch.Tensor = self.head(self.features(scaled))
        return logits
