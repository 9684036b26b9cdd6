"""Decoding speed as ratios in one run: with a key-value cache, without, and Hugging Face's `generate`.

    python benchmarks/decoding_speed.py --json result.json

Greedy search with random weights. Ours and a GPT-2 of the same sizes, built from a config, write the same number of
tokens after the same prompts, in turns, so that a busy machine slows all of them alike. Nobody stops at an end mark.
"""

import argparse
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from common import DEVICE, report, surroundings
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from utils.corpora import BOS, EOS, PAD
from utils.decoding import NextLogits, decoder_only_next_logits, greedy_search
from utils.transformer import DecoderOnly, TransformerConfig

PROMPT_LEN = 8


def never_ending(next_logits: NextLogits) -> NextLogits:
    """The same scores without the end mark and padding, so that each contestant does all of its steps."""

    def scores(tokens: Tensor) -> Tensor:
        logits = next_logits(tokens)
        logits[:, PAD] = logits[:, EOS] = float("-inf")
        return logits

    return scores


def ours(model: DecoderOnly, prompt: Tensor, new_tokens: int, *, cached: bool) -> list[list[int]]:
    """Greedy search of this package."""
    next_logits = never_ending(decoder_only_next_logits(model, cached=cached))
    return greedy_search(next_logits, prompt, torch.full((len(prompt),), new_tokens, device=prompt.device))


def hugging_face(model: GPT2LMHeadModel, prompt: Tensor, new_tokens: int) -> Tensor:
    """Greedy search of `generate`, with its cache."""
    return model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, use_cache=True,
        min_new_tokens=new_tokens, max_new_tokens=new_tokens,
    )  # fmt: skip


def gpt2(config: TransformerConfig, max_len: int) -> GPT2LMHeadModel:
    """Hugging Face's GPT-2 with our sizes."""
    sizes = {"n_embd": config.d_model, "n_head": config.num_heads, "n_layer": config.num_layers, "n_inner": config.d_ff}
    marks = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    return GPT2LMHeadModel(GPT2Config(vocab_size=config.vocab_size, n_positions=max_len, **sizes, **marks))


def seconds(write: Callable[[], object]) -> float:
    """How long one search takes."""
    start = time.perf_counter()
    write()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def measure(config: TransformerConfig, batch_size: int, new_tokens: int, rounds: int) -> dict:
    """Tokens a second of each contestant, and how many times faster ours with a cache is: medians of the rounds."""
    torch.manual_seed(0)
    model = DecoderOnly(config).eval().to(DEVICE)
    theirs = gpt2(config, PROMPT_LEN + new_tokens).eval().to(DEVICE)
    prompt = torch.randint(EOS + 1, config.vocab_size, (batch_size, PROMPT_LEN), device=DEVICE)
    contestants = {
        "ours, cache": lambda: ours(model, prompt, new_tokens, cached=True),
        "ours, no cache": lambda: ours(model, prompt, new_tokens, cached=False),
        "Hugging Face generate, cache": lambda: hugging_face(theirs, prompt, new_tokens),
    }
    assert contestants["ours, cache"]() == contestants["ours, no cache"]()
    assert hugging_face(theirs, prompt, new_tokens).shape[1] == PROMPT_LEN + new_tokens
    times = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, write in contestants.items():
            times[name].append(seconds(write))
    ratios = {
        name: [time / base for time, base in zip(values, times["ours, cache"], strict=True)]
        for name, values in times.items()
    }
    return {
        "batch_size": batch_size,
        "new_tokens": new_tokens,
        "tokens_per_second": {name: round(batch_size * new_tokens / median(values)) for name, values in times.items()},
        "ours_with_a_cache_is_faster_by": {name: round(median(values), 2) for name, values in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config = TransformerConfig(args.vocabulary, args.d_model, d_ff=2 * args.d_model, num_layers=args.layers)
    runs = [measure(config, size, length, args.rounds) for size in args.batch_sizes for length in args.new_tokens]
    result = surroundings() | {"d_model": args.d_model, "layers": args.layers, "prompt_tokens": PROMPT_LEN}
    result["versions"]["transformers"] = version("transformers")
    report(result | {"runs": runs}, args.json)


if __name__ == "__main__":
    main()
