"""Execute notebooks in place and clean what is stored.

    python tools/execute_notebooks.py          all of notebooks/
    python tools/execute_notebooks.py 02 05    those whose names start so; paths work, too

A notebook that fails, or writes to stderr (a warning), stays as it was, and its cell is named. Progress bars
in the notebooks are put off past the end of any cell, because their times would differ in every stored version.
"""

import os
import sys
from pathlib import Path

import nbformat
from IPython.utils.path import compress_user
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
SECONDS_PER_CELL = 1200
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"  # holds a random id


class NotebookError(Exception):
    """A cell failed, or wrote to stderr."""


def find_notebooks(names: list[str]) -> list[Path]:
    """The notebooks with these paths or beginnings of names ("02"); no names: all. Raises NotebookError for none."""
    series = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if not names:
        return series
    found = []
    for name in names:
        matches = [Path(name)] if Path(name).is_file() else [path for path in series if path.name.startswith(name)]
        if not matches:
            raise NotebookError(f"no notebook starts with {name!r}; there are {', '.join(p.stem for p in series)}.")
        found += matches
    return found


def execute(path: Path) -> None:
    """Execute a notebook, clean it and write it back. Raises NotebookError and leaves the file if a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=SECONDS_PER_CELL,
        record_timing=False,
        coalesce_streams=True,  # else one text may be stored in pieces, as the kernel happened to flush it
        extra_arguments=["--log-level=ERROR"],  # else each kernel warns that its connection is not encrypted
        resources={"metadata": {"path": str(path.parent)}},
    )
    with client.setup_kernel():
        for index, cell in enumerate(tqdm(notebook.cells, desc=path.stem, unit="cell")):
            try:
                client.execute_cell(cell, index)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                raise NotebookError(f"{path.name}, cell {index + 1} failed:\n{error}") from error
            if text := stderr_of(cell):
                raise NotebookError(f"{path.name}, cell {index + 1} wrote to stderr:\n{cell.source}\n\n{text}")
    clean(notebook)
    temporary = path.with_name(path.name + ".tmp")
    nbformat.write(notebook, temporary)
    os.replace(temporary, path)


def stderr_of(cell: NotebookNode) -> str:
    """What a cell wrote to stderr."""
    return "".join(output.text for output in cell.get("outputs", []) if output.get("name") == "stderr")


def clean(notebook: NotebookNode) -> None:
    """Keep what readers and tests need: one kernel name, tags, outputs without random ids and machine paths."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_progress_bar(output)]
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)
            if output.output_type == "error":
                output.traceback = [_without_root(line) for line in output.traceback]


def is_progress_bar(output: NotebookNode) -> bool:
    """Whether an output is a bar, which a download shows however long bars are put off."""
    data = output.get("data", {})
    return WIDGET_VIEW in data and "%|" in data.get("text/plain", "")


def _without_root(text: str) -> str:
    for root in (str(ROOT), compress_user(str(ROOT))):
        text = text.replace(f"{root}/", "")
    return text


def main() -> None:
    os.environ["TQDM_DELAY"] = "1000000"  # seconds; for the bars in the kernel, which inherits it
    try:
        for path in find_notebooks(sys.argv[1:]):
            execute(path)
    except NotebookError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
