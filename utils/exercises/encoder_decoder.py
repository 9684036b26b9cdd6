"""Exercises of notebook 05, the encoder-decoder and its three masks."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from utils.corpora import PAD
from utils.exercises.core import Exercise
from utils.exercises.mistakes import PADDED_QUERIES, POLARITY, flipped
from utils.masks import all_of, any_of, causal_mask, mask_from_text, padding_mask, valid_from_lengths
from utils.transformer import Seq2SeqMasks, Transformer, TransformerConfig, seq2seq_masks

check_three_shapes = Exercise(
    task="The shapes of encoder_self, decoder_self and decoder_cross for sources of 3 and 5 and targets of 6 and 2.",
    solution=[[2, 1, 1, 5], [2, 1, 6, 6], [2, 1, 1, 5]],
    mistakes={
        "Target in cross-attention: a mask has a column for each *key*, and the keys of cross-attention are the source "
        "tokens.": [[2, 1, 1, 5], [2, 1, 6, 6], [2, 1, 1, 6]],
        "One row for all: that is enough for padding. In the decoder each query has another past, so each needs a row "
        "of its own.": [[2, 1, 1, 5], [2, 1, 1, 6], [2, 1, 1, 5]],
        "Spread out: these are the shapes that the scores have. Where one row serves all queries, seq2seq_masks "
        "leaves a 1 and broadcasting does the rest.": [[2, 1, 5, 5], [2, 1, 6, 6], [2, 1, 6, 5]],
        "Shortest instead of longest: a batch is padded up to its longest sentence.": [
            [2, 1, 1, 3],
            [2, 1, 2, 2],
            [2, 1, 1, 3],
        ],
    },
)

LENGTHS = [([2, 1], [1, 2]), ([3, 5], [6, 2]), ([4, 2], [5, 3]), ([1, 4, 2], [3, 2, 3]), ([3], [4])]
FLAGS = [tuple(valid_from_lengths(torch.tensor(side)) for side in pair) for pair in LENGTHS]


def _with_decoder(decoder_mask: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Seq2SeqMasks]:
    """The right masks, but that of the decoder is decoder_mask(tgt_valid)."""
    return lambda src_valid, tgt_valid: seq2seq_masks(src_valid, tgt_valid)._replace(
        decoder_self=decoder_mask(tgt_valid)
    )


def _decoder(tgt_valid: Bool[Tensor, "B Lt"]) -> Bool[Tensor, "B 1 Lt Lt"]:
    return all_of(causal_mask(tgt_valid.shape[1]), padding_mask(tgt_valid))


check_repaired = Exercise(
    task="repaired(src_valid, tgt_valid): the three masks of an encoder-decoder, with a right decoder_self.",
    solution=seq2seq_masks,
    cases=FLAGS,
    mistakes={
        "OR instead of AND: a key is visible if it is in the past *or* a real token, so the future is open. Both rules "
        "must allow a key.": _with_decoder(
            lambda tgt_valid: any_of(causal_mask(tgt_valid.shape[1]), padding_mask(tgt_valid))
        ),
        "No causal mask: the padding is hidden, and the future is open.": _with_decoder(padding_mask),
        "No padding mask: the future is hidden, but a padded key is visible to the queries after it.": _with_decoder(
            lambda tgt_valid: causal_mask(tgt_valid.shape[1])
        ),
        POLARITY: _with_decoder(lambda tgt_valid: ~_decoder(tgt_valid)),
        "Padded queries masked: the rows of padding are hidden as well. The loss ignores them, and without any key "
        "they are dead.": _with_decoder(lambda tgt_valid: _decoder(tgt_valid) & tgt_valid[:, None, :, None]),
    },
)

check_causes = Exercise(
    task="The numbers of the mistakes, 1 to 4, behind the symptoms A, B, C and D: a list of four numbers.",
    solution=[3, 4, 1, 2],
    mistakes={
        "A and C exchanged: both have a good loss and write badly. Without a causal mask the loss is *better* than "
        "with all masks, because the answers can be seen.": [1, 4, 3, 2],
        "A and B exchanged: without a source padding mask the model writes well until the padding grows.": [
            4,
            3,
            1,
            2,
        ],
        "C and D exchanged: a causal mask in cross-attention hides what the model needs, so its loss is worse.": [
            3,
            4,
            2,
            1,
        ],
        "A and D exchanged: a causal mask in cross-attention shows in the loss. The target's padding does not, as "
        "long as source and target are equally long.": [2, 4, 1, 3],
    },
)


def reads_source_padding(
    forward: Callable[..., Tensor],
    src: Int[Tensor, "B Ls"],
    src_valid: Bool[Tensor, "B Ls"],
    tgt: Int[Tensor, "B Lt"],
    tgt_valid: Bool[Tensor, "B Lt"],
) -> bool:
    """Whether the logits of a real target place change with the source tokens at padding."""
    changed = torch.where(src_valid, src, src + 1)  # [B, Ls]
    before, after = (forward(tokens, src_valid, tgt, tgt_valid) for tokens in (src, changed))  # [B, Lt, V]
    return _differ(before, after, tgt_valid)


def _differ(before: Float[Tensor, "B Lt V"], after: Float[Tensor, "B Lt V"], tgt_valid: Bool[Tensor, "B Lt"]) -> bool:
    return not torch.allclose(before[tgt_valid], after[tgt_valid], atol=1e-5)


def _tiny_model() -> Transformer:
    """An untrained model that leaves the random numbers of the reader as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Transformer(TransformerConfig(30, d_model=8, num_heads=2, d_ff=16, num_layers=1, dropout=0.0)).eval()


MODEL = _tiny_model()


@torch.no_grad()
def _logits(src: Tensor, tgt: Tensor, masks: Seq2SeqMasks) -> Float[Tensor, "B Lt V"]:
    return MODEL(src, tgt, masks)[0]


def right_masks(src: Tensor, src_valid: Tensor, tgt: Tensor, tgt_valid: Tensor) -> Tensor:
    """A model with all three masks."""
    return _logits(src, tgt, seq2seq_masks(src_valid, tgt_valid))


def target_padding_in_cross(src: Tensor, src_valid: Tensor, tgt: Tensor, tgt_valid: Tensor) -> Tensor:
    """The target's flags where those of the source belong."""
    return _logits(src, tgt, seq2seq_masks(src_valid, tgt_valid)._replace(decoder_cross=padding_mask(tgt_valid)))


def no_encoder_mask(src: Tensor, src_valid: Tensor, tgt: Tensor, tgt_valid: Tensor) -> Tensor:
    """The encoder reads source padding."""
    return _logits(src, tgt, seq2seq_masks(src_valid, tgt_valid)._replace(encoder_self=None))


def no_causal_mask(src: Tensor, src_valid: Tensor, tgt: Tensor, tgt_valid: Tensor) -> Tensor:
    """Wrong as well, but not in the source."""
    return _logits(src, tgt, seq2seq_masks(src_valid, tgt_valid)._replace(decoder_self=padding_mask(tgt_valid)))


def read_by_padding_alone(src: Tensor, src_valid: Tensor, tgt: Tensor, tgt_valid: Tensor) -> Tensor:
    """Padded target places read source padding, and nobody reads them."""
    cross = padding_mask(src_valid) | ~tgt_valid[:, None, :, None]
    return _logits(src, tgt, seq2seq_masks(src_valid, tgt_valid)._replace(decoder_cross=cross))


def read_by_the_second_place_alone(src: Tensor, src_valid: Tensor, tgt: Tensor, tgt_valid: Tensor) -> Tensor:
    """One target place reads source padding."""
    cross = padding_mask(src_valid) | (torch.arange(tgt.shape[1]) == 1)[:, None]
    return _logits(src, tgt, seq2seq_masks(src_valid, tgt_valid)._replace(decoder_cross=cross))


def _padded_to_five(src_lengths: list[int], tgt_lengths: list[int]) -> tuple[Tensor, ...]:
    """Random ids and flags of a batch whose two sides are padded to 5 places."""
    numbers = torch.Generator().manual_seed(0)
    batch = []
    for lengths in (src_lengths, tgt_lengths):
        valid = valid_from_lengths(torch.tensor(lengths), max_len=5)  # [B, 5]
        batch += [torch.randint(4, 11, valid.shape, generator=numbers).masked_fill(~valid, PAD), valid]
    return tuple(batch)


def _compared_at(places: Callable[[Tensor], Tensor]) -> Callable[..., bool]:
    """The right test, but the outputs are compared at places(tgt_valid)."""
    return lambda forward, src, src_valid, tgt, tgt_valid: reads_source_padding(
        lambda source, flags, *_: forward(source, flags, tgt, tgt_valid), src, src_valid, tgt, places(tgt_valid)
    )


def _target_changed(forward: Callable, src: Tensor, src_valid: Tensor, tgt: Tensor, tgt_valid: Tensor) -> bool:
    before = forward(src, src_valid, tgt, tgt_valid)
    return _differ(before, forward(src, src_valid, torch.where(tgt_valid, tgt, tgt + 1), tgt_valid), tgt_valid)


check_reads_source_padding = Exercise(
    task="reads_source_padding(forward, src, src_valid, tgt, tgt_valid) -> bool: do real target places notice it?",
    solution=reads_source_padding,
    cases=[
        (forward, *_padded_to_five(*lengths))
        for forward in (
            right_masks,
            target_padding_in_cross,
            no_encoder_mask,
            no_causal_mask,
            read_by_padding_alone,
            read_by_the_second_place_alone,
        )
        for lengths in (([2], [4]), ([5, 2, 5], [5, 3, 4]), ([4, 4], [2, 3]))
    ],
    mistakes={
        "Polarity: the test says True for the models that are right. True is to mean that padding *is* read.": (
            lambda *arguments: not reads_source_padding(*arguments)
        ),
        "Too much changed: real source words are different, too, and on those every output may depend. Change "
        "the source where src_valid is False, nowhere else.": lambda forward, src, src_valid, tgt, tgt_valid: _differ(
            forward(src, src_valid, tgt, tgt_valid), forward(src + 1, src_valid, tgt, tgt_valid), tgt_valid
        ),
        "Never True: nothing that is read was changed. Source padding holds 0 already, so put another id there. The "
        "padding of the *target* is behind the real places, where a causal mask hides it anyway.": _target_changed,
        "All places counted: nobody reads the output at a padded target place. Choose the real ones first, with "
        "tgt_valid.": _compared_at(torch.ones_like),
        "One place only: the first target place need not be the one that reads it. Compare all real places.": (
            _compared_at(lambda tgt_valid: tgt_valid & (torch.arange(tgt_valid.shape[1]) == 0))
        ),
        "One sample only: the first sentence may fill its row, and then it has no padding to read. Look at the real "
        "places of all samples.": lambda forward, src, src_valid, tgt, tgt_valid: reads_source_padding(
            forward, src[:1], src_valid[:1], tgt[:1], tgt_valid[:1]
        ),
    },
)


def wait_k(src_valid: Bool[Tensor, "B Ls"], tgt_valid: Bool[Tensor, "B Lt"], k: int) -> Bool[Tensor, "B 1 Lt Ls"]:
    """Target step t sees the real ones among the first t + k source tokens."""
    return _wait(src_valid, tgt_valid, k - 1)


def _wait(src_valid: Tensor, tgt_valid: Tensor, start: int) -> Bool[Tensor, "B 1 Lt Ls"]:
    """Target step t sees the source up to place t + start."""
    return all_of(padding_mask(src_valid), causal_mask(tgt_valid.shape[1], src_valid.shape[1], query_start=start))


check_wait_k = Exercise(
    task="wait_k(src_valid, tgt_valid, k): cross-attention in which step t sees the first t + k source tokens.",
    solution=wait_k,
    cases=[(*flags, k) for flags in FLAGS for k in (1, 2, 3)],
    mistakes={
        "Off by one: step 0 sees the first k tokens, which are the places 0 to k - 1. So step t sees up to place "
        "t + k - 1.": lambda src_valid, tgt_valid, k: _wait(src_valid, tgt_valid, k),
        PADDED_QUERIES: lambda src_valid, tgt_valid, k: wait_k(src_valid, tgt_valid, k) & tgt_valid[:, None, :, None],
        "k is missing: this is the causal mask, where step t sees t + 1 tokens.": lambda src_valid, tgt_valid, k: _wait(
            src_valid, tgt_valid, 0
        ),
        "No padding mask: the wait is right, but source padding is visible.": lambda src_valid, tgt_valid, k: (
            causal_mask(tgt_valid.shape[1], src_valid.shape[1], query_start=k - 1)
        ),
        "No wait: the whole source is visible from the first step on.": lambda src_valid, tgt_valid, k: padding_mask(
            src_valid
        ),
        POLARITY: flipped(wait_k),
    },
)

check_reachable = Exercise(
    task="For the steps 0 to 8 of a nine-letter word one sign: ■ if the letter that the step needs can be seen.",
    solution=mask_from_text("⬚⬚⬚⬚■■■■■"),
    mistakes={
        "Off by one: step 4 writes the middle letter, from source place 4, and sees the places 0 to 4.": (
            mask_from_text("⬚⬚⬚⬚⬚■■■■")
        ),
        "Mirrored: step 0 writes the *last* letter of the source and sees only the first.": mask_from_text("■■■■■⬚⬚⬚⬚"),
        "The way around is closed: the encoder is causal, too, so it cannot carry late letters to early places.": (
            mask_from_text("■■■■■■■■■")
        ),
        "Too strict: at the end all source places are visible, also the one that is needed.": mask_from_text(
            "⬚⬚⬚⬚⬚⬚⬚⬚⬚"
        ),
    },
)
