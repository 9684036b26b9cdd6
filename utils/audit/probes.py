"""The probes: each asks one question about a view of a model and yields the findings.

Every probe compares two runs that a correct model cannot tell apart, or two inputs that it must tell apart.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from utils.audit.bench import FACTOR, Bench, EmbeddingTap, View, entered
from utils.audit.report import Finding

MAX_TOKENS = 6000  # in one forward, so that long sequences fit into memory
REAL, PADDING = 6, (1, 2, 7)  # sizes of the padding probes, in tokens
FADED = 1e-30  # of the largest gradient; recurrent nets keep more over 60 tokens, and a fill of -100 lets less through
MOST = REAL + max(PADDING)  # tokens that a model must take, whatever `lengths` are


def change_tokens(bench: Bench, view: View) -> Iterator[Finding]:
    """Change one token at a time: which outputs move? At every length, and in batches padded on each side."""
    for length in view.lengths:
        yield from _judge(bench, view, length, _influence(bench, view, length))
    for side in view.sides if view.padded else ():
        for length in _nearest(view, (5, 9, 17)):
            measured = _influence(bench, view, length, side)
            yield from _judge(bench, view, length, measured, f", with padding on the {side}")


def _nearest(view: View, wanted: Sequence[int]) -> list[int]:
    """Those of the view's lengths that come nearest to the wanted ones."""
    near = {min(view.lengths, key=lambda length: abs(length - n)) for n in wanted}
    return [length for length in view.lengths if length in near]


def _influence(bench: Bench, view: View, length: int, side: str | None = None) -> Float[Tensor, "Lq L"]:
    """How far each output moves when each token changes: the measured dependency matrix of the model."""
    tokens, valid = _one_sample(bench, view, length, side)
    places = valid[0].nonzero().flatten()
    moves = []
    for some in places.split(max(1, MAX_TOKENS // tokens.shape[1])):
        changed = tokens.repeat(len(some) + 1, 1)
        rows = torch.arange(len(some), device=tokens.device)
        changed[rows, some] = bench.change(view, changed[rows, some])  # row k: token k is another; last row: none
        out = bench.run(view, changed, valid.expand_as(changed))[:, view.real(valid[0])]
        moves.append((out[:-1] - out[-1]).abs().amax(dim=-1))
    return torch.cat(moves).T  # [changed token, output] -> [Lq, L]


def _judge(bench: Bench, view: View, length: int, measured: Tensor, setting: str = "") -> Iterator[Finding]:
    """Hold the measured dependency against the allowed one, both ways: leaks and dead connections."""
    allowed = view.allowed(length)
    leaks = ~allowed & (measured > bench.limit)
    facts = {"noise": bench.noise, "modes": (bench.mode.name,), "expected": allowed, "measured": measured}
    if leaks.any():
        query, key = divmod(int((measured * leaks).argmax()), length)
        rule = view.leak_rule if view.leak_rule != "future-leak" or key > query else "forbidden-connection"
        where = f"{view.name}: output {query} sees token {key}{_of(leaks, length)}{setting}"
        yield Finding(rule, where, measured[leaks].max().item(), detail=_pattern(measured > bench.limit), **facts)
    dead = allowed & (measured <= bench.noise)
    if bench.eps > 1e-4 or not dead.any():  # half precision rounds a small influence away
        return
    side = setting.rsplit(" ")[-1] or None
    for _ in range(2):  # two tokens may happen to mean the same to a model: ask again
        dead &= _influence(bench, view, length, side) <= bench.noise
    if bench.convertible is not None and dead.any():  # what has faded over many steps is still there in float64
        exact = bench.doubled()
        with entered(exact.mode, exact.convertible):
            dead &= _influence(exact, view, length, side) <= exact.noise
    if dead.any():  # and what has faded below any rounding still has a gradient
        with torch.enable_grad(), suppress(RuntimeError):  # some kernels have no backward
            traced = _traced(bench, view, length, side)
            if traced is not None:
                dead &= traced <= FADED * traced.max()
    if dead.any():
        query, key = dead.nonzero()[0].tolist()
        where = f"{view.name}: output {query} never sees token {key}{_of(dead, length)}{setting}"
        yield Finding("dead-connection", where, measured[dead].max().item(), **facts)


def _of(pairs: Tensor, length: int) -> str:
    return f" of {length} ({int(pairs.sum())} such pair{'s' if pairs.sum() > 1 else ''})"


def _pattern(seen: Bool[Tensor, "Lq L"]) -> str:
    """Say in words which later tokens are seen, where that names the cause."""
    if seen.shape[0] != seen.shape[1] or len(seen) < 3:
        return ""
    later, earlier = seen.triu(1), seen.tril(-1)
    if torch.equal(later, torch.ones_like(seen).triu(1)):
        return "Everything later is seen" + (", as without a causal mask." if earlier.any() else ", nothing earlier.")
    if not later.any():
        return ""
    ahead = max(distance for distance in range(1, len(seen)) if seen.diagonal(distance).any())
    if ahead <= len(seen) // 3:
        return f"At most {ahead} ahead: a mask off by one (each layer adds a step), or a convolution that looks ahead."
    first = int(later.any(dim=1).nonzero()[0])
    return f"It begins at output {first}." if first else ""


def cut_the_end(bench: Bench, view: View) -> Iterator[Finding]:
    """Cut the sequence off: an output that may not see the later tokens must not know that there are any."""
    for length in _nearest(view, (2, 5, 12, 17, 33, 65)):
        tokens, allowed = bench.draw(view, 2, length), view.allowed(length)
        whole = bench.run(view, tokens)
        for cut in sorted({1, 2, length // 2, length - 1}):
            if not cut or view.queries is not None or allowed[:cut, cut:].any():
                continue
            moved = (bench.run(view, tokens[:, :cut]) - whole[:, :cut]).abs().amax(dim=(0, 2))
            if moved.max() > bench.limit:
                where = f"{view.name}: output {int(moved.argmax())} changes when {length} tokens are cut to {cut}"
                yield Finding("future-leak", where, moved.max().item(), bench.noise, (bench.mode.name,))
                return


def pad(bench: Bench, view: View) -> Iterator[Finding]:
    """Pad one sample, alone and in a batch: neither the content nor the amount nor the side may matter."""
    if not view.padded:
        return
    for side in view.sides:
        for batch in (1, 2, 7):
            yield from _pad_once(bench, view, side, batch)


def _pad_once(bench: Bench, view: View, side: str, batch: int) -> Iterator[Finding]:
    real = bench.draw(view, batch, REAL)
    bare = bench.run(view, real)
    place = f"on the {side}" + (", in a batch of one" if batch == 1 else "")
    for amount in sorted({*PADDING, max(max(view.lengths) - REAL, 1)}):  # and as much as there may be
        tokens, valid = _pad(bench, view, real, amount, side)
        keep = view.real(valid[0])
        padded = bench.run(view, tokens, valid)[:, keep]
        other = bench.run(view, torch.where(valid, tokens, bench.change(view, tokens)), valid)[:, keep]
        by_content, by_amount = (padded - other).abs().max().item(), (padded - bare).abs().max().item()
        facts = {"noise": bench.noise, "modes": (bench.mode.name,)}
        if by_content > bench.limit:
            where = f"{view.name}: {amount} padded place{'s' * (amount > 1)} {place}"
            yield Finding("padding-content", where, by_content, **facts)
            return
        if by_amount > bench.limit:
            rule = "padding-amount" if side == "right" else "padding-side"
            yield Finding(rule, f"{view.name}: from 0 to {amount} padded places {place}", by_amount, **facts)
            return


def _pad(bench: Bench, view: View, real: Int[Tensor, "B L"], amount: int, side: str) -> tuple[Tensor, Tensor]:
    """Put random tokens beside the real ones, flagged as padding."""
    padding = bench.draw(view, len(real), amount)
    flags = [torch.ones_like(real, dtype=torch.bool), torch.zeros_like(padding, dtype=torch.bool)]
    parts = [real, padding]
    order = (0, 1) if side == "right" else (1, 0)
    return torch.cat([parts[i] for i in order], 1), torch.cat([flags[i] for i in order], 1)


def _one_sample(bench: Bench, view: View, length: int, side: str | None) -> tuple[Tensor, Tensor]:
    """A sample of `length` real tokens, with three padded ones on `side` unless that is None."""
    return _pad(bench, view, bench.draw(view, 1, length), 0 if side is None else 3, side or "right")


def isolate(bench: Bench, view: View) -> Iterator[Finding]:
    """Flag every source token but one as padding: that one must reach every output, and no other may.

    An encoder mixes all tokens into each of its outputs, so a mask that hides some of them from the target shows
    only when all the others are padding.
    """
    if not view.gaps:
        return
    tokens = bench.draw(view, 1, REAL).repeat(REAL, 1)
    valid = torch.eye(REAL, dtype=torch.bool, device=tokens.device)  # row j: only token j is real
    base, changed = bench.run(view, tokens, valid), bench.change(view, tokens)
    own = (bench.run(view, torch.where(valid, changed, tokens), valid) - base).abs().amax(-1)  # [token, output]
    others = (bench.run(view, torch.where(valid, tokens, changed), valid) - base).abs().amax(-1)
    facts = {"noise": bench.noise, "modes": (bench.mode.name,)}
    if bench.eps < 1e-4 and (own <= bench.noise).any():
        token, output = (own <= bench.noise).nonzero()[0].tolist()
        allowed = torch.ones_like(own.T, dtype=torch.bool)
        where = f"{view.name}: output {output} never sees token {token} of {REAL}, when all others are padding"
        yield Finding("dead-connection", where, own.min().item(), expected=allowed, measured=own.T, **facts)
    if others.max() > bench.limit:
        token = int(others.amax(1).argmax())
        where = f"{view.name}: all but token {token} of {REAL} are padding"
        yield Finding("padding-content", where, others.max().item(), **facts)


def mix_the_batch(bench: Bench, view: View) -> Iterator[Finding]:
    """Put samples of several lengths into one batch: each must come out as it does alone."""
    batches = [(8, 5, 3, 7), (3, 8)] if view.padded else [(8, 8, 8, 8)]
    if view.padded and view.empty:
        batches.append((0, 8, 6))
    for side, lengths in product(view.sides if view.padded else ("right",), batches):
        samples = [bench.draw(view, 1, n) for n in lengths]
        padded = [_pad(bench, view, s, max(lengths) - s.shape[1], side) for s in samples]
        tokens, valid = (torch.cat(parts) for parts in zip(*padded, strict=True))
        together = bench.run(view, tokens, valid)
        for row, sample in enumerate(samples):
            if not lengths[row]:  # nobody reads it, and there is nothing to run alone
                continue
            moved = (bench.run(view, sample)[0] - together[row, view.real(valid[row])]).abs().max().item()
            if moved > bench.limit:
                where = f"{view.name}: sample {row} of lengths {list(lengths)}, padded on the {side}, against alone"
                yield Finding("batch-neighbour", where, moved, bench.noise, (bench.mode.name,))
                break


def starve(bench: Bench, view: View, module: nn.Module | None) -> Iterator[Finding]:
    """Make dead rows, by padding on each side and by a sample of nothing but padding: all must stay finite.

    The forward is watched by `bench.run`; here the gradient of a loss over the real outputs is looked at as well.
    """
    if not view.padded:
        return
    for side in view.sides:
        tokens, valid = _pad(bench, view, bench.draw(view, 2, 4), 2, side)
        valid[1] &= not view.empty  # an empty sample: nobody reads its output, but its NaN spreads through the loss
        bench.run(view, tokens, valid)
        if not bench.mode.grad:
            continue
        loss_at = torch.zeros_like(valid[:, : view.queries])
        loss_at[0] = view.real(valid[0])
        gradients = _gradients(bench, view, tokens, valid, loss_at, module)
        if any(not g.isfinite().all() for g in gradients):
            setting = f"padding on the {side}{' and one empty sample' * view.empty}"
            where = f"{view.name}: gradient of the real outputs, {setting}"
            yield Finding("gradient-not-finite", where, float("inf"), modes=(bench.mode.name,))


def follow_gradients(bench: Bench, view: View) -> Iterator[Finding]:
    """Ask backward instead: the gradient of each output must be 0 at every token that it may not see."""
    for length in _nearest(view, (5, 12, 17)) if bench.mode.grad else ():
        measured = _traced(bench, view, length)
        if measured is None:
            bench.notes.append(f"{view.name}: gradients not followed: forward has none, or no embedding of the tokens.")
            return
        leaks = ~view.allowed(length) & (measured > FACTOR * bench.eps * measured.max())
        if leaks.any():
            query, key = divmod(int((measured * leaks).argmax()), length)
            rule = view.leak_rule if view.leak_rule != "future-leak" or key > query else "forbidden-connection"
            where = f"{view.name}: output {query} has a gradient at token {key}{_of(leaks, length)}"
            facts = {"expected": view.allowed(length), "measured": measured, "modes": (bench.mode.name,)}
            yield Finding(rule, where, measured[leaks].max().item(), bench.eps * measured.max().item(), **facts)


def follow_padding(bench: Bench, view: View) -> Iterator[Finding]:
    """The gradient must be 0 at padding, too: a kernel may know the mask in its forward alone."""
    for side in view.sides if bench.mode.grad and view.padded else ():
        tokens, valid = _pad(bench, view, bench.draw(view, 2, REAL), 2, side)
        loss_at = view.real(valid[0]).expand(2, -1)
        for gradient in _gradients(bench, view, tokens, valid, loss_at):
            sizes = gradient.double().abs().sum(-1).nan_to_num(0, 0, 0)  # [B, L]
            noise = bench.eps * sizes.max().item()
            if (at_padding := sizes[~valid].max().item()) > FACTOR * noise:
                where = f"{view.name}: the outputs have a gradient at padding on the {side}"
                yield Finding("padding-content", where, at_padding, noise, (bench.mode.name,))
                return


def _traced(bench: Bench, view: View, length: int, side: str | None = None) -> Float[Tensor, "Lq L"] | None:
    """What `_influence` measures, from backward: the gradient of each output at each token; None if there is none.

    Row i of a batch of copies asks for output i alone, so that one backward gives the whole matrix.
    """
    tokens, valid = _one_sample(bench, view, length, side)
    loss_at = torch.diag(view.real(valid[0]))[view.real(valid[0])]  # [Lq, outputs]
    copies = (x.repeat(len(loss_at), 1) for x in (tokens, valid))
    gradients = _gradients(bench, view, *copies, loss_at)
    if not gradients:
        return None
    return torch.stack([g.double().abs().sum(-1) for g in gradients]).sum(0).nan_to_num(0, 0, 0)[:, valid[0]]


def _gradients(
    bench: Bench, view: View, tokens: Tensor, valid: Tensor, loss_at: Tensor, module: nn.Module | None = None
) -> list[Tensor]:
    """Gradients of a random probe over the outputs chosen by `loss_at` [B, Lq]: at the embedded tokens, at parameters.

    The probe is random because a plain sum of normalised outputs is constant and has no gradient at all.
    """
    with torch.compiler.set_stance("force_eager"), EmbeddingTap(tokens) as tap:
        out = bench.raw(view, tokens, valid)
    if not out.requires_grad or not tap.leaves:
        return []
    probe = torch.randn(out.shape[2], generator=bench.generator).to(out)
    wanted = tap.leaves + [p for p in (module.parameters() if module else ()) if p.requires_grad]
    found = torch.autograd.grad((out[loss_at] @ probe).sum(), wanted, allow_unused=True)
    return [g for g in found if g is not None]


def decode_with_cache(bench: Bench, view: View, step: Callable) -> Iterator[Finding]:
    """Feed the tokens one by one, and in chunks: the outputs must equal those of the full pass.

    Padding on the left comes with the first chunk, as a prompt does: no one decodes padding step by step.
    """
    longest = max(view.lengths)
    for side in (None, *(s for s in view.sides if s == "left" and view.padded)):
        first = [4] if side else [1] * 4
        ways = {"token by token": first + [1] * 7, "in chunks of 5, 4 and 2": [5, 4, 2]}
        if longest > 11:  # a cache that forgets, or a buffer that overflows
            ways[f"a prompt of {longest - 3} and three tokens"] = [longest - 3, 1, 1, 1]
        for name, chunks in ways.items():
            tokens = bench.draw(view, 2, sum(chunks))
            valid = torch.ones_like(tokens, dtype=torch.bool)
            if side:
                valid[0, :3] = False
            full = bench.run(view, tokens, valid)
            outputs, cache, start = [], None, 0
            for size in chunks:
                stop = start + size
                out, cache = step(tokens[:, start:stop], valid[:, :stop], cache)
                outputs.append(bench.without_fills(view, out.detach().double().reshape(*out.shape[:2], -1)))
                start = stop
            moved = (torch.cat(outputs, 1) - full)[valid].abs().nan_to_num(float("inf")).amax(-1).max().item()
            if moved > bench.limit:
                where = f"{view.name}: decoding {name}{', padded on the left' if side else ''}, against the full pass"
                yield Finding("cache-difference", where, moved, bench.noise, (bench.mode.name,))


def unpack(bench: Bench, view: View) -> Iterator[Finding]:
    """Pack documents into rows with different boundaries: each must come out as it does alone."""
    if view.packing is None:
        return
    packed, alone = view.packing
    rows = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, 2, 2, 2]], device=view.ids.device)
    tokens = bench.draw(view, *rows.shape)
    together = bench.run(replace(view, forward=lambda tokens, valid: packed(tokens, rows)), tokens)
    for row, document in ((row, document) for row in range(len(rows)) for document in range(3)):
        own = rows[row] == document
        moved = (
            (bench.run(replace(view, forward=alone), tokens[row : row + 1, own])[0] - together[row, own]).abs().max()
        )
        if moved > bench.limit:
            where = f"{view.name}: document {document} of row {row}, against the same document alone"
            yield Finding("packing-difference", where, moved.item(), bench.noise, (bench.mode.name,))
            return


def reference(bench: Bench, view: View, tokens: Tensor) -> Float[Tensor, "B L D"]:
    """Real outputs for the same tokens in every mode, [bare, padded] one after the other, for `compare_modes`."""
    bare = bench.run(view, tokens)
    if not view.padded:
        return bare
    valid = torch.ones_like(tokens, dtype=torch.bool)
    valid[:, -2:] = False
    padded = bench.run(view, tokens, valid)
    return torch.cat([bare, padded[:, view.real(valid[0])]], dim=1)


def compare_modes(outputs: dict[str, tuple[Tensor, float]], view: View) -> Iterator[Finding]:
    """Hold the outputs of all modes against those of the first."""
    (first, (base, base_noise)), *others = outputs.items()
    for name, (out, noise) in others:
        moved, noise = (out - base).abs().max().item(), max(noise, base_noise)
        if moved > FACTOR * noise:
            yield Finding("mode-difference", f"{view.name}: {name} against {first}", moved, noise, (name,))
