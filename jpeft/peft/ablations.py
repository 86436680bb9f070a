"""The ablations of the paper's Tables 2 and 3: half of the layers, or without one kind of submodule."""

import random
from collections.abc import Callable

from jpeft.errors import UserError
from jpeft.model.config import T5Config
from jpeft.peft.base import Selection


def _layers(choose: Callable[[int, random.Random], list[int]]) -> Callable[[T5Config, int], Selection]:
    def selection(config: T5Config, seed: int) -> Selection:
        # One draw after the other: the two stacks get different random halves.
        draw = random.Random(seed)
        sizes = {"encoder": config.num_layers, "decoder": config.num_decoder_layers}
        return Selection(layers={stack: frozenset(choose(size, draw)) for stack, size in sizes.items()})

    return selection


def _half(num_layers: int) -> int:
    return max(1, num_layers // 2)


_EARLY = _layers(lambda n, _: list(range(_half(n))))
_LATER = _layers(lambda n, _: list(range(n - _half(n), n)))
_RANDOM = _layers(lambda n, draw: draw.sample(range(n), _half(n)))


def _fixed(selection: Selection) -> Callable[[T5Config, int], Selection]:
    return lambda config, seed: selection


ABLATIONS: dict[str, dict[str, Callable[[T5Config, int], Selection]]] = {
    "lora": {
        "early": _EARLY,
        "later": _LATER,
        "random": _RANDOM,
        "drop_self_attention": _fixed(Selection(sublayers=("cross_attention",))),
        "drop_cross_attention": _fixed(Selection(sublayers=("self_attention",))),
        "drop_query_output": _fixed(Selection(names=("k", "v"))),
    },
    "ia3": {
        "early": _EARLY,
        "later": _LATER,
        "random": _RANDOM,
        "drop_attention": _fixed(Selection(sublayers=("feed_forward",))),
        "drop_dense": _fixed(Selection(sublayers=("self_attention", "cross_attention"))),
    },
}


def ablation(method: str, name: str, config: T5Config, *, seed: int = 0) -> Selection:
    """The selection that an ablation stands for. `seed` draws the half of the blocks of each stack for `random`.

    Raises:
      UserError: the paper has no such ablation of this method.
    """
    known = ABLATIONS.get(method, {})
    if name not in known:
        there = f"there are: {', '.join(known)}" if known else "the paper ablates lora and ia3 only"
        raise UserError(f"ablation.name is {name!r}, which {method} does not have; {there}.")
    return known[name](config, seed)
