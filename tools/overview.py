"""Draw docs/overview.png, the README's picture: masks, attention under one, and a bug that the audit finds."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import SubFigure

from utils.audit import audit_decoder
from utils.audit.gallery import VOCAB, CausalInTraining
from utils.corpora import encode, seq2seq_batch
from utils.decoding import translate
from utils.masks import all_of, causal_mask, full_mask, graph_mask, local_mask, padding_mask, segment_mask
from utils.plotting import DEAD, plot_mask, plot_weights
from utils.training import CHECKPOINTS, load_checkpoint
from utils.transformer import seq2seq_masks

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "overview.png"
SENTENCE = "A dog is running in the snow."
TOKENS = ["the", "cat", "sat", "down", "[PAD]", "[PAD]"]
EDGES = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0), (0, 3)]  # a ring of six with one bridge


def masks() -> dict[str, torch.Tensor]:
    """Six masks for six tokens, each under its name."""
    padding = padding_mask(torch.tensor([[True] * 4 + [False] * 2]))
    both_ways = torch.tensor(EDGES + [(b, a) for a, b in EDGES] + [(node, node) for node in range(6)])
    return {
        "padding": all_of(full_mask(6), padding),
        "sequence (causal)": causal_mask(6),
        "both": all_of(causal_mask(6), padding),
        "sliding window": all_of(causal_mask(6), local_mask(6, back=1)),
        "packed texts": all_of(causal_mask(6), segment_mask(torch.tensor([0, 0, 0, 1, 1, 1]))),
        "graph": graph_mask(both_ways, 6),
    }


def draw_masks(figure: SubFigure) -> None:
    figure.suptitle("A mask says which tokens a token may look at", fontweight="bold")
    for index, (ax, (name, mask)) in enumerate(zip(figure.subplots(1, 6), masks().items(), strict=True)):
        plot_mask(mask, ax=ax, queries=TOKENS if index < 1 else None, keys=TOKENS if index < 1 else None, title=name)
        if index:
            ax.set(xticks=[], yticks=[], xlabel="", ylabel="")


def draw_translation(figure: SubFigure) -> None:
    """Cross-attention of the shipped translator, mean over layers and heads."""
    figure.suptitle("You train the models and look inside", fontweight="bold")
    model, tokenizer, _ = load_checkpoint(CHECKPOINTS / "translation_en_de.safetensors")
    german = translate(model, tokenizer, [SENTENCE], beam_size=5)
    batch = seq2seq_batch(encode(tokenizer, [SENTENCE]), encode(tokenizer, german, bos=True))
    with torch.no_grad():
        _, weights = model(batch.src, batch.tgt, seq2seq_masks(batch.src_valid, batch.tgt_valid), need_weights=True)
    cross = torch.stack(weights.decoder_cross)[:, 0].mean(dim=(0, 1))[:-1]  # [Lt, Ls]
    pieces = [[tokenizer.id_to_token(token).strip("▁") for token in side] for side in (batch.tgt[0, 1:], batch.src[0])]
    ax = figure.subplots()
    plot_weights(cross, ax=ax, queries=pieces[0], keys=pieces[1])
    ax.images[0].set_clim(0, cross.max().item())
    ax.set(xlabel="English, read", ylabel="German, being written")


def draw_audit(figure: SubFigure) -> None:
    """A decoder that is causal only while it trains: what it may see, and what it was measured to see."""
    figure.suptitle("The audit measures what a model really sees", fontweight="bold")
    torch.manual_seed(0)
    bug = CausalInTraining()
    finding = audit_decoder(bug, vocab_size=VOCAB, module=bug)[0]
    left, right = figure.subplots(1, 2)
    seen = finding.measured > 10 * finding.noise
    draw_dependency(left, finding.expected, "what it may see")
    draw_dependency(right, seen, f"what it sees in {finding.modes[0]}: {finding.rule}")
    wrong = seen & ~finding.expected
    right.imshow(wrong.float().masked_fill(~wrong, float("nan")), cmap=ListedColormap([DEAD]))


def draw_dependency(ax: Axes, seen: torch.Tensor, title: str) -> None:
    plot_mask(seen[None, None], ax=ax, title=title)
    ax.set(xticks=[], yticks=[], xlabel="input token", ylabel="output")


def main() -> None:
    figure = plt.figure(figsize=(12, 7.2), layout="constrained")
    top, _, bottom = figure.subfigures(3, 1, height_ratios=[1, 0.08, 1.6])
    left, _, right = bottom.subfigures(1, 3, width_ratios=[1, 0.06, 1.2])
    draw_masks(top)
    draw_translation(left)
    draw_audit(right)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=120, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    main()
