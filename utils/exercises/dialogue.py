"""Exercises of notebook 08, dialogue."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from utils.corpora import BOT, EOS, USER, dialogue_tokens, text_batch
from utils.exercises.core import Exercise
from utils.exercises.mistakes import POLARITY, TRANSPOSED, flipped, transposed
from utils.masks import all_of, any_of, causal_mask, mask_from_text, padding_mask, segment_mask
from utils.training import token_loss

check_label_flags = Exercise(
    task="The loss mask of the six labels of [USER] hi [EOS] [BOT] hello there [EOS]: one sign each, ■ if it counts.",
    solution=mask_from_text("⬚⬚⬚■■■"),
    mistakes={
        "Not shifted: these are the flags of the six queries. A flag belongs to the token that is predicted, and the "
        "query [BOT] predicts a word of the bot.": mask_from_text("⬚⬚⬚⬚■■"),
        "No end: [EOS] of the bot's turn counts, or it never learns to stop.": mask_from_text("⬚⬚⬚■■⬚"),
        "Speaker token counted: [BOT] is given to the bot when it is its turn. It does not choose to speak.": (
            mask_from_text("⬚⬚■■■■")
        ),
        "Every end counted: the first [EOS] is written by the guest.": mask_from_text("⬚■⬚■■■"),
        "Both speakers counted: the guest's words are read, and not guessed.": mask_from_text("■■■■■■"),
        POLARITY: mask_from_text("■■■⬚⬚⬚"),
    },
)


def bot_loss(
    logits: Float[Tensor, "B queries V"], tokens: Int[Tensor, "B L"], scored: Bool[Tensor, "B L"]
) -> Float[Tensor, ""]:
    """The mean loss over the bot's labels, from the outputs of all tokens but the last."""
    return token_loss(logits, tokens[:, 1:], scored[:, 1:])


def _conversations(lengths: list[list[int]]) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Tokens and scored flags of dialogues whose turns have these numbers of words, [USER] first; padded."""
    turns = [
        [
            [(USER, BOT)[number % 2], *(10 + (3 * number + word) % 8 for word in range(size)), EOS]
            for number, size in row
        ]
        for row in map(enumerate, lengths)
    ]
    batch = text_batch(*zip(*map(dialogue_tokens, turns), strict=True))
    return batch.tokens, batch.scored


CONVERSATIONS = [
    _conversations(lengths)
    for lengths in ([[1, 1]], [[2, 1], [1, 2, 1, 3]], [[1, 2, 1], [3, 1]], [[1, 1, 1, 2, 2, 1], [2, 3], [1, 2, 1]])
]


def _with_logits(tokens: Int[Tensor, "B L"], scored: Bool[Tensor, "B L"]) -> tuple[Tensor, Tensor, Tensor]:
    """Random logits over 20 tokens for all tokens but the last."""
    numbers = torch.Generator().manual_seed(tokens.numel())
    return torch.randn(len(tokens), tokens.shape[1] - 1, 20, generator=numbers).round(decimals=1), tokens, scored


check_bot_loss = Exercise(
    task="bot_loss(logits, tokens, scored): [B, L - 1, V], [B, L], [B, L] -> the mean loss over the bot's labels.",
    solution=bot_loss,
    cases=[_with_logits(*conversation) for conversation in CONVERSATIONS],
    mistakes={
        "Flags not shifted: a label counts if the token *before* it is the bot's. So the first word of each turn never "
        "counts, and the token after its end does.": lambda logits, tokens, scored: token_loss(
            logits, tokens[:, 1:], scored[:, :-1]
        ),
        "Labels not shifted: each query is asked for its own token, which it sees. Query t predicts token t + 1.": (
            lambda logits, tokens, scored: token_loss(logits, tokens[:, :-1], scored[:, 1:])
        ),
        "Neither is shifted: flags and labels belong together, and together to the *next* token.": (
            lambda logits, tokens, scored: token_loss(logits, tokens[:, :-1], scored[:, :-1])
        ),
        "No loss mask: the guest's words count as well, and padding too.": lambda logits, tokens, scored: token_loss(
            logits, tokens[:, 1:], torch.ones_like(scored[:, 1:])
        ),
        "Divided by all labels: a mean over the bot's labels is divided by *their* number. Otherwise a talkative guest "
        "makes the loss small.": lambda logits, tokens, scored: (
            bot_loss(logits, tokens, scored) * scored[:, 1:].float().mean()
        ),
    },
)

check_open_cells = Exercise(
    task="How many cells are True in the mask [1, 1, 16, 16] of a row with dialogues of 5, 3 and 4 tokens: a number.",
    solution=41,
    mistakes={
        "Padding forgotten: the four places of padding are a segment, so that no query is without a key. It has a "
        "triangle, too.": 31,
        "Squares: the causal mask leaves the lower triangle of each.": 66,
        "One large triangle: the segment mask closes what lies between the dialogues.": 136,
        "Without the diagonal: a query sees itself, so a triangle of n tokens has n (n + 1) / 2 cells.": 25,
        "Padding added to the last dialogue: it is a segment of its own.": 57,
    },
)


def last_reply(tokens: Int[Tensor, "B L"], scored: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """The flags of `scored` that belong to the last turn of the bot in each dialogue."""
    reply = (tokens == BOT).cumsum(dim=1)  # [B, L]: how many turns of the bot have begun
    return scored & (reply == reply[:, -1:])


def _one_number_for_all(tokens: Int[Tensor, "B L"], scored: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    reply = (tokens == BOT).cumsum(dim=1)
    return scored & (reply == reply.max())


def _last_run_to_the_end(tokens: Int[Tensor, "B L"], scored: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    reply = (tokens == BOT).cumsum(dim=1)
    return reply == reply[:, -1:]


def _last_turn(tokens: Int[Tensor, "B L"], scored: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    turn = ((tokens == USER) | (tokens == BOT)).cumsum(dim=1)
    return scored & (turn == turn[:, -1:])


check_last_reply = Exercise(
    task="last_reply(tokens, scored): [B, L], [B, L] -> Bool[B, L], the flags of the bot's last turn alone.",
    solution=last_reply,
    cases=CONVERSATIONS,
    mistakes={
        "All replies: nothing has been taken away from scored.": lambda tokens, scored: scored.clone(),
        "One number for the whole batch: a dialogue with fewer turns than the longest loses all its flags. Compare "
        "each row with its own last number.": _one_number_for_all,
        "Too much: [BOT], padding and the guest's next turn are in it. The last reply is a part of scored: join both "
        "with &.": _last_run_to_the_end,
        "Last turn of all: where the guest speaks last, nothing counts. Number the turns of the bot.": _last_turn,
        "The first reply: (tokens == BOT).cumsum(dim=1) is 1 there. The last one has the number that stands at the "
        "end of the row.": lambda tokens, scored: scored & ((tokens == BOT).cumsum(dim=1) == 1),
        POLARITY: flipped(last_reply),
    },
)


def own_words_forgotten(tokens: Int[Tensor, "B L"]) -> Bool[Tensor, "B 1 L L"]:
    """Causal; all that the guest has said is visible, and of the bot's words those of the query's own turn."""
    turn = ((tokens == USER) | (tokens == BOT)).cumsum(dim=1)  # [B, L]: odd numbers are the guest's
    own_or_guest = any_of(segment_mask(turn), padding_mask(turn % 2 == 1))
    return all_of(causal_mask(tokens.shape[1]), own_or_guest)


def _turns(tokens: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    return ((tokens == USER) | (tokens == BOT)).cumsum(dim=1)


def _guest_alone(tokens: Int[Tensor, "B L"]) -> Bool[Tensor, "B 1 L L"]:
    return all_of(causal_mask(tokens.shape[1]), padding_mask(_turns(tokens) % 2 == 1))


check_own_words_forgotten = Exercise(
    task="own_words_forgotten(tokens): [B, L] -> [B, 1, L, L]; the guest's words, and those of the query's own turn.",
    solution=own_words_forgotten,
    cases=[
        (torch.tensor(rows),)
        for rows in (
            [[USER, EOS, BOT, EOS, USER, EOS]],
            [[USER, 9, BOT, 9, USER, 9, BOT, 9]],
            [[USER, 9, 9, BOT, 9, EOS, USER], [USER, BOT, 9, USER, 9, BOT, EOS]],
            [[USER, BOT, USER, BOT, USER, BOT]],
        )
    ],
    mistakes={
        "Future visible: the causal mask is missing.": lambda tokens: any_of(
            segment_mask(_turns(tokens)), padding_mask(_turns(tokens) % 2 == 1)
        ),
        "The present turn is missing: a bot that does not see what it has just written cannot go on with it.": (
            _guest_alone
        ),
        "Only the present turn: what the guest has said is to stay visible. Join two masks by any_of.": lambda tokens: (
            all_of(causal_mask(tokens.shape[1]), segment_mask(_turns(tokens)))
        ),
        "Nothing forgotten: this is the causal mask.": lambda tokens: causal_mask(tokens.shape[1]),
        "[BOT] left open: a turn is forgotten as a whole, and [BOT] is its first token.": lambda tokens: any_of(
            own_words_forgotten(tokens), all_of(causal_mask(tokens.shape[1]), padding_mask(tokens == BOT))
        ),
        "Speakers compared, not turns: the bot sees all its own words and not the guest's.": lambda tokens: all_of(
            causal_mask(tokens.shape[1]), segment_mask(_turns(tokens) % 2)
        ),
        "The wrong speaker: the bot's words stay visible, and the guest's are forgotten.": lambda tokens: all_of(
            causal_mask(tokens.shape[1]), any_of(segment_mask(_turns(tokens)), padding_mask(_turns(tokens) % 2 == 0))
        ),
        TRANSPOSED: transposed(own_words_forgotten),
        POLARITY: flipped(own_words_forgotten),
    },
)
