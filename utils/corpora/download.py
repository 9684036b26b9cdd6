"""Download a file of a corpus once, check it by its digest, read it."""

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pooch
import requests

CACHE = Path(__file__).resolve().parents[2] / "data" / "cache"


def bytes_digest(path: Path) -> str:
    """sha256 of a file, byte by byte."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Corpus(NamedTuple):
    """Where a corpus is published, and the digest of each of its files.

    `digest_of` computes a digest: of the bytes, or of what is packed in them where the host may pack it anew.
    A file whose address is not `url` and its name has its own in `urls`.
    """

    name: str
    url: str
    digests: dict[str, str]
    digest_of: Callable[[Path], str] = bytes_digest
    urls: dict[str, str] | None = None

    def holds(self, path: Path, filename: str) -> bool:
        """Is the file at `path` the published one?"""
        try:
            return self.digest_of(path) == self.digests[filename]
        except (OSError, EOFError, zlib.error, tarfile.TarError):  # missing, cut off or not an archive at all
            return False


class DownloadError(RuntimeError):
    """A file of a corpus could not be had; the message says which, from where, and what to do."""


def fetch(corpus: Corpus, filename: str, *, cache: Path = CACHE) -> Path:
    """The path of a file of the corpus, downloaded once into `cache` and checked by its digest each time.

    The environment variable SERIES_DATA_MIRROR names another place that holds a folder for each corpus, for
    example http://127.0.0.1:8000. An incomplete or altered file is never kept.

    Raises DownloadError if there is no network, the server fails, or the content is not the published one.
    """
    mirror = os.environ.get("SERIES_DATA_MIRROR")
    url = f"{mirror.rstrip('/')}/{corpus.name}/" if mirror else corpus.url
    folder = Path(cache) / corpus.name
    if filename in corpus.digests and not corpus.holds(folder / filename, filename):
        (folder / filename).unlink(missing_ok=True)
    registry = dict.fromkeys(corpus.digests)  # no digest for pooch: `download` checks it, before a file is kept
    downloads = pooch.create(folder, url, registry=registry, urls=None if mirror else corpus.urls, retry_if_failed=1)
    pooch.get_logger().setLevel("WARNING")

    def download(address: str, target: str, _: pooch.Pooch) -> None:
        pooch.HTTPDownloader(progressbar=True)(address, target, _)
        if not corpus.holds(Path(target), filename):
            raise ValueError("another digest")

    try:
        return Path(downloads.fetch(filename, downloader=download))
    except requests.RequestException as error:
        reason = f"the download failed ({type(error).__name__}: {error})"
    except ValueError:
        if filename not in corpus.digests:
            raise
        reason = "the bytes that came are not the published ones"
    raise DownloadError(
        f"{filename} of {corpus.name} is not to be had from {url}: {reason}. Nothing was kept. Check the network and "
        f"run the cell again, or put the file into {folder}, or set SERIES_DATA_MIRROR to a place that holds it."
    )


def archived(path: Path) -> list[tuple[str, bytes]]:
    """Names and contents of the files in a .tar.gz, sorted by name; nothing is unpacked to the disk."""
    with tarfile.open(path) as archive:
        return sorted((member.name, archive.extractfile(member).read()) for member in archive if member.isfile())


def archive_digest(path: Path) -> str:
    """sha256 over the names and contents of the files in a .tar.gz, whoever packed it."""
    digest = hashlib.sha256()
    for name, content in archived(path):
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def gunzipped_digest(path: Path) -> str:
    """sha256 of the content of a .gz file, whoever packed it."""
    return hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, plain or gzipped, UTF-8, without their ends."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [line.strip() for line in lines]
