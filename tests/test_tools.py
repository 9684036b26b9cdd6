"""The tools that execute and stamp notebooks, on small notebooks made here."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import dependencies, execute_notebooks, stamp

WIDGET = "import ipywidgets\nipywidgets.IntSlider()"
BAR = "from tqdm.auto import trange\nfor _ in trange(3): pass"
RAISES = "from tools.dependencies import missing\nmissing([''])"


@pytest.fixture
def write(tmp_path):
    """Write a notebook of code cells and return its path."""

    def write(*sources, name="01_small.ipynb"):
        cells = [new_markdown_cell("# Small\n\nText."), *map(new_code_cell, sources)]
        nbformat.write(new_notebook(cells=cells), tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def quiet(monkeypatch):
    """What `main` sets for the kernels, and the repository on their path."""
    monkeypatch.setenv("TQDM_DELAY", "1000000")
    monkeypatch.setenv("PYTHONPATH", str(execute_notebooks.ROOT))


def test_a_second_execution_changes_nothing(write, quiet):
    path = write("print(1)", BAR, WIDGET)
    execute_notebooks.execute(path)
    first = path.read_bytes()
    execute_notebooks.execute(path)
    assert path.read_bytes() == first
    stored = nbformat.read(path, as_version=4)
    assert stored.metadata == execute_notebooks.METADATA
    assert [cell.execution_count for cell in stored.cells[1:]] == [1, 2, 3]
    assert [len(cell.outputs) for cell in stored.cells[1:]] == [1, 0, 1]
    assert list(stored.cells[3].outputs[0].data) == ["text/plain"]


@pytest.mark.parametrize("source", ["1 / 0", "import warnings; warnings.warn('hey')"], ids=["error", "warning"])
def test_a_failing_cell_is_named_and_the_file_stays(write, quiet, source):
    path = write("print(1)", source)
    before = path.read_bytes()
    with pytest.raises(execute_notebooks.NotebookError, match=r"01_small\.ipynb, cell 3 "):
        execute_notebooks.execute(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["01_small.ipynb"]


def test_a_stored_traceback_names_no_folder_of_the_machine(write, quiet):
    path = write(RAISES)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].metadata.tags = ["raises-exception"]
    nbformat.write(notebook, path)
    execute_notebooks.execute(path)
    assert "tools/dependencies.py" in path.read_text(encoding="utf-8")
    assert str(execute_notebooks.ROOT) not in path.read_text(encoding="utf-8")


def test_an_unknown_notebook_is_an_error():
    with pytest.raises(execute_notebooks.NotebookError, match="no notebook starts with '99'"):
        execute_notebooks.find_notebooks(["99"])


@pytest.mark.parametrize(
    ("url", "slug"),
    [
        ("https://github.com/ada/attention-masks", "ada/attention-masks"),
        ("https://github.com/ada/attention-masks.git", "ada/attention-masks"),
        ("https://token@github.com/ada/masks.v2/", "ada/masks.v2"),
        ("https://my-name:to-ken@github.com/ada/masks", "ada/masks"),
        ("http://github.com/ada/masks", "ada/masks"),
        ("git@github.com:ada/attention-masks.git", "ada/attention-masks"),
        ("ssh://git@github.com/ada/attention-masks", "ada/attention-masks"),
        ("https://example.org/ada/attention-masks", None),
        ("", None),
    ],
)
def test_the_address_comes_from_the_remote(url, slug):
    assert stamp.slug_from_remote(url) == slug


def test_stamping_moves_the_address_and_keeps_outputs():
    cell = new_code_cell("1 + 1", outputs=[new_output("execute_result", {"text/plain": "2"}, execution_count=1)])
    notebook = new_notebook(cells=[new_markdown_cell("# Title\n\nText."), cell])
    stamp.stamp_notebook(notebook, "OWNER/attention-masks", "01_x.ipynb")
    stamp.stamp_notebook(notebook, "ada/masks", "01_x.ipynb")
    once = nbformat.from_dict(notebook)
    stamp.stamp_notebook(notebook, "ada/masks", "01_x.ipynb")
    assert notebook == once
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "code"]
    assert notebook.cells[0].source == f"# Title\n\n{stamp.badge('ada/masks', '01_x.ipynb')}\n\nText."
    assert "https://github.com/ada/masks" in notebook.cells[1].source
    assert "OWNER" not in nbformat.writes(notebook)
    assert notebook.cells[2].outputs[0].data["text/plain"] == "2"


def test_stamping_needs_a_title():
    with pytest.raises(ValueError, match="begins with 'Text'"):
        stamp.stamp_notebook(new_notebook(cells=[new_markdown_cell("Text")]), "ada/masks", "01_x.ipynb")


def test_the_readme_follows_the_address():
    link = "git clone https://github.com/{0}\n[Colab](https://colab.research.google.com/github/{0}/blob/main/x)"
    assert stamp.stamp_readme(link.format("OWNER/attention-masks"), "ada/masks") == link.format("ada/masks")


def test_only_what_is_not_installed_is_missing():
    assert dependencies.missing(["pooch>=99", "no-such-package-here>=1"]) == ["no-such-package-here>=1"]


def test_a_bar_that_shows_itself_is_not_stored(write, quiet):
    reset = "from tqdm.auto import tqdm\nbar = tqdm(total=3)\nbar.reset()  # shows a bar however long it is put off"
    path = write(reset + "\nprint('kept')")
    execute_notebooks.execute(path)
    (output,) = nbformat.read(path, as_version=4).cells[1].outputs
    assert output.text == "kept\n"
