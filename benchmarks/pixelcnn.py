"""A small PixelCNN, the convolutional peer of a causal Transformer on images: van den Oord et al. (2016)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.corpora import CLASSES, FIRST_LEVEL, TextBatch


class MaskedConvolution(nn.Conv2d):
    """A convolution whose kernel is masked: it sees the rows above and what is to the left; the centre if asked.

    The causal mask of an image, written into the kernel instead of the attention scores.
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, centre: bool) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        mask = torch.zeros(size, size, dtype=torch.bool)
        mask[: size // 2] = True
        mask[size // 2, : size // 2 + centre] = True
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class ResidualBlock(nn.Module):
    """Half as many features, a masked 3 × 3 convolution among them, and back: figure 5 of the paper."""

    def __init__(self, features: int) -> None:
        super().__init__()
        half = features // 2
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(features, half, 1),
            nn.ReLU(),
            MaskedConvolution(half, half, 3, centre=True),
            nn.ReLU(),
            nn.Conv2d(half, features, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class PixelCNN(nn.Module):
    """Logits of every pixel's grey level from the pixels before it and the class, all pixels at once."""

    def __init__(self, size: int, levels: int, *, features: int = 64, blocks: int = 7) -> None:
        super().__init__()
        self.size, self.levels = size, levels
        self.of_class = nn.Embedding(CLASSES, features)
        self.first = MaskedConvolution(1, features, 7, centre=False)
        self.blocks = nn.Sequential(*(ResidualBlock(features) for _ in range(blocks)))
        self.last = nn.Sequential(
            nn.ReLU(), nn.Conv2d(features, features, 1), nn.ReLU(), nn.Conv2d(features, levels, 1)
        )

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """[B, S, S] grey levels and [B] classes -> [B, levels, S, S]."""
        x = self.first(2 * pixels[:, None].float() / (self.levels - 1) - 1)
        return self.last(self.blocks(x + self.of_class(labels)[:, :, None, None]))


def pixel_loss(model: PixelCNN, batch: TextBatch) -> tuple[Tensor, int]:
    """The loss of image rows, class token first, as `language_loss` has it. Returns (loss, number of pixels)."""
    labels = batch.tokens[:, 0] - FIRST_LEVEL - model.levels
    pixels = (batch.tokens[:, 1:] - FIRST_LEVEL).unflatten(1, (model.size, model.size))
    return F.cross_entropy(model(pixels, labels).float(), pixels), pixels.numel()
