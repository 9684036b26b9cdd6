"""Train an image model on Fashion-MNIST, pixel by pixel, and count its bits per pixel.

    python benchmarks/image_generation.py --size 14 --minutes 5 --json result.json
    python benchmarks/image_generation.py --full --size 14
    python benchmarks/image_generation.py --full --size 28
    python benchmarks/image_generation.py --size 28 --levels 256 --minutes 30 --peer pixelcnn
    python benchmarks/image_generation.py --size 14 --evaluate my-images-idx3-ubyte.gz my-labels-idx1-ubyte.gz

Without --data the corpus is downloaded. Bits per pixel are comparable only for one size and one number of grey
levels. Choose settings with --split val, the last 5,000 training images; t10k is for the end.
"""

import argparse
import math
from functools import partial

import torch
import torch.nn.functional as F
from common import DEVICE, common_arguments, parsed, report, score_and_save, surroundings, trained, training_record
from pixelcnn import PixelCNN, pixel_loss
from torch import Tensor, nn
from window import window_loss, windowed

from utils.corpora import (
    FIRST_LEVEL,
    ImageBatches,
    Images,
    grey_images,
    image_tokens,
    image_vocabulary,
    load_fashion_mnist,
)
from utils.masks import causal_mask
from utils.training import CHECKPOINTS, Loss, language_loss, load_checkpoint, mean_loss
from utils.transformer import DecoderOnly, TransformerConfig

HELD_OUT = 5000
FULL = {
    14: {"minutes": 20.0, "d_model": 96, "batch_size": 16},
    28: {"minutes": 20.0, "levels": 256, "back": 56, "d_model": 64, "batch_size": 8},
}


def arguments() -> argparse.Namespace:
    parser = common_arguments(__doc__, "train-images-idx3-ubyte.gz and so on", ["val", "t10k"])
    parser.set_defaults(layers=3, dropout=0.0)
    parser.add_argument("--size", type=int, choices=[7, 14, 28], default=28, help="pixels in a row")
    parser.add_argument("--levels", type=int, default=16, help="grey levels")
    parser.add_argument("--batch-size", type=int, default=32, help="images of a batch")
    parser.add_argument("--back", type=int, help="pixels before itself that a pixel sees, computed in blocks of them")
    parser.add_argument("--peer", choices=["pixelcnn"], help="train this instead of the Transformer; it is not saved")
    args = parsed(parser, "image_generation_{size}", FULL, by="size")
    if args.back and (args.back < 1 or args.size**2 % args.back):
        parser.error(f"--back must divide the {args.size**2} pixels; got {args.back}.")
    if args.peer and (args.save or args.back):
        parser.error("--peer trains a model for comparison alone, not saved and without --back; leave out --full too.")
    return args


def ready(model: nn.Module, tokens: Tensor, back: int | None) -> tuple[nn.Module, Loss]:
    """The model as it reads image rows, and its loss: in blocks if it has a window, else under one causal mask.

    One mask serves every batch, because no row is padded.
    """
    if isinstance(model, PixelCNN):
        return model, pixel_loss
    if back:
        return windowed(model, back), window_loss
    return model, partial(language_loss, mask=causal_mask(tokens.shape[1] - 1, device=DEVICE))


def scores(model: nn.Module, _: None, tokens: Tensor, back: int | None) -> dict[str, float]:
    """Mean cost of a pixel in bits, given its class and the pixels before it."""
    nats = mean_loss(*ready(model, tokens, back), ImageBatches(tokens, batch_size=50)(0))
    return {"bits_per_pixel": round(nats / math.log(2), 3)}


def new_model(args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(args.seed)
    if args.peer:
        return PixelCNN(args.size, args.levels).to(DEVICE)
    sizes = {"d_ff": 4 * args.d_model, "num_layers": args.layers, "dropout": args.dropout}
    return DecoderOnly(TransformerConfig(image_vocabulary(args.levels), args.d_model, **sizes)).to(DEVICE)


def training_tokens(args: argparse.Namespace) -> Tensor:
    """All training images but those held out, as rows of tokens."""
    images = load_fashion_mnist("train", size=args.size, levels=args.levels, folder=args.data)
    return image_tokens(images, args.levels)[:-HELD_OUT]


def painter(args: argparse.Namespace, tokens: Tensor) -> tuple[nn.Module, dict]:
    """A model trained on rows of tokens, and the record of the training."""
    model, loss_of = ready(new_model(args), tokens, args.back)
    batches = ImageBatches(tokens, batch_size=args.batch_size, seed=args.seed)
    history = trained(args, model, loss_of, batches)
    rows = (bytes(row).hex() for row in images_of(tokens, args.levels).tolist())
    sizes = {"size": args.size, "levels": args.levels, "back": args.back}
    return model, sizes | training_record(args, model, history, batches, rows)


def images_of(tokens: Tensor, levels: int) -> Tensor:
    """Rows of class and grey levels, each below 256: [N, 1 + S*S]."""
    return torch.cat((tokens[:, :1] - FIRST_LEVEL - levels, tokens[:, 1:] - FIRST_LEVEL), dim=1)


def baselines(known: Tensor, tokens: Tensor, levels: int) -> dict[str, float]:
    """Bits per pixel of `tokens` when the levels of the rows `known` are only counted (plus a tenth)."""
    sides = [(rows[:, :1], rows[:, 1:]) for rows in (images_of(known, levels), images_of(tokens, levels))]
    place = torch.arange(known.shape[1] - 1)
    keys_of = {
        "unigram": lambda label, pixels: 0 * pixels,
        "position": lambda label, pixels: place + 0 * label,
        "class and position": lambda label, pixels: place + len(place) * label,
        "pixel before": lambda label, pixels: F.pad(pixels, (1, 0))[:, :-1],
    }
    return {"uniform": math.log2(levels)} | {
        name: round(counted_bits([(keys(*side), side[1]) for side in sides], levels), 3)
        for name, keys in keys_of.items()
    }


def counted_bits(sides: list[tuple[Tensor, Tensor]], levels: int) -> float:
    """Mean bits of the levels of the second side under the frequencies of the first, for each key alone."""
    (keys, pixels), (new_keys, new_pixels) = sides
    counts = torch.full((int(keys.max()) + 1, levels), 0.1, dtype=torch.double)
    counts.view(-1).index_add_(0, (keys * levels + pixels).flatten(), torch.ones(pixels.numel(), dtype=torch.double))
    shares = counts / counts.sum(dim=1, keepdim=True)
    return -shares[new_keys, new_pixels].log2().mean().item()


def scored_images(args: argparse.Namespace) -> tuple[str, Images]:
    """What to call the images to score, and the images."""
    sizes = {"size": args.size, "levels": args.levels}
    if args.evaluate:
        return "given files", grey_images(*args.evaluate, **sizes)
    if args.split == "t10k":
        return "t10k, 10000 images", load_fashion_mnist("t10k", folder=args.data, **sizes)
    images = load_fashion_mnist("train", folder=args.data, **sizes)
    return f"val, {HELD_OUT} images", Images(*(side[-HELD_OUT:] for side in images))


def main() -> None:
    args = arguments()
    result = {"task": "Fashion-MNIST", "seed": args.seed} | surroundings()
    if args.evaluate:
        model, _, record = load_checkpoint(CHECKPOINTS / f"image_generation_{args.size}.safetensors")
        args.levels, args.back = record["levels"], record.get("back")
        result["trained_by"] = record["command"]
    else:
        known = training_tokens(args)
    result["scored_on"], images = scored_images(args)  # before the training: what is missing shows now
    tokens = image_tokens(images, args.levels)
    if not args.evaluate:
        result["baselines"] = baselines(known, tokens, args.levels)
        model, training = painter(args, known)
        result |= training
    score_and_save(result, model, None, args.save, partial(scores, tokens=tokens, back=args.back))
    report(result, args.json)


if __name__ == "__main__":
    main()
