"""Law: what is read is what Hugging Face computes, and an edit does what a plain hook written by hand does. Every
family."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import cutaway
from cutaway import sites
from cutaway.engine import Run, plan
from cutaway.errors import OutOfRange
from cutaway.models import Edit, Model, Site
from cutaway.models.sites import PATTERN_KINDS, where
from tests.families import CAUSAL, FAMILIES, N_LAYERS
from tests.models.samples import ROBERTA, built, hooked, loaded, part, plain, relative, rows, spoken, vector

TOLERANCE = 2e-5
"""Relative: sums in another order. Where the same operations run, equality is bit for bit."""
GROUPED = ("llama", "gemma2", "qwen3", "mixtral")


def editable(model: Model) -> list[Site]:
    return [s for s in model.body.sites() if (x := model.body.status(s)).state != "refused" and x.editable]


# -- reads


@pytest.mark.parametrize(
    ("family", "attention"),
    [(f, a) for f in FAMILIES for a in ("sdpa", "eager") if (f, a) != ("gemma2", "sdpa")],  # its soft cap is eager's
)
def test_logits_are_hugging_faces_bit_for_bit(family, attention):
    model = loaded(family, attention)
    tokens = model.encode(rows())
    with torch.no_grad():  # without a cache: filling one copies keys, and GPT-2's eager kernel then rounds otherwise
        wanted = model.module(tokens.ids, **({} if family == "bert" else {"use_cache": False})).logits
    assert wanted.std() > 0.1
    assert torch.equal(model.run(tokens).logits, wanted)
    assert torch.equal(model.run(tokens, reads=["q.1", "z.0", "v.2", "resid_post.1", "mlp_out.0"]).logits, wanted)
    at_end = model.run(tokens, logits="end").logits[:, 0]
    assert relative(at_end, wanted[:, -1]) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_reads_are_hidden_states_and_attentions(family):
    model = loaded(family, "eager")
    tokens = model.encode(rows((9, 6, 7)))
    wanted = plain(model, tokens, output_hidden_states=True, output_attentions=True)
    found = model.capture(tokens, ["embed", *(f"{k}.{i}" for i in range(N_LAYERS) for k in ("resid_pre", "pattern"))])
    for layer in range(N_LAYERS):
        assert torch.equal(found[sites.resid_pre[layer]], wanted.hidden_states[layer])
        assert torch.equal(found[sites.pattern[layer]], wanted.attentions[layer])
        assert wanted.attentions[layer].std() > 0.01
    last = model.capture(tokens, ["final_norm" if family in CAUSAL else f"resid_post.{N_LAYERS - 1}"])
    assert torch.equal(next(iter(last.values())), wanted.hidden_states[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_was_proved_or_says_why_not(family):
    model = loaded(family)
    refused = {s.kind for s in model.body.sites() if model.body.status(s).state == "refused"}
    experts = {"router", "expert_out"} if family != "mixtral" else {"mlp_pre", "mlp_act"}
    missing = {"gpt_neox": {"resid_mid"}, "bert": {"final_norm"}}.get(family, set())
    assert refused == experts | missing
    for site in model.body.sites():
        status = model.body.status(site)
        assert status.state == "verified" or len(status.reason) > 20
    assert (model.body.resume, model.body.suffix) == ("", "" if family in CAUSAL else model.body.suffix)
    assert model.body.causal == (family in CAUSAL)


@pytest.mark.parametrize("family", GROUPED)
def test_sizes_come_from_tensors(family):
    body = loaded(family).body
    assert (body.n_heads, body.n_kv_heads, body.d_head, body.d_model) == (4, 2, 12, 32)
    acts = loaded(family).capture(rows(), ["z.1", "k.1", "pattern.1"])
    assert [tuple(v.shape) for v in acts.values()] == [(3, 9, 4, 12), (3, 9, 2, 12), (3, 4, 9, 9)]


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_row_equals_the_row_alone(family, pad):
    model = loaded(family)
    batch = rows((9, 6, 7))
    kinds = ["resid_post.0", "z.1", "pattern.2", "mlp_write.2", "v.2"]
    edits = [sites.resid_post[0].at(-2).add(vector()), sites.z[1].head(3).at(1).zero()]
    for use in ([], edits):
        together = model.run(model.encode(batch, pad=pad), use, kinds)
        for row, ids in enumerate(batch):
            alone = model.run(model.encode([ids]), use, kinds)
            span = slice(9 - len(ids), 9) if pad == "left" else slice(0, len(ids))
            assert relative(together.logits[row, span], alone.logits[0]) < TOLERANCE
            for site, value in alone.activations.items():
                whole = together.activations[site][row]
                mine = whole[:, span, span] if site.kind == "pattern" else whole[span]
                assert relative(mine, value[0]) < TOLERANCE, site
                last = together.activations[site.at(-1)][row]
                assert site.kind == "pattern" or relative(last, value[0, -1]) < TOLERANCE, site


# -- edits against plain hooks

OPS: dict[str, tuple[Callable[[Site], Edit], Callable[[Tensor], Tensor]]] = {
    "add": (lambda s: s.add(vector(), scale=1.5), lambda x: x + 1.5 * vector()),
    "fill": (lambda s: s.fill(vector()), lambda x: vector().expand_as(x)),
    "number": (lambda s: s.replace(0.5), lambda x: torch.full_like(x, 0.5)),
    "zero": (lambda s: s.zero(), torch.zeros_like),
    "scale": (lambda s: s.scale(-0.5), lambda x: x * -0.5),
    "clamp": (lambda s: s.clamp(-0.1, 0.2), lambda x: x.clamp(-0.1, 0.2)),
    "low": (lambda s: s.clamp(low=0.0), lambda x: x.clamp(min=0.0)),
    "project": (
        lambda s: s.project_out(vector()),
        lambda x: x - ((x @ vector()) / vector().square().sum())[..., None] * vector(),
    ),
    "apply": (lambda s: s.apply(lambda x: x.flip(-1)), lambda x: x.flip(-1)),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bert"])
def test_an_operation_is_the_plain_hook(family, op):
    model = loaded(family)
    tokens = model.encode(rows())
    edit, change = OPS[op]
    with hooked(part(model, model.body.layers[1].block), change):
        wanted = plain(model, tokens).logits
    assert relative(plain(model, tokens).logits, wanted) > 1e-2
    assert relative(model.run(tokens, [edit(sites.resid_post[1])]).logits, wanted) < TOLERANCE


SELECTIONS: dict[str, tuple[Callable[[Site], Site], list[tuple[int, int]]]] = {
    "index": (lambda s: s.at(2), [(0, 2), (1, 2), (2, 2)]),
    "end": (lambda s: s.at(-1), [(0, 8), (1, 5), (2, 6)]),
    "list": (lambda s: s.at([2, 5]), [(r, c) for r in range(3) for c in (2, 5)]),
    "role": (lambda s: s.at("subject"), [(0, 1), (1, 4), (2, 3)]),
    "rows": (lambda s: s.at(3).rows([2, 0]), [(0, 3), (2, 3)]),
    "row": (lambda s: s.rows([1]), [(1, c) for c in range(9)]),
    "token": (lambda s: s.at(where(lambda t: t == "t7")), [(0, 4), (0, 6), (2, 2)]),
}


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_selection_is_the_plain_hook_on_these_rows_and_columns(family, selection):
    model = spoken(family)
    batch = [[i if i != 7 else 8 for i in row] for row in rows((9, 6, 7))]
    batch[0][4] = batch[0][6] = batch[2][2] = 7
    tokens = model.encode(batch, roles={"subject": [1, 4, 3]})
    select, cells = SELECTIONS[selection]

    def change(value: Tensor) -> Tensor:
        out = value.clone()
        for row, column in cells:
            out[row, column] += vector()
        return out

    with hooked(part(model, model.body.layers[1].block), change):
        wanted = plain(model, tokens).logits
    found = model.run(tokens, [select(sites.resid_post[1]).add(vector())]).logits
    real = tokens.mask
    assert relative(plain(model, tokens).logits[real], wanted[real]) > 1e-2
    assert relative(found[real], wanted[real]) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_is_its_slice_of_what_the_output_projection_reads(family):
    model = loaded(family)
    tokens, size = model.encode(rows()), model.body.d_head
    for unit in (3, [0, 2]):
        heads = [unit] if isinstance(unit, int) else unit

        def change(value: Tensor, heads=heads) -> Tensor:
            out = value.clone()
            for head in heads:
                out[..., head * size : (head + 1) * size] = 0
            return out

        with hooked(part(model, model.body.layers[1].o_proj), change, "input"):
            wanted = plain(model, tokens).logits
        assert relative(plain(model, tokens).logits, wanted) > 1e-3
        assert relative(model.run(tokens, [sites.z[1].head(unit).zero()]).logits, wanted) < TOLERANCE


@pytest.mark.parametrize("family", GROUPED)
def test_a_value_head_is_its_slice_of_the_value_projection(family):
    model = loaded(family)
    tokens = model.encode(rows())

    def change(value: Tensor) -> Tensor:
        return torch.cat([value[..., :12], value[..., 12:] * 2], -1)

    with hooked(part(model, model.body.layers[1].attention + ".v_proj"), change):
        wanted = plain(model, tokens).logits
    assert relative(plain(model, tokens).logits, wanted) > 1e-3
    assert relative(model.run(tokens, [sites.v[1].head(1).scale(2.0)]).logits, wanted) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_that_changes_nothing_changes_no_bit(family):
    model = loaded(family)
    tokens = model.encode(rows((9, 6, 7)), pad="left")
    sdpa = model.run(tokens).logits
    for site in editable(model):
        wanted = model.run(tokens, reads=[site]).logits if site.kind in PATTERN_KINDS else sdpa
        assert torch.equal(model.run(tokens, [site.scale(1.0)]).logits, wanted), site


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_is_read_back_where_it_was_made(family):
    model = loaded(family)
    clean, corrupt = model.encode(rows()), model.encode(rows(seed=2))
    wanted = [s for s in editable(model) if s.kind != "logits"]
    acts = model.capture(clean, wanted)
    before = model.capture(corrupt, wanted)
    for site in wanted:
        at = site if site.kind in PATTERN_KINDS else site.at([1, -1])
        found = model.run(corrupt, [at.patch(acts)], [site], logits="none").activations
        assert relative(found[at], acts[at]) < TOLERANCE, site
        if site.kind not in ("embed", "scores", "pattern"):
            assert relative(found[site.at(0)], before[site.at(0)]) < TOLERANCE, site


@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "resid_post"])
@pytest.mark.parametrize("family", FAMILIES)
def test_patching_a_whole_residual_state_gives_the_other_run(family, kind):
    model, site = loaded(family), Site(kind, 1)
    if kind not in model.body.layers[1].taps:
        assert family == "gpt_neox"
        return
    clean, corrupt = model.encode(rows((9, 6, 7))), model.encode(rows((9, 6, 7), seed=2), pad="left")
    acts = model.capture(clean, [site])
    found = model.run(corrupt, [site.patch(acts)]).logits
    wanted = model.run(clean).logits
    assert relative(found[corrupt.mask], wanted[clean.mask]) < TOLERANCE
    assert relative(model.run(corrupt).logits[corrupt.mask], wanted[clean.mask]) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_compose_in_the_order_of_their_declaration(family):
    model = loaded(family)
    tokens, site = model.encode(rows()), sites.resid_post[1].at(3)
    one = model.run(tokens, [site.scale(2.0), site.add(vector())], [site]).activations[site]
    other = model.run(tokens, [site.add(vector()), site.scale(2.0)], [site]).activations[site]
    before = model.capture(tokens, [site])[site]
    assert relative(one, before * 2 + vector()) < TOLERANCE
    assert relative(other, (before + vector()) * 2) < TOLERANCE


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_a_bfloat16_model_takes_a_float32_vector(family):
    import cutaway
    from tests.families import tiny

    model = cutaway.load(tiny(family).bfloat16())
    tokens, layer = model.encode(rows()), model.body.layers[1]
    with hooked(part(model, layer.block), lambda x: x + 3 * vector().bfloat16()):
        wanted = plain(model, tokens).logits
    found = model.run(tokens, [sites.resid_post[1].add(vector(), 3.0)], ["resid_post.1"])
    assert found.activations["resid_post.1"].dtype == torch.bfloat16
    assert relative(found.logits, wanted) < 0.05 < relative(plain(model, tokens).logits, wanted)


# -- models that number tokens by themselves


@pytest.mark.parametrize("audit", [True, False])
@pytest.mark.parametrize("name", ["RobertaForMaskedLM", "XLMRobertaForMaskedLM", "RobertaModel"])
def test_a_model_that_numbers_its_tokens_is_left_to_it(name, audit):
    module = built(name, **ROBERTA)
    model = cutaway.load(module, audit=audit)
    assert not model.body.positions
    assert model.body.length == ROBERTA["max_position_embeddings"] - 2
    last = [f"resid_post.{N_LAYERS - 1}"]
    for batch in (rows(), rows((model.body.length,))):
        with torch.no_grad():
            wanted = module(input_ids=torch.tensor(batch))[0]
        if name == "RobertaModel":
            assert torch.equal(model.capture(batch, last)[last[0]], wanted)
        else:
            assert torch.equal(model.run(batch).logits, wanted)
    with pytest.raises(OutOfRange, match="row 0 has 63 tokens, and this model's configuration states a context of 62"):
        model.run(rows((63,)))


@pytest.mark.parametrize("pad", ["left", "right"])
def test_padding_leaves_such_a_model_alone(pad):
    model = cutaway.load(built("RobertaForMaskedLM", **ROBERTA))
    batch = rows((9, 6, 7))
    edits = [sites.resid_post[0].at(-2).add(vector())]
    runs = [Run(model.encode(batch, pad=pad), tuple(use), logits="all") for use in ([], edits, edits)]
    for found, use in zip(plan(model, runs).execute(), ([], edits, edits)):
        for row, ids in enumerate(batch):
            span = slice(9 - len(ids), 9) if pad == "left" else slice(0, len(ids))
            assert relative(found.logits[row, span], model.run([ids], use).logits[0]) < TOLERANCE


def test_such_a_model_is_never_started_at_a_later_column():
    module = built("RobertaForCausalLM", **ROBERTA, is_decoder=True)
    model = cutaway.load(module)
    assert model.body.causal
    assert not model.body.positions
    assert "numbers tokens by itself" in model.body.suffix
    prompt = model.encode(rows((9, 6)), pad="left")
    fast = model.generate(prompt, max_new_tokens=4)
    assert fast == model.generate(prompt, max_new_tokens=4, cache=False)
    for row, ids in enumerate(rows((9, 6))):
        for _ in range(4):
            with torch.no_grad():
                ids = [*ids, int(module(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
        assert fast.row(row) == ids
