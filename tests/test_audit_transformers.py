"""`audit(model)` on Hugging Face models built from configs; skipped where `transformers` is not installed."""

import pytest
import torch
from tiny_transformers import build

from utils.audit import audit
from utils.audit.hugging_face import kind_of

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says about its own parts
LENGTHS = (1, 2, 5, 12, 17)
SILENT = {
    "decoder": ["GPT2LMHeadModel", "LlamaForCausalLM", "GPTNeoXForCausalLM", "OPTForCausalLM", "MixtralForCausalLM",
                "Qwen3ForCausalLM", "Phi3ForCausalLM", "PhimoeForCausalLM", "MegatronBertForCausalLM",
                "OlmoHybridForCausalLM"],
    "encoder": ["BertForMaskedLM", "RobertaForMaskedLM", "DistilBertForMaskedLM", "ElectraForMaskedLM",
                "ModernBertForMaskedLM", "AlbertForMaskedLM"],
    "seq2seq": ["T5ForConditionalGeneration", "BartForConditionalGeneration", "MarianMTModel"],
}  # fmt: skip
NO_POSITION_IDS = "it takes no position_ids and counts every place: padding on the left shifts all tokens"
KNOWN = {  # what the audit says about these, and why it is the architecture or its tiny config
    "BartForCausalLM": ("decoder", "padding-side", NO_POSITION_IDS),
    "BigBirdPegasusForCausalLM": ("decoder", "padding-side", NO_POSITION_IDS),
    "BlenderbotForCausalLM": ("decoder", "padding-side", NO_POSITION_IDS),
    "BlenderbotSmallForCausalLM": ("decoder", "padding-side", NO_POSITION_IDS),
    "MBartForCausalLM": ("decoder", "padding-side", NO_POSITION_IDS),
    "MarianForCausalLM": ("decoder", "padding-side", NO_POSITION_IDS),
    "MvpForCausalLM": ("decoder", "padding-side", NO_POSITION_IDS),
    "PLBartForCausalLM": ("decoder", "padding-side", NO_POSITION_IDS),
    "PegasusForCausalLM": ("decoder", "padding-side", NO_POSITION_IDS),
    "TrOCRForCausalLM": ("decoder", "padding-side", NO_POSITION_IDS),
    "WhisperForCausalLM": ("decoder", "padding-side", NO_POSITION_IDS),
    "XLMWithLMHeadModel": ("decoder", "future-leak", "it is an encoder, unless its config says causal=True"),
    "RwkvForCausalLM": ("decoder", "padding-content", "it warns that it does not use attention_mask"),
    "Lfm3ForCausalLM": ("decoder", "dead-connection", "its first two layers are convolutions over 7 tokens each"),
    "ConvBertForMaskedLM": ("encoder", "padding-content", "its convolutions run over the padding"),
    "FNetForMaskedLM": (
        "encoder",
        "padding-content",
        "a Fourier transform over all places takes the place of attention",
    ),
    "MobileBertForMaskedLM": ("encoder", "padding-content", "each embedding is joined with those of its neighbours"),
    "NystromformerForMaskedLM": ("encoder", "padding-content", "a convolution over the values, padding included"),
    "MraForMaskedLM": ("encoder", "dead-connection", "without its CUDA kernel its attention returns zeros"),
}
BUGS = {"YosoForMaskedLM": ("encoder", "padding-content", "its padding mask has no effect in 5.23.0: notebook 15")}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in SILENT.items() for name in names])
def test_a_released_model_gives_no_finding(kind: str, name: str, attention: str):
    model_class = getattr(transformers, name)
    if attention == "sdpa" and not model_class._supports_sdpa:
        pytest.skip(f"{name} has no attention of this kind")
    model = build(kind, model_class, attention)
    assert kind_of(model) == kind
    assert not (report := audit(model, lengths=LENGTHS)), report


@pytest.mark.parametrize("name", [*KNOWN, *BUGS])
def test_what_is_found_in_a_released_model_is_what_is_known(name: str):
    kind, rule, _ = (KNOWN | BUGS)[name]
    assert audit(build(kind, getattr(transformers, name), "eager"), kind=kind, lengths=LENGTHS).rules == {rule}


def test_the_padding_mask_of_yoso_has_no_effect():
    model = build("encoder", transformers.YosoForMaskedLM, "eager")
    tokens, valid = torch.arange(4, 12)[None], torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        masked, unmasked = model(tokens, attention_mask=valid).logits, model(tokens).logits
    assert torch.equal(masked, unmasked)  # when this fails, the library has mended it: BUGS and notebook 15 must follow


def test_a_released_model_that_is_broken_is_found():
    model = build("decoder", transformers.LlamaForCausalLM, "sdpa")
    model.model.config.is_causal = False
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    forward = model.forward
    model.forward = lambda input_ids, attention_mask=None: forward(
        input_ids, attention_mask=torch.ones(len(input_ids), 1, *[input_ids.shape[1]] * 2, dtype=torch.bool)
    )
    assert "future-leak" in audit(model, lengths=LENGTHS).rules


def test_padding_on_the_right_is_all_that_a_model_without_position_ids_takes():
    model = build("decoder", transformers.BartForCausalLM, "eager")
    assert not audit(model, lengths=LENGTHS, sides=("right",))


def test_a_model_with_too_few_positions_is_said():
    model = transformers.GPT2Model(transformers.GPT2Config(vocab_size=50, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="8 positions; the audit needs 13"):
        audit(model)
