"""What a family of models says of itself, in one place, to whoever works with models of any family."""

import dataclasses
from collections.abc import Callable

from flax import nnx

from jpeft.model.t5 import T5
from jpeft.model.weights import hub_module


@dataclasses.dataclass(frozen=True)
class Family:
    """One network and what is particular to it. What its parts are to PEFT methods, the network's class says itself.

    Attributes:
      name: by which messages call it.
      network: its class.
      task_type: Hugging Face PEFT's word for what such a model does.
      module_name: the name in `transformers` of the module at one of our paths.
    """

    name: str
    network: type[nnx.Module]
    task_type: str
    module_name: Callable[[str], str]


T5_FAMILY = Family("T5", T5, "SEQ_2_SEQ_LM", hub_module)
FAMILIES = (T5_FAMILY,)


def family_of(model: nnx.Module) -> Family | None:
    """The family of a model, or None: a module of somebody else's."""
    return next((family for family in FAMILIES if isinstance(model, family.network)), None)
