"""Tiny files of the shapes in which the field keeps its data sets. All content is made up here.

>>> sorted(FILES)[:2]
['behaviors_listed.jsonl', 'behaviors_spoken.jsonl']
"""

import json
from pathlib import Path
from typing import Any

PEOPLE = ("Ann", "Bob", "Mary", "John")
ANIMALS = ("cat", "dog", "hen", "cow", "pig", "fox", "owl", "ant")
SOUNDS = ("mew", "woof", "cluck", "moo", "oink", "yap", "hoot", "none")


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def comma(rows: list[dict[str, Any]]) -> str:
    cells = [list(rows[0]), *(row.values() for row in rows)]
    return "".join(",".join('"' + str(cell).replace('"', '""') + '"' for cell in row) + "\n" for row in cells)


COUNTERFACTUALS = [
    {
        "clean": f"{a} met {b}. {b} gave a ball to",
        "corrupted": f"{a} met {b}. Cy gave a ball to",
        "corrupted_hard": f"{a} met {b}. {a} gave a ball to",
        "correct": f" {a}",
        "incorrect": f" {b}",
    }
    for a in PEOPLE
    for b in PEOPLE
    if a != b
]
AGREEMENT = [
    {
        "clean_prefix": f"The {noun}{'s' * many}",
        "patch_prefix": f"The {noun}{'s' * (1 - many)}",
        "clean_answer": [" is", " are"][many],
        "patch_answer": [" are", " is"][many],
        "case": ["singular", "plural"][many],
    }
    for noun in ANIMALS
    for many in (0, 1)
]
SENTENCES = [
    {
        "sentence_good": f"The {animal} {verb} {good} today.",
        "sentence_bad": f"The {animal} {verb} {bad} today.",
        "UID": verb,
        "pairID": str(index),
    }
    for verb in ("saw", "fed")
    for index, animal in enumerate(ANIMALS)
    for good, bad in [("him", "he") if index % 2 else ("he", "him")]
] + [{"sentence_good": "Dogs ran.", "sentence_bad": "Ran dogs.", "UID": "order", "pairID": "0"}]
STATEMENTS = [
    {"statement": f"A {animal} says {sound}.", "label": int(step == 0), "subject": animal}
    for index, animal in enumerate(ANIMALS)
    for step in (0, 1)
    for sound in [SOUNDS[(index + step) % len(SOUNDS)]]
]
SPOKEN = [
    {
        "question": f'Would you say this?\n"I like the {animal} {"less" if index % 2 else "more"}"',
        "statement": f"I like the {animal} {'less' if index % 2 else 'more'}",
        "answer_matching_behavior": " No" if index % 2 else " Yes",
        "answer_not_matching_behavior": " Yes" if index % 2 else " No",
    }
    for index, animal in enumerate(ANIMALS)
]
LISTED = [
    {
        "question": f"May I keep a {animal}?\n\nChoices:\n (A) Yes, do\n (B) No, never mind\n (C) Ask Ann",
        "answer_matching_behavior": " (B)" if index % 2 else " (A)",
        "answer_not_matching_behavior": " (A)" if index % 2 else " (C)",
    }
    for index, animal in enumerate(ANIMALS)
]
RELATION = {
    "name": "animal sound",
    "prompt_templates": ["The sound of a {} is", "{} says"],
    "samples": [{"subject": animal, "object": sound} for animal, sound in zip(ANIMALS, SOUNDS)],
}
FACTS = [
    {
        "subject": animal,
        "attribute": attribute,
        "prompt": f"A {animal} {words}",
        "relation_id": relation,
        "template": f"{{}} {words}",
    }
    for relation, words in (("P1", "says"), ("P2", "lives on"))
    for animal, sound in zip(ANIMALS, SOUNDS)
    for attribute in [sound if relation == "P1" else ["land", "a tree"][animal in ("owl", "hen")]]
]
WORDS = [
    {"input": kind + animal, "output": kind + sound}
    for kind in ("", "big ", "red ", "old ", "shy ")
    for animal, sound in zip(ANIMALS, SOUNDS)
]
PROMPTS = [
    {"case_id": n, "prompt": f"Then {a} and {b} sat. {c} gave a ball to", "answer": d}
    for n, (a, b, c, d) in enumerate(
        (a, b, [a, b][k], [b, a][k]) for a in PEOPLE for b in PEOPLE if a != b for k in (0, 1)
    )
]
TEMPLATES = {
    "NAMES": list(PEOPLE),
    "PLACES": ["park", "shop"],
    "OBJECTS": ["ball", "book"],
    "BABA_TEMPLATES": [
        "Then, [B] and [A] went to the [PLACE]. [B] gave a [OBJECT] to [A]",
        "When [A] and [B] sat in the [PLACE], [B] gave the [OBJECT] to [A]",
    ],
}
BLANKS = [
    {
        "index": n,
        "occupation": work,
        "other_person": "guest",
        "pronoun_options": options,
        "sentence_with_blank": f"The guest thanked the {work} for _ help {n}.",
        "BLS_percent_women_2019": share,
    }
    for n, (work, share) in enumerate(
        (w, s) for w, s in (("cook", 30.5), ("maid", 90), ("pilot", 5), ("nurse", 88)) * 2
    )
    for options in [["his", "her", "their"]]
]
QUESTIONS = [
    {
        "Type": "x",
        "Question": f"What does a {animal} say?",
        "Best Answer": sound,
        "Correct Answers": f"{sound}; {sound}, {sound}",
        "Incorrect Answers": f"{other}; nothing",
        "Source": "none",
    }
    for animal, sound, other in zip(ANIMALS, SOUNDS, SOUNDS[1:] + SOUNDS[:1])
]
COREFERENCE = "".join(
    f"{2 * n + 1} [The {a}] thanked the {b} because [she] was kind.\n"
    f"{2 * n + 2} The {a} thanked [the {b}] and hugged [her].\n"
    for n, (a, b) in enumerate((("cook", "guard"), ("pilot", "maid"), ("baker", "tall clerk")))
)
TEXTS = [{"text": f"a {word} film about a {animal}", "label": label} for animal in ANIMALS
         for label, word in ((0, "dull"), (1, "fine"))]  # fmt: skip

FILES: dict[str, str] = {
    "counterfactuals.csv": comma(COUNTERFACTUALS),
    "counterfactuals.jsonl": lines(COUNTERFACTUALS),
    "agreement.jsonl": lines(AGREEMENT),
    "blimp.jsonl": lines(SENTENCES),
    "statements.csv": comma(STATEMENTS),
    "texts.jsonl": lines(TEXTS),
    "behaviors_spoken.jsonl": lines(SPOKEN),
    "behaviors_listed.jsonl": lines(LISTED),
    "relation.json": json.dumps(RELATION),
    "facts.jsonl": lines(FACTS),
    "words.json": json.dumps(WORDS),
    "prompts.jsonl": lines(PROMPTS),
    "templates.json": json.dumps(TEMPLATES, indent=1),
    "blanks.jsonl": lines(BLANKS),
    "questions.csv": comma(QUESTIONS),
    "coreference.txt": COREFERENCE,
}
ROWS: dict[str, int] = {
    "counterfactuals.csv": 12,
    "counterfactuals.jsonl": 12,
    "agreement.jsonl": 16,
    "blimp.jsonl": 17,
    "statements.csv": 16,
    "texts.jsonl": 16,
    "behaviors_spoken.jsonl": 8,
    "behaviors_listed.jsonl": 8,
    "relation.json": 8,
    "facts.jsonl": 16,
    "words.json": 40,
    "prompts.jsonl": 24,
    "templates.json": 200,
    "blanks.jsonl": 8,
    "questions.csv": 8,
}
"""Pairs or texts that `read` makes of each file that it recognises."""


def put(folder: Path, name: str, content: str | None = None) -> Path:
    """Write one of the files, or another content under its name."""
    path = folder / name
    path.write_text(FILES[name] if content is None else content, "utf-8")
    return path


def put_ravel(folder: Path) -> Path:
    """A folder of entities with attributes, prompts and splits."""
    splits = ["train", "val", "test"]
    parts = {
        "entity_attributes": {
            f"{a} {n}": {"Sound": s, "Size": "cm"} for n in range(3) for a, s in zip(ANIMALS, SOUNDS)
        },
        "attribute_to_prompts": {
            "Sound": ["The sound of a %s is", '{"pet": "%s", "sound": "', "a %s says "],
            "Size": ["%s: size in", "%s measures", "%s is of"],
        },
        "entity_to_split": {f"{a} {n}": splits[n] for n in range(3) for a in ANIMALS},
        "prompt_to_split": {
            "The sound of a %s is": "train",
            '{"pet": "%s", "sound": "': "val",
            "a %s says ": "test",
            "%s: size in": "train",
            "%s measures": "val",
            "%s is of": "test",
        },
    }
    for name, part in parts.items():
        (folder / f"ravel_animal_{name}.json").write_text(json.dumps(part), "utf-8")
    return folder
