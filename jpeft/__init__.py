"""Parameter-efficient fine-tuning (PEFT) for Flax NNX: eleven methods, from LoRA to full tuning, on any module.

    model, tokenizer = jpeft.load("google/flan-t5-base")  # or "mini", a directory
    tuned = jpeft.attach(model, jpeft.Lora(rank=8), where=r".*/(q|v)")  # or to any module
    graphdef, adapter, base = jpeft.split(tuned)  # what trains, and what does not

This is the public interface, documented in `jpeft.api` and `jpeft.peft`. Submodules are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jpeft.accelerators import spare_what_is_missing

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jpeft.api import attach as attach
    from jpeft.api import evaluate as evaluate
    from jpeft.api import fit as fit
    from jpeft.api import generate as generate
    from jpeft.api import load as load
    from jpeft.api import load_adapter as load_adapter
    from jpeft.api import save as save
    from jpeft.api import text_batches as text_batches
    from jpeft.errors import RunFailed as RunFailed
    from jpeft.errors import UserError as UserError
    from jpeft.peft.adalora import AdaLora as AdaLora
    from jpeft.peft.adapter import BottleneckAdapter as BottleneckAdapter
    from jpeft.peft.attaching import count as count
    from jpeft.peft.attaching import split as split
    from jpeft.peft.bitfit import BitFit as BitFit
    from jpeft.peft.dora import Dora as Dora
    from jpeft.peft.full import Full as Full
    from jpeft.peft.ia3 import Ia3 as Ia3
    from jpeft.peft.ln import NormTuning as NormTuning
    from jpeft.peft.lora import Lora as Lora
    from jpeft.peft.merging import merge as merge
    from jpeft.peft.method import AddedModules as AddedModules
    from jpeft.peft.method import Method as Method
    from jpeft.peft.methods import METHODS as METHODS
    from jpeft.peft.prefix import Prefix as Prefix
    from jpeft.peft.prompt import Prompt as Prompt
    from jpeft.peft.selection import Selection as Selection
    from jpeft.peft.sites import Site as Site
    from jpeft.peft.sites import sites as sites
    from jpeft.peft.variables import Adapter as Adapter
    from jpeft.peft.vera import Vera as Vera

_MODULES = {
    "jpeft.api": ("attach", "evaluate", "fit", "generate", "load", "load_adapter", "save", "text_batches"),
    "jpeft.errors": ("RunFailed", "UserError"),
    "jpeft.peft.attaching": ("count", "split"),
    "jpeft.peft.adalora": ("AdaLora",),
    "jpeft.peft.adapter": ("BottleneckAdapter",),
    "jpeft.peft.bitfit": ("BitFit",),
    "jpeft.peft.dora": ("Dora",),
    "jpeft.peft.full": ("Full",),
    "jpeft.peft.ia3": ("Ia3",),
    "jpeft.peft.ln": ("NormTuning",),
    "jpeft.peft.lora": ("Lora",),
    "jpeft.peft.merging": ("merge",),
    "jpeft.peft.method": ("AddedModules", "Method"),
    "jpeft.peft.methods": ("METHODS",),
    "jpeft.peft.prefix": ("Prefix",),
    "jpeft.peft.prompt": ("Prompt",),
    "jpeft.peft.selection": ("Selection",),
    "jpeft.peft.sites": ("Site", "sites"),
    "jpeft.peft.vera": ("Vera",),
    "jpeft.peft.variables": ("Adapter",),
}
spare_what_is_missing()  # before JAX looks for devices: a plug-in installed for its compiler alone has none
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jpeft' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
