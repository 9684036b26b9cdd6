"""Train an image model on Fashion-MNIST, pixel by pixel, and count its bits per pixel.

    python benchmarks/image_generation.py --size 14 --minutes 5 --json result.json
    python benchmarks/image_generation.py --evaluate my-images-idx3-ubyte.gz my-labels-idx1-ubyte.gz

Without --data the corpus is downloaded. Bits per pixel are comparable only for one size and one number of grey
levels. Choose settings with --split val, the last 5,000 training images; t10k is for the end.
"""

import argparse
import math
from functools import partial

import torch
from common import common_arguments, report, score_and_save, surroundings, training_record

from utils.corpora import ImageBatches, Images, grey_images, image_tokens, image_vocabulary, load_fashion_mnist
from utils.masks import causal_mask
from utils.training import CHECKPOINTS, Loss, language_loss, load_checkpoint, mean_loss, train
from utils.transformer import DecoderOnly, TransformerConfig

HELD_OUT = 5000
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def arguments() -> argparse.Namespace:
    parser = common_arguments(__doc__, "train-images-idx3-ubyte.gz and so on", ["val", "t10k"])
    parser.set_defaults(layers=3, dropout=0.0)
    parser.add_argument("--size", type=int, choices=[7, 14, 28], default=28, help="pixels in a row")
    parser.add_argument("--levels", type=int, default=16, help="grey levels")
    parser.add_argument("--batch-size", type=int, default=32, help="images of a batch")
    return parser.parse_args()


def raster_loss(tokens: torch.Tensor) -> Loss:
    """The loss of image rows: no padding, so one causal mask serves every batch."""
    return partial(language_loss, mask=causal_mask(tokens.shape[1] - 1, device=DEVICE))


def scores(model: DecoderOnly, _: None, tokens: torch.Tensor) -> dict[str, float]:
    """Mean cost of a pixel in bits, given its class and the pixels before it."""
    nats = mean_loss(model.to(DEVICE), raster_loss(tokens), ImageBatches(tokens, batch_size=50)(0))
    return {"bits_per_pixel": round(nats / math.log(2), 3)}


def trained(args: argparse.Namespace) -> tuple[DecoderOnly, dict]:
    """A model trained on Fashion-MNIST, and the record of the training."""
    images = load_fashion_mnist("train", size=args.size, levels=args.levels, folder=args.data)
    tokens = image_tokens(images, args.levels)[:-HELD_OUT]
    torch.manual_seed(args.seed)
    config = TransformerConfig(
        image_vocabulary(args.levels),
        args.d_model,
        d_ff=4 * args.d_model,
        num_layers=args.layers,
        dropout=args.dropout,
    )
    model = DecoderOnly(config).to(DEVICE)
    batches = ImageBatches(tokens, batch_size=args.batch_size, seed=args.seed)
    history = train(
        model,
        raster_loss(tokens),
        batches,
        minutes=args.minutes,
        learning_rate=args.learning_rate,
        checkpoint=args.resume,
    )
    rows = (bytes(row).hex() for row in tokens.tolist())
    sizes = {"size": args.size, "levels": args.levels}
    return model, sizes | training_record(model, history, tokens[:, 1:].numel(), rows)


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
        model, _, record = load_checkpoint(CHECKPOINTS / "image_generation.safetensors")
        args.size, args.levels = record["size"], record["levels"]
        result["trained_by"] = record["command"]
    else:
        model, training = trained(args)
        result |= training
    result["scored_on"], images = scored_images(args)
    tokens = image_tokens(images, args.levels)
    score_and_save(result, model, None, args.save, partial(scores, tokens=tokens))
    report(result, args.json)


if __name__ == "__main__":
    main()
