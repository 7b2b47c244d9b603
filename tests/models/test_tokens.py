"""Tokens: rows in a rectangle; positions count real tokens; padding is never read by accident."""

import pytest
import torch
from transformers import BloomConfig, GPT2Config, LlamaConfig, MambaConfig

from cutaway.engine import Run, plan
from cutaway.errors import OutOfRange, TokenizerUnfit, TokenNotSingle, UsageError
from cutaway.models import Model, Tokens
from cutaway.models.load import context_length
from cutaway.models.sites import Site, SiteSet, parse, sites, where
from cutaway.models.spans import Span, new, prompt
from tests.models.samples import loaded, rows, spoken, tokenizer


@pytest.mark.parametrize(("pad", "offsets"), [("left", (0, 3, 1)), ("right", (0, 0, 0))])
def test_positions_count_real_tokens(pad, offsets):
    tokens = loaded("gpt2").encode(rows((5, 2, 4)), pad=pad, roles={"subject": [3, 0, 2]})
    assert (tokens.lengths, tokens.offsets, tokens.width) == ((5, 2, 4), offsets, 5)
    assert [tokens.row(i) for i in range(3)] == rows((5, 2, 4))
    assert tokens.roles["end"] == (4, 1, 3)
    assert tokens.positions(-1) == tokens.positions("end") == [[4], [1], [3]]
    assert tokens.columns("subject") == [[3 + offsets[0]], [offsets[1]], [2 + offsets[2]]]
    assert tokens.position_ids[1].tolist() == ([0, 0, 0, 0, 1] if pad == "left" else [0, 1, 1, 1, 1])
    assert tokens.take([2, 0]).row(0) == tokens.row(2)
    assert tokens.repeat(2).lengths == (5, 2, 4, 5, 2, 4)


def test_equal_rows_are_equal_whatever_the_padding_holds():
    one = loaded("gpt2").encode(rows((5, 2)))
    other = Tokens(one.ids.masked_fill(~one.mask, 77), one.mask)
    assert one == other
    assert len({one, other}) == 1
    assert one != loaded("gpt2").encode(rows((5, 2)), pad="left")
    assert one != loaded("gpt2").encode(rows((5, 2)), roles={"subject": [0, 0]})


def test_text_is_encoded_by_the_tokenizers_habit():
    model = spoken("gpt2")
    assert model.encode("t5 t9").row(0) == [1, 5, 9]
    assert model.encode(["t5 t9", "t7"], bos=False).lengths == (2, 1)
    assert model.encode(["t5"], bos=True).row(0) == [1, 5]
    assert model.encode("t5 t7 t7").positions(where(lambda t: t == "t7")) == [[2, 3]]
    assert model.strings([5, 7]) == ["t5", "t7"]
    assert model.token_id("t44") == 44


def test_what_a_tokenizer_cannot_do_is_refused():
    silent = Model(loaded("gpt2").module, tokenizer(bos=False), loaded("gpt2").anatomy, "silent")
    assert silent.encode("t5 t9").row(0) == [5, 9]
    with pytest.raises(TokenizerUnfit, match=r"silent: the tokenizer has no BOS token; use bos=False, or set"):
        silent.encode("t5", bos=True)
    with pytest.raises(
        TokenizerUnfit, match=r"no tokenizer; give texts as lists of token ids, or load with tokenizer="
    ):
        loaded("gpt2").encode("t5")
    with pytest.raises(TokenNotSingle, match=r"'t5 t6' is 2 tokens here \(\['t5', 't6'\]\); give a text that is one"):
        silent.token_id("t5 t6")


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (
            lambda m: m.encode([[5, 99]]),
            UsageError,
            r"token id 99 in row 0: this model has 99 tokens \(0-98\); encode with",
        ),
        (lambda m: m.encode(torch.tensor([[5, 3], [4, 200]])), UsageError, r"token id 200 in row 1"),
        (lambda m: m.run(Tokens(torch.tensor([[-1]]), torch.tensor([[True]]))), UsageError, r"token id -1 in row 0"),
        (lambda m: m.encode([]), UsageError, "at least one row"),
        (lambda m: m.encode([[3], []]), UsageError, "at least one token in each"),
        (lambda m: m.encode([[3]], pad="middle"), UsageError, "pad='middle': padding goes 'left' or 'right'"),
        (
            lambda m: m.encode([[3, 4]], roles={"s": [2]}),
            UsageError,
            r"role 's': needs one position inside each of the 1",
        ),
        (lambda m: m.encode([[3, 4]], roles={"s": [0, 1]}), UsageError, r"got 2, outside: \[\]"),
        (
            lambda m: m.encode(m.encode([[3]]), roles={"s": [0]}),
            UsageError,
            "these are encoded already, with their own",
        ),
        (lambda m: m.encode([[3, 4]]).positions(2), OutOfRange, r"position 2: row 0 has 2 tokens \(0-1, or -1 to -2\)"),
        (lambda m: m.encode([[3]]).positions("subjct"), UsageError, r"position 'subjct': these inputs name \['end'\]"),
        (
            lambda m: Tokens(torch.ones(1, 3).long(), torch.tensor([[True, False, True]])),
            UsageError,
            "padding only before",
        ),
        (lambda m: Tokens(torch.ones(1, 3).long(), torch.zeros(1, 3).bool()), UsageError, "at least one real token"),
        (lambda m: m.run([[3]], logits="nowhere"), UsageError, "'nowhere'"),
        (lambda m: m.run([[3]], logits=((0,), (0,))), UsageError, "2 rows of positions for 1 rows"),
        (lambda m: m.run([[3]], logits=((1,),)), UsageError, "a position lies outside its row"),
        (lambda m: m.run([[3]], logits="none"), UsageError, "returns nothing: ask for reads, or for logits"),
    ],
)
def test_rows_that_mean_nothing_are_refused(use, error, message):
    with pytest.raises(error, match=message):
        use(loaded("gpt2"))


def test_padding_without_a_mask_is_refused():
    model = spoken("llama")
    ids = torch.tensor([[5, 6, 7], [0, 5, 6]])
    with pytest.raises(
        UsageError, match=r"row 1 begins with the padding id 0, and no mask was given.*pass encode.ids, mask="
    ):
        model.encode(ids)
    tokens = model.encode(ids, mask=ids != 0)
    assert tokens.lengths == (3, 2)
    assert torch.allclose(model.run(tokens).logits[1, 1:], model.run([[5, 6]]).logits[0], atol=1e-5)
    assert model.encode(ids[:1]).lengths == (3,)


LONG = {"gpt2": 64, "llama": 64, "bert": 64}


@pytest.mark.parametrize("family", LONG)
def test_rows_beyond_the_context_are_refused_before_anything_runs(family):
    model, limit = loaded(family), LONG[family]
    assert model.body.length == limit
    message = rf"row 1 has {limit + 1} tokens, and this model's configuration states a context of {limit}; shorten"
    long = rows((3, limit + 1))
    raw = Tokens(torch.tensor([long[1]] * 2), torch.ones(2, limit + 1).bool())
    for use in (
        lambda: model.run(long),
        lambda: model.capture(long, ["z.1"]),
        lambda: model.encode(long),
        lambda: model.grad(long, lambda logits: logits.sum(), ["z.1"]),
    ):
        with pytest.raises(OutOfRange, match=message) as caught:
            use()
        assert (caught.value.length, caught.value.limit) == (limit + 1, limit)
    with pytest.raises(OutOfRange, match=rf"row 0 has {limit + 1} tokens"):
        plan(model, [Run(raw, logits="end")])
    assert model.run(rows((limit,)), logits="end").logits.isfinite().all()


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (LlamaConfig(max_position_embeddings=512), 512),
        (
            LlamaConfig(
                max_position_embeddings=512, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
            ),
            2048,
        ),
        (
            LlamaConfig(
                max_position_embeddings=4096,
                rope_parameters={
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "rope_theta": 1e4,
                    "original_max_position_embeddings": 1024,
                },
            ),
            4096,
        ),
        (GPT2Config(n_positions=96), 96),
        (BloomConfig(), None),
        (MambaConfig(), None),
    ],
    ids=["llama", "linear", "yarn", "gpt2", "bloom", "mamba"],
)
def test_a_context_is_what_the_configuration_states(config, length):
    assert context_length(config) == length


def test_ids_are_whole_numbers():
    model = loaded("gpt2")
    for dtype in (torch.float32, torch.bool, torch.complex64):
        with pytest.raises(UsageError, match=f"a tensor of token ids holds whole numbers, not {dtype}"):
            model.encode(torch.ones(1, 3).to(dtype))
    assert model.encode(torch.ones(1, 3).to(torch.int32)).row(0) == [1, 1, 1]


def test_a_text_without_tokens_is_named():
    model = Model(loaded("gpt2").module, tokenizer(bos=False), loaded("gpt2").anatomy, "silent")
    with pytest.raises(UsageError, match=r"text '  ': it has no tokens"):
        model.encode(["t5", "  "])
    with pytest.raises(UsageError, match=r"text '': it has no tokens"):
        spoken("gpt2").encode("", bos=False)
    assert spoken("gpt2").encode("").row(0) == spoken("gpt2").encode("", bos=True).row(0) == [1]


def test_a_text_that_begins_with_the_first_token_gets_no_second_one():
    model = spoken("gpt2")
    for bos in (None, True):
        with pytest.raises(
            UsageError, match=r"'t1 t5': it begins with 't1', and the tokenizer adds one more; pass bos"
        ):
            model.encode("t1 t5", bos=bos)
    assert model.encode("t1 t5", bos=False).row(0) == [1, 5]
    assert model.encode("t5 t5").row(0) == [1, 5, 5]
    silent = Model(loaded("gpt2").module, tokenizer(bos=False), loaded("gpt2").anatomy, "silent")
    assert silent.encode("t1 t1 t5").row(0) == [1, 1, 5]


@pytest.mark.parametrize(
    ("text", "span", "found"),
    [
        ("prompt", prompt, [[0, 1, 2], [0, 1]]),
        ("new", new, [[3, 4, 5], [2]]),
        ("new[:2]", new[:2], [[3, 4], [2]]),
        ("new[1:]", new[1:], [[4, 5], []]),
        ("prompt[1:]", prompt[1:], [[1, 2], [1]]),
        ("prompt[-2:-1]", prompt[-2:-1], [[1], [0]]),
        ("prompt[-9:1]", prompt[-9:1], [[0], [0]]),
        ("2:5", Span("row", 2, 5), [[2, 3, 4], [2]]),
        ("-2:", Span("row", -2, None), [[4, 5], [1, 2]]),
        (":1", Span("row", None, 1), [[0], [0]]),
    ],
)
def test_a_span_is_a_slice_of_each_row(text, span, found):
    site = Site.parse(f"resid_post.1@{text}")
    assert site == sites.resid_post[1].at(span)
    assert str(site) == f"resid_post.1@{text}"
    assert str(parse(f"z.*.h*@{text}")) == f"z.*.h*@{text}"
    assert isinstance(parse(f"z.*@{text}"), SiteSet)
    for pad in ("left", "right"):
        tokens = loaded("gpt2").encode(rows((6, 3)), pad=pad, roles={"end": [2, 1]})
        assert tokens.positions(site.pos) == found
        assert tokens.columns(site.pos) == [[p + o for p in row] for row, o in zip(found, tokens.offsets)]


def test_slices_and_words_of_python_are_spans():
    site = sites.resid_post[1]
    assert site.at(slice(2, 5)).pos == Span("row", 2, 5)
    assert site.at("new").pos == new
    assert site.at("prompt").pos == prompt
    assert site.at("news").pos == "news"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: new[-2:], "nobody knows the last one yet"),
        (lambda: new[3:2], "it holds nothing"),
        (lambda: prompt[2:2], "it holds nothing"),
        (lambda: prompt[::2], "a span has no steps"),
        (lambda: prompt[3], "a slice is needed, as in prompt"),
        (lambda: prompt[1:][2:], "it is a slice already"),
        (lambda: prompt["a":], "is no whole number"),
        (
            lambda: Tokens(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3) > 0, {"new": (1,)}),
            "role 'new': this word",
        ),
    ],
)
def test_spans_that_mean_nothing_are_refused(build, message):
    with pytest.raises(UsageError, match=message):
        build()


def test_a_grown_row_is_the_row_that_was_built_whole():
    tokens = loaded("gpt2").encode(rows((4, 2)), pad="left")
    grown = tokens.grown(torch.tensor([7, 8]), [True, True]).grown(torch.tensor([9, 0]), [True, False])
    whole = Tokens(grown.ids, grown.mask, tokens.roles)
    assert grown == whole
    assert (grown.lengths, grown.offsets, grown.width) == (whole.lengths, whole.offsets, 6)
    assert torch.equal(grown.position_ids, whole.position_ids)
    assert [grown.row(r) for r in range(2)] == [[*tokens.row(0), 7, 9], [*tokens.row(1), 8]]
