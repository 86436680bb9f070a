"""Facts about restaurants as in E2E: a meaning representation with two or four reference texts.

References differ in the order of the facts, their grouping into sentences and their wording; each has every fact of the
meaning representation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jpeft.data.sample.grammar import Draw, Item, sentence

INPUT = "meaning_representation"

_SURROUNDINGS = (
    "Copper Brown Silver Golden Crooked Painted Hidden Salty Rusty Velvet Whistling Lazy Merry Iron Amber Quiet".split()
)
_SIGNS = "Kettle Anchor Lantern Heron Barrel Pepper Spoon Thistle Badger Orchard Harp Compass Walnut Magpie Ladle Trout".split()
_OWNERS = "Alba Bertram Celeste Dimitri Estelle Fergus Gianna Hugo Ilse Marlow Nadia Orsino Petra Rufus Sabine".split()

# The slots in the order in which a meaning representation gives them, with their values.
_VALUES: Mapping[str, Sequence[str]] = {
    "name": (
        *(f"The {adjective} {sign}" for adjective in _SURROUNDINGS for sign in _SIGNS),
        *(f"{owner}'s {kind}" for owner in _OWNERS for kind in ("Kitchen", "Table", "Cellar", "Parlour")),
        *(f"{sign} House" for sign in _SIGNS),
    ),
    "eatType": ("restaurant", "pub", "coffee shop", "bistro", "wine bar"),
    "food": (
        "Italian",
        "Indian",
        "Chinese",
        "French",
        "Japanese",
        "Greek",
        "Mexican",
        "English",
        "Turkish",
        "fast food",
    ),
    "priceRange": ("cheap", "moderate", "high", "less than £20", "£20-25", "more than £30"),
    "customer rating": ("low", "average", "high", "1 out of 5", "3 out of 5", "5 out of 5"),
    "area": ("riverside", "city centre", "old town", "harbour"),
    "familyFriendly": ("yes", "no"),
    "near": (
        "Marble Arcade, Fountain Square, the Clock Museum, Pinewood Park, the Grand Lyric Theatre, Elm Street Station, "
        "the Swan Hotel, Tanner's Bridge, the Lighthouse Gallery, St Aldo's Church, the Corn Exchange, Bellman's Bookshop, "
        "the Botanic Gardens, Queen's Wharf, the Old Mint, Northgate Market"
    ).split(", "),
}
_SLOTS = tuple(slot for slot in _VALUES if slot != "name")

# Facts as adjectives before the kind of place: "a cheap Greek pub".
_BEFORE: Mapping[tuple[str, str], str] = {
    ("customer rating", "low"): "poorly rated",
    ("customer rating", "high"): "highly rated",
    ("priceRange", "cheap"): "[cheap|inexpensive|low-priced]",
    ("priceRange", "moderate"): "[moderately priced|mid-priced]",
    ("priceRange", "high"): "[expensive|high-priced]",
    ("familyFriendly", "yes"): "[family-friendly|child-friendly]",
    ("familyFriendly", "no"): "adults-only",
    **{("food", food): food for food in _VALUES["food"]},
}
# Facts after the kind of place: "in the old town".
_WHERE: Mapping[str, str] = {
    "riverside": "[by the river|in the riverside area|at the riverside]",
    "city centre": "in the [city centre|centre of the city]",
    "old town": "in the old town",
    "harbour": "[by|at] the harbour",
}
_NEAR = "[near|close to|next to|not far from]"
# Facts as separate clauses about `it`; `{value}` is the fact's value.
_CLAUSE: Mapping[tuple[str, str], str] = {
    ("priceRange", "cheap"): "[it is cheap|prices are low|it offers cheap meals]",
    ("priceRange", "moderate"): "[it is moderately priced|prices are moderate]",
    ("priceRange", "high"): "[it is expensive|prices are high]",
    ("priceRange", ""): "[guests pay {value} for a meal|it charges {value} for a meal|guests spend {value} on a meal]",
    ("customer rating", "low"): "[it has a low customer rating|customers rate it poorly]",
    ("customer rating", "average"): "[it has an average customer rating|customers rate it as average]",
    ("customer rating", "high"): "[it has a high customer rating|customers rate it highly]",
    ("customer rating", ""): "[it has a customer rating of {value}|customers rate it {value}]",
    ("familyFriendly", "yes"): "[it is family-friendly|children are welcome|it welcomes families with children]",
    ("familyFriendly", "no"): "[it is not family-friendly|children are not admitted|it is no place for children]",
    ("food", "fast food"): "[it serves fast food|fast food is on the menu]",
    ("food", ""): "[it serves {value} food|it offers {value} dishes|{value} food is on the menu]",
}


def make(draw: Draw) -> list[dict[str, Any]]:
    """Makes the rows of one meaning representation: two or four, so that a split of even size is filled exactly."""
    count = draw.number(2, len(_SLOTS))
    chosen = {*draw.shuffled(_SLOTS)[:count], draw.pick(("eatType", "eatType", "food"))}
    facts = {slot: draw.pick(values) for slot, values in _VALUES.items() if slot == "name" or slot in chosen}
    meaning = ", ".join(f"{slot}[{value}]" for slot, value in facts.items())
    references: dict[str, None] = {}
    wanted = draw.pick((2, 4))
    while len(references) < wanted:
        references[_reference(draw, facts)] = None
    return [{INPUT: meaning, "human_reference": reference} for reference in references]


def _reference(draw: Draw, facts: Mapping[str, str]) -> str:
    name = facts["name"]
    before = [slot for slot, value in _BEFORE if facts.get(slot) == value and draw.chance(0.5)][-3:]
    if "eatType" not in facts and "food" not in before:
        before.append("food")  # not just "a place"
    adjectives = [_BEFORE[slot, facts[slot]] for slot in before]
    *others, last = [*adjectives, facts.get("eatType", "place")]
    if before and before[-1] == "food":  # no comma before the food: "a cheap, family-friendly Greek pub"
        others, last = others[:-1], f"{others[-1]} {last}"
    kind = f"{', '.join(others)} {last}".strip()

    places = [_WHERE[facts["area"]]] if "area" in facts else []
    places += [f"{_NEAR} {facts['near']}"] if "near" in facts else []
    where = " ".join(draw.shuffled(places))

    clauses = []
    for slot in draw.shuffled([slot for slot in facts if slot not in (*before, "name", "eatType", "area", "near")]):
        clause = _CLAUSE.get((slot, facts[slot])) or _CLAUSE[slot, ""]
        clauses.append(clause.replace("{value}", facts[slot]))
    if not where:
        lead = draw.pick((f"{name} is a {kind}", f"there is a {kind} called {name}"))
    else:
        lead = draw.pick(
            (
                f"{name} is a {kind} {where}",
                f"there is a {kind} called {name} {where}",
                f"{where} [you will find|there is] a {kind} called {name}",
                f"{name}, {where}, is a {kind}",
                f"the {kind} {name} is[| located| situated] {where}",
            )
        )
    sentences = [lead]
    while clauses:
        joined = clauses[: draw.number(1, 2)]
        clauses = clauses[len(joined) :]
        sentences.append(" and ".join(joined))
    return " ".join(f"{sentence(Item(draw, {}).text(part))}." for part in sentences)
