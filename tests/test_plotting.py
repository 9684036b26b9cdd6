"""Pictures: what a reader of the axes would find."""

import base64

import matplotlib.pyplot as plt
import pytest
import torch

from utils import plotting
from utils.masks import causal_mask, mask_from_text


@pytest.fixture(autouse=True)
def close_figures():
    plt.switch_backend("agg")
    plt.close("all")  # other tests may have left one open
    yield
    plt.close("all")


def test_queries_run_down_and_keys_to_the_right():
    ax = plotting.plot_mask(causal_mask(3), queries=["a", "b", "c"], keys=["x", "y", "z"])
    assert ax.images[0].get_array().tolist() == causal_mask(3)[0, 0].tolist()
    assert ax.get_ylim() == (2.5, -0.5) and ax.get_xlim() == (-0.5, 2.5)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["x", "y", "z"]


def test_only_dead_rows_are_framed():
    ax = plotting.plot_mask(mask_from_text("⬚⬚ / ■⬚"))
    assert [patch.get_y() for patch in ax.patches] == [-0.5]


def test_an_exact_zero_is_told_from_a_small_weight():
    ax = plotting.plot_weights(torch.tensor([[0.0, 0.001, 0.999]]))
    assert [text.get_text() for text in ax.texts[:3]] == ["0", "0.00", "1.00"]


def test_a_batch_of_masks_is_refused(raw_errors):
    with pytest.raises(ValueError, match="choose one sample"):
        plotting.plot_mask(causal_mask(3).expand(2, 1, 3, 3))


def test_a_shown_figure_carries_its_text_and_is_closed(monkeypatch):
    shown = []
    monkeypatch.setattr(plotting, "display", lambda *args, **kwargs: shown.append((args, kwargs)))
    plotting.show(plotting.plot_side_by_side({"a": causal_mask(2), "b": torch.eye(2)}), alt="two squares")
    (bundle,), options = shown[0]
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert bundle["text/plain"] == options["metadata"]["image/png"]["alt"] == "two squares"
    assert not plt.get_fignums()


def test_losses_are_drawn_as_means_of_the_last_steps():
    ax = plotting.plot_losses({"run": [4.0, 2.0, 0.0]}, window=2)
    assert ax.lines[0].get_xydata().tolist() == [[2, 3.0], [3, 1.0]]


def test_more_runs_than_simple_line_styles_can_be_drawn():
    ax = plotting.plot_losses({str(n): [1.0, 0.5] for n in range(6)})
    assert [line.get_label() for line in ax.lines] == list("012345")
    assert len(set(map(str, plotting.LINE_STYLES))) == 5
