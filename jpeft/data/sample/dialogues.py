"""Short chats like SAMSum's, each with a summary of one or two sentences in the third person.

Each kind of chat has several endings. Plans change during it (another time, another day, another present), and small
talk surrounds it, so that a summary has to state what the two finally agree on.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jpeft.data.sample.grammar import Draw, Item

INPUT = "dialogue"
_START = re.compile(r"(?:^|[.!?] )[a-z]")


class _End(NamedTuple):
    """An ending of a chat; a turn starts with `<` (the person who began the chat) or `>` (the other one)."""

    turns: Sequence[str]
    summaries: Sequence[str]


class _Chat(NamedTuple):
    turns: Sequence[str]
    ends: Sequence[_End]


_WOMEN = "Amelie Bella Dora Elena Fiona Gwen Helen Irma Jill Katia Lucy Mona Nina Petra Rosa Sonja Tilda Una Wanda Zoe".split()
_MEN = "Alec Bruno Dean Eric Fabio Glen Hank Ivan Jasper Kurt Leon Milo Nico Otto Piet Ralph Steve Theo Victor Walt".split()

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# The first person is `{person}`, the other `{person2}`, those they talk about `{person3}` and so on; the forms are name,
# she, her (object), her (possessive). A reason has the forms of `I` and of `she`, a time and a price a later and a lower one.
_WORDS: dict[str, Sequence[str]] = {
    "person": (*(f"{name}/she/her/her" for name in _WOMEN), *(f"{name}/he/him/his" for name in _MEN)),
    "day": (*(f"on {day}/{day}" for day in _DAYS), "tonight/tonight", "tomorrow/tomorrow"),
    "weekday": _DAYS,
    "time": ("4/5", "5/6:30", "5:30/6", "5:30/7:15", "6/6:30", "6/8", "6:15/7", "6:30/7:30", "7/7:45", "7:15/8", "7:30/9", "8/8:30"),
    "minutes": ("10", "15", "20", "25", "30", "45"),
    "reason": (
        "I have to work late/has to work late",
        "I have a dentist's appointment/has a dentist's appointment",
        "I'm on duty/is on duty",
        "I have to study for an exam/has to study for an exam",
        "I'm helping at the food bank/is helping at the food bank",
        "I have visitors/has visitors",
        "I promised to babysit/promised to babysit",
        "I have choir practice/has choir practice",
        "I'm out of town/is out of town",
        "I have a driving lesson/has a driving lesson",
    ),
    "delay": (
        "I missed the bus/missed the bus",
        "I'm stuck in traffic/is stuck in traffic",
        "I overslept/overslept",
        "I can't find a parking space/can't find a parking space",
        "I got on the wrong train/got on the wrong train",
        "I had to turn back for my wallet/had to turn back",
    ),
    "activity": ("go swimming", "see a film", "play badminton", "go bowling", "have a pizza", "go to the flea market", "visit the photo exhibition", "go climbing", "have a coffee", "go for a run", "try the new Thai restaurant", "go ice skating", "play chess", "go to the jazz concert"),
    "meeting_place": ("at the station", "at the main entrance", "in front of the library", "at the fountain", "at the tram stop", "at the corner shop", "in the lobby", "at the old bridge"),
    "thing": ("a tent", "a drill", "a sleeping bag", "a ladder", "a suitcase", "a bike pump", "a tripod", "a blender", "a sewing machine", "a projector", "a rain jacket", "a car jack", "a ukulele", "a waffle iron"),
    "lost": ("keys/they're/them", "glasses/they're/them", "headphones/they're/them", "gloves/they're/them", *(f"{thing}/it's/it" for thing in ("umbrella", "wallet", "charger", "scarf", "notebook", "gym bag"))),
    "spot": ("on the kitchen table", "under the sofa", "in the car", "next to the printer", "in the hall", "on the windowsill", "behind the TV", "in the bathroom"),
    "gift": ("a cookbook", "a board game", "a teapot", "a backpack", "a houseplant", "concert tickets", "a desk lamp", "a yoga mat", "a watch", "a fountain pen", "a hammock", "a picture frame"),
    "share": ("10", "12", "15", "20", "25"),
    "subject": ("maths", "chemistry", "history", "driving", "French", "statistics", "biology", "geography", "accounting", "law"),
    "food": (
        *(f"{food}/is" for food in ("milk", "rice", "cheese", "bread", "butter", "yoghurt", "olive oil", "coffee", "pasta", "flour")),
        *(f"{food}/are" for food in ("eggs", "tomatoes", "onions", "apples", "mushrooms", "lemons", "carrots", "peppers")),
    ),
    "dish": ("a potato salad", "a chocolate cake", "some hummus", "a lasagne", "an apple pie", "a cheese plate", "some spring rolls", "a fruit salad", "muffins", "a quiche"),
    "film": ("The Last Ferry", "Paper Moons", "Night Shift in Oslo", "Seven Doors", "The Beekeeper's Son", "Cold Harvest", "A Year of Rain", "Borrowed Time", "The Clockmaker", "Silent Tide"),
    "praise": ("funny", "moving", "exciting", "beautifully filmed", "clever"),
    "blame": ("boring", "far too long", "predictable", "confusing", "too sad"),
    "city": ("Leeds", "Prague", "Bergen", "Porto", "Vienna", "Dublin", "Ghent", "Turin", "Malmo", "Basel"),
    "bus": ("12", "17", "24", "38", "45", "51", "63"),
    "pet": ("cat", "rabbit", "parrot", "hamster", "tortoise", "goldfish"),
    "key_place": ("with the neighbour", "under the flowerpot", "in the letterbox", "with the caretaker", "behind the bins"),
    "sold": ("bike", "sofa", "guitar", "fridge", "bookcase", "tablet", "piano stool", "lawnmower", "coffee machine", "rowing machine"),
    "price": ("40/30", "60/45", "70/50", "80/60", "90/75", "120/100", "150/130", "200/160"),
    "job": ("at a bakery", "at the town library", "at a travel agency", "in a hospital", "at an architect's office", "with a newspaper", "at a bike shop", "at a kindergarten", "at a law firm", "at the zoo"),
    "device": ("laptop", "phone", "printer", "router", "washing machine", "TV", "dishwasher", "camera"),
    "fault": ("doesn't switch on", "makes a strange noise", "shows an error message", "stopped working", "keeps switching itself off"),
    "illness": ("the flu", "a fever", "a migraine", "a stomach bug", "a sore throat"),
    "errand": ("walk the dog", "water the plants", "pick up a parcel", "bring some medicine", "hand in the report", "return the library books"),
    "hello": ("Hi", "Hey", "Hi there", "Hello", "Hey {person2}", "Hi {person2}"),
    "ok": ("OK", "Great", "Perfect", "All right", "Cool", "Fine"),
    "sorry": ("Sorry", "I'm sorry", "Oh no, sorry", "So sorry"),
    "bye": ("See you!", "Bye!", "Talk later!", "Take care!", ":)"),
}  # fmt: skip

_CHATS: Sequence[_Chat] = (
    _Chat(  # an invitation
        ("< [Do you want to|Would you like to|Shall we] {activity} {day}?",),
        (
            _End(
                (
                    "> [I'd love to!|Yes, good idea!|Sure, why not.] [When?|What time?]",
                    "< [Is {time} OK?|At {time}?|How about {time}?]",
                    "> [A bit later, please.|Can't make it by then.|Hmm, that's not so good for me.] [{time.1}?|Could we say {time.1}?]",
                    "< {ok}, {time.1} then. [I'll wait|Let's meet] {meeting_place}.",
                ),
                (
                    "{person} and {person2} will {activity} {day}. They will meet {meeting_place} at {time.1}.",
                    "{person} and {person2} are meeting {meeting_place} at {time.1} {day} to {activity}.",
                ),
            ),
            _End(
                (
                    "> {sorry}, I can't. {reason}.",
                    "< [Too bad!|What a pity.|Oh, OK.] [Some other time then.|Then I'll ask {person3}.]",
                    "> [Yes, next time!|Have fun!]",
                ),
                (
                    "{person} wants to {activity} {day}, but {person2} can't come because {person2.1} {reason.1}.",
                    "{person2} {reason.1}, so {person2.1} can't {activity} with {person} {day}.",
                ),
            ),
            _End(
                (
                    "> {reason} then. [Could we do it {day2}?|What about {day2.1}?]",
                    "< [That works too.|{day2.1} is fine.|Even better!] [I'll book for two.|I'll call {person3} as well.|]",
                    "> {ok}, {day2.1} at {time}.",
                ),
                (
                    "{person} and {person2} will {activity} {day2} at {time}, as {person2} {reason.1} {day}.",
                    "{person2} {reason.1} {day}, so {person} and {person2} will {activity} {day2} at {time}.",
                ),
            ),
        ),
    ),
    _Chat(  # something to borrow
        ("< [Do you have {thing}|Do you own {thing}|You don't happen to have {thing}, do you]? [I need one {day}.|Mine is broken and I need one {day}.]",),
        (
            _End(
                (
                    "> [Yes, I do.|Yep!] [You can have it.|It's yours for a week.]",
                    "< [You're the best!|Thank you so much!] [When can I come?|Can I get it at {time}?]",
                    "> [I'm home from {time.1}.|Come after {time.1}, I'm out before.]",
                    "< {ok}!",
                ),
                (
                    "{person2} will lend {person} {thing}. {person} will pick it up after {time.1}.",
                    "{person} needs {thing} {day} and will get one from {person2} after {time.1}.",
                ),
            ),
            _End(
                (
                    "> [I had one|I used to], but I lent it to {person3} [weeks ago|last month].",
                    "< [Do you think I can ask {person3.2}?|Should I ask {person3.2}?]",
                    "> [Of course, tell {person3.2} it's fine with me.|Sure, I'll send you {person3.3} number.]",
                ),
                (
                    "{person} wants to borrow {thing} from {person2}, but {person3} has it. {person} will ask {person3}.",
                    "{person2} lent {person3} {thing}, so {person} will ask {person3} for it.",
                ),
            ),
            _End(
                (
                    "> [No, sorry.|I'm afraid not.] [Did you ask {person3}?|{person3} might have one.]",
                    "< {person3} [said no already|hasn't got one either]. [I'll just buy one.|I'll get a cheap one in town.]",
                ),
                (
                    "Neither {person2} nor {person3} has {thing} for {person}, so {person.1} will buy one.",
                    "{person} needs {thing} {day}. {person2} and {person3} can't help, so {person} will buy one.",
                ),
            ),
        ),
    ),
    _Chat(  # something lost
        ("< [Have you seen my {lost}?|I can't find my {lost} anywhere!|Did I leave my {lost} at your place?]",),
        (
            _End(
                (
                    "> [Did you look {spot}?|Maybe {spot}?]",
                    "< [Yes, nothing there.|That's the first place I looked.]",
                    "> Then try {spot2}.[ I saw something there.|]",
                    "< [Found! Thank you!|Yes!! There you go, thanks!]",
                ),
                (
                    "{person} has lost {person.3} {lost} and finds {lost.2} {spot2} with {person2}'s help.",
                    "{person} was looking for {person.3} {lost}. Thanks to {person2}, {person.1} found {lost.2} {spot2}.",
                ),
            ),
            _End(
                (
                    "> [Good news: {lost.1} here {spot}.|You left {lost.2} here, {lost.1} {spot}.]",
                    "< [Phew!|What a relief!] Can you bring {lost.2} {day}?",
                    "> [{day.1}? No,|Not {day},] but {day2} I can.",
                    "< {ok}, thanks.",
                ),
                (
                    "{person} left {person.3} {lost} at {person2}'s place. {person2} will bring {lost.2} {day2}.",
                    "{person2} has found {person}'s {lost} {spot} and will return {lost.2} {day2}.",
                ),
            ),
            _End(
                (
                    "> [No idea, sorry.|Haven't seen {lost.2}, sorry.] [Have you asked {person3}?|{person3} was there too, ask {person3.2}.]",
                    "< {person3} [doesn't know either|hasn't seen {lost.2}]. [I'll go to the lost property office.|I'll try the lost property office.]",
                ),
                (
                    "{person} can't find {person.3} {lost}, and {person2} and {person3} haven't seen {lost.2}. {person} will go to the lost property office.",
                    "Neither {person2} nor {person3} has seen {person}'s {lost}, so {person.1} will ask at the lost property office.",
                ),
            ),
        ),
    ),
    _Chat(  # late
        ("< {sorry}, {delay}! I'll be {minutes} minutes late.", "[> Again?? :P|> Oh dear.|> No problem.|]"),
        (
            _End(
                (
                    "> I'm {meeting_place} already. [Shall I wait here?|It's freezing.]",
                    "< [Go inside, please!|Better go in, it's cold.] [I'll find you.|I'll call you when I'm there.]",
                    "> {ok}.",
                ),
                (
                    "{person} will be {minutes} minutes late because {person.1} {delay.1}. {person2} will wait inside.",
                    "{person} {delay.1} and will be {minutes} minutes late, so {person2} goes inside to wait.",
                ),
            ),
            _End(
                (
                    "> {person3} [wants to start|says we have to start], you know. [Is it OK if we begin?|Can we begin without you?]",
                    "< [Yes, please do.|Of course, start.] [Tell {person3} I'm sorry.|Save me a seat.]",
                ),
                (
                    "{person} {delay.1}. {person2} and {person3} will start without {person.2}.",
                    "{person2} and {person3} will begin without {person}, who {delay.1} and will be {minutes} minutes late.",
                ),
            ),
            _End(
                (
                    "> [Should I order for you?|The waiter is here, what do you want?]",
                    "< [Yes, {dish}, please.|{dish} would be great.] [I'm starving.|]",
                    "> [They're out of that.|They don't have that today.] [{dish2} instead?|But there's {dish2}.]",
                    "< {ok}, that's fine too.",
                ),
                (
                    "{person} will be {minutes} minutes late. {person2} will order {dish2} for {person.2}.",
                    "{person2} orders {dish2} for {person}, who {delay.1}.",
                ),
            ),
        ),
    ),
    _Chat(  # a present
        ("< {person3}'s birthday is {day}. [Any ideas for a present?|What do we get {person3.2}?]", "> [How about|Maybe|What about] {gift}?"),
        (
            _End(
                (
                    "< [I think {person3.1} has one already.|{person4} is giving {person3.2} that.] [I thought of {gift2}.|{gift2}?]",
                    "> [Oh, much better!|Yes, {person3.1} will love that.] [I'll pay half.|Let's share.]",
                    "< {ok}, that's {share} euros each. [I'll buy it.|I'll order it today.]",
                ),
                (
                    "{person} and {person2} will give {person3} {gift2} for {person3.3} birthday. They will pay {share} euros each.",
                    "{person} will buy {gift2} for {person3}'s birthday. {person2} and {person} pay {share} euros each.",
                ),
            ),
            _End(
                (
                    "< [Great idea!|I like that!|Why didn't I think of that!] [But I've no time to buy it.|Can you get it? {reason}.]",
                    "> [Leave it to me.|No problem, I'm in town anyway.]",
                    "< Thanks! I'll [get a card|bake a cake] then.",
                ),
                (
                    "{person} likes {person2}'s idea to give {person3} {gift}. {person2} will buy it.",
                    "{person} and {person2} are going to give {person3} {gift}. {person2} will buy the present.",
                ),
            ),
            _End(
                (
                    "< [{person3} said no presents, remember?|Wait, {person3.1} doesn't want any presents.]",
                    "> [Right!|Oh, true.] [Then let's just bake a cake.|A cake then?]",
                    "< {ok}, [you bake, I bring the drinks|I'll help you with that].",
                ),
                (
                    "{person3} doesn't want any presents, so {person} and {person2} will bring a cake.",
                    "{person} and {person2} won't buy {person3} a present. They decide on a cake instead.",
                ),
            ),
        ),
    ),
    _Chat(  # an exam
        ("> [So, how was the {subject} exam?|Any news about your {subject} exam?|Did you get the results in {subject}?]",),
        (
            _End(
                (
                    "< [I passed!!|Passed! Can't believe it.]",
                    "> [Congratulations!|Well done!!] [We have to celebrate.|Drinks are on me.]",
                    "< [Yes! {weekday} evening?|I'm free on {weekday}.]",
                    "> {weekday}'s bad, {weekday2} is better.",
                    "< {weekday2} it is!",
                ),
                (
                    "{person} has passed {person.3} {subject} exam. {person} and {person2} will celebrate on {weekday2}.",
                    "{person} and {person2} are going to celebrate {person}'s {subject} exam on {weekday2}.",
                ),
            ),
            _End(
                (
                    "< [I failed :(|Didn't pass.] [I have to do it again on {weekday}.|The next try is on {weekday}.]",
                    "> [Oh no!|I'm sorry to hear that.] [I could help you study.|Let me help you, I'm good at that.]",
                    "< [Would you really?|That would be amazing.] [{day.1}?|Are you free {day}?]",
                    "> [Come over at {time}.|Yes, at {time}.]",
                ),
                (
                    "{person} has failed {person.3} {subject} exam. {person2} will help {person.2} study {day} at {time}.",
                    "{person2} will help {person}, who failed the {subject} exam, to study {day} at {time}.",
                ),
            ),
            _End(
                (
                    "< [Not until {weekday}.|They come out on {weekday}.] [I'm so nervous.|I can't sleep.]",
                    "> [You'll be fine!|Don't worry.] {person3} [also says you'll pass|says it was easy].",
                    "< {person3} [always says that|didn't even take it] ;)",
                ),
                (
                    "{person} is waiting for the result of {person.3} {subject} exam, which comes out on {weekday}.",
                    "{person} will get the result of {person.3} {subject} exam on {weekday} and is nervous.",
                ),
            ),
        ),
    ),
    _Chat(  # shopping
        ("< I'm at the supermarket. [What do we need?|Do we need anything?]", "> [We're out of|Please get] {food} and {food2}."),
        (
            _End(
                (
                    "< [And {food3}?|Don't we need {food3} too?]",
                    "> [No, there's plenty.|No, {person3} bought some yesterday.] [But get some {food4}, please.|{food4} would be good though.]",
                    "< {ok}!",
                ),
                (
                    "{person} is at the supermarket and will buy {food}, {food2} and {food4}.",
                    "{person2} asks {person} to buy {food}, {food2} and {food4}.",
                ),
            ),
            _End(
                (
                    "< [They have no {food}.|The {food} {food.1} sold out.] [Should I go to the market?|What now?]",
                    "> [No, just take {food3}.|{food3} will do as well.]",
                    "< {ok}, {food3} and {food2}.",
                ),
                (
                    "There {food.1} no {food} at the supermarket, so {person} will buy {food3} and {food2}.",
                    "{person} will bring {food2} and, as there {food.1} no {food}, {food3}.",
                ),
            ),
        ),
    ),
    _Chat(  # ill
        ("< I have {illness}, I'm staying in bed.", "> [Poor you!|Oh no. Get well soon!] [Can I do anything?|Do you need anything?]", "< [Could you|Would you please] {errand}?"),
        (
            _End(
                (
                    "> [Of course.|No problem at all.] [I'll be there at {time}.|Is {time} OK?]",
                    "< [You're an angel.|Thanks so much.]",
                ),
                (
                    "{person} has {illness}, so {person2} will {errand} for {person.2} at {time}.",
                    "{person2} will {errand} at {time} because {person} has {illness}.",
                ),
            ),
            _End(
                (
                    "> [I'd love to, but|Not today,] {reason}. [I'll ask {person3}.|{person3} has time, I'll call {person3.2}.]",
                    "< [That's kind of you both.|Thanks, that would help.]",
                    "> {person3} says yes, {person3.1}'ll come at {time}.",
                ),
                (
                    "{person} has {illness}. {person2} can't help, but {person3} will {errand} at {time}.",
                    "{person3} will {errand} for {person}, who has {illness}, because {person2} {reason.1}.",
                ),
            ),
        ),
    ),
    _Chat(  # moving house
        ("< I'm moving on {weekday}. [Could you give me a hand?|Any chance you can help?]",),
        (
            _End(
                (
                    "> [Sure!|Of course!] [What time?|When do you start?]",
                    "< At {time}. [Do you still have the van?|Could you bring the van?]",
                    "> [Yes, I'll bring it.|It's at the garage, but {person3} has one. I'll ask {person3.2}.]",
                ),
                (
                    "{person2} will help {person} move on {weekday} at {time} and take care of a van.",
                    "{person} is moving on {weekday}. {person2} will help {person.2} at {time} and see to the van.",
                ),
            ),
            _End(
                (
                    "> {sorry}, {reason} on {weekday}. [But {person3} is free.|Ask {person3}!]",
                    "< [Is {person3.1} strong enough for my piano? ;)|Good idea.]",
                    "> [I'll tell {person3.2}.|{person3.1}'ll be glad to help.]",
                ),
                (
                    "{person} is moving on {weekday}. {person2} can't help because {person2.1} {reason.1}, but {person3} can.",
                    "{person2} can't help {person} move on {weekday} and suggests {person3}.",
                ),
            ),
            _End(
                (
                    "> On {weekday} I can't, but I can help you pack on {weekday2}.",
                    "< [That's a great help too!|Even better, I hate packing.]",
                    "> [I'll bring boxes.|I'll bring {dish} as well.]",
                ),
                (
                    "{person} is moving on {weekday}. {person2} will help {person.2} pack on {weekday2}.",
                    "{person2} can't help {person} on {weekday}, but {person2.1} will help with the packing on {weekday2}.",
                ),
            ),
        ),
    ),
    _Chat(  # a film
        ("< [Have you seen {film}?|Do you know {film}?] [I'm thinking of watching it {day}.|They show it {day}.]",),
        (
            _End(
                (
                    "> [Yes, with {person3}.|I saw it last week.] [It's {praise}!|Really {praise}, go!] {person3} [didn't like it though|fell asleep, but never mind].",
                    "< [Then I'll watch it.|OK, you convinced me.]",
                ),
                (
                    "{person2} recommends {film} because it is {praise}. {person} will watch it {day}.",
                    "{person} will watch {film} {day}, as {person2} found it {praise}.",
                ),
            ),
            _End(
                (
                    "> [Don't!|Save your money.] It's {blame}. [Watch {film2} instead.|{film2} is much better, it's {praise}.]",
                    "< [Thanks for the warning!|Good to know.] {film2} then.",
                ),
                (
                    "{person2} thinks {film} is {blame}, so {person} will watch {film2} instead.",
                    "{person} won't watch {film}, which {person2} found {blame}, but {film2}.",
                ),
            ),
            _End(
                (
                    "> [Not yet, but I want to.|No, is it good?] [Can I join you?|Take me with you!]",
                    "< [Sure, I'm going with {person3}.|Of course! {person3} is coming too.] [{time} at the cinema.|It starts at {time}.]",
                ),
                (
                    "{person}, {person2} and {person3} are going to watch {film} {day} at {time}.",
                    "{person2} will join {person} and {person3}, who are going to see {film} {day} at {time}.",
                ),
            ),
        ),
    ),
    _Chat(  # arriving
        ("< My train from {city} gets in at {time}. [Can you pick me up?|Any chance of a lift?]",),
        (
            _End(
                (
                    "> [Of course!|Sure thing.] [I'll be on the platform.|I'll wait in the car.]",
                    "< [Wait, it's late. It'll be {time.1}.|They just said {time.1}, there's a delay.]",
                    "> No problem, {time.1} [is even better|it is].",
                ),
                (
                    "{person2} will pick up {person}, whose train from {city} arrives at {time.1}.",
                    "{person} is coming from {city} by train. {person2} will pick {person.2} up at {time.1}.",
                ),
            ),
            _End(
                (
                    "> {sorry}, {reason}. [Take bus {bus}, it stops at my door.|Bus {bus} brings you here.]",
                    "< [OK, bus {bus}.|Fine, I like buses.] [And the key?|How do I get in?]",
                    "> The key is {key_place}.",
                ),
                (
                    "{person2} can't pick {person} up, so {person} will take bus {bus}. The key is {key_place}.",
                    "{person} arrives from {city} at {time} and will take bus {bus}, because {person2} {reason.1}.",
                ),
            ),
            _End(
                (
                    "> {reason}, but {person3} [can come|has a car].",
                    "< [I don't want to bother {person3.2}.|Isn't that too far for {person3.2}?]",
                    "> [{person3.1}'s happy to do it.|It's on {person3.3} way.] {person3} [will be there at {time}|knows already].",
                ),
                (
                    "{person3} will pick up {person} at {time}, because {person2} {reason.1}.",
                    "{person} arrives from {city} at {time}. {person2} can't come, but {person3} will pick {person.2} up.",
                ),
            ),
        ),
    ),
    _Chat(  # a pet
        ("< I'm going to {city} until {weekday}. [Could you feed my {pet}?|Would you look after my {pet}?]",),
        (
            _End(
                (
                    "> [Gladly!|Sure.] [How do I get in?|Where's the key?]",
                    "< The key is {key_place}. [Once a day is enough.|Food is {spot}.]",
                    "> {ok}. [Enjoy {city}!|Have a good time!]",
                ),
                (
                    "{person2} will look after {person}'s {pet} until {weekday}. The key is {key_place}.",
                    "{person} is going to {city}, so {person2} will feed {person.3} {pet} until {weekday}.",
                ),
            ),
            _End(
                (
                    "> [I'm allergic, sorry!|I can't, I'm away too.] [Try {person3}?|Have you asked {person3}?]",
                    "< [Not yet.|Good idea.] [I'll write to {person3.2}.|I'll call {person3.2} now.]",
                ),
                (
                    "{person2} can't look after {person}'s {pet}, so {person} will ask {person3}.",
                    "{person} is going to {city} until {weekday} and will ask {person3} to look after {person.3} {pet}.",
                ),
            ),
        ),
    ),
    _Chat(  # a sale
        ("> [Is the {sold} still for sale?|I saw your ad. Is the {sold} still there?]", "< Yes, it is. {price} euros."),
        (
            _End(
                (
                    "> [That's a lot.|Hmm.] [Would you take {price.1}?|How about {price.1}?]",
                    "< [No, {price} is my last word.|It's as good as new. {price}.]",
                    "> {ok}, {price} then. [I can come {day}.|Can I get it {day}?]",
                    "< [Yes.|Fine with me.]",
                ),
                (
                    "{person2} will buy {person}'s {sold} for {price} euros and pick it up {day}.",
                    "{person} is selling {person2} {person.3} {sold} for {price} euros. {person2} will get it {day}.",
                ),
            ),
            _End(
                (
                    "> [I have only {price.1}.|Can you do it for {price.1}?]",
                    "< [Since it's you, yes.|All right, {price.1}, if you come {day}.] [I need the space.|]",
                    "> {ok}! I'll be there {day}.",
                ),
                (
                    "{person} will let {person2} have {person.3} {sold} for {price.1} euros. {person2} will come {day}.",
                    "{person2} will buy {person}'s {sold} for {price.1} euros and fetch it {day}.",
                ),
            ),
            _End(
                (
                    "> [My limit is {price.1}.|{price.1} is all I have.]",
                    "< [Sorry, no.|I can't go down that far.] {person3} [offered me more|wants it too].",
                    "> [Pity. Good luck then.|OK, give it to {person3.2} then.]",
                ),
                (
                    "{person2} offers {price.1} euros for {person}'s {sold}, but {person} refuses, as {person.1} wants {price}.",
                    "{person} won't sell {person2} {person.3} {sold} for {price.1} euros.",
                ),
            ),
        ),
    ),
    _Chat(  # a job
        ("< [Guess what! I got the job {job}!|I got it! The job {job}!]", "> [Wow, congratulations!|That's fantastic!] [When do you start?|And when is your first day?]"),
        (
            _End(
                (
                    "< [Next {weekday}|On {weekday}]. [I can hardly wait.|I'm nervous already.]",
                    "> [Let me invite you to dinner before that.|We have to celebrate! Dinner {day}?]",
                    "< [Yes please!|With pleasure!]",
                ),
                (
                    "{person} has got a job {job} and starts on {weekday}. {person2} will invite {person.2} to dinner.",
                    "{person} starts {person.3} new job {job} on {weekday}. {person2} and {person} will celebrate over dinner.",
                ),
            ),
            _End(
                (
                    "< [That's the problem. On {weekday}, when I'm in {city}.|On {weekday}, but I have a flight to {city} that day.]",
                    "> [Ask if you can start later.|Just tell them, they'll understand.]",
                    "< [You're right, I'll call them.|OK, I'll write to them today.]",
                ),
                (
                    "{person} has got a job {job}. As {person.1} should be in {city} on {weekday}, {person.1} will ask to start later.",
                    "{person2} advises {person}, who has got a job {job}, to ask for a later start.",
                ),
            ),
        ),
    ),
    _Chat(  # a party
        ("< I'm having a party {day}. [Are you coming?|Hope you can come!]",),
        (
            _End(
                (
                    "> [Yes!!|Sure!] [What can I bring?|Shall I bring {dish}?]",
                    "< [{person3} is bringing {dish}.|{person3} is making {dish} already.] Could you [make|bring] {dish2}?",
                    "> {ok}, {dish2}. [From {time}?|When?]",
                    "< [{time}|Yes, {time}].",
                ),
                (
                    "{person2} will come to {person}'s party {day} at {time} and bring {dish2}.",
                    "{person} is having a party {day} at {time}. {person2} will bring {dish2} and {person3} {dish}.",
                ),
            ),
            _End(
                (
                    "> [Is {person3} coming?|Did you invite {person3}?]",
                    "< [Yes, why?|Of course.]",
                    "> [Then I'd rather not. We had a fight.|We don't talk at the moment. I'll stay at home.]",
                    "< [Oh no. I'm sorry.|You two should talk!]",
                ),
                (
                    "{person2} won't come to {person}'s party {day}, because {person3} will be there.",
                    "{person} invites {person2} to a party {day}. {person2} doesn't want to meet {person3} and stays at home.",
                ),
            ),
        ),
    ),
    _Chat(  # something broken
        ("< My {device} {fault}. [You know about these things, don't you?|Help!]", "> [Have you tried to unplug it?|Did you switch it off and on again?]"),
        (
            _End(
                (
                    "< [Three times.|Yes, of course.]",
                    "> [Then I have to see it.|I'd better have a look.] [I could come {day}.|{day.1}?]",
                    "< [{reason} then. {day2.1}?|{day2.1} would be better for me.]",
                    "> {ok}, {day2.1}.",
                ),
                (
                    "{person}'s {device} {fault}. {person2} will come {day2} to have a look at it.",
                    "{person2} will look at {person}'s {device} {day2}, as it {fault}.",
                ),
            ),
            _End(
                (
                    "< [No... wait.|I'll try.] [It works again!|Unbelievable, now it works!]",
                    "> [That's {price} euros, please ;)|Magic!]",
                    "< [Thank you, genius.|Haha, thanks.]",
                ),
                (
                    "{person}'s {device} works again after some advice from {person2}.",
                    "With {person2}'s advice, {person} gets {person.3} {device} to work again.",
                ),
            ),
            _End(
                (
                    "< [Doesn't help.|Still the same.] [A repair costs {price} euros.|The shop wants {price} euros to repair it.]",
                    "> [Then buy a new one.|I'd get a new one.] [{person3} is selling {person3.3} old one.|{person3} knows where to get one.]",
                    "< [You're right.|OK, I'll ask {person3}.]",
                ),
                (
                    "{person}'s {device} {fault}. {person2} advises {person.2} to buy a new one.",
                    "As a repair of {person}'s {device} would cost {price} euros, {person2} suggests buying a new one.",
                ),
            ),
        ),
    ),
    _Chat(  # a change of plan
        ("< About {weekday}: {reason}, so I can't come at {time}.",),
        (
            _End(
                (
                    "> [Shall we say {time.1}?|What about {time.1}?]",
                    "< [No, the whole evening is gone.|That doesn't help, sorry.] {weekday2}?",
                    "> [Fine, {weekday2} at {time.1}.|{weekday2}, same place, {time.1}.]",
                ),
                (
                    "{person} {reason.1} on {weekday}, so {person.1} will meet {person2} on {weekday2} at {time.1}.",
                    "{person} and {person2} move their meeting from {weekday} to {weekday2} at {time.1}.",
                ),
            ),
            _End(
                (
                    "> [And later? {time.1}?|Is {time.1} too late?]",
                    "< [{time.1} is perfect!|I can do {time.1}.]",
                    "> [I'll tell {person3}.|{person3} will be glad too, {person3.1} never makes it before that.]",
                ),
                (
                    "{person} can't come at {time} on {weekday}, so {person}, {person2} and {person3} will meet at {time.1}.",
                    "{person}, {person2} and {person3} will meet on {weekday} at {time.1} instead of {time}.",
                ),
            ),
            _End(
                (
                    "> [Again?|That's the third time!] [Then {person3} and I go alone.|I'll go with {person3} then.]",
                    "< [I'm really sorry.|I'll make up for it.]",
                    "> [It's OK.|Never mind.]",
                ),
                (
                    "{person} can't come on {weekday} because {person.1} {reason.1}. {person2} will go with {person3}.",
                    "{person2} and {person3} will go without {person}, who {reason.1} on {weekday}.",
                ),
            ),
        ),
    ),
)  # fmt: skip

_SMALL_TALK: Sequence[Sequence[str]] = (
    ("< {hello}!", "> [Hi!|Hey, what's up?|Hello {person}!]"),
    ("< {hello}, [how are you?|how's it going?]", "> [Good, and you?|Fine, just [tired|busy].]", "< [Not bad.|Same here.|All good.]"),
    ("< [Are you there?|Got a minute?|Can I ask you something?]", "> [Yes?|Sure, what is it?|For you always ;)]"),
    ("< {hello}! [Is {person5} with you?|Have you heard from {person5}?]", "> [No, why?|{person5} is in {city2} until {weekday3}.]", "< [Just asking.|Never mind.]"),
    (),
    (),
)  # fmt: skip
_CLOSING: Sequence[Sequence[str]] = (
    ("> {bye}",),
    ("< {bye}", "> {bye2}"),
    ("< [By the way|BTW], {person6} [says hello|is back from {city3}].", "> [Nice!|Tell {person6.2} hi from me.]"),
    ("> [By the way|BTW], did you watch the match?", "< [No, was it good?|Don't ask ;)]", "> [3:0!|You missed nothing.]"),
    (),
    (),
)  # fmt: skip


def make(draw: Draw) -> list[dict[str, Any]]:
    """Makes one short chat of two people, with its summary."""
    chat = draw.pick(_CHATS)
    end = draw.pick(chat.ends)
    item = Item(draw, _WORDS)
    turns = [*draw.pick(_SMALL_TALK), *chat.turns, *end.turns, *draw.pick(_CLOSING)]
    said = [line for line in (item.text(turn).strip() for turn in turns) if line]
    lines = [f"{item.text('{person}' if line[0] == '<' else '{person2}')}: {_capitals(line[2:])}" for line in said]
    return [
        {
            "id": str(draw.number(1_000_000_000, 9_999_999_999)),
            "dialogue": "\r\n".join(lines),
            "summary": _capitals(item.text(draw.pick(end.summaries))),
        }
    ]


def _capitals(text: str) -> str:
    """Capitalises the first letter of every sentence."""
    return _START.sub(lambda match: match[0].upper(), text)
