"""What a test must leave as it found it: hooks, attention settings, and the global state of torch and Python.

`Watch` learns of every module that gets a child, by torch's own registration hook, and holds it weakly. Hooks that
transformers or accelerate put on their models are theirs to keep. Python's own random state is not watched: beartype
draws from it to pick which items of a list it checks.
"""

import itertools
import sys
import weakref
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_module

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
OWNERS_LEFT_ALONE = ("transformers", "accelerate")


@dataclass(frozen=True)
class State:
    """A snapshot; two of them are equal when nothing leaked."""

    hooks: dict[int, tuple[str, ...]]
    """Hooks of each live module, by its serial number."""
    global_hooks: int
    """Hooks on all modules at once."""
    attention: dict[int, str]
    """Attention setting of each live module with a config, by its serial number."""
    torch_functions: int
    """Torch-function modes in force."""
    grad: tuple[bool, bool]
    """Whether gradients are on; whether inference mode is."""
    dtype: torch.dtype
    """Default dtype."""
    deterministic: bool
    """Whether only deterministic algorithms are allowed."""
    threads: int
    """Threads of one operator."""
    torch_rng: bytes
    """Global random state of torch."""
    numpy_rng: tuple[bytes, int]
    """Global random state of numpy."""
    excepthook: Any
    """What prints an uncaught exception."""


class Watch:
    """The modules that exist, without keeping them alive."""

    def __init__(self) -> None:
        self._modules: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
        self._serial = itertools.count()
        self._handle = torch_module.register_module_module_registration_hook(self._see)

    def _see(self, parent: nn.Module, name: str, child: nn.Module | None) -> None:
        for module in (parent, child):
            if module is not None and module not in self._modules:
                self._modules[module] = next(self._serial)

    def close(self) -> None:
        """Stop watching."""
        self._handle.remove()

    def state(self) -> State:
        """The state of now."""
        modules = list(self._modules.items())
        numpy_state = np.random.get_state()
        return State(
            hooks={serial: _hooks(module) for module, serial in modules},
            global_hooks=sum(
                len(getattr(torch_module, name))
                for name in vars(torch_module)
                if name.startswith("_global_") and name.endswith("_hooks")
            ),
            attention={serial: found for module, serial in modules if (found := _attention(module))},
            torch_functions=torch._C._len_torch_function_stack(),
            grad=(torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
            dtype=torch.get_default_dtype(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            threads=torch.get_num_threads(),
            torch_rng=torch.get_rng_state().numpy().tobytes(),
            numpy_rng=(numpy_state[1].tobytes(), numpy_state[2]),
            excepthook=sys.excepthook,
        )


def leaked(before: State, after: State) -> list[str]:
    """A line for each thing that changed; empty when nothing leaked. A module that died in between is no leak."""
    return [
        line
        for field in fields(State)
        if (line := _difference(field.name, getattr(before, field.name), getattr(after, field.name)))
    ]


def _difference(name: str, before: Any, after: Any) -> str | None:
    if name == "hooks":
        # a module that is gone took its hooks with it, a new one may have none
        grown = {key: found for key, found in after.items() if found != before.get(key, ())}
        names = sorted({hook for found in grown.values() for hook in found}) or "none are left"
        return f"hooks added, replaced or taken away on {len(grown)} modules: {names}" if grown else None
    if name == "attention":
        changed = {
            f"{before.get(key, 'new model')} -> {now}"
            for key, now in after.items()
            if now != before.get(key, now) or now.startswith("cutaway")
        }
        return f"attention setting changed: {sorted(changed)}" if changed else None
    if before == after:
        return None
    if name.endswith("_rng"):
        whose = name.removesuffix("_rng")
        return f"the global random state of {whose} moved: draw from a generator, or use the `seeded` fixture"
    return f"{name}: {before} -> {after}"


def _hooks(module: nn.Module) -> tuple[str, ...]:
    found = (hook for name in HOOKS for hook in getattr(module, name, {}).values())
    return tuple(_name(hook) for hook in found if _owner(hook) not in OWNERS_LEFT_ALONE)


def _owner(hook: Any) -> str:
    return (getattr(hook, "__module__", None) or type(hook).__module__).partition(".")[0]


def _name(hook: Any) -> str:
    return f"{_owner(hook)}:{getattr(hook, '__qualname__', type(hook).__qualname__)}#{id(hook)}"


def _attention(module: nn.Module) -> str | None:
    return getattr(getattr(module, "config", None), "_attn_implementation", None)
