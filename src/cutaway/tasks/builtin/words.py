"""Words that several built-in tasks share: names with the pronoun that goes with them, and words in four languages."""

from typing import Final, NamedTuple

# fmt: off
WOMEN: Final = (
    "Mary", "Alice", "Sarah", "Anna", "Emma", "Laura", "Julia", "Kate", "Helen", "Jane", "Lucy", "Rose", "Claire",
    "Ruth", "Diana", "Sophie", "Grace", "Nina", "Lily",
)
MEN: Final = (
    "John", "Tom", "James", "David", "Peter", "Mark", "Paul", "Simon", "Robert", "Daniel", "Martin", "Frank", "George",
    "Henry", "Oliver", "Arthur", "Adam", "Victor", "Tim",
)
# fmt: on
NAMES: Final = tuple(name for pair in zip(WOMEN, MEN) for name in pair)

LANGUAGES: Final = ("English", "French", "Spanish", "German")


class Meaning(NamedTuple):
    """One meaning in four languages, in the order of `LANGUAGES`."""

    english: str
    french: str
    spanish: str
    german: str


OPPOSITES: Final = tuple(
    (Meaning(*left.split()), Meaning(*right.split()))
    for left, _, right in (
        line.strip().partition(" - ")
        for line in """
            big grand grande groß - small petit pequeño klein
            hot chaud caliente heiß - cold froid frío kalt
            old vieux viejo alt - young jeune joven jung
            fast rapide rápido schnell - slow lent lento langsam
            light clair claro hell - dark sombre oscuro dunkel
            rich riche rico reich - poor pauvre pobre arm
            strong fort fuerte stark - weak faible débil schwach
            full plein lleno voll - empty vide vacío leer
            clean propre limpio sauber - dirty sale sucio schmutzig
            open ouvert abierto offen - closed fermé cerrado geschlossen
            high haut alto hoch - low bas bajo niedrig
            hard dur duro hart - soft mou blando weich
        """.strip().splitlines()
    )
)
"""Adjectives in pairs of opposites."""
ADJECTIVES: Final = tuple(meaning for pair in OPPOSITES for meaning in pair)
NOUNS: Final = tuple(
    Meaning(*line.split())
    for line in """
        cat chat gato Katze
        dog chien perro Hund
        tree arbre árbol Baum
        book livre libro Buch
        sun soleil sol Sonne
        day jour día Tag
        bread pain pan Brot
        king roi rey König
        fish poisson pez Fisch
        bird oiseau pájaro Vogel
        house maison casa Haus
        water eau agua Wasser
        night nuit noche Nacht
        queen reine reina Königin
        moon lune luna Mond
        milk lait leche Milch
    """.strip().splitlines()
)
"""The first ten are masculine in French and in Spanish."""
ARTICLES: Final = ("die", "der", "der", "das", "die", "der", "das", "der", "der", "der")
"""German articles of the first ten nouns."""
VERBS: Final = tuple(
    Meaning(*line.split())
    for line in """
        sleeps dort duerme schläft
        swims nage nada schwimmt
        runs court corre rennt
        sings chante canta singt
        falls tombe cae fällt
        waits attend espera wartet
    """.strip().splitlines()
)
