"""News items like AG News': a title and one to three sentences, about World, Sports, Business or Sci/Tech.

The topic is that of the reported event. Most items also have words of other topics (a person's former job, another event
of the week, a place), and some items cross topics: a bank buys a football club, a striker is called up.
"""

import re
from collections.abc import Sequence
from typing import Any

from jpeft.data.sample.grammar import Draw, Item, sentence

INPUT = "text"
_LENGTH = (15, 45)  # words
_TOPICS = ("world", "sports", "business", "science")
# Shares of items:
_COMMON_SHARE = 0.5  # with a pattern that all topics use
_DISTRACTED_SHARE = 0.9  # with a sentence about another topic
_ELSEWHERE_SHARE = 0.6  # of the latter: with one that reports another event
_OUTCOME_SHARE = 0.4  # with a sentence that fits any topic

_FIRST_NAMES = (
    "Adela Bram Carla Dorian Edda Felix Greta Hamid Ines Jonas Kira Lorenz Mirela Nadir Odile Pavel Renata Silas Tamar Viktor"
).split()
_LAST_NAMES = (
    "Abbot Balder Corvin Delane Estrow Farley Gorski Hallam Ibarro Jessop Kestrin Lomax Marden Norvik Ostrand Pellar "
    "Quill Rasmin Sorrel Tavish Ullman Varga Wexford Yarrow Zeller"
).split()

_SHARED: dict[str, Sequence[str]] = {
    "city": (
        "Port Ansel, Harrowgate, Velmora, San Tirso, Lindenau, Kasbeth, Brightwater, Ostrava Bay, Calder, Mirefield, Tolosque, "
        "Nordhaven, Elmstead, Rivapol, Darrow, Quillon, Santa Brisa, Vantor, Westmarch, Aldersea"
    ).split(", "),
    "country": (
        "Veldania, Karsova, Ombria, Tassiland, Norrland, Zamora Islands, Belcastria, Orland, Kestovia, Marun, Sulatra, Dravia, "
        "Ilyria, Halvetia, Corduba, Pelagia"
    ).split(", "),
    "person": tuple(f"{first} {last}" for first in _FIRST_NAMES for last in _LAST_NAMES),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "agency": ("NWP", "Meridian", "Coastal News", "Tribune Wire"),
    "dateline": ("", "", "{city} ({agency}) - ", "{agency} - "),
    "few": ("two", "three", "four", "five", "six"),
    "said": ("said on {day}", "announced on {day}", "confirmed on {day}", "told reporters on {day}"),
    "number": ("12", "15", "18", "20", "24", "30", "35", "40", "60", "80"),
    "doubt": (
        "despite doubts about the cost",
        "after weeks of talks",
        "in spite of protests",
        "two days after a first attempt had failed",
        "sooner than most observers had expected",
        "although several members had asked for more time",
        "after a long and heated debate",
        "by a narrow margin",
    ),
    "outcome": (
        "A final decision is expected next week.",
        "No further details were given.",
        "Critics called the step long overdue.",
        "It was the second such move this year.",
        "Both sides said that they were satisfied.",
        "{person} called it a difficult but necessary step.",
        "Observers had expected as much.",
        "It is not clear what will happen next.",
        "Several questions remain open.",
        "A spokeswoman declined to comment.",
    ),
}

# Actors, plans and troubles. Each topic has two fields, within which any three of them fit each other.
_FIELDS: dict[str, Sequence[dict[str, Sequence[str]]]] = {
    "world": (
        {
            "actor": (
                "the interim government",
                "the foreign ministry of {country}",
                "the ruling coalition",
                "the opposition alliance",
                "the constitutional court",
                "the election commission",
                "the president of {country}",
                "the parliament of {country}",
                "the provincial governor",
                "the interior ministry",
                "the prime minister of {country}",
                "the archbishop of {city}",
                "the exiled leader {person}",
                "the senate of {country}",
            ),
            "plan": (
                "early elections",
                "a new constitution",
                "a power-sharing deal",
                "a referendum on independence",
                "stricter asylum rules",
                "a state of emergency",
                "land reform",
                "a ban on demonstrations",
                "amendments to the press law",
                "the abolition of the death penalty",
                "a visit by the envoy of {country2}",
                "an amnesty for political prisoners",
                "a second ballot",
                "closer ties with {country2}",
                "a tax on church land",
                "a new national anthem",
            ),
            "trouble": (
                "a general strike",
                "a wave of protest marches",
                "a corruption scandal",
                "allegations of vote rigging",
                "the resignation of two ministers",
                "an attempted coup",
                "the arrest of a newspaper editor",
                "a hunger strike by dissidents",
                "an outcry over bread prices",
                "a row over the census",
            ),
        },
        {
            "actor": (
                "the rebel command",
                "the border guard",
                "the peacekeeping mission",
                "the military council",
                "the truth commission",
                "the refugee agency",
                "the ambassador of {country}",
                "the army chief of {country}",
                "the war crimes tribunal",
                "the tribal council",
                "the defence ministry",
                "the mediator {person}",
                "the relief agency",
                "the militia leader {person}",
            ),
            "plan": (
                "a ceasefire",
                "an exchange of prisoners",
                "an amnesty for the insurgents",
                "a border treaty",
                "an arms embargo",
                "a night curfew",
                "the withdrawal of foreign troops",
                "sanctions against {country2}",
                "a humanitarian corridor",
                "the return of the displaced",
                "the extradition of a general",
                "the release of two hostages",
                "a military base near the frontier",
                "a demilitarised zone",
                "an inquiry into the shelling of a village",
                "safe passage for food convoys",
            ),
            "trouble": (
                "a mutiny in the northern garrison",
                "an ambush on a convoy",
                "a famine in the highlands",
                "ethnic clashes",
                "a bomb attack on a police station",
                "the kidnapping of an aid worker",
                "shelling along the border",
                "a cholera outbreak in the camps",
                "the sinking of a patrol boat",
                "fresh fighting in the hills",
            ),
        },
    ),
    "sports": (
        {
            "actor": (
                "the football federation",
                "the {mascot} coach {person}",
                "the players' association",
                "the rugby board",
                "the league commissioner",
                "the club president of the {mascot}",
                "the captain of the {mascot}",
                "the basketball league",
                "the national coach {person}",
                "the hockey league",
                "the referees' committee",
                "the handball federation",
                "the defending champion {city}",
                "the manager of the newly promoted {mascot}",
            ),
            "plan": (
                "video replays for referees",
                "a longer playoff round",
                "a replay of the semifinal",
                "an earlier start of the season",
                "smaller squads",
                "a third substitute",
                "a training camp in {country2}",
                "a new offside rule",
                "an all-star match",
                "the transfer of {person2} to the {mascot2}",
                "a two-game suspension for {person2}",
                "the return of the injured {person2}",
                "a move of the final to {city2}",
                "a farewell match for {person2}",
                "a wage limit for players",
                "a new draw for the qualifiers",
            ),
            "trouble": (
                "a run of six defeats for the title holders",
                "a brawl between fans",
                "a dispute over a red card",
                "falling attendance at home games",
                "injuries to several forwards",
                "an argument over a missed penalty",
                "a betting affair among goalkeepers",
                "the early exit from the cup",
                "racist chants from the terraces",
                "complaints about the pitch",
            ),
        },
        {
            "actor": (
                "the Olympic committee",
                "the cycling union",
                "the tennis federation",
                "the ski association",
                "the world boxing council",
                "the swimming federation",
                "the athletics association",
                "the tournament director",
                "the rowing federation",
                "the sprint coach {person}",
                "the gymnastics federation",
                "the judo champion {person}",
                "the marathon runner {person}",
                "the anti-doping commission",
            ),
            "plan": (
                "a lifetime ban for doping",
                "a bid for the winter games",
                "a second round of drug tests",
                "equal prize money for women",
                "a rematch for the title",
                "a mixed relay",
                "a shorter qualifying round",
                "a new scoring system",
                "the comeback of {person2}",
                "a wild card for {person2}",
                "stricter rules for racing suits",
                "an extra day of rest before the final",
                "a world cup race in {country2}",
                "later starting times",
                "the disqualification of {person2}",
                "a higher age limit for gymnasts",
            ),
            "trouble": (
                "a failed drug test",
                "two false starts",
                "rain on the final day of play",
                "a protest by the silver medallist",
                "a crash in the last stage",
                "a quarrel among judges at the ringside",
                "the withdrawal of the top seed",
                "the injury of the favourite",
                "a broken world record",
                "empty seats at the heats",
            ),
        },
    ),
    "business": (
        {
            "actor": (
                "the airline {company}",
                "{company}",
                "the retailer {company}",
                "the insurer {company}",
                "the main shareholder of {company}",
                "the brewer {company}",
                "the carmaker {company}",
                "the chief executive of {company}",
                "the oil producer {company}",
                "the steel group {company}",
                "the hotel chain {company}",
                "the supervisory board of {company}",
                "the finance director of {company}",
                "the shipping line {company}",
            ),
            "plan": (
                "a takeover bid for {company2}",
                "a share buyback",
                "layoffs at two plants",
                "higher prices",
                "a merger with {company2}",
                "a smaller dividend",
                "a wage freeze",
                "a public offering",
                "the sale of the leasing arm",
                "a rescue loan",
                "a cheaper pension scheme",
                "the closure of {number} branches",
                "a joint venture with {company2}",
                "a cut in output",
                "bonuses for managers",
                "a supply contract with {company2}",
            ),
            "trouble": (
                "a profit warning",
                "rising fuel costs",
                "an accounting scandal",
                "slow holiday sales",
                "a quarterly loss",
                "a strike at the main plant",
                "a price war",
                "a shareholder revolt",
                "an inquiry by tax inspectors",
                "a slump in orders",
            ),
        },
        {
            "actor": (
                "the central bank of {country}",
                "the stock exchange of {city}",
                "the bankers' association",
                "the pension fund {company}",
                "the mortgage lender {company}",
                "the antitrust office",
                "the coffee trader {company}",
                "the investment bank {company}",
                "the chamber of commerce",
                "the association of exporters",
                "the rating agency {company}",
                "the savings bank of {city}",
                "the cartel of oil producers",
                "the finance ministry of {country}",
            ),
            "plan": (
                "a rise in interest rates",
                "a stock split",
                "a bond sale",
                "fees on savings accounts",
                "lower import duties on steel",
                "cheaper mortgages",
                "longer trading hours",
                "a cap on bank charges",
                "stricter rules for hedge funds",
                "the sale of gold reserves",
                "a lower sales tax",
                "a weaker currency",
                "a credit line for exporters",
                "the listing of {company2}",
                "the break-up of {company2}",
                "a fund for bad loans",
            ),
            "trouble": (
                "a fall in consumer spending",
                "a sudden drop of the currency",
                "losses on bad loans",
                "a jump in the price of crude oil",
                "a rise in unemployment",
                "a widening trade deficit",
                "a sell-off in bonds",
                "higher inflation",
                "an insider trading affair",
                "the collapse of a small lender",
            ),
        },
    ),
    "science": (
        {
            "actor": (
                "the space agency",
                "the observatory of {city}",
                "the genetics institute",
                "the marine laboratory",
                "the museum of natural history",
                "the physicist {person}",
                "the biologist {person}",
                "the polar research station",
                "the climate institute",
                "the astronomer {person}",
                "the vaccine laboratory of {city}",
                "the geological survey",
                "the academy of sciences",
                "the zoologist {person}",
            ),
            "plan": (
                "a mission to a comet",
                "a gene therapy trial",
                "a network of ocean sensors",
                "a deep-sea dive",
                "a digital library of fossils",
                "a telescope on the far side of the moon",
                "the repair of a satellite",
                "an experiment with stem cells",
                "a map of the bee genome",
                "a supercomputer for weather models",
                "a test of the particle collider",
                "a seed bank under the ice",
                "a new definition of a planet",
                "the cloning of an extinct bird",
                "a longer stay on the space station",
                "a study of ancient pollen",
            ),
            "trouble": (
                "a faulty sensor",
                "a crashed probe",
                "a solar storm",
                "a contaminated sample",
                "a leaking fuel tank on the rocket",
                "an error in the measurements",
                "a broken antenna",
                "a mix-up of blood samples",
                "a dispute over a fossil",
                "melting ice at the drilling site",
            ),
        },
        {
            "actor": (
                "the software maker {techco}",
                "the chip designer {techco}",
                "the search engine {techco}",
                "the internet standards body",
                "the phone maker {techco}",
                "the open-source project {techco}",
                "the game studio {techco}",
                "the computer scientist {person}",
                "the antivirus firm {techco}",
                "the robotics group of {city} University",
                "the programmer {person}",
                "the online encyclopedia {techco}",
                "the music download service {techco}",
                "the web pioneer {person}",
            ),
            "plan": (
                "a software patch",
                "a new operating system",
                "encryption by default",
                "an open-source licence",
                "a faster processor",
                "a spam filter",
                "a web browser for phones",
                "a robot for the household",
                "wireless access in trains",
                "batteries that last a week",
                "a second beta version",
                "a common file format",
                "a new kind of touch screen",
                "shorter passwords",
                "voice control for laptops",
                "a domain name for children",
            ),
            "trouble": (
                "a computer worm",
                "a security hole",
                "a power failure in the data centre",
                "a bug in the code",
                "a flood of spam",
                "a stolen source code",
                "a hacked server",
                "complaints about pop-up windows",
                "a lawsuit over a patent",
                "overheating laptops",
            ),
        },
    ),
}

# Mentions of a topic in items of other topics: events, former jobs, meeting places, whole sentences.
_ASIDES: dict[str, dict[str, Sequence[str]]] = {
    "world": {
        "occasion": (
            "the presidential election",
            "the peace talks in {city2}",
            "the summit of foreign ministers",
            "the vote on the constitution",
            "the funeral of the former president",
            "a state visit by the king of {country3}",
            "the parade on independence day",
            "the verdict of the war crimes tribunal",
        ),
        "career": (
            "diplomat",
            "army colonel",
            "member of parliament",
            "peace negotiator",
            "cabinet minister",
            "human rights lawyer",
            "mayor of the capital",
            "political prisoner",
        ),
        "place": (
            "the old parliament building",
            "the embassy garden",
            "a disused army barracks",
            "the presidential palace",
            "the town hall of the capital",
            "a school that serves as a polling station",
        ),
        "aside": (
            "Relations with the government of {country3} have been tense since the election.",
            "Soldiers had closed the road to the capital that morning.",
            "The minister and his delegation stayed away.",
            "The country goes to the polls next month.",
        ),
    },
    "sports": {
        "occasion": (
            "the cup final",
            "the {city2} marathon",
            "the opening of the winter games",
            "a sold-out playoff game",
            "the last stage of the cycling tour",
            "the heavyweight title fight",
            "the rowing championships",
            "the derby between the {mascot2} and the {mascot3}",
        ),
        "career": (
            "goalkeeper",
            "Olympic rower",
            "sprint champion",
            "basketball coach",
            "boxer",
            "rugby captain",
            "ski jumper",
            "tennis professional",
        ),
        "place": (
            "the basketball arena",
            "the Olympic stadium",
            "the boathouse of the rowing club",
            "the locker room of the {mascot3}",
            "the velodrome",
            "a golf course outside the city",
        ),
        "aside": (
            "Fans of the {mascot3} celebrated outside all night.",
            "The match on television drew more attention.",
            "Tickets for the game had sold out long before.",
            "The coach and his players were at the airport at the same time.",
        ),
    },
    "business": {
        "occasion": (
            "the annual trade fair in {city2}",
            "an interest-rate decision",
            "the annual meeting of {company3}",
            "the start of the earnings season",
            "the merger of two savings banks",
            "the auction of the bankrupt shipyard",
            "the first trading day of {company3}",
            "the publication of the jobless figures",
        ),
        "career": (
            "banker",
            "hotel owner",
            "auditor",
            "oil trader",
            "stockbroker",
            "chief executive",
            "insurance salesman",
            "department store manager",
        ),
        "place": (
            "the stock exchange",
            "the headquarters of {company3}",
            "a hotel owned by {company3}",
            "the trade fair halls",
            "a former savings bank",
            "the boardroom of a brewery",
        ),
        "aside": (
            "Shares of {company3} hardly moved.",
            "A fund of the insurer {company3} bears the costs.",
            "Its main sponsor, the bank {company3}, welcomed the news.",
            "Investors had other worries that week.",
        ),
    },
    "science": {
        "occasion": (
            "the launch of a weather satellite",
            "a conference of software developers",
            "the robotics fair in {city2}",
            "a total eclipse of the moon",
            "the congress of astronomers",
            "the release of a video game",
            "the return of the space shuttle",
            "the opening of a genetics museum",
        ),
        "career": (
            "astronomer",
            "software engineer",
            "marine biologist",
            "physicist",
            "astronaut",
            "chess programmer",
            "geneticist",
            "fossil hunter",
        ),
        "place": (
            "the planetarium",
            "a university laboratory",
            "the computer museum",
            "the visitor centre of the space agency",
            "the data centre",
            "the botanical institute",
        ),
        "aside": (
            "A video of the scene spread quickly on the internet.",
            "The website was down for an hour.",
            "Researchers at {city2} University had predicted it with a computer model.",
            "Text messages had announced it before the press did.",
        ),
    },
}
_NAMES: dict[str, Sequence[str]] = {
    "mascot": (
        "Herons, Falcons, Miners, Comets, Admirals, Lancers, Badgers, Pilots, Wolves, Titans, Ravens, Pioneers, Rangers, Sailors, "
        "Hornets, Stallions"
    ).split(", "),
    "company": (
        "Aldane, Brightmoor, Corvex, Dunmere, Eastgate, Fennick, Goldrun, Hartwell, Inverlow, Jorvale, Kellmark, Larkfield, "
        "Montrell, Norbeck, Oakridge, Pendrell, Quayside, Ransford, Stellan, Thornbury, United Harvest, Vastergard"
    ).split(", "),
    "techco": (
        "Axiom, Bitforge, Cirrus, Datapine, Eclipse Labs, Fluxnet, Gridline, Helio, Inkwell, Jumpgate, Kernelworks, "
        "Lumenta, Montrell, Norbeck, Orbitel, Pixelry, Quantis, Stellan"
    ).split(", "),
}

# Headlines and first sentences for any topic, with slots for its actors, plans and troubles.
_COMMON: Sequence[tuple[str, str]] = (
    ("{actor} backs {plan}", "{dateline}{actor} agreed to {plan} on {day}, {doubt}."),
    ("{actor} rejects {plan}", "{dateline}{actor} has rejected {plan}, [a person close to the talks|{person3}] {said}."),
    ("{actor} wants {plan}", "{dateline}{actor} called on {day} for {plan}, [pointing to|citing] {trouble}."),
    ("{plan} [closer|in sight]", "{dateline}{actor} is close to an agreement on {plan}, {person3} {said}."),
    ("{actor} delays {plan}", "{dateline}{actor} has put off {plan} until next [month|year|spring] because of {trouble}."),
    ("{plan} overshadowed by {trouble}", "{dateline}While {trouble} made the headlines, {actor} went ahead with {plan} on {day}."),
    ("{actor} worried by {trouble}", "{dateline}{actor} was caught unprepared by {trouble} and may have to give up {plan}."),
    ("{person3} urges {plan}", "{dateline}{person3} urged {actor} on {day} to agree to {plan}, {doubt}."),
    ("Criticism of {actor} [grows|over {plan}]", "{dateline}{actor} faces growing criticism over {plan}, after {trouble} [added to the pressure|raised further questions]."),
    ("{actor} wins fight over {plan}", "{dateline}{actor} can now go ahead with {plan}, {doubt}, {person3} {said}."),
    ("What {trouble} could mean for {actor}", "{dateline}For {actor}, {trouble} came at a bad time: a decision on {plan} is due on {day}."),
)  # fmt: skip

# Events of one topic only. Those in the second half of each list mention another topic but belong to their own.
_OWN: dict[str, Sequence[tuple[str, str]]] = {
    "world": (
        ("Villagers flee as fighting spreads in {country}", "{dateline}Thousands of villagers crossed into {country2} on {day} as government troops and rebels fought for the [town|valley|airfield] of {city2}."),
        ("At least {number} killed in {country} {disaster}", "{dateline}At least {number} people died and many more lost their homes in a {disaster} that struck the [north|south|coast] of {country} on {day}, officials said."),
        ("{country} expels envoy", "{dateline}{country} ordered the envoy of {country2} to leave within {number} hours, accusing the embassy of [spying|aiding the insurgents|meddling in the election]."),
        ("{person} sworn in as leader of {country}", "{dateline}{person} took the oath of office in {city2} on {day}, promising to end {few} years of civil war and to [free the press|fight corruption|hold a referendum]."),
        ("Police disperse crowd in {city}", "{dateline}Police used tear gas on {day} against {number} thousand demonstrators who demand {plan}."),
        ("{country} to guard its [banks|stock exchange|oil fields] after attack", "{dateline}Soldiers will protect [banks|markets|pipelines] in {country} after gunmen killed {few} people there on {day}, the interior minister said."),
        ("{country} minister warns of foreign chips", "{dateline}The defence minister of {country} told parliament on {day} that computer chips from {country2} could let spies listen in on the army, and asked for {plan}."),
        ("{country} bars athletes from {country2}", "{dateline}The government of {country} will refuse visas to runners and swimmers from {country2} as the quarrel over the border deepens, the prime minister said."),
        ("Internet cut off in {country} before vote", "{dateline}Mobile phones and websites went dead across {country} on {day}, hours before polling stations opened; the opposition blames the ruling party."),
        ("Stadium in {city} shelters the displaced", "{dateline}Some {number} thousand people driven from their villages by shelling now sleep on the football pitch, the relief agency said."),
    ),
    "sports": (
        ("{mascot} beat {mascot2} in overtime", "{dateline}{person} scored {few} [points|goals] in the last minutes as the {city2} {mascot} came from behind to beat the {mascot2} on {day}."),
        ("{person} takes {event} title", "{dateline}{person} of {country} won the {event} on {day}, leaving the favourite {person2} in second place, and wept on the podium."),
        ("{mascot} fire coach", "{dateline}The {city2} {mascot} dismissed {person} on {day} after {trouble}; the assistant {person2} will lead the side [for now|until the summer]."),
        ("{person} out for season", "{dateline}{person}, the captain of the {mascot}, will miss the rest of the season with [a broken wrist|a torn ligament|a back injury], the team doctor {said}."),
        ("{person} ends career", "{dateline}{person}, {few} times champion in the {event}, {said} that the next race would be the last."),
        ("{mascot} pay record fee for {person}", "{dateline}The {mascot} signed the striker {person} from the {mascot2} for ${number} million, more than any club in {country} has ever spent, and hope for the title."),
        ("Players strike over wages", "{dateline}The opening games were called off on {day} after players and clubs failed to agree on salaries and bonuses; the {mascot} still trained."),
        ("{person} races weeks after leaving army", "{dateline}{person}, a soldier in {country} until last month, ran the fastest {event} of the year on {day}."),
        ("{country} reach final as war goes on at home", "{dateline}The players of {country} heard explosions on the phone from their families, then won the semifinal on penalties on {day}."),
        ("{person} thanks computer for {event} gold", "{dateline}{person} beat the field by {few} seconds in the {event} on {day} after a winter of training with a program that corrects every movement."),
    ),
    "business": (
        ("{company} profit up {number} percent", "{dateline}{company} said on {day} that quarterly profit had risen by {number} percent, more than analysts had forecast, in spite of {trouble}."),
        ("{company} earns less", "{dateline}Quarterly profit of {company} fell by {number} percent, it said on {day}, and managers blamed {trouble}."),
        ("Stocks [slip|climb] as {trouble} weighs", "{dateline}Share prices in {city2} closed [lower|little changed] on {day} after {trouble}, with {company} losing {few} percent."),
        ("{company} to cut {number}00 jobs", "{dateline}{company}, which has suffered from {trouble}, will close {few} plants and cut {number}00 jobs, its chief executive {said}."),
        ("{company} files for bankruptcy", "{dateline}{company} sought protection from its creditors on {day}, owing ${number} million, after {trouble} and {trouble2}."),
        ("{company} raises forecast", "{dateline}{company} now expects sales of ${number} billion this year, thanks to [strong orders|a cheap currency|lower costs], it {said}."),
        ("{company} to buy {mascot}", "{dateline}{company} will pay ${number} million for the {city2} {mascot}; the stadium, the players and television income are worth more than that, analysts said."),
        ("Oil dearer as fighting shuts {country} pipeline", "{dateline}Crude rose by {few} dollars a barrel on {day} after rebels had cut the pipeline, and {company} warned of dearer fuel."),
        ("{company} shares drop on weak chip demand", "{dateline}{company} lost a tenth of its market value on {day} after saying that orders for processors and phones had slowed."),
        ("{company} wins order from army of {country}", "{dateline}{company} will deliver {number} trucks to the army of {country} in a contract worth ${number} million, its biggest this year, and its shares rose."),
        ("Sponsor leaves {mascot} after losses", "{dateline}{company} will no longer pay for the shirts of the {mascot} and will save ${few} million a year, its finance director said after {trouble}."),
    ),
    "science": (
        ("Scientists find {discovery}", "{dateline}A team led by {person} has found {discovery}, the [journal of the academy|researchers] reported on {day}, and hopes to learn more from {plan}."),
        ("{techco} releases [test version of|rival to] {gadget}", "{dateline}{techco} put a {gadget} on its website on {day}; users can try it free of charge for {number} days."),
        ("Probe sends images of {body}", "{dateline}A spacecraft passed {body} on {day} and sent back {number} pictures that show [ice|dust clouds|craters|strange ridges] in unseen detail."),
        ("Worm spreads through {gadget}", "{dateline}A program that hides in a popular {gadget} has infected {number} thousand machines since {day}, {techco} warned."),
        ("Study links sleep to memory in [mice|bees|crows]", "{dateline}Animals that slept longer found food faster, says a study by {person} of {city2} University that used {few} hundred of them."),
        ("Hearts of marathon runners studied", "{dateline}Blood samples of {number} runners and rowers hold a protein that may protect the heart, {person} of the genetics institute reports."),
        ("Software learns to read stock prices", "{dateline}A neural network built by {person} forecasts shares no better than chance, but explains how the brain tells noise from signal, a study shows."),
        ("Satellites count tents in {country} camps", "{dateline}A method developed by {person} tells from images in orbit how many refugees a camp holds, to within {few} percent, the space agency reports."),
        ("Online thieves copy bank pages with {gadget}", "{dateline}A flaw in a {gadget} lets attackers imitate the page of any bank; {techco} has published a patch and advises an update."),
        ("Physics of the curving free kick explained", "{dateline}With a wind tunnel and a camera, {person} of {city2} University has measured how air bends the path of a football."),
    ),
}  # fmt: skip
_OWN_WORDS: dict[str, Sequence[str]] = {
    "disaster": ("landslide", "train crash", "ferry accident", "flood", "storm", "suicide bombing", "mine explosion", "rocket attack"),
    "event": ("downhill", "800 metres", "cycling tour", "marathon", "100-metre butterfly", "high jump", "slalom", "javelin", "triathlon", "decathlon", "pole vault"),
    "discovery": ("a frog that changes colour in the dark", "water under the surface of Mars", "a gene that slows ageing", "the oldest known feather", "a planet with two suns", "a new state of matter", "a bacterium that eats plastic", "traces of a lost forest under the ice", "a crab that sings", "the fossil of a swimming lizard"),
    "gadget": ("web browser", "media player", "mail program", "photo editor", "instant messenger", "video game", "search tool", "firewall", "word processor"),
    "body": ("Saturn's largest moon", "the asteroid Vesper", "a comet", "the north pole of Mars", "the rings of Saturn", "a distant nebula"),
}  # fmt: skip

# Sentences of another topic, which do not change what the item is about.
_DISTRACTORS = (
    "The news came [two days before|on the day of|shortly after] {occasion}.",
    "[Most people in {city3}|Many viewers] were [watching|waiting for] {occasion}[| at the time].",
    "{person4}, a former {career}, [called it a surprise|had warned of it|will advise both sides|is to look into the matter].",
    "The announcement was made at {place}, shortly before {occasion}.",
    "{person4}, once a {career}, [spoke about it|answered questions] at {place}.",
    "{aside}",
)
_ELSEWHERE = (
    "[In other news|Elsewhere|Meanwhile], {actor} [called for|rejected|delayed|agreed to] {plan}.",
    "[In other news|Elsewhere|Meanwhile], {trouble} worried {actor}.",
    "[It was overshadowed by|Fewer people took notice of it than of] {trouble} and the debate over {plan}.",
    "Unlike {plan}, which {actor} had [promised|opposed] for years, it came as a surprise.",
    "A similar report, on {plan}, had been denied by {actor}.",
)


def make(draw: Draw) -> list[dict[str, Any]]:
    """Makes one news item, a headline and a report, with its topic."""
    label = draw.number(0, len(_TOPICS) - 1)
    while True:
        text = _item(draw, _TOPICS[label])
        if _LENGTH[0] <= len(text.split()) <= _LENGTH[1]:
            return [{"text": text, "label": label}]


def _item(draw: Draw, topic: str) -> str:
    item = Item(draw, {**_SHARED, **_NAMES, **_OWN_WORDS, **draw.pick(_FIELDS[topic])})
    headline, report = draw.pick(_COMMON if draw.chance(_COMMON_SHARE) else _OWN[topic])
    dateline, report = item.text("{dateline}"), item.text(report.removeprefix("{dateline}"))
    parts = [_headline(item.text(headline)), dateline + sentence(report)]
    tails = []
    if draw.chance(_DISTRACTED_SHARE):
        other = draw.pick([other for other in _TOPICS if other != topic])
        rules = {**_SHARED, **_NAMES, **draw.pick(_FIELDS[other]), **_ASIDES[other]}
        pattern = draw.pick(_ELSEWHERE if draw.chance(_ELSEWHERE_SHARE) else _DISTRACTORS)
        tails.append(sentence(Item(draw, rules, unlike=item).text(pattern)))
    if draw.chance(_OUTCOME_SHARE):
        tails.append(sentence(item.text("{outcome}")))
    return " ".join([*parts, *draw.shuffled(tails)])


def _headline(text: str) -> str:
    return sentence(re.sub(r"\b(the|an?) ", "", text)) + "."
