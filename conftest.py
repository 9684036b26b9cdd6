"""Settings for all tests: two repairs of nbval 0.11 and a fixture."""

import os

import jaxtyping
import pytest
from nbval import kernel, plugin

# A progress bar shows times, which differ in every run. So bars are put off past the end of any cell, as in
# tools/execute_notebooks.py (TQDM_DISABLE does not reach the bars of notebooks).
os.environ["TQDM_DELAY"] = "1000000"


def execute_cell_input(self, cell_input, allow_stdin=None):
    """Run a cell as Jupyter does, with history: otherwise a trailing ; hides nothing (nbval issue 194)."""
    return self.kc.execute(cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)


kernel.RunningKernel.execute_cell_input = execute_cell_input


def pytest_itemcollected(item):
    """Wait longer for a cell's output: nbval's fixed 5 s is too short on a busy machine (nbval issue 231)."""
    if isinstance(item, plugin.IPyNbCell):
        item.output_timeout = 60


@pytest.fixture
def raw_errors():
    """Turn jaxtyping's checks off, so that a test sees the error messages which a user sees."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
