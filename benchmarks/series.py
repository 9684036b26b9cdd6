"""The whole series: seconds and peak memory of each notebook, and how long the package takes to import.

    python benchmarks/series.py --json result.json
    python benchmarks/series.py 03 05

Each notebook runs from its first cell to its last in a kernel of its own, as `make run` does it, on a copy in memory:
nothing is written back.
"""

import argparse
import os
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from common import ROOT, report, surroundings
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

sys.path.insert(0, str(ROOT / "tools"))
from execute_notebooks import NotebookError, find_notebooks

PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"  # kibibytes, on Linux
MODULES = [f"utils.{module.name}" for module in pkgutil.iter_modules([ROOT / "utils"])]


def measured(path: Path) -> dict[str, float | str]:
    """Seconds from the start of its kernel to the end of its last cell, and the most memory that the kernel held.

    If it fails, the error stands in their place, so that the other notebooks are measured all the same.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(PEAK))
    settings = {"timeout": None, "resources": {"metadata": {"path": str(path.parent)}}}
    quiet = ["--log-level=ERROR"]  # else each kernel warns that its connection is not encrypted
    client = NotebookClient(notebook, kernel_name="python3", extra_arguments=quiet, **settings)
    start = time.perf_counter()
    try:
        with client.setup_kernel():
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
            seconds = time.perf_counter() - start  # no reader waits for the end of the kernel
    except (CellExecutionError, DeadKernelError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"seconds": round(seconds, 1), "peak_mebibytes": round(int(notebook.cells[-1].outputs[-1].text) / 1024)}


def import_seconds(module: str) -> float:
    """Seconds from the start of Python until a module is there: the fastest of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        times.append(time.perf_counter() - start)
    return round(min(times), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", help="beginnings of names; default: all")
    parser.add_argument("--json", type=Path, help="write the result there")
    args = parser.parse_args()
    try:
        paths = find_notebooks(args.notebooks)
    except NotebookError as error:
        parser.error(str(error))
    threads = os.environ.setdefault("OMP_NUM_THREADS", "1")  # as `make run`; the kernels inherit it
    result = surroundings() | {"omp_num_threads": threads}
    result |= {"import_seconds": {name: import_seconds(name) for name in ("torch", *MODULES)}}
    result["notebooks"] = {}
    for path in paths:
        result["notebooks"][path.stem] = measured(path)
        print(path.stem, result["notebooks"][path.stem], file=sys.stderr)
    report(result, args.json)


if __name__ == "__main__":
    main()
