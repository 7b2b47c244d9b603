"""`induction-2l`: two layers that learn to continue a repeated sequence, and nothing else.

    cutaway zoo train induction-2l --out DIR

Rows are BOS and segments of different random words; each segment comes two or three times, at random distances, so
neither a position nor a distance gives the answer. To continue a copy the model has to find where the present word
stood before and to copy what followed: a previous-token head in layer 0 and an induction head in layer 1 that reads it
(Olsson et al. 2022, In-context Learning and Induction Heads). Left alone, all heads of layer 1 share that work. In the
second part of the training a penalty on every writer but the strongest head of each layer makes it the work of one
head a layer, so that there is a truth simple enough to test methods against. The rest of the file measures what came
out of it. Cost: about 70 s of one CPU core for the training, 60 s for the measurements.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cutaway.zoo import exact
from cutaway.zoo.card import Card, Node, Score, Truth
from cutaway.zoo.exact import Rows
from cutaway.zoo.train import Progress, finish, main, save_hf, score, sizes

NAMES = ("induction-2l",)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_WORDS = """
    ant ape bat bear bee bird bull calf cat clam cod cow crab crow deer dog dove duck eel elk fish flea fly fox
    frog goat hare hawk hen ibex lamb lark lion lynx mole moth mouse mule newt owl ox pig pony puma rat seal
    swan toad trout wasp whale wolf worm wren yak ash beech birch cedar elm fern fig fir ivy lime maple moss oak
    palm pear pine plum reed rice rose rye vine axe bag ball bed bell boat book bowl box brush coat comb cup
    desk door drum fan flag fork gate glove hat jar key kite knife lamp map mat nail net pan pen pin pipe plate
    pot ring rope saw sock spoon tray vase wheel whip yarn
"""
WORDS = tuple(_WORDS.split())
MAX_LENGTH = 96
"""Longest row: beyond it the words run out, and the model was never trained there."""
SPARED = 0.1
"""Share of the strongest head's size that the others of layer 0 may write free of penalty: they stay active. In layer 1
already a hundredth is a help that shows."""
BOS = SPECIAL.index("<bos>")
CHANCE = {"induction": 1 / len(WORDS)}
TARGET = 0.99
N_EVALUATION = 512
"""Rows of each length for the accuracy."""
N_TRUTH = 256
"""Rows for the mechanism."""
EVALUATION_SEED = 1_000_003


@dataclass(frozen=True)
class Recipe:
    """Every number of the training."""

    seed: int = 1
    """Initial weights and rows."""
    steps: int = 700
    """Updates."""
    batch: int = 40
    """Rows an update."""
    length: int = MAX_LENGTH
    """Tokens a row."""
    rate: float = 3e-3
    """Learning rate of AdamW after 100 steps of warm-up; constant to the middle, then linear to zero."""
    decay: float = 0.1
    """Weight decay of the matrices."""
    novel_weight: float = 0.1
    """Weight in the loss of words that nothing predicts; repeated ones have weight 1."""
    lone_from: int = 250
    """Step at which the penalty begins; it is at full strength 200 steps later."""
    lone_weight: float = 0.15
    """Its weight in the loss."""


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, separated by blanks; BOS is put first."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing

    words = Tokenizer(WordLevel({token: index for index, token in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        **names,
    )


def draw_rows(n: int, *, length: int, chance: random.Random) -> Rows:
    """Rows of BOS and segments of 4 to 20 words; a segment comes twice or three times, with 0 to 6 other words between.

    Within a row a word comes only as part of its segment, so what follows it is certain from its second time on.
    """
    drawn = [_row(length, chance) for _ in range(n)]
    return Rows(torch.tensor([ids for ids, _ in drawn]), torch.tensor([known for _, known in drawn]))


def _row(length: int, chance: random.Random) -> tuple[list[int], list[bool]]:
    fresh = chance.sample(range(len(SPECIAL), len(SPECIAL + WORDS)), len(WORDS))
    ids, known = [BOS], [False]
    while len(ids) < length:
        segment = [fresh.pop() for _ in range(chance.randint(4, 20))]
        for copy in range(chance.choice((2, 2, 3))):
            between = chance.choice((0, 0, chance.randint(1, 6))) if copy else 0
            novel = [fresh.pop() for _ in range(between)]
            ids += novel + segment
            known += [False] * (len(novel) + 1) + [copy > 0] * (len(segment) - 1)
    return ids[:length], known[:length]


def build() -> LlamaForCausalLM:
    """The untrained model; its weights come from torch's global generator."""
    config = LlamaConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        attention_dropout=0.0,
        tie_word_embeddings=False,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=BOS,
        eos_token_id=SPECIAL.index("<eos>"),
    )
    return LlamaForCausalLM(config)


def make(
    name: str, folder: Path, *, seed: int | None = None, progress: Progress | None = None, device: str = "cpu"
) -> Card:
    """Train the model and write its folder."""
    recipe = Recipe() if seed is None else Recipe(seed=seed)
    return write(name, train(recipe, progress, device=device), recipe, folder)


def train(
    recipe: Recipe,
    progress: Progress | None = None,
    *,
    device: str = "cpu",
    watch: Callable[[float], None] | None = None,
) -> LlamaForCausalLM:
    """The trained model. Same recipe, library versions, device and number of threads: same bits. `watch(loss)` is
    called after each step."""
    chance = random.Random(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model: Any = build()
        model.to(device)
    optimiser = _optimiser(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / 100, 2 * (1 - step / recipe.steps), 1.0)
    )
    for step in range(recipe.steps):
        rows = draw_rows(recipe.batch, length=recipe.length, chance=chance).to(device)
        with sizes_of_writes(model) as sizes:
            loss = _loss(model, rows, recipe.novel_weight)
        ramp = min(max(step - recipe.lone_from, 0) / 200, 1.0)
        optimiser.zero_grad()
        (loss + recipe.lone_weight * ramp * lone_writer_penalty(sizes)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if watch:
            watch(loss.item())
        if progress:
            progress(step + 1, recipe.steps, f"training {NAMES[0]}")
    return model.eval().cpu()


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    gains = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": recipe.decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98))


def _loss(model: Any, rows: Rows, novel_weight: float) -> Tensor:
    logits = model(rows.ids, use_cache=False).logits[:, :-1]
    each = nn.functional.cross_entropy(logits.transpose(1, 2), rows.ids[:, 1:], reduction="none")
    weight = torch.where(rows.predictable[:, 1:], 1.0, novel_weight)
    return (each * weight).sum() / weight.sum()


@dataclass
class Sizes:
    """Root mean square of what is added to the residual stream in one forward pass."""

    heads: list[Tensor]
    """Of each layer's heads."""
    mlps: list[Tensor]
    """Of each layer's MLP."""


@contextmanager
def sizes_of_writes(model: Any) -> Iterator[Sizes]:
    """The sizes of the writes of the forward pass that runs inside."""
    sizes = Sizes([], [])
    with ExitStack() as taps:
        for layer in model.model.layers:
            weight = layer.self_attn.o_proj.weight.unflatten(1, (model.config.num_attention_heads, -1))

            def size_of_heads(z: Tensor, weight: Tensor = weight) -> Tensor:
                writes = torch.einsum("bphe,dhe->bphd", z.unflatten(-1, weight.shape[1:]), weight)
                sizes.heads.append((writes.pow(2).mean((0, 1, 3)) + 1e-9).sqrt())
                return z

            def size_of_mlp(write: Tensor) -> Tensor:
                sizes.mlps.append((write.pow(2).mean() + 1e-9).sqrt())
                return write

            taps.enter_context(exact.tapped(layer.self_attn, "o_proj", before=size_of_heads))
            taps.enter_context(exact.tapped(layer, "mlp", after=size_of_mlp))
        yield sizes


def lone_writer_penalty(sizes: Sizes) -> Tensor:
    """What the heads but the strongest of their layer write, as a multiple of what that one writes, summed over heads;
    what the MLPs write, as a multiple of the strongest head of the last layer. Heads of layer 0 count from `SPARED` on.

    The strongest head's size is a constant here: the penalty shrinks the others and does not reward it for growing.
    """
    terms = [torch.stack(sizes.mlps).sum() / sizes.heads[-1].max().detach()]
    for heads, spared in zip(sizes.heads, (SPARED, 0.0)):
        others = torch.arange(len(heads), device=heads.device) != heads.argmax()
        terms.append((heads[others] / heads.max().detach() - spared).relu().sum())
    return torch.stack(terms).sum()


def establish(name: str, module: Any, *, rows: int = N_TRUTH, length: int = 64, seed: int = EVALUATION_SEED) -> Truth:
    """Measure every head and MLP on fresh rows, and every connection that the layout allows."""
    module.set_attn_implementation("eager")
    base = exact.baseline(module, draw_rows(rows, length=length, chance=random.Random(seed)), seed=seed)
    layers, heads = module.config.num_hidden_layers, module.config.num_attention_heads
    nodes = [
        node
        for layer in range(layers)
        for node in [*(_head(module, base, layer, head) for head in range(heads)), _mlp(module, base, layer)]
    ]
    return Truth(
        behavior="The present token stood earlier in the row: the token that followed it then follows now.",
        evidence=(
            "Exact interventions, one forward pass each, on rows that were drawn after the training. A head with a "
            "drop of at least 0.5 under all four ablations is previous_token or induction when it gives at least half "
            "of its attention there; a component with a drop below 0.05 in size under all four is a decoy; what is "
            "left is other. Edges: all that the layout allows, each cut alone."
        ),
        metric="logit of the right token minus that of another token of the row, over the repeated words, in nats",
        baseline=base.logit_diff,
        setup={"rows": rows, "length": length, "seed": seed},
        nodes=tuple(nodes),
        edges=tuple(exact.edge(module, base, source, target) for source, target in exact.edges(module)),
        legend={
            "to_previous": "mean attention from a position to the one before it",
            "to_successor": "mean attention, where the next word is repeated, to the words after earlier occurrences "
            "of the present one",
            "write": "mean length of what is added to the residual stream, over the mean length of the stream",
        },
    )


def _head(model: Any, base: exact.Baseline, layer: int, head: int) -> Node:
    pattern = base.pattern[layer][:, head]
    write = exact.head_write(model, base.z[layer][:, :, head], layer, head)
    found = exact.effects(lambda how: exact.ablate_head(model, base, layer, head, how))
    previous, successor = exact.attention_to_previous(pattern), exact.attention_to_successor(pattern, base.rows)
    return Node(
        site=f"z.{layer}.h{head}",
        role=_role([item.drop for item in found.values()], previous, successor),
        measures={
            "to_previous": previous,
            "to_successor": successor,
            "write": exact.mean_write(write, base.resid_pre[layer]),
        },
        effects=found,
    )


def _mlp(model: Any, base: exact.Baseline, layer: int) -> Node:
    found = exact.effects(lambda how: exact.ablate_mlp(model, base, layer, how))
    return Node(
        site=f"mlp_out.{layer}",
        role=_role([item.drop for item in found.values()], 0.0, 0.0),
        measures={"write": exact.mean_write(base.mlp_out[layer], base.resid_pre[layer])},
        effects=found,
    )


def _role(drops: list[float], to_previous: float, to_successor: float) -> str:
    if max(map(abs, drops)) < 0.05:
        return "decoy"
    if min(drops) >= 0.5 and to_previous >= 0.5:
        return "previous_token"
    if min(drops) >= 0.5 and to_successor >= 0.5:
        return "induction"
    return "other"


def evaluate(name: str, module: Any, *, rows: int = N_EVALUATION, seed: int = EVALUATION_SEED) -> tuple[Score, ...]:
    """Accuracy at one repeated word of each of many fresh rows, so that the inputs are independent."""
    scores = []
    for length in (32, 64, MAX_LENGTH):
        chance = random.Random(seed + length)
        fresh = draw_rows(rows, length=length, chance=chance)
        at = torch.tensor([chance.choice(known.nonzero()[:, 0].tolist()) for known in fresh.predictable])
        with torch.no_grad():
            logits = module(fresh.ids, use_cache=False).logits
        row = torch.arange(rows)
        right = int((logits[row, at - 1].argmax(-1) == fresh.ids[row, at]).sum())
        what = f"fresh rows of {length} tokens, at one repeated word of each"
        scores.append(score("induction", what, right, rows, TARGET))
    return tuple(scores)


def write(name: str, model: Any, recipe: Recipe, folder: Path, *, rows: int = N_TRUTH) -> Card:
    """Weights, configuration, tokenizer and card; the measurements are of what was written."""
    return describe(name, save_hf(folder, model, tokenizer(), torch.float32), recipe, folder, rows=rows)


def describe(name: str, model: Any, recipe: Recipe, folder: Path, *, rows: int = N_TRUTH) -> Card:
    """The card of a folder that holds this model."""
    truth = establish(name, model, rows=rows)
    return finish(
        folder,
        name=name,
        summary="two layers that continue repeated random words, by one previous-token head and one induction head",
        architecture=type(model).__name__,
        sizes=sizes(model),
        data=(
            f"Random rows of {recipe.length} tokens, never the same twice: BOS, then segments of 4 to 20 "
            f"different words out of {len(WORDS)}, each segment two or three times with 0 to 6 other words "
            "between the copies. No text, no language."
        ),
        training=(
            f"{recipe.steps} steps of AdamW at {recipe.rate}, {recipe.batch} rows each, weight decay "
            f"{recipe.decay}, float32. Next-token loss; words that nothing predicts count "
            f"{recipe.novel_weight}. From step {recipe.lone_from} a penalty (weight {recipe.lone_weight}) on "
            f"what both MLPs and every head but the strongest of its layer write (in layer 0 what is above {SPARED} "
            "of the strongest). Without it the heads of layer 1 share the work evenly and back each other up, "
            "MLP 1 takes part, and with some seeds two heads of layer 0 do. With it seeds 0 to 3, all that were "
            "tried, gave one head a layer."
        ),
        seed=recipe.seed,
        recipe="induction_2l",
        accuracy=evaluate(name, model),
        known=_known(truth),
        limits=(
            "The circuit is as clean as this because the training was made so: a method that finds it has "
            "passed the easiest test there is. Heads of layer 1 that the penalty made small may still look "
            "like induction heads by their attention; they write little. Only rows of different "
            "random words were measured: a word that is followed by different words in one row, and rows "
            f"beyond {MAX_LENGTH} tokens, are outside. <eos> and <unk> were never trained."
        ),
        licence="Apache-2.0",
        truth=truth,
    )


def _known(truth: Truth) -> str:
    previous, induction, decoys = (
        ", ".join(truth.sites(role)) or "none" for role in ("previous_token", "induction", "decoy")
    )
    carried = [
        f"{edge.source} to {edge.target}" for edge in truth.edges if min(edge.resample or 0, edge.zero or 0) >= 0.5
    ]
    return (
        f"Previous-token head: {previous}. Induction head: {induction}. Without influence: {decoys}. Connections "
        f"without which half of the behavior is gone, resampled or zeroed: {', '.join(carried) or 'none'}. Established "
        f"by exact intervention on every head and MLP and on each of the {len(truth.edges)} direct connections alone, "
        f"over {truth.setup['rows']:g} rows; the numbers are in the truth."
    )


if __name__ == "__main__":
    main(NAMES, make)
