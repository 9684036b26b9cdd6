"""What is shipped in data/checkpoints/ loads, is complete, and does what its record says."""

import math
from functools import partial

import pytest

from utils.corpora import (
    CACHE,
    BucketedTexts,
    ImageBatches,
    dialogue_windows,
    image_tokens,
    load_aeslc,
    load_fashion_mnist,
    load_multi30k,
    load_schema_guided,
)
from utils.decoding import summarize, translate
from utils.masks import local_mask
from utils.scores import bleu_13a, rouge
from utils.training import CHECKPOINTS, language_loss, load_checkpoint, mean_loss

SHIPPED = sorted(CHECKPOINTS.glob("*.safetensors"))


def test_there_is_a_checkpoint():
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_checkpoint_is_small_and_says_how_it_was_made(path):
    _, _, record = load_checkpoint(path)
    assert path.stat().st_size < 10e6
    assert {"command", "commit", "seed", "device", "versions", "minutes", "train_sha256", "scores"} <= record.keys()


def test_the_translator_translates():
    model, tokenizer, _ = load_checkpoint(CHECKPOINTS / "translation_en_de.safetensors")
    assert translate(model, tokenizer, ["Two dogs are playing in the snow."]) == ["zwei hunde spielen im schnee."]


def test_the_translator_both_ways_answers_in_the_other_language():
    model, tokenizer, _ = load_checkpoint(CHECKPOINTS / "translation_de_en.safetensors")
    lines = ["Zwei Hunde spielen im Schnee.", "Two dogs are playing in the snow."]
    assert translate(model, tokenizer, lines) == ["two dogs play in the snow.", "zwei hunde spielen im schnee."]


@pytest.mark.skipif(not (CACHE / "multi30k" / "val.de.gz").exists(), reason="Multi30k is not in data/cache/")
@pytest.mark.parametrize(
    ("name", "direction"),
    [("en_de", "en-de"), ("en_de_second", "en-de"), ("en_de_taught", "en-de"), ("de_en", "en-de"), ("de_en", "de-en")],
)
def test_a_translator_reaches_the_score_of_its_record(name, direction):
    """On a slice of the validation set, so with some room on both sides."""
    model, tokenizer, record = load_checkpoint(CHECKPOINTS / f"translation_{name}.safetensors")
    sources, targets = (side[:200] for side in load_multi30k("val", direction.split("-")))
    scores = record["scores"].get(direction, record["scores"])  # that of the command at the top, the way back by name
    assert abs(bleu_13a(translate(model, tokenizer, sources), targets) - scores["greedy"]["bleu_13a"]) < 5


@pytest.mark.skipif(not (CACHE / "fashion-mnist").exists(), reason="Fashion-MNIST is not in data/cache/")
@pytest.mark.parametrize("size", [14, 28])
def test_a_painter_reaches_the_score_of_its_record(size):
    """On a hundred of the ten thousand test images, so with some room on both sides."""
    model, _, record = load_checkpoint(CHECKPOINTS / f"image_generation_{size}.safetensors")
    images = load_fashion_mnist("t10k", size=size, levels=record["levels"])
    batches = ImageBatches(image_tokens(images, record["levels"])[:100], batch_size=20)(0)
    mask = local_mask(size**2, back=record.get("back") or size**2)  # without a window all pixels before it
    bits = mean_loss(model, partial(language_loss, mask=mask), batches) / math.log(2)
    assert abs(bits - record["scores"]["bits_per_pixel"]) < 0.15


@pytest.mark.skipif(not (CACHE / "aeslc").exists(), reason="AESLC is not in data/cache/")
def test_the_subject_writer_reaches_the_score_of_its_record():
    """On a slice of the validation set, so with some room on both sides."""
    model, tokenizer, record = load_checkpoint(CHECKPOINTS / "summarization.safetensors")
    bodies, subjects = (side[::5] for side in load_aeslc("dev"))
    texts = [" ".join(body) for body in bodies]
    found = rouge(summarize(model, tokenizer, texts, source_limit=record["source_limit"]), subjects)
    assert abs(found["rouge1"] - record["scores"]["greedy"]["rouge1"]) < 2


@pytest.mark.skipif(not (CACHE / "sgd").exists(), reason="Schema-Guided Dialogue is not in data/cache/")
def test_the_assistant_reaches_the_perplexity_of_its_record():
    """On an eighth of the validation set, so with some room on both sides."""
    model, tokenizer, record = load_checkpoint(CHECKPOINTS / "dialogue.safetensors")
    windows = dialogue_windows(tokenizer, load_schema_guided("dev")[::8], record["context"])
    nats = mean_loss(model, language_loss, BucketedTexts(*windows, max_tokens=4096)(0))
    assert abs(nats - math.log(record["scores"]["perplexity_piece"])) < 0.2
