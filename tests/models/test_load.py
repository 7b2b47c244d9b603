"""Load: what is broken is named with its remedy; what is sound comes back with the same numbers and no side effect."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import cutaway
from cutaway.artifacts import file_digest
from cutaway.errors import ModelIncomplete, ModelInTraining, ModelNotFinite, ModelNotFound, UnknownName, UsageError
from tests.families import tiny
from tests.models.samples import loaded, plain, rows, tokenizer, vector


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny("llama").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_gives_the_model_that_was_saved(folder, capfd):
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    model = cutaway.load(folder)
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled() == shown
    assert model.digest == loaded("llama").digest
    assert torch.equal(model.run(rows()).logits, loaded("llama").run(rows()).logits)
    assert model.encode("t5 t6").row(0) == [1, 5, 6]
    assert model.body == loaded("llama").body


@pytest.mark.parametrize("shown", [True, False])
def test_the_users_progress_bars_are_as_they_were(folder, shown, monkeypatch, capfd):
    from transformers.utils import logging

    monkeypatch.setattr(logging, "_tqdm_active", shown)
    cutaway.load(folder, audit=False)
    assert capfd.readouterr().err == ""
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelIncomplete):
        cutaway.load(folder, audit=False)
    assert logging.is_progress_bar_enabled() == shown


def test_options_of_loading(folder):
    assert cutaway.load(folder, dtype="bfloat16", audit=False).dtype == torch.bfloat16
    assert cutaway.load(folder, device="cpu", audit=False).device == torch.device("cpu")
    mapped = cutaway.load(folder, device_map={"": "cpu"}, audit=False)
    assert torch.equal(mapped.run(rows()).logits, loaded("llama").run(rows()).logits)
    own = tokenizer(bos=False)
    assert cutaway.load(folder, own, audit=False).tokenizer is own
    with pytest.raises(UsageError, match=r"device=, dtype= and device_map= choose how files are loaded; move or cast"):
        cutaway.load(tiny("gpt2"), dtype="float32")


def shorten(path: Path, share: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 60}))


def promise_shards(folder: Path) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (folder / "model.safetensors").rename(folder / shards["a"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"config.json is missing; download the whole repository again"),
        (lambda f: (f / "config.json").write_text("{"), r"cannot be read .*config.json"),
        (lambda f: (f / "model.safetensors").unlink(), r"no weights \(\*.safetensors\).*fetch them again"),
        (promise_shards, r"1 of 2 shards of the index are missing \(model-00002-of-00002.safetensors\).*fetch them"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), r"index.json is broken .*download it again"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), r"index.json is broken .*download it again"),
        (lambda f: shorten(f / "model.safetensors"), r"broken or half-downloaded .*; download it again"),
        (lambda f: shorten(f / "model.safetensors", 0.001), r"broken or half-downloaded .*; download it again"),
        (drop_tensor, r"1 tensors are not in the files \(model.layers.1.self_attn.q_proj.weight\).*random numbers"),
        (widen, r"do not fit its config.json .*; download both again"),
        (lambda f: (f / "tokenizer.json").write_text("{"), r"tokenizer of .*cannot be read .*; download it again"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(folder, damage, message):
    damage(folder)
    with pytest.raises(ModelIncomplete, match=message) as caught:
        cutaway.load(folder, audit=False)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder, number):
    hf = tiny("llama")
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight[0, 0] = number
    message = r"model.layers.1.mlp.down_proj.weight holds 1 NaN or infinite numbers.*Load undamaged weights"
    with pytest.raises(ModelNotFinite, match=message):
        cutaway.load(hf)
    hf.save_pretrained(folder)
    with pytest.raises(ModelNotFinite, match=message):
        cutaway.load(folder)
    with pytest.raises(ModelNotFinite, match=message):
        cutaway.wrap(hf)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"'./nowhere': no such folder; check the path"),
        ("/nowhere/at/all", r"no such folder"),
        ("nobody/nothing", r"'nobody/nothing': not an embedded model .*check the id, your network, and HF_TOKEN"),
        (__file__, r"a file, not a folder; give the folder that holds config.json"),
    ],
)
def test_a_model_that_is_nowhere(name, message):
    with pytest.raises(ModelNotFound, match=message):
        cutaway.load(name)


def test_a_folder_without_tokenizer_takes_ids(tmp_path):
    tiny("gpt2").save_pretrained(tmp_path)
    model = cutaway.load(tmp_path, audit=False)
    assert model.tokenizer is None
    assert torch.equal(model.run(rows()).logits, loaded("gpt2").run(rows()).logits)


def test_a_model_in_training_mode_is_traced_given_back_and_not_run():
    hf = tiny("gpt2").train()
    hf.transformer.h[1].eval()
    modes = [m.training for m in hf.modules()]
    model = cutaway.load(hf)
    assert [m.training for m in hf.modules()] == modes
    for use in (
        lambda: model.run(rows()),
        lambda: model.generate(rows()),
        lambda: model.capture(rows(), ["z.1"]),
        lambda: model.grad(rows(), lambda logits: logits.sum(), ["z.1"]),
    ):
        with pytest.raises(
            ModelInTraining, match=r"training mode, so dropout would make runs random; call model.module.eval"
        ):
            use()
    hf.eval()
    hf.transformer.h[2].mlp.dropout.train()
    with pytest.raises(ModelInTraining):
        model.run(rows())
    hf.eval()
    assert torch.equal(model.run(rows()).logits, plain(model, model.encode(rows())).logits)


def test_importing_models_does_not_import_transformers():
    code = "import sys, cutaway.models, cutaway.engine; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_configuration_is_part_of_the_identity():
    one, other = (
        cutaway.load(tiny("llama", rope_parameters={"rope_type": "default", "rope_theta": t}), audit=False)
        for t in (1e4, 2e4)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.module.parameters(), other.module.parameters()))
    assert one.digest != other.digest
    assert (
        one.digest
        == cutaway.load(tiny("llama", rope_parameters={"rope_type": "default", "rope_theta": 1e4}), audit=False).digest
    )
    assert loaded("llama", "eager").digest == loaded("llama", "sdpa").digest


@pytest.mark.parametrize("source", ["", "  ", None, 3, ["gpt2"]])
def test_what_is_no_name_is_refused(source):
    with pytest.raises(UsageError, match=r"give an embedded name \(.*models list.*\), a folder, a hub id, or a module"):
        cutaway.load(source)


@pytest.mark.parametrize("name", ["no body/nothing", "a/b:c", "x" * 97, "what?"])
def test_what_can_be_no_hub_id_is_not_asked_for(name, monkeypatch):
    monkeypatch.setattr(sys.modules["cutaway.models.load"], "_hub_answers", None)
    with pytest.raises(ModelNotFound, match=r"nor a folder, and no hub id either, which is of the form owner/name"):
        cutaway.load(name)


def test_devices_and_dtypes_that_are_not_there(folder):
    for device in ("cudaa", "cuda:99", "cpu:x"):
        with pytest.raises(UsageError, match=rf"device '{device}': torch cannot use it here .*Here: cpu"):
            cutaway.load(folder, device=device)
    for dtype, near in (("float17", "float16"), ("torch.bfloat", "bfloat16"), ("int8", "float")):
        with pytest.raises(UnknownName, match=rf"dtype '{dtype}': no floating dtype of torch..*{near}"):
            cutaway.load(folder, dtype=dtype)
    assert cutaway.load(folder, dtype="torch.float64", audit=False).dtype == torch.float64
    assert cutaway.load(folder, dtype="auto", audit=False).dtype == torch.float32


def test_without_a_network_the_hub_is_asked_once():
    """In a process of its own: here, the hub is switched off."""
    code = """
import os, time
os.environ |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
import cutaway, transformers
from cutaway.errors import ModelNotFound
slept = []
time.sleep = slept.append
try:
    cutaway.load("nobody/nothing")
except ModelNotFound as error:
    print(len(slept), "check the id, your network" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True"]


class Sums(nn.Module):
    """A plain module: one matrix and a count."""

    def __init__(self, d_in: int, d_out: int = 2) -> None:
        super().__init__()
        self.weight = nn.Linear(d_in, d_out)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight(x)


NETWORK = "cutaway.zoo.networks.sums.Sums"


@pytest.fixture
def plain_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeded: None) -> Path:
    """A folder with a plain module that the package has: weights in bfloat16, one in float64."""
    home = types.ModuleType("cutaway.zoo.networks.sums")
    home.Sums, home.Imported = Sums, nn.Linear
    monkeypatch.setattr(Sums, "__module__", home.__name__)
    monkeypatch.setitem(sys.modules, home.__name__, home)
    state = Sums(3).state_dict() | {"seen": torch.tensor(7)}
    state["weight.bias"] = state["weight.bias"].double() / 3
    state["weight.weight"] = state["weight.weight"].bfloat16()
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"cutaway_module": NETWORK, "arguments": {"d_in": 3}}))
    return tmp_path


def test_a_plain_module_comes_as_wrap_gives_it(plain_folder):
    before = torch.get_rng_state()
    model = cutaway.load(plain_folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(model.module) is Sums
    assert model.name == str(plain_folder)
    assert model.anatomy is None
    assert not model.module.training
    stored = load_file(plain_folder / "model.safetensors")
    found = model.module.state_dict()
    assert found["weight.weight"].dtype == torch.float32
    assert torch.equal(found["weight.weight"], stored["weight.weight"].float())
    assert found["weight.bias"].dtype == torch.float64
    assert torch.equal(found["weight.bias"], stored["weight.bias"])
    assert found["seen"] == 7
    assert found["seen"].dtype == torch.int64
    assert model.digest == cutaway.wrap(model.module).digest
    assert cutaway.load(plain_folder, dtype="float64").dtype == torch.float64
    assert cutaway.load(plain_folder, dtype="auto", device="cpu").dtype == torch.float32
    with pytest.raises(UsageError, match=r"a plain module, which takes no tokenizer= and no device_map="):
        cutaway.load(plain_folder, tokenizer())
    with pytest.raises(UsageError, match=r"takes no tokenizer= and no device_map="):
        cutaway.load(plain_folder, device_map="cpu")


def configured(**changes):
    def damage(folder: Path) -> None:
        config = {"cutaway_module": NETWORK, "arguments": {"d_in": 3}, **changes}
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def stored_as(**changes):
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors") | changes
        kept = {name: value for name, value in tensors.items() if value is not None}
        save_file(kept, folder / "model.safetensors")

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            configured(cutaway_module="os.system"),
            r"'os.system', and only those of cutaway.zoo.networks are .*wrap\(modul",
        ),
        (configured(cutaway_module="cutaway.zoo.networksx.Sums"), r"only those of cutaway.zoo.networks are made"),
        (configured(cutaway_module=7), r"names the class 7, and only those"),
        (configured(cutaway_module="cutaway.zoo.networks.sums.Nothing"), r"this version of cutaway does not have"),
        (configured(cutaway_module="cutaway.zoo.networks.nowhere.Sums"), r"does not have; update cutaway"),
        (configured(cutaway_module="cutaway.zoo.networks.sums.Imported"), r"this version of cutaway does not have"),
        (configured(cutaway_module="cutaway.zoo.networks.sums.nn.Linear"), r"this version of cutaway does not have"),
        (configured(cutaway_module="cutaway.zoo.networks.Sums"), r"this version of cutaway does not have"),
        (configured(arguments={"n": 3}), r"Sums cannot be made from the arguments \{'n': 3\}.*TypeError"),
        (configured(arguments={"d_in": 4}), r"tensors of model.safetensors are not those of Sums .*size mismatch"),
        (stored_as(seen=None), r"not those of Sums .*Missing key.*seen.*restore the folder"),
        (stored_as(more=torch.zeros(2)), r"not those of Sums .*Unexpected key.*more"),
        (lambda f: shorten(f / "model.safetensors"), r"model.safetensors cannot be read .*; restore the folder"),
        (lambda f: (f / "model.safetensors").unlink(), r"no weights"),
    ],
)
def test_a_damaged_plain_folder_says_what_is_wrong(plain_folder, damage, message):
    damage(plain_folder)
    with pytest.raises(ModelIncomplete, match=message) as caught:
        cutaway.load(plain_folder)
    assert str(plain_folder) in str(caught.value)


def test_a_class_from_elsewhere_is_not_even_imported(plain_folder, monkeypatch):
    (plain_folder / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(plain_folder))
    configured(cutaway_module="trap.Trap")(plain_folder)
    with pytest.raises(ModelIncomplete, match=r"'trap.Trap', and only those of"):
        cutaway.load(plain_folder)
    assert "trap" not in sys.modules


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def relative(tmp_path: Path) -> Path:
    """A relative of a llama beside it: a delta in bfloat16, and two factors."""
    base = tmp_path / "base"
    tiny("llama").save_pretrained(base)
    tokenizer().save_pretrained(base)
    tiny("llama").config.save_pretrained(tmp_path / "kin")
    save_kin(tmp_path / "kin")
    return tmp_path / "kin"


def save_kin(folder: Path, base: str = "base", sha256: str = "", **changes: torch.Tensor | None) -> None:
    left, right = vector(56, seed=1)[:, None], vector(32, seed=2)[None]
    tensors = {f"{NORM}.delta": vector(32).bfloat16(), f"{UP}.left": left, f"{UP}.right": right} | changes
    sha256 = sha256 or file_digest(folder.parent / "base" / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, folder / "difference.safetensors", {"base": base, "base_sha256": sha256})


def test_a_relative_is_its_base_plus_the_difference(relative):
    model, base = cutaway.load(relative), cutaway.load(relative.parent / "base")
    wanted = base.module.state_dict()
    wanted[NORM] = wanted[NORM] + vector(32).bfloat16().float()
    wanted[UP] = wanted[UP] + vector(56, seed=1)[:, None] * vector(32, seed=2)
    assert type(model.module) is type(base.module)
    for name, value in model.module.state_dict().items():
        torch.testing.assert_close(value, wanted[name])
    assert not torch.equal(model.run(rows()).logits, base.run(rows()).logits)
    assert model.encode("t5 t6").row(0) == [1, 5, 6]
    assert model.module.generation_config is not None
    own = tokenizer(bos=False)
    assert cutaway.load(relative, own, audit=False).tokenizer is own
    assert cutaway.load(relative, dtype="bfloat16", audit=False).dtype == torch.bfloat16
    assert cutaway.load(relative, device_map={"": "cpu"}, audit=False).digest == model.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"base": "nobody"},
            r"a difference from 'nobody', which is neither beside it nor an embedded model; put the fol",
        ),
        ({"base": ""}, r"a difference from '', which is neither"),
        (
            {"base": "induction-2l"},
            r"a difference from other weights of 'induction-2l' than those in .*make the relative",
        ),
        ({"sha256": "0" * 64}, r"a difference from other weights of 'base' than those in"),
        ({"nothing.weight.delta": vector(3)}, r"changes 'nothing.weight', which its base 'base' does not have"),
        ({f"{NORM}.delta": vector(3)}, r"changes 'model.norm.weight' by \[3\], which is \[32\] in its base 'base'"),
        ({f"{UP}.left": vector(55)[:, None]}, r"changes '.*up_proj.weight' by \[55, 32\], which is \[56, 32\]"),
        ({f"{UP}.left": None}, r"'.*up_proj.weight.right' \[1, 32\], which is neither a delta nor one of two factors"),
        ({f"{UP}.right": None}, r"'.*up_proj.weight.left' \[56, 1\], which is neither a delta nor one of two factors"),
        ({f"{UP}.right": vector(64).view(2, 32)}, r"left' \[56, 1\], which is neither a delta nor one of two factors"),
        ({NORM: vector(32)}, r"'model.norm.weight' \[32\], which is neither a delta nor"),
    ],
)
def test_a_damaged_difference_says_what_is_wrong(relative, changes, message):
    save_kin(relative, **changes)
    with pytest.raises(ModelIncomplete, match=message) as caught:
        cutaway.load(relative)
    assert str(relative) in str(caught.value)


def test_a_broken_difference_is_named(relative):
    shorten(relative / "difference.safetensors")
    with pytest.raises(ModelIncomplete, match=r"difference.safetensors cannot be read .*restore the folder"):
        cutaway.load(relative)


def test_a_difference_that_its_card_was_not_written_for_is_refused(tmp_path):
    from cutaway.models import stored

    (tmp_path / stored.DIFFERENCE).write_bytes(b"other bytes")
    (tmp_path / "card.json").write_text(json.dumps({"files": {stored.DIFFERENCE: "0" * 64}}))
    with pytest.raises(ModelIncomplete, match=r"has the hash \w{12}, and its card was written for 0{12}; restore the"):
        stored.base_of(tmp_path, tmp_path)
    (tmp_path / "card.json").write_text(
        json.dumps({"files": {stored.DIFFERENCE: file_digest(tmp_path / stored.DIFFERENCE)}})
    )
    with pytest.raises(ModelIncomplete, match="cannot be read"):
        stored.base_of(tmp_path, tmp_path)
    own = Path(cutaway.__file__).parent / "zoo" / "weights" / "babel"
    assert stored.remedy(own).startswith("reinstall cutaway")


def test_missing_tensors_are_told_once_and_by_us(folder, capfd):
    drop_tensor(folder)
    with pytest.raises(ModelIncomplete, match="random numbers: download the weights again"):
        cutaway.load(folder, audit=False)
    assert capfd.readouterr().err == ""
