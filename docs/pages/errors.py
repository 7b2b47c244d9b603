"""The page of all errors: each leaf of the tree, its meaning, an example that is run for its message, the remedy."""

import inspect
import re
import tempfile
from contextlib import chdir
from dataclasses import dataclass
from typing import Any

import torch

import cutaway
from cutaway import errors
from cutaway.errors import CutawayError

HEAD = """# Errors

<!-- made by docs/generate.py from src/cutaway/errors.py and docs/pages/errors.py; do not edit -->

Everything that cutaway raises for what a caller can get wrong is a `CutawayError`. A message says the value, the rule
and the remedy; `error.fields` carries the same as data, and each field is an attribute. The caller's model is as it was
before the call.

On the command line an error is one message on stderr, with `--json` also an object on stdout, with `--debug` a
traceback. The exit code is 2 below `UsageError`, 3 for `NoBehavior`, 130 for `Interrupted`, else 1.

The messages on this page come from running the examples. In them `model` is `cutaway.load("induction-2l")`.

"""


TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)?")


@dataclass(frozen=True)
class Row:
    """What the page says of one error."""

    remedy: str
    """What to do, beyond what the message says."""
    example: str = ""
    """Python that raises it; `model` is `cutaway.load("induction-2l")`, the working directory is empty."""


def page() -> str:
    """The page as Markdown."""
    scene = {"cutaway": cutaway, "torch": torch, "model": cutaway.load("induction-2l")}
    return HEAD + _tree() + "".join(_branch(branch, scene) for branch in CutawayError.__subclasses__())


def message(kind: type[CutawayError], example: str, scene: dict[str, Any]) -> str:
    """The message that `example` raises; one that raises something else, or nothing, is a mistake of this page."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder), torch.random.fork_rng(devices=[]):
        try:
            exec(example, dict(scene))
        except CutawayError as error:
            if type(error) is kind:
                return TIME.sub("2026-01-31T12:00:00Z", str(error))
            raise RuntimeError(f"the example of {kind.__name__} raised {type(error).__name__}") from error
    raise RuntimeError(f"the example of {kind.__name__} raised nothing")


def _tree() -> str:
    """The tree as `errors.py` draws it."""
    lines = (inspect.getdoc(errors) or "").splitlines()
    return "\n".join(line for line in lines if line.startswith("    ")) + "\n"


def _branch(branch: type[CutawayError], scene: dict[str, Any]) -> str:
    leaves = "".join(_leaf(leaf, scene) for leaf in branch.__subclasses__())
    return f"\n## {branch.__name__}\n\n{inspect.getdoc(branch)}\n{leaves}"


def _leaf(leaf: type[CutawayError], scene: dict[str, Any]) -> str:
    row = ROWS[leaf.__name__]
    shown = ""
    if row.example:
        code = "\n".join(f"    {line}".rstrip() for line in row.example.strip().splitlines())
        shown = f"\n{code}\n\n> {message(leaf, row.example, scene)}\n"
    return f"\n### {leaf.__name__}\n\n{inspect.getdoc(leaf)}\n{shown}\n{row.remedy}\n"


ROWS: dict[str, Row] = {
    "UnknownSite": Row(
        "`cutaway models sites MODEL` lists the sites of a model; names of TransformerLens are understood too.",
        'model.capture("cat dog", ["resid_prr.1"])',
    ),
    "OutOfRange": Row(
        "Count from 0. A negative position counts from the last real token; padding has no position.",
        'model.capture("cat dog", ["resid_post.14"])',
    ),
    "UnknownName": Row(
        "`cutaway tasks list` and `cutaway models list` show what there is; a file or folder goes by its path.",
        'cutaway.tasks.get("inducton", model)',
    ),
    "BadEdit": Row(
        "Give a value of the shape of one position of the site, or of the whole site; `axes.py` lists the shapes.",
        'model.run("cat dog", edits=[cutaway.sites.resid_pre[1].add(torch.ones(3))])',
    ),
    "ModelNotFound": Row(
        "Check the spelling, the path, the network. A gated model needs HF_TOKEN and its licence accepted on the hub.",
        'cutaway.load("./no-such-folder")',
    ),
    "ModelIncomplete": Row(
        "Download the folder again. Tensors that are missing would be random numbers, so nothing is loaded.",
        """
from pathlib import Path

Path("half").mkdir()
Path("half/config.json").write_text('{"model_type": "gpt2"}')
cutaway.load("half")
""",
    ),
    "ModelNotFinite": Row(
        "Load undamaged weights, or a dtype with the range that the model needs.",
        """
layer = torch.nn.Linear(2, 2)
layer.weight.data[0, 0] = float("nan")
cutaway.wrap(layer)
""",
    ),
    "ModelInTraining": Row(
        "Call `model.module.eval()`. cutaway does not do it for you: the mode of your model is yours.",
        """
model.module.train()
try:
    model.run("cat dog")
finally:
    model.module.eval()
""",
    ),
    "TokenizerUnfit": Row(
        "Pass `tokenizer=` to `cutaway.load`, or give rows of token ids instead of text.",
        'cutaway.load(model.module, audit=False).encode("cat dog")',
    ),
    "SiteUnavailable": Row(
        "The reason is the model's, not a setting: choose another site. `cutaway models audit MODEL` shows them all.",
        'model.capture("cat dog", ["router.0"])',
    ),
    "SelfCheckFailed": Row(
        "The module is no stack of blocks that cutaway can follow. `cutaway.wrap` reads and edits it by module path.",
        """
from types import SimpleNamespace


class Bag(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace()
        self.embed, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9)

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.head(self.embed(input_ids)))


cutaway.load(Bag())
""",
    ),
    "EditNeverApplied": Row(
        "The part that holds the site did not run on these inputs: an expert that was not chosen, a module that is not "
        "called. Edit what runs.",
        """
class Half(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)


edit = cutaway.sites.module("unused", "output").zero()
cutaway.wrap(Half().eval()).run(torch.ones(1, 2), edits=[edit])
""",
    ),
    "EditFailed": Row(
        "Mend the function. The original exception is the error's `__cause__`.",
        'model.run("cat dog", edits=[cutaway.sites.resid_pre[1].apply(lambda x: 1 / 0)])',
    ),
    "Interrupted": Row(
        "Run the same command again: finished steps are kept and are not computed anew. No file is left half-written."
    ),
    "OutOfMemory": Row("Pass the `max_tokens` that the message names, use a smaller dtype, or another device."),
    "Misaligned": Row(
        "Use words of equal length in tokens, or put the difference at the same place in both prompts.",
        """
from cutaway.tasks import Pair, Task

pair = Pair("cat dog owl", "cat dog", " bee", " fox", id="0")
Task("animals", "Which animal follows?", (pair,)).encode(model)
""",
    ),
    "TokenNotSingle": Row(
        "Use an answer that is one token, or a metric that sums over tokens (`logprob_diff`).",
        'model.token_id("a whole sentence")',
    ),
    "AnswersEqual": Row(
        "The metric compares the two; give a foil that differs, also after tokenising.",
        """
from cutaway.tasks import Pair

Pair("cat dog", "cat cow", " bee", " bee", id="0")
""",
    ),
    "EmptyTask": Row(
        "Add pairs, or clusters to the split that has none.",
        """
from cutaway.tasks import Task

Task("nothing", "Nothing to ask.", ())
""",
    ),
    "BadTaskFile": Row(
        "Mend that line; the file was not read at all. [The format](formats/task.md) has every key.",
        """
from pathlib import Path

Path("task.jsonl").write_text('{"format": "cutaway.task",')
cutaway.tasks.Task.load("task.jsonl")
""",
    ),
    "NoBehavior": Row(
        "Study a behavior that the model shows: other prompts, another metric, another model. A model with scrambled "
        "weights ends here too, as it should.",
        """
from dataclasses import replace

from cutaway import patching, tasks

task = tasks.get("induction", model, n=12)
same = replace(task, pairs=tuple(replace(pair, corrupt=pair.clean) for pair in task.pairs))
patching.sweep(model, same, ["z.1"], positions=["end"]).share()
""",
    ),
    "WrongModel": Row(
        "Make the artifact again with this model, or load the model that it belongs to.",
        """
from cutaway.artifacts import require_same_model

require_same_model("a" * 64, "b" * 64, "effects.safetensors")
""",
    ),
    "BrokenEvidence": Row(
        "Restore the file from where it came from, or run the study again.",
        """
from pathlib import Path

from cutaway.artifacts import load_tensors

load_tensors(Path("effects.safetensors"))
""",
    ),
    "NoMinimumEffect": Row(
        "Say which effect is the smallest that would matter to you, before you look at the data that will judge it.",
        """
from cutaway.claims import Necessary

Necessary(at_least=0.0)
""",
    ),
    "TooFewClusters": Row(
        "Add templates, documents or entities, not more pairs of the same kind.",
        """
import numpy

from cutaway.stats import mean_interval

mean_interval(numpy.array([1.0, 2.0]), ["one", "one"])
""",
    ),
    "ClaimChanged": Row(
        "Run the claim with what was registered. A changed claim is a new claim, on data that no one has looked at.",
        """
from pathlib import Path

from cutaway.claims import FrozenClaim

path = Path("claim.json")
FrozenClaim({"claim": "head 3 copies"}).save(path)
path.write_text(path.read_text().replace("head 3", "head 4"))
FrozenClaim.load(path)
""",
    ),
    "SplitOpened": Row(
        "Read the result that is there. A second look at the same data is no test.",
        """
from cutaway.claims import Ledger

ledger = Ledger("ledger.sqlite")
ledger.open_split("a" * 64, {})
ledger.append("result", "a" * 64, {})
ledger.open_split("a" * 64, {})
""",
    ),
}
