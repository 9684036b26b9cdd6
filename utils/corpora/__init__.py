"""Real and generated data: download with checksum, tokenise, pad, bucket, batch."""

from utils.corpora.aeslc import AESLC, load_aeslc
from utils.corpora.appointments import appointments
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
from utils.corpora.tokens import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, encode, pad, train_tokenizer

__all__ = [
    "AESLC",
    "BOS",
    "CACHE",
    "CLASSES",
    "EOS",
    "FASHION_MNIST",
    "FASHION_NAMES",
    "FIRST_LEVEL",
    "MULTI30K",
    "PAD",
    "SPECIAL_TOKENS",
    "UNK",
    "BucketedPairs",
    "BucketedTexts",
    "Corpus",
    "DownloadError",
    "ImageBatches",
    "Images",
    "Seq2SeqBatch",
    "TextBatch",
    "appointments",
    "buckets",
    "digit_images",
    "encode",
    "fetch",
    "grey_images",
    "image_tokens",
    "image_vocabulary",
    "load_aeslc",
    "load_fashion_mnist",
    "load_multi30k",
    "number_words",
    "pad",
    "read_lines",
    "seq2seq_batch",
    "text_batch",
    "train_tokenizer",
]
