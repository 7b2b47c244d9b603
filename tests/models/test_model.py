"""Model: one run with all its parts, any module by path, and what the machine's memory does not hold."""

import pytest
import torch
from torch import nn

import cutaway
from cutaway import sites
from cutaway.errors import BadEdit, OutOfMemory, OutOfRange, SiteUnavailable, UnknownSite, UsageError
from cutaway.models import Raw
from tests.families import tiny
from tests.models.samples import hooked, loaded, part, relative, rows, spoken, vector


class Picture(nn.Module):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU())
        self.head = nn.Linear(5, 7)

    def forward(self, picture: torch.Tensor, *, gain: float = 1.0) -> torch.Tensor:
        return self.head(self.body(picture).mean((2, 3))) * gain


@pytest.fixture
def picture(seeded) -> cutaway.Model:
    return cutaway.wrap(Picture().eval())


def pixels(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_any_network_is_read_and_edited_by_module_path(picture):
    x, site = pixels(), sites.module("body.1")
    wanted = []
    with hooked(part(picture, "body.1"), lambda v: wanted.append(v) or v * 0.5), torch.no_grad():
        out = picture.module(x)
    acts = picture.capture(x, [site, "body.2:input", sites.module("head", "input")])
    assert torch.equal(acts[site], wanted[0])
    assert torch.equal(acts["body.2:input"], wanted[0])
    found = picture.run(x, [site.scale(0.5)], ["head:output"]).activations["head:output"]
    assert torch.equal(found, out)
    assert picture.digest
    assert "no anatomy" in repr(picture)


def test_rows_and_patches_of_any_network(picture):
    clean, corrupt = pixels(), pixels().flip(0) * 2
    site = sites.module("body.0")
    acts = picture.capture(clean, [site])
    read = "head:output"
    base, edited = (picture.run(corrupt, e, [read]).activations[read] for e in ([], [site.rows([1]).patch(acts)]))
    wanted = picture.run(clean, (), [read]).activations[read]
    assert torch.equal(edited[0], base[0])
    assert torch.allclose(edited[1], wanted[1], atol=1e-6)
    scaled = picture.run(Raw((corrupt,), {"gain": 3.0}), [site.patch(acts)], [sites.module("", "output")]).activations
    assert torch.allclose(next(iter(scaled.values())), 3 * wanted, atol=1e-5)


def test_what_a_wrapped_network_cannot_do_is_refused(picture):
    x = pixels()
    for use, error, text in (
        (
            lambda: picture.capture(x, ["resid_post.1"]),
            SiteUnavailable,
            "no anatomy; address it by path, .* or give wrap",
        ),
        (lambda: picture.run(x, [sites.z[0].zero()]), SiteUnavailable, "no anatomy"),
        (lambda: picture.capture(x, ["body.9:output"]), UnknownSite, r"'body.9': not in Picture. Did you mean 'body"),
        (lambda: picture.run(x, [sites.module("head").add(torch.ones(3))]), BadEdit, r"shape \[3\], the site \[2, 7\]"),
        (lambda: picture.run(x, [sites.module("head").at("end").zero()]), UsageError, "select positions by number"),
        (lambda: picture.run(x, [sites.module("body.1").at(9).zero()]), OutOfRange, "position 9 of 4"),
        (lambda: picture.capture(x, ["body.1:output"])["body.1:output@9"], OutOfRange, "position 9 of 4"),
        (lambda: picture.capture(x, ["body.1:output"])["body.1:output#2,"], OutOfRange, "row 2 of 2"),
        (lambda: picture.body, SiteUnavailable, "wrapped module has no anatomy"),
        (lambda: picture.capture(x, ["body.1:output"]).save("x"), UsageError, "cannot be saved"),
    ):
        with pytest.raises(error, match=text):
            use()


def test_module_paths_work_on_a_language_model_too():
    model = loaded("gpt2")
    tokens = model.encode(rows((9, 6, 7)))
    site = sites.module("transformer.h.1.mlp.act")
    acts = model.capture(tokens, [site, "mlp_pre.1"])
    assert torch.equal(acts[site], part(model, "transformer.h.1.mlp.act")(acts["mlp_pre.1"]))
    one = model.run(tokens, [sites.module("transformer.h.1").at(-1).add(vector())]).logits
    assert torch.equal(one, model.run(tokens, [sites.resid_post[1].at(-1).add(vector())]).logits)


def test_logits_only_where_asked():
    model = loaded("gemma2")
    tokens = model.encode(rows((9, 6, 7)), pad="left", roles={"subject": [1, 4, 3]})
    whole = model.run(tokens).logits
    picked = model.run(tokens, logits=((0, -1), (3, 2), (-1, 1))).logits
    columns = [(0, 8), (6, 5), (8, 3)]
    for row, pair in enumerate(columns):
        assert relative(picked[row], whole[row, list(pair)]) < 1e-5
    assert relative(model.run(tokens, logits="subject").logits[:, 0], whole[[0, 1, 2], [1, 7, 5]]) < 1e-5
    assert model.run(tokens, reads=["z.1"], logits="none").logits is None


def test_captured_values_are_selected_as_sites_say():
    model = loaded("llama")
    tokens = model.encode(rows((9, 6)), pad="left")
    acts = model.capture(tokens, ["z.1", "pattern.1", "mlp_act.0", "resid_post.2"])
    z, pattern = acts["z.1"], acts["pattern.1"]
    assert torch.equal(acts[sites.z[1].head(2)], z[:, :, 2])
    assert torch.equal(acts[sites.z[1].head([3, 0]).at(0)], torch.stack([z[0, 0], z[1, 3]])[:, [3, 0]])
    assert torch.equal(acts[sites.pattern[1].head(1).at(-1)], pattern[:, 1, 8])
    assert torch.equal(acts[sites.mlp_act[0].neuron(5).at([0, -1]).rows([1])], acts["mlp_act.0"][1:, [3, 8], 5])
    assert acts.take([1, 0])["z.1"].equal(z.flip(0))
    for site, text in (
        (sites.z[1].head(4), "head 4 of 4"),
        (sites.z[1].head(-1), "head -1 of 4"),
        (sites.z[1].rows([2]), "row 2 of 2"),
        (sites.z[1].at(7), "position 7: row 1 has 6"),
    ):
        with pytest.raises(OutOfRange, match=text):
            _ = acts[site]
    with pytest.raises(UnknownSite, match=r"z.0: not captured here. Did you mean 'z.1'"):
        _ = acts["z.0"]


def test_activations_are_saved_with_their_model(tmp_path):
    from cutaway import Activations
    from cutaway.errors import WrongModel

    model = spoken("gpt2")
    acts = model.capture(model.encode("t5 t6 t7", roles={"subject": [1]}), ["z.1", "resid_post.0"])
    acts.save(tmp_path / "a.safetensors")
    again = Activations.load(tmp_path / "a.safetensors", model.digest)
    assert again.tokens == acts.tokens
    assert again.tokens.texts == acts.tokens.texts
    assert list(again) == list(acts) or set(again) == set(acts)
    assert all(torch.equal(again[s], acts[s]) for s in acts)
    with pytest.raises(WrongModel, match=r"activations .*was made for model .*, this is model"):
        Activations.load(tmp_path / "a.safetensors", loaded("llama").digest)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 GB")]
)
def test_out_of_memory_names_a_batch_that_would_fit(monkeypatch, error):
    model = cutaway.load(tiny("gpt2"))

    def full(*args, **kwargs):
        raise error

    with hooked(part(model, "transformer.h.1"), full):
        with pytest.raises(
            OutOfMemory, match=r"in a pass of 4 rows; try max_tokens \(or a batch\) for 2 rows"
        ) as caught:
            model.run(rows((3, 3, 3, 3)))
        assert (caught.value.rows, caught.value.fit) == (4, 2)
        with pytest.raises(OutOfMemory, match="with one row; use shorter prompts, a smaller dtype or another device"):
            model.generate(rows((3,)))
    with (
        hooked(part(model, "transformer.h.1"), lambda v: (_ for _ in ()).throw(RuntimeError("mine"))),
        pytest.raises(RuntimeError, match="mine"),
    ):
        model.run(rows((3,)))
