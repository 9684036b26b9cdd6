"""The loss, the training loop, and what is saved."""

import itertools
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from utils.corpora import BOS, EOS, BucketedPairs, text_batch, train_tokenizer
from utils.masks import full_mask
from utils.training import (
    language_loss,
    load_checkpoint,
    mean_loss,
    save_checkpoint,
    seq2seq_loss,
    token_loss,
    train,
)
from utils.transformer import DecoderOnly, Transformer, TransformerConfig, decoder_only_mask

CONFIG = TransformerConfig(vocab_size=20, d_model=16, num_heads=2, d_ff=32, num_layers=1, dropout=0.1)


def make_model():
    torch.manual_seed(0)
    return Transformer(CONFIG)


@pytest.fixture
def batches():
    """Copying sequences of unequal lengths."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(4, 20, (n,), generator=generator).tolist() for n in range(2, 12) for _ in range(4)]
    return BucketedPairs([[*row, EOS] for row in rows], [[BOS, *row, EOS] for row in rows], max_tokens=64)


def test_the_loss_is_the_mean_over_real_labels():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 5), torch.randint(0, 5, (2, 3))
    valid = torch.tensor([[True, True, False], [True, False, False]])
    terms = [-logits[b, t].log_softmax(-1)[labels[b, t]] for b in range(2) for t in range(3) if valid[b, t]]
    torch.testing.assert_close(token_loss(logits, labels, valid), torch.stack(terms).mean())


def test_padding_changes_neither_loss_nor_gradient(batches):
    batch = next(b for b in batches(0) if not b.tgt_valid.all())
    model = make_model().eval()
    noise = torch.randint_like(batch.src, 4, 20), torch.randint_like(batch.tgt, 4, 20)
    other = batch._replace(
        src=torch.where(batch.src_valid, batch.src, noise[0]), tgt=torch.where(batch.tgt_valid, batch.tgt, noise[1])
    )
    results = []
    for b in (batch, other):
        model.zero_grad()
        loss, tokens = seq2seq_loss(model, b)
        loss.backward()
        results.append((loss.detach(), tokens, [p.grad.clone() for p in model.parameters()]))
    assert results[0][1] == results[1][1] == batch.tgt_valid[:, 1:].sum()
    torch.testing.assert_close(results[0], results[1])


def test_training_lowers_the_loss_and_leaves_the_model_in_eval_mode(batches):
    model = make_model()
    history = train(model, seq2seq_loss, batches, steps=150, learning_rate=1e-2)
    assert history.steps == len(history.losses) == 150
    assert sum(history.losses[-10:]) < 0.7 * sum(history.losses[:10])
    assert not model.training


def test_a_budget_in_minutes_ends(batches):
    history = train(make_model(), seq2seq_loss, batches, minutes=0.01)
    assert history.seconds >= 0.6
    assert history.steps > 0


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_as_if_nothing_had_happened(batches, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.training.SECONDS_BETWEEN_SAVES", 0)
    whole = make_model()
    whole_history = train(whole, seq2seq_loss, batches, steps=90)

    calls = 0

    def killed_at_70(model, batch):
        nonlocal calls
        calls += 1
        if calls == 70:
            raise Killed
        return seq2seq_loss(model, batch)

    path = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        train(make_model(), killed_at_70, batches, steps=90, checkpoint=path)
    torch.manual_seed(123)  # the resumed run must bring its own random state
    resumed = Transformer(CONFIG)
    history = train(resumed, seq2seq_loss, batches, steps=90, checkpoint=path)
    assert history.losses == whole_history.losses
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 1e-3}, r"learning_rate 0\.002 \(now 0\.001\)"),
        ({"steps": 5}, r"steps 4 \(now 5\)"),
        ({"settings": {"seed": 1}}, r"seed 0 \(now 1\)"),
    ],
)
def test_a_run_is_not_mixed_with_another(batches, tmp_path, change, said):
    arguments = {"steps": 4, "settings": {"seed": 0}, "checkpoint": tmp_path / "run.safetensors"}
    train(make_model(), seq2seq_loss, batches, **arguments)
    before = arguments["checkpoint"].read_bytes()
    with pytest.raises(ValueError, match=said):
        train(make_model(), seq2seq_loss, batches, **(arguments | change))
    assert arguments["checkpoint"].read_bytes() == before


def test_a_state_of_another_model_is_refused(batches, tmp_path):
    path = tmp_path / "run.safetensors"
    train(make_model(), seq2seq_loss, batches, steps=2, checkpoint=path)
    larger = Transformer(TransformerConfig(vocab_size=20, d_model=16, num_heads=2, d_ff=64, num_layers=1))
    with pytest.raises(ValueError, match="parameters"):
        train(larger, seq2seq_loss, batches, steps=2, checkpoint=path)


def test_a_loss_that_is_not_finite_is_said(batches):
    def broken(model, batch):
        loss, tokens = seq2seq_loss(model, batch)
        return loss * float("nan"), tokens

    with pytest.raises(FloatingPointError, match=r"step 1\. .*dead row"):
        train(make_model(), broken, batches, steps=5)


def test_a_single_step_without_a_label_is_said(batches):
    """Also if the steps after it are fine again."""
    count = itertools.count(1)

    def third_is_empty(model, batch):
        loss, tokens = seq2seq_loss(model, batch)
        return (loss * float("nan"), 0) if next(count) == 3 else (loss, tokens)

    with pytest.raises(FloatingPointError, match="in step 3"):
        train(make_model(), third_is_empty, batches, steps=5)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({}, "one of the two"),
        ({"steps": 1, "minutes": 1.0}, "one of the two"),
        ({"steps": 0}, "a budget above 0"),
        ({"minutes": 0.0}, "a budget above 0"),
        ({"steps": 1, "warmup": 0.0}, "a warmup between 0 and 1"),
    ],
)
def test_a_budget_that_makes_no_sense_is_said(batches, budget, said):
    with pytest.raises(ValueError, match=said):
        train(make_model(), seq2seq_loss, batches, **budget)


def test_an_epoch_without_a_batch_is_said():
    with pytest.raises(ValueError, match="epoch 0 has no batch"):
        train(make_model(), seq2seq_loss, lambda epoch: [], steps=1)


def test_float16_training_scales_its_loss(batches, monkeypatch):
    monkeypatch.setattr("utils.training.mixed_precision", lambda device: torch.float16)
    history = train(make_model(), seq2seq_loss, batches, steps=60, learning_rate=1e-2)
    assert sum(history.losses[-10:]) < sum(history.losses[:10])


@pytest.mark.parametrize("kind", [Transformer, DecoderOnly])
def test_a_checkpoint_gives_back_the_model_in_half_precision(tmp_path, kind):
    model, tokenizer = kind(CONFIG), train_tokenizer(["ein Mann"], 20)
    save_checkpoint(tmp_path / "m.safetensors", model, tokenizer, {"seed": 0})
    loaded, loaded_tokenizer, record = load_checkpoint(tmp_path / "m.safetensors")
    assert type(loaded) is kind and not loaded.training and record["seed"] == 0
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].half().float())
    assert loaded_tokenizer.encode("ein Mann").ids == tokenizer.encode("ein Mann").ids
    assert {p.name for p in tmp_path.iterdir()} == {"m.safetensors", "m.json", "m.tokenizer.json"}


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, make_model(), None, {})
    before = path.read_bytes()

    def half_written(tensors, temporary, notes):
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("utils.training.save_file", half_written)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, make_model(), None, {})
    assert path.read_bytes() == before
    assert load_checkpoint(path)[1] is None


def test_a_checkpoint_without_a_tokenizer_does_not_keep_an_older_one(tmp_path):
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, make_model(), train_tokenizer(["ein Mann"], 20), {})
    save_checkpoint(path, make_model(), None, {})
    assert load_checkpoint(path)[1] is None


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"ends in .safetensors"):
        save_checkpoint(tmp_path / "m.json", make_model(), None, {})

    class Larger(Transformer):
        pass

    with pytest.raises(TypeError, match="a Larger cannot be loaded again"):
        save_checkpoint(tmp_path / "m.safetensors", Larger(CONFIG), None, {})
    assert not list(tmp_path.iterdir())


def test_a_missing_checkpoint_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="checkpoints"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_label_smoothing_is_that_of_pytorch():
    logits, labels = torch.randn(1, 4, 7), torch.randint(0, 7, (1, 4))
    ours = token_loss(logits, labels, torch.ones(1, 4, dtype=torch.bool), label_smoothing=0.1)
    torch.testing.assert_close(ours, F.cross_entropy(logits[0], labels[0], label_smoothing=0.1))


def test_a_language_model_is_scored_on_the_flagged_tokens_alone():
    torch.manual_seed(0)
    model = DecoderOnly(CONFIG).eval()
    batch = text_batch([[1, 5, 6, 7, 2], [1, 8, 2]], [[False, False, True, False, True], [False, True, False]])
    logits, _ = model(batch.tokens, decoder_only_mask(batch.valid))
    terms = [-logits[b, t - 1].log_softmax(-1)[batch.tokens[b, t]] for b, t in ((0, 2), (0, 4), (1, 1))]
    loss, tokens = language_loss(model, batch)
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    assert tokens == 3


def test_a_language_model_may_smooth_its_labels():
    torch.manual_seed(0)
    model, batch = DecoderOnly(CONFIG).eval(), text_batch([[1, 5, 6, 7, 2]], [[True] * 5])
    logits, _ = model(batch.tokens[:, :-1], decoder_only_mask(batch.valid[:, :-1]))
    expected = F.cross_entropy(logits[0], batch.tokens[0, 1:], label_smoothing=0.1)
    torch.testing.assert_close(language_loss(model, batch, label_smoothing=0.1)[0], expected)


def test_a_language_model_reads_under_the_mask_it_is_given():
    torch.manual_seed(0)
    model = DecoderOnly(CONFIG).eval()
    batch = text_batch([[1, 5, 6, 7]], [[True] * 4])
    loss, _ = language_loss(model, batch, mask=full_mask(3))
    torch.testing.assert_close(
        loss, token_loss(model(batch.tokens[:, :-1], None)[0], batch.tokens[:, 1:], batch.valid[:, 1:])
    )


def test_the_mean_loss_weighs_labels_alike_however_they_are_batched():
    torch.manual_seed(0)
    model = DecoderOnly(CONFIG).train()
    texts = [[1, 5, 6, 7, 2], [1, 8, 2], [1, 2]]
    whole, *parts = (text_batch(rows, [[True] * len(row) for row in rows]) for rows in (texts, texts[:1], texts[1:]))
    assert mean_loss(model, language_loss, parts) == pytest.approx(mean_loss(model, language_loss, [whole]), rel=1e-5)
    assert mean_loss(model, language_loss, parts) == pytest.approx(language_loss(model, whole)[0].item(), rel=1e-5)


def test_a_batch_without_a_label_does_not_spoil_the_mean_loss():
    model, row = DecoderOnly(CONFIG), [1, 5, 6, 2]
    scored, unscored = (text_batch([row], [[flag] * 4]) for flag in (True, False))
    assert mean_loss(model, language_loss, [scored, unscored]) == mean_loss(model, language_loss, [scored])
    with pytest.raises(ValueError, match="no label"):
        mean_loss(model, language_loss, [unscored])


def test_the_record_of_an_older_model_does_not_rename_a_new_one(tmp_path):
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    save_checkpoint(old, make_model(), None, {"seed": 7})
    heads = replace(CONFIG, num_heads=2 * CONFIG.num_heads)
    save_checkpoint(new, type(make_model())(heads), None, load_checkpoint(old)[2])
    model, _, record = load_checkpoint(new)
    assert model.config == heads and record["seed"] == 7


FAULTS = """
import resource, torch
from utils.training import keep_freed_memory
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**24).add_(1)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


GLIBC = platform.libc_ver()[0] == "glibc" and tuple(map(int, platform.libc_ver()[1].split(".")))


@pytest.mark.skipif(not GLIBC or GLIBC < (2, 36), reason="an older glibc keeps at most 32 MiB, other systems have none")
def test_the_memory_of_freed_tensors_is_used_again():
    """The system hands out pages of 4 KiB, or larger ones, and counts each that it hands out."""
    returned, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, check=True).stdout)
        for call in ("", "keep_freed_memory()")
    )
    assert kept < returned / 10
