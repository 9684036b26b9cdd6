"""Install what a notebook needs and its machine lacks: Colab and Kaggle have most of it already."""

import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
# What runs the notebook is left alone: another version of it would break a hosted machine.
NEVER = {"ipykernel", "jupyterlab", "torch"}


def missing(requirements: list[str]) -> list[str]:
    """The requirements ("pooch>=1.8") whose package is not installed in any version."""
    return [requirement for requirement in requirements if not _installed(_name(requirement))]


def install_missing() -> None:
    """Install the missing dependencies of pyproject.toml, quietly; an installed package is never upgraded.

    Raises RuntimeError if PyTorch is missing, and with pip's own words if pip fails.
    """
    if not _installed("torch"):
        raise RuntimeError("PyTorch is not installed. Install it as pytorch.org describes, then restart the kernel.")
    dependencies = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    if needed := missing([requirement for requirement in dependencies if _name(requirement) not in NEVER]):
        done = subprocess.run([sys.executable, "-m", "pip", "install", *needed], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip could not install {', '.join(needed)}. {done.stderr}")
        importlib.invalidate_caches()


def _name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement).group()


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False
