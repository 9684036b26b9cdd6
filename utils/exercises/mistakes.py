"""Wrong answers that many exercises share, each made from the solution: a function or a value.

The texts name the mistake first, then say what a teacher would say. An exercise with more to say writes its own.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

POLARITY = (
    "Polarity: every flag is the opposite of what it should be. In this series True (■) means 'may attend' or 'real "
    "token'; nn.MultiheadAttention and many papers mark what is hidden."
)
TRANSPOSED = (
    "Transposed: rows and columns are exchanged. Row i is the query i, and its columns are the keys that it may see."
)
WITHOUT_ITSELF = (
    "Off by one: no query sees itself. The diagonal belongs to the mask, so compare with >= and not with >."
)
ONE_AHEAD = "Off by one: each row has the keys of the row below it, so it sees one step too far."
PADDED_QUERIES = (
    "Padded queries masked: the rows of padding are hidden as well. Nobody reads these rows, and without any key they "
    "are dead; only the *columns* of padding are to be hidden."
)
WRONG_AXIS = (
    "Broadcast to the wrong axis: the flags stand where the queries are, so whole rows are hidden and not columns. "
    "They belong to the keys, the last axis: valid[:, None, None, :]."
)
FINITE_FILL = (
    "Finite fill: a large negative number is not -inf. A row that is blocked as a whole becomes a uniform average, and "
    "two such numbers may overflow when they are added."
)


def after(solution: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`solution` with `change` applied to what it is, or, if it is a function, to what it returns."""
    if not callable(solution):
        return change(solution)

    @wraps(solution)
    def wrong(*arguments: Any) -> Tensor:
        return change(solution(*arguments))

    return wrong


def flipped(solution: Any) -> Any:
    """The opposite polarity. Belongs to POLARITY."""
    return after(solution, torch.logical_not)


def transposed(solution: Any) -> Any:
    """Queries and keys exchanged; a causal mask then shows the future. Belongs to TRANSPOSED or WRONG_AXIS."""
    return after(solution, lambda mask: mask.transpose(-2, -1))


def without_itself(solution: Any) -> Any:
    """Every query loses its own key. For square masks; belongs to WITHOUT_ITSELF."""
    return after(solution, lambda mask: mask & ~torch.eye(mask.shape[-1], dtype=torch.bool))


def one_ahead(solution: Any) -> Any:
    """Every query gets the keys of the next one, the last keeps its own. Belongs to ONE_AHEAD."""
    return after(solution, lambda mask: torch.cat((mask[..., 1:, :], mask[..., -1:, :]), dim=-2))


def finite_fill(solution: Any) -> Any:
    """-1e9 in place of -inf. For additive masks and masked scores; belongs to FINITE_FILL."""
    return after(solution, lambda scores: scores.masked_fill(scores == float("-inf"), -1e9))
