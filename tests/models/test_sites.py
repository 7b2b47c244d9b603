"""Sites: text and value are one thing, other toolkits' names lead to the same numbers, nonsense is refused by name."""

import pytest
import torch

from cutaway import sites
from cutaway.errors import OutOfRange, SiteUnavailable, UnknownSite, UsageError
from cutaway.models import Site, SiteSet
from cutaway.models.sites import KINDS, TRANSFORMER_LENS, parse, where
from tests.models.samples import hooked, loaded, part, plain, relative, rows

SELECTED = [
    sites.z[9].head(6).at("end"),
    sites.z[0].head([3]).at([0]).rows([2]),
    sites.k[1].head([0, 1]).at([0, -1]).rows([2, 0]),
    sites.mlp_act[3].neuron(17).at(-1),
    sites.mlp_pre[3].neuron([17, 4]),
    sites.resid_pre[2].at("final-token_2").rows([1]),
    sites.module("encoder.layer.0", "input").at(3),
    sites.module("encoder.layer.0").rows([0, 1]),
]


@pytest.mark.parametrize("site", [*SELECTED, *(Site(k, 1 if KINDS[k].layered else None) for k in KINDS)], ids=str)
def test_text_and_site_are_inverse(site):
    assert Site.parse(str(site)) == site
    assert hash(Site.parse(str(site))) == hash(site)


def test_texts_that_people_write():
    assert Site.parse(" z[9].h6@end ") == sites.z[9].head(6).at("end")
    assert Site.parse("resid_pre.2@0,-1#1") == sites.resid_pre[2].at([0, -1]).rows([1])
    assert sites("logits") == sites.logits == Site("logits")
    assert str(sites.z[1:].head(2).at(-1)) == "z.1:.h2@-1"
    assert str(sites.z[:].heads()) == "z.*.h*"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("resid_prr.3", UnknownSite, r"'resid_prr'.*Did you mean 'resid_pre'"),
        ("blocks.0.hook_resid_pst", UnknownSite, r"no such TransformerLens name.*hook_resid_post"),
        ("z.1.x3", UnknownSite, r"not of the form kind.layer"),
        ("z.1@1,two", UnknownSite, r"'1,two' is no list of numbers; write"),
        ("z.1#one", UnknownSite, r"'one' is no list of numbers"),
        ("z", UsageError, r"'z' needs a layer, as in 'z.0'"),
        ("embed.2", UsageError, r"exists once a model: write 'embed'"),
        ("resid_pre.1.h2", UsageError, r"it has no heads; heads are at q, k"),
        ("z.1.n2", UsageError, r"it has no neurons; neurons are at mlp_pre"),
        ("encoder:sideways", UsageError, r"port 'input' or 'output'.*'sideways'"),
    ],
)
def test_text_that_means_nothing_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        Site.parse(text)


def test_selections_that_select_nothing_or_twice_are_refused():
    for build, text in (
        (lambda: sites.z[0].head([]), "empty list of units selects nothing; leave it out"),
        (lambda: sites.z[0].at([]), "empty list of positions"),
        (lambda: sites.z[0].rows([]), "empty list of rows"),
        (lambda: sites.z[0].head([1, 1]), r"\[1, 1\] name one twice"),
        (lambda: sites.z[0].at("not a role"), "a role is a word"),
    ):
        with pytest.raises(UsageError, match=text):
            build()
    with pytest.raises(UnknownSite, match=r"sites.resid_prr.*resid_pre"):
        _ = sites.resid_prr


@pytest.mark.parametrize(
    ("site", "error", "message"),
    [
        (sites.resid_post[14], OutOfRange, r"'resid_post.14': this model has 3 layers \(0-2\). Did you mean"),
        (sites.z[-1], OutOfRange, r"3 layers \(0-2\). Did you mean 'z.2'"),
        (sites.z[1].head(4), OutOfRange, r"'z.1.h4': this model has 4 heads \(0-3\), not 4"),
        (sites.z[1].head(-1), OutOfRange, r"4 heads \(0-3\), not -1"),
        (sites.k[1].head(2), OutOfRange, r"'k.1.h2': this model has 2 key/value heads \(0-1\), not 2"),
        (sites.mlp_act[0].neuron([3, 56]), OutOfRange, r"56 neurons \(0-55\), not 56"),
        (sites.router[0], SiteUnavailable, r"'router.0'.*no mixture of experts. Available here: resid_pre"),
        (sites.module("model.layers.7"), UnknownSite, r"'model.layers.7': not in LlamaForCausalLM. Did you mean"),
    ],
)
def test_a_site_that_this_model_does_not_have_is_refused_everywhere(site, error, message):
    model = loaded("llama")
    for use in (
        lambda: model.capture(rows(), [site]),
        lambda: model.run(rows(), [site.zero()]),
        lambda: model.generate(rows(), [site.zero()], max_new_tokens=1),
    ):
        with pytest.raises(error, match=message):
            use()


def test_parallel_blocks_have_no_middle_and_say_so():
    with pytest.raises(SiteUnavailable, match=r"resid_mid.1.*attention and MLP read the same input here"):
        loaded("gpt_neox").capture(rows(), ["resid_mid.1"])


def test_sets_are_expanded_against_a_model():
    body = loaded("llama").body
    assert body.expand(sites.resid_pre[:]) == [sites.resid_pre[i] for i in range(3)]
    assert body.expand(sites.z[1:].heads()) == [sites.z[i].head(h) for i in (1, 2) for h in range(4)]
    assert body.expand([sites.k[0:1].heads(), "k.0.h1", "blocks.0.attn.hook_k"]) == [
        sites.k[0].head(0),
        sites.k[0].head(1),
        sites.k[0],
    ]
    with pytest.raises(OutOfRange, match=r"no layer of this model \(0-2\) is in the range"):
        body.expand(sites.z[7:])
    with pytest.raises(UsageError, match="no site was given; name at least one"):
        body.expand([])


def seen_by_hook(model, tokens, path, port="output"):
    found = []
    with hooked(part(model, path), lambda x: found.append(x.clone()) or x, port):
        plain(model, tokens)
    return found[0]


def test_transformer_lens_names_lead_to_the_numbers_that_they_mean():
    model = loaded("gpt2", "eager")
    tokens = model.encode(rows())
    body = "transformer.h.1."
    qkv = seen_by_hook(model, tokens, body + "attn.c_attn").unflatten(-1, (3, 4, 8))
    entry, after = (seen_by_hook(model, tokens, "transformer.h.1", port) for port in ("input", "output"))
    attn, mlp = (seen_by_hook(model, tokens, body + name) for name in ("attn.c_proj", "mlp.c_proj"))
    z = seen_by_hook(model, tokens, body + "attn.c_proj", "input").unflatten(-1, (4, 8))
    scores = torch.einsum("bqhd,bkhd->bhqk", qkv[:, :, 0], qkv[:, :, 1]) / 8**0.5
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    wanted = {
        "blocks.1.hook_resid_pre": entry,
        "blocks.1.hook_in": entry,
        "blocks.1.hook_resid_mid": entry + attn,
        "blocks.1.hook_resid_post": after,
        "blocks.1.hook_out": after,
        "blocks.1.attn.hook_q": qkv[:, :, 0],
        "blocks.1.attn.hook_k": qkv[:, :, 1],
        "blocks.1.attn.hook_v": qkv[:, :, 2],
        "blocks.1.attn.hook_z": z,
        "blocks.1.attn.hook_attn_scores": scores.masked_fill(~causal, 0),
        "blocks.1.attn.hook_pattern": scores.masked_fill(~causal, float("-inf")).softmax(-1),
        "blocks.1.hook_attn_out": attn,
        "blocks.1.hook_mlp_in": seen_by_hook(model, tokens, body + "ln_2"),
        "blocks.1.mlp.hook_pre": seen_by_hook(model, tokens, body + "mlp.c_fc"),
        "blocks.1.mlp.hook_post": seen_by_hook(model, tokens, body + "mlp.c_proj", "input"),
        "blocks.1.hook_mlp_out": mlp,
        "hook_embed": seen_by_hook(model, tokens, "transformer.wte"),
        "ln_final.hook_normalized": seen_by_hook(model, tokens, "transformer.ln_f"),
    }
    assert {name.removeprefix("blocks.1.") for name in wanted} == set(TRANSFORMER_LENS)
    found = model.capture(tokens, list(wanted))
    for name, value in wanted.items():
        got = found[name] if "scores" not in name else found[name].masked_fill(~causal, 0)
        assert value.std() > 0.01
        assert relative(got, value) < 1e-5, name


def test_post_norm_writes_are_what_is_added_not_what_the_module_returns():
    model = loaded("gemma2")
    acts = model.capture(
        rows(), ["resid_pre.1", "attn_write.1", "attn_out.1", "mlp_write.1", "mlp_out.1", "resid_post.1"]
    )
    total = acts["resid_pre.1"] + acts["blocks.1.hook_attn_out"] + acts["blocks.1.hook_mlp_out"]
    assert relative(total, acts["resid_post.1"]) < 1e-5
    assert relative(acts["attn_out.1"], acts["attn_write.1"]) > 0.1


def test_a_predicate_has_a_name():
    def is_and(token: str) -> bool:
        return token == " and"

    assert str(sites.z[1].at(where(is_and))) == "z.1@where(is_and)"
    assert str(sites.z[1].at(where(lambda t: True, "all"))) == "z.1@where(all)"


SETS = {
    "resid_post.*": [sites.resid_post[i] for i in range(3)],
    "resid_pre.1:5": [sites.resid_pre[1], sites.resid_pre[2]],
    "z.*@end": [sites.z[i].at("end") for i in range(3)],
    "z.*.h*": [sites.z[i].head(h) for i in range(3) for h in range(4)],
    "z.1.h*": [sites.z[1].head(h) for h in range(4)],
    "k.-1:.h*@0,-1#1,": [sites.k[2].head(h).at([0, -1]).rows([1]) for h in range(2)],
    "q.0:3:2.h1": [sites.q[0].head(1), sites.q[2].head(1)],
    "mlp_act.:1.n5": [sites.mlp_act[0].neuron(5)],
    "mlp_act.2.n*@-1": [sites.mlp_act[2].neuron(n).at(-1) for n in range(56)],
}


@pytest.mark.parametrize("text", SETS)
def test_the_text_of_a_set_is_expanded_against_a_model(text):
    model = loaded("llama")
    found = sites(text)
    assert str(found) == text
    assert SiteSet("z", slice(None), sites.z[0]) != found == parse(str(found))
    assert model.body.expand(text) == model.body.expand([found]) == SETS[text]
    with pytest.raises(UsageError, match="names a set of sites, and one is needed here; name its layer"):
        Site.parse(text)


def test_sets_have_texts_and_other_toolkits_names():
    for made, text in (
        (sites.z[:].heads().at("end"), "z.*.h*@end"),
        (sites.mlp_act[1:].neurons(), "mlp_act.1:.n*"),
        (sites.mlp_act[:].neuron([3, 4]).rows([0]), "mlp_act.*.n3,4#0,"),
        (sites.z[1:2], "z.1:2"),
        (sites.z[1:2].heads(), "z.1.h*"),
    ):
        assert str(made) == text
        assert sites(text) == made
    assert parse("blocks.*.attn.hook_z") == parse("z[*]") == sites.z[:]
    assert list(loaded("llama").capture(rows(), "resid_post.*")) == SETS["resid_post.*"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("z.5:", OutOfRange, r"z.5:: no layer of this model \(0-2\)"),
        ("z.7.h*", OutOfRange, "z.7.h*"),
        ("resid_pre.*.h*", UsageError, "it has no heads; heads are at q, k"),
        ("z.*.n*", UsageError, "it has no neurons"),
        ("logits.*", UsageError, "exists once a model: write 'logits'"),
        ("resid_prr.*", UnknownSite, "Did you mean 'resid_pre'"),
        ("router.*", SiteUnavailable, "no mixture of experts"),
    ],
)
def test_a_set_that_is_nowhere_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        loaded("llama").body.expand(text)
