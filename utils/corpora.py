"""Real and generated text: download with checksum, tokenise, pad, bucket, batch."""

import gzip
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pooch
import requests
import torch
from jaxtyping import Bool, Int
from num2words import num2words
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

PAD, BOS, EOS, UNK = range(4)
SPECIAL_TOKENS = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]  # in the order of their ids
CACHE = Path(__file__).resolve().parent.parent / "data" / "cache"


class Corpus(NamedTuple):
    """Where a corpus is published, and the sha256 of each of its files."""

    name: str
    url: str
    digests: dict[str, str]


MULTI30K = Corpus(
    "multi30k",
    "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/",
    {
        "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
        "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
        "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
        "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
        "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
        "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    },
)


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


def load_multi30k(split: str, languages: Sequence[str], *, folder: Path | None = None) -> list[list[str]]:
    """Descriptions of pictures, line by line the same in each language (Elliott et al., 2016).

    `split` is train (29,000 lines), val (1,014) or test_2016_flickr (1,000); `languages` are of en and de.
    The files come from `folder` if it is given, and are downloaded otherwise. Returns one list for each language.
    """
    names = [f"{split}.{language}.gz" for language in languages]
    if unknown := [name for name in names if name not in MULTI30K.digests]:
        raise ValueError(f"Multi30k has no {unknown}; known files: {sorted(MULTI30K.digests)}.")
    sides = [read_lines(Path(folder) / name if folder else fetch(MULTI30K, name)) for name in names]
    if len({len(side) for side in sides}) != 1:
        raise ValueError(f"{names} have {[len(side) for side in sides]} lines; parallel texts have equally many.")
    return sides


def number_words(count: int, *, below: int = 1_000_000, seed: int = 0) -> tuple[list[str], list[str]]:
    """`count` different random numbers below `below`, in English and in German words.

    German turns the last two digits round: twenty-one is einundzwanzig, "one and twenty".
    The same seed gives the same numbers, and a larger count only adds to them.
    """
    if not 0 < count <= below:
        raise ValueError(f"count = {count}; there are only {below} different numbers below {below}.")
    numbers = random.Random(seed).sample(range(below), below)[:count]
    pairs = [(num2words(n, lang="en"), num2words(n, lang="de")) for n in tqdm(numbers, desc="number words")]
    english, german = zip(*pairs, strict=True)
    return list(english), list(german)


def train_tokenizer(lines: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-pair encoding (Sennrich et al., 2016) of lower-cased text with ids 0-3 for the special tokens.

    One tokenizer for source and target together: names and numbers then keep their pieces in both languages.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    spaces = [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]  # "▁a ▁man ." decodes to "a man."
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(spaces)
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, lines: Sequence[str], *, bos: bool = False) -> list[list[int]]:
    """Token ids of each line, [EOS] behind it and, if asked, [BOS] in front."""
    start = [BOS] if bos else []
    return [start + encoding.ids + [EOS] for encoding in tokenizer.encode_batch(list(lines))]


def pad(sequences: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Fill up on the right to the longest sequence: (tokens, valid), valid = True for real tokens.

    The flags come from the lengths, never from comparing ids with PAD: so no token is lost if an id is used twice.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    tokens = pad_sequence([torch.tensor(sequence) for sequence in sequences], batch_first=True, padding_value=PAD)
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]


class Seq2SeqBatch(NamedTuple):
    """Padded sources and targets with the flags of their real tokens; a target runs from [BOS] to [EOS]."""

    src: Int[Tensor, "B Ls"]
    src_valid: Bool[Tensor, "B Ls"]
    tgt: Int[Tensor, "B Lt"]
    tgt_valid: Bool[Tensor, "B Lt"]

    def to(self, device: torch.device | str) -> "Seq2SeqBatch":
        """The same batch on another device."""
        return Seq2SeqBatch(*(tensor.to(device) for tensor in self))


def seq2seq_batch(sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Seq2SeqBatch:
    """Pad token ids of sources and targets into one batch."""
    return Seq2SeqBatch(*pad(sources), *pad(targets))


def buckets(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Group indices by length, so that a group times its longest length stays within `max_tokens`.

    Neighbours in length share a batch: little padding, and as many sentences as the token budget allows.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[index] > max_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


class BucketedPairs:
    """Sentence pairs in length-bucketed batches: `pairs(epoch)` gives the batches of an epoch in their order.

    `sources` and `targets` are token ids, `max_tokens` bounds sentences times tokens on the longer side. The order
    depends only on `seed` and `epoch`, so that training can resume in the middle of an epoch.
    """

    def __init__(self, sources: list[list[int]], targets: list[list[int]], *, max_tokens: int, seed: int = 0) -> None:
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} sources and {len(targets)} targets; expected equally many.")
        self.sources, self.targets = sources, targets
        self.max_tokens, self.seed = max_tokens, seed

    def __call__(self, epoch: int) -> Iterator[Seq2SeqBatch]:
        """The batches of one epoch, in random order."""
        shuffle = random.Random(f"{self.seed}-{epoch}")
        pairs = list(zip(self.sources, self.targets, strict=True))
        shuffle.shuffle(pairs)  # sorting is stable: pairs of equal length meet other partners in each epoch
        groups = list(buckets([max(len(source), len(target)) for source, target in pairs], self.max_tokens))
        shuffle.shuffle(groups)
        for group in groups:
            yield seq2seq_batch(*zip(*(pairs[index] for index in group), strict=True))
