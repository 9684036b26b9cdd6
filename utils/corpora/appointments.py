"""Appointments: a generated dialogue in which two people change their plans, and one sentence with what they agreed."""

import random
from typing import NamedTuple

NAMES = ("anna", "ben", "carla", "david", "emma", "felix", "grace", "henry", "iris", "jonas", "kate", "leo")
EVENTS = ("lunch", "coffee", "dinner", "chess", "a walk", "a talk", "tennis", "a drink")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
TIMES = ("eight", "nine", "ten", "eleven", "noon", "one", "two", "three", "four", "five", "six", "seven")
PLACES = ("park", "library", "museum", "garden", "office", "kitchen", "hall", "theatre")
CHOICES = {  # what can be changed, and the values it can take
    "day": tuple(f"on {day}" for day in DAYS),
    "time": tuple(f"at {time}" for time in TIMES),
    "place": tuple(f"in the {place}" for place in PLACES),
}
PROPOSALS = ("could we make it {}?", "what about meeting {}?", "i would rather meet {}.", "or shall we meet {}?")
ACCEPTED = ("fine with me.", "yes, that works.", "good idea.", "all right.")
REFUSED = ("sorry, i cannot.", "no, let us keep our plan.", "that does not work for me.", "please not.")
ASIDES = ("i saw {other} {}.", "{other} has a class {}.", "it is so loud {}.", "my sister sings {}.")


class Plan(NamedTuple):
    """What two people have agreed on so far."""

    day: str
    time: str
    place: str


def appointments(count: int, *, seed: int = 0) -> tuple[list[str], list[str]]:
    """`count` different dialogues about an appointment, and for each the sentence that sums it up.

    A proposal counts only if it is accepted, and what is said aside counts never: so the day, the time and the
    place that are named last are often not the ones agreed on. The same seed gives the same dialogues, and a
    larger count only adds to them.
    """
    chance, written = random.Random(seed), {}
    while len(written) < count:
        dialogue, summary = _appointment(chance)
        written.setdefault(dialogue, summary)
    return list(written), list(written.values())


def _appointment(chance: random.Random) -> tuple[str, str]:
    first, second, other = chance.sample(NAMES, 3)
    event, plan = chance.choice(EVENTS), Plan(*map(chance.choice, CHOICES.values()))
    lines = [f"hi {second}, shall we meet for {event} {plan.day} {plan.time} {plan.place}?"]
    lines.append(chance.choice(ACCEPTED))
    for _ in range(chance.randrange(3)):
        changed, said = _exchange(chance, plan)
        plan, lines = changed, lines + said
    if chance.random() < 0.4:  # after any answer, so that the turns still alternate
        place = chance.randrange(2, len(lines) + 1, 2)
        lines[place:place] = [_aside(chance, other), "really?"]
    lines.append("see you then.")
    dialogue = " ".join(f"{(first, second)[turn % 2]}: {line}" for turn, line in enumerate(lines))
    return dialogue, f"{first} and {second} meet for {event} {plan.day} {plan.time} {plan.place}."


def _exchange(chance: random.Random, plan: Plan) -> tuple[Plan, list[str]]:
    """A proposal and its answer: the plan after it, and the two lines."""
    what = chance.choice(Plan._fields)
    new = chance.choice([value for value in CHOICES[what] if value != getattr(plan, what)])
    proposal = chance.choice(PROPOSALS).format(new)
    if chance.random() < 0.7:
        return plan._replace(**{what: new}), [proposal, chance.choice(ACCEPTED)]
    return plan, [proposal, chance.choice(REFUSED)]


def _aside(chance: random.Random, other: str) -> str:
    """Something that names a day, a time or a place and has nothing to do with the appointment."""
    value = chance.choice(CHOICES[chance.choice(Plan._fields)])
    return chance.choice(ASIDES).format(value, other=other)
