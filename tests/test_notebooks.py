"""What is stored in the notebooks. That the cells still give their stored outputs is nbval's part."""

import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns
from statistics import median

import nbformat
import pytest
from nbclient import NotebookClient

from tools import stamp
from tools.execute_notebooks import METADATA, WIDGET_VIEW

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.:/~])(?:/(?:home|root|tmp|work|Users|content|usr|opt)/|~/|[A-Z]:\\)")
PROGRESS_BAR = re.compile(r"\d+%\|")
GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [(number, output) for number, cell in enumerate(code_cells(notebook), 1) for output in cell.outputs]


def plain_text(output):
    """An output as a reader sees it: no images, no colour codes."""
    data = {kind: text for kind, text in output.get("data", {}).items() if not kind.startswith("image/")}
    text = "\n".join([output.get("text", ""), *map(str, data.values()), *output.get("traceback", [])])
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def test_the_numbers_of_the_series_rise_and_none_occurs_twice():
    assert PATHS, "notebooks/ holds no notebook"
    numbers = [int(re.match(r"(\d\d)_", path.name)[1]) for path in PATHS]  # sorted by name
    assert numbers == sorted(set(numbers)) and numbers[0] == 1


def test_every_cell_was_executed_in_order(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_no_cell_failed_unless_it_is_meant_to(notebook):
    for number, cell in enumerate(code_cells(notebook), 1):
        failed = any(output.output_type == "error" for output in cell.outputs)
        assert failed == ("raises-exception" in cell.metadata.get("tags", [])), f"code cell {number}"


def test_no_warning_and_no_progress_bar_is_stored(notebook):
    for number, output in outputs(notebook):
        assert output.get("name") != "stderr", f"code cell {number}: {output.text}"
        assert not PROGRESS_BAR.search(plain_text(output)), f"code cell {number}: give the bar refresh=False"


def test_every_image_has_alternative_text(notebook):
    for number, output in outputs(notebook):
        for kind in output.get("data", {}):
            if kind.startswith("image/"):
                text = output.metadata.get(kind, {}).get("alt", "")
                assert len(text.split()) >= 3, f"code cell {number}: alternative text {text!r}"
                assert output.data["text/plain"] == text, f"code cell {number}: text/plain is not the alternative text"


def test_no_path_of_a_machine_is_stored(notebook):
    for number, output in outputs(notebook):
        found = MACHINE_PATH.search(plain_text(output))
        assert not found, f"code cell {number}: {plain_text(output)[found.start() :][:80]}"


def test_metadata_and_ids_are_clean(notebook):
    assert notebook.metadata == METADATA
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    assert all(WIDGET_VIEW not in output.get("data", {}) for _, output in outputs(notebook))
    assert len({cell["id"] for cell in notebook.cells}) == len(notebook.cells)


def test_it_is_small_enough_for_every_viewer(path):
    assert path.stat().st_size < 1_000_000


def test_one_title_in_the_first_cell(notebook):
    titles = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    titles = [re.findall(r"^# .+", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE) for text in titles]
    assert [len(found) for found in titles] == [1] + [0] * (len(titles) - 1)
    assert notebook.cells[0].source.startswith("# ")


def test_badge_and_setup_cell_are_stamped(path, notebook):
    slug = stamp.BADGE.search(notebook.cells[0].source)[1]
    stamped = nbformat.from_dict(notebook)
    stamp.stamp_notebook(stamped, slug, path.name)
    assert stamped == notebook, "run: make stamp"
    assert code_cells(notebook)[0].metadata.tags == ["setup"]


def test_all_notebooks_carry_the_same_setup_cell():
    assert len({code_cells(nbformat.read(path, as_version=4))[0].source for path in PATHS}) == 1


def test_relative_links_lead_somewhere(path, notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\((?!https?:|#|attachment:|mailto:)([^)#\s]+)", text):
        assert (path.parent / target).exists(), target


def test_code_cells_are_short_and_prove_something(notebook):
    sources = [cell.source for cell in code_cells(notebook) if "setup" not in cell.metadata.get("tags", [])]
    lengths = [len(source.splitlines()) for source in sources]
    assert median(lengths) <= 10
    assert max(lengths) <= 40
    assert sum("assert " in source for source in sources) >= 3


def test_the_ten_minutes_of_the_readme_run_by_themselves():
    """Only these sections of notebook 02, as its reader is told."""
    promised = re.search(r"sections (\d) to (\d) and (\d) of \[02\]", (ROOT / "README.md").read_text(encoding="utf-8"))
    first, last, one_more = map(int, promised.groups())
    notebook, section, chosen = nbformat.read(ROOT / "notebooks" / "02_padding_mask.ipynb", as_version=4), 0, []
    for cell in notebook.cells:
        if heading := re.match(r"## (?:(\d+)\.)?", cell.source) if cell.cell_type == "markdown" else None:
            section = int(heading[1] or 99)
        if not section or first <= section <= last or section == one_more:
            chosen.append(cell)
    assert 10 < len(chosen) < len(notebook.cells) / 2
    notebook.cells = chosen
    NotebookClient(notebook, resources={"metadata": {"path": ROOT / "notebooks"}}).execute()  # raises if a cell does


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A git repository made from the tree as it is."""
    tree = tmp_path_factory.mktemp("published") / "attention-masks"
    copytree(ROOT, tree, ignore=ignore_patterns(".*", "__pycache__", "*.egg-info", "cache", "checkpoints"))
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "The tree as it is."]):
        subprocess.run([*GIT, *command], cwd=tree, check=True)
    return tree


def run_alone(folder, address):
    """Run the setup cell and one import as a notebook opened alone in a folder would; they run twice."""
    check = "\nimport utils.masks\nprint(utils.masks.__file__)\n"
    code = 2 * (stamp.setup_source("nobody/attention-masks") + check)
    environment = {**os.environ, "SERIES_REPO": address}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_notebook_opened_alone_brings_what_it_needs(published, tmp_path):
    done = run_alone(tmp_path, published.as_uri())
    assert done.stdout.split() == [str(tmp_path / "attention-masks" / "utils" / "masks.py")] * 2, done.stderr


def test_a_notebook_opened_alone_says_why_it_cannot_start(tmp_path):
    done = run_alone(tmp_path, (tmp_path / "nowhere").as_uri())
    assert re.search(r"RuntimeError: git cannot fetch file:\S+; set SERIES_REPO to .* fatal: ", done.stderr)
