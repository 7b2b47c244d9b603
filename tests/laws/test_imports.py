"""Who may import whom, and what importing the package may do.

The arrows are read off the source; the effects of the import are measured in a fresh Python.
Rooms lie on floors. A file imports from lower floors or from its own room; the facade `cutaway/__init__.py` lies above
all but the faces. Rooms that build on one another inside a floor of the design have a half floor here.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
FLOORS: dict[str, float] = {
    "errors": 1.0, "axes": 1.1, "figures": 1.1, "artifacts": 1.2, "stats": 1.5,
    "models": 2,
    "engine": 3, "tasks": 3,
    "zoo": 4, "harvest": 4,
    "lenses": 5, "patching": 5, "attribution": 5, "dictionaries": 5, "concepts": 5, "steering": 5,
    "circuits": 6, "describe": 6, "reasoning": 6,
    "claims": 7,
    "viz": 8.0, "report": 8.1, "loop": 8.2,
    "": 8.5,
    "cli": 9, "workbench": 9,
}  # fmt: skip
"""Room (folder, or file of the package's root) -> floor; "" is the facade."""

HOOKS = {
    "register_forward_hook", "register_forward_pre_hook", "register_module_forward_hook",
    "register_full_backward_hook", "register_full_backward_pre_hook", "register_module_forward_pre_hook",
}  # fmt: skip
"""What only `models/taps.py` may call."""


@dataclass(frozen=True)
class Source:
    """One file of the package."""

    path: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        return self.path.relative_to(SRC).as_posix()

    @property
    def package(self) -> list[str]:
        """The dotted package that relative imports start from."""
        return list(self.path.relative_to(SRC).parts[:-1])


def sources() -> list[Source]:
    return [Source(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(SRC.rglob("*.py"))]


def room(dotted: str) -> str:
    """The room of a dotted module of the package: `cutaway.models.taps` -> `models`."""
    return dotted.split(".")[1] if "." in dotted else ""


def imported(source: Source) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            stem = source.package[: len(source.package) - node.level + 1] if node.level else []
            base = ".".join([*stem, *([node.module] if node.module else [])])
            # "from cutaway import errors" names a room, "from cutaway import load" the facade
            rooms = [alias.name for alias in node.names if base == "cutaway" and alias.name in FLOORS]
            yield from ((node.lineno, f"cutaway.{name}") for name in rooms)
            if len(rooms) < len(node.names):
                yield node.lineno, base


def wrong_imports(source: Source) -> list[str]:
    """A line for each import that goes up, or sideways into another room."""
    own = room(".".join(source.path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"))
    if own not in FLOORS:
        return [f"{source.name}: the room {own!r} has no floor; give it one in {Path(__file__).name}"]
    return [
        f"{source.name}:{line} (floor {FLOORS[own]:g}) imports {name} (floor {FLOORS.get(room(name), 0):g})"
        for line, name in imported(source)
        if name.split(".")[0] == "cutaway" and room(name) != own and not FLOORS.get(room(name), 99) < FLOORS[own]
    ]


def called(source: Source, names: set[str]) -> list[str]:
    """A line for each call of a function or method of these names."""
    return [
        f"{source.name}:{node.lineno} calls {found}"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and (found := getattr(node.func, "attr", None) or getattr(node.func, "id", None)) in names
    ]


def outside_functions(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run at import."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def early_transformers(source: Source) -> list[str]:
    """A line for each import of transformers that happens when the file is imported."""
    early = Source(
        source.path,
        ast.Module(
            [node for node in outside_functions(source.tree) if isinstance(node, ast.Import | ast.ImportFrom)], []
        ),
    )
    return [
        f"{source.name}:{line} imports {name} at import"
        for line, name in imported(early)
        if name.split(".")[0] == "transformers"
    ]


def test_the_package_is_found() -> None:
    assert len(sources()) > 20


def test_imports_go_down() -> None:
    assert [line for source in sources() for line in wrong_imports(source)] == []


def test_only_taps_registers_hooks() -> None:
    assert [
        line for source in sources() if source.name != "cutaway/models/taps.py" for line in called(source, HOOKS)
    ] == []


def test_transformers_is_imported_only_where_it_is_used() -> None:
    assert [
        line for source in sources() if "/zoo/recipes/" not in source.name for line in early_transformers(source)
    ] == []


def test_only_faces_print() -> None:
    quiet = [source for source in sources() if not source.name.startswith(("cutaway/cli/", "cutaway/zoo/recipes/"))]
    assert [line for source in quiet for line in called(source, {"print"})] == []


def test_annotations_stay_real() -> None:
    """Postponed annotations would turn the run-time checks of shapes off."""
    assert [source.name for source in sources() if any(name == "__future__" for _, name in imported(source))] == []


@pytest.mark.parametrize(
    ("path", "text", "finds"),
    [
        ("cutaway/models/load.py", "from cutaway.engine import plan", True),
        (
            "cutaway/models/load.py",
            "from cutaway.models import taps\nfrom . import sites\nfrom cutaway import errors",
            False,
        ),
        ("cutaway/models/load.py", "from .. import engine", True),
        ("cutaway/models/load.py", "from ..engine.plan import Plan", True),
        ("cutaway/models/load.py", "from cutaway import load", True),
        ("cutaway/models/load.py", "def f():\n    import cutaway.cli.main", True),
        ("cutaway/lenses/logit.py", "from cutaway.patching import sweep", True),
        ("cutaway/claims/claim.py", "from cutaway.patching import sweep", False),
        ("cutaway/shed/tool.py", "import torch", True),
    ],
)
def test_a_wrong_import_is_seen(path: str, text: str, finds: bool) -> None:
    assert bool(wrong_imports(Source(SRC / path, ast.parse(text)))) == finds


@pytest.mark.parametrize(
    ("text", "finds"),
    [
        ("import transformers", True),
        ("class A:\n    from transformers.models import x", True),
        ("try:\n    import transformers\nexcept ImportError:\n    pass", True),
        ("def f():\n    import transformers", False),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import transformers", False),
    ],
)
def test_an_early_import_is_seen(text: str, finds: bool) -> None:
    assert bool(early_transformers(Source(SRC / "cutaway/models/load.py", ast.parse(text)))) == finds


EFFECTS = """
import json, random, signal, sys, warnings
import numpy, torch

def state():
    every_module = vars(torch.nn.modules.module).items()
    return {
        "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "torch rng": torch.get_rng_state().tolist(),
        "numpy rng": str(numpy.random.get_state()[1:3]),
        "python rng": random.getstate(),
        "torch functions": torch._C._len_torch_function_stack(),
        "module hooks": sum(len(v) for k, v in every_module if k.startswith("_global_") and k.endswith("hooks")),
        "excepthook": repr(sys.excepthook),
        "displayhook": repr(sys.displayhook),
        "warning filters": len(warnings.filters),
        "interrupt": repr(signal.getsignal(signal.SIGINT)),
    }

before, known = state(), set(sys.modules)
import cutaway
new = sorted({name.split(".")[0] for name in set(sys.modules) - known})
print(json.dumps({"before": before, "after": state(), "new": new}))
"""


@pytest.fixture(scope="module")
def effects() -> dict[str, dict[str, object]]:
    """What `import cutaway` changed in a fresh Python that had torch imported already."""
    done = subprocess.run([sys.executable, "-c", EFFECTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_has_no_effects(effects: dict[str, dict[str, object]]) -> None:
    assert effects["after"] == effects["before"]


def test_import_is_light(effects: dict[str, dict[str, object]]) -> None:
    """Of the heavy packages none comes with the import; each is imported by the call that needs it."""
    heavy = {
        "transformers",
        "tokenizers",
        "huggingface_hub",
        "accelerate",
        "scipy",
        "sklearn",
        "pydantic",
        "typer",
        "rich",
        "sqlite3",
    }
    assert heavy & set(effects["new"]) == set()
