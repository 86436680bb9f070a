"""Sentences like CoLA's: acceptable ones from a grammar, and unacceptable ones that differ in one point of structure.

Every construction has acceptable and unacceptable patterns over the same words, as far as the phenomenon allows: only
the form or the position of a word is wrong, so that single words do not give the label away.
"""

from collections.abc import Sequence
from typing import Any

from jpeft.data.sample.grammar import Draw, Item, sentence

INPUT = "sentence"
_ACCEPTABLE_SHARE = 0.7

# Forms: a noun's singular and plural; a verb's base, third person, past, participle, -ing.
_WORDS: dict[str, Sequence[str]] = {
    "person": (
        "pilot/pilots, clerk/clerks, farmer/farmers, lawyer/lawyers, painter/painters, singer/singers, teacher/teachers, "
        "doctor/doctors, guard/guards, baker/bakers, student/students, miner/miners, dancer/dancers, tailor/tailors, "
        "writer/writers, waiter/waiters, gardener/gardeners, sailor/sailors, nurse/nurses, judge/judges, driver/drivers, "
        "hunter/hunters, banker/bankers, monk/monks, cook/cooks, neighbour/neighbours, tourist/tourists, captain/captains"
    ).split(", "),
    # name, subject, object, possessive, reflexive
    "name": (
        *(f"{name}/she/her/her/herself" for name in "Clara Edith Hanna Ida Julia Lena Maria Nora Olga Paula Ruth Vera".split()),
        *(f"{name}/he/him/his/himself" for name in "Adam Boris David Emil Frank Georg Henry Karl Martin Oscar Paul Tom".split()),
    ),
    "woman": ("aunt/aunts", "daughter/daughters", "mother/mothers", "niece/nieces", "sister/sisters", "widow/widows", "wife/wives", "grandmother/grandmothers"),
    "man": ("uncle/uncles", "son/sons", "father/fathers", "nephew/nephews", "brother/brothers", "godfather/godfathers", "husband/husbands", "grandfather/grandfathers"),
    "lady": ("actress/actresses", "duchess/duchesses", "waitress/waitresses", "queen/queens", "nun/nuns", "princess/princesses", "poetess/poetesses", "stewardess/stewardesses"),
    "lord": ("actor/actors", "duke/dukes", "butler/butlers", "king/kings", "abbot/abbots", "prince/princes", "footman/footmen", "altar boy/altar boys"),
    "thing": (
        "letter/letters, vase/vases, lamp/lamps, basket/baskets, mirror/mirrors, painting/paintings, carpet/carpets, map/maps, "
        "clock/clocks, bottle/bottles, ticket/tickets, chair/chairs, violin/violins, key/keys, coat/coats, book/books, "
        "ladder/ladders, kettle/kettles, camera/cameras, statue/statues, blanket/blankets, hat/hats, drum/drums, box/boxes"
    ).split(", "),
    "mass": ("milk", "sand", "furniture", "bread", "water", "luggage", "rice", "money", "advice", "wool"),
    "place": ("harbour", "station", "old mill", "church", "river", "market", "bridge", "theatre", "library", "lighthouse", "garden", "town hall", "castle", "quarry"),
    "near": ("near", "behind", "opposite", "beside"),
    "adj": ("tall", "old", "young", "shy", "clever", "quiet", "rude", "friendly", "nervous", "lazy", "polite", "proud", "famous", "tired"),
    "thing_adj": ("old", "heavy", "broken", "expensive", "strange", "small", "wooden", "green", "dusty", "cheap", "huge", "elegant"),
    "likes": ("admire/admires/admired/admired/admiring", "know/knows/knew/known/knowing", "praise/praises/praised/praised/praising", "visit/visits/visited/visited/visiting", "help/helps/helped/helped/helping", "avoid/avoids/avoided/avoided/avoiding", "thank/thanks/thanked/thanked/thanking", "criticise/criticises/criticised/criticised/criticising", "trust/trusts/trusted/trusted/trusting", "ignore/ignores/ignored/ignored/ignoring"),
    "self": ("blame/blames/blamed/blamed/blaming", "hurt/hurts/hurt/hurt/hurting", "defend/defends/defended/defended/defending", "introduce/introduces/introduced/introduced/introducing", "praise/praises/praised/praised/praising", "describe/describes/described/described/describing", "see/sees/saw/seen/seeing", "admire/admires/admired/admired/admiring"),
    "handles": ("buy/buys/bought/bought/buying", "sell/sells/sold/sold/selling", "find/finds/found/found/finding", "clean/cleans/cleaned/cleaned/cleaning", "hide/hides/hid/hidden/hiding", "paint/paints/painted/painted/painting", "steal/steals/stole/stolen/stealing", "lose/loses/lost/lost/losing", "borrow/borrows/borrowed/borrowed/borrowing", "repair/repairs/repaired/repaired/repairing", "carry/carries/carried/carried/carrying", "draw/draws/drew/drawn/drawing"),
    "irregular": ("take/takes/took/taken/taking", "steal/steals/stole/stolen/stealing", "break/breaks/broke/broken/breaking", "hide/hides/hid/hidden/hiding", "draw/draws/drew/drawn/drawing", "choose/chooses/chose/chosen/choosing", "forget/forgets/forgot/forgotten/forgetting", "throw/throws/threw/thrown/throwing", "shake/shakes/shook/shaken/shaking", "give away/gives away/gave away/given away/giving away"),
    "needs_object": ("acquire/acquires/acquired/acquired/acquiring", "fix/fixes/fixed/fixed/fixing", "cover/covers/covered/covered/covering", "destroy/destroys/destroyed/destroyed/destroying", "inspect/inspects/inspected/inspected/inspecting", "discover/discovers/discovered/discovered/discovering", "purchase/purchases/purchased/purchased/purchasing", "mention/mentions/mentioned/mentioned/mentioning", "unwrap/unwraps/unwrapped/unwrapped/unwrapping", "examine/examines/examined/examined/examining"),
    "no_object": ("sleep/sleeps/slept/slept/sleeping", "arrive/arrives/arrived/arrived/arriving", "smile/smiles/smiled/smiled/smiling", "laugh/laughs/laughed/laughed/laughing", "kneel/kneels/knelt/knelt/kneeling", "yawn/yawns/yawned/yawned/yawning", "faint/faints/fainted/fainted/fainting", "wait/waits/waited/waited/waiting", "cough/coughs/coughed/coughed/coughing", "vanish/vanishes/vanished/vanished/vanishing"),
    "thinks": ("thinks", "believes", "claims", "says", "suspects", "assumes"),
    "thought": ("think", "believe", "claim", "say", "suspect"),
    "before": ("before", "after", "because", "although"),
    "wants": ("hope/hopes/hoped", "want/wants/wanted", "plan/plans/planned", "promise/promises/promised", "decide/decides/decided", "refuse/refuses/refused"),
    "enjoys": ("enjoy/enjoys/enjoyed", "finish/finishes/finished", "avoid/avoids/avoided", "postpone/postpones/postponed", "deny/denies/denied", "quit/quits/quit"),
    "gives": ("give/gave", "send/sent", "lend/lent", "show/showed", "sell/sold", "hand/handed"),
    "donates": ("donate/donated", "reveal/revealed", "describe/described", "explain/explained", "mention/mentioned", "demonstrate/demonstrated"),
    "past": ("Yesterday", "Last week", "A year ago", "Last summer", "Two days ago"),
    "future": ("Tomorrow", "Next week", "A year from now", "Next summer", "In two days"),
    "slowly": ("slowly", "carefully", "quietly", "suddenly", "secretly", "eagerly", "calmly"),
    "when": ("in the morning", "after lunch", "on Sunday", "at night", "during the storm", "in the garden", "before the concert"),
    "short": ("old/older/oldest, tall/taller/tallest, small/smaller/smallest, quick/quicker/quickest, loud/louder/loudest, brave/braver/bravest, strong/stronger/strongest, kind/kinder/kindest").split(", "),
    "long": ("careful", "nervous", "famous", "cheerful", "generous", "curious", "patient", "honest"),
    "much": ("too much", "so little", "a great deal of"),
    "many": ("too many", "so few", "a number of"),
    # Phrases in which nouns and adjectives vary.
    "one": ("the {person}", "the {adj} {person}", "the {person} {near} the {place}", "a {adj} {person}"),
    "they": ("the {person.1}", "the {adj} {person.1}", "the {person.1} {near} the {place}", "[some|three|most] {adj} {person.1}"),
    "attracted_one": ("the {person} {near} the {thing.1}", "the {person} with the {thing_adj} {thing.1}", "the {person} that the {person2.1} {likes2}", "the [friend|boss|guest] of the {person2.1}"),
    "attracted_they": ("the {person.1} {near} the {thing}", "the {person.1} with the {thing_adj} {thing}", "the {person.1} that the {person2} {likes2.1}", "the [friends|bosses|guests] of the {person2}"),
    "someone": ("{name}", "the {person3}", "the {person3} {near2} the {place2}", "{name}'s [neighbour|teacher|lawyer]"),
    "an_object": ("the {thing2}", "the {thing_adj2} {thing2}", "the {thing2.1}", "[his|her] {thing_adj2} {thing2}"),
}  # fmt: skip

# (acceptable, unacceptable) patterns of one construction.
_CONSTRUCTIONS: Sequence[tuple[Sequence[str], Sequence[str]]] = (
    (  # agreement over an intervening noun of the other number
        ("{attracted_one} {likes.1} {someone}.", "{attracted_they} {likes} {someone}."),
        ("{attracted_one} {likes} {someone}.", "{attracted_they} {likes.1} {someone}."),
    ),
    (  # agreement of `be` and `have`
        ("{attracted_one} is {adj2}.", "{attracted_they} are {adj2}.", "{attracted_one} has {likes.3} {someone}.", "{attracted_they} have {likes.3} {someone}."),
        ("{attracted_one} are {adj2}.", "{attracted_they} is {adj2}.", "{attracted_one} have {likes.3} {someone}.", "{attracted_they} has {likes.3} {someone}."),
    ),
    (  # reflexives: gender and number
        ("The {woman} of the {lord} {self.2} herself {when}.", "The {man} of the {lady} {self.2} himself {when}.", "The {lord} and the {lady} {self.2} themselves {when}.", "The {woman.1} of the {lord} {self.2} themselves {when}."),
        ("The {woman} of the {lord} {self.2} himself {when}.", "The {man} of the {lady} {self.2} herself {when}.", "The {man} of the {lady.1} {self.2} themselves {when}.", "The {woman} of the {lord.1} {self.2} themselves {when}."),
    ),
    (  # reflexives: their antecedent in the same clause
        ("The {lord} said that the {lady} {self.2} herself {when}.", "The {lady} said that the {lord} {self.2} himself {when}."),
        ("The {lord} said that the {lady} {self.2} himself {when}.", "The {lady} said that the {lord} {self.2} herself {when}."),
    ),
    (  # a missing or a surplus object
        ("{one} {needs_object.2} {an_object} {when}.", "{one} {no_object.2} {near2} {an_object} {when}.", "{one} {needs_object.2} {an_object}[| {slowly}]."),
        ("{one} {needs_object.2} {near2} {an_object} {when}.", "{one} {no_object.2} {an_object} {when}.", "{one} {no_object.2} {an_object}[| {slowly}]."),
    ),
    (  # tense is marked once
        ("{one} did not {handles} {an_object} {when}.", "{one} has not {irregular.3} {an_object}.", "{one} will {handles} {an_object} {when}.", "Did {one} {handles} {an_object} {when}?"),
        ("{one} did not {handles.2} {an_object} {when}.", "{one} has not {irregular} {an_object}.", "{one} will {handles.2} {an_object} {when}.", "Did {one} {handles.2} {an_object} {when}?"),
    ),
    (  # past and participle
        ("{one} {irregular.2} {an_object} {when}.", "The {thing_adj2} {thing} [was|had to be|will be] {irregular.3} by {one}.", "{one} has {irregular.3} {an_object}."),
        ("{one} {irregular.3} {an_object} {when}.", "The {thing_adj2} {thing} [was|had to be|will be] {irregular.2} by {one}.", "{one} has {irregular.2} {an_object}."),
    ),
    (  # order within the noun phrase
        ("The very {adj} {person} {handles.2} {an_object}.", "{someone} {handles.2} all the {thing_adj} {thing.1} {when}.", "Both of the {adj} {person.1} {likes.2} {someone}."),
        ("The {adj} very {person} {handles.2} {an_object}.", "{someone} {handles.2} the all {thing_adj} {thing.1} {when}.", "The both of {adj} {person.1} {likes.2} {someone}."),
    ),
    (  # order within the clause
        ("{one} {slowly} {handles.2} {an_object}.", "{one} has never {handles.3} {an_object}.", "{one} put {an_object} {near2} the {place2}.", "{one} must have {slowly} {handles.3} {an_object}."),
        ("{one} {handles.2} {slowly} {an_object}.", "{one} never has {an_object} {handles.3}.", "{one} put {near2} {an_object} the {place2}.", "{one} have must {slowly} {handles.3} {an_object}."),
    ),
    (  # questions: inversion in the main clause only
        ("What did {one} {handles} {when}?", "{name} wondered what {one} did {when}.", "Why has {someone} {handles.3} {an_object}?", "Nobody knows why {someone} has {handles.3} {an_object}."),
        ("What {one} did {handles} {when}?", "{name} wondered what did {one} {when}.", "Why {someone} has {handles.3} {an_object}?", "Nobody knows why has {someone} {handles.3} {an_object}."),
    ),
    (  # questions: the gap is empty
        ("Which {thing} did {someone} {thought} that {one} had {handles.3}?", "Did {someone} {thought} that {one} had {needs_object.3} {an_object}?", "Which {thing} did {someone} {handles} {when}?"),
        ("Which {thing} did {someone} {thought} that {one} had {handles.3} {an_object}?", "Did {someone} {thought} that {one} had {needs_object.3}?", "Which {thing} did {someone} {handles} the {thing2} {when}?"),
    ),
    (  # islands: nothing is asked out of a `because` clause or a complex noun phrase
        ("Which {thing} did {someone} {handles} {before} {one} {no_object.2}?", "What did {someone} claim that {one} had {handles.3}?", "Who did {someone} {likes} {before} {one} {no_object.2}?", "Did {someone} believe the claim that {one} had {handles.3} {an_object}?"),
        ("Which {thing} did {someone} {no_object} {before} {one} {handles.2}?", "What did {someone} believe the claim that {one} had {handles.3}?", "Who did {someone} {no_object} {before} {one} {likes.2}?", "Which {thing} did {someone} {likes} the {person2} who {handles.2}?"),
    ),
    (  # relative clauses
        ("The {thing} that {one} {handles.2} was {thing_adj}.", "The {person2} who {handles.2} the {thing} was {adj2}.", "{someone} {likes.2} the {person2} whose {thing} was {thing_adj}."),
        ("The {thing} that {one} {handles.2} it was {thing_adj}.", "The {person2} {handles.2} the {thing} who was {adj2}.", "{someone} {likes.2} the {person2} who {thing} was {thing_adj}."),
    ),
    (  # `ever` and `any` under a negation
        ("No {person} that the {person2.1} {likes} has ever {handles.3} {an_object}.", "{someone} did not {handles} any {thing.1} {when}.", "None of the {person.1} who {no_object.2} had any {thing.1}."),
        ("The {person} that no {person2.1} {likes} has ever {handles.3} {an_object}.", "{someone} did {handles} any {thing.1} {when}.", "The {person.1} none of whom {no_object.2} had any {thing.1}."),
    ),
    (  # two objects
        ("{someone} {gives.1} the {person} {an_object}.", "{someone} {donates.1} {an_object} to the {person}[| {when}].", "{someone} {gives.1} {an_object} to the {person}."),
        ("{someone} {donates.1} the {person} {an_object}.", "{someone} {donates.1} the {person} {an_object} {when}.", "{someone} {gives.1} {an_object} the {person}."),
    ),
    (  # comparison
        ("{one} is {short.1} than {someone}.", "{one} is more {long} than {someone}.", "{one} is as {short} as {someone}.", "{one} is the {short.2} of [us|them] all."),
        ("{one} is more {short.1} than {someone}.", "{one} is {long} than {someone}.", "{one} is as {short.1} as {someone}.", "{one} is {short} than {someone}."),
    ),
    (  # tense and time
        ("{past}, {one} {handles.2} {an_object}.", "{future}, {one} will {handles} {an_object}.", "{past}, {they} {no_object.2}.", "{future}, {they} will {likes} {someone}."),
        ("{future}, {one} {handles.2} {an_object}.", "{past}, {one} will {handles} {an_object}.", "{future}, {they} {no_object.2}.", "{past}, {they} will {likes} {someone}."),
    ),
    (  # infinitive or -ing
        ("{one} {wants.2} to {handles} {an_object}.", "{one} {enjoys.2} {handles.4} {an_object}.", "{someone} {thinks} that {one} {wants.2} to {likes} {name2}."),
        ("{one} {wants.2} {handles.4} {an_object}.", "{one} {enjoys.2} to {handles} {an_object}.", "{someone} {thinks} that {one} {wants.2} {likes.4} {name2}."),
    ),
    (  # number of determiners and nouns
        ("{someone} {handles.2} [these|those] {thing_adj} {thing.1}.", "{someone} {handles.2} [this|that] {thing_adj} {thing}.", "There is a {thing} {near} the {place}.", "There are some {thing.1} {near} the {place}.", "{someone} {handles.2} {many} {thing.1}.", "{someone} {handles.2} {much} {mass}."),
        ("{someone} {handles.2} [these|those] {thing_adj} {thing}.", "{someone} {handles.2} [this|that] {thing_adj} {thing.1}.", "There are a {thing} {near} the {place}.", "There is some {thing.1} {near} the {place}.", "{someone} {handles.2} {much} {thing.1}.", "{someone} {handles.2} {many} {mass}."),
    ),
    (  # case, and what a coordination joins
        ("{name.1} {likes.2} {name2.2} {before} the {person} {no_object.2}.", "{name} and {name2} {likes.2} the {adj} {person}.", "The {person} {likes.2} {name.2} {before} {name2.1} {no_object.2}.", "{one} {no_object.2} and {handles.2} {an_object}."),
        ("{name.2} {likes.2} {name2.1} {before} the {person} {no_object.2}.", "{name} {likes.2} and {name2} the {adj} {person}.", "The {person} {likes.2} {name.1} {before} {name2.2} {no_object.2}.", "{one} {no_object.2} and {handles.4} {an_object}."),
    ),
    (  # conjunctions join clauses
        ("{someone} {thinks} that {one} {handles.2} {an_object}.", "{someone} {likes.2} {one} {before} {name2} {no_object.2}.", "{before} {name2} {no_object.2}, {one} {handles.2} {an_object}."),
        ("{someone} {thinks} that {handles.2} {one} {an_object}.", "{someone} {likes.2} {before} {one} {name2} {no_object.2}.", "{name2} {before} {no_object.2}, {one} {handles.2} {an_object}."),
    ),
)  # fmt: skip


def make(draw: Draw) -> list[dict[str, Any]]:
    """Makes one sentence with its label, 1 for acceptable and 0 for unacceptable."""
    acceptable, unacceptable = draw.pick(_CONSTRUCTIONS)
    label = int(draw.chance(_ACCEPTABLE_SHARE))
    text = Item(draw, _WORDS).text(draw.pick(acceptable if label else unacceptable))
    return [{"sentence": sentence(text), "label": label}]
