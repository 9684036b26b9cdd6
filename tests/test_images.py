"""Images as token rows: the file format, sizes and levels, the split, the batches."""

import gzip
import struct

import pytest
import torch

from utils.corpora import FIRST_LEVEL, ImageBatches, Images, digit_images, grey_images, image_tokens, image_vocabulary
from utils.corpora.images import load_fashion_mnist, read_idx


def write_idx(path, values, start=b"\x00\x00\x08"):
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(start + bytes([values.ndim]) + sizes + bytes(values.flatten().tolist())))
    return path


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (3, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_an_idx_file_gives_back_its_tensor(tmp_path, pixels):
    assert torch.equal(read_idx(write_idx(tmp_path / "a.gz", pixels)), pixels)


def test_another_type_of_idx_file_is_refused(tmp_path, pixels):
    with pytest.raises(ValueError, match="00 00 0d 03; expected 00 00 08"):
        read_idx(write_idx(tmp_path / "a.gz", pixels, start=b"\x00\x00\x0d"))


def test_smaller_images_are_means_and_levels_are_rounded_down(tmp_path, pixels):
    labels = torch.tensor([3, 1, 4], dtype=torch.uint8)
    paths = write_idx(tmp_path / "a.gz", pixels), write_idx(tmp_path / "b.gz", labels)
    images = grey_images(*paths, size=14, levels=16)
    for n, r, c in ((0, 0, 0), (1, 5, 9), (2, 13, 13)):
        block = [int(pixels[n, 2 * r + i, 2 * c + j]) for i in (0, 1) for j in (0, 1)]
        assert images.pixels[n, r, c] == sum(block) * 16 // (4 * 256)
    assert torch.equal(grey_images(*paths, size=28, levels=256).pixels, pixels.long())
    assert images.labels.tolist() == [3, 1, 4]
    with pytest.raises(ValueError, match="size = 10 does not divide"):
        grey_images(*paths, size=10, levels=16)


def test_an_unknown_part_of_fashion_mnist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no .*val-images"):
        load_fashion_mnist("val", folder=tmp_path)


def test_a_row_is_the_class_and_then_the_pixels_row_by_row():
    images = Images(torch.tensor([[[0, 1], [2, 3]]]), torch.tensor([7]))
    assert image_tokens(images, 4).tolist() == [[FIRST_LEVEL + 4 + 7, *(FIRST_LEVEL + level for level in range(4))]]
    assert image_tokens(images._replace(labels=torch.tensor([9])), 4).max() == image_vocabulary(4) - 1


def test_a_level_too_many_is_refused():
    with pytest.raises(ValueError, match="level 4; expected 0 to 3"):
        image_tokens(Images(torch.tensor([[[4]]]), torch.tensor([0])), 4)


def as_set(images):
    return {image.numpy().tobytes() for image in images.pixels}


def test_digits_are_split_without_overlap_and_the_same_for_the_same_seed():
    train, test = digit_images(held_out=297, seed=1)
    assert (len(as_set(train)), len(as_set(test)), len(as_set(train) | as_set(test))) == (1500, 297, 1797)
    again, other = digit_images(held_out=297, seed=1)[1], digit_images(held_out=297, seed=2)[1]
    assert all(map(torch.equal, test, again))
    assert as_set(test) != as_set(other)


def test_an_epoch_holds_each_image_once_in_an_order_of_its_own():
    rows = torch.arange(50)[:, None].expand(-1, 3)
    batches = ImageBatches(rows, batch_size=8, seed=1)
    first, again, next_epoch, other_seed = (
        torch.cat([batch.tokens[:, 0] for batch in epoch])
        for epoch in (batches(0), batches(0), batches(1), ImageBatches(rows, batch_size=8, seed=2)(0))
    )
    assert sorted(first.tolist()) == list(range(50))
    assert torch.equal(first, again)
    assert not torch.equal(first, next_epoch)
    assert not torch.equal(first, other_seed)
