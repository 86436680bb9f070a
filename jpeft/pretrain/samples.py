"""Samples of what a model generates during its pretraining, for a person to read."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jpeft.data.batches import padded
from jpeft.files import write_whole
from jpeft.mesh.layout import Layout
from jpeft.model.family import Batch
from jpeft.model.tokenizer import Tokenizer
from jpeft.pretrain.objective import Objective
from jpeft.run.processes import is_first


@dataclasses.dataclass(frozen=True)
class Writer:
    """Generates targets for held-out inputs, and pairs them with the real targets.

    Attributes:
      generate: a program as `make_generate` returns it.
      held_out: packed batches by kind of source; the first example of a row becomes a sample.
      objective: the one that packed them.
      wanted: samples of each kind.
      config: of the network.
      tokenizer: decodes the samples.
      layout: of the program.
      ready: moves adapter and base to where the program expects them.
    """

    generate: Callable
    held_out: Mapping[str, Sequence[Batch]]
    objective: Objective
    wanted: int
    config: Any
    tokenizer: Tokenizer
    layout: Layout
    ready: Callable[[nnx.State, nnx.State], tuple[nnx.State, nnx.State]]

    def samples(self, adapter: nnx.State, base: nnx.State) -> list[dict[str, str]]:
        """Samples with `input`, `target` and `output`. All processes of a run have to call it."""
        samples = []
        adapter, base = self.ready(adapter, base)
        for kind, batches in self.held_out.items():
            rows = [(batch, i) for batch in batches for i in rows_with_text(batch)][: self.wanted]
            if not rows:
                continue
            examples = [self.objective.to_answer(batch, i, is_text=kind == "text") for batch, i in rows]
            parts = self.layout.batch_parts
            shape = -(-self.wanted // parts) * parts, self.objective.input_length
            inputs = padded([example.input for example in examples], shape, self.config.padding_id)
            targets = [example.target for example in examples]
            here = self.layout.rows_here(len(inputs))
            outputs = np.asarray(self.generate(adapter, base, inputs[here]).tokens)[: len(rows)]
            texts = [self._readable(part) for part in (inputs[: len(rows)], targets, outputs)]
            samples += [
                {"input": input_, "target": target, "output": output}
                for input_, target, output in zip(*texts, strict=True)
            ]
        return samples

    def _readable(self, rows: Any) -> list[str]:
        """Decodes rows with sentinels and chat markers, without padding and end tokens."""
        hidden = (self.config.padding_id, *self.config.ends)
        return self.tokenizer.decode([[int(i) for i in row if i not in hidden] for row in rows], keep_special=True)


def rows_with_text(batch: Batch) -> list[int]:
    """The indices of the rows of a packed batch that are not padding."""
    return np.flatnonzero((batch["decoder_loss_weights"] > 0).any(axis=1)).tolist()


def write_samples(samples: Sequence[Mapping[str, str]], directory: Path, step: int) -> None:
    """Writes `samples/step_<number>.jsonl` in a run's directory."""
    if not is_first():
        return
    place = directory / "samples"
    place.mkdir(exist_ok=True)
    with write_whole(place / f"step_{step:07d}.jsonl") as beside:
        beside.write_text("".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples), "utf-8")
