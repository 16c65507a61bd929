"""Load the wordings of the free captions, and sample from them.

assets/toybox/phrases.toml  ->  wordings(section, name): entries of alternatives;  verbs(motion): groups of VerbForms
"""

import re
import tomllib
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import NamedTuple, TypeVar

from videogen.toybox.world.captions import DIGIT_NAMES
from videogen.toybox.world.things import DIGITS, SPRITE_SHEET

T = TypeVar("T")
PHRASES_FILE = SPRITE_SHEET.with_name("phrases.toml")

Wordings = tuple[tuple[str, ...], ...]
"""Entries, each with its alternatives."""


class VerbForms(NamedTuple):
    """A verb with its complements, as in "drift left", "drifts left" and "drifting left"."""

    base: str
    finite: str
    participle: str

    def with_adverbials(self, *adverbials: str) -> "VerbForms":
        """Append adverbials to every form, but those that are empty."""
        return VerbForms._make(" ".join(filter(None, (form, *adverbials))) for form in self)

    def of_several(self) -> "VerbForms":
        """Put the verb into the plural: its finite form becomes that of several things."""
        base, _, participle = (pluralise(form) for form in self)
        finite = re.sub("^be ", "are ", re.sub("^not ", "do not ", base))
        return VerbForms(base, finite, participle)


def pluralise(text: str) -> str:
    """Refer to several things where a text refers to one: "its place" -> "their place"."""
    text = re.sub(r"\bit is\b", "they are", re.sub(r"\bits\b", "their", text))
    return re.sub(r"\bit (move|stand)s\b", r"they \1", text.replace("itself", "themselves"))


class VerbGroup(NamedTuple):
    """Verbs, the adverbials of direction that complete them (none if they are complete), and a weight."""

    verbs: tuple[tuple[VerbForms, ...], ...]
    ways: Wordings
    weight: int


class Words:
    """Sample words by a generator; random() alone is drawn from it, so that no version of Python changes a caption."""

    def __init__(self, rng: Random) -> None:
        self.random = rng.random

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return self.random() < probability

    def choose(self, options: Sequence[T]) -> T:
        """Sample one of several options uniformly."""
        return options[int(self.random() * len(options))]

    def pick(self, section: str, name: str) -> str:
        """Sample an entry of a table, and one of its alternatives."""
        return self.choose(self.choose(wordings()[section, name]))

    def verb(self, section: str, name: str) -> VerbForms:
        """Sample a verb phrase of a table."""
        return self.choose(self.choose(inflected(section, name)))

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """Shuffle a copy of a sequence."""
        return [option for _, option in sorted(((self.random(), option) for option in options), key=lambda x: x[0])]


OPPOSITES = {"left": "right", "right": "left", "up": "down", "down": "up", "top": "bottom", "bottom": "top"}
ADVERBS = frozenset(("slowly", "gradually", "steadily", "gently", "simply", "just"))
"""Adverbs that a verb phrase may begin with."""
DOUBLED = frozenset(
    (
        "bob", "hop", "jog", "pad", "run", "skip", "sit", "slip", "spin", "swim", "trot", "dip", "drop", "get", "hit",
        "flit", "travel", "swivel", "pan", "patrol", "swap", "set",
        "shrivel",
    )
)  # fmt: skip
"""Verbs that double their last letter before "-ing"."""


def direction_fields(direction: str) -> dict[str, str]:
    """Name the parts of a direction such as "up left", as the tables do in braces."""
    parts = direction.split()
    side = next((part for part in parts if part in ("left", "right")), "")
    way = next((part for part in parts if part in ("up", "down")), "")
    end, level = {"up": ("top", "upper"), "down": ("bottom", "lower"), "": ("", "")}[way]
    return {
        "side": side, "other": OPPOSITES.get(side, ""), "way": way,
        "end": end, "start": OPPOSITES.get(end, ""), "level": level, "to": "to the " + side if side else way + "wards",
    }  # fmt: skip


def expand(text: str) -> tuple[str, ...]:
    """Expand "(a|b) c" to "a c", "b c", each "a" before a vowel written as "an"."""
    group = re.search(r"\(([^()]*\|[^()]*)\)", text)
    if group is None:
        return (re.sub(r"\ba (?=[aeio])(?!one )", "an ", re.sub(" +", " ", text)),)
    before, after = text[: group.start()], text[group.end() :]
    texts = (f"{before}{choice}{after}" for choice in group[1].split("|"))
    # An empty alternative at an end leaves a space, which only conjunctions and the like have of their own.
    trimmed = (part if text[0] == " " or text[-1] == " " else part.strip() for part in texts)
    return tuple(dict.fromkeys(wording for part in trimmed for wording in expand(part)))


@cache
def tables() -> dict[str, dict[str, list[str]]]:
    """Read the tables of phrases.toml."""
    return tomllib.loads(PHRASES_FILE.read_text(encoding="utf-8"))


@cache
def wordings() -> dict[tuple[str, str], Wordings]:
    """Expand all tables, by section and name."""
    expanded = {
        (section, name.replace("_", " ")): tuple(expand(entry) for entry in entries)
        for section, names in tables().items()
        for name, entries in names.items()
    }
    for digit, word in zip(DIGITS, DIGIT_NAMES, strict=True):
        entries = [*tables()["digits"]["any"], *(tables()["digits"]["named"] if digit != "1" else [])]
        entries += tables()["digits"]["zero"] if digit == "0" else []
        expanded["kinds", digit] = tuple(expand(entry.format(digit=digit, word=word)) for entry in entries)
    for direction in ("left", "right", "up", "down"):
        fields = direction_fields(direction)
        axis = "sideways" if fields["side"] else "vertical"
        pans = [f"{verb} {way}" for verb in tables()["camera"]["pan"] for way in tables()["camera"][f"pan_{axis}"]]
        pans += [verb for verb in tables()["camera"].get(f"pan_{direction}", []) for _ in range(4)]
        expanded["camera", f"pan {direction}"] = tuple(expand(pan.format(**fields)) for pan in pans)
        tags = tables()["camera"]["tag_pan"]
        expanded["camera", f"tag pan {direction}"] = tuple(expand(tag.format(**fields)) for tag in tags)
        expanded["ways", direction] = ways(direction, axis)
    return expanded


def ways(direction: str, *names: str) -> Wordings:
    """Expand the adverbials of a direction from tables of [ways]."""
    fields = direction_fields(direction)
    return tuple(expand(entry.format(**fields)) for name in names for entry in tables()["ways"][name])


def inflect(phrase: str) -> VerbForms:
    """Inflect the first word of a verb phrase that is no adverb, or take the forms that are written out.

    "glide up" -> "glide up", "glides up", "gliding up"; "not move / does not move / not moving" is taken as it is.
    """
    if " / " in phrase:
        base, *finite, participle = phrase.split(" / ")
        finite = finite[0] if finite else base  # Of two things, the finite form is the base form.
    else:
        words = phrase.split(" ")
        at = next(i for i, word in enumerate(words) if word not in ADVERBS)
        before, verb, after = words[:at], words[at], words[at + 1 :]
        third, ing = third_person(verb), present_participle(verb)
        # "keep moving" -> "moving", "be stationary" -> "stationary": the verb adds nothing to a participle.
        redundant = verb == "be" or (verb == "keep" and after[0].endswith("ing"))
        rest, rest_third, rest_ing = after, after, after
        if after[:1] == ["and"]:  # "rise and fall"
            rest_third, rest_ing = (["and", form(rest[1]), *rest[2:]] for form in (third_person, present_participle))
        base, finite = phrase, " ".join([*before, third, *rest_third])
        participle = " ".join([*before, *([] if redundant else [ing]), *rest_ing])
    return VerbForms(base, finite, participle)


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun."""
    return ("an " if noun[0] in "aeiou8" and not noun.startswith(("one", "eu")) else "a ") + noun


def without_article(noun: str) -> str:
    """Take "a", "an" or "the" off a noun."""
    return re.sub("^(a|an|the) ", "", noun)


def third_person(verb: str) -> str:
    """Inflect a verb for he, she or it."""
    if verb == "be":
        return "is"
    if verb == "have":
        return "has"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("s", "x", "z", "ch", "sh", "go", "do")) else "s")


def present_participle(verb: str) -> str:
    """Inflect a verb to its form in -ing."""
    if verb in DOUBLED:
        return verb + verb[-1] + "ing"
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    return (verb[:-1] if verb.endswith("e") and not verb.endswith("ee") else verb) + "ing"


def verb_entries(section: str, *names: str, **fields: str) -> tuple[tuple[VerbForms, ...], ...]:
    """Inflect every entry of tables of verbs, {side} and the like filled in."""
    entries = []
    for entry in (entry for name in names for entry in tables()[section][name]):
        for key, value in fields.items():
            entry = entry.replace(f"{{{key}}}", value)
        parts = [expand(part) for part in entry.split(" / ")]  # Alternatives of written-out forms go together.
        entries.append(tuple(inflect(" / ".join(forms)) for forms in zip(*parts, strict=True)))
    return tuple(entries)


@cache
def inflected(section: str, name: str) -> tuple[tuple[VerbForms, ...], ...]:
    """Inflect every alternative of a table of verbs."""
    if section == "camera" and name.startswith("pan "):
        return tuple(tuple(inflect(verb) for verb in entry) for entry in wordings()[section, name])
    return verb_entries(section, name.replace(" ", "_"))


@cache
def verb_groups(motion: str, kind: str) -> tuple[VerbGroup, ...]:
    """List the groups of verbs that state a motion of a kind of thing, each as often as it weighs."""
    fields, name = direction_fields(motion), motion.replace(" ", "_")
    side, way = fields["side"], fields["way"]
    if motion.startswith("roll"):
        groups = [VerbGroup(verb_entries("motions", "roll"), ways(motion, "sideways"), 1)]
    elif name in tables()["motions"]:
        groups = [
            VerbGroup(verb_entries("motions", name), (), 3),
            VerbGroup(verb_entries("simple", name), wordings()["manner", motion], 2),
        ]
    elif side and way:
        short = tuple(expand(entry.format(**fields)) for entry in tables()["moving"]["short_side"])
        groups = [
            VerbGroup(verb_entries("moving", "any"), ways(motion, "diagonal"), 5),
            VerbGroup(verb_entries("moving", "whole_diagonal", **fields), (), 2),
            VerbGroup(verb_entries("moving", "rise_sideways" if way == "up" else "fall_sideways"), short, 2),
            *kind_groups(motion, kind, "diagonal"),
        ]
    elif side:
        groups = [
            VerbGroup(verb_entries("moving", "any"), ways(motion, "sideways"), 5),
            VerbGroup(verb_entries("moving", "whole_sideways", **fields), (), 2),
            *kind_groups(motion, kind, "sideways"),
        ]
    else:
        groups = [
            VerbGroup(verb_entries("moving", "any"), ways(motion, "vertical", way), 4),
            VerbGroup(verb_entries("moving", way), (), 3),
            VerbGroup(verb_entries("moving", f"whole_{way}"), (), 2),
            *kind_groups(motion, kind, "vertical"),
        ]
    return tuple(group for group in groups for _ in range(group.weight))


def kind_groups(motion: str, kind: str, axis: str) -> list[VerbGroup]:
    """List the groups of verbs that only one kind of thing has, such as a bird that flies to the left."""
    sections = ("moving_of", "moving_sideways_of") if axis == "sideways" else ("moving_of",)
    groups = [
        VerbGroup(verb_entries(section, kind), ways(motion, axis), 5)
        for section in sections
        if kind in tables()[section]
    ]
    if kind == "sun" and motion in tables()["sun"]:
        groups.append(VerbGroup(verb_entries("sun", motion), (), 3))
    return groups
