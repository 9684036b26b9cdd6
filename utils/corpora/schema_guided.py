"""Schema-Guided Dialogue: people and assistants who book, look up and order (Rastogi et al., 2020)."""

import json
from pathlib import Path

from tqdm.auto import tqdm

from utils.corpora.download import Corpus, fetch

_COMMIT = "e852981ae34990f4358979625854259302feaa78"

SCHEMA_GUIDED = Corpus(
    "sgd",
    f"https://raw.githubusercontent.com/google-research-datasets/dstc8-schema-guided-dialogue/{_COMMIT}/",
    {
        "train/dialogues_001.json": "5ce28a6e656bc88c1da29c983d243d5a81eb37de92698da3864d1cf02894ca24",
        "train/dialogues_002.json": "56a06f9762593b27f5b34225de4ce37da5e83c9c5747e56bca2899f147d88b3e",
        "train/dialogues_003.json": "aae3d8d141c8c36bc5268ca573044b4e82d4534947c169d951a1f229b9852029",
        "train/dialogues_004.json": "4f4aa821e01d7d9efd44c2e89264d37e428045e7058bf3b3c6be0eaec09eddce",
        "train/dialogues_005.json": "e19563efc34dead580435331d39ec3183c79230fa361b2e2d79035af242dd90b",
        "train/dialogues_006.json": "6b4829cb18185f063b81d271b847aa6915ef970cb592a2366edbec56d4b4c746",
        "train/dialogues_007.json": "59adf47264e106df1ce4a59d2c88e95b5a12497e6f5e3e5464381c2a7526837c",
        "train/dialogues_008.json": "36614c125ce310dd162b62d624b8bcd117053cf727978458b6c36b6592f6e757",
        "train/dialogues_009.json": "d8cc086374bbce168a03169341687eaa9f886fe25f8b8dd5bd6832f6f441951d",
        "train/dialogues_010.json": "d8658cd35bd4b6d274720d14308ec721f238d70cc37ea947c38f9d83a0267c1b",
        "dev/dialogues_001.json": "fe3a8ed9e160c15e20e7cfd16d03734b4473df0d3864f2ad687ea9eeee5eea52",
        "dev/dialogues_002.json": "fcbc8ba411ed8b3e0b06dff31819dc366f6bc6d228e021053920365e11004b03",
        "dev/dialogues_003.json": "5915cea36b77de920fbd66569333db2395626ec465ba23e2f0caa77fba2e5dae",
        "test/dialogues_001.json": "1fa13b0fe607100bc66ed15e0490df9c52a2cec087ca9733e0f506755eef0ada",
        "test/dialogues_002.json": "b3b2a2596fad9146e96e4e1aa288f975332e2c7a3153bb2379d75e8d71c35a20",
        "test/dialogues_003.json": "b595a04f7848aed76d11e82250089023e42a6e5ce047c78b8ddd0f4856dcbecb",
    },
)


def load_schema_guided(split: str, *, folder: Path | None = None) -> list[list[str]]:
    """Dialogues as lists of turns, user and assistant in turn (Rastogi et al., 2020).

    `split` is train (the first 10 files of the corpus, 1,280 dialogues), dev (3 files, 384) or test (3 files, 384);
    no service of these files of dev or test occurs in those of train. The files come from `folder` if it is given, and
    are downloaded otherwise, one after the other: after a break only the missing ones. Of each file only the words
    are kept, a twentieth; its annotations are dropped before the next one is read.
    """
    names = [name for name in SCHEMA_GUIDED.digests if name.startswith(f"{split}/")]
    if not names:
        raise ValueError(f"Schema-Guided Dialogue has no {split!r}; its splits are train, dev and test.")
    dialogues: list[list[str]] = []
    for name in tqdm(names, desc=f"Schema-Guided Dialogue, {split}"):
        dialogues += _parsed(Path(folder) / name if folder else fetch(SCHEMA_GUIDED, name))
    return dialogues


def _parsed(path: Path) -> list[list[str]]:
    """The turns of each dialogue in a file; runs of blanks become one."""
    dialogues = json.loads(path.read_text(encoding="utf-8"))
    for dialogue in dialogues:
        speakers = [turn["speaker"] for turn in dialogue["turns"]]
        if speakers != ["USER", "SYSTEM"] * (len(speakers) // 2):
            raise ValueError(f"{path.name}, {dialogue['dialogue_id']}: the speakers do not alternate, user first.")
    return [[" ".join(turn["utterance"].split()) for turn in dialogue["turns"]] for dialogue in dialogues]
