"""A tiny base model and randomly filled adapters of every method and reading."""

import dataclasses

import jax
import numpy as np

from jpeft.leaves import named_leaves
from jpeft.model.t5 import T5
from jpeft.peft.adalora import AdaLora
from jpeft.peft.adapter import BottleneckAdapter
from jpeft.peft.attaching import attach
from jpeft.peft.bitfit import BitFit
from jpeft.peft.dora import Dora
from jpeft.peft.ia3 import Ia3
from jpeft.peft.ln import NormTuning
from jpeft.peft.lora import Lora
from jpeft.peft.method import Method
from jpeft.peft.methods import ablation, ablations
from jpeft.peft.prefix import Prefix
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import Selection, select
from jpeft.peft.sites import Site
from jpeft.peft.variables import Adapter
from jpeft.peft.vera import Vera
from jpeft.serve.pool import room_for
from tests.conftest import TINY, random_t5
from tests.own_method import RankOne
from tests.peft.filled import filled

METHODS: dict[str, tuple[Method, Selection]] = {
    "lora": (Lora(), Selection()),
    "lora_official": (Lora.official(rank=3), Selection()),
    "lora_of_another_rank_and_alpha": (Lora.official(rank=5, alpha=3.0, rank_stabilized=True), Selection()),
    "lora_of_the_head": (Lora.official(rank=2), Selection(pattern="lm_head|encoder/layers/0/feed_forward/.*")),
    "lora_of_the_table": (Lora.official(rank=2), Selection(names=["shared"])),
    "lora_of_the_table_of_another_rank": (Lora.official(rank=4, alpha=3.0), Selection(names=["shared"])),
    "ia3": (Ia3(), Selection()),
    "ia3_official": (Ia3.official(), Selection()),
    "bitfit": (BitFit(), Selection()),
    "bitfit_official": (BitFit.official(), Selection()),
    "prompt": (Prompt(prompt_length=6), Selection()),
    "prompt_of_another_length": (Prompt(prompt_length=2, init="uniform"), Selection()),
    "adapter": (BottleneckAdapter(bottleneck=4), Selection()),
    "adapter_of_another_width": (BottleneckAdapter(bottleneck=2, placement="pfeiffer", activation="silu"), Selection()),
    "prefix": (Prefix(prefix_length=5), Selection()),
    "prefix_of_another_length": (Prefix(prefix_length=2, init="normal"), Selection(stacks=["decoder"])),
    "prefix_network": (Prefix(prefix_length=3, projection=4), Selection(names=["cross_attention"])),
    "ln": (NormTuning(), Selection()),
    "dora": (Dora(rank=3), Selection()),
    "adalora": (AdaLora(rank=2), Selection(names=["q", "v"])),
    "vera": (Vera(rank=7), Selection()),
    "vera_of_another_seed": (Vera(rank=5, projection_seed=3), Selection()),
    "rank_one": (RankOne(), Selection()),  # uses the default row-wise implementation
}
ABLATED = {
    f"{method}_{name}": (METHODS[method][0], ablation(method, name, TINY.stacks))
    for method, names in ablations().items()
    for name in names
}


@dataclasses.dataclass(frozen=True)
class Filled:
    """A randomly filled adapter, as an attached model and as leaves by name."""

    model: T5
    method: Method
    sites: list[Site]

    @property
    def leaves(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in named_leaves(self.model, Adapter).items()}


def tiny_base() -> T5:
    return random_t5(TINY)


def make(
    base: T5,
    method: Method,
    selection: Selection = Selection(),  # noqa: B008
    *,
    seed: int = 0,
    by: float = 0.3,
) -> Filled:
    chosen = select(base, method, selection)
    key = jax.random.key(seed)
    return Filled(filled(attach(base, method, chosen, key), key, by=by), method, chosen)


def room_for_all(base: T5):
    head = Selection(pattern="lm_head|encoder/layers/./feed_forward/.*")
    everything = room_for(base, Lora(rank=4), Lora.official(rank=6), Ia3(), Ia3.official(), BitFit.official())
    return [
        *everything,
        (Lora.official(rank=2), select(base, Lora.official(), head)),
        (Lora.official(rank=4), select(base, Lora.official(), Selection(names=["shared"]))),
        *room_for(
            base,
            Prompt(8),
            BottleneckAdapter(bottleneck=5),
            Prefix(6),
            NormTuning(),
            Dora(rank=4),
            Vera(rank=7),
            Vera(rank=5, projection_seed=3),
            RankOne(),
        ),
    ]
