"""What an audit says: findings, the report that holds them, and the rules they go by."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from textwrap import fill

from torch import Tensor

RULES = {
    "future-leak": "An output depends on a later token, so a training loss can fall by copying the answer. "
    "Usual cause: no causal mask, the wrong polarity, one diagonal too many, or a mask that one mode forgets. "
    "Seen in: rasbt/LLMs-from-scratch issue 1061; transformers issue 48745.",
    "forbidden-connection": "An output depends on a token outside the declared dependency (`allowed`). "
    "Usual cause: a window counted with or without the query itself, or widened by every layer. "
    "Seen in: transformers issues 29623, 39408.",
    "dead-connection": "A token that may be seen has no influence at all. "
    "Usual cause: a mask that hides too much: a blocked diagonal, a causal mask on cross-attention or in an "
    "encoder, the target's mask on the source. Seen in: transformers issue 48172; keras-io PR 1046.",
    "padding-content": "What stands in the padded places changes the real outputs. "
    "Usual cause: a padding mask that is missing, inverted, or added as 0/1; or a convolution, norm or mean that "
    "runs over the padding. Seen in: pytorch/audio issue 4205; lucidrains/halonet-pytorch issue 4; "
    "transformers PR 46773.",
    "padding-amount": "The number of padded places changes the real outputs, though their content does not. "
    "Usual cause: padding that was set to zero and still counts: in a softmax, or in the length a mean divides by. "
    "Seen in: transformers issue 17463.",
    "padding-side": "Padding on the left changes the real outputs, though its content does not. "
    "Usual cause: position ids that count the padding. If the model is never padded on the left, pass "
    "sides=('right',). Seen in: unsloth issue 3699; nnsight issue 672; transformers issue 22707.",
    "batch-neighbour": "The output of a sample depends on what else is in the batch. "
    "Usual cause: masks of the heads in the wrong order, a mask of sample 0 used for all, or a norm over the batch.",
    "not-finite": "The output holds NaN or infinite values. "
    "Usual cause: a query without any key (a dead row) and a softmax over nothing but -inf, or two planes of "
    "finfo.min that overflow when added. Seen in: pytorch issue 103749; NVIDIA-NeMo/Automodel PR 2658.",
    "gradient-not-finite": "The forward is finite and its gradient is not: the next optimiser step ruins the model. "
    "Usual cause: the NaN of a dead row was overwritten after the softmax, where backward still meets it. "
    "Seen in: pytorch issue 41508.",
    "mode-difference": "The same input gives another output in another mode. "
    "Usual cause: `if self.training` around a mask, or a fused path that reads the mask differently. "
    "Seen in: pytorch/tutorials, scaled_dot_product_attention_tutorial.py; d2l-en, transformer.md.",
    "cache-difference": "Decoding with a cache differs from the full pass. "
    "Usual cause: a causal mask aligned to the first key instead of the last, a mask cut to the new tokens, or "
    "positions that start again. Seen in: rasbt/LLMs-from-scratch pull request 697; pytorch issue 108108.",
    "packing-leak": "Documents packed into one row see one another. "
    "Usual cause: positions start again at each document and no mask separates them. "
    "Seen in: trl issues 1230, 3067; nanoVLM PR 204.",
    "packing-difference": "A document packed into a row is not read as it is alone, though it sees no other. "
    "Usual cause: positions that count on over the row, or the boundaries of another row.",
    "inverted-polarity": "The mask allows what it should block. Usual cause: True means 'may attend' in "
    "scaled_dot_product_attention and 'blocked' in nn.MultiheadAttention. Seen in: rasbt/LLMs-from-scratch issue 1061.",
    "dead-rows": "Some queries see no key: depending on the kernel they give 0, a mean over everything, or NaN. "
    "Usual cause: padded queries masked as well, or left padding under a causal mask. Seen in: pytorch issue 103963.",
    "blocked-diagonal": "A causal query cannot see itself. Usual cause: tril(diagonal=-1), or > where >= was meant.",
    "open-diagonal": "A causal query sees the next key. Usual cause: tril(diagonal=1), or keys shifted by one.",
    "added-flags": "A float mask of 0 and 1 is added to the scores, where it hides nothing. "
    "Usual cause: a tokenizer's attention_mask passed where 0/-inf is read. Seen in: diffusers issue 14342.",
    "weak-fill": "A finite fill hides keys only while every score stays far from it. "
    "Usual cause: -1e4 or -100 written for -inf. Seen in: transformers PR 17306; ohdearquant/lattice PR 374.",
    "sum-overflow": "Two planes of the lowest finite number add up to -inf, and a row of it gives NaN. "
    "Usual cause: a causal and a padding plane, each filled with finfo.min. Seen in: NVIDIA-NeMo/Automodel PR 2658.",
    "wrong-dtype": "The receiver does not read this dtype as a mask.",
    "not-a-number": "The mask itself holds NaN or +inf. Usual cause: 0 * -inf while a mask was made.",
    "wrong-axis": "Flags of real tokens [B, L] with B = L broadcast as [Lq, Lk]: sample i's padding lands on query i. "
    "Usual cause: a missing [:, None, None, :]. Seen in: pytorch/examples issue 784.",
    "head-order": "The masks of [B*H, Lq, Lk] repeat batch by batch, and are read head by head. "
    "Usual cause: repeat where repeat_interleave is needed.",
}


@dataclass(frozen=True)
class Finding:
    """One bug: `rule` names it, `where` and `modes` place it, `size` against `noise` measures it, in output units.

    `expected` (Bool) and `measured` (Float), both [queries, keys], are there when a dependency was measured.
    """

    rule: str
    where: str
    size: float = 0.0
    noise: float = 0.0
    modes: tuple[str, ...] = ()
    detail: str = ""
    expected: Tensor | None = field(default=None, repr=False, compare=False)
    measured: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def message(self) -> str:
        """What it means, its usual cause, and where it happened to others."""
        return f"{self.detail} {RULES[self.rule]}".strip()

    def __str__(self) -> str:
        size = f"by {self.size:.2g} (noise {self.noise:.1g})" if self.noise else ""
        place = "; ".join(filter(None, [self.where, f"in {' | '.join(self.modes)}" if self.modes else "", size]))
        return f"{self.rule:<21} {place}\n{fill(self.message, 118, initial_indent=INDENT, subsequent_indent=INDENT)}"


INDENT = " " * 22


class Report(list[Finding]):
    """The findings of one audit, printed as a table; empty means: no bug found. `notes` say what was not checked."""

    def __init__(self, findings: Iterable[Finding] = (), notes: Iterable[str] = ()) -> None:
        super().__init__(findings)
        self.notes = tuple(dict.fromkeys(notes))

    @property
    def rules(self) -> set[str]:
        """The names of the rules that were broken."""
        return {finding.rule for finding in self}

    def __str__(self) -> str:
        head = f"{'rule':<21} where, in which mode, how strongly\n" + "-" * 118 if self else "No mask bug found."
        return "\n".join([head, *map(str, self), *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__


def merge(findings: Iterable[Finding]) -> list[Finding]:
    """One finding for each rule and place, with all its modes: the first example, as it was measured."""
    merged: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        key = (finding.rule, finding.where.split(":")[0])
        known = merged.get(key, finding)
        modes = tuple(dict.fromkeys(known.modes + finding.modes))
        merged[key] = replace(known, modes=modes)
    return list(merged.values())
