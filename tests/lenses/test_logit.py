"""Laws of the logit lens: the last state is the model; every state is read by the model's own norm and unembedding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway.errors import OutOfRange, UnknownName, UsageError, WrongModel
from cutaway.lenses import LogitLens, logit_lens
from cutaway.models import Model, load, sites
from tests.families import FAMILIES, tiny
from tests.patching.pairs import loaded, token_batch, token_task

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return loaded("gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_state_is_the_model(family: str) -> None:
    model = loaded(family)
    batch = token_batch(model, lengths=(7, 5))
    lens = logit_lens(model, batch, k=3)
    with torch.no_grad():
        logits = model.module(input_ids=batch.clean.ids, attention_mask=batch.clean.mask.long()).logits
    ends = torch.tensor(batch.clean.roles["end"])
    own = logits[torch.arange(6), ends].log_softmax(-1)
    answers, foils = (torch.tensor([words[0] for words in found]) for found in (batch.answers, batch.foils))
    torch.testing.assert_close(
        lens.difference[-1], own.gather(1, answers[:, None])[:, 0] - own.gather(1, foils[:, None])[:, 0], **CLOSE
    )
    torch.testing.assert_close(lens.probability[-1], own.exp().gather(1, answers[:, None])[:, 0], **CLOSE)
    assert torch.equal(lens.top_ids[-1], own.topk(3).indices)
    torch.testing.assert_close(lens.top_probabilities[-1], own.exp().topk(3).values, **CLOSE)
    assert lens.labels == ("resid_pre.0", "resid_post.0", "resid_post.1", "resid_post.2")
    assert (lens.difference[0] - lens.difference[-1]).abs().min() > 1e-4


def by_hand(model: Model, state: Tensor) -> Tensor:
    """Final norm, unembedding and soft-cap of two families, written out."""
    module: Any = model.module
    with torch.no_grad():
        if hasattr(module, "transformer"):
            return module.lm_head(module.transformer.ln_f(state))
        cap = module.config.final_logit_softcapping
        return cap * torch.tanh(module.lm_head(module.model.norm(state)) / cap)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_every_state_is_read_by_the_models_own_parts(family: str) -> None:
    model = loaded(family)
    batch = token_batch(model, lengths=(7, 4))
    wanted = [sites.resid_pre[0], sites.resid_mid[1], sites.resid_post[1]]
    lens = logit_lens(model, batch, wanted, position="subject", on="corrupt")
    acts = model.capture(batch.corrupt, wanted)
    for i, site in enumerate(wanted):
        logits = by_hand(model, acts[site.at("subject")])
        expected = [row[answer[0]] - row[foil[0]] for row, answer, foil in zip(logits, batch.answers, batch.foils)]
        torch.testing.assert_close(lens.difference[i], torch.stack(expected), **CLOSE)
    assert lens.difference.abs().min() > 1e-5
    assert (lens.position, lens.on) == ("subject", "corrupt")


def test_an_index_is_a_position(gpt2: Model) -> None:
    batch = token_batch(gpt2, lengths=(7, 5))
    assert torch.equal(
        logit_lens(gpt2, batch, position=-1).difference, logit_lens(gpt2, batch, position="end").difference
    )
    assert not torch.equal(logit_lens(gpt2, batch, position=0).difference, logit_lens(gpt2, batch).difference)


def test_answers_of_several_tokens_are_read_at_their_first(gpt2: Model) -> None:
    long = token_batch(gpt2, n=4, metric="logprob_diff", d_answer=3)
    lens = logit_lens(gpt2, long)
    with torch.no_grad():
        logits = gpt2.module(input_ids=long.clean.ids[:4, :7]).logits[:, -1]
    expected = [row[answer[0]] - row[foil[0]] for row, answer, foil in zip(logits, long.answers, long.foils)]
    torch.testing.assert_close(lens.difference[-1], torch.stack(expected), **CLOSE)


def test_the_table(gpt2: Model) -> None:
    lens = logit_lens(gpt2, token_task(gpt2))
    row = lens.table()[-1]
    assert row["site"] == "resid_post.2"
    assert row["difference"] == pytest.approx(lens.difference[-1].mean().item())
    assert row["prefers_answer"] == pytest.approx((lens.difference[-1] > 0).float().mean().item())
    assert 1 / 6 <= row["commonest_share"] <= 1
    assert len(lens.table()) == len(lens) == 4


def test_a_saved_lens_comes_back(gpt2: Model, tmp_path: Path) -> None:
    lens = logit_lens(gpt2, token_task(gpt2))
    lens.save(tmp_path / "l.safetensors")
    back = LogitLens.load(tmp_path / "l.safetensors", gpt2)
    assert torch.equal(back.difference, lens.difference)
    assert torch.equal(back.top_ids, lens.top_ids)
    assert (back.labels, back.texts, back.ids, back.provenance) == (lens.labels, lens.texts, lens.ids, lens.provenance)
    with pytest.raises(WrongModel, match=r"l\.safetensors"):
        LogitLens.load(tmp_path / "l.safetensors", load(tiny("gpt2", seed=1)))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"sites": "z.0"}, UsageError, "residual states"),
        ({"sites": "resid_post.0@end"}, UsageError, "position="),
        ({"on": "dirty"}, UnknownName, "clean"),
        ({"position": "sujet"}, UsageError, "subject"),
        ({"position": 12}, OutOfRange, "12"),
        ({"k": 0}, OutOfRange, "k=0"),
    ],
)
def test_wrong_requests_say_what_to_do(gpt2: Model, options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        logit_lens(gpt2, token_task(gpt2), **options)
