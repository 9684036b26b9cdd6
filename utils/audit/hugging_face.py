"""`audit(model)`: the audit of a Hugging Face model, with the forward written for it."""

import inspect
from collections.abc import Callable, Sequence

from jaxtyping import Bool, Int
from torch import Tensor, nn

from utils.audit.audits import LENGTHS, audit_decoder, audit_encoder, audit_seq2seq
from utils.audit.probes import MOST
from utils.audit.report import Report

SPECIAL = ("pad", "bos", "eos", "sep", "cls", "mask", "unk", "decoder_start", "image", "audio", "video")


def audit(
    model: nn.Module, *, kind: str | None = None, lengths: Sequence[int] | None = None, seed: int = 0, **options
) -> Report:
    """Find the mask bugs of a Hugging Face PreTrainedModel: the kind is picked, the forward and the step are written.

    `kind` is "decoder", "encoder" or "seq2seq", None = as the model's config and class say. `lengths` are sequence
    lengths in tokens, None = those of `audit_decoder` that the model has positions for. Further options go there too;
    for a decoder step=None leaves the cache out.

    Raises TypeError for a model without a config or a vocabulary, ValueError for an unknown kind, a model with no
    output for each token, or one with too few positions.
    """
    config = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        raise TypeError(
            f"audit(model) takes a Hugging Face PreTrainedModel; got {type(model).__name__}. For other models write "
            "forward(tokens, valid) and call audit_decoder, audit_encoder or audit_seq2seq."
        )
    text = config.get_text_config()
    kind = kind or kind_of(model)
    longest = getattr(text, "max_position_embeddings", None) or max(LENGTHS)
    if 0 < longest < MOST:
        raise ValueError(f"the model has {longest} positions; the audit needs {MOST}. Build it with more of them.")
    if lengths is None:
        # Some position tables lose rows to an offset, and the padding probes add up to 7 places to 6.
        lengths = [n for n in LENGTHS if n <= max(longest - 4, 1)] if longest > 0 else LENGTHS
    options = {"module": model, "lengths": lengths, "special_ids": _special_ids(config, text), "seed": seed} | options
    if kind == "seq2seq":
        sizes = {"src_vocab_size": _vocab(config, "encoder"), "tgt_vocab_size": _vocab(config, "decoder")}
        return audit_seq2seq(_seq2seq_forward(model), **(sizes | options))
    if not hasattr(text, "vocab_size"):
        raise TypeError(f"{type(model).__name__} has no vocab_size in its config; audit(model) takes models of tokens.")
    options = {"vocab_size": text.vocab_size, **options}
    if kind == "encoder":
        return audit_encoder(_forward(model), **options)
    if kind != "decoder":
        raise ValueError(f"kind is {kind!r}; expected 'decoder', 'encoder' or 'seq2seq'.")
    return audit_decoder(_forward(model), **({"step": _step(model)} | options))


def kind_of(model: nn.Module) -> str:
    """Encoder-decoder by its config; decoder if it is one by config, class name or ability to generate."""
    config = model.config
    if config.is_encoder_decoder:
        return "seq2seq"
    name = type(model).__name__
    is_causal = getattr(config, "is_decoder", False) or "CausalLM" in name or "LMHead" in name or model.can_generate()
    return "decoder" if is_causal or _has_causal_sibling(config.model_type) else "encoder"


def _has_causal_sibling(model_type: str) -> bool:
    """A bare model (GPT2Model) is a decoder if its architecture has a causal head and no masked one."""
    from transformers.models.auto import modeling_auto as auto

    return (
        model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and model_type not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def _special_ids(*configs: object) -> list[int]:
    found = [getattr(config, f"{name}_token_id", None) for config in configs for name in SPECIAL]
    return sorted({i for ids in found for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)})


def _vocab(config: object, part: str) -> int:
    part_config = getattr(config, part, None)
    sizes = [getattr(part_config, "vocab_size", None), getattr(config, f"{part}_vocab_size", None)]
    return next(size for size in (*sizes, config.get_text_config().vocab_size) if isinstance(size, int))


def _output(output: object, model: nn.Module) -> Tensor:
    for name in ("logits", "prediction_logits", "last_hidden_state"):
        if isinstance(found := getattr(output, name, None), Tensor) and found.ndim == 3:
            return found
    raise ValueError(f"{type(model).__name__} returns nothing for each token; audit the bare model below its head.")


def _takes(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def _inputs(model: nn.Module, tokens: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Ids, mask and positions of the last `tokens.shape[1]` places; positions count real tokens alone."""
    inputs = {"input_ids": tokens, "attention_mask": valid.long()}
    if _takes(model, "position_ids"):
        inputs["position_ids"] = (valid.long().cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    return inputs


def _forward(model: nn.Module) -> Callable:
    no_cache = {"use_cache": False} if _takes(model, "use_cache") else {}

    def forward(tokens: Int[Tensor, "B L"], valid: Bool[Tensor, "B L"]) -> Tensor:
        return _output(model(**_inputs(model, tokens, valid), **no_cache), model)

    return forward


def _seq2seq_forward(model: nn.Module) -> Callable:
    no_cache = {"use_cache": False} if _takes(model, "use_cache") else {}

    def forward(src: Tensor, src_valid: Tensor, tgt: Tensor, tgt_valid: Tensor) -> Tensor:
        decoder = {"decoder_input_ids": tgt, "decoder_attention_mask": tgt_valid.long()}
        return _output(model(input_ids=src, attention_mask=src_valid.long(), **decoder, **no_cache), model)

    return forward


def _step(model: nn.Module) -> Callable | None:
    """Decoding that goes on from `past_key_values`; None if the model keeps no such cache."""
    if not (_takes(model, "past_key_values") and _takes(model, "use_cache")):
        return None

    def step(tokens: Tensor, valid: Tensor, cache: object) -> tuple[Tensor, object]:
        output = model(**_inputs(model, tokens, valid), past_key_values=cache, use_cache=True)
        return _output(output, model), output.past_key_values

    return step
