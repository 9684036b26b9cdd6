"""Notebook 16: every library name of its glossary exists, and every link leads to a heading."""

import importlib
import inspect
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NOTEBOOK = next(NOTEBOOKS.glob("16_*.ipynb"))
LIBRARIES = {"PyTorch": "torch", "Hugging Face": "transformers", "JAX": "jax"}


def markdown(path):
    """The text of all Markdown cells, one after another."""
    return "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")


def tables(*columns):
    """The rows of all tables with these columns, as {column: text}."""
    header = re.escape(f"| {' | '.join(columns)} |")
    found = re.findall(header + r"\n\|[-|]+\n((?:\|.*\n?)+)", markdown(NOTEBOOK))
    rows = [row.strip("| ").split(" | ") for table in found for row in table.strip().splitlines()]
    return [dict(zip(columns, row, strict=True)) for row in rows]


ROWS = tables("English", "中文", *LIBRARIES)
SHORT = {row["short"].strip("`"): row["stands for"].strip("`") for row in tables("short", "stands for")}
NAMES = {(library, name) for row in ROWS for library in LIBRARIES for name in re.findall(r"`([^`]+)`", row[library])}


def resolve(library, name):
    """The object that a name such as `sdpa(scale)` or `torch.argmax` stands for; scale must be an argument."""
    path, argument = re.fullmatch(r"([\w.]+)(?:\((\w+)\))?", name).groups()
    first, *rest = path.split(".")
    begin = "transformers." if library == "Hugging Face" else ""
    full = ".".join([SHORT.get(first, begin + first), *rest])
    assert full.split(".")[0] == LIBRARIES[library]
    thing = locate(full)
    if argument and argument not in arguments(thing):
        raise AttributeError(f"{full} has no argument {argument}")
    return thing


def locate(full):
    """Import as much of a dotted name as is a module, and get the rest as attributes."""
    module, *attributes = full.split(".")
    thing = importlib.import_module(module)
    for attribute in attributes:
        if inspect.ismodule(thing) and not hasattr(thing, attribute):
            importlib.import_module(f"{thing.__name__}.{attribute}")  # a submodule that nobody has imported yet
        if inspect.isclass(thing) and not hasattr(thing, attribute):
            thing = thing()  # a configuration has its settings only as an object
        thing = getattr(thing, attribute)
    return thing


def arguments(function):
    """Names of the arguments; a function without a signature says them in the first line of its docstring."""
    try:
        return set(inspect.signature(function).parameters)
    except ValueError:
        return set(re.findall(r"\w+", function.__doc__.partition("->")[0]))


@pytest.mark.parametrize(("library", "name"), sorted(NAMES))
def test_a_name_in_the_glossary_exists(library, name):
    resolve(library, name)


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("PyTorch", "nn.MultiHeadAttention"),
        ("PyTorch", "sdpa(mask)"),
        ("Hugging Face", "generation.beams"),
        ("Hugging Face", "gpt2(mask)"),
        ("JAX", "dpa(attn_mask)"),
    ],
)
def test_an_invented_name_is_noticed(library, name):
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        resolve(library, name)


def test_every_short_name_is_used():
    assert set(SHORT) <= {re.match(r"\w+", name)[0] for _, name in NAMES}


def test_the_glossary_is_whole():
    """Every term is there once, in English and in Chinese; a cell without a name holds a dash."""
    assert len(ROWS) >= 30
    for column in ("English", "中文"):
        terms = [row[column].split(":")[0] for row in ROWS]
        assert len(terms) == len(set(terms)), column
    assert all(re.search(r"[\u4e00-\u9fff]", row["中文"]) for row in ROWS)
    assert all(row[library] == "—" or re.fullmatch(r"`[^`]+`", row[library]) for row in ROWS for library in LIBRARIES)


def anchors(path):
    """The ids that JupyterLab, nbconvert and its relatives give to the headings of a notebook."""
    text = re.sub(r"```.*?```", "", markdown(path), flags=re.DOTALL)
    return [
        heading.replace("`", "").strip().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    ]


def links(target):
    """The fragments of all links of notebook 16 to `target`, "" being itself."""
    return re.findall(rf"\]\({re.escape(target)}#([^)\s]+)\)", markdown(NOTEBOOK))


def test_no_browser_rewrites_a_fragment():
    """Quotes and foreign letters would be encoded on the way, and JupyterLab looks for them as they are."""
    fragments = re.findall(r"\]\([^)\s]*#([^)\s]+)\)", markdown(NOTEBOOK))
    assert [fragment for fragment in fragments if not re.fullmatch(r"[\w.,:?-]+", fragment, re.ASCII)] == []


def test_each_link_inside_leads_to_a_heading_of_its_own():
    found = anchors(NOTEBOOK)
    assert len(found) == len(set(found))
    assert set(links("")) <= set(found)


def test_the_list_at_the_top_names_every_question_once_and_in_order():
    listing = markdown(NOTEBOOK).partition("**The questions**")[2].partition("\n\nAfter them")[0]
    listed = re.findall(r"^- \[(.+)\]\(#(.+)\)$", listing, re.MULTILINE)
    questions = [anchor for anchor in anchors(NOTEBOOK) if anchor.endswith("?")]
    assert len(questions) == 25
    assert [anchor for _, anchor in listed] == questions
    assert [title.replace(" ", "-") for title, _ in listed] == questions


@pytest.mark.parametrize("path", sorted(set(NOTEBOOKS.glob("*.ipynb")) - {NOTEBOOK}), ids=lambda path: path.stem)
def test_each_link_into_the_series_leads_to_a_heading(path):
    missing = set(links(path.name)) - set(anchors(path))
    assert not missing, f"{path.name} has no such heading; was a section renamed?"
