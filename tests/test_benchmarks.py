"""What the benchmarks train with and measure is what they say; no time is asserted."""

import json
import random
import sys
from dataclasses import replace

import common
import dialogue
import image_generation
import invention
import length
import pytest
import summarization
import torch
import training_speed
import translation
from dialogue import mail_windows
from pixelcnn import PixelCNN, pixel_loss
from regularisation import (
    LaterRDrop,
    ResegmentedPairs,
    TaughtPairs,
    distillation_loss,
    hidden,
    hiding_loss,
    r_drop_loss,
    specialised,
)
from torch.nn.functional import kl_div
from torch.testing import assert_close
from window import window_loss, windowed

from utils.corpora import (
    BOS,
    EOS,
    SPECIAL_TOKENS,
    UNK,
    BucketedPairs,
    ImageBatches,
    Images,
    Seq2SeqBatch,
    TextBatch,
    image_tokens,
    number_words,
    seq2seq_batch,
    train_tokenizer,
)
from utils.masks import causal_mask, local_mask
from utils.training import language_loss, load_checkpoint, seq2seq_loss, token_loss
from utils.transformer import DecoderOnly, Transformer, TransformerConfig, seq2seq_masks

SOURCES, TARGETS = number_words(300)
TOKENIZER = train_tokenizer(SOURCES + TARGETS, 120)
CONFIG = TransformerConfig(120, 16, num_heads=2, dropout=0.0)


def some_batch():
    chance = random.Random(0)
    return seq2seq_batch(*([[chance.randrange(4, 120) for _ in range(size)] for size in (9, 4, 7)] for _ in range(2)))


def test_new_pieces_in_each_epoch_spell_the_same_words():
    pairs = ResegmentedPairs(TOKENIZER, SOURCES, TARGETS, dropout=0.3, max_tokens=200, seed=0)
    epochs = [[row for batch in pairs(epoch) for row in batch.tgt.tolist()] for epoch in range(2)]
    assert sorted(epochs[0]) != sorted(epochs[1])
    for epoch in epochs:
        assert sorted(TOKENIZER.decode_batch(epoch)) == sorted(TARGETS)


def test_outside_an_epoch_no_merge_is_left_out():
    expected = TOKENIZER.encode(TARGETS[-1]).ids
    next(ResegmentedPairs(TOKENIZER, SOURCES, TARGETS, dropout=0.9, max_tokens=200, seed=0)(0))
    assert all(TOKENIZER.encode(TARGETS[-1]).ids == expected for _ in range(5))


def test_the_asked_share_of_tokens_is_hidden():
    torch.manual_seed(0)
    tokens = torch.arange(5).repeat(4000, 1)
    hid = hidden(tokens, 0.3)
    shares = (hid != tokens).float().mean(dim=0)
    changes = (hid == tokens) | (hid == UNK)
    assert changes.all()
    assert shares[[BOS, EOS]].sum() == 0
    assert abs(float(shares[4]) - 0.3) < 0.03


def test_what_is_hidden_stays_a_label():
    """With every token hidden, the loss is that of the same labels after sources and targets of [UNK] alone."""
    torch.manual_seed(0)
    model, batch = Transformer(CONFIG), some_batch()
    assert_close(hiding_loss(model, batch, share=0.0), seq2seq_loss(model, batch))
    blind = Seq2SeqBatch(hidden(batch.src, 1.0), batch.src_valid, hidden(batch.tgt, 1.0), batch.tgt_valid)
    masks = seq2seq_masks(batch.src_valid, batch.tgt_valid[:, :-1])
    logits, _ = model(blind.src, blind.tgt[:, :-1], masks)
    expected = token_loss(logits, batch.tgt[:, 1:], batch.tgt_valid[:, 1:], label_smoothing=0.1)
    assert_close(hiding_loss(model, batch, share=1.0)[0], expected)


def test_without_dropout_r_drop_is_the_plain_loss():
    torch.manual_seed(0)
    model, batch = Transformer(CONFIG), some_batch()
    loss, labels = r_drop_loss(model, batch, weight=3.0)
    expected, expected_labels = seq2seq_loss(model, batch)
    assert_close(loss, expected)
    assert labels == expected_labels


def test_r_drop_adds_the_mean_of_both_divergences():
    """Against PyTorch's own divergence, of the same two draws of dropout; padding does not count."""
    torch.manual_seed(0)
    model, batch = Transformer(TransformerConfig(120, 16, num_heads=2, dropout=0.3)), some_batch()
    drawn = []
    model.register_forward_hook(lambda _, __, output: drawn.append(output[0]))
    torch.manual_seed(1)
    plain, _ = r_drop_loss(model, batch, weight=0.0)
    torch.manual_seed(1)
    loss, _ = r_drop_loss(model, batch, weight=3.0)
    p, q = (side[batch.tgt_valid[:, 1:]].log_softmax(-1) for side in drawn[1].chunk(2))
    both = sum(kl_div(x, y, log_target=True, reduction="batchmean") for x, y in ((p, q), (q, p)))
    assert both > 0.01
    assert_close(loss - plain, 3.0 * both / 2)


def taught_pairs(teachers, *, likeliest=120):
    chance = random.Random(0)
    sizes = [(9, 4), (4, 7), (7, 9), (5, 5)]
    sides = zip(*([[chance.randrange(4, 120) for _ in range(size)] for size in pair] for pair in sizes), strict=True)
    return TaughtPairs(BucketedPairs(*map(list, sides), max_tokens=18), teachers, likeliest=likeliest)


def test_a_model_has_nothing_to_learn_from_itself():
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    pairs = taught_pairs([model])
    for batch in pairs(0):
        loss, _ = distillation_loss(model, batch)
        loss.backward()
    assert sum(distillation_loss(model, batch)[1] for batch in pairs(0)) == sum(len(row) - 1 for row in pairs.targets)
    assert max(weight.grad.abs().max() for weight in model.parameters()) < 1e-6


def test_the_probabilities_of_teachers_are_averaged():
    """Against PyTorch's own divergence from the mean, asked for each pair alone; padding does not count."""
    torch.manual_seed(0)
    model, *teachers = [Transformer(CONFIG) for _ in range(3)]
    for batch in taught_pairs(teachers)(0):
        losses = []
        for src, src_valid, tgt, tgt_valid in zip(*batch.pairs, strict=True):
            alone = seq2seq_batch([src[src_valid].tolist()], [tgt[tgt_valid].tolist()])
            given = alone.src, alone.tgt[:, :-1], seq2seq_masks(alone.src_valid, alone.tgt_valid[:, :-1])
            said, *taught = (each(*given)[0].log_softmax(-1)[0] for each in (model, *teachers))
            mean = (taught[0].exp() + taught[1].exp()) / 2
            losses += list(kl_div(said, mean, reduction="none").sum(-1) - (mean * mean.log()).sum(-1))
        assert_close(distillation_loss(model, batch)[0], torch.stack(losses).mean())


def test_the_likeliest_tokens_of_a_teacher_are_kept():
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    for few, all_of_them in zip(taught_pairs([model], likeliest=5)(0), taught_pairs([model])(0), strict=True):
        valid = few.pairs.tgt_valid[:, 1:]
        assert torch.equal(few.tokens[valid], all_of_them.tokens[valid][:, :5])
        best = all_of_them.probabilities[valid][:, :5]
        assert_close(few.probabilities[valid], best / best.sum(dim=-1, keepdim=True))


def test_r_drop_begins_in_its_epoch():
    """Without dropout in the model nothing differs but the batch, which is doubled inside."""
    model, batch = Transformer(CONFIG), some_batch()
    rows = []
    model.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    later = LaterRDrop(lambda epoch: [epoch], first=2, weight=1.0)
    for epoch in (1, 2, 1, 3):
        assert later.batches(epoch) == [epoch]
        later.loss(model, batch)
    assert rows == [3, 6, 3, 6]


def test_e_mails_are_cut_and_nothing_is_lost():
    mails = [" ".join(SOURCES[:3]), SOURCES[4]]
    windows = mail_windows(TOKENIZER, mails, 7)
    assert all(len(window) <= 7 for window in windows)
    flat = [token for window in windows for token in window]
    assert [flat.count(BOS), flat.count(EOS)] == [2, 2]
    assert TOKENIZER.decode(flat) == " ".join(mails)


@pytest.mark.parametrize("size", [4, 8, 24])
def test_both_forms_of_a_mask_compute_the_same(size):
    runs = length.contestants(length.random_qkv(size, device="cpu"), 4)
    for kind, structured in {"causal": "is_causal", "local": "in blocks", "packed": "as rows"}.items():
        assert_close(runs[f"{kind}, {structured}"][0](), runs[f"{kind}, dense mask"][0](), msg=kind)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_block_masks_of_the_length_benchmark_compute_the_same():
    qkv = length.random_qkv(256, device="cpu")
    runs = length.contestants(qkv, 32)
    for name, (run, mask_bytes) in length.flex(qkv, 32).items():
        assert_close(run(), runs[name.replace("block", "dense")][0](), msg=name)
        assert 0 < mask_bytes < 256**2


def test_dense_batches_pad_every_sentence_to_one_length():
    ids = [[5, 6, 7]] * 33
    first, last = training_speed.dense_batches(ids, ids)
    assert first.src.shape == (32, training_speed.DENSE_LEN)
    assert last.tgt.shape == (1, training_speed.DENSE_LEN)
    assert last.tgt_valid.sum() == 3
    with pytest.raises(ValueError, match="100 tokens"):
        training_speed.dense_batches([[5] * 100], [[5]])


def test_written_out_attention_equals_the_fused_one():
    """The same weights give the same loss: so both train the same model."""
    torch.manual_seed(0)
    ours, batch = Transformer(CONFIG), some_batch()
    theirs = training_speed.written_out(CONFIG)
    state = theirs.state_dict() | {name: value for name, value in ours.state_dict().items() if "attention" not in name}
    for name, value in ours.state_dict().items():
        part, _, kind = name.rpartition(".")
        if "in_projection" in name:
            names = (f"{part.removesuffix('in_projection')}{role}.{kind}" for role in ("query", "key", "value"))
            state |= dict(zip(names, value.chunk(3), strict=True))
        elif "out_projection" in name:
            state[name.replace("out_projection", "output")] = value
    theirs.load_state_dict(state)
    assert_close(training_speed.dense_loss(theirs, batch)[0], seq2seq_loss(ours, batch)[0])


@pytest.mark.parametrize(("flags", "minutes"), [([], 5.0), (["--full"], 60.0), (["--full", "--minutes", "2"], 2.0)])
def test_full_sets_defaults_that_a_flag_overrides(monkeypatch, flags, minutes):
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    parser = common.common_arguments("", "", ["val", "test"])
    args = common.parsed(parser, "model_of_{seed}", {"minutes": 60.0})
    assert args.minutes == minutes
    assert args.save == (common.CHECKPOINTS / "model_of_0.safetensors" if "--full" in flags else None)


def test_full_chooses_the_model_of_a_flag(monkeypatch, capsys):
    """And says which there are, if the flag asks for another."""
    parser, settings = common.common_arguments("", "", ["val", "test"]), {1: {"minutes": 10.0}, 2: {"minutes": 20.0}}
    monkeypatch.setattr(sys, "argv", ["train.py", "--full", "--seed", "2"])
    assert common.parsed(parser, "model_{seed}", settings, by="seed").minutes == 20.0
    monkeypatch.setattr(sys, "argv", ["train.py", "--full", "--seed", "3"])
    with pytest.raises(SystemExit):
        common.parsed(parser, "model_{seed}", settings, by="seed")
    assert "--seed 1 and 2; got 3" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [["--full"], ["--save", "mine.safetensors"]])
def test_a_model_that_is_only_scored_is_not_written_over(monkeypatch, capsys, flag):
    monkeypatch.setattr(sys, "argv", ["train.py", "--evaluate", "a.txt", "b.txt", *flag])
    with pytest.raises(SystemExit):
        common.parsed(common.common_arguments("", "", ["val", "test"]), "model", {})
    assert "leave out --full and --save" in capsys.readouterr().err


def test_a_name_that_could_not_be_saved_under_is_said_before_the_training(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--save", "model.json"])
    with pytest.raises(SystemExit):
        common.parsed(common.common_arguments("", "", ["val", "test"]), "model", {})
    assert "ends in .safetensors" in capsys.readouterr().err


def test_a_run_goes_on_with_its_own_settings_alone(monkeypatch, tmp_path):
    """A second call with another seed must not go on from the state of the first."""

    def call(*flags):
        state, result = tmp_path / "state.safetensors", tmp_path / "new folder" / "result.json"
        files = ["--resume", str(state), "--json", str(result)]
        monkeypatch.setattr(sys, "argv", ["translation.py", "--vocabulary", "120", "--minutes", "0.01", *files, *flags])
        translation.main()
        return json.loads(result.read_text())

    monkeypatch.setattr(translation, "load_multi30k", lambda *_, **__: [SOURCES[:20], TARGETS[:20]])
    first = call("--beam", "2")
    assert first["settings"]["seed"] == 0
    assert call("--beam", "1")["target_tokens"] == first["target_tokens"]
    with pytest.raises(ValueError, match=r"seed 0 \(now 1\)"):
        call("--seed", "1")


LETTERS = [[line, "see you"] for line in SOURCES[:20]], TARGETS[:20]
TEXTS = ["--vocabulary", "120"]


@pytest.mark.parametrize(
    "script, flags",
    [
        (translation, [*TEXTS, "--d-ff", "24", "--hide", "0.1"]),
        (summarization, [*TEXTS, "--copying-epochs", "1"]),
        (dialogue, [*TEXTS, "--mails", "2"]),
        (image_generation, ["--size", "14", "--back", "28"]),
        (image_generation, ["--size", "14", "--peer", "pixelcnn"]),
    ],
)
def test_a_script_trains_and_saves_a_model_with_its_record(monkeypatch, tmp_path, script, flags):
    images = Images(torch.randint(16, (12, 14, 14)), torch.arange(12) % 10)
    replaced = {
        "load_multi30k": lambda *_, **__: [SOURCES[:20], TARGETS[:20]],
        "load_aeslc": lambda *_, **__: LETTERS,
        "load_schema_guided": lambda *_, **__: [SOURCES[:2], SOURCES[2:6]],
        "load_fashion_mnist": lambda *_, **__: images,
        "HELD_OUT": 2,
    }
    for name in replaced.keys() & vars(script).keys():
        monkeypatch.setattr(script, name, replaced[name])
    model, result = tmp_path / "model.safetensors", tmp_path / "result.json"
    sizes = ["--minutes", "0.002", "--layers", "1", "--d-model", "16"]
    files = ["--json", str(result), *(["--save", str(model)] if "--peer" not in flags else [])]
    monkeypatch.setattr(sys, "argv", ["script.py", *sizes, *files, *flags])
    script.main()
    record = json.loads(result.read_text())
    assert record["scores"] and record["target_tokens"] > 0
    assert "--peer" in flags or load_checkpoint(model)[2].items() >= record.items()


def test_translations_stand_beside_what_people_wrote(monkeypatch, tmp_path):
    """Translated text on one side only; what was translated once is read from its file the next time."""
    calls = []

    def upper(_, tokenizer, lines, *, beam_size):
        calls.append(beam_size)
        return [line.upper() for line in lines]

    monkeypatch.setattr(translation, "load_multi30k", lambda *_, **__: [["a dog", "two cats"], ["ein hund", "katzen"]])
    monkeypatch.setattr(translation, "translate", upper)
    monkeypatch.setattr(translation, "RUNS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["translation.py", "--translated", "--both-ways"])
    for _ in range(2):
        sources, targets = translation.training_texts(translation.arguments())
        there = {("a dog", "ein hund"), ("a dog", "A DOG"), ("EIN HUND", "ein hund")}
        there |= {("two cats", "katzen"), ("two cats", "TWO CATS"), ("KATZEN", "katzen")}
        assert sorted(zip(sources, targets, strict=True)) == sorted(there | {pair[::-1] for pair in there})
    assert calls == [5, 5]


def test_french_sources_stand_behind_the_pairs_with_the_same_targets(monkeypatch):
    texts = {"en": ["a dog"], "de": ["ein hund"], "fr": ["un chien"]}
    monkeypatch.setattr(translation, "load_multi30k", lambda _, names, **__: [texts[name] for name in names])
    monkeypatch.setattr(sys, "argv", ["translation.py", "--french", "--both-ways"])
    sources, targets = translation.training_texts(translation.arguments())
    assert sources == ["a dog", "ein hund", "un chien"]
    assert targets == ["ein hund", "a dog", "ein hund"]


def test_drawn_sentences_are_new_and_those_of_their_seed(monkeypatch):
    """None is empty, none stands there twice, and another seed draws others."""
    monkeypatch.setattr(invention, "EPOCHS", 8)
    monkeypatch.setattr(invention, "TOGETHER", 20)
    first, again = (invention.invented(TOKENIZER, TARGETS, 50) for _ in range(2))
    assert first == again
    assert 40 < len(set(first)) == len(first) <= 50 and all(first)
    other = invention.invented(TOKENIZER, TARGETS, 50, seed=1)
    assert set(first) != set(other)


def test_the_teachers_translate_what_was_invented(monkeypatch, tmp_path):
    monkeypatch.setattr(translation, "load_multi30k", lambda *_, **__: [["a dog"], ["ein hund"]])
    monkeypatch.setattr(translation, "invented", lambda _, lines, count: [f"{line} {count}" for line in lines])
    monkeypatch.setattr(translation, "translate", lambda models, _, lines, **__: [f"{len(models)} {lines[0]}"])
    monkeypatch.setattr(translation, "RUNS", tmp_path)
    names = ["translation_en_de", "translation_en_de_second"]
    command = ["translation.py", "--invented", "7", "--start", names[0], "--teachers", *names]
    monkeypatch.setattr(sys, "argv", command)
    assert translation.training_texts(translation.arguments()) == (["a dog", "a dog 7"], ["ein hund", "2 a dog 7"])
    monkeypatch.setattr(sys, "argv", command[:5])
    with pytest.raises(SystemExit):
        translation.arguments()


def test_models_are_named_to_be_scored_alone(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["translation.py", "--models", "translation_en_de_second"])
    with pytest.raises(SystemExit):
        translation.arguments()
    assert "add --evaluate SRC TGT" in capsys.readouterr().err


def test_a_training_begins_with_the_weights_of_another_model():
    """With another dropout, but in no other size."""
    start = Transformer(CONFIG)
    model = common.continued(start, TOKENIZER, replace(CONFIG, dropout=0.3), TOKENIZER)
    assert model.config.dropout == 0.3
    assert_close(model.state_dict(), start.state_dict())
    with pytest.raises(ValueError, match="num_layers=7"):
        common.continued(start, TOKENIZER, replace(CONFIG, num_layers=7), TOKENIZER)


def test_a_model_with_wider_feed_forward_parts_begins_as_the_same_function():
    torch.manual_seed(0)
    start, batch = Transformer(CONFIG), some_batch()
    for linear in (module for module in start.modules() if isinstance(module, torch.nn.Linear)):
        torch.nn.init.normal_(linear.bias)  # as after a training
    wide = common.continued(start, TOKENIZER, replace(CONFIG, d_ff=3 * CONFIG.d_ff), TOKENIZER)
    given = batch.src, batch.tgt, seq2seq_masks(batch.src_valid, batch.tgt_valid)
    assert_close(wide(*given)[0], start(*given)[0])
    wide(*given)[0].square().sum().backward()
    assert all(layer.feed_forward[2].weight.grad[:, CONFIG.d_ff :].any() for layer in wide.encoder)  # but it can learn
    with pytest.raises(ValueError, match="d_ff=8"):
        common.continued(start, TOKENIZER, replace(CONFIG, d_ff=8), TOKENIZER)


def test_known_pieces_keep_their_vectors_among_other_pieces():
    start, pieces = Transformer(CONFIG), train_tokenizer(["one ibis", "two gnus"], 60)
    config = replace(CONFIG, vocab_size=pieces.get_vocab_size())
    model = common.continued(start, TOKENIZER, config, pieces)
    known = {piece for piece in pieces.get_vocab() if TOKENIZER.token_to_id(piece) is not None}
    assert SPECIAL_TOKENS[0] in known and len(known) < config.vocab_size
    for piece in known:
        old, new = TOKENIZER.token_to_id(piece), pieces.token_to_id(piece)
        assert_close(model.embedding.weight[new], start.embedding.weight[old])
    assert_close(model.encoder.state_dict(), start.encoder.state_dict())


def test_a_training_ends_with_the_pairs_of_one_direction():
    pairs = BucketedPairs([[5, 2], [6, 2], [7, 2]], [[1, 5, 2], [1, 6, 2], [1, 7, 2]], max_tokens=3)
    batches = specialised(pairs, 2, first=1)
    seen = [{int(batch.src[0, 0]) for batch in batches(epoch)} for epoch in range(3)]
    assert seen == [{5, 6, 7}, {5, 6}, {5, 6}]


def test_the_pixelcnn_sees_no_pixel_that_comes_later():
    """Nor the pixel itself; those before it do count, and so does the class."""
    torch.manual_seed(0)
    model = PixelCNN(8, 5, features=8, blocks=2)
    pixels = torch.randint(5, (1, 8, 8)).float().requires_grad_()
    logits = model(pixels, torch.tensor([3]))
    (gradient,) = torch.autograd.grad(logits[0, :, 4, 3].sum(), pixels)
    seen = gradient[0].flatten() != 0
    assert not seen[4 * 8 + 3 :].any()
    assert seen[4 * 8 + 2]
    assert seen[3 * 8 + 3]
    assert not torch.equal(logits, model(pixels, torch.tensor([4])))


def test_a_model_in_blocks_trains_as_under_the_dense_window():
    torch.manual_seed(0)
    model = DecoderOnly(TransformerConfig(20, 16, num_heads=2, dropout=0.0))
    tokens = torch.randint(20, (3, 13))
    every = torch.ones_like(tokens, dtype=torch.bool)
    batch = TextBatch(tokens, every, every)
    expected, _ = language_loss(model, batch, mask=local_mask(12, back=4))
    expected_gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss, count = window_loss(windowed(model, 4), batch)
    assert count == 36
    assert_close(loss, expected)
    for gradient, wanted in zip(torch.autograd.grad(loss, list(model.parameters())), expected_gradients, strict=True):
        assert_close(gradient, wanted)


def test_a_model_in_blocks_refuses_a_mask_that_it_would_not_use():
    model = windowed(DecoderOnly(TransformerConfig(20, 16, num_heads=2)), 4)
    with pytest.raises(ValueError, match="window for a mask"):
        model(torch.zeros(1, 8, dtype=torch.long), causal_mask(8))


def test_the_loss_of_the_pixelcnn_is_that_of_its_logits():
    torch.manual_seed(0)
    images = Images(torch.randint(5, (3, 4, 4)), torch.tensor([0, 9, 4]))
    tokens, model = image_tokens(images, 5), PixelCNN(4, 5, features=8, blocks=1)
    loss, count = pixel_loss(model, next(ImageBatches(tokens, batch_size=3)(0)))
    expected = torch.nn.functional.cross_entropy(model(images.pixels, images.labels), images.pixels)
    assert_close(loss, expected)
    assert count == 48
