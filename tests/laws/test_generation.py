"""Law: the key/value cache changes the cost of generation, never a token, whatever is edited, and wherever."""

import threading
from functools import cache

import pytest
import torch

import cutaway
from cutaway import sites
from cutaway.errors import BadEdit, EditFailed, EditNeverApplied, OutOfRange, UsageError
from cutaway.models import Model, Tokens, stream
from cutaway.models.conditions import Condition
from cutaway.models.sites import where
from cutaway.models.spans import new as NEW_TOKENS
from cutaway.models.spans import prompt as PROMPT
from tests.families import CAUSAL, tiny
from tests.models.samples import SMALL, built, loaded, rows, spoken, vector

NEW = 6  # beyond 4, Gemma-2's window has left the prompt behind
PROMPTS = (9, 6, 7)


def prompt(model: Model) -> Tokens:
    return model.encode(rows(PROMPTS), pad="left", roles={"subject": [1, 4, 3]})


def probe(rule: str) -> Condition:
    """Fires at about half of the tokens of random models."""
    return Condition(sites.resid_post[0], vector(seed=7), rule=rule)


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
        "prompt": [sites.resid_post[1].at("prompt").add(big), late.at(PROMPT[-3:]).add(big)],
        "new tokens": [sites.resid_post[1].at("new").add(big), late.at(NEW_TOKENS[1:3]).add(-big)],
        "spans": [sites.resid_post[1].at(slice(4, 9)).add(big), late.at(slice(-2, None)).add(big)],
        "keys of new tokens": [sites.k[1].at("new").scale(-9.0), sites.v[0].at(slice(3, None)).scale(5.0)],
        "a probe a token": [late.add(big * 2).when(probe("token"))],
        "a probe at the end": [
            late.at("new").add(big * 2).when(probe("end")),
            sites.k[1].scale(-9.0).when(probe("end")),
        ],
        "a probe in the prompt": [
            sites.k[1].scale(-9.0).when(probe("prompt")),
            late.add(big * 2).when(probe("prompt")),
        ],
        "keys by a probe a token": [sites.k[1].scale(-9.0).when(probe("token"))],
        "a probe at its own site": [sites.resid_post[1].add(big).when(Condition(sites.resid_post[1], vector()))],
        "along a direction": [late.at("new").clamp(5.0, along=big), sites.resid_post[0].project_out(vector(seed=6))],
        "the same length": [sites.resid_post[1].add(big).keeping_norm()],
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
    return model.generate(tokens, chosen, max_new_tokens=NEW, cache=fast, stop=())


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
        edits = [site.at(p).fill(vector() * 6) for p in positions]
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


@pytest.mark.parametrize("position", [15, 11, 40, [2, 40]])
@pytest.mark.parametrize("cache", [True, False])
def test_a_position_that_is_never_reached_is_an_error(position, cache):
    model = loaded("gpt2")
    with pytest.raises(EditNeverApplied, match=r"of row [01] is never reached; 1[14] positions .*generate more tokens"):
        model.generate(rows(PROMPTS), [sites.resid_post[1].at(position).zero()], max_new_tokens=NEW, cache=cache)
    model.generate(rows(PROMPTS), [sites.resid_post[1].at(10).zero()], max_new_tokens=NEW, cache=cache)
    model.generate(rows(PROMPTS), [sites.resid_post[1].rows([0]).at(13).zero()], max_new_tokens=NEW, cache=cache)


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
        ({"temperature": 1.0}, "needs seed="),
        ({"temperature": float("nan"), "seed": 1}, "temperature=nan"),
        ({"temperature": 1.0, "seed": -1}, "seed=-1"),
        ({"temperature": 1.0, "seed": 1, "top_k": 0}, "top_k=0: at least 1"),
        ({"temperature": 1.0, "seed": 1, "top_p": 1.5}, "top_p=1.5: a probability"),
        ({"temperature": 1.0, "seed": 1, "n_samples": 0}, "n_samples=0"),
        ({"top_k": 5}, "temperature=0 is greedy: top_k=5"),
        ({"n_samples": 2}, "n_samples=2 would change nothing"),
        ({"stop": "x"}, "without a tokenizer there is no text"),
        ({"stop": [""]}, "'' is neither a token id nor a text"),
        ({"on_text": print}, "without a tokenizer there is none"),
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
        return model.generate(rows([5]), max_new_tokens=NEW, temperature=1.0, seed=seed).row(0)

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


# -- parts of the row


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", CAUSAL)
def test_a_rule_means_the_same_in_a_run_over_the_finished_text(family, pad):
    """Each new token is the best one of a plain run, with the same edits, over what had been written before it."""
    model = loaded(family)
    site, big = sites.resid_post[1], vector() * 6
    rules = ["prompt", "new", NEW_TOKENS[1:3], PROMPT[-2:], slice(3, 8), slice(7, None)]
    for rule in rules:
        edits = [site.at(rule).add(big)]
        made = model.generate(model.encode(rows(PROMPTS), pad=pad), edits, max_new_tokens=4)
        found = model.run(made, edits).logits.argmax(-1)
        for row, n in enumerate(PROMPTS):
            ends = made.offsets[row] + n
            assert found[row, ends - 1 : ends + 3].tolist() == made.row(row)[n:], str(rule)


def test_every_position_of_the_prompt_and_then_none():
    """An edit of the prompt leaves its keys and values behind, as one of these positions by their numbers does."""
    model, site = loaded("llama"), sites.resid_post[1]
    prompts, big = rows((8,)), vector() * 6
    by_number = model.generate(prompts, [site.at(range(8)).add(big)], max_new_tokens=NEW)
    assert model.generate(prompts, [site.at("prompt").add(big)], max_new_tokens=NEW) == by_number
    assert model.generate(prompts, [site.add(big)], max_new_tokens=NEW) != by_number
    both = [site.at("prompt").add(big), site.at("new").add(big)]
    assert model.generate(prompts, both, max_new_tokens=NEW) == model.generate(
        prompts, [site.add(big)], max_new_tokens=NEW
    )


def test_going_on_from_a_text_is_writing_it_at_once():
    model = loaded("llama")
    edits = [sites.resid_post[1].at("new").add(vector() * 6), sites.resid_post[2].at(PROMPT[1:3]).add(vector() * 6)]
    whole = model.generate(rows(PROMPTS), edits, max_new_tokens=NEW)
    half = model.generate(rows(PROMPTS), edits, max_new_tokens=NEW // 2)
    assert model.generate(half, edits, max_new_tokens=NEW - NEW // 2) == whole


@pytest.mark.parametrize(
    ("rule", "n_new"), [("new", 1), (NEW_TOKENS[5:], 6), (slice(15, 20), NEW), (PROMPT[12:14], NEW)]
)
def test_a_span_that_is_never_reached_is_an_error(rule, n_new):
    with pytest.raises(EditNeverApplied, match=r"selects no token that is ever reached; \d+ positions"):
        loaded("gpt2").generate(rows(PROMPTS), [sites.resid_post[1].at(rule).zero()], max_new_tokens=n_new)


def test_a_run_over_a_prompt_has_no_new_tokens():
    with pytest.raises(EditNeverApplied, match="selects no token of these 3 rows"):
        loaded("gpt2").run(rows(), [sites.resid_post[1].at("new").zero()])


# -- conditions


@pytest.mark.parametrize("rule", ["token", "end", "prompt"])
@pytest.mark.parametrize("where", ["prompt", "new", None])
def test_a_threshold_of_minus_infinity_is_no_condition_and_of_infinity_no_edit(rule, where):
    model = loaded("llama")
    edit = sites.resid_post[1].at(where).add(vector() * 6)

    def made(threshold: float) -> Tokens:
        when = Condition(sites.resid_post[0], vector(seed=7), threshold, rule=rule)
        return model.generate(rows(PROMPTS), [edit.when(when)], max_new_tokens=NEW)

    assert made(float("-inf")) == model.generate(rows(PROMPTS), [edit], max_new_tokens=NEW)
    assert made(float("inf")) == model.generate(rows(PROMPTS), max_new_tokens=NEW) != made(float("-inf"))


@pytest.mark.parametrize("family", CAUSAL)
def test_a_condition_decides_by_row_and_a_batch_is_its_rows(family):
    model, site = loaded(family), sites.resid_post[2]
    scores = model.capture(rows(PROMPTS), ["resid_post.0"])["resid_post.0"] @ vector(seed=7)
    ends = [float(scores[row, n - 1]) for row, n in enumerate(PROMPTS)]
    middle = sum(sorted(ends)[1:]) / 2  # one row of three is over it
    when = Condition(sites.resid_post[0], vector(seed=7), middle, rule="end")
    edit = site.at("new").add(vector() * 30)
    made = model.generate(rows(PROMPTS), [edit.when(when)], max_new_tokens=NEW)
    always, never = (model.generate(rows(PROMPTS), use, max_new_tokens=NEW) for use in ([edit], []))
    for row, score in enumerate(ends):
        assert made.row(row) == (always if score > when.threshold else never).row(row)
        alone = model.generate([rows(PROMPTS)[row]], [edit.when(when)], max_new_tokens=NEW)
        assert alone.row(0) == made.row(row)
    assert any(always.row(row) != never.row(row) for row in range(3))


# -- sampling


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.8}, {}])
def test_draws_are_cut_as_hugging_face_cuts_them(options):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    from cutaway.models.sampling import Sampling

    logits = torch.randn(4, 99, generator=torch.Generator().manual_seed(0)) * 3
    wanted = TemperatureLogitsWarper(0.7)(None, logits.double())
    if "top_k" in options:
        wanted = TopKLogitsWarper(options["top_k"])(None, wanted)
    if "top_p" in options:
        wanted = TopPLogitsWarper(options["top_p"])(None, wanted)
    sampling = Sampling(temperature=0.7, seed=0, **options)
    assert torch.allclose(sampling.probabilities(logits), wanted.softmax(-1), atol=1e-12)
    draws = torch.cat([Sampling(temperature=0.7, seed=s, **options).choose(logits, _chances(s)) for s in range(400)])
    shares = torch.bincount(draws[::4], minlength=99) / 400
    assert float((shares - sampling.probabilities(logits)[0]).abs().max()) < 0.1
    assert bool((sampling.probabilities(logits)[0][draws[::4]] > 0).all())


def _chances(seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed)] * 4


def test_samples_do_not_depend_on_the_batch():
    model = loaded("llama")
    edits = [sites.resid_post[1].at("new").rows([1]).add(vector() * 6)]
    options = {"max_new_tokens": NEW, "temperature": 1.5, "seed": 7}
    made = model.generate(rows(PROMPTS), edits, n_samples=3, **options)
    assert made.lengths == tuple(n + NEW for n in PROMPTS for _ in range(3))
    for row in range(3):
        use = [sites.resid_post[1].at("new").add(vector() * 6)] if row == 1 else []
        alone = model.generate([rows(PROMPTS)[row]], use, n_samples=3, **options)
        assert [made.row(3 * row + s) for s in range(3)] == [alone.row(s) for s in range(3)]
        assert alone.row(0) == model.generate([rows(PROMPTS)[row]], use, **options).row(0)
    assert len({tuple(made.row(s)) for s in range(3)}) == 3


# -- beside others


def test_between_two_pieces_the_model_is_the_plain_one():
    hf = tiny("llama")
    model = Model(hf, spoken("llama").tokenizer, cutaway.load(hf).anatomy, "llama")
    tokens = model.encode(rows(PROMPTS))
    edits = [sites.resid_post[1].add(vector() * 6), sites.pattern[1].head(1).zero()]
    clean = model.module(input_ids=tokens.ids).logits
    inside = []

    def look(_: object) -> None:
        inside.append(torch.equal(model.module(input_ids=tokens.ids).logits, clean))
        inside.append(torch.equal(model.run(tokens).logits, model.run(tokens).logits))

    made = model.generate(tokens, edits, max_new_tokens=4, on_token=look, on_text=look)
    assert made == model.generate(tokens, edits, max_new_tokens=4)
    pieces = stream(model, tokens, edits, max_new_tokens=4)
    for piece in pieces:
        look(piece)
    assert len(inside) >= 16
    assert all(inside)


def test_a_stream_that_is_left_leaves_nothing_behind():
    model = spoken("gpt2")
    before = [len(m._forward_hooks) for m in model.module.modules()]
    pieces = stream(model, ["t5 t9"], [sites.resid_post[1].add(vector())], max_new_tokens=9)
    assert next(pieces).row == 0
    assert [len(m._forward_hooks) for m in model.module.modules()] != before
    pieces.close()
    assert [len(m._forward_hooks) for m in model.module.modules()] == before


def test_an_exception_in_the_middle_leaves_nothing_behind():
    model = loaded("llama")
    plain = model.run(rows()).logits
    calls = []

    def third(value: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("mine")
        return value

    with pytest.raises(EditFailed, match="mine"):
        model.generate(rows(), [sites.resid_post[1].apply(third), sites.z[0].head(0).zero()], max_new_tokens=NEW)
    with pytest.raises(KeyboardInterrupt):
        model.generate(rows(), [sites.resid_post[1].zero()], max_new_tokens=NEW, on_token=_interrupted)
    assert torch.equal(model.run(rows()).logits, plain)


def _interrupted(_: object) -> None:
    raise KeyboardInterrupt


def test_another_thread_sees_the_plain_model():
    model = loaded("llama")
    tokens = model.encode(rows())
    clean, found = model.module(input_ids=tokens.ids).logits, []
    inside, done = threading.Event(), threading.Event()

    def wait(value: torch.Tensor) -> torch.Tensor:
        inside.set()
        assert done.wait(20)
        return value * 1.0

    edits = [sites.resid_post[0].add(vector() * 6), sites.pattern[1].head(1).zero(), sites.resid_post[1].apply(wait)]
    thread = threading.Thread(target=lambda: found.append(model.generate(tokens, edits, max_new_tokens=3)))
    thread.start()
    assert inside.wait(20)
    beside = model.module(input_ids=tokens.ids).logits
    done.set()
    thread.join(20)
    assert torch.equal(beside, clean)
    assert found == [model.generate(tokens, edits[:2], max_new_tokens=3)]
