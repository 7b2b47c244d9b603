"""Facts: places, capitals and people, in several phrasings.

clean     The Eiffel Tower is in       ->  Paris
corrupt   The Brandenburg Gate is in   ->  Berlin
"""

import random
from typing import Final, NamedTuple

from cutaway.models.model import Model
from cutaway.tasks.builtin.behavior import Behavior, Drawn
from cutaway.tasks.builtin.collect import contrast
from cutaway.tasks.task import Task


class Fact(NamedTuple):
    """A subject and what is said of it."""

    subject: str
    object: str


def _table(text: str) -> tuple[Fact, ...]:
    """Lines of `object: subject, subject`."""
    entries = (line.strip().partition(": ") for line in text.strip().splitlines())
    return tuple(Fact(subject, about) for about, _, subjects in entries for subject in subjects.split(", "))


LANDMARKS: Final = _table("""
    Paris: Eiffel Tower, Louvre Museum, Orsay Museum, Pompidou Centre
    London: Tower Bridge, Hyde Park, Buckingham Palace, Trafalgar Square, Wembley Stadium
    Berlin: Brandenburg Gate, Pergamon Museum, Charlottenburg Palace
    Rome: Trevi Fountain, Spanish Steps, Borghese Gallery, Roman Forum
    Madrid: Prado Museum, Retiro Park, Royal Palace
    Athens: Acropolis Museum, Hephaestus Temple
    Vienna: Schoenbrunn Palace, Belvedere Palace, Prater Park
    Moscow: Red Square, Gorky Park, Bolshoi Theatre
    Sydney: Opera House, Bondi Beach, Harbour Bridge
    Beijing: Forbidden City, Summer Palace, Tiananmen Square
    Tokyo: Shibuya Crossing, Ueno Park, Meiji Shrine
    Istanbul: Blue Mosque, Topkapi Palace, Galata Tower
    Barcelona: Sagrada Familia, Guell Park
    Prague: Charles Bridge, Wenceslas Square
    Budapest: Chain Bridge, Buda Castle
    Amsterdam: Rijks Museum, Anne House
    Brussels: Grand Place, Atomium Tower
    Lisbon: Belem Tower, Jeronimos Monastery
    Dublin: Trinity College, Phoenix Park
    Chicago: Willis Tower, Millennium Park
    Boston: Fenway Park, Faneuil Hall
    Seattle: Space Needle, Pike Market
    Toronto: Casa Loma, Rogers Centre
    Cairo: Tahrir Square, Egyptian Museum
""")
CAPITALS: Final = _table("""
    Paris: France
    Berlin: Germany
    Rome: Italy
    Madrid: Spain
    Athens: Greece
    Vienna: Austria
    Moscow: Russia
    Beijing: China
    Tokyo: Japan
    London: England
    Budapest: Hungary
    Amsterdam: Holland
    Brussels: Belgium
    Lisbon: Portugal
    Dublin: Ireland
    Cairo: Egypt
    Oslo: Norway
    Stockholm: Sweden
    Helsinki: Finland
    Copenhagen: Denmark
    Warsaw: Poland
    Kiev: Ukraine
    Sofia: Bulgaria
    Bucharest: Romania
    Belgrade: Serbia
    Zagreb: Croatia
    Ankara: Turkey
    Tehran: Iran
    Baghdad: Iraq
    Kabul: Afghanistan
    Delhi: India
    Bangkok: Thailand
    Hanoi: Vietnam
    Manila: Philippines
    Jakarta: Indonesia
    Canberra: Australia
    Wellington: Zealand
    Ottawa: Canada
    Havana: Cuba
    Lima: Peru
    Quito: Ecuador
    Bogota: Colombia
    Caracas: Venezuela
    Santiago: Chile
    Brasilia: Brazil
    Nairobi: Kenya
    Lagos: Nigeria
    Tunis: Tunisia
    Rabat: Morocco
    Tripoli: Libya
""")
PEOPLE: Final = _table("""
    physics: Albert Einstein, Isaac Newton, Niels Bohr, Max Planck, Richard Feynman
    chemistry: Marie Curie, Linus Pauling, Dmitri Mendeleev, Robert Boyle, Otto Hahn
    biology: Charles Darwin, Gregor Mendel, Louis Pasteur, Rosalind Franklin, Carl Linnaeus
    mathematics: Leonhard Euler, Emmy Noether, Alan Turing, Sofia Kovalevskaya, David Hilbert
    painting: Claude Monet, Pablo Picasso, Frida Kahlo, Salvador Dali, Paul Cezanne
    music: Johann Bach, Amadeus Mozart, Clara Schumann, Frederic Chopin, Franz Schubert
    poetry: Emily Dickinson, Walt Whitman, Pablo Neruda, Robert Frost, William Blake
    philosophy: Immanuel Kant, David Hume, Simone Weil, John Locke, Friedrich Nietzsche
    tennis: Roger Federer, Serena Williams, Rafael Nadal, Steffi Graf, Bjorn Borg
    chess: Garry Kasparov, Magnus Carlsen, Judit Polgar, Bobby Fischer, Anatoly Karpov
    cinema: Alfred Hitchcock, Charlie Chaplin, Greta Garbo, Orson Welles, Akira Kurosawa
    exploration: Marco Polo, James Cook, Roald Amundsen, Ernest Shackleton, Ferdinand Magellan
""")
ABROAD: Final = {
    "French": _table("""
        Paris: France
        Berlin: Allemagne
        Rome: Italie
        Madrid: Espagne
        Moscow: Russie
        Tokyo: Japon
        Oslo: Norvège
        Stockholm: Suède
        Ankara: Turquie
        Lima: Pérou
        Ottawa: Canada
        Tunis: Tunisie
    """),
    "Spanish": _table("""
        Paris: Francia
        Berlin: Alemania
        Rome: Italia
        Madrid: España
        Moscow: Rusia
        Tokyo: Japón
        Oslo: Noruega
        Stockholm: Suecia
        Ankara: Turquía
        Lima: Perú
        Ottawa: Canadá
        Tunis: Túnez
    """),
    "German": _table("""
        Paris: Frankreich
        Berlin: Deutschland
        Rome: Italien
        Madrid: Spanien
        Moscow: Russland
        Tokyo: Japan
        Oslo: Norwegen
        Stockholm: Schweden
        Ankara: Türkei
        Lima: Peru
        Ottawa: Kanada
        Tunis: Tunesien
    """),
}
"""Countries in other languages; their capitals are spelled as in English, to keep one token a city."""

TEMPLATES: Final = {
    "The {subject} is in": LANDMARKS,
    "You can find the {subject} in": LANDMARKS,
    "The {subject} stands in the city of": LANDMARKS,
    "People visit the {subject} in": LANDMARKS,
    "To see the {subject}, travel to": LANDMARKS,
    "The {subject} can be seen in": LANDMARKS,
    "The capital of {subject} is": CAPITALS,
    "The capital city of {subject} is": CAPITALS,
    "People in {subject} know that the capital is": CAPITALS,
    "The government of {subject} is in": CAPITALS,
    "If you visit {subject}, see the capital,": CAPITALS,
    "In {subject}, the capital is": CAPITALS,
    "{subject} is known for": PEOPLE,
    "People know {subject} for": PEOPLE,
    "{subject} worked in the field of": PEOPLE,
    "The field of {subject} is": PEOPLE,
    "{subject} had a talent for": PEOPLE,
    "The work of {subject} is in the field of": PEOPLE,
    "La capitale de {subject} est": ABROAD["French"],
    "La ville capitale de {subject} est": ABROAD["French"],
    "La capital de {subject} es": ABROAD["Spanish"],
    "La ciudad capital de {subject} es": ABROAD["Spanish"],
    "Die Hauptstadt von {subject} ist": ABROAD["German"],
    "Die Stadt und Hauptstadt von {subject} ist": ABROAD["German"],
}
"""Template -> the facts that it can state."""


def draw(cluster: str, chance: random.Random) -> Drawn:
    """A subject; the corrupt prompt has another one of the same table, with another object."""
    facts = TEMPLATES[cluster]
    fact = chance.choice(facts)
    other = chance.choice([found for found in facts if found.object != fact.object])
    clean, corrupt = ({"subject": found.subject} for found in (fact, other))
    pair = contrast(cluster, clean, corrupt, (f" {fact.object}", f" {other.object}"), ["subject"])
    return Drawn(pair, f"{cluster} {fact.subject}")


FACTS = Behavior(
    "facts",
    "A landmark, a country or a person: does the model name the city, the capital or the field? There are over 170 "
    "facts in several phrasings, capitals in four languages. The corrupt prompt asks about another subject of the same "
    "kind, whose object is the foil. Positions: subject (its last token), end.",
    tuple(TEMPLATES),
    draw,
    ("subject",),
    unseen=(),
    share=0.2,
)


def facts(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """A landmark, a country or a person: does the model name the city, the capital or the field?

    Clusters are the templates. Raises Misaligned, with the counts, when too few pairs align.
    """
    return FACTS.task(model, n=n, seed=seed)
