"""The files around the code agree with one another."""

import re
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def names(requirements):
    """Normalised names of the packages in a list of requirements."""
    return {re.match(r"[\w.-]+", line).group().lower().replace("_", "-") for line in requirements}


def test_conda_takes_its_dependencies_from_pyproject():
    python = f"python{PROJECT['requires-python']}"
    assert yaml.safe_load(read("environment.yml"))["dependencies"] == [python, "pip", {"pip": ["-e ."]}]


def test_constraints_pin_every_dependency_exactly():
    pins = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    assert not [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)], "a local or inexact version"
    assert names(PROJECT["dependencies"]) | names(PROJECT["optional-dependencies"]["test"]) <= names(pins)


def test_the_package_imports_only_what_is_a_dependency():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "utils").rglob("*.py"))
    imports = set(re.findall(r"^(?:from|import) (\w+)", sources, re.MULTILINE))
    foreign = imports - set(sys.stdlib_module_names) - {"utils", "IPython"}
    assert {name.replace("_", "-") for name in foreign} <= names(PROJECT["dependencies"])


def test_readme_links_every_notebook_and_nothing_that_is_missing():
    readme = read("README.md")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"](notebooks/{path.name})" in readme, path.name
        assert f"/blob/main/notebooks/{path.name})" in readme, f"Colab link of {path.name}"
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", read(name)):
            assert (ROOT / target).exists(), f"{name}: {target}"
