"""Exercises of notebook 06, translation."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from utils.corpora import PAD
from utils.exercises.core import Exercise
from utils.masks import mask_from_text, valid_from_lengths

check_by_word = Exercise(
    task="For each of the five numbers one sign: ■ if the glossary of section 2 translates it right, ⬚ if not.",
    solution=mask_from_text("⬚■⬚■■"),
    mistakes={
        "Opposite: ■ is for the numbers that come out *right*.": mask_from_text("■⬚■⬚⬚"),
        "A detail of German: before hundert it says ein and not eins, but the glossary knows one form of each word.": (
            mask_from_text("⬚■■■■")
        ),
        "Too strict: a number that ends in one keeps its eins, zweihunderteins. Only before hundert, and at the "
        "beginning before tausend, the s is lost.": mask_from_text("⬚■⬚⬚■"),
        "Too strict: what goes wrong is the order of ones and tens. thirteen and twelve are one word each, so there is "
        "nothing to turn round.": mask_from_text("⬚⬚⬚■⬚"),
        "The order: the glossary leaves the five in forty-five behind the forty. German says it first.": mask_from_text(
            "■■⬚■■"
        ),
    },
)

FLAGS = [
    tuple(valid_from_lengths(torch.tensor(side)) for side in lengths)
    for lengths in (([2, 1], [1, 4]), ([3, 3], [2, 5]), ([4, 1, 2], [2, 2, 2]), ([5], [3]), ([6, 2], [3, 1]))
]


def wasted(src_valid: Bool[Tensor, "B Ls"], tgt_valid: Bool[Tensor, "B Lt"]) -> float:
    """The share of all places of a batch, source and target together, that are padding."""
    real = src_valid.sum() + tgt_valid.sum()
    return 1 - (real / (src_valid.numel() + tgt_valid.numel())).item()


check_wasted = Exercise(
    task="wasted(src_valid, tgt_valid): which share of all places of the batch, source and target, is padding?",
    solution=wasted,
    cases=FLAGS,
    mistakes={
        "Mean of two shares: the longer side has more places, so it must count more. Add up the places of both sides, "
        "then divide.": lambda src_valid, tgt_valid: 1 - (src_valid.float().mean() + tgt_valid.float().mean()) / 2,
        "Polarity: this is the share of the *real* tokens. valid is True for them.": lambda src_valid, tgt_valid: (
            1 - wasted(src_valid, tgt_valid)
        ),
        "One side only: the target has padding, too.": lambda src_valid, tgt_valid: 1 - src_valid.float().mean(),
        "Counted, not divided: this is the number of padded places.": lambda src_valid, tgt_valid: (
            (~src_valid).sum() + (~tgt_valid).sum()
        ),
    },
)

check_runs = Exercise(
    task="For each of the five batches one sign: ■ if training runs with the target's flags in cross-attention.",
    solution=mask_from_text("⬚■⬚■⬚"),
    mistakes={
        "Not shifted: the decoder reads the target without its last token, so a target of 8 tokens gives flags for "
        "7.": mask_from_text("■⬚⬚⬚⬚"),
        "Shifted the other way: the decoder reads one token *less* than the target has.": mask_from_text("⬚⬚■⬚⬚"),
        "One column for all: queries may share a row, but the keys share no column. attention refuses a mask with one "
        "column for five keys.": mask_from_text("⬚■⬚■■"),
        "Too strict: the mask is wrong in every batch, but an error comes only where the shapes do not fit.": (
            mask_from_text("⬚⬚⬚⬚⬚")
        ),
        "Too kind: a mask has a column for each key, and the keys are the source tokens. Another number of columns "
        "is an error.": mask_from_text("■■■■■"),
        "Opposite: ■ is for the batches that *run*.": mask_from_text("■⬚■⬚■"),
    },
)


def candidate_scores(
    log_probs: Float[Tensor, "N L"], valid: Bool[Tensor, "N L"], penalty: float
) -> Float[Tensor, " N"]:
    """The sum over the real tokens, divided by their number to the power of `penalty`."""
    return log_probs.masked_fill(~valid, 0.0).sum(dim=1) / valid.sum(dim=1) ** penalty


def _candidates(lengths: list[int], at_padding: float) -> tuple[Tensor, Tensor]:
    """Rounded random log-probabilities with `at_padding` behind them, and their flags."""
    valid = valid_from_lengths(torch.tensor(lengths))  # [N, L]
    numbers = torch.Generator().manual_seed(len(lengths))
    return (-2 * torch.rand(valid.shape, generator=numbers)).round(decimals=1).masked_fill(~valid, at_padding), valid


check_candidate_scores = Exercise(
    task="candidate_scores(log_probs, valid, penalty): [N, L], [N, L] and a number -> [N], log-probability by length.",
    solution=candidate_scores,
    cases=[
        (*_candidates(lengths, at_padding), penalty)
        for lengths in ([2, 1], [1, 3, 4])
        for at_padding in (-1.0, float("-inf"), float("nan"))
        for penalty in (0.0, 1.0, 2.0)
    ],
    mistakes={
        "NaN: what stands at padding may be anything, and 0 * -inf is NaN. A mask fills, it does not multiply.": (
            lambda log_probs, valid, penalty: (log_probs * valid).sum(dim=1) / valid.sum(dim=1) ** penalty
        ),
        "Padding counted: the sum runs over all places. Fill those of the padding with 0 first.": (
            lambda log_probs, valid, penalty: log_probs.sum(dim=1) / valid.sum(dim=1) ** penalty
        ),
        "Padded length: every row was divided by the same number, the length of the longest. So the length changes "
        "nothing in the order.": lambda log_probs, valid, penalty: (
            log_probs.masked_fill(~valid, 0.0).sum(dim=1) / valid.shape[1] ** penalty
        ),
        "Length ignored: short candidates win, since each further token adds a negative number.": (
            lambda log_probs, valid, penalty: candidate_scores(log_probs, valid, 0.0)
        ),
        "Multiplied instead of divided: long candidates are punished twice.": lambda log_probs, valid, penalty: (
            candidate_scores(log_probs, valid, -penalty)
        ),
    },
)


def depends_on_company(
    write: Callable[[Tensor, Tensor], Tensor], src: Int[Tensor, "B Ls"], src_valid: Bool[Tensor, "B Ls"]
) -> bool:
    """Whether a sentence gets another translation in the batch than alone and without padding."""
    return not torch.equal(write(src, src_valid), _alone(write, src, src_valid))


def _alone(write: Callable[[Tensor, Tensor], Tensor], src: Tensor, src_valid: Tensor) -> Int[Tensor, "B 3"]:
    """Each sentence in a batch of its own, cut to its real tokens."""
    rows = zip(src, src_valid, strict=True)
    return torch.cat([write(ids[valid][None], valid[valid][None]) for ids, valid in rows])


def _three_ids(numbers: Int[Tensor, " B"]) -> Int[Tensor, "B 3"]:
    """Stands for a translation: three ids that follow from one number of the sentence."""
    return (numbers[:, None] + torch.arange(3)) % 26 + 4


def all_masks(src: Tensor, src_valid: Tensor) -> Tensor:
    """Reads the real tokens of each sentence."""
    return _three_ids((src * src_valid).sum(dim=1))


def no_source_mask(src: Tensor, src_valid: Tensor) -> Tensor:
    """Averages over all places, padding included."""
    return _three_ids((10 * src.float().mean(dim=1)).long())


def normalised_over_the_batch(src: Tensor, src_valid: Tensor) -> Tensor:
    """Compares each sentence with the others."""
    totals = (src * src_valid).sum(dim=1)
    return _three_ids(totals - totals.amin())


def left_in_order_of_length(src: Tensor, src_valid: Tensor) -> Tensor:
    """Sorts the sentences for speed and forgets to bring the translations back into the order of the batch."""
    return all_masks(src, src_valid)[src_valid.sum(dim=1).argsort(stable=True)]


def second_id_reads_padding(src: Tensor, src_valid: Tensor) -> Tensor:
    """Begins well and ends well."""
    ids = all_masks(src, src_valid)
    ids[:, 1] = no_source_mask(src, src_valid)[:, 1]
    return ids


def _batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Random ids, padded on the right, and their flags."""
    valid = valid_from_lengths(torch.tensor(lengths))  # [B, Ls]
    numbers = torch.Generator().manual_seed(sum(lengths))
    return torch.randint(4, 30, valid.shape, generator=numbers).masked_fill(~valid, PAD), valid


check_depends_on_company = Exercise(
    task="depends_on_company(write, src, src_valid) -> bool: do translations depend on the other sentences?",
    solution=depends_on_company,
    cases=[
        (write, *_batch(lengths))
        for write in (
            all_masks,
            no_source_mask,
            normalised_over_the_batch,
            left_in_order_of_length,
            second_id_reads_padding,
        )
        for lengths in ([3], [3, 1], [2, 2], [1, 4, 2])
    ],
    mistakes={
        "Polarity: the test says True for the program that is right. True is to mean that company *matters*.": (
            lambda *arguments: not depends_on_company(*arguments)
        ),
        "Alone, but still padded: the neighbours are gone, and the padding that they caused is not. Cut each sentence "
        "to its real tokens.": lambda write, src, src_valid: (
            not torch.equal(
                write(src, src_valid),
                torch.cat([write(src[b : b + 1], src_valid[b : b + 1]) for b in range(len(src))]),
            )
        ),
        "One sentence only: the first may be the longest, and then it has no padding. Compare all of them.": (
            lambda write, src, src_valid: (
                not torch.equal(write(src, src_valid)[:1], _alone(write, src[:1], src_valid[:1]))
            )
        ),
        "The first id only: a translation may begin well and go wrong later. Compare all three.": (
            lambda write, src, src_valid: (
                not torch.equal(write(src, src_valid)[:, 0], _alone(write, src, src_valid)[:, 0])
            )
        ),
        "Order ignored: the same translations in another order are wrong ones. Compare row by row.": (
            lambda write, src, src_valid: (
                sorted(write(src, src_valid).tolist()) != sorted(_alone(write, src, src_valid).tolist())
            )
        ),
    },
)
