"""Talk to a dialogue model: replies to given histories, a conversation, and a chat box for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import ipywidgets as widgets
import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from torch import Tensor
from tqdm.auto import tqdm

from utils.corpora import BOT, buckets, encode_turns, latest, pad
from utils.decoding import decoder_only_next_logits, greedy_search
from utils.transformer import DecoderOnly


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Fill up on the left, so that all prompts end together and can be written on: (tokens, valid)."""
    tokens, valid = pad([prompt[::-1] for prompt in prompts])
    return tokens.flip(1), valid.flip(1)


@torch.no_grad()
def replies(
    model: DecoderOnly,
    tokenizer: Tokenizer,
    histories: Sequence[Sequence[str]],
    *,
    context: int = 256,
    max_len: int = 60,
    max_tokens: int = 8192,
) -> list[str]:
    """What the bot says next, by greedy search, to each history: turns of user and bot, the user's last.

    A reply has at most `max_len` tokens; of a history the last turns are read that half of `context` holds, as in
    `dialogue_windows`. `max_tokens` bounds the tokens of a batch.

    Raises ValueError for a history that does not end with a turn of the user, or with one that is too long.
    """
    model.eval()
    device, results = model.embedding.weight.device, [""] * len(histories)
    prompts = []
    for history in histories:
        if len(history) % 2 == 0:
            raise ValueError(f"a history has {len(history)} turns; expected an odd number, because the user is last.")
        turns = encode_turns(tokenizer, history)
        if len(turns[-1]) > context // 2:
            raise ValueError(
                f"the turn has {len(turns[-1])} tokens; the model takes at most {context // 2}. Write less at once."
            )
        turns = latest(turns, context // 2)
        prompts.append([token for turn in turns for token in turn] + [BOT])
    with tqdm(total=len(prompts), desc="replying", leave=False) as bar:
        for group in buckets([len(prompt) + max_len for prompt in prompts], max_tokens):
            start, valid = (tensor.to(device) for tensor in left_padded([prompts[index] for index in group]))
            limits = torch.full((len(group),), max_len, device=device)
            written = greedy_search(decoder_only_next_logits(model, valid), start, limits)
            for index, text in zip(group, tokenizer.decode_batch(written), strict=True):
                results[index] = text
            bar.update(len(group))
    return results


@dataclass
class Chat:
    """A conversation with a dialogue model; `turns` holds what was said, user and bot in turn."""

    model: DecoderOnly
    tokenizer: Tokenizer
    context: int = 256
    turns: list[str] = field(default_factory=list)

    def say(self, text: str) -> str:
        """The bot's answer to a turn of the user; both are added to `turns`.

        Raises ValueError for an empty turn, and for one that is too long for the model.
        """
        text = " ".join(text.split())
        if not text:
            raise ValueError("the turn is empty; write something.")
        (answer,) = replies(self.model, self.tokenizer, [[*self.turns, text]], context=self.context)
        self.turns += [text, answer]
        return answer

    def transcript(self) -> str:
        """What was said so far, a line for each turn."""
        return "\n".join(f"{('user', 'bot')[number % 2]:>4}: {turn}" for number, turn in enumerate(self.turns))


def chat_box(chat: Chat) -> widgets.VBox:
    """A small box to talk to the model: write a turn, press Send. "Start again" forgets everything."""
    shown, message = widgets.HTML(), widgets.Label()
    shown.layout = widgets.Layout(border="1px solid var(--jp-border-color1, grey)", padding="0 8px", min_height="12em")
    line = widgets.Text(placeholder="your turn", layout=widgets.Layout(width="auto"))  # 100 % would add the margins
    send, again = widgets.Button(description="Send"), widgets.Button(description="Start again")

    def update(text: str = "") -> None:
        shown.value = f'<pre style="white-space: pre-wrap; margin: 0">{escape(chat.transcript())}</pre>'
        message.value = text

    def on_send(_: widgets.Button) -> None:
        try:
            chat.say(line.value)
        except ValueError as error:
            return update(str(error))
        line.value = ""
        return update()

    def on_again(_: widgets.Button) -> None:
        chat.turns.clear()
        update()

    send.on_click(on_send)
    again.on_click(on_again)
    update()
    return widgets.VBox([shown, line, widgets.HBox([send, again, message])])
