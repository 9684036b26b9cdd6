"""Exercises of notebook 09, image generation."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from utils.exercises.core import Exercise
from utils.exercises.mistakes import POLARITY, TRANSPOSED, WITHOUT_ITSELF, flipped, transposed, without_itself
from utils.masks import causal_mask, full_mask, pairwise_mask

check_pixel_45 = Exercise(
    task="Row, column and number of visible pixels for the prediction of pixel 45 of 8 x 8: three numbers.",
    solution=[5, 5, 45],
    mistakes={
        "The class counted: it is a key, too, the 46th. The question is about pixels.": [5, 5, 46],
        "Counted from 1: rows, columns and pixels are counted from 0, so pixel 8 begins row 1.": [6, 6, 45],
        "One too few: the pixels 0 to 44 are 45 pixels.": [5, 5, 44],
        "The plane forgotten: it sees all rows above it, and not only its own row.": [5, 5, 5],
    },
)

check_different_images = Exercise(
    task="The most different pictures among 30, three of each of ten classes, with the likeliest level each time.",
    solution=10,
    mistakes={
        "As if drawn: nothing is drawn at random here. The same beginning gives the same picture.": 30,
        "The class forgotten: ten class tokens are ten different beginnings.": 1,
        "The wrong way round: three pictures have the same class, and these are equal.": 3,
    },
)


def near_mask(size: int) -> Bool[Tensor, "1 1 P P"]:
    """The class, the row above, and what is left of the predicted pixel."""
    return _near(size, rows=1)


def _near(size: int, rows: int, ahead: int = 0, with_class: bool = True) -> Bool[Tensor, "1 1 P P"]:
    """`rows` rows above; `ahead` = 1 shows the predicted pixel itself, as a forgotten shift does."""
    query, key = torch.arange(size**2), torch.arange(size**2) - 1
    near = pairwise_mask(lambda q, k: (k >= 0) & (k < q + ahead) & (k // size >= q // size - rows), query, key)
    return near | ((key < 0)[None, None, None, :] & with_class)


def _unshifted(size: int) -> Bool[Tensor, "1 1 P P"]:
    place = torch.arange(size**2)
    return pairwise_mask(lambda q, k: (k <= q) & (k // size >= q // size - 1), place, place)


check_near_mask = Exercise(
    task="near_mask(size): a pixel sees the class, the row above and what is left of it, [1, 1, size**2, size**2].",
    solution=near_mask,
    cases=[(size,) for size in (2, 3, 4, 5)],
    mistakes={
        "The class hidden: key 0 holds the class and belongs to no row. Without it, pixel 0 has no key at all.": (
            lambda size: _near(size, rows=1, with_class=False)
        ),
        "Off by one: the pixel that is to be predicted is visible. Key k holds pixel k - 1, so ask for k - 1 < q.": (
            lambda size: _near(size, rows=1, ahead=1)
        ),
        "Not shifted: the keys are counted as if key k held pixel k. It holds pixel k - 1, and key 0 the class.": (
            _unshifted
        ),
        "One row only: the row above is missing.": lambda size: _near(size, rows=0),
        "One row too many: two rows above are visible.": lambda size: _near(size, rows=2),
        "Everything before it: this is the causal mask. Rows that lie further up are to be hidden.": (
            lambda size: causal_mask(size**2)
        ),
        POLARITY: flipped(near_mask),
    },
)

Forward = Callable[[Tensor], Tensor]


def first_leak(forward: Forward, rows: Int[Tensor, "B L"]) -> int:
    """The first pixel that moves a prediction up to its own, or -1."""
    return _first_moved(forward, rows, until=1)


def _first_moved(forward: Forward, rows: Int[Tensor, "B L"], until: int, own: bool = False) -> int:
    """The first pixel p that moves a prediction below p + `until`, with `own` only from p on."""
    before = forward(rows)
    for pixel in range(rows.shape[1] - 1):
        changed = rows.clone()
        changed[:, pixel + 1] += 1
        places = slice(pixel if own else 0, pixel + until)
        if not torch.equal(before[:, places], forward(changed)[:, places]):
            return pixel
    return -1


def _seen_under(mask: Bool[Tensor, "1 1 L L"], rows: Int[Tensor, "B L"]) -> Float[Tensor, "B L 1"]:
    """A model as simple as can be: each output is the sum of the tokens that the mask shows."""
    return mask[:, 0].float() @ rows[:, :, None].float()  # [1, L, L] @ [B, L, 1] -> [B, L, 1]


def right_mask(rows: Int[Tensor, "B L"]) -> Float[Tensor, "B L 1"]:
    """Causal."""
    return _seen_under(causal_mask(rows.shape[1]), rows)


def off_by_one(rows: Int[Tensor, "B L"]) -> Float[Tensor, "B L 1"]:
    """Each query sees the key after it, the pixel that it predicts."""
    return _seen_under(full_mask(rows.shape[1]).tril(1), rows)


def own_row(rows: Int[Tensor, "B L"]) -> Float[Tensor, "B L 1"]:
    """Images with rows of three pixels, and the whole row open."""
    query, key = torch.arange(rows.shape[1]), torch.arange(rows.shape[1]) - 1
    return _seen_under(pairwise_mask(lambda q, k: k // 3 <= q // 3, query, key), rows)


def last_row_open(rows: Int[Tensor, "B L"]) -> Float[Tensor, "B L 1"]:
    """Causal, but the last query that has a successor sees it."""
    last = torch.arange(rows.shape[1]) == rows.shape[1] - 2
    return _seen_under(causal_mask(rows.shape[1]) | last[:, None], rows)


def jumping(rows: Int[Tensor, "B L"]) -> Float[Tensor, "B L 1"]:
    """Causal, and each query sees the key two places on, which holds the pixel after the one that it predicts."""
    length = rows.shape[1]
    return _seen_under(causal_mask(length) | full_mask(length).tril(2) & ~full_mask(length).tril(1), rows)


def second_sample_open(rows: Int[Tensor, "B L"]) -> Float[Tensor, "B L 1"]:
    """Causal for the first sample alone."""
    return torch.cat((right_mask(rows[:1]), off_by_one(rows[1:])))


ROWS = [torch.randint(4, 20, (2, length), generator=torch.Generator().manual_seed(length)) for length in (4, 9, 16)]

check_first_leak = Exercise(
    task="first_leak(forward, rows) -> int: the first pixel that moves a prediction up to its own, -1 if none does.",
    solution=first_leak,
    cases=[
        (forward, rows)
        for rows in ROWS
        for forward in (right_mask, off_by_one, own_row, last_row_open, jumping, second_sample_open)
    ],
    mistakes={
        "Its own prediction forgotten: pixel p must not move prediction p either, and this is where a mask that is off "
        "by one leaks. Compare [:, : p + 1].": lambda forward, rows: _first_moved(forward, rows, until=0),
        "Its own prediction alone: a leak may jump over it to an earlier one. Compare [:, : p + 1].": (
            lambda forward, rows: _first_moved(forward, rows, until=1, own=True)
        ),
        "Shifted by one: pixel p is token p + 1, and prediction p + 1 may use it. Change token p + 1 and compare "
        "[:, : p + 1].": lambda forward, rows: _first_moved(forward, rows, until=2),
        "Token instead of pixel: you returned the place in the row. Pixel p is token p + 1.": lambda forward, rows: (
            first_leak(forward, rows) + 1 if first_leak(forward, rows) >= 0 else -1
        ),
        "The first sample only: the others have masks, too. Compare all of them.": lambda forward, rows: first_leak(
            lambda tokens: forward(tokens)[:1], rows
        ),
        "Never found: this says that there is no leak, whatever the model. A test that cannot fail proves nothing.": (
            lambda forward, rows: -1
        ),
    },
)


def order_mask(order: Int[Tensor, " P"]) -> Bool[Tensor, "1 1 P P"]:
    """A pixel sees itself and what is read before it."""
    place = order.argsort()
    return pairwise_mask(torch.ge, place, place)


check_order_mask = Exercise(
    task="order_mask(order): which pixel sees which if pixel order[i] is read as number i, [1, 1, P, P].",
    solution=order_mask,
    cases=[
        (torch.tensor(order),)
        for order in (
            [1, 2, 0],
            [0, 1, 2, 3],
            [3, 2, 1, 0],
            [0, 2, 1, 3],
            [2, 0, 3, 1],
            [0, 3, 6, 1, 4, 7, 2, 5, 8],
            [0, 1, 2, 5, 8, 7, 6, 3, 4],  # a spiral
        )
    ],
    mistakes={
        "Order taken for place: order[i] is the pixel that is read as number i, and you need the number of a pixel. "
        "That is the inverse, order.argsort().": lambda order: pairwise_mask(torch.ge, order, order),
        "The order ignored: this is raster order.": lambda order: causal_mask(len(order)),
        "Still in reading order: rows and columns of the triangle are to be put in the places of the pixels. You moved "
        "the rows alone.": lambda order: causal_mask(len(order))[:, :, order.argsort()],
        WITHOUT_ITSELF: without_itself(order_mask),
        TRANSPOSED: transposed(order_mask),
        POLARITY: flipped(order_mask),
    },
)
