"""Multi30k: descriptions of photographs in English, German and French (Elliott et al., 2016, 2017)."""

from collections.abc import Sequence
from pathlib import Path

from utils.corpora.download import Corpus, fetch, read_lines

MULTI30K = Corpus(
    "multi30k",
    "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/",
    {
        "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
        "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
        "train.fr.gz": "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c",
        "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
        "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
        "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
        "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    },
)


def load_multi30k(split: str, languages: Sequence[str], *, folder: Path | None = None) -> list[list[str]]:
    """Descriptions of pictures, line by line the same in each language (Elliott et al., 2016).

    `split` is train (29,000 lines), val (1,014) or test_2016_flickr (1,000); `languages` are of en and de, in train
    also of fr (Elliott et al., 2017).
    The files come from `folder` if it is given, and are downloaded otherwise. Returns one list for each language.
    """
    names = [f"{split}.{language}.gz" for language in languages]
    if unknown := [name for name in names if name not in MULTI30K.digests]:
        raise ValueError(f"Multi30k has no {unknown}; known files: {sorted(MULTI30K.digests)}.")
    sides = [read_lines(Path(folder) / name if folder else fetch(MULTI30K, name)) for name in names]
    if len({len(side) for side in sides}) != 1:
        raise ValueError(f"{names} have {[len(side) for side in sides]} lines; parallel texts have equally many.")
    return sides
