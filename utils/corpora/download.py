"""Download a file of a corpus once, check it by its digest, read it."""

import gzip
import os
from pathlib import Path
from typing import NamedTuple

import pooch
import requests

CACHE = Path(__file__).resolve().parents[2] / "data" / "cache"


class Corpus(NamedTuple):
    """Where a corpus is published, and the sha256 of each of its files."""

    name: str
    url: str
    digests: dict[str, str]


class DownloadError(RuntimeError):
    """A file of a corpus could not be had; the message says which, from where, and what to do."""


def fetch(corpus: Corpus, filename: str, *, cache: Path = CACHE) -> Path:
    """The path of a file of the corpus, downloaded once into `cache` and checked by sha256 each time.

    The environment variable SERIES_DATA_MIRROR names another place that holds a folder for each corpus, for
    example http://127.0.0.1:8000. An incomplete or altered file is never kept.

    Raises DownloadError if there is no network, the server fails, or the bytes are not the published ones.
    """
    mirror = os.environ.get("SERIES_DATA_MIRROR")
    url = f"{mirror.rstrip('/')}/{corpus.name}/" if mirror else corpus.url
    folder = Path(cache) / corpus.name
    downloads = pooch.create(folder, url, registry=corpus.digests, retry_if_failed=1)
    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(downloads.fetch(filename, progressbar=True))
    except requests.RequestException as error:
        reason = f"the download failed ({type(error).__name__}: {error})"
    except ValueError as error:
        if filename not in corpus.digests:
            raise
        reason = f"the bytes that came are not the published ones ({error})"
    raise DownloadError(
        f"{filename} of {corpus.name} is not to be had from {url}: {reason}. Nothing was kept. Check the network and "
        f"run the cell again, or put the file into {folder}, or set SERIES_DATA_MIRROR to a place that holds it."
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, plain or gzipped, UTF-8, without their ends."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [line.strip() for line in lines]
