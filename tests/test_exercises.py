"""Every exercise, and every folded solution in the notebooks. New files and notebooks are covered by themselves."""

import ast
import contextlib
import importlib
import io
import itertools
import pkgutil
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from utils import exercises
from utils.exercises.core import NO_ANSWER, NO_RETURN, Exercise, Fault, outcome
from utils.masks import causal_mask, padding_mask, valid_from_lengths

TOPICS = sorted({module.name for module in pkgutil.iter_modules(exercises.__path__)} - {"core", "mistakes"})
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
CHECK = re.compile(r"^exercises\.(check_\w+)\(\w+\)$", re.MULTILINE)
SOLUTION = re.compile(r"<details>.*?```python\n(.*?)```", re.DOTALL)


def checks_of(topic):
    """The exercises of a file, as {name: exercise}."""
    module = importlib.import_module(f"utils.exercises.{topic}")
    return {name: value for name, value in vars(module).items() if isinstance(value, Exercise)}


EVERY = [pytest.param(check, id=f"{topic}-{name}") for topic in TOPICS for name, check in checks_of(topic).items()]
every_exercise = pytest.mark.parametrize("exercise", EVERY)


@every_exercise
def test_the_solution_is_right(exercise):
    assert exercise.feedback(exercise.solution).startswith("✓ Right")
    if callable(exercise.solution):
        assert not any(isinstance(outcome(exercise.solution, case), Fault) for case in exercise.cases)


@every_exercise
def test_without_an_answer_it_says_one_friendly_line(exercise):
    assert exercise.feedback(...) == NO_ANSWER
    if callable(exercise.solution):
        assert exercise.feedback(lambda *arguments: ...) == NO_ANSWER
        assert exercise.feedback(lambda *arguments: None) == NO_RETURN


@every_exercise
def test_three_mistakes_and_each_gets_its_own_advice(exercise):
    assert len(exercise.mistakes) >= 3
    for advice, wrong in exercise.mistakes.items():
        feedback = exercise.feedback(wrong)
        assert feedback.startswith("✗ Not yet")
        assert advice in " ".join(feedback.split())  # which undoes the line breaks


@every_exercise
def test_a_question_says_what_is_asked(exercise):
    assert exercise.__doc__ == exercise.task
    assert len(exercise.task.split()) >= 5


def test_every_check_is_called_check():
    assert all(name.startswith("check_") for topic in TOPICS for name in checks_of(topic))


# ---- the notebooks

USING = [path for path in NOTEBOOKS if path.stem[3:] in TOPICS]


@pytest.fixture(params=USING, ids=lambda path: path.stem)
def topic_and_cells(request):
    return request.param.stem[3:], nbformat.read(request.param, as_version=4).cells


def imports_of(cells):
    """The imports of a notebook as a source."""
    sources = [
        cell.source for cell in cells if cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", [])
    ]
    nodes = [node for source in sources if "import " in source for node in ast.parse(source).body]
    return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)))


def test_every_exercise_stands_in_its_notebook(topic_and_cells):
    topic, cells = topic_and_cells
    used = [name for cell in cells if cell.cell_type == "code" for name in CHECK.findall(cell.source)]
    assert sorted(used) == sorted(checks_of(topic))


def test_every_folded_solution_is_right(topic_and_cells):
    """Each is run with the notebook's imports alone, then checked as the answer cell above it does."""
    _, cells = topic_and_cells
    namespace = {}
    exec(imports_of(cells), namespace)
    for cell, after in itertools.pairwise(cells):
        if cell.cell_type == "code" and (check := CHECK.search(cell.source)):
            folded = SOLUTION.findall(after.source)
            assert len(folded) == 1, f"{check[1]}: one ```python block in the <details> of the next cell"
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(f"{folded[0]}\n{check[0]}", dict(namespace))
            assert printed.getvalue().startswith("✓ Right"), f"{check[1]}: {printed.getvalue()}"


def test_every_notebook_with_a_file_of_exercises_is_found():
    assert {path.stem[3:] for path in USING} == set(TOPICS)


# ---- strange answers, each to a question that has a simple solution

MASK = Exercise(
    task="The padding mask of a batch.",
    solution=padding_mask,
    cases=[(valid_from_lengths(torch.tensor([1, 2])),)],
    mistakes={},
)
PREDICTION = Exercise(task="Draw the causal mask of two tokens.", solution=causal_mask(2), mistakes={})
NUMBERS = Exercise(task="Predict a list of two numbers.", solution=[0.5, 1], tolerance=0.01, mistakes={})


def raising(valid):
    raise KeyError("no such\nkey")


def mutating(valid):
    mask = padding_mask(valid.clone())
    valid.fill_(True)
    return mask


class Rubbish:
    """An answer that fights back."""

    def __eq__(self, other):
        raise RuntimeError("compared")

    def __repr__(self):
        raise RuntimeError("shown")

    __hash__ = None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (raising, "Your function raised KeyError: 'no such"),
        (lambda: 1, "Your function raised TypeError"),
        (mutating, "changes its argument in place"),
        (lambda valid: Rubbish(), "You gave a value of type Rubbish, expected a mask of shape [2, 1, 1, 2]."),
        (lambda valid: valid, "You gave a tensor with dtype torch.bool and shape [2, 2], expected a mask"),
        (lambda valid: padding_mask(valid).float(), "dtype torch.float32"),
        (lambda valid: padding_mask(valid)[..., :1, :0], "shape [2, 1, 1, 0]"),
        (lambda valid: "■", "expected"),
        (lambda valid: (~padding_mask(valid)).to_sparse(), "expected"),
        (lambda valid: padding_mask(valid).to("meta"), "Your function raised NotImplementedError"),
        (Rubbish(), "You gave a value of type Rubbish, expected a function."),
        ([[1], [2, 3]], "You gave a list of 2 lists, expected a function."),
    ],
)
def test_a_strange_function_gets_an_answer(answer, said):
    feedback = MASK.feedback(answer)
    assert feedback.startswith("✗ Not yet")
    assert said in feedback


@pytest.mark.parametrize(
    "answer", [Rubbish(), [Rubbish()], [[1], [2, 3]], "?", "", 10**400, [10**400], {}, b"10", lambda: 1]
)
@pytest.mark.parametrize("exercise", [PREDICTION, NUMBERS], ids=["a mask", "numbers"])
def test_a_strange_prediction_gets_an_answer(exercise, answer):
    assert exercise.feedback(answer).startswith("✗ Not yet")


def test_a_mask_without_any_entry_is_not_right():
    assert PREDICTION.feedback(torch.ones(0, 1, 2, 2, dtype=torch.bool)).startswith("✗ Not yet")


@pytest.mark.parametrize("answer", ["■⬚ / ■■", "■⬚\n■■", "10/11", causal_mask(2)])
def test_a_mask_may_be_drawn_or_typed(answer):
    assert PREDICTION.feedback(answer) == "✓ Right."


@pytest.mark.parametrize("answer", [[0.5, 1.0], (0.5, 1), torch.tensor([0.5, 1.0]), [0.505, 1], np.array([0.5, 1])])
def test_numbers_may_come_in_any_list(answer):
    assert NUMBERS.feedback(answer) == "✓ Right."


def test_a_prediction_shows_only_the_first_wrong_row():
    assert PREDICTION.feedback("■⬚ / ⬚■") == "✗ Not yet.\nThe first wrong row is row 1: expected ■■, got ⬚■."


def test_a_mask_may_be_written_out():
    """[B, 1, 1, Lk] and the squares that it stands for are the same mask."""
    assert MASK.feedback(lambda valid: padding_mask(valid).expand(-1, 1, 2, -1)) == "✓ Right on all 1 cases."


def test_the_smallest_case_that_fails_is_drawn():
    exercise = Exercise(
        task="The causal mask.",
        solution=causal_mask,
        cases=[(3,), (1,), (2,)],
        mistakes={"Polarity.": lambda n: ~causal_mask(n)},
    )
    wrong_from_two = exercise.feedback(lambda n: causal_mask(n) if n < 2 else causal_mask(n).transpose(2, 3))
    assert wrong_from_two.splitlines() == [
        "✗ Not yet: 1 of 3 cases are right.",
        "The smallest case that fails: query_len = 2",
        "expected    got",
        "■⬚          ■■",
        "■■          ⬚■",
    ]


def test_keys_do_not_broadcast():
    """A mask with one key is none for two, though it could be stretched."""
    assert PREDICTION.feedback(torch.ones(1, 1, 2, 1, dtype=torch.bool)).startswith("✗ Not yet")
    alone = Exercise(task="The causal mask of one token.", solution=causal_mask(1), mistakes={})
    assert alone.feedback(torch.ones(1, 1, 1, 2, dtype=torch.bool)).startswith("✗ Not yet")


def test_an_answer_of_several_parts_is_compared_part_by_part():
    exercise = Exercise(task="A pair.", solution=lambda x: (x, x + 1), cases=[(torch.tensor([1]),)], mistakes={})
    assert exercise.feedback(lambda x: (x, x + 1)).startswith("✓")
    assert exercise.feedback(lambda x: [x, x + 1]).startswith("✓")
    assert "In part 2 of the answer:\nexpected [2]\ngot      [1]" in exercise.feedback(lambda x: (x, x.clone()))


def test_true_and_false_may_stand_for_one_and_zero():
    exercise = Exercise(task="True or false, twice?", solution=[0, 1], mistakes={})
    assert exercise.feedback([False, True]) == "✓ Right."
    assert "expected 0, got 1" in exercise.feedback([True, True])


def test_the_random_numbers_of_the_reader_stay_as_they_are():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    MASK.feedback(lambda valid: torch.rand(2, 1, 1, 2) > 0.5)
    assert torch.rand(1) == expected
