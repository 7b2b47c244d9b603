"""Written models and their variants: they compute what they should, and each variant does to it what it is for."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import cutaway
from cutaway.errors import UnknownName, UsageError
from cutaway.zoo.handmade import PROGRAMS, Handmade, Rows, build
from cutaway.zoo.handmade.edges import NAMES, role
from cutaway.zoo.handmade.variants import SUPPRESSED
from cutaway.zoo.handmade.writer import ARCHITECTURES

ALL: dict[str, Any] = {"rotate": 1, "decoys": 1, "duplicate": True, "suppressor": True}


def cover(shift: int) -> list[tuple[str, Any]]:
    """Each program with one of the architectures; another shift, another one."""
    return [(program, ARCHITECTURES[(at + shift) % len(ARCHITECTURES)]) for at, program in enumerate(PROGRAMS)]


SHARED = {"kv_groups": 2, "decoys": 1, "rotate": 2}
LEAST_SOFT = {"histogram": 0.8, "sorted": 0.98}
"""Accuracy of soft variants, where it is not one."""


def logits_of(made: Handmade, rows: Rows) -> Tensor:
    with torch.no_grad():
        return made.module(rows.ids, attention_mask=torch.ones_like(rows.ids), use_cache=False).logits


def margin(made: Handmade, rows: Rows) -> float:
    return rows.margins(logits_of(made, rows)).mean().item()


def accuracy(made: Handmade, rows: Rows) -> float:
    return rows.hits(logits_of(made, rows)).float().mean().item()


@contextmanager
def without(made: Handmade, *sites: str) -> Iterator[None]:
    """These heads' outputs are zeros while this is open: plain hooks before the output projection."""
    names = NAMES[made.module.config.model_type]
    blocks = made.module.get_submodule(names.layers)

    def zero(head: int) -> Callable[[Any, tuple[Tensor]], tuple[Tensor]]:
        def hook(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            z = args[0].unflatten(-1, (made.module.config.num_attention_heads, -1)).clone()
            z[:, :, head] = 0.0
            return (z.flatten(-2),)

        return hook

    with ExitStack() as stack:
        for site in sites:
            _, layer, head = site.split(".")
            output = getattr(getattr(blocks[int(layer)], names.attention), names.output)
            handle = output.register_forward_pre_hook(zero(int(head[1:])))
            stack.callback(handle.remove)
        yield


def heads(made: Handmade, wanted: str) -> list[str]:
    """Sites of the heads with a role, by the blueprint."""
    sites = [f"z.{at}.h{i}" for at, block in enumerate(made.blueprint.blocks) for i in range(len(block.heads))]
    return [site for site in sites if role(made.blueprint, site) == wanted]


def mover(made: Handmade) -> str:
    at, place = made.blueprint.mover()
    return f"z.{at}.h{place}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_valid_row_is_answered_with_and_without_all_of_it(program: str, architecture: Any) -> None:
    for options in ({}, ALL):
        made = build(program, architecture=architecture, **options)
        rows = made.rows(150, 11)
        assert accuracy(made, rows) == 1.0
        assert margin(made, rows) > 2


@pytest.mark.parametrize(
    ("program", "architecture"), [(p, a if a != "gpt2" else "llama") for shift in (0, 1) for p, a in cover(shift)][:8]
)
def test_heads_can_share_keys_and_values(program: str, architecture: Any) -> None:
    made = build(program, architecture=architecture, **SHARED)
    config = made.module.config
    assert config.num_attention_heads == 2 * config.num_key_value_heads
    assert accuracy(made, made.rows(150, 11)) == 1.0


@pytest.mark.parametrize("program", PROGRAMS)
def test_soft_attention_spreads_and_mostly_answers(program: str) -> None:
    """Against the control: the saturated variant looks almost nowhere else."""
    found = {}
    for soft in (False, True):
        made = build(program, soft=soft)
        rows = made.rows(150, 11)
        assert accuracy(made, rows) >= (LEAST_SOFT.get(program, 1.0) if soft else 1.0)
        made.module.set_attn_implementation("eager")
        with torch.no_grad():
            out = made.module(rows.ids, attention_mask=torch.ones_like(rows.ids), output_attentions=True)
        layer, place = made.blueprint.mover()
        pattern = out.attentions[layer][:, place][rows.answered]
        found[soft] = (pattern * (pattern < pattern.amax(-1, keepdim=True) / 2)).sum(-1).mean().item()
    assert found[False] < 5e-3 < 7e-3 < found[True]


@pytest.mark.parametrize(("program", "architecture"), cover(1))
def test_a_rotation_changes_the_weights_and_not_the_outputs(program: str, architecture: Any) -> None:
    plain, turned = (build(program, architecture=architecture, rotate=seed) for seed in (None, 4))
    rows = plain.rows(40, 1)
    torch.testing.assert_close(logits_of(plain, rows), logits_of(turned, rows), atol=2e-3, rtol=0)
    streams = [made.module.get_input_embeddings().weight for made in (plain, turned)]
    assert (streams[0] != streams[1]).any(0).float().mean() > 0.7
    torch.testing.assert_close(streams[0] @ streams[0].T, streams[1] @ streams[1].T, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(("program", "architecture"), cover(2))
def test_decoys_write_and_do_not_matter_while_the_mover_does(program: str, architecture: Any) -> None:
    made = build(program, architecture=architecture, decoys=2, rotate=8)
    rows = made.rows(60, 1)
    intact, names = margin(made, rows), NAMES[architecture]
    sites = heads(made, "decoy")
    assert len(sites) >= 2 * len(made.blueprint.blocks)
    with without(made, *sites):
        assert accuracy(made, rows) == 1.0
        assert margin(made, rows) == pytest.approx(intact, rel=0.1)
    with without(made, mover(made)):
        assert margin(made, rows) < 0.6 * intact
    blocks = made.module.get_submodule(names.layers)
    written: list[Tensor] = []
    handles = [
        getattr(getattr(block, names.attention), names.output).register_forward_pre_hook(
            lambda module, args: written.append(args[0])
        )
        for block in blocks
    ]
    try:
        logits_of(made, rows)
    finally:
        for handle in handles:
            handle.remove()
    for site in sites:
        _, layer, head = site.split(".")
        z = written[int(layer)].unflatten(-1, (made.module.config.num_attention_heads, -1))[:, :, int(head[1:])]
        assert (z - z.mean(0)).norm(dim=-1).mean() > 0.05, site  # it tells something about the input


@pytest.mark.parametrize(("program", "architecture"), cover(0))
def test_a_backup_steps_in(program: str, architecture: Any) -> None:
    """Without the first: little is lost. Without the backup: nothing. Without both: the answer. The control is the
    model that has no backup."""
    made, alone = (build(program, architecture=architecture, duplicate=both, rotate=3) for both in (True, False))
    rows = made.rows(60, 1)
    intact, (backup,) = margin(made, rows), heads(made, "backup")
    with without(made, mover(made)):
        assert accuracy(made, rows) == 1.0
        assert margin(made, rows) == pytest.approx(intact, rel=0.1)
    with without(made, backup):
        assert margin(made, rows) == pytest.approx(intact, rel=0.02)
    with without(made, mover(made), backup):
        assert margin(made, rows) < 0.6 * intact
    with without(alone, mover(alone)):
        assert margin(alone, rows) < 0.6 * intact


@pytest.mark.parametrize(("program", "architecture"), cover(1))
def test_a_suppressor_works_against_the_answer(program: str, architecture: Any) -> None:
    made = build(program, architecture=architecture, suppressor=True, rotate=3)
    rows = made.rows(60, 1)
    (site,) = heads(made, "suppressor")
    held = margin(made, rows)
    with without(made, site):
        freed = margin(made, rows)
    expected = 1 / (1 - SUPPRESSED) if program != "sorted" else 1.2  # there 'yes' is not written by the program
    assert freed / held > 0.9 * expected


AUDITED = [
    *((program, architecture, {}) for program, architecture in cover(1)),
    *((program, architecture, {"rotate": 1}) for program, architecture in cover(2)),
    ("reverse", "llama", {"rotate": 1, "soft": True}),
    ("induction", "gpt2", ALL),
    ("lookup", "gemma2", {**ALL, "kv_groups": 2}),
]


@pytest.mark.parametrize(("program", "architecture", "options"), AUDITED)
def test_cutaway_loads_and_audits_it(program: str, architecture: Any, options: dict[str, Any]) -> None:
    made = build(program, architecture=architecture, **options)
    model = cutaway.load(made.module, made.tokenizer)
    refused = {str(site) for site in model.body.sites() if model.body.status(site).state == "refused"}
    assert {site.split(".")[0] for site in refused} <= {"router", "expert_out"}
    moved = {site.kind for site in model.body.sites() if model.body.status(site).editable and str(site) not in refused}
    assert {"resid_pre", "resid_mid", "resid_post", "z", "v", "attn_out", "mlp_out", "mlp_act", "logits"} <= moved
    assert model.body.resume == model.body.suffix == ""


def test_words_are_tokens() -> None:
    made = build("lookup")
    rows = made.rows(5, 0)
    texts = [" ".join(made.blueprint.words[i] for i in row[1:]) for row in rows.ids.tolist()]
    assert made.tokenizer(texts)["input_ids"] == rows.ids.tolist()
    assert made.tokenizer("Ada nobody")["input_ids"][-1] == made.tokenizer.unk_token_id


def test_a_written_model_generates() -> None:
    made = build("reverse", architecture="gpt2")
    ids = made.tokenizer("cat dog bee ant |", return_tensors="pt").input_ids
    out = made.module.generate(ids, max_new_tokens=8, do_sample=False, past_key_values=DynamicCache())
    assert made.tokenizer.decode(out[0, ids.shape[1] :]) == "ant bee dog cat <eos>"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"program": "sort"}, UnknownName, "Did you mean 'sorted'"),
        ({"program": "sorted", "architecture": "gpt"}, UnknownName, "one of llama, gpt2, gemma2.*mean 'gpt2'"),
        ({"program": "sorted", "architecture": "gpt2", "kv_groups": 2}, UsageError, "kv_groups=2"),
        ({"program": "sorted", "kv_groups": 0}, UsageError, "kv_groups=0"),
        ({"program": "sorted", "decoys": -1}, UsageError, "decoys=-1"),
    ],
)
def test_what_cannot_be_built_says_why(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        build(**options)


@pytest.mark.parametrize(
    "options",
    [{"decoys": -1}, {"decoys": True}, {"kv_groups": 0}, {"rotate": -1}, {"rotate": 2**70}],
    ids=lambda each: "-".join(f"{name}={value}" for name, value in each.items()),
)
def test_an_option_that_is_no_whole_number_in_its_range_is_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=rf"^{name}=.*give a whole number"):
        build("majority", **options)
