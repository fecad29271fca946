"""A made-up world of news in AG News' four classes: the demo's data, drawn from a grammar.

An item is a story: it has a class, a theme of that class, and a cast (a person, two places, a firm,
a club) that stays the same from its title to its last sentence, so that sentences of one item
belong together and sentences of two do not. Places, people, firms and clubs are shared by all
classes; only what happens tells them apart.

Two things keep a classifier from being perfect, as in real news. One item in nine is a story
between two desks (a club's share sale, a state's satellite) that either may print: half of those
are anybody's guess, which puts the ceiling near 0.95. And one item in five ends with a sentence
from another desk, a cue that misleads whoever counts words.
"""

import random
from itertools import combinations

BETWEEN_DESKS = 1 / 9
STRAY_SENTENCE = 1 / 5


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FIRST = _words(
    "Ada Ben Carla Daoud Elin Farid Greta Hugo Ines Jonas Kira Leo Mara Nils Olga Pavel Rosa Samir Tessa Viktor"
)
_LAST = _words(
    "Abel Brandt Castro Dvorak Eriks Fontaine Gruber Hassan Ito Jansen Kovac Lind Moreau Novak Okafor Petrov Quist"
)
_PLACE_HEADS = _words("Al Bel Cor Dar El Fen Gal Hal Is Kar Lo Mar Nor Or Pel Ran Sar Tor Ul Ver")
_PLACE_TAILS = _words("dova land mir nesia ria stan tania vale via wick")
_FIRM_HEADS = _words(
    "Alta Borea Cinder Delphi Ember Fjord Granite Helio Iris Juno Kestrel Lumen Meridian Nova Orchard Pine"
)
_FIRM_TAILS = ("Group", "Holdings", "Industries", "Systems", "Partners", "Works")
_CLUB_TAILS = ("Rovers", "United", "Falcons", "Wanderers", "Bulls", "Stars")
_FILLERS = {
    "day": _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "month": _words("January March April June July September October December"),
    "number": [str(n) for n in (3, 4, 6, 7, 9, 12, 15, 18, 24, 30, 45, 60, 80, 120, 250, 400)],
    "ordinal": _words("second third fourth fifth sixth seventh"),
    "percent": [f"{n} percent" for n in (2, 3, 5, 8, 11, 14, 20, 35)],
    "money": [f"${n} million" for n in (12, 40, 75, 90, 150, 320)]
    + [f"${n} billion" for n in ("1.2", "2.5", "4", "7.8")],
    "source": (
        "officials said",
        "a spokesman said",
        "according to two people briefed on it",
        "local media said",
    ),
    "mood": (
        "surprised observers",
        "had been expected for weeks",
        "drew a cautious welcome",
        "came after a long silence",
    ),
}

# Per class, themes; per theme: titles, openings, continuations. Names in braces are the cast or a
# filler.
_THEMES = {
    0: (
        (
            ("{place} and {place2} agree to ceasefire", "Truce holds along {place} border"),
            ("Troops from {place} and {place2} stopped firing on {day} under a truce that {mood}.",
             "{place} withdrew soldiers from its border with {place2} on {day}, {source}."),
            ("Envoy {person} will lead a peace mission of {number} observers.",
             "Both armies accuse each other of breaking {number} earlier truces.",
             "Refugees have begun to return to villages near the front."),
        ),
        (
            ("Voters in {place} choose new parliament", "{person} claims victory in {place} election"),
            ("{person} claimed victory in the presidential election in {place} on {day}, {source}.",
             "Polls closed in {place} on {day} after a campaign that {mood}."),
            ("The opposition asked the court for a recount in {number} districts.",
             "Turnout fell by {percent} since the last vote.",
             "The new government must win a vote of confidence in {month}."),
        ),
        (
            ("Flood kills {number} in {place}", "Earthquake shakes {place}, {number} missing"),
            ("At least {number} people died when a river burst its banks in {place} on {day}, {source}.",
             "Rescuers in {place} searched on {day} for {number} people buried by an earthquake."),
            ("The army flew tents and drinking water to the survivors.",
             "President {person} declared {number} days of mourning.",
             "Aid agencies fear that disease will spread in the camps."),
        ),
        (
            ("Thousands march in {place} capital", "Police clear protest camp in {place}"),
            ("Police in {place} arrested {number} protesters on {day} after a march against the government.",
             "Thousands gathered in the capital of {place} on {day} and asked minister {person} to resign."),
            ("Human rights groups say that {number} detainees have not been seen since.",
             "The interior ministry blamed agitators from {place2}.",
             "A general strike has been called for {day}."),
        ),
    ),
    1: (
        (
            ("{club} beat {club2} in final", "{person} lifts {club} past {club2}"),
            ("{person} scored twice as {club} beat {club2} in the final on {day}.",
             "{club} came from behind on {day} to defeat {club2} in a match that {mood}."),
            ("It is the {ordinal} title of the season for the team.",
             "Coach {coach} praised a defense that has not lost in {number} games.",
             "The crowd stayed in the stands an hour after the whistle."),
        ),
        (
            ("Injury rules {person} out for season", "{club} lose {person} to knee injury"),
            ("{person} tore a knee ligament in training with {club} and will miss {number} games, {source}.",
             "{club} will play without striker {person}, who broke a foot against {club2} on {day}."),
            ("Coach {coach} will try a younger player on the wing.",
             "The captain had started every match since {month}.",
             "Doctors expect the player back on the pitch in {month}."),
        ),
        (
            ("{person} sets world record in {place}", "Gold for {person} in {place}"),
            ("{person} ran the fastest {number} hundred meters of the year in {place} on {day}.",
             "{person} won gold in the pool at {place} on {day} and broke a record that had stood for {number} years."),
            ("The runner-up from {place2} finished {number} hundredths behind.",
             "The champion will now skip the relay to rest for the games in {month}.",
             "Judges studied the photo of the finish for several minutes."),
        ),
        (
            ("{person} reaches semifinal in {place}", "Top seed {person} upset in {place}"),
            ("{person} saved {number} match points on {day} to reach the semifinal of the {place} open.",
             "Top seed {person} lost in straight sets in {place} on {day}, a defeat that {mood}."),
            ("The serve failed in the deciding set.",
             "Next comes {coach}, the champion of {month}.",
             "Rain held up play on the center court for {number} minutes."),
        ),
    ),
    2: (
        (
            ("{firm} profit rises {percent}", "{firm} misses quarterly forecast"),
            ("{firm} said on {day} that quarterly profit rose {percent} on stronger sales.",
             "Quarterly earnings at {firm} fell {percent}, the company said on {day}, a result that {mood}."),
            ("Shares of the company lost {percent} in early trading.",
             "Chief executive {person} kept the forecast for the full year.",
             "Analysts had expected revenue of {money}."),
        ),
        (
            ("{firm} to buy {firm2} for {money}", "{firm2} rejects {firm} bid"),
            ("{firm} agreed on {day} to buy its rival {firm2} for {money} in cash and stock.",
             "The board of {firm2} turned down a takeover bid of {money} from {firm}, {source}."),
            ("The merger would cost {number} hundred jobs.",
             "Shareholders will vote on the offer in {month}.",
             "Chief executive {person} would run the combined company."),
        ),
        (
            ("Central bank in {place} raises rates", "Oil climbs as {place} cuts output"),
            ("The central bank of {place} raised interest rates on {day} for the {ordinal} time this year.",
             "Crude oil climbed {percent} on {day} after producers in {place} cut output."),
            ("Inflation has stayed above the target since {month}.",
             "Traders moved money into bonds and the dollar.",
             "Higher borrowing costs will weigh on consumer spending, economist {person} wrote."),
        ),
        (
            ("{firm} workers strike over pay", "{firm} to close plant in {place}"),
            ("{firm} will close its factory in {place} and cut {number} hundred jobs, {source}.",
             "Workers at {firm} walked out on {day} after wage talks failed."),
            ("The union wants a raise of {percent} over two years.",
             "Each day of lost output costs the company {money}.",
             "Retailers have already turned to suppliers in {place2}."),
        ),
    ),
    3: (
        (
            ("Probe sends first images of moon", "Spacecraft from {place} reaches orbit"),
            ("A spacecraft built in {place} entered orbit around the planet on {day} and sent back its first images.",
             "Astronomers in {place} have found {number} small moons with a new telescope, {source}."),
            ("The instruments will map ice below the surface.",
             "Team leader {person} called the data cleaner than any before.",
             "The mission has fuel for another {number} months."),
        ),
        (
            ("Flaw found in {firm} software", "Worm spreads through {firm} servers"),
            ("{firm} released a patch on {day} for a flaw that lets attackers take over a computer.",
             "A worm that spreads by e-mail infected {number} thousand computers on {day}, {source}."),
            ("Users should update their browser at once.",
             "Researcher {person} had reported the bug in {month}.",
             "The malicious code hides in an image file."),
        ),
        (
            ("{firm} shows faster chip", "{firm} unveils phone with new display"),
            ("{firm} showed a processor on {day} that runs {percent} faster on the same battery.",
             "{firm} unveiled a handset on {day} with wireless video and a sharper screen."),
            ("Engineers shrank the circuits to a {ordinal} of their former width.",
             "The device will download music over the network.",
             "Developers can test the operating system in {month}, designer {person} said."),
        ),
        (
            ("Fossil from {place} rewrites history", "Gene may explain how cells age"),
            ("Scientists in {place} have dug up a fossil that is {number} million years old, {source}.",
             "Biologists in {place} found a gene that slows the aging of cells, in a study that {mood}."),
            ("The experiment was repeated with {number} mice.",
             "Laboratory head {person} wants to compare the protein with that of other species.",
             "The journal will publish the data in {month}."),
        ),
    ),
}  # fmt: skip

# Stories that either of two desks may print: per pair of classes, titles and sentences that give
# nothing away.
_BETWEEN = {
    (0, 1): (("{place} will host the games", "Athletes stay away from {place}"),
             ("{place} may lose the games because of unrest, {source}.", "The team of {place2} was refused visas on {day}.",
              "Minister {person} called the boycott a matter of safety.")),
    (0, 2): (("{place} and {place2} sign trade pact", "Sanctions hit exports from {place}"),
             ("{place} signed a trade treaty with {place2} on {day}, {source}.", "Exporters fear tariffs of {percent} in {month}.",
              "Minister {person} promised aid of {money} to the harbor towns.")),
    (0, 3): (("{place} launches satellite", "{place} bars nuclear inspectors"),
             ("{place} launched a satellite over {place2} on {day}, {source}.", "Inspectors asked to see the reactor in {month}.",
              "President {person} said that the research was peaceful.")),
    (1, 2): (("{club} sold for {money}", "{firm} to sponsor {club}"),
             ("{firm} will pay {money} for a share of {club}, {source}.", "The league must approve the deal in {month}.",
              "Chairman {person} wants to sell tickets for the new stadium at {percent} more.")),
    (1, 3): (("Camera to watch the goal line", "New test finds banned drug"),
             ("A laboratory in {place} has a test for a banned drug, {source}.", "{club} tried the sensor in the ball on {day}.",
              "The video game of the season was written with the help of {person}.")),
    (2, 3): (("{firm} and {firm2} in patent fight", "{firm} buys search engine"),
             ("{firm} sued {firm2} on {day} over a patent on memory chips.", "The start-up of {person} makes search software.",
              "Online sales at {firm} grew {percent} on demand for digital music.")),
}  # fmt: skip


def generate_corpus(n: int, seed: int) -> tuple[list[str], list[str], list[int]]:
    """`n` items as titles, descriptions and labels (0–3, equally likely), the same for the same `n`
    and `seed`.
    """
    draw = random.Random(seed)
    titles, descriptions, labels = [], [], []
    for _ in range(n):
        label = draw.randrange(4)
        fillers = _cast(draw)
        if draw.random() < BETWEEN_DESKS:
            pair = draw.choice([pair for pair in combinations(range(4), 2) if label in pair])
            heads, body = _BETWEEN[pair]
            sentences = draw.sample(body, draw.choice((2, 3)))
        else:
            heads, openings, more = draw.choice(_THEMES[label])
            sentences = [draw.choice(openings), *draw.sample(more, draw.choice((1, 2)))]
            if draw.random() < STRAY_SENTENCE:
                other = draw.choice([desk for desk in range(4) if desk != label])
                sentences.append(draw.choice(draw.choice(_THEMES[other])[2]))
        titles.append(_fill(draw.choice(heads), fillers, draw))
        descriptions.append(" ".join(_fill(sentence, fillers, draw) for sentence in sentences))
        labels.append(label)
    return titles, descriptions, labels


def _cast(draw: random.Random) -> dict[str, str]:
    """The names of one story."""
    person, coach = (f"{draw.choice(_FIRST)} {draw.choice(_LAST)}" for _ in range(2))
    place, place2, home, away = (
        draw.choice(_PLACE_HEADS) + draw.choice(_PLACE_TAILS) for _ in range(4)
    )
    firm, firm2 = (f"{head} {draw.choice(_FIRM_TAILS)}" for head in draw.sample(_FIRM_HEADS, 2))
    club, club2 = (
        f"{town} {tail}"
        for town, tail in zip((home, away), draw.sample(_CLUB_TAILS, 2), strict=True)
    )
    return {
        "person": person, "coach": coach, "place": place, "place2": place2,
        "firm": firm, "firm2": firm2, "club": club, "club2": club2,
    }  # fmt: skip


def _fill(template: str, cast: dict[str, str], draw: random.Random) -> str:
    """Replace each name in braces: a member of the cast, or a fresh filler."""
    # Drawing every filler, used or not, keeps one sentence's draws from depending on its wording.
    return template.format(
        **cast, **{kind: draw.choice(values) for kind, values in _FILLERS.items()}
    )
