"""How an answer is tried: on all cases, against the solution and against known mistakes.

The mistakes of an exercise are wrong answers with the advice of a teacher, so they serve the reader and the tests.
"""

import copy
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.masks import mask_from_text

NO_ANSWER = "No answer yet: put yours in place of the ... and run this cell again."
NO_RETURN = "No answer yet: your function returns None. Give it a return and run this cell again."
CONTENTS = ((str, "word"), ((list, tuple), "list"))  # of lists: what they hold is said
SIGNS = str.maketrans("10", "■⬚")  # ■ is hard to type


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """A question with its solution and its known mistakes; call it with an answer, and it prints what it thinks.

    `task` is the question in a sentence and becomes the docstring. `solution` is a function, which is tried on
    `cases`, one tuple of arguments each; or a value to be predicted: a mask, a number, a list of numbers, a word.
    `mistakes` maps the advice of a teacher to a wrong answer. Numbers may differ from the solution by `tolerance`.
    """

    task: str
    solution: Any
    mistakes: Mapping[str, Any]
    cases: Sequence[tuple] = ((),)
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.task)  # so that check_…? in a notebook shows the question

    def __call__(self, answer: Any) -> None:
        """Print what a teacher would say about `answer`. Never raises an exception because of it."""
        print(self.feedback(answer))

    def feedback(self, answer: Any) -> str:
        """What a teacher would say: one line if the answer is right or missing, otherwise what is wrong with it."""
        if answer is None or answer is ...:
            return NO_ANSWER
        if callable(answer) != callable(self.solution):
            wanted = "a function" if callable(self.solution) else describe(self.solution)
            return f"✗ Not yet. You gave {describe(answer)}, expected {wanted}."
        expected, got = self._outcomes(self.solution), self._outcomes(answer)
        if all(value is ... for value in got):
            return NO_ANSWER
        if all(value is None for value in got):
            return NO_RETURN
        differences = [self._difference(*pair) for pair in zip(expected, got, strict=True)]
        failed = [index for index, text in enumerate(differences) if text]
        if not callable(self.solution):
            return "\n".join(["✗ Not yet.", *self._advice(got), differences[0]]) if failed else "✓ Right."
        count = len(self.cases)
        if not failed:
            return f"✓ Right on all {count} cases."
        smallest = min(failed, key=lambda index: sum(map(size, self.cases[index])))
        verdict = f"✗ Not yet: {count - len(failed)} of {count} cases are right."
        case = f"The smallest case that fails: {self._arguments(self.cases[smallest])}"
        return "\n".join([verdict, *self._advice(got), case, differences[smallest]])

    def _outcomes(self, answer: Any) -> list[Any]:
        return [outcome(answer, case) for case in self.cases] if callable(answer) else [answer]

    def _difference(self, expected: Any, got: Any) -> str:
        return difference(expected, got, tolerance=self.tolerance, hide=not callable(self.solution))

    def _advice(self, got: list[Any]) -> list[str]:
        """The advice for the known mistake that gives the same on all cases, if there is one."""
        for advice, mistake in self.mistakes.items():
            if not any(self._difference(*pair) for pair in zip(self._outcomes(mistake), got, strict=True)):
                return [textwrap.fill(advice, 100)]
        return []

    def _arguments(self, case: tuple) -> str:
        names = inspect.signature(self.solution).parameters
        return ", ".join(f"{name} = {show(argument)}" for name, argument in zip(names, case, strict=False))  # defaults


@dataclass(frozen=True)
class Fault:
    """What an answer did instead of returning a value. Two faults of one kind are the same mistake."""

    kind: str
    text: str


def outcome(function: Any, case: tuple) -> Any:
    """What `function` returns for a case, or the Fault of raising an exception or of changing its arguments."""
    arguments = copy.deepcopy(case)
    try:
        with torch.random.fork_rng(devices=[]):  # an answer that draws numbers draws the same ones each time
            torch.manual_seed(0)
            value = function(*arguments)
        changed = any(difference(*pair) for pair in zip(case, arguments, strict=True) if not callable(pair[0]))
        value = value.detach().cpu() if isinstance(value, Tensor) else value
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        return Fault(type(error).__name__, f"Your function raised {type(error).__name__}: {first_line}")
    if changed:
        return Fault("changed", "Your function changes its argument in place. Make a new one instead.")
    return value


def difference(expected: Any, got: Any, *, tolerance: float = 0.0, hide: bool = False) -> str:
    """How `got` differs from `expected`, drawn; "" if it does not. `hide` shows the first wrong place only.

    Masks are compared as they broadcast; text with one sign for each key is read as a mask if a mask is expected.
    """
    got = read_drawing(expected, got)
    if isinstance(got, (np.generic, np.ndarray)) and not isinstance(expected, Tensor):
        got = got.tolist()
    if isinstance(got, Fault):
        same = isinstance(expected, Fault) and expected.kind == got.kind
        return "" if same else got.text if hide else f"{got.text}\nexpected {show(expected)}"
    if is_parts(expected) and is_parts(got) and len(expected) == len(got):
        names = getattr(expected, "_fields", range(1, len(expected) + 1))
        parts = (difference(*pair, tolerance=tolerance, hide=hide) for pair in zip(expected, got, strict=True))
        return next(
            (f"In part {name} of the answer:\n{text}" for name, text in zip(names, parts, strict=True) if text), ""
        )
    want, have = to_tensor(expected), to_tensor(got)
    if want is None:
        return _compare_others(expected, got)
    if have is not None and isinstance(expected, list) and have.dtype == torch.bool != want.dtype:
        have = have.to(want.dtype)  # True and False for 1 and 0
    if isinstance(got, (list, int)) and have is not None and want.is_floating_point() and have.dtype != torch.bool:
        have = have.to(want.dtype)  # [0, 0] for [0.0, 0.0]
    if have is not None and is_mask(want) and is_mask(have):
        want, have = broadcast(want, have)
    if have is None or kind(expected, want) != kind(expected, have) or want.shape != have.shape:
        drawing = hide and is_mask(want) and not callable(got)
        wanted = f"a drawing in quotes, {want.shape[-2]} x {want.shape[-1]} signs" if drawing else describe(expected)
        return f"You gave {describe(got)}, expected {wanted}."
    wrong = (
        want != have
        if want.dtype == torch.bool
        else ~torch.isclose(have.double(), want.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
    )
    if not wrong.any():
        return ""
    return _first_wrong(want, have, wrong) if hide else _side_by_side(want, have, wrong)


def _compare_others(expected: Any, got: Any) -> str:
    """Words are compared without regard to case, lists of words as they are, anything else by identity."""
    if isinstance(expected, str) and isinstance(got, str):
        return "" if expected.strip().casefold() == got.strip().casefold() else f"{got[:60]!r} is not it."
    same_words = isinstance(got, list) and all(isinstance(word, str) for word in got) and expected == got
    return "" if expected is got or same_words else f"You gave {describe(got)}, expected {describe(expected)}."


def _first_wrong(want: Tensor, have: Tensor, wrong: Tensor) -> str:
    """One wrong row of a mask, or one wrong number of a list: enough to think again, and not the whole solution."""
    if want.ndim == 0:
        return f"{show(have)} is not it."
    if want.ndim == 1:
        place = int(wrong.nonzero()[0])
        number = f"number {place + 1} of {len(want)}"
        return f"The first that is wrong is {number}: expected {show(want[place])}, got {show(have[place])}."
    rows = [plane.flatten(0, -2) for plane in (want, have, wrong)]  # [..., Lk] -> [rows, Lk]
    row = int(rows[2].any(dim=-1).nonzero()[0])
    return f"The first wrong row is row {row}: expected {show(rows[0][row])}, got {show(rows[1][row])}."


def _side_by_side(want: Tensor, have: Tensor, wrong: Tensor) -> str:
    """Flags as ■ and ⬚ beside each other, for the first sample and head that are wrong; numbers below each other."""
    if want.dtype != torch.bool or not want.ndim:
        return f"expected {show(want)}\ngot      {show(have)}"
    place, *_ = wrong.nonzero().tolist()
    leading = tuple(place[:-2])
    name = f"sample {place[0]}, head {place[1]}" if len(leading) == 2 else f"matrix {place[0]}"
    where = f" ({name})" if leading and want[..., 0, 0].numel() > 1 else ""
    left, right = (draw(flags[leading]).splitlines() for flags in (want, have))
    width = max(len("expected"), len(left[0])) + 4
    lines = [f"{one:{width}}{other}".rstrip() for one, other in zip(["expected", *left], ["got", *right], strict=True)]
    return "\n".join([lines[0] + where, *lines[1:]])


def draw(flags: Tensor) -> str:
    """Bool[Lq, Lk] or Bool[L] as lines of ■ and ⬚."""
    return "\n".join("".join("■" if flag else "⬚" for flag in row) for row in torch.atleast_2d(flags).tolist())


def show(value: Any) -> str:
    """A value on one line: flags as ■ and ⬚, numbers rounded to 4 digits, large tensors by their shape."""
    tensor = to_tensor(value)
    if tensor is None:
        words = value if isinstance(value, tuple) else (value,)
        is_text = all(isinstance(word, str) for word in words)
        return getattr(value, "__name__", None) or (repr(value) if is_text else describe(value))
    if tensor.numel() > 40:
        return describe(value)
    if tensor.dtype == torch.bool and tensor.ndim:
        return " / ".join(draw(tensor.reshape(-1, tensor.shape[-1])).splitlines())
    return str(rounded(tensor.tolist()))


def rounded(value: Any) -> Any:
    """Nested lists of numbers with 4 digits after the point; -0.0 is 0.0."""
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) + 0.0 if isinstance(value, float) else value


def describe(value: Any) -> str:
    """What kind of thing a value is."""
    if isinstance(value, Tensor) and is_mask(value):
        return f"a mask of shape {list(value.shape)}"
    if isinstance(value, Tensor):
        return f"a tensor with dtype {value.dtype} and shape {list(value.shape)}"
    if callable(value):
        return "a function"
    if isinstance(value, (bool, str)):
        return f"{value!r:.60}"
    if isinstance(value, (int, float)):
        return "a number"
    if is_parts(value) or isinstance(value, list):
        words = next((f" {name}s" for kind, name in CONTENTS if value and all(isinstance(v, kind) for v in value)), "")
        return f"a {'list' if isinstance(value, list) else 'tuple'} of {len(value)}{words}"
    return f"a value of type {type(value).__name__}"


def to_tensor(value: Any) -> Tensor | None:
    """A number, or lists of numbers, as a tensor; None for anything else."""
    if not isinstance(value, (Tensor, bool, int, float, list, tuple)):
        return None
    try:
        return value.detach().cpu().to_dense() if isinstance(value, Tensor) else torch.tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # no data, ragged lists, words, huge numbers
        return None


def read_drawing(expected: Any, got: Any) -> Any:
    """The mask that a text draws, if a mask is expected; otherwise `got` itself. 1 and 0 may stand for ■ and ⬚.

    A text that cannot be read is a Fault.
    """
    if not (isinstance(got, str) and isinstance(expected, Tensor) and is_mask(expected)):
        return got
    try:
        return mask_from_text(got.translate(SIGNS))
    except ValueError as error:
        return Fault("drawing", f"Your drawing cannot be read: {error}")


def is_mask(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool and tensor.ndim == 4


def is_parts(value: Any) -> bool:
    """Whether an answer has several parts, as a function that returns two tensors gives."""
    return isinstance(value, (tuple, list)) and any(isinstance(part, Tensor) for part in value)


def broadcast(want: Tensor, have: Tensor) -> tuple[Tensor, Tensor]:
    """Both masks as they meet the scores, so that [B, 1, 1, Lk] equals the squares that it stands for."""
    if want.shape[-1] != have.shape[-1]:
        return want, have  # keys never broadcast
    try:
        shape = torch.broadcast_shapes(want.shape, have.shape)
    except RuntimeError:
        return want, have
    return (want.expand(shape), have.expand(shape)) if 0 not in shape else (want, have)


def kind(expected: Any, tensor: Tensor) -> str:
    """Flags, whole numbers or fractions; the last two are one kind where lists and plain numbers are expected."""
    if tensor.dtype == torch.bool:
        return "flags"
    return "whole" if isinstance(expected, Tensor) and not tensor.is_floating_point() else "numbers"


def size(argument: Any) -> int:
    """How large an argument is, to find the smallest case."""
    if isinstance(argument, Tensor):
        return argument.numel()
    return argument if isinstance(argument, int) else 0
