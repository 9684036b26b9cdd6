"""A loss that ignores padding, one training loop, its history, and checkpoints."""

import ctypes
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from utils.corpora import Seq2SeqBatch, TextBatch
from utils.transformer import DecoderOnly, Transformer, TransformerConfig, decoder_only_mask, seq2seq_masks

CHECKPOINTS = Path(__file__).resolve().parents[1] / "data" / "checkpoints"
SECONDS_BETWEEN_SAVES = 60
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
# Without cuDNN: it plans anew for each shape, and gradients under a mask were NaN (pytorch issue 196678).
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

Model = Transformer | DecoderOnly
KINDS = {kind.__name__: kind for kind in (Transformer, DecoderOnly)}
Loss = Callable[[nn.Module, Any], tuple[Tensor, int]]


def token_loss(
    logits: Float[Tensor, "B L V"],
    labels: Int[Tensor, "B L"],
    valid: Bool[Tensor, "B L"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, over the real labels: the padding mask's second place of work.

    Label smoothing as in Vaswani et al. (2017), section 5.4.
    """
    ignored = -100  # no token id; cheaper than logits[valid], which would copy the logits and their gradient
    labels = labels.masked_fill(~valid, ignored)
    logits = logits.flatten(0, 1).float()  # autocast on a GPU leaves the logarithms in half precision
    return F.cross_entropy(logits, labels.flatten(), ignore_index=ignored, label_smoothing=label_smoothing)


def teacher_forced(model: Transformer, batch: Seq2SeqBatch) -> Float[Tensor, "B L V"]:
    """The logits of each next token. The model reads the right target, whatever it would have written itself."""
    masks = seq2seq_masks(batch.src_valid, batch.tgt_valid[:, :-1])
    return model(batch.src, batch.tgt[:, :-1], masks)[0]


def seq2seq_loss(model: Transformer, batch: Seq2SeqBatch, *, label_smoothing: float = 0.1) -> tuple[Tensor, int]:
    """Teacher forcing: from the target up to token t predict token t + 1. Returns (loss, number of labels)."""
    logits = teacher_forced(model, batch)
    labels, labels_valid = batch.tgt[:, 1:], batch.tgt_valid[:, 1:]
    return token_loss(logits, labels, labels_valid, label_smoothing=label_smoothing), int(labels_valid.sum())


def language_loss(
    model: DecoderOnly, batch: TextBatch, *, mask: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, int]:
    """From the text up to token t predict token t + 1, if that one is scored. Returns (loss, number of labels).

    `mask` over all tokens but the last takes the place of `decoder_only_mask`, which None means here, and only here:
    one [1, 1, L - 1, L - 1] is enough where no text is padded, and full_mask(L - 1) shows every key.
    """
    mask = decoder_only_mask(batch.valid[:, :-1]) if mask is None else mask
    logits, _ = model(batch.tokens[:, :-1], mask)
    return next_token_loss(logits, batch, label_smoothing=label_smoothing)


def next_token_loss(
    logits: Float[Tensor, "B L V"], batch: TextBatch, *, label_smoothing: float = 0.0
) -> tuple[Tensor, int]:
    """The loss of logits over all tokens of a text but the last. Returns (loss, number of labels)."""
    labels, scored = batch.tokens[:, 1:], batch.scored[:, 1:]
    return token_loss(logits, labels, scored, label_smoothing=label_smoothing), int(scored.sum())


@torch.no_grad()
def mean_loss(model: nn.Module, loss_of: Loss, batches: Iterable[Any]) -> float:
    """The loss over all labels of all batches, in nats a label, without dropout. Divide by log 2 for bits.

    The model stays in eval mode.

    Raises ValueError if there is no label.
    """
    model.eval()
    total = labels = 0
    for batch in batches:
        loss, count = loss_of(model, batch.to(next(model.parameters()).device))
        if count:  # the mean over no labels is NaN
            total, labels = total + loss.item() * count, labels + count
    if not labels:
        raise ValueError("there is no label in these batches; expected at least one to take the mean over.")
    return total / labels


@dataclass
class History:
    """What a training run did: the loss of every step in nats a token, labels seen, seconds, place in the data."""

    losses: list[float] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    epoch: int = 0
    batch: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Labels seen in a second of training."""
        return self.tokens / self.seconds


def mixed_precision(device: torch.device) -> torch.dtype | None:
    """bfloat16 on a GPU that computes in it, float16 on an older one, None (float32) on a CPU."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


class _Run:
    """A training run under way: model, optimizer and history, which are saved and resumed together."""

    def __init__(self, model: nn.Module, settings: Mapping[str, Any]) -> None:
        size = {"model": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}
        self.settings = json.loads(json.dumps(size | dict(settings)))  # as they come back from a file
        self.model, self.history, self.losses = model, History(), []
        self.device = next(model.parameters()).device
        self.precision = mixed_precision(self.device)
        self.optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision is torch.float16)

    def batches(self, batches_of: Callable[[int], Iterable[Any]]) -> Iterator[Any]:
        """All batches from here on, epoch after epoch; the place is kept in the history."""
        while True:
            for batch in islice(batches_of(self.history.epoch), self.history.batch, None):
                self.history.batch += 1
                yield batch.to(self.device)
            if not self.history.batch:
                raise ValueError(f"epoch {self.history.epoch} has no batch; expected at least one to train on.")
            self.history.epoch, self.history.batch = self.history.epoch + 1, 0

    def step(self, loss_of: Loss, batch: Any, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            loss, tokens = loss_of(self.model, batch)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.losses.append(loss.detach())  # not .item(): a GPU would wait for the whole step
        self.history.tokens += tokens
        self.history.steps += 1

    def collect_losses(self) -> float:
        """Move the losses since the last call into the history; returns the newest."""
        newest = torch.stack(self.losses).tolist()
        self.losses.clear()
        if bad := [number for number, loss in enumerate(newest) if not math.isfinite(loss)]:
            step = self.history.steps - len(newest) + bad[0] + 1
            raise FloatingPointError(
                f"the loss is {newest[bad[0]]} in step {step}. Usual causes: a dead "
                "row of a mask turned into NaN, a batch without any real label, or a learning rate that is too high."
            )
        self.history.losses += newest
        return newest[-1]

    def save(self, path: Path) -> None:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        tensors["random_state"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["cuda_random_state"] = torch.cuda.get_rng_state(self.device)
        notes = {"history": asdict(self.history), "scaler": self.scaler.state_dict(), "settings": self.settings}
        write_tensors(path, tensors, {name: json.dumps(note) for name, note in notes.items()})

    def resume(self, path: Path) -> None:
        tensors, notes = read_tensors(path)
        self.check_settings(path, json.loads(notes.get("settings", "{}")))
        self.history = History(**json.loads(notes["history"]))
        if scaler := json.loads(notes["scaler"]):  # empty if no float16 was trained in
            self.scaler.load_state_dict(scaler)
        self.model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
        optimizer = self.optimizer.state_dict()
        for name in (name for name in tensors if name.startswith("optimizer.")):
            _, index, key = name.split(".")
            optimizer["state"].setdefault(int(index), {})[key] = tensors[name]
        self.optimizer.load_state_dict(optimizer)
        torch.set_rng_state(tensors["random_state"])
        if self.device.type == "cuda" and "cuda_random_state" in tensors:
            torch.cuda.set_rng_state(tensors["cuda_random_state"], self.device)

    def check_settings(self, path: Path, begun: dict[str, Any]) -> None:
        names = sorted(self.settings.keys() | begun.keys())
        if other := [name for name in names if begun.get(name) != self.settings.get(name)]:
            changes = ", ".join(f"{name} {begun.get(name)!r} (now {self.settings.get(name)!r})" for name in other)
            raise ValueError(
                f"{path} is the state of a run with other settings: {changes}. Give the settings that it was begun "
                "with to go on, or delete the file to begin anew."
            )


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next ones, in the whole process; glibc (Linux) only.

    A step frees its logits and asks for as much again in the next one. By default glibc gives memory of this size back
    to the system, which clears every page before it hands it out anew; benchmarks/README.md has what that cost. The two
    settings are those of mallopt(3); an older glibc refuses more than 32 MiB for the second.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and any(mallopt(M_MMAP_THRESHOLD, size) for size in (2**30, 2**25)):
        mallopt(M_TRIM_THRESHOLD, 2**30)


def train(
    model: nn.Module,
    loss_of: Loss,
    batches_of: Callable[[int], Iterable[Any]],
    *,
    steps: int | None = None,
    minutes: float | None = None,
    learning_rate: float = 2e-3,
    warmup: float = 0.1,
    checkpoint: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    description: str = "training",
) -> History:
    """Train for a number of steps or of minutes: AdamW, gradients clipped to norm 1, mixed precision on a GPU.

    `loss_of(model, batch)` returns the mean loss and the number of its labels; `batches_of(epoch)` gives the batches of
    an epoch. The learning rate climbs from 0 to `learning_rate` over the `warmup` share of the budget, then falls in a
    line to 0; so the first step changes nothing. With `checkpoint`, the run is saved there once a minute and at its
    end, and a later call with the same arguments goes on where it stopped. `settings` names what else makes the run
    what it is (seed, data), for the same check. Seed with torch.manual_seed before building the model.

    Raises ValueError unless exactly one of `steps` and `minutes` is given, for a budget or a `warmup` of nothing, for
    an epoch without a batch, and when `checkpoint` was begun with other settings; FloatingPointError when the loss is
    no longer a finite number.
    """
    if (steps is None) == (minutes is None):
        raise ValueError(f"give steps or minutes, one of the two; got steps = {steps}, minutes = {minutes}.")
    if (size := minutes if steps is None else steps) <= 0 or not 0 < warmup < 1:
        raise ValueError(f"expected a budget above 0 and a warmup between 0 and 1; got {size} and {warmup}.")
    budget = {"steps": steps, "minutes": minutes, "learning_rate": learning_rate, "warmup": warmup}
    run = _Run(model.train(), {**(settings or {}), **budget})
    if checkpoint and Path(checkpoint).exists():
        run.resume(Path(checkpoint))
    if run.device.type == "cpu":
        keep_freed_memory()
    history, batches = run.history, run.batches(batches_of)
    started = saved = time.perf_counter() - history.seconds
    bar = tqdm(total=1.0, desc=description, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}")
    with bar, sdpa_kernel(KERNELS):
        while (share := history.steps / steps if steps else history.seconds / (60 * minutes)) < 1:
            run.step(loss_of, next(batches), learning_rate * min(share / warmup, (1 - share) / (1 - warmup)))
            history.seconds = time.perf_counter() - started
            if history.steps % 20 == 0:
                bar.set_postfix_str(f"loss {run.collect_losses():.3f}", refresh=False)
                bar.update(share - bar.n)
                if checkpoint and time.perf_counter() - saved > SECONDS_BETWEEN_SAVES:
                    run.save(Path(checkpoint))
                    saved = time.perf_counter()
        if run.losses:
            run.collect_losses()  # here a GPU has ended its last step
            history.seconds = time.perf_counter() - started
        bar.update(1 - bar.n)
    if checkpoint:
        run.save(Path(checkpoint))
    model.eval()
    return history


def write_tensors(path: Path, tensors: dict[str, Tensor], notes: dict[str, str] | None = None) -> None:
    """Write a safetensors file under a temporary name and rename it: a reader never meets half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    own = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}  # not shared
    save_file(own, temporary, notes)
    os.replace(temporary, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and notes of a safetensors file: numbers and text only, nothing in it is executed."""
    with safe_open(path, "pt") as file:
        # Copies: what still lies in the file keeps Windows from replacing it.
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def save_checkpoint(path: Path, model: Model, tokenizer: Tokenizer | None, record: dict[str, Any]) -> None:
    """Write trained weights in half precision to `path` (.safetensors), and beside it what a user of them needs.

    That is `record` with the kind and the sizes of the model as .json, and the tokenizer as .tokenizer.json.

    Raises ValueError for another name than .safetensors, TypeError for a model that `load_checkpoint` cannot build.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} cannot be told from the files beside it; give a name that ends in .safetensors.")
    if type(model).__name__ not in KINDS:
        raise TypeError(f"a {type(model).__name__} cannot be loaded again; expected {' or '.join(KINDS)}.")
    write_tensors(path, {name: value.half() for name, value in model.state_dict().items()})
    kind = {"model": type(model).__name__, "config": asdict(model.config)}
    record = kind | record | kind  # first in the file, and never those of an older model
    write_text(path.with_suffix(".json"), json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    pieces = path.with_suffix(".tokenizer.json")
    if tokenizer:
        write_text(pieces, tokenizer.to_str())
    else:
        pieces.unlink(missing_ok=True)  # that of an older model


def load_checkpoint(path: Path) -> tuple[Model, Tokenizer | None, dict[str, Any]]:
    """What `save_checkpoint` wrote: the model in float32 and eval mode, its tokenizer if it has one, its record.

    Raises FileNotFoundError if the file or its record is missing.
    """
    path = Path(path)
    for part in (path, path.with_suffix(".json")):
        if not part.exists():
            raise FileNotFoundError(f"{part} is missing; the shipped checkpoints lie in {CHECKPOINTS}.")
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    model = KINDS[record["model"]](TransformerConfig(**record["config"]))
    model.load_state_dict(read_tensors(path)[0])
    tokenizer = path.with_suffix(".tokenizer.json")
    return model.eval(), Tokenizer.from_file(str(tokenizer)) if tokenizer.exists() else None, record


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
