"""Sentences that nobody wrote, for a student to learn from: a language model draws them, the teachers translate them.

He et al. (2022), "Generate, annotate, and learn", do so for classifiers. What teachers say about the pairs that they
were trained on shows what they remember; what they say about new sentences shows what they have learned.
"""

from collections.abc import Sequence

import torch
from common import DEVICE
from tokenizers import Tokenizer
from tqdm.auto import tqdm

from utils.corpora import BOS, BucketedTexts, encode
from utils.decoding import decoder_only_next_logits, sample
from utils.training import language_loss, train
from utils.transformer import DecoderOnly, TransformerConfig

EPOCHS = 16
LONGEST = 40  # pieces of a drawn sentence
TOGETHER = 500  # sentences that are drawn at once


def invented(tokenizer: Tokenizer, lines: Sequence[str], count: int, *, seed: int = 0) -> list[str]:
    """The different ones of `count` sentences drawn from a decoder-only model that learns `lines`."""
    torch.manual_seed(seed)
    texts = BucketedTexts(encode(tokenizer, lines, bos=True), max_tokens=2048, seed=seed)
    model = DecoderOnly(TransformerConfig(tokenizer.get_vocab_size(), num_layers=4, dropout=0.1)).to(DEVICE)
    steps = EPOCHS * sum(1 for _ in texts(0))
    train(model, language_loss, texts, steps=steps, learning_rate=4e-3, description="learning the sources")
    return drawn(model, tokenizer, count, seed=seed)


@torch.no_grad()
def drawn(model: DecoderOnly, tokenizer: Tokenizer, count: int, *, seed: int) -> list[str]:
    """The different ones of `count` sentences that a language model draws, each piece as likely as the model says."""
    generator, found = torch.Generator(DEVICE).manual_seed(seed), []
    start, most = torch.full((TOGETHER, 1), BOS, device=DEVICE), torch.full((TOGETHER,), LONGEST, device=DEVICE)
    for _ in tqdm(range(0, count, TOGETHER), desc="drawing sentences"):
        found += tokenizer.decode_batch(sample(decoder_only_next_logits(model), start, most, generator=generator))
    return [sentence for sentence in dict.fromkeys(found[:count]) if sentence]
