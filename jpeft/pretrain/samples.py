"""What a model that is being pretrained writes, for a person to read."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jpeft.files import write_whole
from jpeft.mesh.layout import Layout
from jpeft.model.family import Batch
from jpeft.model.t5_config import T5Config
from jpeft.model.tokenizer import Tokenizer
from jpeft.run.processes import is_first


@dataclasses.dataclass(frozen=True)
class Writer:
    """Held-out inputs and what the model writes to them beside what stood there, of each kind of source alike.

    Attributes:
      generate: a program as of `make_generate`.
      held_out: packed batches by kind of source; the first example of a packed row is written to.
      wanted: inputs of each kind.
      layout: of that program.
      ready: gives adapter and base as the program takes them.
    """

    generate: Callable
    held_out: Mapping[str, Sequence[Batch]]
    wanted: int
    input_length: int
    config: T5Config
    tokenizer: Tokenizer
    layout: Layout
    ready: Callable[[nnx.State, nnx.State], tuple[nnx.State, nnx.State]]

    def samples(self, adapter: nnx.State, base: nnx.State) -> list[dict[str, str]]:
        """Each with `input`, `target` and `output`. All processes of a run have to ask."""
        samples = []
        adapter, base = self.ready(adapter, base)
        for batches in self.held_out.values():
            rows = [
                {key: values[i] for key, values in batch.items()}
                for batch in batches
                for i in np.flatnonzero((batch["encoder_segment_ids"] == 1).any(axis=1))
            ][: self.wanted]
            if not rows:
                continue
            parts = self.layout.batch_parts
            inputs = np.full((-(-self.wanted // parts) * parts, self.input_length), self.config.pad_token_id, np.int32)
            targets = []
            for place, row in enumerate(rows):
                ids = row["encoder_input_tokens"][row["encoder_segment_ids"] == 1]
                inputs[place, : len(ids)] = ids
                targets.append(row["decoder_target_tokens"][row["decoder_segment_ids"] == 1])
            here = self.layout.rows_here(len(inputs))
            outputs = np.asarray(self.generate(adapter, base, inputs[here]))[: len(rows)]
            texts = [self._readable(part) for part in (inputs[: len(rows)], targets, outputs)]
            samples += [
                {"input": input_, "target": target, "output": output}
                for input_, target, output in zip(*texts, strict=True)
            ]
        return samples

    def _readable(self, rows: Any) -> list[str]:
        """Texts with their sentinels, without padding and `</s>`."""
        silent = (self.config.pad_token_id, self.config.eos_token_id)
        return self.tokenizer.decode([[int(i) for i in row if i not in silent] for row in rows], keep_special=True)


def write_samples(samples: Sequence[Mapping[str, str]], directory: Path, step: int) -> None:
    """Writes `samples/step_<number>.jsonl` of a run."""
    if not is_first():
        return
    place = directory / "samples"
    place.mkdir(exist_ok=True)
    with write_whole(place / f"step_{step:07d}.jsonl") as beside:
        beside.write_text("".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples), "utf-8")
