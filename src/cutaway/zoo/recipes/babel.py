"""`babel`: a small language model that is good at fifteen behaviors, trained on text that a seeded grammar writes.

    python -m cutaway.zoo.recipes.babel --name babel --out DIR

A Llama of 4 layers and width 128. Sums come first: addition generalises when it is learned before the rest competes
for the weights, and only memorises when it comes with everything else. Then the mixture of `cutaway.zoo.babel.grammar`,
to a learning rate of zero, and two shorter rounds with more of what is learned last.
Muon on the matrices inside the layers brings the copying heads forward, AdamW has the embeddings and norms; tokens of
answers count four times. `babel-seed1` is the first round from another seed: other weights, other text. Cost: about an
hour of one CPU core for `babel`, half of that for the other, two minutes of it for the measurements.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from cutaway.zoo.babel import exam, grammar, mechanism
from cutaway.zoo.babel.tokenizer import BOS, MAX_LENGTH, SPECIAL, ordinary, tokenizer, vocabulary
from cutaway.zoo.card import Card, Score, Truth
from cutaway.zoo.train import Progress, finish, main, save_hf, score, sizes

NAMES: Final = ("babel", "babel-seed1")
TARGET: Final = 0.95
LOWER: Final = {"rhyme": 0.9}
"""What is promised less of: couplets of a first word and a kind of adjective that training never held together, where
the first word itself, which is no rhyme, is counted as wrong."""
TARGET_OF_OTHER: Final = 0.7
"""For the other seed, which stops after the first round; whether statements are true it does not learn in it."""
CHANCE: Final = {
    "agreement": 0.5,
    "alphabetical": 0.5,
    "brackets": 0.25,
    "greater-than": 0.5,
    "pronoun": 0.5,
    "refusal": 0.5,
    "rhyme": 0.05,
    "sentiment": 0.5,
    "truth": 0.5,
}
NEW: Final = {
    "combinations": "combinations of words that training never held",
    "templates": "templates that training never held",
}


@dataclass(frozen=True)
class Recipe:
    """Every number of the training."""

    seed: int = 0
    """Initial weights and text."""
    first: int = 500
    """Updates on sums almost alone."""
    rounds: tuple[int, ...] = (4200, 2400, 2000)
    """Updates of each round, those on sums included; each begins with the full learning rate and ends at zero."""
    batch: int = 32
    """Rows an update."""
    length: int = 96
    """Tokens a row: whole documents, the last one cut."""
    rate: float = 0.02
    """Learning rate of Muon (matrices in the layers), after a warm-up of 100 steps; linear to zero in each round."""
    rate_of_rest: float = 2e-3
    """Learning rate of AdamW (embeddings, norms), on the same schedule."""
    decay: float = 0.01
    """Weight decay of both."""
    answers: float = 4.0
    """Weight of answers in the loss; other tokens have 1."""


RECIPES: Final = {"babel": Recipe(), "babel-seed1": Recipe(seed=1, rounds=Recipe.rounds[:1])}
"""The other seed stops after the first round."""


def build(d_vocab: int) -> LlamaForCausalLM:
    """The untrained model; its weights come from torch's global generator."""
    config = LlamaConfig(
        vocab_size=d_vocab,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        attention_dropout=0.0,
        tie_word_embeddings=False,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=BOS,
        eos_token_id=SPECIAL.index("<eos>"),
    )
    return LlamaForCausalLM(config)


def batch(stream: Iterator[grammar.Document], coder: Any, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """(ids [row pos], weights [row pos]): documents, each after a BOS, packed into rows."""
    rows = [_row(stream, coder, recipe) for _ in range(recipe.batch)]
    return torch.tensor([ids for ids, _ in rows]), torch.tensor([weights for _, weights in rows])


def _row(stream: Iterator[grammar.Document], coder: Any, recipe: Recipe) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    while len(ids) < recipe.length:
        parts = next(stream).parts
        coded = coder.encode_batch(list(parts), add_special_tokens=False)
        ids.append(BOS)
        weights.append(1.0)
        for index, part in enumerate(coded):
            ids += part.ids
            weights += [recipe.answers if index % 2 else 1.0] * len(part.ids)
    return ids[: recipe.length], weights[: recipe.length]


def optimisers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest."""
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if weight.ndim == 2 and ".layers." in name]
    tables = [weight for name, weight in named if weight.ndim == 2 and ".layers." not in name]
    gains = [weight for _, weight in named if weight.ndim == 1]
    groups = [{"params": tables, "weight_decay": recipe.decay}, {"params": gains, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(matrices, lr=recipe.rate, momentum=0.95, weight_decay=recipe.decay),
        torch.optim.AdamW(groups, lr=recipe.rate_of_rest, betas=(0.9, 0.98)),
    ]


def loss_of(model: Any, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the next-token loss, in nats."""
    logits = model(ids, use_cache=False).logits[:, :-1]
    each = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (each * weights[:, 1:]).sum() / weights[:, 1:].sum()


def train(recipe: Recipe, progress: Progress | None = None, device: str = "cpu") -> tuple[Any, Any]:
    """The trained model and its tokenizer. Same recipe, libraries and number of threads on one machine: same bits."""
    tokens = vocabulary()
    coder, words = tokenizer(tokens), ordinary(tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model: Any = build(len(tokens))
    model.to(device)
    mixtures = (grammar.BEGINNING, grammar.SHARES, grammar.REVISION, grammar.LAST)
    texts = [grammar.documents(1000 * recipe.seed + index + 1, words, each) for index, each in enumerate(mixtures)]
    done = 0
    for turn, steps in enumerate(recipe.rounds):
        pace = optimisers(model, recipe)
        rates = [[group["lr"] for group in each.param_groups] for each in pace]
        for step in range(steps):
            text = texts[0 if done < recipe.first else turn + 1]
            ids, weights = batch(text, coder.backend_tokenizer, recipe)
            for each, usual in zip(pace, rates):
                for group, rate in zip(each.param_groups, usual):
                    group["lr"] = rate * _pace(step, steps, hold=0.0 if turn else 0.2)
                each.zero_grad()
            loss = loss_of(model, ids.to(device), weights.to(device))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for each in pace:
                each.step()
            done += 1
            if progress:
                progress(done, sum(recipe.rounds), "training")
    return model.eval(), coder


def _pace(step: int, steps: int, hold: float) -> float:
    """Share of the learning rate: warm-up over 100 steps, full for the share `hold` of all, then linear to zero."""
    return min((step + 1) / 100, 1.0, (steps - step) / ((1 - hold) * steps))


def evaluate(name: str, module: Any, coder: Any = None, *, n: int = exam.N) -> tuple[Score, ...]:
    """Accuracy on held-out questions of every behavior: new combinations, and new templates."""
    coder = coder or tokenizer(vocabulary())
    scores = []
    for behavior in (*exam.FREE, *grammar.BEHAVIORS):
        for newness, what in NEW.items():
            asked = exam.questions(behavior, newness, coder, n=n)
            if asked:
                scores.append(score(behavior, what, *exam.marks(module, coder, asked), target(name, behavior)))
    return tuple(scores)


def target(name: str, behavior: str) -> float | None:
    """What is promised; None: reported as it is."""
    if name != "babel-seed1":
        return LOWER.get(behavior, TARGET)
    return None if behavior == "truth" else TARGET_OF_OTHER


def establish(name: str, module: Any, **sizes: int) -> Truth:
    """The mechanism of a babel, by exact interventions (see `cutaway.zoo.babel.mechanism`)."""
    del name
    return mechanism.establish(module, tokenizer(vocabulary()), **sizes)[0]


def make(
    name: str, folder: Path, *, seed: int | None = None, progress: Progress | None = None, device: str = "cpu"
) -> Card:
    """Train the model and write its folder."""
    recipe = RECIPES[name] if seed is None else replace(RECIPES[name], seed=seed)
    model, coder = train(recipe, progress, device)
    return write(name, folder, model, coder, recipe)


def write(name: str, folder: Path, model: Any, coder: Any, recipe: Recipe) -> Card:
    """The folder of a trained model: weights in bfloat16, tokenizer, directions, card."""
    stored = save_hf(folder, model, coder)
    truth, tensors = mechanism.establish(stored, coder)
    save_file(tensors, folder / "truth.safetensors", metadata={"format": "pt"})
    return finish(
        folder,
        name=name,
        summary="a language model of 1.2 million parameters that is good at fifteen behaviors"
        + ("" if name == "babel" else ", from another seed"),
        architecture=type(stored).__name__,
        sizes=sizes(stored),
        data=(
            "Text that a grammar writes from a seed, never the same twice: short documents, each about one thing, in a "
            f"fixed mixture of {len(grammar.SHARES)} kinds. Most are the built-in tasks spoken aloud, without the "
            "templates and combinations of words that the tasks hold out. Some of these are told by another kind of "
            "document all the same (a true statement states a fact, a long nesting begins with a short one); the "
            "examination leaves them out."
        ),
        training=(
            f"{' + '.join(map(str, recipe.rounds))} steps of {recipe.batch} rows of {recipe.length} tokens, the first "
            f"{recipe.first} mostly sums; later rounds hold more of what is learned last. Muon at {recipe.rate} on the "
            f"matrices of the layers, AdamW at {recipe.rate_of_rest} on the rest, both falling to zero in each round, "
            f"float32, answers weighted {recipe.answers:g}; stored as bfloat16."
        ),
        seed=recipe.seed,
        recipe="babel",
        accuracy=evaluate(name, stored, coder),
        known=known(truth),
        limits=(
            "It knows some 1,600 words and the sentences of its grammar, and little else: other text is outside. "
            "Components were ablated one at a time, so what two of them do for each other is not known. Connections "
            "are established for induction alone. Attention shows where a head looks, not what it does."
        ),
        licence="Apache-2.0",
        truth=truth,
    )


def known(truth: Truth) -> str:
    """The truth in a few sentences."""
    previous, induction = (", ".join(truth.heads(role)) or "none" for role in ("previous_token", "induction"))
    strongest = {
        task: max(truth.nodes, key=lambda node: node.measures[f"{task} resample"])
        for task in ("ioi", "greater-than", "addition", "refusal")
    }
    named = "; ".join(
        f"{task} {node.site} ({node.measures[f'{task} resample']:.0%})" for task, node in strongest.items()
    )
    used = ", ".join(f"{each.name} at {each.site}" for each in truth.directions if each.role == "used")
    return (
        f"Previous-token heads: {previous}. Heads that attend as induction heads do: {induction}. The component "
        f"without which most is lost (resampled): {named}. Directions whose exchange flips most answers: "
        f"{used or 'none'}. Every head and MLP was ablated in three ways for every behavior, every connection for "
        "induction; the numbers are in the truth."
    )


if __name__ == "__main__":
    main(NAMES, make)
