"""AESLC: business e-mails and their subject lines (Zhang and Tetreault, 2019)."""

from pathlib import Path

from utils.corpora.download import Corpus, archive_digest, archived, fetch

_COMMIT = "7afc087a1cc234d07121f0d4a2d87102ddceabc2"
_ARCHIVE = f"AESLC-{_COMMIT}.tar.gz"

AESLC = Corpus(
    "aeslc",
    "https://codeload.github.com/ryanzhumich/AESLC/tar.gz/",
    {_ARCHIVE: "f772b459b6ac10ca08722dc9cc8a4acc5b6fae7a5e2c173f9e0b8634445d0a96"},
    archive_digest,  # the host packs the archive on demand, and does not promise the same bytes for ever
    {_ARCHIVE: f"https://codeload.github.com/ryanzhumich/AESLC/tar.gz/{_COMMIT}"},
)


def load_aeslc(split: str, *, folder: Path | None = None) -> tuple[list[list[str]], list[str]]:
    """Bodies of e-mails, each as a list of its sentences, and their subject lines (Zhang and Tetreault, 2019).

    `split` is train (14,436 e-mails), dev (1,960) or test (1,906). The archive comes from `folder` if it is given,
    and is downloaded otherwise. Runs of blanks become one.
    """
    if split not in ("train", "dev", "test"):
        raise ValueError(f"AESLC has no {split!r}; its splits are train, dev and test.")
    files = archived(Path(folder) / _ARCHIVE if folder else fetch(AESLC, _ARCHIVE))
    mails = [content.decode() for name, content in files if f"/enron_subject_line/{split}/" in name]
    bodies, subjects = zip(*map(_parsed, mails), strict=True)
    return list(bodies), list(subjects)


def _parsed(mail: str) -> tuple[list[str], str]:
    """The sentences above the line @subject, and the subject; what annotators wrote (@ann0 …) is left out."""
    body, _, subject = mail.partition("@subject")
    sentences = [" ".join(line.split()) for line in body.splitlines()]
    return [line for line in sentences if line], " ".join(subject.partition("@ann0")[0].split())
