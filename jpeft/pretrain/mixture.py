"""Mixes the sources of a corpus by rate into blocks of packed batches; seed and number determine each block.

No state of earlier blocks is needed: a resumed run rebuilds the current block and skips the batches it has done.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jpeft.errors import UserError
from jpeft.model.family import Batch
from jpeft.model.tokenizer import Tokenizer
from jpeft.pretrain.config import SourceConfig
from jpeft.pretrain.corpus import Texts, are_empty, empty_pair, load_texts
from jpeft.pretrain.objective import LEAST_TEXT, Objective
from jpeft.pretrain.packing import TokenPair, assign_rows
from jpeft.rows.reading import require_file
from jpeft.words import counted

_EXAMPLES_IN_BLOCK = 4096
_HELD_OUT_SHARE, _MOST_HELD_OUT = 0.005, 200  # of each source's rows, for validation
_LEAST_ROWS_TO_HOLD_OUT = 10  # of a source; with as many rows, one is held out even if the share is less


class TextSource:
    """Texts cut into pieces of at most one row; a piece becomes a new training example each time it is drawn."""

    def __init__(self, texts: Texts, objective: Objective):
        self.texts, self._objective = texts, objective
        longest = objective.longest_text()
        lengths = texts.lengths()
        kept = np.flatnonzero(lengths >= LEAST_TEXT)
        parts = -(-lengths[kept] // longest)  # pieces of equal length, so that there is no short remainder
        self.columns = (texts,)
        self.document = np.repeat(kept, parts)
        number = np.arange(len(self.document)) - np.repeat(np.cumsum(parts) - parts, parts)
        size, total = np.repeat(lengths[kept], parts), np.repeat(parts, parts)
        self._start, self._end = number * size // total, (number + 1) * size // total
        self._is_end = self._end == size
        self.left_out = len(lengths) - len(kept)

    def lengths(self) -> np.ndarray:
        """`[pieces, 2]`: tokens of the input and of the target of each piece."""
        sizes = zip((self._end - self._start).tolist(), self._is_end.tolist(), strict=True)
        pairs = [self._objective.text_lengths(length, is_end=is_end) for length, is_end in sizes]
        return np.array(pairs).reshape(-1, 2)

    def example(self, index: int, rng: np.random.Generator) -> TokenPair:
        text = self.texts[int(self.document[index])][self._start[index] : self._end[index]]
        return self._objective.of_text(text, is_end=bool(self._is_end[index]), rng=rng)


class PairSource:
    """Pairs of inputs and targets. Those longer than a row are left out: truncated ones would teach to stop midway.

    Args:
      inputs, targets: ids with their surroundings (prompt, special tokens).
      objective: decides what fits a row.
      empty: the ids of an empty input and of an empty target; pairs with either are left out, too.
    """

    def __init__(self, inputs: Texts, targets: Texts, objective: Objective, empty: tuple[Sequence[int], Sequence[int]]):
        self._inputs, self._targets = self.columns = inputs, targets
        lengths = np.stack([inputs.lengths(), targets.lengths()], axis=1)
        fits = objective.fits(lengths) & ~are_empty(inputs, empty[0]) & ~are_empty(targets, empty[1])
        self.document = np.flatnonzero(fits)
        self._lengths = lengths[fits]
        self.left_out = len(lengths) - len(self.document)

    def lengths(self) -> np.ndarray:
        """`[pairs, 2]`: tokens of the input and of the target of each pair."""
        return self._lengths

    def example(self, index: int, rng: np.random.Generator) -> TokenPair:
        row = int(self.document[index])
        return TokenPair(self._inputs[row], self._targets[row])


@dataclasses.dataclass(frozen=True)
class SourcePart:
    """The training pieces or the held-out pieces of one source.

    Attributes:
      source: where they are from.
      pieces: `[n]`, their indices in the source.
      lengths: `[n, 2]`, tokens of the input and of the target of each.
    """

    source: TextSource | PairSource
    pieces: np.ndarray
    lengths: np.ndarray


@dataclasses.dataclass(frozen=True)
class Mixture:
    """All sources of a run, ready to draw from.

    Attributes:
      training, held_out: by name of the source.
      rates: each source's share of the training tokens, relative to the others.
      objective: makes examples and packs them.
      batch_size: packed rows of a batch.
      seed: determines all blocks.
    """

    training: Mapping[str, SourcePart]
    held_out: Mapping[str, SourcePart]
    rates: Mapping[str, float]
    objective: Objective
    batch_size: int
    seed: int

    def block(self, number: int) -> list[Batch]:
        """The batches of one block, in order.

        Within a source, every piece is drawn once before any is drawn again, in a new order each time.
        """
        rng = np.random.default_rng([self.seed, 1, number])
        drawn = []
        for i, (name, count) in enumerate(self.counts().items()):
            part = self.training[name]
            for k in range(number * count, (number + 1) * count):
                round_, place = divmod(k, len(part.pieces))
                drawn.append((part, int(_order(self.seed, i, round_, len(part.pieces))[place])))
        drawn = [drawn[i] for i in rng.permutation(len(drawn))]
        rows, taken = self._rows(drawn)
        examples = [part.source.example(int(part.pieces[place]), rng) for part, place in drawn]
        packed = [[examples[i] for i in row] for row in rows]
        # Rows beyond the last full batch are left out: the emptiest ones, which were still open when the block ended.
        emptiest_last = sorted(range(len(rows)), key=lambda i: -int(taken[rows[i], 0].sum()))
        full = emptiest_last[: len(rows) - len(rows) % self.batch_size]
        if not full:
            raise UserError(
                f"train.batch_size is {self.batch_size}, and {len(drawn):,} pieces of this corpus fill "
                f"{counted(len(rows), 'row')} of {self.objective} tokens; make the batch smaller "
                "(train.accumulation_steps makes a step larger) or the rows shorter."
            )
        return list(self._batches([packed[i] for i in rng.permutation(full)]))

    def counts(self) -> dict[str, int]:
        """The number of pieces of each source in a block, which gives the source its share of the tokens."""
        per_token = {
            name: rate / float(self.training[name].lengths.sum(axis=1).mean()) for name, rate in self.rates.items()
        }
        total = sum(per_token.values())
        return {name: max(1, round(_EXAMPLES_IN_BLOCK * share / total)) for name, share in per_token.items()}

    def validation(self, kind: type, *, most_batches: int) -> list[Batch]:
        """Batches of held-out pieces of one kind of source, the same at every call."""
        rng = np.random.default_rng([self.seed, 2])
        drawn = [
            (part, piece)
            for part in self.held_out.values()
            if isinstance(part.source, kind)
            for piece in range(len(part.pieces))
        ]
        drawn = [drawn[i] for i in rng.permutation(len(drawn))]
        if not drawn:
            return []
        rows, _ = self._rows(drawn)
        examples = [part.source.example(int(part.pieces[place]), rng) for part, place in drawn]
        packed = [[examples[i] for i in row] for row in rows][: most_batches * self.batch_size]
        return list(self._batches(packed))

    def why_none_held_out(self) -> str:
        """Why there is no held-out piece of any source: its rows are too few, or those drawn cannot be used."""
        drawn = sum(_num_held_out(len(part.source.columns[0])) for part in self.held_out.values())
        if not drawn:
            return f"no row is held out, a source needs {_LEAST_ROWS_TO_HOLD_OUT} for that"
        why = f"{_drawn_and_left_out(drawn)} as too short, too long or empty"
        return f"no held-out loss: {why}; a corpus without such rows has one"

    def _rows(self, drawn: Sequence[tuple[SourcePart, int]]) -> tuple[list[list[int]], np.ndarray]:
        """Which of the drawn examples share a row, and how much room each takes on each side of it."""
        taken = self.objective.sides(np.array([part.lengths[place] for part, place in drawn]))
        return assign_rows(taken, self.objective.room), taken

    def _batches(self, rows: Sequence[Sequence[TokenPair]]) -> Iterator[Batch]:
        for start in range(0, len(rows), self.batch_size):
            batch = [*rows[start : start + self.batch_size], *[[]] * (start + self.batch_size - len(rows))]
            yield self.objective.pack(batch)


@functools.lru_cache(maxsize=64)
def _order(seed: int, source: int, round_: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, 3, source, round_]).permutation(size)


def load_mixture(
    directory: Path,
    sources: Mapping[str, SourceConfig],
    tokenizer: Tokenizer,
    objective: Objective,
    *,
    batch_size: int,
    seed: int,
    report: Callable[[str], None] = lambda line: None,
) -> Mixture:
    """Loads and tokenises the sources, and holds rows out for validation.

    A text, or an input with its target, that is held out does not train from another row either, of any source of the
    same kind.

    Args:
      directory: of the corpus.
      sources: by name.
      tokenizer, objective: make examples of the rows.
      batch_size, seed: as in `Mixture`.
      report: called with a line about rows that are left out.

    Raises:
      UserError: a file is absent or cannot be read, or a source has no piece left to train on.
    """
    read: dict[str, TextSource | PairSource] = {}
    held_out_rows: dict[str, np.ndarray] = {}
    for name, config in sources.items():
        texts = load_texts(source_files(directory, name, config), config.kind, tokenizer, report=report)
        source = (
            TextSource(texts[0], objective)
            if config.kind == "text"
            else PairSource(texts[0], texts[1], objective, empty_pair(tokenizer))
        )
        why = f"shorter than {LEAST_TEXT} tokens" if config.kind == "text" else "longer than a row, or empty"
        if source.left_out:
            report(f"{name}: {source.left_out:,} of {len(texts[0]):,} rows left out, {why}")
        read[name] = source
        # Whole rows of the file are held out, not pieces, since the pieces of a text resemble each other. The choice
        # ignores seed, rates and other sources, so that a run that continues another model holds out the same rows;
        # and what fits a row, which such a run may change. So a row that is held out may be one that is left out.
        order = np.random.default_rng([4, zlib.crc32(name.encode())]).permutation(len(texts[0]))
        held_out_rows[name] = order[: _num_held_out(len(order))]
    training, held_out = {}, {}
    for name, source in read.items():
        duplicates = _duplicates(name, read, held_out_rows)
        if len(duplicates):
            report(f"{name}: {counted(len(duplicates), 'row')} with the text of a held-out row left out of training")
        is_held_out = np.isin(source.document, held_out_rows[name])
        trains = ~is_held_out & ~np.isin(source.document, duplicates)
        lengths = source.lengths()
        for parts, chosen in ((training, trains), (held_out, is_held_out)):
            pieces = np.flatnonzero(chosen)
            parts[name] = SourcePart(source, pieces, lengths[pieces])
        if (drawn := len(held_out_rows[name])) and not is_held_out.any():
            report(f"{name}: nothing is held out, since {_drawn_and_left_out(drawn)}")
        if not trains.any():
            kind = "empty" if sources[name].kind == "pairs" else f"shorter than {LEAST_TEXT} tokens"
            raise UserError(
                f"data.sources.{name} has nothing to train on: no row of it that fits {objective} tokens "
                f"(data.input_length, data.target_length), is not {kind} and does not repeat a held-out row."
            )
    rates = {name: config.rate for name, config in sources.items()}
    return Mixture(training, held_out, rates, objective, batch_size, seed)


def _duplicates(
    name: str, sources: Mapping[str, TextSource | PairSource], held_out_rows: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Indices of a source's training rows whose content is held out in a row of any source of the same kind."""
    here = sources[name]
    known: set[tuple[bytes, ...]] = set()
    for other, rows in held_out_rows.items():
        if type(sources[other]) is type(here):
            known.update(_content(sources[other], int(row)) for row in rows)
    alike = np.zeros(len(here.columns[0]), bool)
    alike[here.document] = True  # rows that were left out do not train
    alike[held_out_rows[name]] = False
    for i, column in enumerate(here.columns):
        alike &= np.isin(column.lengths(), [len(content[i]) // column.ids.itemsize for content in known])
    return np.array([row for row in np.flatnonzero(alike) if _content(here, int(row)) in known], int)


def _content(source: TextSource | PairSource, row: int) -> tuple[bytes, ...]:
    return tuple(texts[row].tobytes() for texts in source.columns)


def _drawn_and_left_out(rows: int) -> str:
    return f"{counted(rows, 'row')} drawn for it {'is' if rows == 1 else 'are'} left out"


def _num_held_out(rows: int) -> int:
    share = min(_MOST_HELD_OUT, int(rows * _HELD_OUT_SHARE))
    return max(share, 1 if rows >= _LEAST_ROWS_TO_HOLD_OUT else 0)


def source_files(directory: Path, name: str, config: SourceConfig) -> list[Path]:
    """The files of a source, sorted by name. Raises `UserError` if there are none."""
    files = sorted(directory.glob(config.files))
    if not files:
        raise UserError(
            f"data.sources.{name}: no file {config.files} in {directory}; name the corpus with --config.data.path."
        )
    for file in files:  # before any is opened: opening a pipe would block
        require_file(file, str(file))
    return files
