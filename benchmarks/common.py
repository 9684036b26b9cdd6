"""What every benchmark writes down beside its numbers."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def surroundings() -> dict:
    """The command, the commit, the device and the versions that a number was measured with."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    cuda = torch.cuda.is_available()
    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *map(_plain, sys.argv[1:])]),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip() or None,
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("torch", "tokenizers", "sacrebleu")}
        | {"python": platform.python_version()},
    }


def _plain(argument: str) -> str:
    """An argument without the folders of this machine."""
    return Path(argument).name if os.path.isabs(argument) else argument


def digest(lines: Iterable[str]) -> str:
    """sha256 over lines of text: names the data that a number was measured on."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def report(result: dict, path: Path | None) -> None:
    """Print a result, and write it to `path` if one is given."""
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    if path:
        path.write_text(text + "\n", encoding="utf-8")
