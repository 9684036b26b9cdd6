"""A restaurant's booking bot: generated dialogues in which the guests change their minds."""

import random

WISHES = {  # what a booking needs, in the order in which the bot asks for it, and the values it can take
    "people": tuple(f"for {number}" for number in ("two", "three", "four", "five", "six", "seven", "eight")),
    "day": tuple(f"on {day}" for day in ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday")),
    "time": tuple(f"at {time}" for time in ("noon", "one", "two", "six", "seven", "eight", "nine")),
    "place": ("in the garden", "by the window", "at the bar", "upstairs", "near the door"),
}
CLOSED = "on monday"
QUESTIONS = {
    "people": "for how many people?",
    "day": "on which day?",
    "time": "at what time?",
    "place": "where would you like to sit?",
}
OPENINGS = ("hello, i would like {}.", "good evening, {}, please.", "can i book {}?")
ANSWERS = ("{}.", "{}, please.", "let us say {}.", "{} would be good.")
CORRECTIONS = ("sorry, {new}, not {old}.", "no, better {new}.", "wait, make it {new}.", "{new} instead, please.")
REMINDERS = {
    "people": "how many did i say we are?",
    "day": "which day was that again?",
    "time": "what time did i say?",
    "place": "where do we sit?",
}
ASIDES = ("my sister was there {}.", "last year we came {}.", "a friend of mine likes it {}.")
ACCEPTED = ("no, book it.", "that is all, thank you.", "no, that is all.")
REFUSED = ("forget it, please.", "we changed our minds, no table.")


def bookings(count: int, *, seed: int = 0) -> list[list[str]]:
    """`count` different dialogues, each a list of turns: guest and bot in turn, and the bot has the last word.

    The bot asks for what is missing, notes changes, and reads everything back at the end. What it says follows from
    what was said before, so each of its turns has one right wording. A guest may correct an earlier wish, ask for
    one, or say something in passing that never counts. The same seed gives the same dialogues, and a larger count only
    adds to them.
    """
    chance, written = random.Random(seed), {}
    while len(written) < count:
        dialogue = _booking(chance)
        written.setdefault(tuple(dialogue), dialogue)
    return list(written.values())


def _booking(chance: random.Random) -> list[str]:
    wishes, turns = _first_wishes(chance)
    for _ in range(chance.randrange(4)):
        said, answer, changed = chance.choice((_change, _change, _reminder, _aside))(chance, wishes)
        wishes |= changed
        turns += [said, f"{answer} anything else?"]
    if chance.random() < 0.15:
        return [*turns, chance.choice(REFUSED), "nothing is booked. goodbye."]
    return [*turns, chance.choice(ACCEPTED), f"booked: {_table(wishes)}. goodbye."]


def _first_wishes(chance: random.Random) -> tuple[dict[str, str], list[str]]:
    """The turns until all wishes are known, and the wishes."""
    wishes = {wish: chance.choice(WISHES[wish]) for wish in WISHES if chance.random() < 0.35}
    turns = [chance.choice(OPENINGS).format(_table(wishes))]
    while True:
        closed = "we are closed on monday. " if wishes.get("day") == CLOSED else ""
        if closed:
            del wishes["day"]
        missing = [wish for wish in WISHES if wish not in wishes]
        if not missing:
            return wishes, [*turns, f"{_table(wishes)}. anything else?"]
        asked = "day" if closed else missing[0]
        value, correction = chance.choice(WISHES[asked]), ""
        turns += [closed + QUESTIONS[asked]]
        if wishes and chance.random() < 0.3:
            correction, _, changed = _change(chance, wishes)
            wishes |= changed
        wishes[asked] = value
        turns += [f"{chance.choice(ANSWERS).format(value)} {correction}".strip()]


def _table(wishes: dict[str, str]) -> str:
    return " ".join(["a table", *(wishes[wish] for wish in WISHES if wish in wishes)])


def _change(chance: random.Random, wishes: dict[str, str]) -> tuple[str, str, dict[str, str]]:
    """The guest changes a wish: what is said, the answer, and the change."""
    wish, old = chance.choice(list(wishes.items()))
    new = chance.choice([value for value in WISHES[wish] if value not in (old, CLOSED)])
    return chance.choice(CORRECTIONS).format(new=new, old=old), f"{new}, noted.", {wish: new}


def _reminder(chance: random.Random, wishes: dict[str, str]) -> tuple[str, str, dict[str, str]]:
    """The guest asks for a wish."""
    wish = chance.choice(list(wishes))
    return REMINDERS[wish], f"{wishes[wish]}.", {}


def _aside(chance: random.Random, _: dict[str, str]) -> tuple[str, str, dict[str, str]]:
    """The guest names a value that has nothing to do with the booking."""
    return chance.choice(ASIDES).format(chance.choice(WISHES[chance.choice(list(WISHES))])), "i see.", {}
