"""Images as texts: a class token, then the grey level of every pixel, row by row."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

from utils.corpora.batches import TextBatch
from utils.corpora.download import Corpus, fetch, gunzipped_digest
from utils.corpora.tokens import SPECIAL_TOKENS

FIRST_LEVEL = len(SPECIAL_TOKENS)  # the token of grey level 0: the reserved ids stay reserved
CLASSES = 10

FASHION_MNIST = Corpus(
    "fashion-mnist",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    {
        "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    digest_of=gunzipped_digest,
)
FASHION_NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


class Images(NamedTuple):
    """Square grey images and their classes, 0 to 9."""

    pixels: Int[Tensor, "N S S"]
    labels: Int[Tensor, " N"]


def digit_images(*, held_out: int = 297, seed: int = 0) -> tuple[Images, Images]:
    """Handwritten digits of 8 by 8 pixels with 17 grey levels: 1,797 that scikit-learn ships, split at random.

    Returns (train, test), with `held_out` images for the test. E. Alpaydin and C. Kaynak (1998), UCI.
    """
    from sklearn.datasets import load_digits  # here, because it is slow to import and only this function needs it

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    images = Images(torch.from_numpy(data.images).long()[order], torch.from_numpy(data.target).long()[order])
    return Images(*(side[held_out:] for side in images)), Images(*(side[:held_out] for side in images))


def load_fashion_mnist(split: str, *, size: int = 28, levels: int = 16, folder: Path | None = None) -> Images:
    """Pictures of clothes (Xiao et al., 2017): `split` is train (60,000) or t10k (10,000), the test set.

    `size` is 28, or 14 or 7 for means of neighbouring pixels; the 256 grey levels are rounded down to `levels`.
    The files come from `folder` if it is given, and are downloaded otherwise.
    """
    names = f"{split}-images-idx3-ubyte.gz", f"{split}-labels-idx1-ubyte.gz"
    if unknown := [name for name in names if name not in FASHION_MNIST.digests]:
        raise ValueError(f"Fashion-MNIST has no {unknown}; known files: {sorted(FASHION_MNIST.digests)}.")
    paths = (Path(folder) / name if folder else fetch(FASHION_MNIST, name) for name in names)
    return grey_images(*paths, size=size, levels=levels)


def grey_images(pixel_path: Path, label_path: Path, *, size: int, levels: int) -> Images:
    """Images and labels from two gzipped IDX files, made smaller and rounded as in `load_fashion_mnist`.

    Raises ValueError if `size` does not divide the size of the images.
    """
    pixels, labels = read_idx(pixel_path), read_idx(label_path)
    if pixels.shape[-1] % size:
        raise ValueError(f"the images have {pixels.shape[-1]} pixels in a row, and size = {size} does not divide that.")
    pixels = F.avg_pool2d(pixels[:, None].float(), pixels.shape[-1] // size)[:, 0]  # [N, 28, 28] -> [N, size, size]
    return Images((pixels * levels / 256).long(), labels.long())


def read_idx(path: Path) -> UInt8[Tensor, "..."]:
    """The tensor in a gzipped IDX file: two zero bytes, type 8 (bytes), rank, big-endian sizes, content.

    Raises ValueError for another beginning.
    """
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path.name} starts with {content[:4].hex(' ')}; expected 00 00 08 and the rank.")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy())


def image_tokens(images: Images, levels: int) -> Int[Tensor, "N L"]:
    """Class token, then pixels in raster order: [N, 1 + S*S]. Levels follow the reserved ids, classes the levels.

    Raises ValueError for a grey level that is not below `levels`.
    """
    if (brightest := int(images.pixels.max())) >= levels:
        raise ValueError(f"a pixel has level {brightest}; expected 0 to {levels - 1} for levels = {levels}.")
    classes = FIRST_LEVEL + levels + images.labels[:, None]
    return torch.cat((classes, FIRST_LEVEL + images.pixels.flatten(1)), dim=1)


def image_vocabulary(levels: int) -> int:
    """How many token ids `image_tokens` uses: the reserved ones, the grey levels, the classes."""
    return FIRST_LEVEL + levels + CLASSES


class ImageBatches:
    """Images as token rows of equal length, in batches: `batches(epoch)` gives those of an epoch in random order.

    The order depends only on `seed` and `epoch`, so that training can resume in the middle of an epoch.
    """

    def __init__(self, tokens: Int[Tensor, "N L"], *, batch_size: int, seed: int = 0) -> None:
        self.tokens, self.batch_size, self.seed = tokens, batch_size, seed

    def __call__(self, epoch: int) -> Iterator[TextBatch]:
        """The batches of one epoch; no row is padded, and every token counts."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
        for rows in torch.randperm(len(self.tokens), generator=generator).split(self.batch_size):
            every = torch.ones(len(rows), self.tokens.shape[1], dtype=torch.bool)
            yield TextBatch(self.tokens[rows], every, every)
