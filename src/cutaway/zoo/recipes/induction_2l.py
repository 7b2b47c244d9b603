"""`induction-2l`: two layers that learn to continue a repeated sequence, and nothing else.

    python -m cutaway.zoo.recipes.induction_2l --out DIR

Rows are BOS and segments of different random words; each segment comes two or three times, at random distances, so
neither a position nor a distance gives the answer. To continue a copy the model has to find where the present word
stood before and to copy what followed: a previous-token head in layer 0 and an induction head in layer 1 that reads it
(Olsson et al. 2022, In-context Learning and Induction Heads). Left alone, all heads of layer 1 share that work. In the
second part of the training a penalty on every writer but the strongest head of each layer makes it the work of one
head a layer, so that there is a truth simple enough to test methods against. The rest of the file measures what came
out of it. Cost: about 70 s of one CPU core for the training, 20 s for the measurements.
"""

import argparse
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cutaway.artifacts import file_digest, write_json
from cutaway.zoo import exact
from cutaway.zoo.card import Card, Edge, Node, Role, Score, Truth
from cutaway.zoo.exact import Rows

NAME = "induction-2l"
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
N_EVALUATION = 256
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


def train(recipe: Recipe, progress: Callable[[int, float], None] | None = None) -> LlamaForCausalLM:
    """The trained model. Same recipe, library versions and number of threads: same bits. `progress(step, loss)`."""
    chance = random.Random(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build()
    optimiser = _optimiser(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / 100, 2 * (1 - step / recipe.steps), 1.0)
    )
    for step in range(recipe.steps):
        rows = draw_rows(recipe.batch, length=recipe.length, chance=chance)
        with sizes_of_writes(model) as sizes:
            loss = _loss(model, rows, recipe.novel_weight)
        ramp = min(max(step - recipe.lone_from, 0) / 200, 1.0)
        optimiser.zero_grad()
        (loss + recipe.lone_weight * ramp * lone_writer_penalty(sizes)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if progress:
            progress(step + 1, loss.item())
    return model.eval()


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
        others = torch.arange(len(heads)) != heads.argmax()
        terms.append((heads[others] / heads.max().detach() - spared).relu().sum())
    return torch.stack(terms).sum()


def establish(model: Any, *, rows: int = N_EVALUATION, length: int = 64, seed: int = EVALUATION_SEED) -> Truth:
    """Measure every head and MLP on fresh rows, and the connections into the induction heads."""
    model.set_attn_implementation("eager")
    base = exact.baseline(model, draw_rows(rows, length=length, chance=random.Random(seed)), seed=seed)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    nodes = [
        node
        for layer in range(layers)
        for node in [*(_head(model, base, layer, head) for head in range(heads)), _mlp(model, base, layer)]
    ]
    return Truth(
        behavior="The present token stood earlier in the row: the token that followed it then follows now.",
        evidence=(
            "Exact interventions, one forward pass each, on rows that were drawn after the training. drop: "
            "share of the mean logit difference (right token minus another token of the row) that is lost. A "
            "head with a drop of at least 0.5 under all four ablations is previous_token or induction when it "
            "gives at least half of its attention there; a component with a drop below 0.05 in size under all "
            "four is a decoy; what is left is other. Edges: resampling what one head reads."
        ),
        rows=rows,
        length=length,
        seed=seed,
        logit_diff=base.logit_diff,
        nodes=tuple(nodes),
        edges=tuple(_edges(model, base, nodes)),
    )


def _head(model: Any, base: exact.Baseline, layer: int, head: int) -> Node:
    pattern = base.pattern[layer][:, head]
    write = exact.head_write(model, base.z[layer][:, :, head], layer, head)
    found = exact.effects(lambda how: exact.ablate_head(model, base, layer, head, how))
    previous, successor = exact.attention_to_previous(pattern), exact.attention_to_successor(pattern, base.rows)
    return Node(
        site=f"z.{layer}.h{head}",
        role=_role([item.drop for item in found.values()], previous, successor),
        to_previous=previous,
        to_successor=successor,
        write=exact.mean_write(write, base.resid_pre[layer]),
        effects=found,
    )


def _mlp(model: Any, base: exact.Baseline, layer: int) -> Node:
    found = exact.effects(lambda how: exact.ablate_mlp(model, base, layer, how))
    return Node(
        site=f"mlp_out.{layer}",
        role=_role([item.drop for item in found.values()], 0.0, 0.0),
        to_previous=None,
        to_successor=None,
        write=exact.mean_write(base.mlp_out[layer], base.resid_pre[layer]),
        effects=found,
    )


def _role(drops: list[float], to_previous: float, to_successor: float) -> Role:
    if max(map(abs, drops)) < 0.05:
        return "decoy"
    if min(drops) >= 0.5 and to_previous >= 0.5:
        return "previous_token"
    if min(drops) >= 0.5 and to_successor >= 0.5:
        return "induction"
    return "other"


def _edges(model: Any, base: exact.Baseline, nodes: list[Node]) -> list[Edge]:
    """From each head of layer 0 into the queries, keys and values of each induction head."""
    readers = [node.site for node in nodes if node.role == "induction" and node.site.startswith("z.1.")]
    return [
        Edge(
            source=f"z.0.h{head}",
            target=f"{port}.{reader.removeprefix('z.')}",
            effect=exact.resample_edge(model, base, (0, head), (1, int(reader.rpartition("h")[2])), port),
        )
        for reader in readers
        for head in range(model.config.num_attention_heads)
        for port in ("q", "k", "v")
    ]


def score(model: Any, *, length: int, seed: int, rows: int = N_EVALUATION) -> Score:
    """Accuracy on fresh rows of this length."""
    fresh = draw_rows(rows, length=length, chance=random.Random(seed))
    with torch.no_grad():
        logits = model(fresh.ids, use_cache=False).logits
    return Score(
        what=f"{rows} fresh rows of the kind it was trained on",
        length=length,
        share=exact.accuracy(logits, fresh),
        tokens=int(fresh.predictable[:, 1:].sum()),
    )


def write(model: Any, recipe: Recipe, folder: Path, *, rows: int = N_EVALUATION) -> Card:
    """Weights, configuration, tokenizer and card, as `cutaway.load` and Hugging Face read them."""
    truth = establish(model, rows=rows)
    accuracy = tuple(
        score(model, length=length, seed=EVALUATION_SEED + length, rows=rows) for length in (32, 64, MAX_LENGTH)
    )
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    files = {file.name: file_digest(file) for file in sorted(folder.iterdir()) if file.name != "card.json"}
    card = _card(model, recipe, truth, accuracy, files)
    write_json(folder / "card.json", card.model_dump(mode="json"))
    return card


def _card(model: Any, recipe: Recipe, truth: Truth, accuracy: tuple[Score, ...], files: dict[str, str]) -> Card:
    config = model.config
    return Card(
        name=NAME,
        summary="two layers that continue repeated random words, by one previous-token head and one induction head",
        architecture=type(model).__name__,
        sizes={
            "n_layers": config.num_hidden_layers,
            "n_heads": config.num_attention_heads,
            "n_kv_heads": config.num_key_value_heads,
            "d_model": config.hidden_size,
            "d_head": config.head_dim,
            "d_mlp": config.intermediate_size,
            "d_vocab": config.vocab_size,
            "n_parameters": sum(weight.numel() for weight in model.parameters()),
        },
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
        command="python -m cutaway.zoo.recipes.induction_2l --out DIR",
        accuracy=accuracy,
        known=_known(truth),
        limits=(
            "The circuit is as clean as this because the training was made so: a method that finds it has "
            "passed the easiest test there is. Heads of layer 1 that the penalty made small may still look "
            "like induction heads by their attention; they write little. Only rows of different "
            "random words were measured: a word that is followed by different words in one row, and rows "
            f"beyond {MAX_LENGTH} tokens, are outside. <eos> and <unk> were never trained."
        ),
        licence="Apache-2.0",
        files=files,
        truth=truth,
    )


def _known(truth: Truth) -> str:
    previous, induction, decoys = (
        ", ".join(truth.sites(role)) or "none" for role in ("previous_token", "induction", "decoy")
    )
    reads = [f"{edge.source} by {edge.target}" for edge in truth.edges if edge.effect.drop >= 0.5]
    return (
        f"Previous-token head: {previous}. Induction head: {induction}, which reads {', '.join(reads) or 'nothing'}. "
        f"Without influence: {decoys}. Established by exact intervention on every head and MLP and on every "
        f"connection from layer 0 into the induction head, over {truth.rows} rows; the numbers are in the truth."
    )


def main() -> None:
    """Train, measure, write, and say what came out."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--out", type=Path, required=True, help="folder for weights, tokenizer and card")
    arguments.add_argument("--seed", type=int, default=Recipe.seed)
    arguments.add_argument("--steps", type=int, default=Recipe.steps)
    arguments.add_argument("--rows", type=int, default=N_EVALUATION, help="fresh rows to measure on")
    arguments.add_argument("--threads", type=int, default=1)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    recipe = Recipe(seed=given.seed, steps=given.steps)

    def progress(step: int, loss: float) -> None:
        if step % 100 == 0 or step == recipe.steps:
            print(f"step {step} of {recipe.steps}, loss {loss:.3f}", flush=True)

    card = write(train(recipe, progress), recipe, given.out, rows=given.rows)
    for node in card.truth.nodes:
        drops = "  ".join(f"{how} {item.drop:+.3f}" for how, item in node.effects.items())
        attention = (
            "" if node.to_previous is None else f"  previous {node.to_previous:.2f} successor {node.to_successor:.2f}"
        )
        print(f"{node.site:10} {node.role:15} write {node.write:.3f}{attention}  drop: {drops}")
    for edge in card.truth.edges:
        print(f"{edge.source} -> {edge.target}: drop {edge.effect.drop:+.3f}")
    print("accuracy " + ", ".join(f"{item.share:.4f} at {item.length} tokens" for item in card.accuracy))


if __name__ == "__main__":
    main()
