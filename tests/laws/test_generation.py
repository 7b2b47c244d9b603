"""Law: the key/value cache changes the cost of generation, never a token, whatever is edited, and wherever."""

from functools import cache

import pytest
import torch

import cutaway
from cutaway import sites
from cutaway.errors import BadEdit, EditNeverApplied, OutOfRange, UsageError
from cutaway.models import Model, Tokens
from cutaway.models.sites import where
from tests.families import CAUSAL, tiny
from tests.models.samples import SMALL, built, loaded, rows, spoken, vector

NEW = 6  # beyond 4, Gemma-2's window has left the prompt behind
PROMPTS = (9, 6, 7)


def prompt(model: Model) -> Tokens:
    return model.encode(rows(PROMPTS), pad="left", roles={"subject": [1, 4, 3]})


def steered(model: Model, tokens: Tokens) -> dict[str, list]:
    other = model.encode(rows(PROMPTS, seed=2), roles={"subject": [2, 2, 2]})
    acts = model.capture(other, ["resid_post.0", "z.1", "k.1"])
    late, big = sites.resid_post[2], vector() * 6
    return {
        "all positions": [sites.resid_post[1].add(big)],
        "position of the prompt": [sites.resid_post[0].at(2).add(big)],
        "position of a new token": [late.at(10).add(big)],
        "from the prompt's end": [sites.resid_post[1].at(-2).add(big), late.at(-1).add(big)],
        "several from its end": [sites.resid_post[1].at([-1, -3]).add(big)],
        "role": [sites.resid_post[1].at("subject").add(big), late.at("end").add(big)],
        "tokens": [sites.resid_post[1].at(where(lambda t: int(t[1:]) % 3 == 0)).add(big)],
        "rows": [late.rows([1]).add(big)],
        "patch": [sites.resid_post[0].patch(acts)],
        "patch at the prompt's end": [sites.resid_post[0].at(-1).patch(acts)],
        "patch of a role and a head": [sites.resid_post[0].at("subject").patch(acts), sites.z[1].head(2).patch(acts)],
        "keys": [sites.k[1].head(0).scale(-3.0)],
        "keys at a position": [sites.k[1].at(3).scale(-9.0), sites.k[0].at(-1).scale(-9.0)],
        "values": [sites.v[1].scale(4.0), sites.v[2].at([1, 9]).zero()],
        "queries and heads": [sites.q[0].head(1).scale(3.0), sites.z[1].head([0, 3]).scale(-4.0)],
        "patterns": [sites.pattern[1].head(2).zero(), sites.scores[0].head(1).scale(2.0)],
        "middle": [sites.attn_write[1].scale(3.0), sites.mlp_out[1].scale(-2.0)],
    }


@pytest.mark.parametrize("edits", steered(spoken("gpt2"), prompt(spoken("gpt2"))))
@pytest.mark.parametrize("family", CAUSAL)
def test_cache_on_equals_cache_off(family, edits):
    fast, slow = generated(family, edits, True), generated(family, edits, False)
    assert fast == slow
    assert fast.width == max(PROMPTS) + NEW


@cache
def generated(family: str, edits: str, fast: bool) -> Tokens:
    model = spoken(family)
    tokens = prompt(model)
    chosen = steered(model, tokens)[edits] if edits else []
    return model.generate(tokens, chosen, max_new_tokens=NEW, cache=fast)


@pytest.mark.parametrize("edits", steered(spoken("gpt2"), prompt(spoken("gpt2"))))
def test_these_edits_change_what_is_generated(edits):
    changed = [family for family in CAUSAL if generated(family, edits, True) != generated(family, "", True)]
    assert changed, "the law would be empty"


@pytest.mark.parametrize("family", CAUSAL)
def test_without_edits_it_is_hugging_faces_generate(family):
    model = loaded(family)
    tokens = model.encode(rows(PROMPTS), pad="left")
    wanted = model.module.generate(
        tokens.ids, attention_mask=tokens.mask.long(), max_new_tokens=NEW, do_sample=False, eos_token_id=None
    )
    found = model.generate(tokens, max_new_tokens=NEW)
    assert torch.equal(found.ids, wanted)
    right = model.generate(model.encode(rows(PROMPTS), pad="right"), max_new_tokens=NEW)
    assert torch.equal(right.ids * right.mask, wanted * found.mask)


@pytest.mark.parametrize("family", CAUSAL)
def test_an_edited_batch_is_its_rows_one_by_one(family):
    model = loaded(family)
    edits = [sites.resid_post[1].at(-2).add(vector() * 6), sites.resid_post[2].at(8).add(vector() * 6)]
    together = model.generate(rows(PROMPTS), edits, max_new_tokens=NEW)
    for row, ids in enumerate(rows(PROMPTS)):
        assert together.row(row) == model.generate([ids], edits, max_new_tokens=NEW).row(0)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("family", CAUSAL)
def test_negative_positions_count_from_the_end_of_the_prompt(family, cache):
    model, site = loaded(family), sites.resid_post[2]

    def made(*positions) -> Tokens:
        edits = [site.at(p).replace(vector() * 6) for p in positions]
        return model.generate(rows([8]), edits, max_new_tokens=NEW, cache=cache)

    assert made(-1) == made(7) == made("end")
    assert made([-3, -1]) == made([5, 7]) != made([5, 7], 8, 9, 10)


def test_each_step_is_a_plain_run_of_what_is_there_so_far():
    model = loaded("llama")
    edits = [sites.resid_post[1].add(vector() * 6)]
    ids = rows([8])[0]
    for _ in range(NEW):
        ids = [*ids, int(model.run([ids], edits, logits="end").logits[0, 0].argmax())]
    assert model.generate(rows([8]), edits, max_new_tokens=NEW).row(0) == ids


def test_gemma2_is_edited_before_its_window():
    model = loaded("gemma2")
    assert model.module.config.sliding_window < min(PROMPTS)
    for site in (sites.resid_post[0].at(0), sites.k[1].at(1), sites.v[0].at(0)):
        edit = [site.add(torch.ones(2, 12) * 20 if site.kind != "resid_post" else vector() * 20)]
        fast = model.generate(rows(PROMPTS), edit, max_new_tokens=NEW)
        assert fast == model.generate(rows(PROMPTS), edit, max_new_tokens=NEW, cache=False)


@pytest.mark.parametrize("position", [15, 14, 40, [2, 40]])
@pytest.mark.parametrize("cache", [True, False])
def test_a_position_that_is_never_reached_is_an_error(position, cache):
    model = loaded("gpt2")
    with pytest.raises(EditNeverApplied, match=r"never reached; 14 positions \(0-13\).*generate more tokens"):
        model.generate(rows(PROMPTS), [sites.resid_post[1].at(position).zero()], max_new_tokens=NEW, cache=cache)
    model.generate(rows(PROMPTS), [sites.resid_post[1].at(13).zero()], max_new_tokens=NEW, cache=cache)


def test_what_cannot_be_generated_is_refused():
    model = loaded("gpt2")
    site = sites.resid_post[1]
    for edit, error, text in (
        (site.at(10).add(torch.ones(3)), BadEdit, r"shape \[3\], the selection takes \[32\]"),
        (site.at(-10).zero(), OutOfRange, "row 0 has 9 tokens"),
        (site.at("nobody").zero(), UsageError, r"'nobody'.*'end'"),
        (site.at(where(lambda t: True)).zero(), UsageError, "needs a tokenizer"),
    ):
        with pytest.raises(error, match=text):
            model.generate(rows(PROMPTS), [edit], max_new_tokens=NEW)
    with pytest.raises(UsageError, match=r"BertForMaskedLM does not predict next tokens.*use run"):
        loaded("bert").generate(rows(PROMPTS))
    for options, text in (
        ({"max_new_tokens": 0}, "max_new_tokens=0: at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0: 0 is greedy"),
        ({"temperature": 1.0}, "generator="),
    ):
        with pytest.raises(UsageError, match=text):
            model.generate(rows(PROMPTS), **options)


def test_the_prompt_is_left_as_it_was():
    model = loaded("gpt2")
    tokens = model.encode(rows(PROMPTS), pad="left")
    before, roles = tokens.digest, dict(tokens.roles)
    made = model.generate(tokens, [sites.resid_post[1].at(-1).zero()], max_new_tokens=2)
    assert dict(tokens.roles) == roles == dict(made.roles)
    assert model.encode(rows(PROMPTS), pad="left").digest == before


def test_a_row_that_stops_is_padded_and_the_others_go_on():
    model = loaded("gpt2")
    free = model.generate(rows(PROMPTS), max_new_tokens=NEW)
    stop = int(free.ids[1, -NEW + 1])
    made = model.generate(rows(PROMPTS), max_new_tokens=NEW, stop=stop)
    first = [(row, r.index(stop) if stop in r else NEW) for row, r in enumerate(free.ids[:, -NEW:].tolist())]
    for row, at in first:
        assert made.row(row) == free.row(row)[: PROMPTS[row] + at + 1]


def test_sampling_is_repeatable_and_draws_from_the_given_generator():
    model = loaded("gpt2")

    def sample(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return model.generate(rows([5]), max_new_tokens=NEW, temperature=1.0, generator=generator).row(0)

    assert sample(1) == sample(1)
    assert len({tuple(sample(seed)) for seed in range(5)}) > 1


def test_each_new_token_is_reported_once():
    seen: list[list[int]] = []
    model = loaded("gpt2")
    made = model.generate(rows(PROMPTS), max_new_tokens=3, on_token=lambda new: seen.append(new.tolist()))
    assert torch.tensor(seen).T.tolist() == made.ids[:, -3:].tolist()


UNCACHED = {
    "Mamba2ForCausalLM": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
        "chunk_size": 4,
    },
    "RwkvForCausalLM": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "attention_hidden_size": 32,
        "context_length": 64,
    },
    "OpenAIGPTLMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}


@pytest.mark.parametrize("name", UNCACHED)
def test_a_model_without_such_a_cache_generates_by_full_passes(name):
    module = built(name, **SMALL, **UNCACHED[name])
    model = cutaway.load(module)
    assert model.body.cached == "its forward takes no key/value cache"
    edits = [sites.resid_post[0].at(-2).add(vector() * 6)]
    for use in ([], edits):
        ids = rows([8])[0]
        made = model.generate([ids], use, max_new_tokens=NEW).row(0)
        for _ in range(NEW):
            fixed = [sites.resid_post[0].at(6).add(vector() * 6)] if use else []
            ids = [*ids, int(model.run([ids], fixed, logits="end").logits[0, 0].argmax())]
        assert made == ids


def test_a_cache_that_gives_other_tokens_is_not_used():
    model = cutaway.load(tiny("llama"), audit=False)
    assert model.body.cached == "not audited"
    assert model.generate(rows(PROMPTS), max_new_tokens=NEW) == generated_plain("llama")
    assert all(loaded(family).body.cached == "" for family in CAUSAL)

    hf = tiny("llama")
    hf.model.rotary_emb.register_forward_pre_hook(
        lambda m, args, kwargs: (
            ((args[0], args[1] * 0 if args[0].shape[1] == 1 else args[1]), {})
            if len(args) > 1
            else (args, {**kwargs, "position_ids": kwargs["position_ids"] * (0 if args[0].shape[1] == 1 else 1)})
        ),
        with_kwargs=True,
    )
    assert "a step with its cache changes the logits by" in cutaway.load(hf).body.cached


def generated_plain(family: str) -> Tokens:
    return loaded(family).generate(rows(PROMPTS), max_new_tokens=NEW)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generation_ends_where_the_context_does(family, cache):
    model = loaded(family)
    with pytest.raises(
        OutOfRange, match=r"60 tokens and 6 new ones need 65 positions.*context of 64; use max_new_tokens=5"
    ):
        model.generate(rows([60]), max_new_tokens=6, cache=cache)
    assert model.generate(rows([60]), max_new_tokens=5, cache=cache).width == 65
