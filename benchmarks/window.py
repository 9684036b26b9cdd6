"""A causal model whose tokens see a window of the tokens before them, trained and scored in blocks of that window."""

from typing import Any

from cost_of_masks import local_attention
from torch import Tensor

from utils.attention import MultiHeadAttention
from utils.corpora import TextBatch
from utils.training import next_token_loss
from utils.transformer import DecoderOnly


class WindowAttention(MultiHeadAttention):
    """Self-attention under `local_mask(L, back=back)`, computed in blocks; L must be a multiple of `back`.

    Its parameters are those of MultiHeadAttention, which gives the same output under that mask.
    """

    def __init__(self, d_model: int, num_heads: int, *, back: int) -> None:
        super().__init__(d_model, num_heads)
        self.back = back

    def forward(self, x: Tensor, _: Tensor, mask: None = None, **others: Any) -> tuple[Tensor, None]:
        """[B, L, D] -> [B, L, D]. The window is the mask: ValueError if another is given, or a cache, or weights."""
        if mask is not None or any(others.values()):
            raise ValueError(
                "a model in blocks has its window for a mask, and neither cache nor weights: pass None, "
                f"or load its parameters into a DecoderOnly and pass local_mask(L, back={self.back})."
            )
        heads = (self._split_heads(part) for part in self._project(x, x))  # [B, H, L, Dh] each
        return self.out_projection(local_attention(*heads, back=self.back).transpose(1, 2).flatten(2)), None


def windowed(model: DecoderOnly, back: int) -> DecoderOnly:
    """Let each layer of `model` attend in blocks; the parameters stay the same, and so do their names."""
    for layer in model.layers:
        blocks = WindowAttention(model.config.d_model, model.config.num_heads, back=back)
        blocks.load_state_dict(layer.self_attention.state_dict())
        layer.self_attention = blocks.to(model.embedding.weight.device)
    return model


def window_loss(model: DecoderOnly, batch: TextBatch) -> tuple[Tensor, int]:
    """`language_loss` of a model that is `windowed`, on rows without padding. Returns (loss, number of labels)."""
    logits, _ = model(batch.tokens[:, :-1], None)
    return next_token_loss(logits, batch)
