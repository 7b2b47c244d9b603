"""Load: an embedded name, a local folder, a hub id or an in-memory model becomes a `Model`; any module can be
wrapped."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.errors import (
    ModelIncomplete,
    ModelNotFinite,
    ModelNotFound,
    SelfCheckFailed,
    UnknownName,
    UsageError,
    did_you_mean,
)
from cutaway.models import audit as auditing
from cutaway.models import stored
from cutaway.models.anatomy import Anatomy
from cutaway.models.examples import Example, example
from cutaway.models.forward import Raw
from cutaway.models.model import Model, raw_of, weights
from cutaway.models.resolve import Trace, find_body, gap, resolve, rounding
from cutaway.models.taps import first_output, watch
from cutaway.models.tokens import Tokens

EMBEDDED = Path(__file__).parent.parent / "zoo" / "weights"


def load(
    source: Any,
    tokenizer: Any = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    revision: str | None = None,
    audit: bool = True,
) -> Model:
    """A model from an embedded name, a local Hugging Face folder, a hub id, or a `PreTrainedModel` in memory.

    Embedded models that are no transformers come as `wrap` gives them: sites by module path, no audit.

    The module is Hugging Face's own and stays untouched: no weights are folded, no submodule is replaced, an in-memory
    model keeps its device, dtype and mode. `audit` proves the site map on the loaded weights (some twenty short
    forward passes); without it sites are 'structural'. A model that does not run on rows of token ids (images, sound,
    encoder-decoders) comes as `wrap(module, inputs=...)` gives it, watched on random inputs of its own shape.

    Raises ModelNotFound (with the nearest embedded name), ModelIncomplete for a folder that lacks files or tensors,
    ModelNotFinite for NaN or infinite weights, SelfCheckFailed for a model in which no body is found: `wrap` takes
    any.
    """
    if isinstance(source, nn.Module):
        if device is not None or dtype is not None or device_map is not None:
            raise UsageError(
                "device=, dtype= and device_map= choose how files are loaded; move or cast an in-memory model yourself"
            )
        return from_module(source, tokenizer, name=type(source).__name__, audit=audit)
    if not isinstance(source, str | os.PathLike) or not str(source).strip():
        raise UsageError(
            f"model {source!r}: give an embedded name (`cutaway models list` shows them), a folder, a hub id, or a "
            "module in memory"
        )
    name = os.fspath(source)
    device, dtype = _device(device), _dtype(dtype)
    where = _find(name)
    shown = name if EMBEDDED not in Path(where).parents else Path(where).name
    plain = stored.plain_config(Path(where))
    if plain is not None:
        if tokenizer is not None or device_map is not None:
            raise UsageError(f"model {shown!r}: a plain module, which takes no tokenizer= and no device_map=")
        to: Any = {"device": device, "dtype": None if dtype == "auto" else dtype}
        return wrap(stored.read_plain(Path(where), plain).to(**to), shown)
    offline = Path(where).is_dir() or not _hub_answers(where, revision)
    options = {"device": device, "dtype": dtype, "device_map": device_map, "revision": revision}
    module = _read_module(where, name, offline, **options)
    found = tokenizer if tokenizer is not None else _read_tokenizer(where, revision, offline)
    return from_module(module, found, name=shown, audit=audit)


def _device(device: Any) -> torch.device | None:
    """The device, or UsageError for one that torch does not know or this machine does not have."""
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        have = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        if torch.backends.mps.is_available():
            have += ", mps"
        raise UsageError(f"device {device!r}: torch cannot use it here ({_first_line(error)}). Here: {have}") from error
    return found


_DTYPES = ("bfloat16", "float16", "float32", "float64")


def _dtype(dtype: Any) -> Any:
    """The dtype, or UnknownName with the nearest; 'auto' is the files' own."""
    known = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    floats = sorted(name for name, value in known.items() if value.is_floating_point)
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    name = str(dtype).removeprefix("torch.")
    if name not in floats:
        raise UnknownName(f"dtype {dtype!r}: no floating dtype of torch.{did_you_mean(name, _DTYPES)}", name=name)
    return known[name]


def wrap(
    module: nn.Module, name: str | None = None, *, inputs: Any = None, body: str | None = None, audit: bool = True
) -> Model:
    """Any `nn.Module`, with sites by module path: `sites.module('encoder.layer.0', 'input')`. Runs take its own
    arguments.

    With `inputs` (an example of them: a tensor, a tuple, or a dict of keyword arguments; two rows or more) a body of
    residual blocks is looked for, and its sites have their names too (`resid_post.3`, `pattern.1`); positions are then
    counted in the body's own (patches of an image, frames of sound). `body` is the path below which to look, as in
    'encoder'; without it the body is the last stack of blocks with attention that runs, which is the decoder of an
    encoder-decoder and the text of a model that also sees. Everything else keeps its module sites. `audit` proves the
    identities of the body's sites on the example.

    Raises SelfCheckFailed when no such body is found, UnknownSite for a `body` that is no module.
    """
    shown = name or type(module).__name__
    _refuse_nan(module, shown)
    model = Model(module, None, None, shown)
    if inputs is None:
        if body is not None:
            raise UsageError("body= needs inputs=, an example of what the module takes")
        return model
    return _with_body(model, raw_of(inputs), body, audit=audit)


def _with_body(model: Model, given: Raw, body: str | None, *, audit: bool) -> Model:
    """The model with the anatomy of one body, traced and (when asked) audited on an example."""
    module = model.module
    if body is not None:
        model.submodule(body)
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        blocks = find_body(_watched(module, given, (0, 0)), module, body)
        if not blocks:
            raise _not_traced(module, "no list of blocks that pass a residual stream [batch pos d_model] on was found")
        shape = (int(blocks[0].value.shape[0]), int(blocks[0].value.shape[1]))
        head = _head(module)
        trace = _watched(module, given, shape)
        anatomy = resolve(trace, module, head=head, embedding=None, n_vocab=None, blocks=find_body(trace, module, body))
        why = "a wrapped module's output is what its own call returns: model.run(inputs).logits has it"
        refused = {**anatomy.refused, "logits": why, "embed": "a wrapped module names no token embedding"}
        model._anatomy = replace(
            anatomy, taps={k: v for k, v in anatomy.taps.items() if k == "final_norm"}, refused=refused
        )
        model.example = Example(given, shape)
        if audit:
            model._anatomy = auditing.audit_example(model, model.example)
    finally:
        for part in training:
            part.training = True
    return model


def _watched(module: nn.Module, given: Raw, shape: tuple[int, int]) -> Trace:
    interface = hasattr(getattr(module, "config", None), "_attn_implementation")
    try:
        return watch(module, lambda: module(*given.args, **given.kwargs), shape, with_attention=interface)
    except Exception as error:
        raise _not_traced(
            module, f"a pass on the example fails ({type(error).__name__}: {_first_line(error)})"
        ) from error


def _head(module: nn.Module) -> nn.Module | None:
    try:
        return module.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None


def from_module(module: nn.Module, tokenizer: Any, *, name: str, audit: bool) -> Model:
    """The model of a Hugging Face module: traced, resolved and (when asked) audited. One that does not run on token ids
    alone is wrapped, with the body that an example of its inputs shows."""
    _refuse_nan(module, name)
    given = None if runs_on_tokens(module) else example(module)
    if given is not None:
        return _with_body(Model(module, tokenizer, None, name), given, None, audit=audit)
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        model = Model(module, tokenizer, trace_anatomy(module), name)
        if audit:
            model._anatomy = auditing.audit(model)
    finally:
        for part in training:
            part.training = True
    return model


def runs_on_tokens(module: nn.Module) -> bool:
    """A decoder or an encoder of text, which `trace_anatomy` can watch."""
    config = getattr(module, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return False
    tokens = getattr(module, "main_input_name", "input_ids") == "input_ids"
    return tokens and not (hasattr(config, "vision_config") and _head(module) is None)


def trace_anatomy(module: nn.Module) -> Anatomy:
    """Resolve the anatomy from one short traced pass on random ids; two more passes say how tokens are numbered."""
    config = getattr(module, "config", None)
    embedding, head = _ends(module)
    ids = auditing.probe_ids(module, rows=3, length=7)
    model = Model(module, None, None, type(module).__name__)
    tokens = model.encode(ids)
    interface = hasattr(config, "_attn_implementation")
    out: list[Any] = []
    try:
        trace = watch(module, lambda: out.append(module(**model.inputs(tokens))), (3, 7), with_attention=interface)
        with torch.no_grad():
            plain = first_output(module(input_ids=tokens.ids.to(model.device)), "")[1]
            ours = {flag: _first(model, tokens, positions=flag) for flag in (True, False)}
    except Exception as error:
        raise _not_traced(
            module, f"a pass on token ids fails ({type(error).__name__}: {_first_line(error)})"
        ) from error
    weight = getattr(head, "weight", None) if head is not None else None
    n_vocab = int(weight.shape[0]) if isinstance(weight, Tensor) else getattr(embedding, "num_embeddings", None)
    anatomy = resolve(trace, module, head=head, embedding=embedding, n_vocab=n_vocab)
    _require_rows(module, anatomy, trace, tokens)
    positions = _positions(module, plain, ours)
    why = _no_logits(module, out[0], tokens, n_vocab, headless=head is None)
    if why:
        anatomy = replace(
            anatomy,
            refused={**anatomy.refused, "logits": why},
            taps={k: v for k, v in anatomy.taps.items() if k != "logits"},
        )
    return replace(anatomy, positions=positions, length=context_length(config, positions=positions))


def _first(model: Model, tokens: Tokens, *, positions: bool) -> Tensor:
    kwargs = model.inputs(tokens)
    if not positions:
        kwargs.pop("position_ids", None)
    return first_output(model.module(**kwargs), "")[1]


def _positions(module: nn.Module, plain: Tensor, ours: dict[bool, Tensor]) -> bool:
    """Stating positions gives what the module gives by itself; else leaving them out must."""
    off = {flag: gap(value, plain) for flag, value in ours.items()}
    stated = off[True] <= rounding(plain) or off[False] >= off[True] / 2
    if not off[stated] <= 8 * rounding(plain):
        raise SelfCheckFailed(
            f"{type(module).__name__}: a pass with a mask and positions gives other numbers than module(input_ids=...) "
            f"(off by {off[stated]:.2g}), so runs would be of another computation; use cutaway.wrap(module), which "
            "passes its inputs on as they are",
            model=type(module).__name__,
        )
    return stated


def _require_rows(module: nn.Module, anatomy: Anatomy, trace: Trace, tokens: Tokens) -> None:
    """The residual stream is laid out [batch pos d_model]."""
    for layer in anatomy.layers:
        found = next(tuple(call.output.shape) for call in trace.of(layer.block) if call.output is not None)
        if found[:2] != (len(tokens), tokens.width):
            raise _not_traced(
                module,
                f"its blocks work on {list(found)}, which is not [batch pos d_model] of {len(tokens)} rows of "
                f"{tokens.width} tokens",
            )


def _no_logits(module: nn.Module, out: Any, tokens: Tokens, n_vocab: int | None, *, headless: bool) -> str:
    """Why there are no scores of the vocabulary at every token; '' when there are."""
    logits, name = getattr(out, "logits", None), type(module).__name__
    if not isinstance(logits, Tensor):
        return f"{name} has no unembedding; load the class with a language-model head"
    if logits.ndim != 3 or tuple(logits.shape[:2]) != tuple(tokens.ids.shape):
        return (
            f"{name} returns scores of shape {list(logits.shape)}, one row a text and not one a token; load the class "
            "with a language-model head"
        )
    if headless and logits.shape[-1] != n_vocab:
        return f"{name} scores {logits.shape[-1]} labels, not the vocabulary; load the class with a language-model head"
    return ""


def context_length(config: Any, *, positions: bool = True) -> int | None:
    """Tokens that a row may have, as a configuration states it, with the stretch of its rotary positions."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("max_position_embeddings", "n_positions")
    found = next((n for name in names if isinstance(n := getattr(config, name, None), int) and n > 0), None)
    if found is None or getattr(config, "alibi", False):
        return None
    if not positions:  # such models number tokens from their padding id on
        return found - (getattr(config, "pad_token_id", None) or 0) - 1
    rope = getattr(config, "rope_parameters", None) or {}
    ropes = rope.values() if rope and all(isinstance(part, dict) for part in rope.values()) else [rope]
    return max([found, *(_stretched(part, found) for part in ropes)])


def _stretched(rope: dict[str, Any], trained: int) -> int:
    """Positions after scaling; of Llama 3 the configuration states them itself."""
    if rope.get("rope_type") not in ("linear", "dynamic", "yarn", "longrope") or not rope.get("factor"):
        return trained
    return int(rope["factor"] * (rope.get("original_max_position_embeddings") or trained))


def _ends(module: nn.Module) -> tuple[Any, Any]:
    """The token embedding, and the unembedding (None when there is none)."""
    try:
        embedding = module.get_input_embeddings()  # type: ignore[operator]
        head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        embedding, head = None, None
    if not hasattr(embedding, "num_embeddings"):
        raise _not_traced(module, "it has no token embedding")
    return embedding, head


def _not_traced(module: nn.Module, why: str) -> SelfCheckFailed:
    name = type(module).__name__
    return SelfCheckFailed(
        f"{name}: {why}, so its sites cannot be found by watching it; use cutaway.wrap(module) and address modules by "
        "path, as in sites.module('encoder.0')",
        model=name,
    )


# -- files


def embedded_names() -> list[str]:
    """Names of the models that ship with the package."""
    return (
        sorted(path.name for path in EMBEDDED.iterdir() if (path / "config.json").exists()) if EMBEDDED.exists() else []
    )


def _find(name: str) -> str:
    folder = Path(name).expanduser()
    if name in embedded_names():
        return str(EMBEDDED / name)
    if folder.is_dir():
        _check_folder(folder)
        return str(folder)
    if folder.exists():
        raise ModelNotFound(
            f"model {name!r}: a file, not a folder; give the folder that holds config.json and the weights", name=name
        )
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    if looks_local:
        raise ModelNotFound(
            f"model {name!r}: no such folder; check the path, it needs config.json and weights", name=name
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or len(name) > 96:
        raise ModelNotFound(
            f"model {name!r}: neither an embedded model (`cutaway models list` shows them) nor a folder, and no hub id "
            "either, which is of the form owner/name",
            name=name,
        )
    if "/" not in name and did_you_mean(name, embedded_names()).startswith(" Did"):
        raise ModelNotFound(f"model {name!r}: not an embedded model.{did_you_mean(name, embedded_names())}", name=name)
    return name


def _check_folder(folder: Path) -> None:
    """Files that a model needs, and shards that an index promises."""
    if not (folder / "config.json").exists():
        raise ModelIncomplete(
            f"model {folder}: config.json is missing; download the whole repository again", missing=["config.json"]
        )
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelIncomplete(
                f"model {folder}: {index.name} is broken ({_first_line(error)}); download it again",
                missing=[index.name],
            ) from error
        missing = sorted(shard for shard in shards if not (folder / shard).exists())
        if missing:
            raise ModelIncomplete(
                f"model {folder}: {len(missing)} of {len(shards)} shards of the index are missing "
                f"({', '.join(missing[:3])}); the download is incomplete: fetch them again",
                missing=missing,
            )
    elif not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        raise ModelIncomplete(
            f"model {folder}: no weights (*.safetensors); the download is incomplete: fetch them again",
            missing=["model.safetensors"],
        )


def _read_module(where: str, name: str, offline: bool, **options: Any) -> nn.Module:
    from transformers import AutoConfig

    local = Path(where).is_dir()
    options = {key: value for key, value in options.items() if value is not None}
    device = options.pop("device", None)
    pinned = {"revision": options["revision"]} if "revision" in options else {}
    # a tensor that the files lack would be drawn at random
    with _named_errors(name, where), no_bars(), _no_report(), torch.random.fork_rng(devices=[]):
        config = AutoConfig.from_pretrained(where, local_files_only=offline, **pinned)
        if local and stored.is_relative(Path(where)):
            state = stored.read_relative(Path(where), stored.base_of(Path(where), EMBEDDED))
            cls = _auto_class(config)
            cls = cls._model_mapping[type(config)] if hasattr(cls, "_model_mapping") else cls
            module, info = cls.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True, **options
            )
            module.config.name_or_path = where
        else:
            module, info = _auto_class(config).from_pretrained(
                where, local_files_only=offline, output_loading_info=True, **options
            )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelIncomplete(
            f"model {name!r}: {len(missing)} tensors are not in the files ({', '.join(missing[:3])}); they would be "
            f"random numbers: {_again(where, 'the weights')}",
            missing=missing,
        )
    return module.to(device) if device is not None else module


def _hub_answers(name: str, revision: str | None) -> bool:
    """One quick question to the hub, so that without a network nothing is tried again and again; then only files that
    were downloaded before count."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=10)
    except HfHubHTTPError:
        return True  # it answered; what it said is read from the real request
    except Exception:  # noqa: BLE001 - whatever its network library raises, there was no answer
        return False
    return True


@contextmanager
def _named_errors(name: str, where: str) -> Iterator[None]:
    """What reading a model's files raises, as errors that say what to do."""
    from safetensors import SafetensorError

    local = Path(where).is_dir()
    try:
        yield
    except SafetensorError as error:
        raise ModelIncomplete(
            f"model {name!r}: a weight file is broken or half-downloaded ({error}); {_again(where, 'it')}", missing=[]
        ) from error
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ModelIncomplete(
            f"model {name!r}: its weights do not fit its config.json ({_first_line(error)}); {_again(where, 'both')}",
            missing=[],
        ) from error
    except (OSError, ValueError, KeyError) as error:
        if local:
            raise ModelIncomplete(
                f"model {name!r}: the folder cannot be read ({_first_line(error)}); {_again(where, 'it')}", missing=[]
            ) from error
        raise ModelNotFound(
            f"model {name!r}: not an embedded model (`cutaway models list` shows them), not a folder, and the hub "
            f"did not give it ({_first_line(error)}); check the id, your network, and HF_TOKEN for a gated model",
            name=name,
        ) from error


def _again(where: str, what: str) -> str:
    """What to do about files that are not as they must be."""
    return (
        "reinstall cutaway, whose own files these are" if EMBEDDED in Path(where).parents else f"download {what} again"
    )


@contextmanager
def _no_report() -> Iterator[None]:
    """transformers writes no table of missing tensors while this is open: our error says it."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def no_bars() -> Iterator[None]:
    """transformers draws no progress bar while this is open; the user's setting is put back."""
    from transformers.utils import logging

    # transformers' own switch alone: its public functions also turn the hub's, which an environment variable may hold
    shown = logging._tqdm_active
    logging._tqdm_active = False
    try:
        yield
    finally:
        logging._tqdm_active = shown


def _auto_class(config: Any) -> Any:
    """The class that the files were saved from, when transformers knows it with a head; else causal, masked, or
    bare."""
    import transformers

    for name in getattr(config, "architectures", None) or []:
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    if type(config) in transformers.AutoModelForCausalLM._model_mapping:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModel


_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def _read_tokenizer(where: str, revision: str | None, offline: bool) -> Any:
    """The tokenizer beside the weights; a relative without one has its base's; else None (rows of ids still work)."""
    from transformers import AutoTokenizer

    local = Path(where).is_dir()
    if local and not any((Path(where) / name).exists() for name in _VOCABULARIES):
        if stored.is_relative(Path(where)):
            return _read_tokenizer(str(stored.base_of(Path(where), EMBEDDED)), None, offline)
        return None
    try:
        return AutoTokenizer.from_pretrained(
            where, local_files_only=offline, **({"revision": revision} if revision else {})
        )
    except (OSError, ValueError) as error:
        raise ModelIncomplete(
            f"tokenizer of {where}: it cannot be read ({_first_line(error)}); {_again(where, 'it')}, or pass "
            "tokenizer=",
            missing=["tokenizer"],
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _refuse_nan(module: nn.Module, name: str) -> None:
    names = {key for key, _ in module.named_parameters()}
    for key, tensor in weights(module):
        bad = ~tensor.isfinite() if key in names else tensor.isnan()  # a buffer may hold the limits of a range
        if tensor.is_floating_point() and bool(bad.any()):
            count = int(bad.sum())
            raise ModelNotFinite(
                f"model {name!r}: {key} holds {count} NaN or infinite numbers; every result would be NaN. Load "
                "undamaged weights",
                tensor=key,
                count=count,
            )
