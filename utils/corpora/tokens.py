"""Text to token ids, and ids to padded tensors with the flags of the real tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PAD, BOS, EOS, UNK = range(4)
SPECIAL_TOKENS = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]  # in the order of their ids


def train_tokenizer(lines: Sequence[str], vocab_size: int, *, markers: Sequence[str] = ()) -> Tokenizer:
    """A byte-pair encoding (Sennrich et al., 2016) of lower-cased text with ids 0-3 for the special tokens.

    `markers` are special tokens of a task, for example of the speakers in a dialogue; they get the ids from 4 on.
    One tokenizer for source and target together: names and numbers then keep their pieces in both languages.

    Raises ValueError if the lines have more different signs than `vocab_size` leaves room for.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    spaces = [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]  # "▁a ▁man ." decodes to "a man."
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(spaces)
    tokenizer.decoder = decoders.Metaspace()
    special = [*SPECIAL_TOKENS, *markers]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    if (size := tokenizer.get_vocab_size()) > vocab_size:
        raise ValueError(f"vocab_size is {vocab_size}, but the signs of these lines alone make {size} pieces.")
    return tokenizer


def encode(
    tokenizer: Tokenizer, lines: Sequence[str], *, bos: bool = False, limit: int | None = None
) -> list[list[int]]:
    """Token ids of each line, [EOS] behind it and, if asked, [BOS] in front.

    With `limit`, only the first `limit` pieces of a line are kept. Text is lower-cased before it is read, so nobody can
    write a special token: "[EOS]" becomes plain pieces.

    Raises TypeError for one string in place of the lines: each of its letters would be a line.
    """
    if isinstance(lines, str):
        raise TypeError("lines is one string; expected a list of them: [line].")
    start = [BOS] if bos else []
    encodings = tokenizer.encode_batch([line.lower() for line in lines])
    return [start + encoding.ids[:limit] + [EOS] for encoding in encodings]


def pad(sequences: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Fill up on the right to the longest sequence: (tokens, valid), valid = True for real tokens.

    The flags come from the lengths, never from comparing ids with PAD: so no token is lost if an id is used twice.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    tokens = pad_sequence(rows, batch_first=True, padding_value=PAD)
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]
