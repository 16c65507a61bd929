"""Say in free English what the things of a scene are and do.

Said things, Words  ->  Clause: "a star spins", "a star spinning", "a star spin", "a star to spin"
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

from videogen.toybox.world.motions import Thing
from videogen.toybox.world.phrases import OPPOSITES, VerbForms, Words, tables, verb_groups, with_article, wordings
from videogen.toybox.world.scenes import Scene

SLOW, FAST = 1.0, 2.2
"""Pixels per frame below which a caption may call a thing slow, and above which it may call it fast."""
NUMBERS = {2: "two", 3: "three"}


class Said(NamedTuple):
    """A thing, and which of its attributes a caption states."""

    thing: Thing
    size: bool
    colour: bool
    motion: bool
    sense: bool


class Clause(NamedTuple):
    """A statement as a sentence, as a noun with what belongs to it, and after "make" and "I want"."""

    finite: str
    nominal: str
    base: str
    to: str


class Name(NamedTuple):
    """A thing's name in a sentence, how a later sentence calls it, and adjectives for "that is ..."."""

    text: str
    short: str
    predicate: str

    @property
    def full(self) -> str:
        """The name with its adjectives."""
        return f"{self.text} that is {self.predicate}" if self.predicate else self.text


def name_thing(said: Said, words: Words, *, bare: bool, alone: bool, motion: str = "") -> Name:
    """Name a thing, such as "a wee crimson hoop"; bare leaves the article out, alone allows "the", "this" and so on."""
    thing = said.thing
    # The plain names are the most common, as they are among people.
    usual = not thing.kind.isdigit() and words.chance(0.3)
    kind = thing.kind if usual else words.pick("kinds", thing.kind)
    is_long = any(f" {word} " in kind for word in ("with", "on", "from", "for", "of", "like", "fit"))
    adjectives, after, predicates = [motion] if motion else [], "", []
    if said.size:
        if words.chance(0.12) and not bare:
            predicates.append(words.pick("sizes_predicate", thing.size))
        else:
            adjectives.insert(0, words.pick("sizes", thing.size))
    if said.colour:
        number = words.random()
        name = words.pick("colour_names", thing.colour)
        if number < 0.12 and not is_long and not predicates:
            after = " " + words.pick("colour_after", "short").format(colour=name)
        elif number < 0.24 and not bare:
            predicates.append(words.pick("colour_after", "predicate").format(colour=name))
        elif words.chance(0.4):
            adjectives.append(thing.colour)
        else:
            adjectives.append(words.pick("colours", thing.colour))
    noun = " ".join([*adjectives, kind])
    determiner = "a"
    if bare:
        determiner = ""
    elif words.chance(
        0.7 if thing.kind in ("sun", "moon") and not adjectives else 0.3 if thing.kind.isdigit() else 0.1
    ):
        determiner = words.pick("determiners", "digit" if thing.kind.isdigit() else "other" if alone else "definite")
        determiner = "the" if thing.kind in ("sun", "moon") else determiner
    text = with_article(noun) if determiner == "a" else f"{determiner} {noun}".strip()
    return Name(text + after, thing.kind if is_long else kind, " and ".join(predicates))


def verb_phrase(said: Said, words: Words, *, form: str = "", pace: bool = True) -> VerbForms:
    """Say what a thing does, such as "drift slowly off to the left"."""
    thing = said.thing
    group = words.choose(verb_groups(thing.motion, thing.kind))
    verb = words.choose(words.choose(group.verbs))
    while form == "base" and re.match(r"be \w+ing", verb.base):  # "make it be moving" is what nobody says.
        verb = words.choose(words.choose(group.verbs))
    way = words.choose(words.choose(group.ways)) if group.ways else ""
    while way and way.split()[0] == verb.base.split()[-1]:  # "roll along" and "along to the left"
        way = words.choose(words.choose(group.ways))
    adverb = ""
    if pace and thing.motion.split()[0] in OPPOSITES and not re.search(r"ly\b| and ", f"{verb.base} {way}"):
        is_leisurely = verb.base.split()[0] in tables()["pace"]["leisurely"]
        speed = "slow" if thing.speed < SLOW else "fast" if thing.speed > FAST and not is_leisurely else ""
        adverb = words.pick("pace", speed) if speed and words.chance(0.3) else ""
    sense = words.pick("senses", "clockwise" if thing.speed > 0 else "counterclockwise") if said.sense else ""
    return verb.with_adverbials(adverb, way, sense)


def say_thing(name: Name, verb: VerbForms, words: Words) -> Clause:
    """Say what one thing does."""
    finite = f"{name.full} {verb.finite}"
    if name.predicate:
        relative = words.choose(("that", "that", "which"))
        both = f"{name.text} {relative} is {name.predicate} and {verb.finite}"
        nominal = both if words.chance(0.6) else f"{name.full}, {verb.participle}"
    elif words.chance(0.16):
        nominal = f"{name.text} {words.choose(('that', 'that', 'which'))} {verb.finite}"
    else:
        nominal = f"{name.text} {verb.participle}"
    return Clause(finite, nominal, f"{name.full} {verb.base}", f"{name.full} to {verb.base}")


def join_things(things: list[Said], words: Words, *, form: str, bare: bool, sentences: bool) -> Clause:
    """Say what each thing does, in any order; sentences allows several sentences in the finite form."""
    with_verb: list[tuple[Name, VerbForms]] = []
    without_verb: list[Name] = []  # What has no verb comes last, so that no other verb seems to be its own.
    allows_adjectives = form == "nominal" or (form == "finite" and not bare)
    adjectives = MOTION_ADJECTIVES_PROBABILITY if allows_adjectives else 0
    for said in words.shuffled(things):
        has_adjective = said.motion and not said.sense and words.chance(adjectives)
        adjective = motion_adjective(said.thing, words) if has_adjective else ""
        name = name_thing(said, words, bare=bare, alone=len(things) == 1, motion=adjective)
        if said.motion and not adjective:
            with_verb.append((name, verb_phrase(said, words, form=form)))
        else:
            without_verb.append(name)
    if len(with_verb) == 1 and not without_verb:
        ((name, verb),) = with_verb
        return say_alone(name, verb, words, bare=bare)
    if not with_verb:
        listed = join_list([name.full for name in without_verb], words)
        return Clause(f"there {'is' if len(without_verb) == 1 else 'are'} {listed}", listed, "", "")
    if not without_verb and len({said.thing.motion for said in things}) == 1 and words.chance(0.3):
        # A verb that suits every kind, without a pace or sense, which may be those of one thing alone.
        alike = things[0]._replace(thing=replace(things[0].thing, kind="circle"), sense=False)
        return say_together([name for name, _ in with_verb], verb_phrase(alike, words, form=form, pace=False), words)
    clauses = [say_thing(name, verb, words) for name, verb in with_verb]
    joined = join_clauses(clauses, words, sentences=sentences)
    if not without_verb:
        return joined
    listed = join_list([name.full for name in without_verb], words)
    finite, nominal = (words.pick("joined", f"extra {extra_form}") for extra_form in ("finite", "nominal"))
    finite = finite if sentences else ", and there is "
    return Clause(f"{joined.finite}{finite}{listed}", f"{joined.nominal}{nominal}{listed}", "", "")


MOTION_ADJECTIVES_PROBABILITY = 0.1
"""Probability that an adjective such as "spinning" states a motion."""


def motion_adjective(thing: Thing, words: Words) -> str:
    """Sample an adjective that states a whole motion, such as "spinning"; empty where there is none."""
    if ("motion_adjectives", thing.motion) not in wordings():
        return ""
    return words.pick("motion_adjectives", thing.motion)


def say_alone(name: Name, verb: VerbForms, words: Words, *, bare: bool) -> Clause:
    """Say what the only thing does, in more patterns than one of several things has."""
    clause = say_thing(name, verb, words)
    fields = {"subject": name.full, "finite": verb.finite, "participle": verb.participle}
    finite = clause.finite if bare else words.pick("single", "finite").format(**fields)
    nominal = words.pick("single", "nominal").format(**fields)
    return clause._replace(finite=finite, nominal=clause.nominal if name.predicate else nominal)


def say_together(names: list[Name], verb: VerbForms, words: Words) -> Clause:
    """Say what several things do alike, such as "a star and a heart both spin"."""
    number = "both" if len(names) == 2 else "all"
    listed = " and ".join([", ".join(name.full for name in names[:-1]), names[-1].full])
    number = number if words.chance(0.7) else ""
    verb = verb.of_several()
    finite = " ".join(f"{listed} {number} {verb.finite}".split())
    nominal = " ".join(f"{listed}, {number} {verb.participle}".split())
    return Clause(finite, nominal, f"{listed} {verb.base}", f"{listed} to {verb.base}")


def join_clauses(clauses: list[Clause], words: Words, *, sentences: bool) -> Clause:
    """Join what several things do, form by form."""
    if len(clauses) == 1:
        return clauses[0]
    conjunctions = {name: words.pick("joined", name) for name in ("finite", "nominal", "base")}
    while not sentences and ". " in conjunctions["finite"]:
        conjunctions["finite"] = words.pick("joined", "finite")
    if len(clauses) == 2 and sentences and words.chance(0.12):
        finite = f"{words.choose(('while', 'as'))} {clauses[0].finite}, {clauses[1].finite}"
        return join_clauses(clauses, words, sentences=False)._replace(finite=finite)
    between = {form: words.pick("joined", "three") if form == "finite" else ", " for form in Clause._fields}
    conjunctions["to"] = conjunctions["base"]
    if len(clauses) > 2:
        conjunctions = dict.fromkeys(conjunctions, words.choose((" and ", ", and ")))
    return Clause(*(
        conjunctions[form].join([between[form].join(said[:-1]), said[-1]])
        for form, said in ((form, [getattr(clause, form) for clause in clauses]) for form in Clause._fields)
    ))  # fmt: skip


def join_list(names: list[str], words: Words) -> str:
    """List names, the last two joined by a conjunction."""
    if len(names) == 1:
        return names[0]
    conjunction = words.pick("joined", "list") if len(names) == 2 else words.choose((" and ", ", and "))
    return conjunction.join([", ".join(names[:-1]), names[-1]])


def say_relation(things: list[Said], relation: str, words: Words, *, bare: bool) -> Clause:
    """Say where the first of two things is, seen from the second."""
    first, second = (name_thing(said, words, bare=bare, alone=False).full for said in things)
    fields = {"first": first, "second": second, "both": words.choose(("both", "both of them"))}
    finite = words.pick("relation_patterns", "finite")
    nominal = words.pick("relation_patterns", relation if words.chance(0.35) else "nominal")
    phrase = words.pick("relations", relation)
    finite, nominal = (pattern.format(relation=phrase, **fields) for pattern in (finite, nominal))
    return Clause(finite, nominal, "", "")


def say_event(scene: Scene, things: list[Said], words: Words, *, bare: bool) -> Clause:
    """Say that two things pass each other or collide, or that the first passes behind the second."""
    names = [name_thing(said, words, bare=bare, alone=False) for said in things]
    if scene.event == "behind":
        verb, way = words.verb("events", "behind"), words.pick("ways", scene.things[0].motion)
        while " " not in way:  # "behind a star left"
            way = words.pick("ways", scene.things[0].motion)
        fields = {
            "mover": names[0].full, "front": names[1].full, "passes": verb.finite, "passing": verb.participle,
            "way": way,
        }  # fmt: skip
        finite, nominal = (words.pick("event_patterns", f"behind {form}") for form in ("finite", "participle"))
        base = f"{names[0].full} {verb.base} behind {names[1].full} {way}"
        to = f"{names[0].full} to {verb.base} behind {names[1].full} {way}"
        return Clause(finite.format(**fields), nominal.format(**fields), base, to)
    verb = words.verb("events", scene.event)
    from_left = [thing.motion in ("right", "collide from the left") for thing in scene.things].index(True)
    fields = {
        "right_mover": names[from_left].full, "left_mover": names[1 - from_left].full, "collide": verb.base,
    }  # fmt: skip
    if words.chance(0.3):
        finite, nominal = (words.pick("event_patterns", f"{scene.event} {form}") for form in ("finite", "participle"))
        finite, nominal = finite.format(**fields), nominal.format(**fields)
    elif scene.event == "collide" and words.chance(0.25):
        first, second = (name.full for name in words.shuffled(names))
        hit = words.verb("events", "collide_with")
        finite, nominal = f"{first} {hit.finite} {second}", f"{first} {hit.participle} {second}"
    else:
        pair = " and ".join(name.full for name in words.shuffled(names))
        finite, nominal = f"{pair} {verb.base}", f"{pair} {verb.participle}"
    pair = " and ".join(name.full for name in words.shuffled(names))
    return Clause(finite, nominal, f"{pair} {verb.base}", f"{pair} to {verb.base}")


def keywords(things: list[Said], fields: dict[str, str], words: Words, *, background: bool, camera: bool) -> str:
    """List keywords, such as "red circle, moving right, black background", some of them with labels."""
    setting = [("place", fields["bare"])] * background + [("camera", fields.get("tag", ""))] * camera
    items = []
    for said in words.shuffled(things):
        name = name_thing(said, words, bare=True, alone=False).text
        motion = verb_phrase(said, words).participle if said.motion else ""
        if motion and len(things) > 1:
            items.append(("thing", f"{name} {motion}"))
        else:
            items += [("thing", name)] + [("motion", motion)] * bool(motion)
    items = [*setting, *items] if words.chance(0.2) else [*items, *setting]
    if len(things) == 1 and len(items) > 1 and words.chance(0.15):
        separator = words.choose((", ", "; ", ". ", " | "))
        said_by_label = {"place": fields["what"], "camera": fields.get("tag", "").removeprefix("camera ")}
        items = [(label, said_by_label.get(label, item)) for label, item in items]
        return separator.join(f"{words.pick('labelled', label)}: {item}" for label, item in items)
    return words.choose((", ", ", ", ", ", ", ", "; ", ". ", " - ", " / ")).join(item for _, item in items)


def things_first(things: list[Said], place: str, words: Words) -> str:
    """Name all things first, and say in a second sentence what each does."""
    order = words.shuffled(things)
    names = [name_thing(said, words, bare=False, alone=len(things) == 1) for said in order]
    verbs = [verb_phrase(said, words, form="base" if len(things) == 1 else "") for said in order]
    if len(things) == 1:
        return words.pick("sequence", "single").format(
            subject=names[0].full, place=place, short=names[0].short, **verbs[0]._asdict()
        )
    kinds = [said.thing.kind for said in order]
    shorts = [
        f"the {said.thing.colour} one" if kinds.count(said.thing.kind) > 1 else f"the {name.short}"
        for said, name in zip(order, names, strict=True)
    ]
    ordinals = (
        ("the first", "the second", "the third")
        if words.chance(0.7) or len(things) == 3
        else ("the former", "the latter")
    )
    if words.chance(0.25):
        shorts = list(ordinals[: len(things)])
    else:  # The second sentence may take the things in another order.
        pairs = words.shuffled(list(zip(shorts, verbs, strict=True)))
        shorts, verbs = [short for short, _ in pairs], [verb for _, verb in pairs]
    rest = join_clauses(
        [Clause(f"{short} {verb.finite}", "", "", "") for short, verb in zip(shorts, verbs, strict=True)],
        words, sentences=True,
    ).finite  # fmt: skip
    listed = join_list([name.full for name in names], words)
    return words.pick("sequence", "many").format(things=listed, place=place, rest=rest, number=NUMBERS[len(things)])
