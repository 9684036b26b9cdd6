"""The mask explorer: choose rules, flip cells, and watch the mask, the scores, the weights and the dead rows.

The model is `explore`, a function of what the reader has chosen; `MaskExplorer` is the view. It consists of plain
ipywidgets, so that keyboard, tooltips and both themes work in JupyterLab and in Colab without code for the browser.
"""

import html
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ipywidgets as widgets
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from utils.attention import masked_softmax
from utils.masks import (
    all_of,
    any_of,
    causal_mask,
    dead_rows,
    full_mask,
    local_mask,
    padding_mask,
    pairwise_mask,
    segment_mask,
)

MAX_TOKENS = 12
HEAD_DIM = 8
PAD = "[PAD]"
CHOICES = ("off", "AND", "OR")
RULES = {  # in the order in which they are combined
    "causal": "no key after the query",
    "window": "keys on each side, and the query itself",
    "prefix": "keys at the beginning",
    "packing": "only keys of the same document",
    "padding": "no key that is [PAD]",
}
BLUE, ORANGE = (1, 115, 178), (213, 94, 0)  # colour-blind-safe, as in utils.plotting; readable on light and dark


@dataclass(frozen=True)
class State:
    """What the reader has chosen.

    `sentence` is split at spaces; a | ends a document. `pads` counts the padding tokens. `rules` says which rules of
    RULES are on, and how each joins those before it, "AND" or "OR". `window` counts keys on each side of the query,
    `prefix` keys from the first. `flipped` holds the (query, key) cells that were turned over by hand.
    """

    sentence: str = "the cat sat down"
    pads: int = 0
    pads_left: bool = False
    rules: Mapping[str, str] = field(default_factory=dict)
    window: int = 1
    prefix: int = 2
    flipped: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        if wrong := {name: join for name, join in self.rules.items() if name not in RULES or join not in CHOICES[1:]}:
            raise ValueError(f"unknown rules {wrong}; expected some of {', '.join(RULES)}, each AND or OR.")


class Picture(NamedTuple):
    """What there is to see for a State."""

    tokens: list[str]
    formula: str
    mask: Bool[Tensor, "1 1 L L"]
    scores: Float[Tensor, "L L"]
    weights: Float[Tensor, "L L"]
    dead: Bool[Tensor, " L"]


def explore(state: State) -> Picture:
    """Mask, scores before the mask, weights and dead rows for what the reader has chosen.

    The scores depend on the words alone: each word has a query and a key of random numbers that never change.

    Raises ValueError for a sentence without words and for more than MAX_TOKENS tokens.
    """
    tokens, documents = read(state)
    planes = rule_masks(state, documents)
    mask, formula = full_mask(len(tokens)), "every key"
    for number, name in enumerate(name for name in RULES if name in state.rules):
        join = all_of if number == 0 or state.rules[name] == "AND" else any_of  # the first one joins "every key"
        mask = join(mask, planes[name])
        formula = name if number == 0 else f"({formula} {state.rules[name]} {name})"
    for query, key in state.flipped:
        mask[0, 0, query, key] = ~mask[0, 0, query, key]
    query, key = torch.stack([query_and_key(token) for token in tokens], dim=1)  # each [L, head_dim]
    scores = query @ key.T / math.sqrt(HEAD_DIM)  # [L, L]
    weights = masked_softmax(scores[None, None], mask)[0, 0]
    return Picture(tokens, formula.removeprefix("(").removesuffix(")"), mask, scores, weights, dead_rows(mask)[0, 0])


def read(state: State) -> tuple[list[str], list[int]]:
    """The tokens of a sentence with its padding, and the number of the document of each; padding has number -1."""
    words, documents = [], []
    for number, document in enumerate(state.sentence.split("|")):
        words += document.split()
        documents += [number] * len(document.split())
    length = len(words) + state.pads
    if not words:
        raise ValueError("The sentence has no words. Write at least one.")
    if length > MAX_TOKENS:
        raise ValueError(
            f"{len(words)} words and {state.pads} padding tokens make {length} tokens, and the explorer draws at most "
            f"{MAX_TOKENS}. Take some away."
        )
    pads, outside = [PAD] * state.pads, [-1] * state.pads
    return (pads + words, outside + documents) if state.pads_left else (words + pads, documents + outside)


def rule_masks(state: State, documents: list[int]) -> dict[str, Tensor]:
    """The mask of each rule alone, in the shape in which it comes: [1, 1, L, L] or [1, 1, 1, L]."""
    length, numbers = len(documents), torch.tensor(documents)
    return {
        "causal": causal_mask(length),
        "window": local_mask(length, back=state.window, ahead=state.window),
        "prefix": pairwise_mask(lambda q, k: k < state.prefix, torch.zeros(1), torch.arange(length)),
        "packing": segment_mask(numbers),
        "padding": padding_mask((numbers >= 0)[None]),
    }


def query_and_key(word: str) -> Float[Tensor, "2 D"]:
    """Two random vectors that belong to a word, the same in every session."""
    numbers = torch.Generator().manual_seed(zlib.crc32(word.encode()))
    return torch.randn(2, HEAD_DIM, generator=numbers)


class MaskExplorer(widgets.VBox):
    """The explorer as a widget: `MaskExplorer()` as the last line of a cell shows it.

    Click a cell of the mask, or go there with Tab and press Space, to flip it. The rules are joined from top to
    bottom. `state` is what is chosen at the beginning.
    """

    def __init__(self, state: State | None = None) -> None:
        state = state or State(rules={"causal": "AND"})
        self.flipped = set(state.flipped)
        self.cells, self.labels = {}, {}  # made when they are needed first, then used again
        self.looks = {name: widgets.ButtonStyle(button_color=colour) for name, colour in CELL_COLOURS.items()}
        self.cell_layout = widgets.Layout(width="auto", min_width="34px", height="30px", margin="1px", padding="0")
        self._make_controls(state)
        self.grid, self.message, self.tables = widgets.GridBox(), widgets.HTML(), widgets.HTML()
        self.undo = widgets.Button(description="Undo the flips", tooltip="Turn all flipped cells back")
        self.undo.on_click(self.flip_back)
        super().__init__([*self._rows_of_controls(), self.message, self.grid, self.undo, self.tables])
        self.redraw()

    def __repr__(self) -> str:
        return "The mask explorer. It needs a running kernel: run this cell."

    def _make_controls(self, state: State) -> None:
        """One control for each field of State, and one for each rule."""
        self.sentence = widgets.Text(state.sentence, continuous_update=False, layout=widgets.Layout(width="400px"))
        self.pads = widgets.IntSlider(state.pads, 0, MAX_TOKENS - 1)
        self.pads_left = toggles({"right": False, "left": True}, state.pads_left)
        self.window = widgets.IntSlider(state.window, 0, MAX_TOKENS - 1)
        self.prefix = widgets.IntSlider(state.prefix, 0, MAX_TOKENS)
        self.rules = {
            name: toggles(CHOICES, state.rules.get(name, "off"), [f"{name}: {choice}" for choice in CHOICES])
            for name in RULES
        }
        for control in (self.window, self.prefix, *self.rules.values()):
            control.observe(self.redraw, "value")
        for control in (self.sentence, self.pads, self.pads_left):
            control.observe(self.flip_back, "value")  # with other tokens a flipped cell would mean something else

    def _rows_of_controls(self) -> list[widgets.Widget]:
        """Each row says what it is, on the left, and what that means, on the right."""
        sliders = {"window": [self.window], "prefix": [self.prefix]}
        rows = {
            "sentence": [self.sentence, widgets.Label("| ends a document")],
            "[PAD]": [self.pads_left, self.pads, widgets.Label("padding tokens")],
        }
        for name, what in RULES.items():
            rows[name] = [self.rules[name], *sliders.get(name, []), widgets.Label(what)]
        name_layout = widgets.Layout(width="70px")
        return [widgets.HBox([widgets.Label(name, layout=name_layout), *row]) for name, row in rows.items()]

    def state(self) -> State:
        """What the controls say."""
        return State(
            sentence=self.sentence.value,
            pads=self.pads.value,
            pads_left=self.pads_left.value,
            rules={name: control.value for name, control in self.rules.items() if control.value != "off"},
            window=self.window.value,
            prefix=self.prefix.value,
            flipped=frozenset(self.flipped),
        )

    def flip_back(self, _: Any = None) -> None:
        """Turn all flipped cells back."""
        self.flipped.clear()
        self.redraw()

    def flip(self, query: int, key: int) -> None:
        """Turn one cell of the mask over, or back."""
        self.flipped ^= {(query, key)}
        self.redraw()

    def redraw(self, _: Any = None) -> None:
        """Show what the controls say; if that cannot be shown, say why and leave the picture as it was."""
        try:
            picture = explore(self.state())
        except ValueError as error:
            self.message.value = f"<b>{html.escape(str(error))}</b>"
            return
        self._draw_grid(picture)
        self.tables.value = tables(picture)
        self.message.value = summary(picture, len(self.flipped))

    def _draw_grid(self, picture: Picture) -> None:
        """Only what has changed is sent to the browser."""
        length = len(picture.tokens)
        places = range(length)
        if self.grid.layout.grid_template_columns != (columns := f"repeat({length + 1}, max-content)"):
            self.grid.layout.grid_template_columns = columns
            children = [self._label("corner", 0), *(self._label("key", k) for k in places)]
            for q in places:
                children += [self._label("query", q), *(self._cell(q, k) for k in places)]
            self.grid.children = children
        visible, dead = picture.mask[0, 0].tolist(), picture.dead.tolist()
        for q, query in enumerate(picture.tokens):
            self.labels["key", q].value = query
            self.labels["query", q].value = f"{query} (dead)" if dead[q] else query
            for k, key in enumerate(picture.tokens):
                cell, sees = self.cells[q, k], visible[q][k]
                with cell.hold_sync():  # one message, not three
                    cell.description = "■" if sees else "⬚"
                    cell.tooltip = f"query '{query}' may {'' if sees else 'not '}attend to '{key}'"
                    cell.style = self.looks["dead" if dead[q] else "visible" if sees else "hidden"]

    def _cell(self, query: int, key: int) -> widgets.Button:
        if (query, key) not in self.cells:
            cell = self.cells[query, key] = widgets.Button(layout=self.cell_layout)
            cell.on_click(lambda _: self.flip(query, key))
        return self.cells[query, key]

    def _label(self, side: str, place: int) -> widgets.Label:
        return self.labels.setdefault((side, place), widgets.Label())


def toggles(options: Any, value: Any, tooltips: list[str] | None = None) -> widgets.ToggleButtons:
    """Small buttons of which one is pressed."""
    style = {"button_width": "55px"}
    return widgets.ToggleButtons(
        options=options, value=value, tooltips=tooltips or [], style=style, layout=widgets.Layout(width="auto")
    )


def css(colour: tuple[int, int, int], strength: float = 1.0) -> str:
    """A colour over the background of the theme; the text keeps the colour of the theme and stays readable."""
    return f"rgba({colour[0]}, {colour[1]}, {colour[2]}, {strength:.2f})"


CELL_COLOURS = {"visible": css(BLUE), "hidden": None, "dead": css(ORANGE)}


def summary(picture: Picture, flips: int) -> str:
    """One line of HTML: the formula, the flips and the dead rows."""
    dead = [token for token, is_dead in zip(picture.tokens, picture.dead.tolist(), strict=True) if is_dead]
    flipped = f", {flips} {'cell' if flips == 1 else 'cells'} flipped" if flips else ""
    names = html.escape(", ".join(dead)) if dead else "none"
    return f"mask = <b>{picture.formula}</b>{flipped}. Dead rows: <b>{names}</b>."


def tables(picture: Picture) -> str:
    """The scores, -inf where the mask hides them, and the weights, as HTML: blue is positive, orange negative."""
    visible, largest = picture.mask[0, 0], picture.scores.abs().max().item()
    scores = [
        [(f"{score:.2f}", score / largest) if seen else ("-inf", 0.0) for score, seen in zip(*row, strict=True)]
        for row in zip(picture.scores.tolist(), visible.tolist(), strict=True)
    ]
    weights = [
        [("0" if weight == 0 else f"{weight:.2f}", weight) for weight in row] for row in picture.weights.tolist()
    ]
    parts = (table("scores", picture, scores), table("weights", picture, weights))
    return f'<div style="display: flex; flex-wrap: wrap; gap: 2em">{"".join(parts)}</div>'


def table(name: str, picture: Picture, cells: list[list[tuple[str, float]]]) -> str:
    """One HTML table; a cell is (text, strength from -1 to 1)."""
    tokens = [html.escape(token) for token in picture.tokens]
    head = "".join(f'<th scope="col" style="padding: 0 4px">{token}</th>' for token in tokens)
    body = ""
    for query, row, dead in zip(tokens, cells, picture.dead.tolist(), strict=True):
        frame = f"outline: 2px solid {css(ORANGE)}" if dead else ""
        body += f'<tr style="{frame}"><th scope="row" style="text-align: right; padding: 0 6px">{query}</th>'
        for key, (text, strength) in zip(tokens, row, strict=True):
            colour = css(BLUE if strength > 0 else ORANGE, 0.7 * abs(strength))
            tip = html.escape(f"query '{query}', key '{key}'")
            body += f'<td title="{tip}" style="background: {colour}; text-align: right; padding: 2px 6px">{text}</td>'
        body += "</tr>"
    return f"<table><caption>{name}: rows are queries</caption><tr><th></th>{head}</tr>{body}</table>"
