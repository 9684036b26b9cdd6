"""The audit finds every planted bug, is silent on correct models, and says what it means."""

import re

import pytest
import torch
from correct_models import CORRECT
from torch import Tensor, nn

from utils.audit import audit, audit_decoder, audit_encoder, gallery, lint_mask, plot_findings
from utils.audit.bench import Mode, entered
from utils.audit.gallery import PLANTED, VOCAB, Planted, Tiny, TinyEncoder
from utils.masks import causal_mask, local_mask, prefix_mask, segment_mask

SHORT = (1, 2, 5, 8)
pytestmark = [  # what PyTorch says about its own nested tensors
    pytest.mark.filterwarnings("ignore:.*nested.tensor:UserWarning"),
]


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.model.__name__)
def test_every_planted_bug_is_found(bug: Planted):
    assert bug.audit().rules & bug.rules


@pytest.mark.parametrize("name", CORRECT)
def test_a_correct_model_gives_no_finding(name: str):
    torch.manual_seed(0)
    assert not (report := CORRECT[name]()), report


def test_the_proof_is_large_enough():
    assert len(PLANTED) >= 30 and len(CORRECT) >= 40


def test_pytorch_gives_nan_for_an_empty_sample_in_eval_only():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)

    class Model(TinyEncoder):
        def make_extra(self, d_model: int) -> nn.Module:
            return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

        def mix(self, x: Tensor, valid: Tensor) -> Tensor:
            return self.extra(x, src_key_padding_mask=~valid)

    (finding,) = Model().audit(lengths=SHORT)
    assert finding.rule == "not-finite" and finding.modes == ("eval no_grad",)


def bug(name: str) -> gallery.Tiny:
    torch.manual_seed(0)
    return getattr(gallery, name)()


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("CausalInTraining", ("eval", "eval no_grad", "eval float64")),
        ("CausalInEval", ("train",)),
        ("FastPath", ("eval no_grad", "eval float64")),
        ("WeightsAskedFor", ("eval no_grad with weights",)),
    ],
)
def test_a_finding_names_the_modes_in_which_it_happens(name: str, modes: tuple[str, ...]):
    report = bug(name).audit(lengths=SHORT)
    assert next(f for f in report if f.rule == "future-leak").modes == modes


def test_a_finding_shows_the_pairs_the_size_and_the_cause():
    (finding,) = bug("OneTooMany").audit(lengths=(8,))
    query, key = map(int, re.search(r"output (\d+) sees token (\d+) of 8", finding.where).groups())
    assert key > query and "At most 2 ahead: a mask off by one" in finding.message  # two layers, a step each
    assert finding.size > 10 * finding.noise
    assert torch.equal(finding.expected, causal_mask(8)[0, 0])


def test_the_measured_dependency_is_the_mask_of_a_one_layer_model():
    torch.manual_seed(0)
    model = Tiny(num_layers=1)
    model.mask = lambda valid, layer: local_mask(valid.shape[1], back=1, ahead=1)
    (finding,) = audit_decoder(model, vocab_size=VOCAB, module=model, allowed=lambda n: local_mask(n, back=1),
                               lengths=(9,), padded=False)  # fmt: skip
    assert torch.equal(finding.measured > 10 * finding.noise, local_mask(9, back=1, ahead=1)[0, 0])


def test_the_model_comes_back_as_it_was():
    model = bug("NormOverTime").train()
    model.head.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    model.audit(lengths=SHORT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and not model.head.training and torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None and parameter.dtype == torch.float32 for parameter in model.parameters())


def test_an_error_in_the_middle_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3)).train()
    with pytest.raises(RuntimeError, match="stop"), entered(Mode("eval float64", False, False, double=True), model):
        raise RuntimeError("stop")
    assert model.training and model[1].p == 0.3 and model[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("forward", "error", "message"),
    [
        (lambda tokens, valid: tokens, TypeError, "a tensor of torch.int64; expected one floating-point tensor"),
        (lambda tokens, valid: (tokens.float(),), TypeError, "returned a tuple"),
        (
            lambda tokens, valid: tokens.float().T[..., None],
            ValueError,
            r"returned shape \[5, 32, 1\] for tokens \[32, 5\]",
        ),
        (lambda tokens, valid: torch.rand(*tokens.shape, 3), ValueError, "not deterministic in grad"),
    ],
)
def test_a_forward_that_does_not_fit_is_told_so(forward, error, message):
    with pytest.raises(error, match=message):
        audit_decoder(forward, vocab_size=VOCAB, lengths=(5,))


def test_a_vocabulary_that_is_too_small_is_told_so():
    with pytest.raises(ValueError, match="vocab_size 5 leaves 3 ordinary token ids"):
        audit_encoder(TinyEncoder(), vocab_size=5, special_ids=(0, 1))


@pytest.mark.parametrize("sides", ["both", (), ("right", "top")])
def test_sides_that_are_none_are_refused(sides):
    with pytest.raises(ValueError, match='expected "right", "left" or both'):
        audit_decoder(Tiny(), vocab_size=VOCAB, sides=sides)


def test_one_side_may_be_given_as_a_word():
    assert not bug("PositionsCountPadding").audit(sides="right", lengths=SHORT)
    assert bug("PositionsCountPadding").audit(sides="left", lengths=SHORT).rules == {"padding-side"}


def test_an_error_inside_the_model_says_what_it_was_called_with():
    def forward(tokens: Tensor, valid: Tensor) -> Tensor:
        raise IndexError("index out of range")

    with pytest.raises(IndexError, match="index out of range") as caught:
        audit_decoder(forward, vocab_size=VOCAB)
    assert re.search(r"called forward with tokens \[\d+, \d+\], 0 of them padding", caught.value.__notes__[0])


def test_allowed_that_is_not_boolean_is_refused():
    with pytest.raises(TypeError, match=r"allowed makes a torch.float32; expected a function: length -> Bool\[L, L\]"):
        audit_decoder(Tiny(), vocab_size=VOCAB, lengths=SHORT, allowed=lambda length: torch.ones(length, length).tril())


@pytest.mark.parametrize("fill", [-torch.inf, -1e9])
def test_a_leak_does_not_hide_behind_forbidden_tokens(fill):
    model = bug("NoCausalMask")

    def forward(tokens: Tensor, valid: Tensor) -> Tensor:
        return model(tokens, valid).index_fill(-1, torch.tensor([0, 1]), fill)

    report = audit_decoder(forward, vocab_size=VOCAB, module=model, lengths=SHORT)
    assert report.rules == {"future-leak"}
    assert not report.notes


def test_what_is_not_finite_comes_first():
    class Both(gallery.NoCausalMask, gallery.NaiveDeadRow):
        pass

    torch.manual_seed(0)
    rules = [finding.rule for finding in Both().audit(lengths=SHORT)]
    assert rules[0] == "not-finite" and "future-leak" in rules


def test_a_bug_is_found_at_lengths_of_ones_own():
    assert bug("KnowsTheLength").audit(lengths=(8, 16, 24)).rules == {"future-leak"}


def test_a_leak_that_only_training_has_is_found_behind_dropout():
    class Leaky(gallery.CausalInEval):
        def mix(self, x: Tensor, valid: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.1, self.training)

    torch.manual_seed(0)
    (finding,) = Leaky().audit(lengths=SHORT)
    assert finding.rule == "future-leak" and finding.modes == ("train",)


def test_train_mode_that_stays_random_is_left_out_with_a_note():
    class Noisy(Tiny):  # as a router that samples: only one token of 40 meets the noise
        def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
            out = super().forward(tokens, valid)
            return torch.where(self.training & (tokens == 9)[..., None], out + torch.rand_like(out), out)

    report = Noisy().audit(lengths=SHORT)
    assert not report and "train mode left out" in report.notes[0]


def test_a_model_without_an_embedding_lookup_is_audited_with_a_note():
    table = torch.randn(VOCAB, 4)
    report = audit_decoder(lambda tokens, valid: table[tokens].cumsum(1), vocab_size=VOCAB, lengths=SHORT, padded=False)
    assert not report and "gradients not followed" in report.notes[0]


def test_the_report_prints_as_a_table_or_says_that_all_is_well():
    torch.manual_seed(0)
    assert str(Tiny().audit(lengths=SHORT)) == "No mask bug found."
    text = str(bug("NoCausalMask").audit(lengths=SHORT))
    assert text.startswith("rule") and "future-leak" in text and "issue 48745" in text
    assert max(map(len, text.splitlines())) < 180


def test_findings_are_drawn_side_by_side():
    import matplotlib

    matplotlib.use("Agg")
    report = bug("NoCausalMask").audit(lengths=SHORT)
    ((expected, measured),) = plot_findings(report)
    assert expected.get_title() == "expected" and "future-leak" in measured.get_title()
    assert len(measured.collections[0].get_offsets()) == 8 * 7 / 2
    assert plot_findings(type(report)()) == []


def test_a_model_that_ignores_its_input_is_drawn_dark():
    ((_, measured),) = plot_findings(bug("IgnoresItsInput").audit(lengths=SHORT))
    measured.figure.canvas.draw()
    assert (measured.images[0].get_array() <= measured.images[0].norm.vmin).all()


@pytest.mark.parametrize("name", ["NoCausalMask", "BufferTooSmall"])
def test_the_size_of_a_leak_is_that_of_its_measurement(name):
    """And the noise is that of the same mode: only what is a leak stands out of it."""
    (finding,) = (one for one in bug(name).audit() if one.rule == "future-leak")
    leaks = finding.measured[~finding.expected]
    assert leaks.max().item() == finding.size


def test_a_mode_that_was_left_out_hides_no_difference():
    """Noise that cannot be switched off ends the train mode; another variant that differs is found all the same."""

    class Leaky(Tiny):
        def mask(self, valid: Tensor, layer: int) -> Tensor:
            return torch.ones_like(causal_mask(valid.shape[1])).tril(1) & super().mask(valid, layer).any(-2, True)

        def mix(self, x: Tensor, valid: Tensor) -> Tensor:
            return x + 0.1 * self.training * torch.randn_like(x)

    torch.manual_seed(0)
    model = Leaky()
    report = model.audit(lengths=SHORT, variants={"doubled": lambda tokens, valid: 2 * model(tokens, valid)})
    assert report.rules == {"future-leak", "mode-difference"}
    assert any("train mode left out" in note for note in report.notes)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of the compiler itself
@pytest.mark.parametrize(("is_causal", "rules"), [(True, set()), (False, {"future-leak"})])
def test_a_compiled_model_is_audited_like_any_other(is_causal: bool, rules: set[str]):
    class Plain(nn.Module):  # nothing of ours, which the type checks of the tests would keep from being compiled
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCAB, 8)

        def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
            x = self.embedding(tokens)[:, None]
            return (x + nn.functional.scaled_dot_product_attention(x, x, x, is_causal=is_causal))[:, 0]

    model = torch.compile(Plain(), backend="eager", dynamic=True)
    assert audit_decoder(model, vocab_size=VOCAB, module=model, lengths=(2, 5), padded=False).rules == rules


def test_a_bug_of_the_gradient_hides_no_difference_of_the_modes():
    class Both(gallery.BlockedDiagonalInEval, gallery.NaNOverwritten):
        pass

    torch.manual_seed(0)
    assert Both().audit(lengths=SHORT).rules == {"gradient-not-finite", "mode-difference"}


def test_audit_of_something_else_points_to_the_other_audits():
    with pytest.raises(TypeError, match="audit_decoder, audit_encoder or audit_seq2seq"):
        audit(nn.Linear(2, 2))


LOWEST = torch.finfo(torch.float32).min
CAUSAL = causal_mask(4)[0, 0]
CAUSAL_20 = causal_mask(20)[0, 0]
VALID = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]).bool()
PER_SAMPLE = VALID[:2, None].expand(2, 4, 4)


def added(visible: Tensor, fill: float) -> Tensor:
    return torch.zeros(visible.shape).masked_fill(~visible, fill)


@pytest.mark.parametrize(
    ("mask", "options", "rules"),
    [
        (CAUSAL, {}, set()),
        (CAUSAL[None, None], {"causal": True}, set()),
        (causal_mask(2, query_start=2), {}, set()),
        (causal_mask(1, query_start=3), {"causal": True}, set()),
        (~CAUSAL, {"kind": "multihead"}, set()),
        (added(CAUSAL, -torch.inf), {}, set()),
        (added(CAUSAL, LOWEST), {}, set()),
        (VALID[:, None, None], {}, set()),
        (~VALID, {"kind": "key_padding"}, set()),
        (VALID.long(), {}, set()),
        (PER_SAMPLE.repeat_interleave(2, 0), {"num_heads": 2}, set()),
        (~CAUSAL, {}, {"inverted-polarity"}),
        (CAUSAL, {"kind": "multihead"}, {"inverted-polarity"}),
        (1 - VALID.long(), {}, {"inverted-polarity"}),
        (VALID, {"kind": "key_padding"}, {"inverted-polarity"}),
        (CAUSAL & VALID[:, None, None].flip(-1), {}, {"dead-rows"}),
        (torch.tensor([[1, 1, 1], [0, 0, 0]]), {}, {"dead-rows"}),
        (torch.ones(4, 4).tril(-1).bool(), {}, {"dead-rows", "blocked-diagonal"}),
        (torch.ones(4, 4).tril(1).bool(), {}, {"open-diagonal"}),
        (CAUSAL.float(), {}, {"added-flags"}),
        (VALID.float()[:, None, None], {}, {"added-flags"}),
        (added(CAUSAL, -1e4), {}, {"weak-fill"}),
        (added(CAUSAL, -1e4).bfloat16(), {}, {"weak-fill"}),
        (added(CAUSAL_20, -torch.inf) - (torch.arange(20)[:, None] - torch.arange(20)).abs(), {}, set()),  # ALiBi
        (added(CAUSAL, LOWEST) + added(VALID[:, None, None], LOWEST), {}, {"sum-overflow"}),
        (added(CAUSAL, -torch.inf) * 0, {}, {"not-a-number"}),
        (CAUSAL.to(torch.uint8), {"kind": "boolean"}, {"wrong-dtype"}),
        (VALID, {}, {"wrong-axis"}),
        (segment_mask(torch.tensor([0, 0, 1, 1]))[0, 0], {}, set()),
        (prefix_mask(5, 2)[0, 0], {"causal": False}, set()),
        (local_mask(4, back=2)[0, 0], {}, set()),
        (added(local_mask(4, back=2)[0, 0], -torch.inf), {}, set()),
        (local_mask(6, back=1, ahead=1)[0, 0], {}, set()),
        (local_mask(6, back=2, ahead=1)[0, 0], {}, {"open-diagonal"}),
        (PER_SAMPLE.repeat(2, 1, 1), {"num_heads": 2}, {"head-order"}),
    ],
)
def test_lint_names_what_is_wrong_with_a_mask(mask: Tensor, options: dict, rules: set[str]):
    assert lint_mask(mask, **options).rules == rules


def test_lint_refuses_what_is_no_mask():
    with pytest.raises(ValueError, match="kind is 'bool'"):
        lint_mask(CAUSAL, kind="bool")
    with pytest.raises(ValueError, match=r"shape \[4\]"):
        lint_mask(CAUSAL[0])
