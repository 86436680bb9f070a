"""Token rows to padded batches of a few shapes, in an order that a seed and an epoch decide."""

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

Shape = tuple[int, int]  # encoder length, decoder length

_ENCODER_MULTIPLE = 16
_DECODER_MULTIPLE = 4


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of a split's inputs and targets, `</s>` included, and how many of each were cut to fit.

    Attributes:
      weights: `[rows]`, how much each row counts in the loss; None where all count the same.
      mix: how an epoch is made of several files' rows; None where every row comes once.
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
        """`[rows, 2]`: how many tokens the input and the target of each row have."""
        return np.array([(len(i), len(t)) for i, t in zip(self.inputs, self.targets, strict=True)]).reshape(-1, 2)


def tokenize(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    max_input_length: int,
    max_target_length: int,
    template: str = "{input}",
) -> Tokens:
    """Tokens of every example, from the cache where the same texts met the same tokenizer before.

    Args:
      max_input_length, max_target_length: in tokens, the one that ends each counted; what is longer is cut.
      template: what the examples' prompts were made with: what is too long is cut in their columns. An example whose
        columns are not known is cut at its end.
    """
    made_of = [tokenizer.fingerprint, max_input_length, max_target_length, template, CUTTING]
    digest = hashlib.sha256(json.dumps(made_of).encode())
    for example in examples:
        digest.update(json.dumps([example.input, example.fields, example.target]).encode())
    path = cache_directory() / "tokens" / f"{digest.hexdigest()}.safetensors"
    try:
        stored = load_file(path)
        _check_stored(stored, len(examples))
    except (OSError, SafetensorError, ValueError):  # a damaged cache entry is made again
        inputs = _prompts(examples, tokenizer, template, max_input_length)
        targets = tokenizer.encode([example.target for example in examples], max_length=max_target_length)
        stored = {
            "inputs": np.concatenate([np.asarray(ids, np.int32) for ids in inputs.ids]),
            "input_lengths": np.array([len(ids) for ids in inputs.ids]),
            "targets": np.concatenate([np.asarray(ids, np.int32) for ids in targets.ids]),
            "target_lengths": np.array([len(ids) for ids in targets.ids]),
            "cut": np.array([inputs.num_cut, targets.num_cut]),
        }
        with contextlib.suppress(OSError, SafetensorError):  # a cache that cannot be written is one less
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
    """Raises ValueError: these are not the tokens of so many rows."""
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
    """`[batches, 2]`: the longest input and target of each batch, which is what it has to be padded to.

    Args:
      lengths: `[rows, 2]`, as `Tokens.lengths` gives them.
      batches: row numbers of each.
    """
    return np.array([lengths[rows].max(axis=0) for rows in batches])


def choose_shapes(lengths: np.ndarray, *, max_shapes: int = 6, least_gain: float = 0.07) -> list[Shape]:
    """At most `max_shapes` padded shapes that waste few positions of inputs on batches of these lengths.

    Every program is compiled once per shape, so a further shape is taken only where it saves at least `least_gain` of
    the positions. Shapes grow in both lengths together: the last holds every batch, and a batch takes the first that
    holds it.

    Args:
      lengths: `[batches, 2]`, the longest input and target of each batch, as `longest_of` gives them.
    """
    rounded = -(-lengths // [_ENCODER_MULTIPLE, _DECODER_MULTIPLE]) * [_ENCODER_MULTIPLE, _DECODER_MULTIPLE]
    edges, counts = np.unique(rounded[:, 0], return_counts=True)
    batches_up_to = np.concatenate([[0], np.cumsum(counts)])
    # positions[j]: fewest when the batches up to edge j are padded to as many edges as rounds are done, the last one j.
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
    """The smallest of `shapes`, which rise, that holds rows of these lengths: `[rows, 2]`, tokens in and out."""
    longest = lengths.max(axis=0)
    return next(shape for shape in shapes if shape[0] >= longest[0] and shape[1] >= longest[1])


def padded(rows: Sequence[Sequence[int] | np.ndarray], shape: tuple[int, int], pad_token_id: int) -> np.ndarray:
    """`shape`, int32: token ids row by row with padding behind them, and rows of padding where there are fewer."""
    matrix = np.full(shape, pad_token_id, np.int32)
    for place, ids in enumerate(rows):
        matrix[place, : len(ids)] = ids
    return matrix


def num_steps(num_rows: int, *, batch_size: int, accumulation_steps: int) -> int:
    """Optimizer steps of an epoch, each of `batch_size * accumulation_steps` rows; the last one may have fewer."""
    return -(-num_rows // (batch_size * accumulation_steps))


def train_order(
    lengths: np.ndarray, *, batch_size: int, accumulation_steps: int, seed: int, epoch: int, mix: Mix | None = None
) -> Iterator[list[list[int]]]:
    """Row numbers of an epoch's optimizer steps, each a list of micro-batches.

    Rows are shuffled, then each step's rows sorted by length before they are cut into micro-batches: the gradient of
    the step is the same sum, and short rows are padded with short ones.

    Args:
      lengths: `[rows, 2]`, as `Tokens.lengths` gives them.
      batch_size: rows of a micro-batch at most.
      accumulation_steps: micro-batches of a step at most.
      mix: of several files' rows: which of them, and how often, make the epoch.
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
    """Row numbers of batches over a whole split, longest first: what does not fit in memory fails at once."""
    order = np.lexsort((lengths[:, 1], lengths[:, 0]))[::-1]
    return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]


def tokenize_for(task: Task, examples: Sequence[Example], tokenizer: Tokenizer) -> Tokens:
    """A part's rows as tokens, cut as the task says. Raises `UserError` as `require_text`."""
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
    """Raises `UserError` when nothing of a target can be seen: there is nothing to learn or to score against."""
    for ids, example in zip(tokens.targets, examples, strict=True):
        if len(ids) < 2 or not can_be_seen(example.target):
            raise UserError(f"row {example.id} has an empty target; fill it in or remove the row.")
