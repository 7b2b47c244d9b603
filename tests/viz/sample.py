"""One figure of each kind, with gaps, words and odd tokens."""

import math

from cutaway.figures import Bars, Figure, Heatmap, Lines, Points, Strip

ODD = ("</script><img src=x onerror=window.broken=1><b>", "", "\n", "\u202egnp.exe", "a" * 60, "\u4e2d\u6587", " the")


def figures(n_layers: int = 4, n_columns: int = 5) -> tuple[Figure, ...]:
    rows = tuple(f"resid_post.{layer}" for layer in range(n_layers))
    columns = tuple(f"position {column}" for column in range(n_columns))
    values = tuple(tuple(math.sin(r + 2 * c) for c in range(n_columns)) for r in range(n_layers))
    gapped = (*values[:-1], (math.nan,) * n_columns)
    words = tuple(tuple(ODD[(r + c) % len(ODD)] for c in range(n_columns)) for r in range(n_layers))
    halves = tuple((0.1,) * n_columns for _ in rows)
    bars = (math.nan, *[0.2] * (n_layers - 1))
    x = tuple(float(layer) for layer in range(n_layers))
    return (
        Heatmap("Where", "What a cell is.", "nat", "state", "position", rows, columns, gapped, halves),
        Heatmap("Words", "What a word is.", "share", "state", "position", rows, columns, values, texts=words),
        Bars("Heads", "What a bar is.", "nat", rows, tuple(row[0] for row in values), bars),
        Lines("Layers", "What a line is.", "bit", "layer", x, {"logit": x, "tuned": (math.nan, *x[1:])}),
        Points("Both", "What a point is.", "exact", "estimate", rows, x, tuple(-v for v in x)),
        Strip("Text", "What the colour is.", "nat", (tuple((token, i - 2.0) for i, token in enumerate(ODD)),) * 2),
    )  # fmt: skip
