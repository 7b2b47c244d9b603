"""What recipes share: the command line, the folder with its weights and card, and the score with its interval.

A recipe trains (or writes) a module, saves it with one of the three `save_` functions, measures what these give back,
which is what a user will load, and ends with `finish`.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cutaway.artifacts import file_digest, write_json
from cutaway.errors import UsageError, did_you_mean
from cutaway.models import load, stored
from cutaway.models.load import no_bars
from cutaway.zoo import catalogue
from cutaway.zoo.card import Card, Score

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what is being done)."""
Make: TypeAlias = Callable[..., Card]
"""make(name, folder, *, seed=None, progress=None, device="cpu") -> the card of the folder it wrote."""
CONFIDENCE = 0.95


def score(behavior: str, what: str, right: int, n: int, target: float | None = None) -> Score:
    """Accuracy with its exact interval (Clopper and Pearson 1934): 95 %, two-sided, inputs taken as independent.

    `right` of `n` inputs are right. Raises UsageError when that is no share.
    """
    from scipy.stats import beta

    if not 0 <= right <= n or n == 0:
        raise UsageError(f"score of {behavior!r}: {right} right of {n}; count right answers among at least one input")
    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, right, n - right + 1)) if right else 0.0
    high = float(beta.ppf(1 - tail, right + 1, n - right)) if right < n else 1.0
    return Score(behavior=behavior, what=what, share=right / n, n=n, low=low, high=high, target=target)


def missed(scores: Sequence[Score]) -> tuple[Score, ...]:
    """The scores that are below what their recipe promises."""
    return tuple(each for each in scores if each.target is not None and each.share < each.target)


def save_hf(folder: Path, module: Any, tokenizer: Any = None, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """Write a Hugging Face model with weights in `dtype`, to be computed in float32, and its tokenizer.

    Returns the module as it will be loaded: its weights are rounded to `dtype`, so measure this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    small = copy.deepcopy(module).to(device="cpu", dtype=dtype)
    with no_bars():
        small.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    _compute_in_full(folder, module)
    return load(folder, audit=False).module


def _compute_in_full(folder: Path, module: nn.Module) -> None:
    """Have transformers make this class from a folder, in float32 however the weights are stored."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, "dtype": "float32", "architectures": [type(module).__name__]})


def save_module(
    folder: Path, module: nn.Module, cls_path: str, arguments: Mapping[str, Any], *, dtype: torch.dtype | None = None
) -> nn.Module:
    """Write a plain module: its class (in `cutaway.zoo.networks`), the arguments that make it, its state dict.

    `dtype` stores floating tensors so (None: as they are); half precision is loaded as float32. Returns the module as
    it will be loaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"cutaway_module": cls_path, "arguments": dict(arguments)})
    state = {name: _stored(value, dtype) for name, value in module.state_dict().items()}
    save_file(state, folder / stored.WEIGHTS, metadata={"format": "pt"})
    return load(folder, audit=False).module


def save_difference(
    folder: Path,
    module: Any,
    base_name: str,
    *,
    rank: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    tokenizer: Any = None,
) -> nn.Module:
    """Write a Hugging Face model as its difference from the model `base_name`: beside `folder`, else embedded.

    Parameters that are as in the base are left out. `rank` keeps the largest so many singular directions of each
    matrix's change, where that is smaller than the change itself; None keeps all. `dtype` is the one of the file. The
    tokenizer is the base's unless another is given. Returns the module as it will be loaded, which differs from
    `module` by what `rank` and `dtype` lose: measure this one. Raises UsageError for parameters that the base does not
    have.
    """
    base = folder.parent / base_name
    base = base if (base / stored.WEIGHTS).exists() else catalogue.path(base_name)
    tensors = {
        f"{name}.{part}": _stored(value, dtype)
        for name, change in _changes(module, load(base, audit=False).module).items()
        for part, value in _parts(change, rank).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    module.config.save_pretrained(folder)
    _compute_in_full(folder, module)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    metadata = {"format": "pt", "base": base_name, "base_sha256": file_digest(base / stored.WEIGHTS)}
    save_file(tensors, folder / stored.DIFFERENCE, metadata=metadata)
    return load(folder, audit=False).module


def _changes(module: nn.Module, base: nn.Module) -> dict[str, Tensor]:
    """What has to be added to the base, of each parameter that is another one, in float32; tied ones come once."""
    before = dict(base.named_parameters())
    found: dict[str, Tensor] = {}
    for name, value in module.named_parameters():
        if name not in before or before[name].shape != value.shape:
            raise UsageError(
                f"parameter {name!r} {list(value.shape)}: the base has no such one, so there is no difference; save "
                f"the model whole.{did_you_mean(name, before)}"
            )
        change = value.detach().cpu().float() - before[name].detach().float()
        if change.any():
            found[name] = change
    return found


def _parts(change: Tensor, rank: int | None) -> dict[str, Tensor]:
    if rank is None or change.ndim != 2 or rank * sum(change.shape) >= change.numel():
        return {"delta": change}
    left, sizes, right = torch.linalg.svd(change, full_matrices=False)
    root = sizes[:rank].sqrt()
    return {"left": left[:, :rank] * root, "right": root[:, None] * right[:rank]}


def _stored(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor as it lies in a file: on the CPU, sharing nothing."""
    value = value.detach().cpu()
    return value.to(dtype if dtype is not None and value.is_floating_point() else value.dtype, copy=True).contiguous()


def sizes(model: Any) -> dict[str, int]:
    """The sizes of a Hugging Face model whose config names them as Llama's does, as a card has them."""
    config = model.config
    return {
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "d_model": config.hidden_size,
        "d_head": config.head_dim,
        "d_mlp": config.intermediate_size,
        "d_vocab": config.vocab_size,
        "n_parameters": sum(weight.numel() for weight in model.parameters()),
    }


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a model's folder but its card, by path in the folder."""
    found = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in found if file.name != "card.json"}


def finish(folder: Path, **fields: Any) -> Card:
    """Write the card of a folder that is otherwise done; `fields` are the card's, but for `files`, which are hashed
    here."""
    files = contents(folder)
    card = Card(**fields, files=files)
    write_json(folder / "card.json", card.model_dump(mode="json", exclude_none=True))
    for file in folder.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    return card


def main(names: Sequence[str], make: Make) -> None:
    """The command line of a recipe: make one of its models, or all, below `--out`. Ends with 1 when a target is
    missed."""
    parser = argparse.ArgumentParser(description=f"Make {', '.join(names)} again.")
    parser.add_argument("--name", choices=names, help="one model only")
    parser.add_argument("--out", type=Path, required=True, help="the folder of model NAME is OUT/NAME")
    parser.add_argument("--seed", type=int, help="another seed than the recipe's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    short: list[Score] = []
    for name in [given.name] if given.name else names:
        card = make(name, given.out / name, seed=given.seed, progress=_lines(), device=given.device)
        for each in card.accuracy:
            sys.stdout.write(f"{name}: {line(each)}\n")
        short += missed(card.accuracy)
    sys.exit(1 if short else 0)


def line(each: Score) -> str:
    """A score in one line."""
    wanted = "" if each.target is None else f", target {each.target:.1%}{' MISSED' if missed([each]) else ''}"
    return f"{each.behavior} {each.share:.1%} [{each.low:.1%}, {each.high:.1%}] of {each.n} on {each.what}{wanted}"


def _lines() -> Progress:
    """Progress as a line a twentieth."""
    said: set[tuple[str, int]] = set()

    def progress(done: int, total: int, what: str) -> None:
        part = 20 * done // max(total, 1)
        if (what, part) not in said:
            said.add((what, part))
            sys.stdout.write(f"{what}: {done} of {total}\n")
            sys.stdout.flush()

    return progress
