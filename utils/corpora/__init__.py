"""Real and generated data: download with checksum, tokenise, pad, bucket, batch."""

from utils.corpora.batches import (
    BucketedPairs,
    BucketedTexts,
    Seq2SeqBatch,
    TextBatch,
    buckets,
    seq2seq_batch,
    text_batch,
)
from utils.corpora.download import CACHE, Corpus, DownloadError, fetch, read_lines
from utils.corpora.multi30k import MULTI30K, load_multi30k
from utils.corpora.number_words import number_words
from utils.corpora.tokens import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, encode, pad, train_tokenizer

__all__ = [
    "BOS",
    "CACHE",
    "EOS",
    "MULTI30K",
    "PAD",
    "SPECIAL_TOKENS",
    "UNK",
    "BucketedPairs",
    "BucketedTexts",
    "Corpus",
    "DownloadError",
    "Seq2SeqBatch",
    "TextBatch",
    "buckets",
    "encode",
    "fetch",
    "load_multi30k",
    "number_words",
    "pad",
    "read_lines",
    "seq2seq_batch",
    "text_batch",
    "train_tokenizer",
]
