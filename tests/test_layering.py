"""A module of utils/ imports only from lower rows. The rows stand in utils/__init__.py, for readers, and here.

A folder in utils/ counts as one module; the files in it may import one another.
"""

import ast
from pathlib import Path

import pytest

UTILS = Path(__file__).parents[1] / "utils"
ROWS = [  # the lowest first
    {"masks"},
    {"conventions", "attention"},
    {"transformer", "corpora", "scores"},
    {"training", "decoding", "audit", "plotting"},
    {"exercises", "explorer", "chat"},
]
ONLY_MASKS = {"audit", "plotting"}  # so that they serve any model
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}
FILES = {path: path.relative_to(UTILS).parts[0].removesuffix(".py") for path in sorted(UTILS.rglob("*.py"))}


def imported(source):
    """Names of the modules of utils/ that a source imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("utils.")}
        elif isinstance(node, ast.ImportFrom) and (node.module == "utils" or node.level):
            names |= {node.module} if node.level and node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("utils."):
            names.add(node.module.split(".")[1])
    return names


@pytest.mark.parametrize(
    ("path", "name"), [pytest.param(*item, id=str(item[0].relative_to(UTILS))) for item in FILES.items()]
)
def test_a_module_imports_only_from_lower_rows(path, name):
    row = -1 if name == "__init__" else ROW_OF[name]  # KeyError: add the module to ROWS and to utils/__init__.py
    allowed = {"masks"} if name in ONLY_MASKS else {other for other in ROW_OF if ROW_OF[other] < row}
    assert imported(path.read_text(encoding="utf-8")) - {name} <= allowed


def test_every_way_to_import_is_seen():
    source = "import utils.masks\nfrom utils import audit\nfrom utils.corpora import pad\nfrom .training import Run"
    assert imported(source) == {"masks", "audit", "corpora", "training"}


def test_the_package_shows_the_same_rows():
    shown = ast.get_docstring(ast.parse((UTILS / "__init__.py").read_text(encoding="utf-8"))).splitlines()
    rows = [set(line.split()) for line in shown if line.startswith("    ") or set(line.split()) & set(ROW_OF)]
    assert rows == ROWS[::-1]
