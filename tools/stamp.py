"""Write the repository's address, taken from `git remote get-url origin`, wherever a reader needs it.

That is: the Colab badge and the setup cell of every notebook, and the links of the README. Stored outputs stay.
"""

import re
import subprocess
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_SLUG = "OWNER/attention-masks"
BADGE = re.compile(r"\[!\[Open in Colab\]\(\S+\)\]\(https://colab\.research\.google\.com/github/([^/]+/[^/]+)/\S+\)")


def slug_from_remote(url: str) -> str | None:
    """OWNER/NAME from a GitHub address, https or ssh; None for an address elsewhere."""
    found = re.fullmatch(r"(?:https?://(?:[^@/]+@)?|ssh://git@|git@)github\.com[/:]([\w.-]+/[\w.-]+?)(?:\.git)?/?", url)
    return found and found[1]


def repository_slug() -> str:
    """OWNER/NAME of the remote `origin`, or a placeholder if there is none on GitHub."""
    remote = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    url = subprocess.run(remote, capture_output=True, text=True).stdout.strip()
    if slug := slug_from_remote(url):
        return slug
    print(f"No remote `origin` on GitHub: the placeholder {DEFAULT_SLUG} is used.")
    return DEFAULT_SLUG


def setup_source(slug: str) -> str:
    """The first code cell of every notebook."""
    template = (ROOT / "tools" / "setup_cell.py").read_text(encoding="utf-8").strip()
    return template.replace(DEFAULT_SLUG, slug)


def badge(slug: str, name: str) -> str:
    """A picture that opens the notebook of this file name in Colab."""
    address = f"https://colab.research.google.com/github/{slug}/blob/main/notebooks/{name}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"


def stamp_notebook(notebook: NotebookNode, slug: str, name: str) -> None:
    """Set the badge below the title, and the setup cell as the first code cell.

    Raises ValueError if the notebook does not begin with a title.
    """
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        raise ValueError(f"{name} begins with {first.source[:40]!r}; expected a Markdown cell with a `# ` title.")
    title, _, rest = BADGE.sub("", first.source).partition("\n")
    first.source = f"{title}\n\n{badge(slug, name)}\n\n{rest.strip()}".strip()
    cell = next((cell for cell in notebook.cells if "setup" in cell.metadata.get("tags", [])), None)
    if cell is None:
        cell = nbformat.v4.new_code_cell(id="setup", metadata={"tags": ["setup"]})
        kinds = [cell.cell_type for cell in notebook.cells]
        notebook.cells.insert(kinds.index("code") if "code" in kinds else len(kinds), cell)
    cell.source = setup_source(slug)


def stamp_readme(text: str, slug: str) -> str:
    """Replace the address that the Colab links name, there and everywhere else in the text."""
    old = re.search(r"colab\.research\.google\.com/github/([^/]+/[^/]+)/", text)
    return text.replace(old[1], slug) if old else text


def main() -> None:
    slug = repository_slug()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        stamp_notebook(notebook, slug, path.name)
        nbformat.write(notebook, path)
    readme = ROOT / "README.md"
    readme.write_text(stamp_readme(readme.read_text(encoding="utf-8"), slug), encoding="utf-8")


if __name__ == "__main__":
    main()
