"""Tokenises examples, and batches rows in an order set by seed and epoch, padded to a few shapes."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jpeft.data.mixture import Mix
from jpeft.data.prompts import CUTTING, PromptIds, PromptTokens
from jpeft.data.tasks import Example, Task
from jpeft.errors import UserError
from jpeft.files import cache_directory, write_whole
from jpeft.model.tokenizer import Tokenizer
from jpeft.rows.values import can_be_seen

Shape = tuple[int, int]  # padded encoder and decoder length, in tokens

_ENCODER_MULTIPLE = 16
_DECODER_MULTIPLE = 4


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The token ids of a split.

    Attributes:
      inputs, targets: by row, 1-dimensional int32, `</s>` included.
      cut_inputs, cut_targets: number of rows that were cut to the maximum length.
      weights: `[rows]` weights in the loss; None if all rows count the same.
      mix: how an epoch mixes the rows of several files; None if an epoch has every row once.
    """

    inputs: list[np.ndarray]
    targets: list[np.ndarray]
    cut_inputs: int
    cut_targets: int
    weights: np.ndarray | None = None
    mix: Mix | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def lengths(self) -> np.ndarray:
        """Returns `[rows, 2]`: the number of tokens of each row's input and target."""
        return np.array([(len(i), len(t)) for i, t in zip(self.inputs, self.targets, strict=True)]).reshape(-1, 2)


def tokenize(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    max_input_length: int,
    max_target_length: int,
    template: str = "{input}",
) -> Tokens:
    """Tokenises every example, or loads the tokens from the cache.

    Args:
      max_input_length, max_target_length: in tokens, `</s>` included; longer rows are cut.
      template: of the examples' prompts. Prompts that are too long are cut in their columns, or at their end if the
        examples have no `fields`.
    """
    made_of = [tokenizer.fingerprint, max_input_length, max_target_length, template, CUTTING]
    digest = hashlib.sha256(json.dumps(made_of).encode())
    for example in examples:
        digest.update(json.dumps([example.input, example.fields, example.target]).encode())
    path = cache_directory() / "tokens" / f"{digest.hexdigest()}.safetensors"
    try:
        stored = load_file(path)
        _check_stored(stored, len(examples))
    except (OSError, SafetensorError, ValueError):  # a missing or damaged cache entry is recomputed
        inputs = _prompts(examples, tokenizer, template, max_input_length)
        targets = tokenizer.encode([example.target for example in examples], max_length=max_target_length)
        stored = {
            "inputs": np.concatenate([np.asarray(ids, np.int32) for ids in inputs.ids]),
            "input_lengths": np.array([len(ids) for ids in inputs.ids]),
            "targets": np.concatenate([np.asarray(ids, np.int32) for ids in targets.ids]),
            "target_lengths": np.array([len(ids) for ids in targets.ids]),
            "cut": np.array([inputs.num_cut, targets.num_cut]),
        }
        with contextlib.suppress(OSError, SafetensorError):  # a cache that cannot be written is skipped
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_whole(path) as beside:
                save_file(stored, beside)
    return Tokens(
        inputs=np.split(stored["inputs"], np.cumsum(stored["input_lengths"])[:-1]),
        targets=np.split(stored["targets"], np.cumsum(stored["target_lengths"])[:-1]),
        cut_inputs=int(stored["cut"][0]),
        cut_targets=int(stored["cut"][1]),
    )


def _check_stored(stored: dict[str, np.ndarray], rows: int) -> None:
    """Raises `ValueError` if a cache entry does not hold the tokens of `rows` rows."""
    if set(stored) != {"inputs", "input_lengths", "targets", "target_lengths", "cut"}:
        raise ValueError("other arrays")
    for name in ("input", "target"):
        lengths = stored[f"{name}_lengths"]
        if lengths.shape != (rows,) or lengths.sum() != len(stored[f"{name}s"]):
            raise ValueError("other rows")


def _prompts(examples: Sequence[Example], tokenizer: Tokenizer, template: str, max_length: int) -> PromptIds:
    if all(example.fields is not None for example in examples):
        return PromptTokens(template, tokenizer, max_length)([example.fields or {} for example in examples])
    return PromptTokens("{input}", tokenizer, max_length)([{"input": example.input} for example in examples])


def longest_of(lengths: np.ndarray, batches: Iterable[Sequence[int]]) -> np.ndarray:
    """Returns `[batches, 2]`: the length of the longest input and of the longest target of each batch.

    Args:
      lengths: `[rows, 2]`, from `Tokens.lengths`.
      batches: row numbers of each batch.
    """
    return np.array([lengths[rows].max(axis=0) for rows in batches])


def choose_shapes(lengths: np.ndarray, *, max_shapes: int = 6, least_gain: float = 0.07) -> list[Shape]:
    """Chooses at most `max_shapes` padded shapes that minimise the padding of the inputs of these batches.

    Programs are compiled for every shape, so another shape is added only if it saves at least `least_gain` of the
    positions. Shapes increase in both lengths: a batch takes the first shape that fits, and the last one fits all.

    Args:
      lengths: `[batches, 2]`, from `longest_of`.
    """
    rounded = -(-lengths // [_ENCODER_MULTIPLE, _DECODER_MULTIPLE]) * [_ENCODER_MULTIPLE, _DECODER_MULTIPLE]
    edges, counts = np.unique(rounded[:, 0], return_counts=True)
    batches_up_to = np.concatenate([[0], np.cumsum(counts)])
    # Dynamic programming over the number of shapes: positions[j] is the least number of padded positions of the batches
    # up to edge j when the largest shape is edge j, and chosen[j] the edges of that solution.
    positions = edges * batches_up_to[1:]
    chosen: list[tuple[int, ...]] = [(j,) for j in range(len(edges))]
    for _ in range(1, max_shapes):
        better, extended = positions.copy(), list(chosen)
        for j in range(1, len(edges)):
            candidates = positions[:j] + edges[j] * (batches_up_to[j + 1] - batches_up_to[1 : j + 1])
            i = int(np.argmin(candidates))
            if candidates[i] < better[j]:
                better[j], extended[j] = candidates[i], (*chosen[i], j)
        if better[-1] > (1 - least_gain) * positions[-1]:
            break
        positions, chosen = better, extended
    encoder_lengths = [int(edges[j]) for j in chosen[-1]]
    return [(length, int(rounded[rounded[:, 0] <= length, 1].max())) for length in encoder_lengths]


def fitting_shape(shapes: Sequence[Shape], lengths: np.ndarray) -> Shape:
    """Returns the smallest of the increasing `shapes` that fits rows of these lengths.

    Args:
      lengths: `[rows, 2]`, from `Tokens.lengths`.
    """
    longest = lengths.max(axis=0)
    return next(shape for shape in shapes if shape[0] >= longest[0] and shape[1] >= longest[1])


def padded(rows: Sequence[Sequence[int] | np.ndarray], shape: tuple[int, int], padding_id: int) -> np.ndarray:
    """Returns token ids as an int32 array of `shape`, padded on the right; missing rows are all padding."""
    matrix = np.full(shape, padding_id, np.int32)
    for place, ids in enumerate(rows):
        matrix[place, : len(ids)] = ids
    return matrix


def num_steps(num_rows: int, *, batch_size: int, accumulation_steps: int) -> int:
    """Returns the optimizer steps of an epoch, each of `batch_size * accumulation_steps` rows or, the last, fewer."""
    return -(-num_rows // (batch_size * accumulation_steps))


def train_order(
    lengths: np.ndarray, *, batch_size: int, accumulation_steps: int, seed: int, epoch: int, mix: Mix | None = None
) -> Iterator[list[list[int]]]:
    """Yields the row numbers of each optimizer step of an epoch, as a list of micro-batches.

    The epoch is shuffled; then the rows of each step are sorted by length and cut into micro-batches. The gradient of
    the step is the same sum, with less padding.

    Args:
      lengths: `[rows, 2]`, from `Tokens.lengths`.
      batch_size: rows of a micro-batch; the last one of a step may have fewer.
      accumulation_steps: micro-batches of a step; the last step may have fewer.
      mix: for several files: how often the epoch has each row.
    """
    if mix is None:
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    else:
        order = mix.order(seed=seed, epoch=epoch)
    per_step = batch_size * accumulation_steps
    for start in range(0, len(order), per_step):
        rows = order[start : start + per_step]
        rows = rows[np.lexsort((lengths[rows, 1], lengths[rows, 0]))]
        yield [rows[i : i + batch_size].tolist() for i in range(0, len(rows), batch_size)]


def eval_order(lengths: np.ndarray, *, batch_size: int) -> list[list[int]]:
    """Returns the row numbers of batches over a split, longest rows first, so that a lack of memory shows at once."""
    order = np.lexsort((lengths[:, 1], lengths[:, 0]))[::-1]
    return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]


def tokenize_for(task: Task, examples: Sequence[Example], tokenizer: Tokenizer) -> Tokens:
    """Tokenises the examples of a split, cut to the task's lengths. Raises `UserError` like `require_text`."""
    tokens = tokenize(
        examples,
        tokenizer,
        max_input_length=task.max_input_length,
        max_target_length=task.max_target_length,
        template=task.template,
    )
    require_text(tokens, examples)
    return tokens


def require_text(tokens: Tokens, examples: Sequence[Example]) -> None:
    """Raises `UserError` if a target has no visible text, so that there is nothing to learn or to compare with."""
    for ids, example in zip(tokens.targets, examples, strict=True):
        if len(ids) < 2 or not can_be_seen(example.target):
            raise UserError(f"row {example.id} has an empty target; fill it in or remove the row.")
