"""Real and generated data: download with checksum, tokenise, pad, bucket, batch."""

from utils.corpora.aeslc import AESLC, load_aeslc
from utils.corpora.appointments import appointments
from utils.corpora.batches import (
    BucketedPairs,
    BucketedTexts,
    CopyingFirst,
    PackedBatch,
    Seq2SeqBatch,
    TextBatch,
    buckets,
    packed_batch,
    seq2seq_batch,
    text_batch,
)
from utils.corpora.dialogues import BOT, SPEAKERS, USER, dialogue_tokens, dialogue_windows, encode_turns, latest
from utils.corpora.download import CACHE, Corpus, DownloadError, fetch, read_lines
from utils.corpora.images import (
    CLASSES,
    FASHION_MNIST,
    FASHION_NAMES,
    FIRST_LEVEL,
    ImageBatches,
    Images,
    digit_images,
    grey_images,
    image_tokens,
    image_vocabulary,
    load_fashion_mnist,
)
from utils.corpora.multi30k import MULTI30K, load_multi30k
from utils.corpora.number_words import number_words
from utils.corpora.restaurant import bookings
from utils.corpora.schema_guided import SCHEMA_GUIDED, load_schema_guided
from utils.corpora.tokens import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, encode, pad, train_tokenizer

__all__ = [
    "AESLC",
    "BOS",
    "BOT",
    "CACHE",
    "CLASSES",
    "EOS",
    "FASHION_MNIST",
    "FASHION_NAMES",
    "FIRST_LEVEL",
    "MULTI30K",
    "PAD",
    "SCHEMA_GUIDED",
    "SPEAKERS",
    "SPECIAL_TOKENS",
    "UNK",
    "USER",
    "BucketedPairs",
    "BucketedTexts",
    "CopyingFirst",
    "Corpus",
    "DownloadError",
    "ImageBatches",
    "Images",
    "PackedBatch",
    "Seq2SeqBatch",
    "TextBatch",
    "appointments",
    "bookings",
    "buckets",
    "dialogue_tokens",
    "dialogue_windows",
    "digit_images",
    "encode",
    "encode_turns",
    "fetch",
    "grey_images",
    "image_tokens",
    "image_vocabulary",
    "latest",
    "load_aeslc",
    "load_fashion_mnist",
    "load_multi30k",
    "load_schema_guided",
    "number_words",
    "packed_batch",
    "pad",
    "read_lines",
    "seq2seq_batch",
    "text_batch",
    "train_tokenizer",
]
