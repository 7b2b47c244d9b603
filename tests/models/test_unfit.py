"""Models that cannot be traced on token ids are refused with the remedy, whatever their own code raises."""

import pytest
import torch
from torch import nn

import cutaway
from cutaway import sites
from cutaway.errors import EngineError, SelfCheckFailed, SiteUnavailable, UsageError
from tests.families import D_VOCAB, tiny
from tests.models.samples import BERT_LIKE, SMALL, built, plain, relative, rows, vector


def test_a_vision_model_is_refused_with_the_remedy():
    from transformers import ResNetConfig, ResNetModel

    with torch.random.fork_rng(devices=[]):
        module = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])).eval()
    with pytest.raises(SelfCheckFailed, match=r"ResNetModel: it has no token embedding.*cutaway\.wrap"):
        cutaway.load(module)


def test_a_model_whose_pass_fails_is_refused_and_left_alone():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.config = nn.Embedding(20, 4), None

        def get_input_embeddings(self):
            return self.embed

        def forward(self, input_ids):
            raise ValueError("give pixel values")

    with torch.random.fork_rng(devices=[]):
        module = Broken().eval()
    with pytest.raises(SelfCheckFailed, match=r"Broken: a pass on token ids fails \(ValueError: give pixel values\)"):
        cutaway.load(module)
    assert not module._forward_hooks


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (
            "CpmAntForCausalLM",
            {"vocab_size": D_VOCAB, "hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 56}
            | {"num_hidden_layers": 2, "prompt_length": 32},
            r"work on \[3, 39, 32\], which is not \[batch pos d_model\] of 3 rows of 7 tokens",
        ),
        (
            "AlbertForMaskedLM",
            {**BERT_LIKE, "embedding_size": 16},
            r"its blocks are one module \(albert.encoder.albert_layer_groups.0\) that runs again and again, so no list",
        ),
    ],
)
@pytest.mark.parametrize("audit", [True, False])
def test_a_model_that_load_cannot_hold_is_pointed_to_wrap(name, config, message, audit):
    with pytest.raises(SelfCheckFailed, match=rf"{name}: .*{message}.*cutaway\.wrap"):
        cutaway.load(built(name, **config), audit=audit)


GROUPED = {**BERT_LIKE, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("name", "config", "refused"),
    [
        ("PhiForCausalLM", BERT_LIKE, {"resid_mid", "router", "expert_out"}),
        ("CohereForCausalLM", GROUPED, {"resid_mid", "router", "expert_out"}),
        ("StableLmForCausalLM", GROUPED, {"router", "expert_out"}),
        (
            "GptOssForCausalLM",
            {
                **GROUPED,
                "head_dim": 8,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            {"mlp_pre", "mlp_act"},
        ),
    ],
)
def test_what_is_verified_of_a_family_is_what_can_be(name, config, refused):
    model = cutaway.load(built(name, **config))
    states = {site: model.body.status(site) for site in model.body.sites()}
    assert {site.kind for site, status in states.items() if status.state == "refused"} == refused
    tokens = model.encode(rows((9, 6)))
    with torch.no_grad():
        assert relative(model.run(tokens).logits, model.module(**model.inputs(tokens)).logits) < 1e-6
    acts = model.capture(tokens, ["resid_pre.1", "attn_write.1", "mlp_write.1", "resid_post.1"])
    assert relative(sum(list(acts.values())[:3]), acts["resid_post.1"]) < 1e-5


def test_an_attention_with_sinks_shows_the_keys_and_leaves_the_sinks():
    config = {**GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
    rope = {"rope_type": "default", "rope_theta": 1e4}
    model = cutaway.load(built("GptOssForCausalLM", **config, rope_parameters=rope, attn_implementation="eager"))
    tokens = model.encode(rows((9, 9)))
    pattern = model.capture(tokens, ["pattern.1"])["pattern.1"]
    assert pattern.shape == (2, 4, 9, 9)
    assert torch.equal(pattern, plain(model, tokens, output_attentions=True).attentions[1])
    assert float(pattern.sum(-1).max()) < 0.99  # the rest went to the sink
    found = model.run(tokens, [sites.pattern[1].zero()], ["z.1"])
    assert float(found.activations["z.1"].abs().max()) == 0.0
    assert relative(found.logits, model.run(tokens).logits) > 1e-2


def test_blocks_that_put_positions_first_are_read_and_edited_by_rows():
    model = cutaway.load(built("XLNetLMHeadModel", **SMALL, d_model=32, n_layer=2, n_head=4, d_inner=64))
    tokens = model.encode(rows((9, 9)))
    wanted = plain(model, tokens, output_hidden_states=True).hidden_states
    acts = model.capture(tokens, ["embed", "resid_pre.1", "resid_post.1", "pattern.1"])
    assert torch.equal(acts["resid_pre.1"], wanted[1])
    assert torch.equal(acts["resid_post.1"], wanted[2])
    assert model.body.status(sites.pattern[0]).state == "verified"
    edited = model.run(tokens, [sites.resid_post[0].rows([1]).at(2).add(vector())], ["resid_pre.1"])
    moved = edited.activations["resid_pre.1"] - acts["resid_pre.1"]
    assert relative(moved[1, 2], vector()) < 1e-5
    assert float(moved.abs().sum()) == pytest.approx(float(moved[1, 2].abs().sum()))
    assert torch.equal(edited.logits[0], model.run(tokens).logits[0])


def test_a_module_that_runs_twice_holds_no_one_value():
    model = cutaway.load(built("PhiForCausalLM", **BERT_LIKE))
    assert {model.body.layers[1].taps[kind].path for kind in ("attn_write", "mlp_write")} == {
        "model.layers.1.self_attn",
        "model.layers.1.mlp",
    }
    with pytest.raises(EngineError, match="ran 2 times in one pass"):
        model.capture(rows(), [sites.module("model.layers.1.resid_dropout")])


@pytest.mark.parametrize("name", ["GPT2ForSequenceClassification", "BertForSequenceClassification"])
def test_scores_of_a_whole_text_are_no_logits_and_sites_still_work(name):
    shape = {**SMALL, "n_embd": 32, "n_layer": 3, "n_head": 4} if name.startswith("GPT2") else BERT_LIKE
    model = cutaway.load(built(name, **shape, num_labels=7))  # as many as the tokens of the traced rows
    message = r"returns scores of shape \[3, 7\], one row a text and not one a token.*logits='none' and read sites"
    for use in (
        lambda: model.run(rows()),
        lambda: model.run(rows(), logits="end"),
        lambda: model.grad(rows(), lambda logits: logits.sum(), ["z.1"]),
    ):
        with pytest.raises(SiteUnavailable, match=message):
            use()
    assert model.body.status(sites.z[1]).editable
    moved = model.run(rows(), [sites.z[0].zero()], ["resid_post.2"], logits="none").activations["resid_post.2"]
    assert relative(moved, model.capture(rows(), ["resid_post.2"])["resid_post.2"]) > 1e-3


def test_padding_that_changes_a_row_is_refused():
    config = {**SMALL, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 64}
    model = cutaway.load(built("RwkvForCausalLM", **config))
    assert set(model.body.padding) == {"left"}
    message = r"padded on the left: RwkvForCausalLM then gives other numbers than for the row alone.*one row at a time"
    for use in (
        lambda: model.encode(rows((9, 6)), pad="left"),
        lambda: model.generate(rows((9, 6)), max_new_tokens=2),
        lambda: model.generate(model.encode(rows((9, 6))), max_new_tokens=2),
    ):
        with pytest.raises(UsageError, match=message):
            use()
    right = model.run(model.encode(rows((9, 6)))).logits
    assert relative(right[1, :6], model.run(rows((9, 6))[1:]).logits[0]) < 1e-5


def crossing(hf, path, mix):
    """A model in which the output of one module is mixed between rows or tokens."""
    handle = hf.get_submodule(path).register_forward_hook(lambda m, a, out: mix(out))
    try:
        return cutaway.load(hf)
    finally:
        handle.remove()


def test_a_site_whose_rows_depend_on_each_other_is_refused():
    model = crossing(tiny("llama"), "model.layers.1.mlp.act_fn", lambda v: v + 0.1 * v.mean(0, keepdim=True))
    status = model.body.status(sites.mlp_act[1])
    assert status.state == "refused"
    assert "a row gives in a batch what it does not alone (off by" in status.reason
    assert model.body.status(sites.mlp_act[0]).state == "verified"


def test_a_pass_that_is_not_the_modules_own_is_refused():
    hf = tiny("llama")
    plain = hf.forward

    def forward(input_ids=None, attention_mask=None, **kwargs):
        out = plain(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        return out if attention_mask is None else type(out)(logits=out.logits * 1.5)

    hf.forward = forward
    with pytest.raises(
        SelfCheckFailed, match=r"gives other numbers than module\(input_ids=...\) \(off by.*cutaway.wrap"
    ):
        cutaway.load(hf)
