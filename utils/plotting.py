"""Axes-level pictures of masks, weights and losses, and the one way to show a figure: with alternative text.

Each function draws on `ax` (the current axes if None) and returns it. Queries are rows from top to bottom, keys are
columns. Colours are safe for colour-blind readers, and no meaning rests on colour alone.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from utils.masks import check_mask, dead_rows

# seaborn's palette "colorblind"; importing seaborn itself would add more than a second to the start of each notebook
PALETTE = ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"]
ALLOWED, BLOCKED, DEAD = PALETTE[0], "#e8e8e8", PALETTE[3]  # blue, grey, orange
LINE_STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))

plt.rcParams |= {
    **dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize", "legend.title_fontsize"), 12),
    **dict.fromkeys(("legend.fontsize", "xtick.labelsize", "ytick.labelsize"), 11),
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), "0.15"),
    **{"axes.linewidth": 1.25, "xtick.bottom": False, "ytick.left": False, "axes.axisbelow": True},
    **{"axes.prop_cycle": plt.cycler(color=PALETTE), "patch.force_edgecolor": True, "patch.edgecolor": "white"},
}


def show(figure: Figure, alt: str) -> None:
    """Show a figure in the notebook with `alt`, a text that tells what a reader would see, and close it.

    The text is kept beside the picture, for screen readers and for places that show no pictures.
    """
    buffer = BytesIO()
    figure.savefig(buffer, dpi=100, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    plt.close(figure)
    picture = base64.b64encode(buffer.getvalue()).decode("ascii")
    display({"image/png": picture, "text/plain": alt}, metadata={"image/png": {"alt": alt}}, raw=True)


def plot_mask(
    mask: Tensor,
    *,
    ax: Axes | None = None,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    title: str = "",
) -> Axes:
    """Draw one mask, [1, 1, Lq, Lk]: blue = may attend, grey with a cross = may not, orange frame = dead row.

    Beyond 1,024 pairs the crosses are left out; grey is lighter than blue, too.
    `queries` and `keys` name the rows and columns, for example with the tokens.

    Raises ValueError if the mask holds several samples or heads: choose one by slicing, mask[b:b+1, h:h+1].
    """
    if check_mask(mask).shape[:2] != (1, 1):
        raise ValueError(f"mask has shape {list(mask.shape)}; choose one sample and head: mask[b:b+1, h:h+1].")
    plane, ax = mask[0, 0].cpu(), ax or plt.gca()
    ax.imshow(plane.numpy(), cmap=ListedColormap([BLOCKED, ALLOWED]), vmin=0, vmax=1)
    rows, columns = (~plane).nonzero(as_tuple=True)
    if plane.numel() <= 1024:
        ax.scatter(columns, rows, marker="x", s=3000 / max(plane.shape) ** 2, color="#777777", linewidths=0.8)
    for row in dead_rows(mask)[0, 0].nonzero().flatten().tolist():
        frame = plt.Rectangle((-0.5, row - 0.5), plane.shape[1], 1, fill=False, edgecolor=DEAD, linewidth=3)
        ax.add_patch(frame)
    return _label(ax, plane, queries, keys, title)


def plot_weights(
    weights: Float[Tensor, "Lq Lk"],
    *,
    ax: Axes | None = None,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    title: str = "",
) -> Axes:
    """Draw attention weights from 0 (dark) to 1 (bright); up to 8 by 8, each cell also says its number.

    A cell that is exactly 0 says "0"; a small weight that is not, "0.00".
    """
    plane, ax = weights.detach().float().cpu(), ax or plt.gca()
    ax.imshow(plane.numpy(), cmap="cividis", vmin=0, vmax=1)
    if max(plane.shape) <= 8:
        for row, column in torch.cartesian_prod(*map(torch.arange, plane.shape)).tolist():
            value = plane[row, column].item()
            colour = DEAD if math.isnan(value) else "black" if value >= 0.5 else "white"
            text = "0" if value == 0 else f"{value:.2f}"
            ax.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    return _label(ax, plane, queries, keys, title)


def _label(ax: Axes, plane: Tensor, queries: Sequence[str] | None, keys: Sequence[str] | None, title: str) -> Axes:
    ax.set_xticks(range(plane.shape[1]), keys or range(plane.shape[1]), rotation=60 if keys else 0)
    ax.set_yticks(range(plane.shape[0]), queries or range(plane.shape[0]))
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.set(xlabel="key", ylabel="query")
    below = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "va": "top"}
    ax.annotate(title, (0.5, 0), (0, -6), fontsize=11, **below)  # above the picture stand the keys
    if max(plane.shape) <= 32:
        ax.set_xticks([x - 0.5 for x in range(1, plane.shape[1])], minor=True)
        ax.set_yticks([y - 0.5 for y in range(1, plane.shape[0])], minor=True)
        ax.grid(which="minor", color="white", linewidth=1.5)
        ax.tick_params(which="both", length=0, labelsize=10 if max(plane.shape) <= 12 else 7)
    return ax


def plot_side_by_side(
    planes: Mapping[str, Tensor],
    *,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    size: float = 3.0,
) -> Figure:
    """A figure with one picture for each title: masks (boolean, 4-D) and weights ([Lq, Lk]) in their own way.

    `size` is the width of one picture in inches. Pictures with the rows of the first one leave their labels to it.
    """
    figure, axes = plt.subplots(1, len(planes), figsize=(size * len(planes), size), squeeze=False, layout="constrained")
    rows = next(iter(planes.values())).shape[-2]
    for ax, (title, plane) in zip(axes[0], planes.items(), strict=True):
        draw = plot_mask if plane.dtype == torch.bool else plot_weights
        draw(plane, ax=ax, queries=queries, keys=keys, title=title)
        if ax is not axes[0, 0] and plane.shape[-2] == rows:
            ax.set(ylabel="", yticklabels=[])
    return figure


def plot_losses(losses: Mapping[str, Sequence[float]], *, ax: Axes | None = None, window: int = 10) -> Axes:
    """Draw the loss of each named run against its steps, as the mean of the last `window` steps (nats a token)."""
    ax = ax or plt.gca()
    for (name, values), style in zip(losses.items(), cycle(LINE_STYLES), strict=False):
        means = torch.tensor(values).unfold(0, min(window, len(values)), 1).mean(dim=-1)
        ax.plot(range(len(values) - len(means) + 1, len(values) + 1), means, linestyle=style, label=name)
    ax.set(xlabel="step", ylabel="loss (nats a token)")
    ax.set_ylim(bottom=0)
    ax.legend()
    ax.spines[["top", "right"]].set_visible(False)
    return ax
