"""A behavior of your own: write it as pairs, check that the model shows it, and see which layer carries it.

    python examples/own_task.py

The model is the embedded one, so this runs offline in seconds; give your own model and words instead.
"""

import cutaway
from cutaway import Pair, Task, sites

model = cutaway.load("induction-2l")

# clean: 'cat' was followed by 'hat', so that is what comes after the second 'cat'; corrupt: it was followed by 'pen'
pairs = []
animals, things = ("cat", "dog", "fox", "owl", "hen", "pig"), ("hat", "pen", "cup", "map", "key", "box")
for i, animal in enumerate(animals):
    answer, foil = things[i], things[(i + 1) % len(things)]
    clean, corrupt = (f"lamp {animal} {word} rope vine {animal}" for word in (answer, foil))
    start = clean.index(answer)
    pairs.append(
        Pair(
            clean,
            corrupt,
            answer=f" {answer}",
            foil=f" {foil}",
            positions={"thing": (start, start + len(answer))},
            corrupt_positions={"thing": (start, start + len(foil))},
            cluster=animal,
            id=animal,
        )
    )
task = Task("after-the-animal", "What followed the animal the first time?", tuple(pairs), roles=("thing",))

states = [*(sites.resid_pre[layer] for layer in range(2)), sites.resid_post[1]]
effects = cutaway.patching.sweep(model, task, states, positions=("thing", "end"))
for row in effects.table():
    print(f"{row['site']:<20} {row['share']:6.2f} of the gap")
