"""Bodies of models that do not run on rows of token ids: images, sound, encoder-decoders; and what wraps or replaces
linear layers."""

import pytest
import torch
from torch import nn

import cutaway
from cutaway import sites
from cutaway.errors import SelfCheckFailed, UnknownSite, UsageError
from cutaway.models import Site
from tests.families import D_VOCAB, tiny
from tests.models.samples import SMALL, built, hooked, part, relative, rows, vector

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}
SEQ2SEQ = {
    **SMALL,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "decoder_start_token_id": 1,
    "max_position_embeddings": 64,
}
IMAGE = {"image_size": 16, "patch_size": 8}
SOUND = {"conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [10, 8], "num_feat_extract_layers": 2}
T5 = {"vocab_size": D_VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
CASES = {
    "ViTForImageClassification": ({**TINY, **IMAGE}, "vit.layers"),
    "BartForConditionalGeneration": (SEQ2SEQ, "model.decoder.layers"),
    "T5ForConditionalGeneration": ({**T5, "decoder_start_token_id": 0}, "decoder.block"),
    "CLIPModel": (
        {
            "text_config": {**TINY, "vocab_size": D_VOCAB, "projection_dim": 16, "eos_token_id": 2},
            "vision_config": {**TINY, **IMAGE, "projection_dim": 16},
            "projection_dim": 16,
        },
        "text_model.encoder.layers",
    ),
    "WhisperForConditionalGeneration": (
        {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 20},
        "model.decoder.layers",
    ),
    "Wav2Vec2Model": (
        {**TINY, **SOUND, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
        "encoder.layers",
    ),
}


def first(output):
    return output if isinstance(output, torch.Tensor) else next(t for t in output.values() if torch.is_tensor(t))


@pytest.mark.parametrize("name", CASES)
def test_a_body_is_found_read_and_edited(name):
    config, body = CASES[name]
    model = cutaway.load(built(name, **config))
    assert [layer.block for layer in model.body.layers] == [f"{body}.0", f"{body}.1"]
    states = {kind: model.body.status(Site(kind, 1)).state for kind in ("resid_pre", "pattern", "z", "resid_post")}
    assert set(states.values()) == {"verified"}
    given = model.example.inputs.kwargs
    seen = []
    with hooked(part(model, f"{body}.0"), lambda x: seen.append(x.clone()) or x), torch.no_grad():
        wanted = first(model.module(**given))
    acts = model.capture(given, ["resid_post.0", "pattern.1", "attn_write.1"])
    assert torch.equal(acts["resid_post.0"], seen[0])
    assert relative(acts["pattern.1"].sum(-1), torch.ones(acts["pattern.1"].shape[:-1])) < 1e-5
    with hooked(part(model, f"{body}.0"), lambda x: x + 3 * vector()), torch.no_grad():
        changed = first(model.module(**given))
    assert relative(wanted, changed) > 1e-3
    edited = model.run(given, [sites.resid_post[0].add(vector(), 3.0)], ["resid_post.1"])
    moved = model.capture(given, ["resid_post.1"])["resid_post.1"]
    assert relative(edited.activations["resid_post.1"], moved) > 1e-3
    if edited.logits is not None and edited.logits.shape == changed.shape:
        assert torch.equal(edited.logits, changed)


def test_the_encoder_is_a_body_of_its_own():
    module = built("BartForConditionalGeneration", **SEQ2SEQ)
    given = {"input_ids": torch.tensor(rows((7, 7))), "decoder_input_ids": torch.tensor(rows((5, 5)))}
    model = cutaway.wrap(module, inputs=given, body="model.encoder")
    assert model.body.layers[0].writes == "post-norm"
    with torch.no_grad():
        wanted = module(**given, output_hidden_states=True).encoder_hidden_states
    assert torch.equal(model.capture(given, ["resid_post.1"])["resid_post.1"], wanted[-1])
    decoder = cutaway.wrap(module, inputs=given)
    assert decoder.body.layers[0].block == "model.decoder.layers.0"
    assert [tap.path for tap in decoder.body.layers[0].others] == ["model.decoder.layers.0.encoder_attn"]
    found = decoder.capture(given, [sites.module("model.encoder.layers.1")])
    assert torch.equal(next(iter(found.values())), wanted[-1])


def test_what_has_no_body_says_so():
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()
    with pytest.raises(SelfCheckFailed, match=r"no list of blocks that pass a residual stream .*cutaway\.wrap"):
        cutaway.wrap(net, inputs=torch.ones(2, 1, 4, 4))
    with pytest.raises(SelfCheckFailed, match="a pass on the example fails"):
        cutaway.wrap(net, inputs=torch.ones(2, 4))
    with pytest.raises(UsageError, match="body= needs inputs="):
        cutaway.wrap(net, body="0")
    with pytest.raises(UnknownSite, match="module 'ecoder': not in"):
        cutaway.wrap(built("BartModel", **SEQ2SEQ), inputs={"input_ids": torch.tensor(rows((7, 7)))}, body="ecoder")
    assert not any(module._forward_hooks for module in net.modules())


# -- linear layers that are not nn.Linear


class Lora(nn.Module):
    """A linear layer with an adapter beside it, in the shape that PEFT gives: the base layer inside, sizes outside."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x)) * 2.0


def test_adapters_around_linear_layers_are_part_of_what_they_wrap():
    module = tiny("llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in module.model.layers:
            for owner, name in ((layer.self_attn, "o_proj"), (layer.self_attn, "q_proj"), (layer.mlp, "down_proj")):
                setattr(owner, name, Lora(getattr(owner, name)))
    model = cutaway.load(module.eval())
    plain = cutaway.load(tiny("llama"))
    assert {str(s) for s in model.body.sites() if model.body.status(s).state != "verified"} == {
        str(s) for s in plain.body.sites() if plain.body.status(s).state != "verified"
    }
    assert model.body.layers[1].o_proj == "model.layers.1.self_attn.o_proj"
    assert model.body.layers[1].taps["mlp_act"].path == "model.layers.1.mlp.down_proj"
    tokens = model.encode(rows())
    with torch.no_grad():
        wanted = model.module(tokens.ids, use_cache=False).logits
    assert torch.equal(model.run(tokens, reads=["attn_write.1", "mlp_act.0"]).logits, wanted)
    assert relative(plain.run(tokens).logits, wanted) > 1e-2


class Int8(nn.Module):
    """A linear layer with eight-bit weights and a scale a row, in the shape that bitsandbytes gives."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        scale = base.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter((base.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.bias = base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x) * self.scale, self.bias)


def test_eight_bit_linear_layers_are_read_and_edited():
    module = tiny("llama")
    for layer in module.model.layers:
        for owner, names in ((layer.self_attn, "qkvo"), (layer.mlp, ("gate", "up", "down"))):
            for name in names:
                setattr(owner, f"{name}_proj", Int8(getattr(owner, f"{name}_proj")))
    model = cutaway.load(module.eval())
    plain = cutaway.load(tiny("llama"))
    assert {str(s) for s in model.body.sites() if model.body.status(s).state != "verified"} == {
        str(s) for s in plain.body.sites() if plain.body.status(s).state != "verified"
    }
    tokens = model.encode(rows())
    with torch.no_grad():
        wanted = model.module(tokens.ids, use_cache=False).logits
    assert torch.equal(model.run(tokens, reads=["attn_out.1"]).logits, wanted)
    assert 1e-4 < relative(wanted, plain.run(tokens).logits) < 0.2
    assert relative(model.run(tokens, [sites.z[1].head(0).zero()]).logits, wanted) > 1e-3


def test_quantisation_by_the_whole_batch_is_refused_with_the_reason():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.ao.quantization.quantize_dynamic(tiny("llama"), {nn.Linear}, dtype=torch.qint8)
    model = cutaway.load(module)
    status = model.body.status(Site("attn_write", 1))
    assert status.state == "refused"
    assert "a row gives in a batch what it does not alone" in status.reason


# -- experts


def test_experts_add_up_and_one_of_them_can_be_taken_away():
    model = cutaway.load(tiny("mixtral"))
    tokens = model.encode(rows())
    acts = model.capture(tokens, ["expert_out.1", "mlp_out.1", "router.1"])
    out = acts["expert_out.1"]
    assert out.shape == (3, 9, 4, 32)
    assert relative(out.sum(2), acts["mlp_out.1"]) < 1e-5
    chosen = acts["router.1"].topk(2).indices
    assert torch.equal((out != 0).any(-1).nonzero()[:, 2].reshape(3, 9, 2), chosen.sort(-1).values)
    module = part(model, model.body.layers[1].experts)
    with torch.no_grad():  # an expert by hand
        x = model.capture(tokens, ["mlp_in.1"])["mlp_in.1"]
        gate, up = (x @ module.gate_up_proj[2].T).chunk(2, -1)
        mine = (nn.functional.silu(gate) * up) @ module.down_proj[2].T
        weight = (acts["router.1"].softmax(-1).gather(2, chosen) * (chosen == 2)).sum(-1)
        weight = weight / acts["router.1"].softmax(-1).gather(2, chosen).sum(-1)
    assert relative(out[:, :, 2], mine * weight[..., None]) < 1e-5
    edited = model.run(tokens, [sites.expert_out[1].expert(2).zero()], ["mlp_out.1"])
    assert relative(edited.activations["mlp_out.1"], acts["mlp_out.1"] - out[:, :, 2]) < 1e-5
    assert relative(edited.logits, model.run(tokens).logits) > 1e-3
    assert torch.equal(model.run(tokens, [sites.expert_out[1].scale(1.0)]).logits, model.run(tokens).logits)
    slope = model.grad(tokens, lambda logits: logits[:, -1, 5].sum(), ["expert_out.1", "mlp_out.1"]).gradients
    assert relative(slope["expert_out.1"], slope["mlp_out.1"][:, :, None].expand_as(out)) < 1e-4
    assert Site.parse("expert_out.1.e2@end") == sites.expert_out[1].expert(2).at("end")
    assert len(model.body.expand("expert_out.1.e*")) == 4
