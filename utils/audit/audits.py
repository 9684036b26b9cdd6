"""The audits: build the views of a model, visit every mode, run every probe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from utils.audit import probes
from utils.audit.bench import Bench, Forward, View, bears_double, entered, modes_of, ordinary_ids
from utils.audit.report import Finding, Report, merge
from utils.masks import all_of, causal_mask, full_mask, segment_mask

LENGTHS = (*range(1, 13), 15, 16, 17, 31, 32, 33, 63, 64, 65)
SEGMENTS = (0, 0, 0, 1, 1, 1, 1, 2, 2)  # the documents of the packing probe


def audit_decoder(
    forward: Forward,
    *,
    vocab_size: int,
    module: nn.Module | None = None,
    step: Callable | None = None,
    packed: Callable[[Tensor, Tensor], Tensor] | None = None,
    variants: Mapping[str, Forward] | None = None,
    allowed: Callable[[int], Tensor] = causal_mask,
    sides: Sequence[str] = ("right", "left"),
    lengths: Sequence[int] = LENGTHS,
    special_ids: Sequence[int] = (),
    padded: bool = True,
    empty_samples: bool = True,
    seed: int = 0,
) -> Report:
    """Find the mask bugs of a model in which a token may depend only on itself and on what came before.

    forward    (tokens Int[B, L], valid Bool[B, L]) -> Float[B, L, *]; valid: True = real token
    module     the nn.Module inside `forward`: put through train (dropout off), eval and float64, then restored
    step       (new tokens Int[B, n], valid Bool[B, past + n], cache) -> (Float[B, n, *], cache); cache None at first
    packed     (tokens Int[B, L], segments Int[B, L]) -> Float[B, L, *]; documents packed into one row
    variants   other forwards that must give the same, by name: {"with weights": …}
    allowed    length -> Bool[L, L] or [1, 1, L, L], True = output i may depend on token j, over all layers
    sides      where padding may stand; lengths: sequence lengths to try, in tokens (other probes take up to 13)
    padded     False: the model takes no padding, `valid` is all True and the padding probes rest
    empty_samples  False: no sample is ever nothing but padding, so none is tried

    Raises TypeError or ValueError for a forward whose output does not fit, for a vocabulary that is too small, and
    for a model that is not deterministic in eval.
    """
    device = _device(module)
    ids = ordinary_ids(vocab_size, special_ids, device)

    def views(run: Forward) -> list[View]:
        main = View(
            "token", run, _square(allowed, device), ids, _sides(sides),
            lengths=_order(lengths), padded=padded, empty=empty_samples,
        )  # fmt: skip
        return [main, _packed_view(packed, main, device)] if packed else [main]

    return _audit(views, {"": forward, **(variants or {})}, module, step, seed)


def audit_encoder(
    forward: Forward,
    *,
    vocab_size: int,
    module: nn.Module | None = None,
    variants: Mapping[str, Forward] | None = None,
    allowed: Callable[[int], Tensor] = full_mask,
    sides: Sequence[str] = ("right",),
    lengths: Sequence[int] = LENGTHS,
    special_ids: Sequence[int] = (),
    padded: bool = True,
    empty_samples: bool = True,
    seed: int = 0,
) -> Report:
    """Find the mask bugs of a model in which every token may depend on every other: arguments of `audit_decoder`."""
    return audit_decoder(
        forward, vocab_size=vocab_size, module=module, variants=variants, allowed=allowed, sides=sides,
        lengths=lengths, special_ids=special_ids, padded=padded, empty_samples=empty_samples, seed=seed,
    )  # fmt: skip


def audit_seq2seq(
    forward: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    *,
    src_vocab_size: int,
    tgt_vocab_size: int,
    module: nn.Module | None = None,
    variants: Mapping[str, Callable] | None = None,
    sides: Sequence[str] = ("right",),
    gaps: bool = True,
    lengths: Sequence[int] = LENGTHS,
    special_ids: Sequence[int] = (),
    empty_samples: bool = True,
    seed: int = 0,
) -> Report:
    """Find the mask bugs of an encoder-decoder: the target is causal, and all of it sees all of the source.

    forward    (src Int[B, Ls], src_valid Bool[B, Ls], tgt Int[B, Lt], tgt_valid Bool[B, Lt]) -> Float[B, Lt, *]
    sides      where padding of the source may stand; the target is padded on the right
    gaps       False: the model cannot take a source whose padding stands in between

    The other arguments and the errors are those of `audit_decoder`.
    """
    device = _device(module)
    src_ids, tgt_ids = (ordinary_ids(n, special_ids, device) for n in (src_vocab_size, tgt_vocab_size))
    some_src, some_tgt = src_ids[torch.arange(7) % len(src_ids)], tgt_ids[torch.arange(6) % len(tgt_ids)]

    def source_view(run: Callable, name: str, real: int, lengths: Sequence[int]) -> View:
        tgt_valid = torch.arange(len(some_tgt), device=device) < real

        def from_source(src: Tensor, src_valid: Tensor) -> Tensor:
            out = run(src, src_valid, some_tgt.expand(len(src), -1), tgt_valid.expand(len(src), -1))
            return out[:, :real] if out.shape[1] == len(some_tgt) else out

        every = lambda n: torch.ones(real, n, dtype=torch.bool, device=device)  # noqa: E731
        return View(
            name, from_source, every, src_ids, _sides(sides),
            queries=real, lengths=_order(lengths), gaps=gaps, empty=empty_samples,
        )  # fmt: skip

    def views(run: Callable) -> list[View]:
        def from_target(tgt: Tensor, tgt_valid: Tensor) -> Tensor:
            src = some_src.expand(len(tgt), -1)
            return run(src, torch.ones_like(src, dtype=torch.bool), tgt, tgt_valid)

        target = View(
            "target token", from_target, _square(causal_mask, device), tgt_ids, ("right",),
            lengths=_order(lengths), empty=empty_samples,
        )  # fmt: skip
        return [
            target,
            source_view(run, "source token", len(some_tgt), lengths),
            source_view(run, "source token (target padded)", len(some_tgt) - 2, (5, len(some_tgt))),
        ]

    return _audit(views, {"": forward, **(variants or {})}, module, None, seed)


def _audit(
    views_of: Callable[[Callable], list[View]],
    forwards: Mapping[str, Callable],
    module: nn.Module | None,
    step: Callable | None,
    seed: int,
) -> Report:
    """Visit every mode, run every probe on every view, and merge what they found."""
    views = {name: views_of(forward) for name, forward in forwards.items()}
    main = views[""]
    modes = modes_of(module, [name for name in forwards if name])
    notes: list[str] = []
    found: list[Finding] = []
    outputs: list[dict[str, tuple[Tensor, float]]] = [{} for _ in main]
    fixed = Bench(modes[0], torch.Generator().manual_seed(seed + 1))
    same = [fixed.draw(view, 2, 6) for view in main]
    every = torch.ones_like(same[0], dtype=torch.bool)
    convertible = module
    if module is not None and not bears_double(lambda: main[0].forward(same[0], every), module):
        convertible, modes = None, [mode for mode in modes if not mode.double]
        notes.append("float64 left out: the model does not give finite float64 outputs when it is converted.")
    # A small model is done before the delay, in seconds, is over.
    bar = tqdm(total=len(modes) * len(main), desc="mask audit", delay=10, leave=False)
    for mode in modes:
        bench = Bench(mode, torch.Generator().manual_seed(seed), convertible)
        with entered(mode, module):
            if not _settle(bench, views[mode.variant or ""], notes):
                continue
            for view, tokens, out in zip(views[mode.variant or ""], same, outputs, strict=True):
                found += _probe(bench, view, module, step if view is main[0] else None)
                if not mode.double:
                    out[mode.name] = (probes.reference(bench, view, tokens), bench.noise)
                bar.update()
        found += [] if mode.double else bench.bad
        notes += bench.notes
    bar.close()
    # A finding that is not in every mode explains their difference already, if it could be in every mode.
    telling = (finding for finding in merge(found) if finding.rule not in ("gradient-not-finite", "cache-difference"))
    if all(outputs[0].keys() <= set(finding.modes) for finding in telling):
        for view, out in zip(main, outputs, strict=True):
            found += probes.compare_modes(out, view)
    # What was not finite was read as 0, and may have made the others.
    return Report(sorted(merge(found), key=lambda finding: finding.rule != "not-finite"), notes)


def _probe(bench: Bench, view: View, module: nn.Module | None, step: Callable | None) -> list[Finding]:
    """All probes on one view in one mode; in float64 the exact one alone, without padding.

    Parts of a converted model may still compute in float32: they round, and turn finfo(float64).min into -inf.
    """
    if bench.mode.double:
        return list(probes.change_tokens(bench, replace(view, padded=False)))
    found = list(probes.change_tokens(bench, view))
    found += probes.follow_gradients(bench, view)
    if not found:
        found += probes.cut_the_end(bench, view)
    found += [*probes.pad(bench, view), *probes.isolate(bench, view)]
    if not any(finding.rule.startswith("padding") for finding in found):
        found += [*probes.mix_the_batch(bench, view), *probes.follow_padding(bench, view)]
    found += probes.starve(bench, view, module)
    if not found:
        found += probes.unpack(bench, view)
    if step is not None and not bench.mode.training:
        found += probes.decode_with_cache(bench, view, step)
    return found


def _settle(bench: Bench, views: list[View], notes: list[str]) -> bool:
    """Measure the noise. False: this mode cannot be audited. Raises ValueError if that mode is the one in use."""
    for view in views:
        moved = bench.measure_noise(view)
        if moved > bench.limit and bench.mode.training:
            notes.append("train mode left out: two equal runs differ, though dropout was set to 0.")
            return False
        if moved > bench.limit:
            raise ValueError(
                f"the model is not deterministic in {bench.mode.name}: two equal runs differ by {moved:.2g}. "
                "Call model.eval(), pass module=model, or switch sampling and dropout off in `forward`."
            )
    return True


def _packed_view(packed: Callable[[Tensor, Tensor], Tensor], main: View, device: torch.device | str) -> View:
    segments = torch.tensor(SEGMENTS, device=device)
    allowed = all_of(segment_mask(segments), main.allowed(len(segments))[None, None])[0, 0]
    return View(
        "packed token",
        lambda tokens, valid: packed(tokens, segments[: tokens.shape[1]].expand_as(tokens)),
        lambda length: allowed[:length, :length],
        main.ids,
        (),
        leak_rule="packing-leak",
        lengths=(len(SEGMENTS), 5),
        padded=False,
        packing=(packed, main.forward),
    )


def _square(allowed: Callable[[int], Tensor], device: torch.device | str) -> Callable[[int], Tensor]:
    """`allowed` as Bool[L, L] on a device; TypeError if it is no function that makes boolean tensors."""

    def square(length: int) -> Tensor:
        made = allowed(length) if callable(allowed) else allowed
        if not callable(allowed) or not isinstance(made, Tensor) or made.dtype != torch.bool:
            what = f"{'makes' if callable(allowed) else 'is'} a {getattr(made, 'dtype', type(made).__name__)}"
            raise TypeError(f"allowed {what}; expected a function: length -> Bool[L, L], such as causal_mask.")
        return made.reshape(length, length).to(device)

    return square


def _sides(sides: Sequence[str]) -> tuple[str, ...]:
    """Raises ValueError for anything but "right", "left" or both."""
    sides = (sides,) if isinstance(sides, str) else tuple(sides)
    if not sides or set(sides) - {"right", "left"}:
        raise ValueError(f'sides are {sides}; expected "right", "left" or both. A model without padding: padded=False.')
    return sides


def _order(lengths: Sequence[int]) -> tuple[int, ...]:
    """From 12 downwards, then the long ones: the first example of a finding is of a size to look at."""
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths are {list(lengths)}; expected sequence lengths of at least one token.")
    return tuple(sorted(lengths, key=lambda n: (n > 12, n if n > 12 else -n)))


def _device(module: nn.Module | None) -> torch.device:
    """Where the module lies; TypeError if it is no nn.Module."""
    if module is not None and not isinstance(module, nn.Module):
        raise TypeError(f"module is a {type(module).__name__}; expected the nn.Module that forward calls, or None.")
    tensors = [] if module is None else [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
