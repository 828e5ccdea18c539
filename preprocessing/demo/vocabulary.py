"""The vocabulary of the embedded dataset: verbs, nouns and activities with their classes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A kind of movement; `{}` in its phrases stands for the thing."""

    name: str
    tags: tuple[int, ...]  # verb classes, 0 to 117
    phrase: str  # used by the first narrator
    rephrased: str  # used by the second narrator
    needs: str = ""  # property that the noun must have; empty: any noun


@dataclass(frozen=True)
class Noun:
    """A thing on the table."""

    name: str
    tags: tuple[int, ...]  # noun classes, 0 to 581
    looks: str  # phrase with its colour
    properties: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Activity:
    """A sequence of actions with a name that is used in summaries only.

    No narration contains the words or the classes of an activity's name.
    """

    name: str
    rephrased: str  # used by the second narrator
    tag_verb: tuple[int, ...]
    tag_noun: tuple[int, ...]
    steps: tuple[tuple[str, str], ...]  # (verb, noun) in order


VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb("lift", (93,), "lifts {}", "picks up {}"),
        Verb("put", (64, 92), "puts down {}", "lays {} down"),
        Verb("push", (71,), "pushes {} away", "slides {} away"),
        Verb("pull", (70,), "pulls {} closer", "drags {} closer"),
        Verb("turn", (110,), "turns {} around", "rotates {}"),
        Verb("shake", (82,), "shakes {}", "jiggles {}"),
        Verb("tap", (101,), "taps {}", "pats {}"),
        Verb("wipe", (115,), "wipes {} with a cloth", "rubs {} with a cloth"),
        Verb("toss", (105,), "throws {} in the air", "tosses {} up"),
        Verb("open", (61,), "opens {}", "takes the lid off {}", "lid"),
        Verb("close", (12,), "closes {}", "puts the lid on {}", "lid"),
        Verb("cut", (17,), "cuts {}", "slices {} with a knife", "soft"),
        Verb("pour", (67,), "pours from {}", "tips out {}", "spout"),
        Verb("stir", (98,), "stirs in {}", "mixes in {} with a spoon", "hollow"),
    )
}

NOUNS: dict[str, Noun] = {
    noun.name: noun
    for noun in (
        Noun("cup", (136,), "red cup", frozenset({"spout", "hollow"})),
        Noun("bowl", (58,), "blue bowl", frozenset({"hollow"})),
        Noun("plate", (393,), "white plate"),
        Noun("bottle", (56, 225), "green bottle", frozenset({"lid", "spout"})),
        Noun("jar", (260,), "orange jar", frozenset({"lid"})),
        Noun("kettle", (268,), "grey kettle", frozenset({"lid", "spout"})),
        Noun("box", (60,), "brown box", frozenset({"lid"})),
        Noun("book", (53,), "purple book"),
        Noun("apple", (7,), "green apple", frozenset({"soft"})),
        Noun("lemon", (283,), "yellow lemon", frozenset({"soft"})),
        Noun("bread", (68,), "brown bread", frozenset({"soft"})),
        Noun("carrot", (93,), "orange carrot", frozenset({"soft"})),
        Noun("sponge", (498,), "pink sponge"),
        Noun("phone", (379,), "black phone"),
        Noun("ball", (23,), "striped ball"),
    )
}


def possible(verb: str, noun: str) -> bool:
    """Return whether a verb applies to a noun (both by name)."""
    needs = VERBS[verb].needs
    return not needs or needs in NOUNS[noun].properties


def _pair(
    steps: str, forward: tuple[str, str, int, int], backward: tuple[str, str, int, int]
) -> tuple[Activity, Activity]:
    order = tuple((verb, noun) for verb, noun in (step.split() for step in steps.split(", ")))
    (name, rephrased, verb, noun), (name_b, rephrased_b, verb_b, noun_b) = forward, backward
    return (
        Activity(name, rephrased, (verb,), (noun,), order),
        Activity(name_b, rephrased_b, (verb_b,), (noun_b,), order[::-1]),
    )


# Pairs share steps, so that no single action identifies an activity: among the first k pairs (k > 1), every pair shares
# a step with another. Within a pair, only the order of the steps differs.
ACTIVITY_PAIRS: tuple[tuple[Activity, Activity], ...] = (
    _pair(
        "pour kettle, cut lemon, stir cup, push jar",
        ("prepared tea", "got tea ready", 69, 541),
        ("cleared the tea things", "tidied the tea things", 11, 541),
    ),
    _pair(
        "pour kettle, cut bread, open jar, pull plate",
        ("cooked breakfast", "made a breakfast", 14, 542),
        ("finished breakfast", "ended a breakfast", 33, 542),
    ),
    _pair(
        "open box, cut bread, lift bottle, wipe plate",
        ("packed for a picnic", "got ready for a picnic", 63, 543),
        ("unpacked after a picnic", "ended a picnic", 77, 543),
    ),
    _pair(
        "cut lemon, cut apple, stir bowl, pull plate",
        ("prepared a salad", "made some salad", 69, 544),
        ("stored a salad", "preserved some salad", 97, 544),
    ),
    _pair(
        "stir cup, pull plate, tap phone, turn book",
        ("welcomed a guest", "hosted a visitor", 116, 545),
        ("dismissed a guest", "escorted a visitor", 27, 545),
    ),
    _pair(
        "tap phone, open box, turn book, toss ball",
        ("played a game", "enjoyed a game", 65, 546),
        ("taught a game", "explained a game", 103, 546),
    ),
    _pair(
        "wipe plate, shake sponge, lift bottle, put bowl",
        ("cleaned the kitchen", "did housework", 10, 547),
        ("inspected the kitchen", "reviewed housework", 43, 547),
    ),
    _pair(
        "cut carrot, stir bowl, shake sponge, toss ball",
        ("entertained the children", "looked after the kids", 29, 548),
        ("photographed the children", "portrayed the kids", 66, 548),
    ),
)


def activities(pairs: int) -> list[Activity]:
    """Return the activities of the first `pairs` pairs."""
    return [activity for pair in ACTIVITY_PAIRS[:pairs] for activity in pair]
