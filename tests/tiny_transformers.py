"""Tiny models of the `transformers` library, built from configs: random weights, no download."""

from collections.abc import Iterator

import torch

TINY = {
    "vocab_size": 64, "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embed_dim": 32, "emb_dim": 32,
    "embedding_size": 32, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2,
    "decoder_layers": 2, "num_decoder_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "d_kv": 8,
    "intermediate_size": 48, "d_ff": 48, "ffn_dim": 48, "n_inner": 48, "hidden_dim": 48, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "max_position_embeddings": 96, "n_positions": 96, "n_ctx": 96, "max_seq_len": 96, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "sliding_window": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "type_vocab_size": 2, "rotary_dim": 8, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8,
    "mamba_n_heads": 8, "mamba_d_head": 8, "state_size": 8, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0,
}  # fmt: skip


def model_classes() -> Iterator[tuple[str, str, type]]:
    """(kind, name, class) of every text architecture with a causal, a masked or a sequence-to-sequence head."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    heads = {
        "decoder": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "encoder": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    for kind, names in heads.items():
        for name in sorted(
            {name for entry in names.values() for name in ([entry] if isinstance(entry, str) else entry)}
        ):
            model_class = getattr(transformers, name, None)
            if getattr(model_class, "config_class", None) is not None:
                yield kind, name, model_class


def build(kind: str, model_class: type, attention: str) -> torch.nn.Module:
    """A tiny model with random weights; raises whatever the library raises if such a config does not fit."""
    config_class = model_class.config_class
    known = config_class()
    # layer_types and the like are derived from the number of layers: let the config make them again.
    config = config_class(**{name: value for name, value in TINY.items() if hasattr(known, name)})
    config._attn_implementation = attention
    if (kind == "seq2seq") != config.is_encoder_decoder and kind != "decoder":
        raise ValueError(f"{config_class.__name__} is not of the kind {kind}")
    config.is_encoder_decoder, config.is_decoder = kind == "seq2seq", kind != "encoder"
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(config).parameters())
    if size > 3_000_000:
        raise ValueError(f"{size:,} parameters: not tiny")
    torch.manual_seed(0)
    return model_class(config).eval()
