"""How the audit runs a model: views of it, its modes, the token ids it is fed, and its noise."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from utils.audit.report import Finding

Forward = Callable[[Tensor, Tensor], Tensor]
FACTOR = 10  # a difference counts when it is this many times the noise
FILL = -100  # a score that is always the same, and this low, forbids a token of the vocabulary


@dataclass(frozen=True)
class View:
    """One way to look at a model: tokens go in, outputs come out, and `allowed` says which output may see which token.

    In an aligned view output i belongs to token i (a decoder, an encoder). In a view of the source of a
    translation model the outputs belong to the target, `queries` of them.
    """

    name: str
    forward: Forward  # (tokens Int[B, L], valid Bool[B, L]) -> Float[B, Lq, *]
    allowed: Callable[[int], Tensor]  # L -> Bool[Lq, L]
    ids: Int[Tensor, " N"]  # ordinary token ids
    sides: tuple[str, ...]
    queries: int | None = None  # None: aligned
    leak_rule: str = "future-leak"
    lengths: tuple[int, ...] = ()
    padded: bool = True  # is there a padding mask to be tested?
    gaps: bool = False  # may padding stand anywhere?
    empty: bool = True  # may a sample be nothing but padding?
    packing: tuple[Forward, Forward] | None = None  # (tokens, segments) of packed documents, and one document alone

    def real(self, valid: Bool[Tensor, " L"]) -> Tensor:
        """Which outputs count, Bool[Lq]: those of real tokens; all, when the outputs belong to other tokens."""
        return valid if self.queries is None else torch.ones(self.queries, dtype=torch.bool, device=valid.device)


@dataclass(frozen=True)
class Mode:
    """A way to run: `training` None leaves the module alone; `double` converts it to float64 for the time."""

    name: str
    training: bool | None
    grad: bool
    double: bool = False
    variant: str | None = None  # the name of another forward that should give the same


def modes_of(module: nn.Module | None, variants: Sequence[str] = ()) -> list[Mode]:
    """Every mode worth a visit: fused kernels run only in eval without grad, dropout and norms change in train."""
    if module is None:
        known = [Mode("grad", None, True), Mode("no_grad", None, False)]
    else:
        known = [Mode("train", True, True), Mode("eval", False, True), Mode("eval no_grad", False, False)]
        known += [Mode("eval float64", False, False, double=True)]
    plain = next(mode for mode in known if not mode.grad)
    return known + [Mode(f"{plain.name} {name}", plain.training, False, variant=name) for name in variants]


@contextmanager
def entered(mode: Mode, module: nn.Module | None) -> Iterator[None]:
    """Put `module` into `mode`, and put it back afterwards exactly as it was, buffers and random state included."""
    tensors = [] if module is None else [*module.parameters(), *module.buffers()]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices={tensor.device for tensor in tensors if tensor.is_cuda}))
        stack.enter_context(torch.set_grad_enabled(mode.grad))
        if mode.double:  # the fused kernel of the CPU misreads a float32 mask that comes with float64 queries
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if module is not None:
            for owner in module.modules():
                stack.callback(setattr, owner, "training", owner.training)
            for tensor in tensors:
                stack.callback(setattr, tensor, "data", tensor.data)
                if mode.double and tensor.is_floating_point():
                    tensor.data = tensor.data.double()
            for buffer in module.buffers():
                buffer.data = buffer.data.clone()  # BatchNorm writes into its buffers
            module.train(bool(mode.training))
            _silence_dropout(module, stack)
            if mode.training:  # the compiler does not take in what follows; eval runs as it was compiled
                stack.enter_context(torch.compiler.set_stance("force_eager"))
                stack.enter_context(NoDropout())
        yield


def _silence_dropout(module: nn.Module, stack: ExitStack) -> None:
    """Set every dropout rate to 0: nn.Dropout's p, and floats named …drop… of modules and of Hugging Face configs."""
    configs = {id(c): c for m in module.modules() if (c := vars(m).get("config")) is not None and hasattr(c, "to_dict")}
    for owner in (*module.modules(), *configs.values()):
        for name, value in list(vars(owner).items()):
            is_rate = "drop" in name or (name == "p" and isinstance(owner, nn.modules.dropout._DropoutNd))
            if is_rate and isinstance(value, float):
                stack.callback(setattr, owner, name, value)
                setattr(owner, name, 0.0)


class EmbeddingTap(TorchFunctionMode):
    """Catch the embedded tokens on their way into the model, as leaves that collect a gradient at each place."""

    def __init__(self, tokens: Int[Tensor, "B L"]) -> None:
        super().__init__()
        self.tokens = tokens
        self.leaves: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Pass every call on; a lookup of exactly our tokens is replaced by a leaf of the same value."""
        out = func(*args, **(kwargs or {}))
        if func is F.embedding and args[0].shape == self.tokens.shape and torch.equal(args[0], self.tokens):
            self.leaves.append(out.detach().requires_grad_())
            return self.leaves[-1].clone()  # some models write into what they looked up; a leaf does not bear that
        return out


PRODUCTS = {"matmul", "__matmul__", "bmm", "einsum", "linear", "softmax", "scaled_dot_product_attention"}


class PrecisionWatch(TorchFunctionMode):
    """Note the coarsest rounding among the results inside a model: under autocast its output may hide it.

    `eps` is that of all results, `eps_of_products` that of sums over many numbers: a mask in float32 rounds nothing.
    """

    eps = eps_of_products = 0.0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Pass every call on and look at what comes back."""
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point():
            eps = torch.finfo(out.dtype).eps
            self.eps = max(self.eps, eps)
            if getattr(func, "__name__", "") in PRODUCTS:
                self.eps_of_products = max(self.eps_of_products, eps)
        return out


class NoDropout(TorchFunctionMode):
    """Dropout that a forward asks for with a rate of its own, F.dropout(x, 0.1, self.training), drops nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Pass every call on, with a rate of 0 where there is one."""
        kwargs = dict(kwargs or {})
        if func is F.dropout:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            args, kwargs = args[:4], dict(zip(("dropout_p", "is_causal"), args[4:], strict=False)) | kwargs
            kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


@dataclass
class Bench:
    """What the probes share in one mode: random tokens, runs of the model, and the noise to judge them by."""

    mode: Mode
    generator: torch.Generator
    convertible: nn.Module | None = None  # the module, if it can be run in float64
    noise: float = 0.0
    eps: float = 0.0
    fills: dict[str, Tensor] = field(default_factory=dict)  # for each view, Bool[D]
    bad: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def limit(self) -> float:
        """A difference above this counts."""
        return FACTOR * self.noise

    def draw(self, view: View, batch: int, length: int) -> Int[Tensor, "B L"]:
        """Ordinary tokens, each at most once in a row if there are enough of them."""
        order = torch.rand(batch, max(len(view.ids), length), generator=self.generator).argsort(dim=1)
        return view.ids[order[:, :length].to(view.ids.device) % len(view.ids)]

    def change(self, view: View, tokens: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Another ordinary token at every place."""
        shift = torch.randint(1, len(view.ids), tokens.shape, generator=self.generator).to(tokens.device)
        return view.ids[(torch.searchsorted(view.ids, tokens) + shift) % len(view.ids)]

    def run(self, view: View, tokens: Int[Tensor, "B L"], valid: Tensor | None = None) -> Float[Tensor, "B Lq D"]:
        """The outputs in float64, without a graph. NaN and infinite values become a finding and then 0."""
        valid = torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid
        out = self.raw(view, tokens, valid).detach().double()
        if not (finite := out.isfinite().all(dim=-1)).all():
            sample, query = (~finite).nonzero()[0].tolist()
            kind = "padded" if view.queries is None and not valid[sample, query] else "real"
            padding = "" if valid.all() else f", {int((~valid[sample]).sum())} of {valid.shape[1]} places padded"
            where = f"{view.name}: output {query} ({kind} position{padding})"
            self.bad.append(Finding("not-finite", where, size=float("inf"), modes=(self.mode.name,)))
        return out.nan_to_num(0.0, 0.0, 0.0)

    def raw(self, view: View, tokens: Int[Tensor, "B L"], valid: Bool[Tensor, "B L"]) -> Float[Tensor, "B Lq D"]:
        """The outputs as they come, [B, Lq, everything else].

        Raises TypeError if they are no floating-point tensor, ValueError if their shape does not fit the tokens.
        """
        try:
            out = view.forward(tokens.clone(), valid.clone())  # some models write into what they are given
        except Exception as error:
            empty = ", one sample all padding" * bool((~valid).all(dim=1).any())
            error.add_note(
                f"The audit had called forward with {view.name}s {list(tokens.shape)}, {int((~valid).sum())} of them "
                f"padding{empty}. If the model cannot take that, see the arguments vocab_size, lengths, sides, padded, "
                "gaps and empty_samples of the audit."
            )
            raise
        if not isinstance(out, Tensor) or not out.is_floating_point():
            got = f"a tensor of {out.dtype}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise TypeError(f"forward returned {got}; expected one floating-point tensor [B, L, *]: logits or states.")
        wanted = (len(tokens), tokens.shape[1] if view.queries is None else view.queries)
        if out.ndim < 2 or out.shape[:2] != wanted:
            raise ValueError(
                f"forward returned shape {list(out.shape)} for {view.name}s {list(tokens.shape)}; expected "
                f"[{wanted[0]}, {wanted[1]}, *]: one output for each place. "
                "Batch first? Return states, not a pooled vector."
            )
        return self.without_fills(view, out.flatten(2) if out.ndim > 2 else out.unsqueeze(2))

    def without_fills(self, view: View, out: Float[Tensor, "B Lq D"]) -> Float[Tensor, "B Lq D"]:
        """The outputs with 0 for every score that is always the same low one.

        There -inf is no fault, and the rounding of -1e9 would hide every leak.
        """
        return out.masked_fill(self.fills[view.name], 0.0) if view.name in self.fills else out

    def find_fills(self, view: View, tokens: Int[Tensor, "B L"]) -> None:
        """Learn which scores are the same low number for all tokens."""
        out = self.raw(view, tokens, torch.ones_like(tokens, dtype=torch.bool)).detach()
        self.fills[view.name] = (out == out[:1, :1]).all(dim=0).all(dim=0) & (out[0, 0] <= FILL)

    def doubled(self) -> "Bench":
        """The same model in float64, to be run inside of `entered(bench.mode, bench.convertible)`."""
        mode, eps = replace(self.mode, double=True), torch.finfo(torch.float64).eps
        return replace(self, mode=mode, noise=self.noise * eps / self.eps, eps=eps, bad=[])

    def measure_noise(self, view: View) -> float:
        """Set `noise`: how much another batch size moves the output; at least one rounding.

        Returns the largest difference of equal runs, which should be 0.
        """
        tokens = self.draw(view, 1, view.lengths[len(view.lengths) // 2])
        # Many different tokens: a random choice that few of them meet (a router that samples) passes a few by luck.
        mixed = self.draw(view, 32, min(max(view.lengths), 12))
        self.find_fills(view, mixed)
        many = tokens.repeat(7, 1)
        valid = torch.ones_like(many, dtype=torch.bool)
        with torch.compiler.set_stance("force_eager"), PrecisionWatch() as watch:  # compiled code shows no results
            outputs = self.raw(view, many, valid).detach()
        # A model in float64 may hold a float32 mask, which does not round its outputs; float32 attention does.
        self.eps = max(torch.finfo(outputs.dtype).eps, watch.eps_of_products) if self.mode.double else watch.eps
        alone, first = self.run(view, tokens), outputs.double().nan_to_num(0, 0, 0)
        scale = first.abs().max().item()
        # What moves far more than rounding does is a bug of its own, and must not hide behind the noise it makes.
        moved = max((first - alone).abs().max().item(), (first - first[:1]).abs().max().item())
        self.noise = max(self.noise, self.eps * scale, min(moved, 50 * self.eps * scale))
        first = self.run(view, mixed)
        return max((first - self.run(view, mixed)).abs().max().item() for _ in range(3))


def ordinary_ids(vocab_size: int, special_ids: Sequence[int], device: torch.device | str | None) -> Int[Tensor, " N"]:
    """The token ids to draw from: no special id, and not the first four either if there are enough others.

    Padding and markers live among the first ids as a rule; a model may treat them differently and hide a leak.
    Raises ValueError if fewer than 4 are left.
    """
    ids = [i for i in range(vocab_size) if i not in set(special_ids)]
    ids = [i for i in ids if i >= 4] if len(ids) >= 16 else ids
    if len(ids) < 4:
        raise ValueError(
            f"vocab_size {vocab_size} leaves {len(ids)} ordinary token ids beside the special ones; the audit changes "
            "tokens to see what follows and needs at least 4. Build the model with a larger vocabulary."
        )
    return torch.tensor(ids, device=device)


def bears_double(forward: Callable[[], Tensor], module: nn.Module) -> bool:
    """Does the module give finite float64 outputs when it is converted? Some keep float32 parts and fail."""
    try:
        with entered(Mode("eval float64", False, False, double=True), module):
            out = forward()
            return out.dtype == torch.float64 and bool((out < torch.inf).all())  # and no NaN; -inf may be a fill
    except (RuntimeError, TypeError, ValueError):
        return False
