"""Pictures of what an audit found: the dependency that is allowed beside the one that was measured."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from utils.audit.report import Report


def plot_findings(report: Report) -> list[tuple[Axes, Axes]]:
    """Draw each finding with a measured dependency: expected on the left, measured on the right, [queries, keys].

    Returns the pairs of axes, one row each; none if no finding holds a dependency. A cross marks what is wrong.
    """
    drawn = [finding for finding in report if finding.measured is not None]
    if not drawn:
        return []
    _, grid = plt.subplots(len(drawn), 2, figsize=(7, 3.2 * len(drawn)), squeeze=False, layout="constrained")
    for finding, (left, right) in zip(drawn, grid, strict=True):
        expected, measured = finding.expected.cpu().numpy(), finding.measured.cpu().numpy()
        seen = measured > 10 * finding.noise
        left.imshow(expected, cmap="cividis", vmin=0, vmax=1)
        left.set(title="expected", xlabel="token", ylabel="output")
        faintest = np.log10(10 * finding.noise + 1e-12)  # darkest: what is not seen
        shades = np.log10(measured.clip(min=1e-12))
        right.imshow(shades, cmap="cividis", vmin=faintest, vmax=max(shades.max(), faintest + 1))
        dead = finding.rule == "dead-connection"
        wrong = expected & (measured <= finding.noise) if dead else seen & ~expected
        outputs, tokens = np.nonzero(wrong)
        right.scatter(tokens, outputs, marker="x", color="white" if dead else "black", s=24)
        right.set(title=f"measured (log scale): {finding.rule}", xlabel="token", ylabel="output")
    return [tuple(row) for row in grid]
