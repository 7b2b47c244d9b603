"""Laws of sweeps: nothing patched changes nothing, all patched crosses the gap, and a hand-written loop agrees."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway import engine
from cutaway.engine import Run
from cutaway.errors import Misaligned, NoBehavior, OutOfRange, SiteUnavailable, UnknownName, UsageError
from cutaway.models import Edit, Model, Site, sites
from cutaway.models.sites import KINDS
from cutaway.patching import sweep
from cutaway.tasks import Batch
from tests.families import CAUSAL, FAMILIES
from tests.patching.pairs import hooked, loaded, plain_scores, token_batch, token_task

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return loaded("gpt2")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_all_of_the_first_residual_crosses_the_whole_gap(family: str, mode: str) -> None:
    model = loaded(family)
    effects = sweep(model, token_task(model, lengths=(7, 5)), "resid_pre.0", mode=mode)
    assert effects.gap.abs().min() > 1e-3
    torch.testing.assert_close(effects.values[0], effects.target, **CLOSE)
    assert effects.share().item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_donor_equal_to_its_base_changes_nothing(family: str) -> None:
    model = loaded(family)
    batch = token_batch(model)
    same = replace(batch, corrupt=batch.clean)
    wanted = [sites.resid_pre[0], sites.z[1].head(2), sites.mlp_out[1], sites.resid_post[1]]
    effects = sweep(model, same, wanted, max_tokens=batch.clean.ids.numel())  # one run a pass: no other rounding
    assert torch.equal(effects.raw, torch.zeros(4, batch.n))
    stacked = sweep(model, same, wanted, positions=["subject", "end"])
    torch.testing.assert_close(stacked.raw, torch.zeros(8, batch.n), atol=2e-6, rtol=0)
    assert not torch.equal(effects.clean, torch.zeros(batch.n))
    with pytest.raises(NoBehavior, match="gap"):
        effects.share()


def test_a_position_that_is_named_twice_counts_once(gpt2: Model) -> None:
    effects = sweep(gpt2, token_batch(gpt2), ["z.1.h0"], positions=["end", "subject", "end"])
    assert effects.labels == ("z.1.h0@end", "z.1.h0@subject")


def test_layer_by_position_equals_hand_hooks(gpt2: Model) -> None:
    batch = token_batch(gpt2, lengths=(7,))
    effects = sweep(gpt2, batch, sites.resid_pre[:], positions="each")
    blocks: Any = gpt2.module.transformer.h
    kept: dict[int, Tensor] = {}
    for layer, block in enumerate(blocks):

        def keep(module: Any, args: tuple[Tensor, ...], layer: int = layer) -> None:
            kept[layer] = args[0].clone()

        hooked(gpt2.module, batch.clean, {block: keep}, before=True)
    expected = []
    for layer, block in enumerate(blocks):
        for pos in range(7):

            def patch(module: Any, args: tuple[Tensor, ...], layer: int = layer, pos: int = pos) -> tuple[Any, ...]:
                changed = args[0].clone()
                changed[:, pos] = kept[layer][:, pos]
                return (changed, *args[1:])

            expected.append(plain_scores(batch, hooked(gpt2.module, batch.corrupt, {block: patch}, before=True)))
    assert effects.labels[:2] == ("resid_pre.0@0", "resid_pre.0@1")
    assert len(effects) == 3 * 7
    torch.testing.assert_close(effects.values, torch.stack(expected), **CLOSE)
    assert effects.raw.abs().max() > 1e-2


def test_heads_equal_hand_hooks(gpt2: Model) -> None:
    batch = token_batch(gpt2, lengths=(7, 6))
    effects = sweep(gpt2, batch, sites.z[:].heads(), mode="noise")
    size = gpt2.body.d_head or 0
    expected = []
    for block in gpt2.module.transformer.h:
        kept: list[Tensor] = []
        hooked(
            gpt2.module,
            batch.corrupt,
            {block.attn.c_proj: lambda m, args, kept=kept: kept.append(args[0].clone())},
            before=True,
        )
        for head in range(4):
            span = slice(head * size, (head + 1) * size)

            def patch(module: Any, args: tuple[Tensor], span: slice = span, kept: list[Tensor] = kept) -> tuple[Tensor]:
                changed = args[0].clone()
                changed[..., span] = kept[0][..., span]
                return (changed,)

            expected.append(
                plain_scores(batch, hooked(gpt2.module, batch.clean, {block.attn.c_proj: patch}, before=True))
            )
    assert effects.labels[5] == "z.1.h1"
    torch.testing.assert_close(effects.values, torch.stack(expected), **CLOSE)
    assert effects.raw.abs().max() > 1e-2


def looped(model: Model, batch: Batch, cells: list[list[Edit]], on: str = "corrupt") -> Tensor:
    """The metric of each cell, one full pass a cell."""
    rows = batch.corrupt if on == "corrupt" else batch.clean
    runs = [Run(rows, tuple(edits), logits=batch.logits) for edits in cells]
    logits = [result.logits for result in engine.reference(model, runs)]
    return torch.stack([batch.values(found) for found in logits if found is not None])


def editable(model: Model) -> list[Site]:
    """A site of every kind that the model lets change, in the middle layer: one head, neuron or expert where it has
    them."""
    found = []
    for kind in KINDS.values():
        site = Site(kind.name, 1 if kind.layered else None)
        status = model.body.status(site)
        if status.state != "refused" and status.editable and kind.name != "logits":
            found.append(site if kind.axis is None else Site(kind.name, site.layer, unit=1))
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_every_kind_of_site_equals_one_pass_a_cell(family: str, mode: str) -> None:
    model = loaded(family)
    batch = token_batch(model, n=4, lengths=(7, 5), clusters=2)
    wanted = editable(model)
    assert {"resid_pre", "resid_post", "attn_out", "mlp_out"} <= {site.kind for site in wanted}
    assert {"q", "k", "v", "scores", "pattern", "z"} <= {site.kind for site in wanted}
    effects = sweep(model, batch, wanted, mode=mode)
    base, donor = (batch.corrupt, batch.clean) if mode == "denoise" else (batch.clean, batch.corrupt)
    acts = model.capture(donor, [site.base for site in wanted])
    on = "corrupt" if mode == "denoise" else "clean"
    expected = looped(model, batch, [[site.patch(acts)] for site in wanted], on)
    torch.testing.assert_close(effects.values, expected, **CLOSE)
    assert effects.labels == tuple(map(str, wanted))
    moved = dict(zip((site.kind for site in wanted), effects.raw.abs().amax(1).tolist()))
    assert min(moved[kind] for kind in ("resid_pre", "attn_out", "mlp_out", "v", "pattern", "z")) > 1e-4
    assert base is not donor


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_heads_queries_and_pattern_at_one_place(family: str) -> None:
    model = loaded(family)
    batch = token_batch(model, n=4, lengths=(7, 5), clusters=2)
    wanted = [site for kind in ("q", "z", "scores", "pattern") for site in model.body.expand(f"{kind}.1.h*")]
    effects = sweep(model, batch, wanted, positions=["subject", "end"])
    acts = model.capture(batch.clean, [site.base for site in wanted])
    cells = [[site.at(where).patch(acts)] for site in wanted for where in ("subject", "end")]
    torch.testing.assert_close(effects.values, looped(model, batch, cells), **CLOSE)
    assert effects.labels[:2] == ("q.1.h0@subject", "q.1.h0@end")
    assert effects.raw.abs().amax(1).min() > 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_and_sets_equal_one_pass_a_cell(family: str) -> None:
    model = loaded(family)
    batch = token_batch(model, n=4, clusters=2)
    acts = model.capture(
        batch.clean, [*sites.mlp_out[:].expand(3, len), *sites.z[:].expand(3, len), sites.resid_post[0]]
    )
    windows = sweep(model, batch, ["mlp_out.*", sites.z[:].head(1)], positions=["subject", "end"], window=2)
    parts = [[sites.mlp_out[i], sites.mlp_out[i + 1]] for i in (0, 1)]
    parts += [[sites.z[i].head(1), sites.z[i + 1].head(1)] for i in (0, 1)]
    cells = [[site.at(where).patch(acts) for site in part] for part in parts for where in ("subject", "end")]
    torch.testing.assert_close(windows.values, looped(model, batch, cells), **CLOSE)
    assert windows.labels[:2] == ("mlp_out.0:2@subject", "mlp_out.0:2@end")
    assert windows.labels[-1] == "z.1:3.h1@end"
    assert windows.raw.abs().amax(1)[1::2].min() > 1e-3
    joint = ["z.0.h1", sites.mlp_out[2]]
    several = sweep(model, batch, [joint, "resid_post.0@subject"])
    cells = [
        [sites.z[0].head(1).patch(acts), sites.mlp_out[2].patch(acts)],
        [sites.resid_post[0].at("subject").patch(acts)],
    ]
    torch.testing.assert_close(several.values, looped(model, batch, cells), **CLOSE)
    assert several.labels == ("z.0.h1 + mlp_out.2", "resid_post.0@subject")
    together = sweep(model, batch, joint, together=True)
    assert together.labels == several.labels[:1]
    torch.testing.assert_close(together.values, several.values[:1], **CLOSE)


def test_a_window_of_one_is_no_window(gpt2: Model) -> None:
    batch = token_batch(gpt2)
    one, plain = (sweep(gpt2, batch, "z.*.h*", positions="end", window=width) for width in (1, None))
    assert one.labels == plain.labels
    assert torch.equal(one.values, plain.values)


def test_all_writes_of_all_layers_and_the_embedding_cross_the_whole_gap(gpt2: Model) -> None:
    effects = sweep(gpt2, token_batch(gpt2), ["embed", "attn_write.*", "mlp_write.*"], together=True)
    torch.testing.assert_close(effects.values[0], effects.target, **CLOSE)


def test_the_unedited_sides_are_the_models_own(gpt2: Model) -> None:
    batch = token_batch(gpt2, lengths=(7, 4))
    effects = sweep(gpt2, batch, "mlp_out.0")
    torch.testing.assert_close(effects.clean, plain_scores(batch, hooked(gpt2.module, batch.clean, {})), **CLOSE)
    torch.testing.assert_close(effects.corrupt, plain_scores(batch, hooked(gpt2.module, batch.corrupt, {})), **CLOSE)
    assert torch.equal(effects.base, effects.corrupt)


@pytest.mark.parametrize("family", CAUSAL)
def test_positions_before_the_change_cannot_matter(family: str) -> None:
    """Positions before the first difference agree on both sides of a causal model, so patching them does nothing."""
    model = loaded(family)
    effects = sweep(model, token_task(model, lengths=(8,)), sites.resid_post[1], positions=[0, "subject", "end"])
    torch.testing.assert_close(effects.raw[0], torch.zeros(6), atol=2e-6, rtol=0)
    assert effects.raw[2].abs().max() > 1e-2


def test_a_role_is_the_index_that_it_names(gpt2: Model) -> None:
    batch = token_batch(gpt2, n=3, lengths=(7,))
    batch = replace(batch, clean=replace(batch.clean, roles={"end": (6,) * 3, "here": (2,) * 3}))
    batch = replace(batch, corrupt=replace(batch.corrupt, roles=batch.clean.roles))
    effects = sweep(gpt2, batch, sites.resid_mid[1], positions=["here", 2, "end", -1])
    torch.testing.assert_close(effects.values[0], effects.values[1], **CLOSE)
    torch.testing.assert_close(effects.values[2], effects.values[3], **CLOSE)
    assert not torch.equal(effects.values[0], effects.values[2])
    alone = sweep(gpt2, batch, sites.resid_mid[1], positions="here")
    assert alone.labels == ("resid_mid.1@here",)
    torch.testing.assert_close(alone.values[0], effects.values[0], **CLOSE)


def test_the_bound_on_tokens_changes_nothing(gpt2: Model) -> None:
    batch = token_batch(gpt2, lengths=(7, 5))
    wanted = [*gpt2.body.expand(sites.z[:].heads()), sites.mlp_act[2].neuron(3)]
    large, small = (sweep(gpt2, batch, wanted, max_tokens=size) for size in (4096, 20))
    torch.testing.assert_close(large.values, small.values, **CLOSE)


@pytest.mark.parametrize("metric", ["logit_diff", "logprob_diff", "prob", "accuracy", "kl"])
def test_every_metric_crosses_the_gap(gpt2: Model, metric: str) -> None:
    batch = token_batch(gpt2, metric=metric)
    effects = sweep(gpt2, batch, ["resid_pre.0", "mlp_out.1"])
    torch.testing.assert_close(effects.values[0], effects.clean, **CLOSE)
    assert (effects.metric, effects.sign) == (metric, -1 if metric == "kl" else 1)
    if metric == "kl":
        torch.testing.assert_close(effects.clean, torch.zeros(6), atol=1e-5, rtol=0)
        assert effects.corrupt.min() > 0


def test_answers_of_several_tokens(gpt2: Model) -> None:
    batch = token_batch(gpt2, n=4, metric="logprob_diff", d_answer=3)
    assert batch.stacked
    effects = sweep(gpt2, batch, [sites.resid_pre[0], sites.resid_post[1].at("end")])
    with torch.no_grad():
        logits = gpt2.module(input_ids=batch.clean.ids, attention_mask=batch.clean.mask.long()).logits.log_softmax(-1)
    total = torch.zeros(8)
    for row, words in enumerate([*batch.answers, *batch.foils]):
        total[row] = sum(logits[row, 6 + step, word] for step, word in enumerate(words))
    torch.testing.assert_close(effects.clean, total[:4] - total[4:], **CLOSE)
    torch.testing.assert_close(effects.values[0], effects.clean, **CLOSE)
    assert effects.values.shape == (2, 4)


def test_progress_is_told(gpt2: Model) -> None:
    calls: list[tuple[int, int]] = []
    sweep(gpt2, token_batch(gpt2), sites.mlp_out[:], progress=lambda done, total: calls.append((done, total)))
    assert calls
    assert calls[-1][0] == calls[-1][1]


@pytest.mark.parametrize(
    ("wanted", "options", "error", "says"),
    [
        ("resid_pre.0", {"mode": "denoize"}, UnknownName, "denoise"),
        ("resid_pre.7", {}, OutOfRange, "3 layers"),
        ("z.1.h9", {}, OutOfRange, "4 heads"),
        ("router.0", {}, SiteUnavailable, "mixture"),
        ("resid_pre.0@end", {"positions": ["subject"]}, UsageError, "position already"),
        ("resid_pre.0", {"positions": ["sujet"]}, UsageError, "subject"),
        ("resid_pre.0", {"positions": [30]}, OutOfRange, "30"),
        ("resid_pre.0", {"positions": []}, UsageError, "at least one"),
        ("resid_pre.0", {"positions": "each"}, Misaligned, "5 to 7"),
        ([], {}, UsageError, "at least one"),
        ([[]], {}, UsageError, "at least one"),
        ("mlp_out.*", {"window": 4}, UsageError, "no 4 of the layers"),
        (["mlp_out.0", "mlp_out.2"], {"window": 2}, UsageError, "consecutive"),
        ("mlp_out.*", {"window": 0}, UsageError, "at least one layer"),
        ("embed", {"window": 2}, UsageError, "exists once"),
        ("mlp_out.*", {"window": 2, "together": True}, UsageError, "leave out together"),
        ([["z.0.h1", "z.0.h2"]], {"window": 2}, UsageError, "lists of sites"),
        ([["z.0.h1", "z.0.h2@end"]], {"positions": "end"}, UsageError, "position already"),
    ],
)
def test_wrong_requests_say_what_to_do(
    gpt2: Model, wanted: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        sweep(gpt2, token_batch(gpt2, lengths=(7, 5)), wanted, **options)


def test_the_result_knows_where_it_came_from(gpt2: Model) -> None:
    task = token_task(gpt2)
    first, again = sweep(gpt2, task, "z.1.h2"), sweep(gpt2, task, "z.1.h2")
    assert first.provenance == again.provenance
    assert first.provenance.model == gpt2.digest
    assert sweep(gpt2, token_task(gpt2, seed=1), "z.1.h2").provenance.data != first.provenance.data
    assert (first.method, first.on, first.unit) == ("denoise", "corrupt", "nat")
    assert first.clusters == ("c0", "c1", "c2") * 2
