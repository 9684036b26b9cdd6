"""What is shipped in data/checkpoints/ loads, is complete, and does what its record says."""

import pytest

from utils.corpora import CACHE, load_multi30k
from utils.decoding import translate
from utils.scores import bleu_13a
from utils.training import CHECKPOINTS, load_checkpoint

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


@pytest.mark.skipif(not (CACHE / "multi30k" / "val.de.gz").exists(), reason="Multi30k is not in data/cache/")
def test_the_translator_reaches_the_score_of_its_record():
    """On a slice of the validation set, so with some room on both sides."""
    model, tokenizer, record = load_checkpoint(CHECKPOINTS / "translation_en_de.safetensors")
    sources, targets = (side[:200] for side in load_multi30k("val", ["en", "de"]))
    assert abs(bleu_13a(translate(model, tokenizer, sources), targets) - record["scores"]["greedy"]["bleu_13a"]) < 5
