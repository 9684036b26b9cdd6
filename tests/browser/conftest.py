"""JupyterLab on loopback over a copy of the series, and a Chromium that sees nothing but it."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from playwright.sync_api import Page, Route, sync_playwright

ROOT = Path(__file__).parents[2]
SCREENSHOTS = Path(__file__).parent / "screenshots"
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
# As root in a container Chromium has no sandbox, and its own services would look up hosts that no test needs.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SHOW_CELL = """async source => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    notebook.activeCellIndex = notebook.widgets.findIndex(cell => cell.model.sharedModel.getSource() === source);
    await notebook.scrollToItem(notebook.activeCellIndex, 'start');
}"""
NO_PICTURE = '<svg xmlns="http://www.w3.org/2000/svg"/>'


class Lab:
    """One page of JupyterLab, and what its console complained about."""

    def __init__(self, page: Page, address: str, token: str, theme: str) -> None:
        self.page, self.address, self.token, self.theme = page, address, token, theme
        self.complaints: list[str] = []
        page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.route(lambda url: urlsplit(url).hostname != "127.0.0.1", _stand_in)

    def open(self, name: str) -> None:
        """Open a notebook in a fresh workspace and wait for its kernel."""
        self.page.goto(f"{self.address}lab/tree/notebooks/{name}.ipynb?reset&token={self.token}")
        self.page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady", timeout=120_000)

    def run_all(self) -> list[dict]:
        """Run all cells; returns every output."""
        assert self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')"), "a cell failed"
        cells = self.page.evaluate("window.jupyterapp.shell.currentWidget.content.model.toJSON().cells")
        return [output for cell in cells for output in cell.get("outputs", [])]

    def show_cell(self, source: str) -> None:
        """Scroll to the cell whose code is `source`."""
        self.page.evaluate(SHOW_CELL, source)

    def screenshot(self, name: str) -> None:
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}_{self.theme}.png")


def _stand_in(route: Route) -> None:
    """Answer for the network: badges are the only thing that a notebook shows from outside."""
    route.fulfill(content_type="image/svg+xml", body=NO_PICTURE)


@pytest.fixture(scope="session")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("no Chromium found; on Debian: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def lab(request, browser, tmp_path):
    """JupyterLab in one of THEMES, on a copy: running a notebook leaves the stored one as it is."""
    skipped = shutil.ignore_patterns(".*", "cache", "__pycache__", "*.egg-info", "tests")
    tree = shutil.copytree(ROOT, tmp_path / "series", ignore=skipped)
    _drop_downloads(tree / "notebooks")
    _settings(tmp_path / "settings", request.param)
    token = secrets.token_hex(16)
    with _server(tree, tmp_path, token) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        yield Lab(page, address, token, request.param)
        page.close()


def _drop_downloads(notebooks: Path) -> None:
    """Take out the cells that need a corpus from the network, as nbval does."""
    for path in notebooks.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        notebook.cells = [cell for cell in notebook.cells if "nbval-skip" not in cell.metadata.get("tags", [])]
        nbformat.write(notebook, path)


def _settings(folder: Path, theme: str) -> None:
    """What a reader would have set: the theme, and no news."""
    for name, values in {"notification": {"fetchNews": "false"}, "themes": {"theme": THEMES[theme]}}.items():
        path = folder / "@jupyterlab" / "apputils-extension" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


class _server:
    """A JupyterLab on a free port of 127.0.0.1: `with _server(tree, scratch, token) as address`."""

    def __init__(self, tree: Path, scratch: Path, token: str) -> None:
        self.runtime, self.log = scratch / "runtime", scratch / "jupyter.log"
        folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
        self.environment = {**os.environ, **{name: str(scratch / folder) for name, folder in folders.items()}}
        self.environment |= {"JUPYTERLAB_SETTINGS_DIR": str(scratch / "settings"), "OMP_NUM_THREADS": "1"}
        self.environment["JUPYTERLAB_WORKSPACES_DIR"] = str(scratch / "workspaces")
        self.command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
        self.command += ["--ServerApp.port=0", f"--ServerApp.root_dir={tree}", f"--IdentityProvider.token={token}"]
        self.command += ["--LabApp.expose_app_in_browser=True"]

    def __enter__(self) -> str:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log)
        for _ in range(600):
            for path in self.runtime.glob("jpserver-*.json"):
                return json.loads(path.read_text())["url"]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise TimeoutError(f"JupyterLab did not start in a minute: {self.log.read_text()}")

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
