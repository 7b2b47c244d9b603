"""`modular-addition`: one layer that grokked (a + b) mod 53.

    python -m cutaway.zoo.recipes.modular_addition --out DIR

Rows are `a b =`; the answer is read at `=`. The model is trained on 70 % of the unordered pairs, in both orders, and
held out are the others in both orders, so that symmetry alone helps nowhere. It first memorises what it is trained on,
and long after that learns the sum: weight decay prefers the Fourier algorithm of `cutaway.zoo.fourier` (Nanda et al.
2023, Progress measures for grokking via mechanistic interpretability). States along the way are kept.

The class is GPT-2's with a ReLU. Its norms have an epsilon of 2^20 and a gain of 2^10, so that they subtract the mean
and do nothing else (the variance is a millionth of the epsilon): the network of the paper, which has no norms, as an
ordinary Hugging Face model. Biases are zero. Cost: about a minute of one CPU core, 10 s of it for the measurements.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from cutaway.errors import UsageError
from cutaway.zoo import catalogue, exact, fourier
from cutaway.zoo.card import Ablation, Card, Direction, Edge, Effect, Node, Score, Truth
from cutaway.zoo.train import Progress, finish, main, save_hf, score

NAMES = ("modular-addition",)
CHANCE = {"(a + b) mod 53": 1 / 53}
"""Behavior -> share that a guess gives."""
P = 53
"""The modulus; the token of a number is the number."""
EQUALS, PAD = P, P + 1
D_MODEL, D_MLP = 64, 256
N_POSITIONS = 8
"""Rows have three tokens; the positions behind them are zeros, there for whoever runs longer probes."""
CHECKPOINTS = "checkpoints.safetensors"
"""File with the states along the training: tensors `STEP/PARAMETER`."""
SHARE = 0.7
"""Share of the unordered pairs that is trained on."""
SPLIT_SEED = 1
"""Which pairs: the same for every seed of the weights."""
ORDER_SEED = 3
"""Order of the pairs when a value is resampled: it comes from the pair before."""


@dataclass(frozen=True)
class Recipe:
    """Every number of the training."""

    seed: int = 0
    """Initial weights."""
    longest: int = 5000
    """Updates at the most, each on all trained pairs, before the rate falls."""
    ending: int = 300
    """Updates over which the rate falls to a fiftieth, from the first check at which all held-out pairs are right: at a
    constant rate the loss would spike now and then. The held-out pairs decide on this alone."""
    check: int = 50
    """Updates between two checks."""
    rate: float = 2e-3
    """Learning rate of AdamW after 10 steps of warm-up."""
    decay: float = 2.0
    """Weight decay of all matrices."""
    kept: tuple[int, ...] = (0, 100, 200, 300, 400, 500, 600, 700, 800)
    """Steps of which the state is kept, beside the one at which the rate begins to fall and the last."""


def trained_pairs(p: int = P) -> Bool[Tensor, "a b"]:
    """Whether a pair is trained on: symmetric, so that a held-out pair was seen in neither order."""
    chance = torch.rand(p, p, generator=torch.Generator().manual_seed(SPLIT_SEED)).triu()
    drawn = chance.triu() + chance.triu(1).T
    return drawn <= drawn.flatten().quantile(SHARE)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a number, `=` and a padding, separated by blanks: `17 40 =`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = [*map(str, range(P)), "=", "<pad>"]
    known = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    known.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=known,
        model_max_length=3,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        pad_token="<pad>",
    )


def build(seed: int) -> GPT2LMHeadModel:
    """The untrained model."""
    config = GPT2Config(
        vocab_size=P + 2,
        n_positions=N_POSITIONS,
        n_embd=D_MODEL,
        n_layer=1,
        n_head=4,
        n_inner=D_MLP,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        layer_norm_epsilon=2.0**20,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = GPT2LMHeadModel(config)
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                fan_in = D_MLP if name.endswith("mlp.c_proj.weight") else D_MODEL
                used = weight[:3] if name.endswith("wpe.weight") else weight
                weight.zero_()
                used.normal_(0, fan_in**-0.5, generator=generator)
            else:
                weight.fill_(2.0**10 if name.endswith("weight") else 0.0).requires_grad_(False)
    return model


def train(
    recipe: Recipe, progress: Progress | None = None, device: str = "cpu"
) -> tuple[GPT2LMHeadModel, dict[int, dict[str, Tensor]]]:
    """The trained model, and the matrices at the steps that are kept. Same recipe, versions and threads: same bits."""
    model: Any = build(recipe.seed)
    model.to(device)
    chosen = trained_pairs().flatten()
    rows, answers = fourier.pairs(P)[chosen].to(device), fourier.right(P).flatten()[chosen].to(device)
    matrices = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(matrices, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.decay)
    states: dict[int, dict[str, Tensor]] = {}
    step, falls_from = 0, recipe.longest
    while step < falls_from + recipe.ending:
        if step % recipe.check == 0 and step < falls_from and _generalises(model):
            falls_from = step
        if step in recipe.kept or step == falls_from:
            states[step] = _matrices(model)
        for group in optimiser.param_groups:
            left = (falls_from + recipe.ending - step) / recipe.ending
            group["lr"] = recipe.rate * min((step + 1) / 10, 1.0, max(0.02, left))
        loss = nn.functional.cross_entropy(model(rows, use_cache=False).logits[:, -1], answers)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
        if progress:
            progress(step, falls_from + recipe.ending, "training")
    states[step] = _matrices(model)
    return model.requires_grad_(True).eval(), states


def _generalises(model: Any) -> bool:
    return fourier.accuracy(fourier.logits(model, P), ~trained_pairs()) == 1.0


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, in half precision."""
    return {name: weight.detach().cpu().half() for name, weight in model.named_parameters() if weight.ndim > 1}


def make(
    name: str, folder: Path, *, seed: int | None = None, progress: Progress | None = None, device: str = "cpu"
) -> Card:
    """Train, write the folder, measure what it gives back, write the card."""
    recipe = Recipe() if seed is None else replace(Recipe(), seed=seed)
    model, states = train(recipe, progress, device)
    module: Any = save_hf(folder, model, tokenizer(), torch.float16)
    save_file(
        {f"{step}/{key}": value for step, state in states.items() for key, value in state.items()}, folder / CHECKPOINTS
    )
    save_file(arrays(module), folder / "truth.safetensors")
    truth = establish(name, module)
    keys = fourier.key_frequencies(module, P)
    along = {
        f"{measure}@{step}": value
        for step in steps(folder)
        for measure, value in progress_measures(checkpoint(step, folder), keys).items()
    }
    truth = truth.model_copy(update={"measures": {**truth.measures, **along}})
    return finish(folder, **_card(name, folder, recipe, module, truth))


def _card(name: str, folder: Path, recipe: Recipe, module: Any, truth: Truth) -> dict[str, Any]:
    config, last = module.config, truth.measures
    keys = ", ".join(item.tensor.rpartition("_")[2] for item in truth.directions if item.site == "embed")
    n_trained = int(trained_pairs().sum())
    return {
        "name": name,
        "summary": f"one layer that grokked (a + b) mod {P} by Fourier waves, with states along the training",
        "architecture": "GPT2LMHeadModel",
        "sizes": {
            "n_parameters": sum(weight.numel() for weight in module.parameters()),
            "n_layers": config.n_layer,
            "n_heads": config.n_head,
            "n_kv_heads": config.n_head,
            "d_model": config.n_embd,
            "d_head": config.n_embd // config.n_head,
            "d_mlp": config.n_inner,
            "d_vocab": config.vocab_size,
        },
        "data": f"{n_trained} of the {P * P} rows `a b =`: {SHARE:.0%} of the unordered pairs, in both orders. The "
        "others are held out in both orders.",
        "training": f"{steps(folder)[-1]} steps of AdamW on all trained pairs at once, at {recipe.rate}, betas 0.9 and "
        f"0.98, weight decay {recipe.decay}, float32, nothing added to the loss; the rate falls over the last "
        f"{recipe.ending} steps, from when all held-out pairs are right. The norms' epsilon is 2^20 and their "
        "gain 2^10, both fixed, so that they only subtract the mean; biases are fixed at zero. Stored as float16.",
        "seed": recipe.seed,
        "recipe": "modular_addition",
        "accuracy": evaluate(name, module),
        "known": f"Key frequencies {keys}: {last['share_of_keys']:.0%} of the embedding's power. With them alone "
        f"in the embedding {last['accuracy_with_keys_alone']:.1%} of all pairs are right; any other frequency can be "
        f"taken out at a loss of at most {last['largest_drop_of_another_wave']:.1%} of the metric. Of the logits' "
        f"variance {last['explained']:.0%} is cosines of a + b - c. Held-out loss {last['held_out_loss']:.2g}, "
        f"restricted to the waves of a + b {last['restricted_loss']:.2g}; without them the loss on trained pairs is "
        f"{last['excluded_loss']:.2g} nats. All by exact intervention on all {P * P} pairs.",
        "limits": "Another seed learns other frequencies, two to six of them, and may grok a thousand steps "
        "later; what comes again is the algorithm: held-out accuracy of at least 99 %, key frequencies alone right "
        "on at least 95 %, a restricted loss below 0.1 and an excluded loss above 1. How each neuron multiplies its "
        "waves is measured (neuron_frequency) and not proved. Only rows `a b =` mean anything.",
        "licence": "Apache-2.0",
        "truth": truth,
    }


def steps(folder: Path | None = None) -> tuple[int, ...]:
    """Training steps of which a state is kept; the last is the model itself. `folder`: None is the embedded one."""
    found = load_file((folder or catalogue.path(NAMES[0])) / CHECKPOINTS)
    return tuple(sorted({int(key.partition("/")[0]) for key in found}))


def checkpoint(step: int, folder: Path | None = None) -> GPT2LMHeadModel:
    """The model as it was after so many steps of its training; `steps` says which there are."""
    found = load_file((folder or catalogue.path(NAMES[0])) / CHECKPOINTS)
    own = {key.partition("/")[2]: value.float() for key, value in found.items() if key.startswith(f"{step}/")}
    model = build(0).requires_grad_(True).eval()
    if set(own) != set(_matrices(model)):
        raise UsageError(f"step {step}: no state of it is kept; those of {', '.join(map(str, steps(folder)))} are")
    model.load_state_dict(own, strict=False)
    return model


def evaluate(name: str, module: nn.Module) -> tuple[Score, ...]:
    """Accuracy on unordered pairs, a pair counting as right when both orders are."""
    hit = fourier.logits(module, P).argmax(-1) == fourier.right(P)
    both, trained = (hit & hit.T), trained_pairs()
    once = torch.ones(P, P, dtype=torch.bool).triu()
    behavior = f"(a + b) mod {P}"
    held, seen = both[once & ~trained], both[once & trained]
    return (
        score(behavior, "unordered pairs of which neither order was trained", int(held.sum()), len(held), target=0.99),
        score(behavior, "unordered pairs that were trained", int(seen.sum()), len(seen), target=0.99),
    )


# -- the mechanism


@dataclass(frozen=True)
class Bench:
    """The intact model on all pairs, in an order in which neighbours have nothing to do with each other."""

    module: Any
    ids: Int[Tensor, "pair pos"]
    values: Mapping[str, Float[Tensor, "pair pos width"]]
    """What was written or read where: embed resid_pre resid_mid resid_post z mlp_out."""
    pattern: Float[Tensor, "pair head query key"]
    advantage: float
    """Mean logit of the right number minus the mean logit of the others, in nats."""

    def effect(self, *taps: AbstractContextManager[None]) -> Effect:
        """What changes do to the behavior. One forward pass."""
        with torch.no_grad(), ExitStack() as stack:
            for tap in taps:
                stack.enter_context(tap)
            logits = self.module(self.ids, use_cache=False).logits[:, -1, :P]
        return Effect(drop=1 - _advantage(logits, self.ids) / self.advantage, accuracy=_accuracy(logits, self.ids))


def _advantage(logits: Float[Tensor, "pair p"], ids: Int[Tensor, "pair pos"]) -> float:
    answer = logits.gather(1, (ids[:, :1] + ids[:, 1:2]) % P)[:, 0]
    return ((answer * P - logits.sum(1)) / (P - 1)).mean().item()


def _accuracy(logits: Float[Tensor, "pair p"], ids: Int[Tensor, "pair pos"]) -> float:
    return (logits.argmax(1) == (ids[:, 0] + ids[:, 1]) % P).float().mean().item()


def bench(module: Any) -> Bench:
    """Run the intact model on all pairs and keep what its parts wrote and read."""
    ids = fourier.pairs(P)[torch.randperm(P * P, generator=torch.Generator().manual_seed(ORDER_SEED))]
    values: dict[str, Tensor] = {}

    def keep(name: str) -> exact.Change:
        return lambda value: values.setdefault(name, value)

    body, block = module.transformer, module.transformer.h[0]
    taps = [
        exact.tapped(body, "wte", after=keep("embed")),
        exact.tapped(block, "ln_1", before=keep("resid_pre")),
        exact.tapped(block.attn, "c_proj", before=keep("z")),
        exact.tapped(block, "ln_2", before=keep("resid_mid")),
        exact.tapped(block, "mlp", after=keep("mlp_out")),
        exact.tapped(body, "ln_f", before=keep("resid_post")),
    ]
    usual = module.config._attn_implementation
    module.set_attn_implementation("eager")
    try:
        with torch.no_grad(), ExitStack() as stack:
            for tap in taps:
                stack.enter_context(tap)
            out = module(ids, use_cache=False, output_attentions=True)
    finally:
        module.set_attn_implementation(usual)
    return Bench(module, ids, values, out.attentions[0], _advantage(out.logits[:, -1, :P], ids))


def establish(name: str, module: Any) -> Truth:
    """Key frequencies from the weights; what they, the heads and the MLP do, by exact intervention on all pairs."""
    base = bench(module)
    keys = fourier.key_frequencies(module, P)
    found = arrays(module)
    return Truth(
        behavior=f"At `=` the next token is (a + b) mod {P}.",
        evidence=(
            "Exact interventions, one forward pass each, on all pairs. A frequency is key when the embedding has at "
            "least twice the even share of its power there; that the model uses the key ones and no others is shown by "
            "taking each one out of the embedding. adds: an MLP with a drop of at least 0.5 under all four ablations. "
            "moves: a head with a drop of at least 0.05 under all four. decoy: below 0.05 in size under all four. "
            "Resampled values come from another pair, at the same position."
        ),
        metric="logit of the right number minus the mean logit of the other numbers, in nats, at `=`",
        baseline=base.advantage,
        setup={"p": P, "rows": len(base.ids), "trained_pairs": int(found["trained"].sum())},
        nodes=(*(_head(base, head) for head in range(module.config.n_head)), _mlp(base)),
        edges=tuple(_edges(base)),
        directions=tuple(_directions(base, found, keys)),
        features=FEATURES,
        positions={"a": "position 0", "b": "position 1", "=": "position 2: the answer is read here"},
        measures=_measures(base, keys, found),
        legend=LEGEND,
    )


FEATURES = {
    "key_frequencies": "[key]: the key frequencies, the largest share of the embedding's power first",
    "neuron_frequency": "[neuron]: the frequency that explains most of its variance over the pairs",
    "neuron_share": "[neuron]: the share of that variance",
    "trained": "[a b]: whether the pair was trained on",
}
LEGEND = {
    "to_a": "mean attention from `=` to a",
    "to_b": "mean attention from `=` to b",
    "share": "share of the frequency in the power of the embedding, or unembedding, of the numbers",
    "drop": "share of the metric that is lost when, in the subspace, each number has the mean of all numbers (embed, "
    "at a and b) or each pair the mean of all pairs (resid_post, at `=`)",
    "accuracy": "right answers under the same change, as a share of all pairs",
    "drop_of_wave": "share of the metric that is lost when the two waves of this frequency are taken out of the "
    "embedding, as functions of the number",
    "largest_drop_of_another_wave": "the largest drop_of_wave of the frequencies that are not key",
    "share_of_keys": "share of the key frequencies together in the embedding's power",
    "accuracy_with_keys_alone": "right answers when of the embedding only the mean and the key frequencies' waves stay",
    "explained": "share of the logits' variance over c that sums of cos(w_k (a + b - c)) over key k explain",
    "neurons_of_one_frequency": "share of the neurons that ever fire of whose variance one frequency explains 85 % or "
    "more",
    "trained_loss": "mean loss over the trained pairs, in nats",
    "held_out_loss": "mean loss over the held-out pairs, in nats",
    "held_out_accuracy": "right answers as a share of the held-out pairs, both orders counted",
    "restricted_loss": "held-out loss when of the logits only the mean and the waves of a + b with the key frequencies "
    "of the finished model stay, in nats",
    "excluded_loss": "loss over the trained pairs when these waves are taken out of the logits, in nats",
    "@STEP": "after a measure's name: of the state of that step (`checkpoints.safetensors`), by the key frequencies of "
    "the finished model",
}


def _four(run: Callable[[Ablation], Effect]) -> dict[Ablation, Effect]:
    return {how: run(how) for how in exact.ABLATIONS}


def _own(base: Bench, head: int) -> slice:
    width = base.module.config.n_embd // base.module.config.n_head
    return slice(head * width, (head + 1) * width)


def _swapped(value: Tensor, part: slice, how: Ablation) -> Tensor:
    """The value with some of its columns ablated."""
    changed = value.clone()
    changed[..., part] = exact.replacement(value[..., part], how)
    return changed


def _head(base: Bench, head: int) -> Node:
    attention = base.module.transformer.h[0].attn
    own = _own(base, head)
    found = _four(lambda how: base.effect(exact.tapped(attention, "c_proj", before=lambda z: _swapped(z, own, how))))
    drops = [item.drop for item in found.values()]
    to_a, to_b, _ = base.pattern[:, head, -1].mean(0).tolist()
    role = "moves" if min(drops) >= 0.05 else "decoy" if max(map(abs, drops)) < 0.05 else "other"
    return Node(site=f"z.0.h{head}", role=role, measures={"to_a": to_a, "to_b": to_b}, effects=found)


def _mlp(base: Bench) -> Node:
    block = base.module.transformer.h[0]
    found = _four(lambda how: base.effect(exact.tapped(block, "mlp", after=lambda out: exact.replacement(out, how))))
    role = "adds" if min(item.drop for item in found.values()) >= 0.5 else "other"
    return Node(site="mlp_out.0", role=role, effects=found)


def _edges(base: Bench) -> Iterator[Edge]:
    """Between all components, each as one reader alone sees it."""
    module, block = base.module, base.module.transformer.h[0]
    values, width = base.values, module.config.n_embd
    heads = range(module.config.n_head)
    writes = {"embed": values["embed"]}
    for head in heads:
        alone = torch.zeros_like(values["z"])
        alone[..., _own(base, head)] = values["z"][..., _own(base, head)]
        writes[f"z.0.h{head}"] = block.attn.c_proj(alone).detach()

    def edge(source: str, target: str, write: Tensor, tap: Callable[[Tensor], Any]) -> Edge:
        """`tap(change)` adds the change of the source's write to what the target alone reads."""
        resample, zero = (base.effect(tap(exact.replacement(write, how) - write)).drop for how in ("resample", "zero"))
        return Edge(source=source, target=target, structural=True, resample=resample, zero=zero)

    for port, head in ((port, head) for port in range(3) for head in heads):
        own = _own(base, head)
        columns = slice(port * width + own.start, port * width + own.stop)

        def into_port(change: Tensor, columns: slice = columns) -> Any:
            with torch.no_grad():
                seen = block.attn.c_attn(block.ln_1(values["resid_pre"] + change))[..., columns]
            return exact.tapped(block.attn, "c_attn", after=lambda out: _with_columns(out, columns, seen))

        yield edge("embed", f"{'qkv'[port]}.0.h{head}", writes["embed"], into_port)
    for source, write in writes.items():
        yield edge(source, "mlp_in.0", write, lambda change: exact.tapped(block, "ln_2", before=change.add))
    for source, write in {**writes, "mlp_out.0": values["mlp_out"]}.items():
        yield edge(source, "logits", write, lambda change: exact.tapped(module.transformer, "ln_f", before=change.add))


def _with_columns(value: Tensor, columns: slice, new: Tensor) -> Tensor:
    changed = value.clone()
    changed[..., columns] = new
    return changed


def _directions(base: Bench, found: Mapping[str, Tensor], keys: tuple[int, ...]) -> Iterator[Direction]:
    """The planes in which the key frequencies of a number, and of the sum, lie."""
    tables = {"embed": fourier.numbers(base.module, P), "resid_post": base.module.lm_head.weight.detach()[:P]}
    names = {"embed": "a number", "resid_post.0": "the sum"}
    for site, whose in names.items():
        kind = site.partition(".")[0]
        shares = fourier.power(tables[kind])
        for frequency in keys:
            tensor = f"{kind}.frequency_{frequency}"
            effect = base.effect(_without(base, kind, found[tensor]))
            measures = {"share": shares[frequency - 1].item(), "drop": effect.drop, "accuracy": effect.accuracy}
            if kind == "embed":
                measures["drop_of_wave"] = _drop_of_wave(base, frequency)
            yield Direction(
                name=f"{whose}: cos and sin of 2 pi {frequency} x / {P}",
                site=site,
                role="used" if effect.drop >= 0.05 else "other",
                tensor=tensor,
                evidence="intervention",
                measures=measures,
            )


def _without(base: Bench, kind: str, rows: Float[Tensor, "2 d_model"]) -> AbstractContextManager[None]:
    """At a and b the embedding, or at `=` the residual stream, with the mean in the plane of these rows."""
    body = base.module.transformer
    at = slice(0, 2) if kind == "embed" else slice(2, 3)

    def change(value: Tensor) -> Tensor:
        changed = value.clone()
        here = value[:, at]
        changed[:, at] -= (here - here.mean(0)) @ rows.T @ rows
        return changed

    if kind == "embed":
        return exact.tapped(body, "wte", after=change)
    return exact.tapped(body, "ln_f", before=change)


def _drop_of_wave(base: Bench, frequency: int) -> float:
    waves = fourier.plane(frequency, P)
    return base.effect(_embedding(base, lambda table: table - waves.T @ (waves @ table))).drop


def _embedding(base: Bench, change: exact.Change) -> AbstractContextManager[None]:
    """The numbers embedded by a changed table."""
    weight = base.module.transformer.wte.weight.detach()
    table = torch.cat([change(weight[:P]), weight[P:]])
    return exact.tapped(base.module.transformer, "wte", after=lambda _: table[base.ids])


def _measures(base: Bench, keys: tuple[int, ...], found: Mapping[str, Tensor]) -> dict[str, float]:
    others = sorted(set(range(1, (P + 1) // 2)) - set(keys))
    basis = fourier.fourier(P)
    rows = basis[[0, *(2 * k - 1 for k in keys), *(2 * k for k in keys)]]
    share = fourier.power(fourier.numbers(base.module, P))[[k - 1 for k in keys]].sum().item()
    alone = base.effect(_embedding(base, lambda table: rows.T @ (rows @ table)))
    alive = found["neuron_share"] > 0
    return {
        "share_of_keys": share,
        "largest_drop_of_another_wave": max(_drop_of_wave(base, frequency) for frequency in others),
        "accuracy_with_keys_alone": alone.accuracy,
        "explained": fourier.explained(fourier.logits(base.module, P), keys),
        "neurons_of_one_frequency": (found["neuron_share"][alive] >= 0.85).float().mean().item(),
        **progress_measures(base.module, keys),
    }


def progress_measures(module: Any, keys: Sequence[int]) -> dict[str, float]:
    """Losses and accuracy, by name, with these key frequencies (see `LEGEND`)."""
    logits, trained = fourier.logits(module, P), trained_pairs()
    return {
        "trained_loss": fourier.loss(logits, trained),
        "held_out_loss": fourier.loss(logits, ~trained),
        "held_out_accuracy": fourier.accuracy(logits, ~trained),
        "restricted_loss": fourier.restricted_loss(logits, keys, ~trained),
        "excluded_loss": fourier.excluded_loss(logits, keys, trained),
    }


def arrays(module: Any) -> dict[str, Tensor]:
    """The tensors that the truth names."""
    keys = fourier.key_frequencies(module, P)
    activations: list[Tensor] = []
    with exact.tapped(module.transformer.h[0].mlp, "act", after=lambda value: activations.append(value) or value):
        fourier.logits(module, P)
    frequency, share = fourier.neuron_frequencies(activations[0][:, -1].unflatten(0, (P, P)))
    planes = {}
    for kind, table in (("embed", fourier.numbers(module, P)), ("resid_post", module.lm_head.weight.detach()[:P])):
        for key in keys:
            planes[f"{kind}.frequency_{key}"] = torch.linalg.qr((fourier.plane(key, P) @ table).T).Q.T.contiguous()
    return {
        "key_frequencies": torch.tensor(keys),
        "neuron_frequency": frequency,
        "neuron_share": share,
        "trained": trained_pairs(),
        **planes,
    }


if __name__ == "__main__":
    main(NAMES, make)
