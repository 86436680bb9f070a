"""The engine: it answers texts with the adapters of a bank, in a few padded shapes that are compiled in advance."""

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jpeft.adapters.own_tokenizer import note_on_tokenizer
from jpeft.data.batches import padded
from jpeft.data.summary import read_as_text
from jpeft.data.task_file import TaskOfRun
from jpeft.data.tasks import meant_by
from jpeft.errors import RunFailed, UserError
from jpeft.eval.labels import PackedLabels
from jpeft.model.language_model import advising
from jpeft.model.tokenizer import Tokenizer
from jpeft.peft.method import Method
from jpeft.predict.answer_source import task_of
from jpeft.predict.questions import (
    ColumnEmpty,
    ColumnMissing,
    NoQuestion,
    PromptTemplate,
    Question,
    QuestionTokens,
    SeveralColumns,
    special_tokens_in,
    unreadable_in,
)
from jpeft.rows.values import can_be_seen
from jpeft.serve.bank import AdapterBank, UnknownAdapter
from jpeft.words import listed, short

_UNCUT = 2**31  # tokens: more than any accepted text has


@dataclasses.dataclass(frozen=True)
class QueuedRow:
    """One tokenised input that waits for its answer.

    Attributes:
      tokens: of the prompt, `</s>` included.
      adapter: None for the base alone.
      max_output_tokens: the limit of a generated answer.
      labels: to choose from; None to generate.
      cut: whether the prompt was cut to the input length of the adapter's run.
      notes: sentences on what of the input the model cannot read as it stands.
      way: `Asking.way` of the settings by which the prompt was made.
    """

    tokens: Sequence[int]
    adapter: str | None
    max_output_tokens: int
    labels: PackedLabels | None = None
    cut: bool = False
    notes: tuple[str, ...] = ()
    way: int = 0


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to one row.

    Attributes:
      text: the answer.
      output_tokens: the number of its tokens, `</s>` included.
      ended: False if the answer was cut at the row's limit.
      input_cut: whether the prompt was cut to the input length of the adapter's run.
      notes: sentences on what of the input the model could not read as it stands.
      confidence: the mean log-probability of a chosen label's tokens; None if generated.
      probabilities: of each label; None if generated.
    """

    text: str
    output_tokens: int
    ended: bool
    input_cut: bool = False
    notes: tuple[str, ...] = ()
    confidence: float | None = None
    probabilities: dict[str, float] | None = None


class NoNumber(Exception):
    """The error of a row for which the model, with the row's adapter or alone, computes infinity or NaN."""

    def __init__(self, adapter: str | None):
        by, which = ("the base model", "model") if adapter is None else (f"adapter {adapter!r}", "adapter")
        super().__init__(
            f"what is computed by {by} is no number (infinity or NaN); start the server with --dtype float32, which "
            f"holds larger ones, and if that does not help, serve another {which}."
        )


class Replaced(UserError):
    """The error of a waiting row whose adapter was replaced by one with another prompt, labels or lengths."""

    def __init__(self, name: str):
        super().__init__(
            f"the adapter {name!r} was replaced while this request waited, by one with another prompt, labels or "
            "lengths; send it again."
        )


@dataclasses.dataclass(frozen=True)
class PaddedShapes:
    """The shapes that batches are padded to; the last size of each kind is the largest that is accepted.

    Attributes:
      batch_sizes: rows, ascending.
      input_lengths, output_lengths: tokens, ascending.
      label_tokens: the most tokens of all labels of a row together; 0 if no labels are scored.
    """

    batch_sizes: tuple[int, ...] = (1, 4, 16)
    input_lengths: tuple[int, ...] = (64, 256, 512)
    output_lengths: tuple[int, ...] = (16, 64)
    label_tokens: int = 0

    def __post_init__(self):
        for name in ("batch_sizes", "input_lengths", "output_lengths"):
            values = getattr(self, name)
            if not values or min(values) < 1 or list(values) != sorted(set(values)):
                raise UserError(f"{name} are {values}; expected ascending numbers of at least 1.")
        if self.label_tokens < 0:
            raise UserError(f"label_tokens is {self.label_tokens}; expected 0 or more.")

    def __iter__(self) -> Iterator[tuple[int, int, int | None]]:
        """Batch size, input length and output length of every program; the last is None for scoring labels."""
        outputs = (*((None,) if self.label_tokens else ()), *self.output_lengths)
        return itertools.product(self.batch_sizes, self.input_lengths, outputs)

    def of(self, row: QueuedRow) -> tuple[int, int]:
        """The input and output length that a row alone is padded to."""
        output = 0 if row.labels is not None else _at_least(self.output_lengths, row.max_output_tokens)
        return _at_least(self.input_lengths, len(row.tokens)), output

    @property
    def num_labels(self) -> int:
        """The most labels of a row: each has at least one token and `</s>`."""
        return self.label_tokens // 2


def _at_least(sizes: Sequence[int], needed: int) -> int:
    return next(size for size in sizes if size >= needed)


@dataclasses.dataclass(frozen=True)
class Asking:
    """How an adapter, or the base, is prompted and how its answers are made, as by the run that trained it.

    Attributes:
      task: of that run; None if unknown.
      prompt: the template for a request's columns or text; None without a task.
      tokens: tokenises prompts and cuts them to the run's input length.
      labels: to choose from; None to generate.
      max_output_tokens: the limit of a generated answer if the request sets none.
      notes: sentences on where answers may differ from the run's own.
      way: a number that changes when an adapter of the same name but other settings is loaded.
    """

    task: TaskOfRun | None
    prompt: PromptTemplate | None
    tokens: QuestionTokens
    labels: PackedLabels | None
    max_output_tokens: int
    notes: tuple[str, ...] = ()
    way: int = 0


class Engine:
    """Answers rows of many adapters in one batch, each with the prompt, labels and lengths of the adapter's run.

    Attributes:
      left_out: adapters that could not be loaded, with the reasons.
    """

    def __init__(
        self,
        bank: AdapterBank,
        tokenizer: Tokenizer,
        shapes: PaddedShapes,
        *,
        dtype: str | None = None,
        base: str | None = None,
    ):
        """Makes an engine without adapters.

        Args:
          dtype: of computation, and
          base: fingerprint of the bank's base; adapters that were trained with others get a note.
        """
        self.bank = bank
        self.shapes = shapes
        self.left_out: dict[str, str] = {}
        self._tokenizer, self._dtype, self._base = tokenizer, dtype, base
        self._base_asking = self._asking(None)
        # A row must be answered by an adapter with the settings by which the row was made, while adapters of its name
        # may be loaded and unloaded concurrently. Loads and unloads therefore take turns. `_asking_of` has an adapter
        # only after the bank has it; `_latest` has it before that, and keeps it after unloading. A row is answered only
        # if its `way` is still that of the latest adapter of the name.
        self._changes = threading.Lock()
        self._asking_of: dict[str, Asking] = {}
        self._latest: dict[str, Asking] = {}

    def load(self, name: str, directory: Path) -> Method:
        """Loads an adapter with its task; a failure is recorded in `left_out`.

        Raises:
          UserError: as `AdapterBank.read` and `put`, or its labels or prompt do not fit this server.
          RunFailed: a file is damaged.
        """
        try:
            asking = self._asking(task_of(directory))
            own = note_on_tokenizer(directory, lambda: self._tokenizer)
            method, leaves, notes = self.bank.read(directory)
            notes = [*notes, *filter(None, [own])]
            asking = dataclasses.replace(asking, notes=(*asking.notes, *(f"{note}." for note in notes)))
            with self._changes:
                self._put(name, method, leaves, str(directory), asking)
        except Exception as error:
            said = str(error) if isinstance(error, UserError | RunFailed) else f"a defect: {error!r}"
            self.left_out[name] = said.partition("\n")[0]
            raise
        self.left_out.pop(name, None)
        return method

    def _put(self, name: str, method: Method, leaves: Mapping[str, np.ndarray], source: str, asking: Asking) -> None:
        """Adds an adapter and its settings to the bank; if the bank refuses it, nothing changes."""
        before = self._latest.get(name)
        way = 0 if before is None else before.way + (before.task != asking.task)
        self._latest[name] = asking = dataclasses.replace(asking, way=way)
        try:
            self.bank.put(name, method, leaves, source=source)
        except BaseException:
            if before is None:
                del self._latest[name]
            else:
                self._latest[name] = before
            raise
        self._asking_of[name] = asking

    def unload(self, name: str) -> None:
        """Unloads an adapter. Raises `UnknownAdapter` if none of that name is loaded."""
        with self._changes:
            self.bank.remove(name)
            self._asking_of.pop(name, None)

    def set_base_task(self, task: TaskOfRun | None) -> None:
        """Sets the task that the base was tuned for, if it is a merged or fully tuned model. Raises as `load`."""
        if task is not None:
            self._base_asking = self._asking(task)

    @property
    def askings(self) -> dict[str, Asking]:
        """The settings of the loaded adapters by name, sorted."""
        return dict(sorted(self._asking_of.copy().items()))

    def asking(self, adapter: str | None) -> Asking:
        """The settings of an adapter; None is the base model.

        Raises:
          UnknownAdapter: none of that name is loaded.
        """
        if adapter is None:
            return self._base_asking
        asking = self._asking_of.get(adapter)
        if asking is None:
            raise UnknownAdapter([adapter])
        return asking

    def _asking(self, task: TaskOfRun | None) -> Asking:
        longest_input, longest_output = self.shapes.input_lengths[-1], self.shapes.output_lengths[-1]
        if task is None:
            tokens = QuestionTokens(self._tokenizer, _UNCUT, key="the longest input")
            return Asking(None, None, tokens, None, self.shapes.output_lengths[0])
        tokenizer = self._tokenizer.asked_by(task.chat_template)
        tokens = QuestionTokens(tokenizer, task.max_input_length, key="max_input_length of its task.json")
        tokens.check(task.template)
        labels = self._packed(task.chosen_from, tokenizer) if task.chosen_from else None
        notes = []
        if task.max_input_length > longest_input:
            here = f"{longest_input} are taken, and longer ones refused"
            notes.append(f"its run took inputs of {task.max_input_length} tokens; here {here}.")
        if labels is None and task.max_target_length > longest_output:
            notes.append(f"its run gave answers of {task.max_target_length} tokens; here {longest_output} are given.")
        if labels is None and task.num_beams > 1:
            notes.append(f"its run's test searched with {task.num_beams} beams; here answers are greedy.")
        if (line := task.in_other_bits(self.bank.quantization)) is not None:
            notes.append(f"it {line}.")
        if (line := task.on_another_base(self._base)) is not None:
            notes.append(f"it {line}.")
        if (line := task.in_other_tokens(tokenizer.chat_tokens)) is not None:
            notes.append(f"it {line}.")
        if self._dtype is not None and task.dtype not in ("auto", self._dtype):
            notes.append(f"its run computed in {task.dtype}; here it is {self._dtype}.")
        prompt = PromptTemplate(task.template, required=False)
        return Asking(task, prompt, tokens, labels, min(task.max_target_length, longest_output), tuple(notes))

    def _packed(self, labels: Sequence[str], tokenizer: Tokenizer) -> PackedLabels:
        packed = PackedLabels.of(labels, tokenizer, self.bank.config)
        room = self.shapes.label_tokens
        if len(packed.targets) > room:
            here = f"has room for {room}" if room else "scores no labels"
            raise UserError(
                f"the {len(labels)} labels have {len(packed.targets)} tokens together, and this server {here}; start "
                f"it with --label-tokens {len(packed.targets)}."
            )
        return packed

    def rows(
        self,
        inputs: Sequence[str | Mapping[str, Any]],
        adapter: str | None,
        *,
        template: bool = True,
        labels: Sequence[str] | None = None,
        generate: bool = False,
        max_output_tokens: int | None = None,
    ) -> list[QueuedRow]:
        """Tokenises the inputs of a request and returns them as rows for the batcher.

        Args:
          inputs: texts, or the columns of rows by name.
          template: whether the adapter's template is applied; if not, a text is the whole prompt.
          labels: to choose from, instead of the adapter's own.
          generate: whether to generate although the adapter has labels.
          max_output_tokens: None for the adapter's own limit.

        Raises:
          UserError: an input lacks a column or is too long, or labels are not usable.
          UnknownAdapter: the adapter is not loaded.
        """
        if labels is not None and generate:
            raise UserError("labels and generate exclude each other: labels are chosen from, not generated.")
        asking = self.asking(adapter)
        packed = (
            None if generate else asking.labels if labels is None else self._packed(labels, asking.tokens.tokenizer)
        )
        prompt = (asking.prompt if template else None) or PromptTemplate()
        if labels is not None and prompt is asking.prompt and asking.task is not None:
            prompt = dataclasses.replace(prompt, template=asking.task.prompt(labels=labels))
        questions = [_question(f"inputs[{i}]", each, prompt) for i, each in enumerate(inputs)]
        encoded = asking.tokens(questions)
        longest = self.shapes.input_lengths[-1]
        for i, ids in enumerate(encoded.ids):
            if len(ids) > longest:
                raise UserError(f"inputs[{i}] has {len(ids)} tokens; at most {longest} are taken.")
        if packed is not None and max_output_tokens is not None:
            raise UserError(
                "max_output_tokens is for generated answers, and these are chosen from labels; leave it out, or send "
                '"generate": true.'
            )
        limit = max_output_tokens or asking.max_output_tokens
        return [
            QueuedRow(ids, adapter, limit, packed, cut, _notes(question, ids, asking.tokens.tokenizer), asking.way)
            for question, ids, cut in zip(questions, encoded.ids, encoded.cut, strict=True)
        ]

    def compile(self, report: Callable[[int, tuple[int, int, int | None]], None] = lambda number, shape: None) -> int:
        """Compiles a program for each shape by running it on padding; returns the number of programs.

        Args:
          report: called before each program with the number of those done and the shape of the next.
        """
        for number, (batch_size, input_length, output_length) in enumerate(self.shapes):
            report(number, (batch_size, input_length, output_length))
            with advising("lower --input-lengths, --output-lengths or --label-tokens"):
                if output_length is None:
                    self._label_log_probs([], batch_size, input_length)
                else:
                    tokens = self._padded([], batch_size, input_length)
                    self.bank.generate(tokens, [None] * batch_size, max_length=output_length)
        return self.bank.num_programs

    def fit_together(self, first: QueuedRow, row: QueuedRow) -> bool:
        """Whether a row may join a batch that is padded for `first`."""
        if (first.labels is None) != (row.labels is None):
            return False
        return all(mine <= its for mine, its in zip(self.shapes.of(row), self.shapes.of(first), strict=True))

    def answer(self, rows: Sequence[QueuedRow]) -> list[Answer | UnknownAdapter | Replaced | NoNumber]:
        """Answers a batch of rows.

        Args:
          rows: at most the largest batch size; all with labels, or all without.

        Returns:
          For each row its answer, or the error: its adapter is not loaded, was replaced by one with other settings, or
          the model computes infinity or NaN.
        """
        answers: dict[int, Answer | UnknownAdapter | Replaced | NoNumber] = {}
        left = list(range(len(rows)))
        while left:
            try:
                chosen = [rows[i] for i in left]
                answer = self._generate if chosen[0].labels is None else self._choose
                answers.update(zip(left, answer(chosen), strict=True))
                break
            except UnknownAdapter as gone:  # the other rows are answered without these
                answers.update({i: UnknownAdapter([name]) for i in left if (name := rows[i].adapter) in gone.names})
                left = [i for i in left if i not in answers]
        for i, row in enumerate(rows):  # checked afterwards: it may have been replaced while the batch ran
            if row.adapter is not None and isinstance(answers[i], Answer):
                latest = self._latest.get(row.adapter)  # kept when unloaded: it was there when it answered
                if latest is None or latest.way != row.way:
                    answers[i] = Replaced(row.adapter)
        return [answers[i] for i in range(len(rows))]

    def _generate(self, rows: Sequence[QueuedRow]) -> list[Answer | NoNumber]:
        input_length, output_length = map(max, zip(*(self.shapes.of(row) for row in rows), strict=True))
        batch_size = _at_least(self.shapes.batch_sizes, len(rows))
        names = [row.adapter for row in rows] + [None] * (batch_size - len(rows))
        inputs = self._padded(rows, batch_size, input_length)
        generated = self.bank.generate(inputs, names, max_length=output_length)
        tokens, are_numbers = np.asarray(generated.tokens), np.isfinite(np.asarray(generated.log_prob))
        outputs = [self._until_end(ids[: row.max_output_tokens]) for ids, row in zip(tokens, rows, strict=False)]
        texts, ends = self._tokenizer.decode(outputs), self._tokenizer.ends
        return [
            Answer(text, len(ids), bool(ids) and ids[-1] in ends, row.cut, row.notes)
            if is_number
            else NoNumber(row.adapter)
            for text, ids, row, is_number in zip(texts, outputs, rows, are_numbers[: len(rows)], strict=True)
        ]

    def _choose(self, rows: Sequence[QueuedRow]) -> list[Answer | NoNumber]:
        input_length = max(self.shapes.of(row)[0] for row in rows)
        log_probs = self._label_log_probs(rows, _at_least(self.shapes.batch_sizes, len(rows)), input_length)
        answers: list[Answer | NoNumber] = []
        for row, scores in zip(rows, log_probs, strict=False):
            assert row.labels is not None
            try:
                choice = row.labels.choose(scores[: len(row.labels.texts)])
            except RunFailed:
                answers.append(NoNumber(row.adapter))
                continue
            tokens = int(row.labels.num_tokens()[row.labels.texts.index(choice.text)])
            numbers = choice.confidence, choice.probabilities
            answers.append(Answer(choice.text, tokens, True, row.cut, row.notes, *numbers))
        return answers

    def _label_log_probs(self, rows: Sequence[QueuedRow], batch_size: int, input_length: int) -> np.ndarray:
        """Log-probabilities of labels, `[batch, num_labels]`; the entries behind a row's own labels are padding."""
        length, num_labels = self.shapes.label_tokens, self.shapes.num_labels
        padding = np.full(length, self.bank.config.pad_token_id, np.int32)
        nothing = padding, padding, np.full(length, num_labels, np.int32)
        packed = [row.labels.filled_up(length, num_labels) for row in rows if row.labels is not None]
        packed += [nothing] * (batch_size - len(rows))
        names = [row.adapter for row in rows] + [None] * (batch_size - len(rows))
        inputs = self._padded(rows, batch_size, input_length)
        return np.asarray(self.bank.label_log_probs(inputs, names, *map(np.stack, zip(*packed, strict=True))))

    def _padded(self, rows: Sequence[QueuedRow], batch_size: int, length: int) -> np.ndarray:
        return padded([row.tokens for row in rows], (batch_size, length), self.bank.config.padding_id)

    def _until_end(self, ids: np.ndarray) -> list[int]:
        """The ids up to and including the first end token; the rest is padding."""
        ends = np.flatnonzero(np.isin(ids, list(self._tokenizer.ends)))
        return ids[: ends[0] + 1].tolist() if len(ends) else ids.tolist()


def _question(where: str, given: str | Mapping[str, Any], prompt: PromptTemplate) -> Question:
    """Makes the question of one input. Raises `UserError` as `_asked_by`, and for text without a visible character."""
    question = _asked_by(where, given, prompt)
    if not any(map(can_be_seen, question.fields.values())):
        raise UserError(f"{where} has no visible text; leave it out, or send its text.")
    return question


def _notes(question: Question, ids: Sequence[int], tokenizer: Tokenizer) -> tuple[str, ...]:
    """Sentences on what of a question the model cannot read as it stands."""
    notes = []
    if pieces := unreadable_in(question, ids, tokenizer):
        shown = listed(list(map(short, pieces[:4])))
        notes.append(f"the model's vocabulary lacks {shown}, which it cannot read.")
    if names := special_tokens_in(question, tokenizer):
        notes.append(f"the input spells special tokens, such as {short(names[0])}; {read_as_text(names, tokenizer)}.")
    return tuple(notes)


def _asked_by(where: str, given: str | Mapping[str, Any], prompt: PromptTemplate) -> Question:
    """Makes the question of one input, a text or columns. Raises `UserError`, saying how to correct the request."""
    if not isinstance(given, str):
        given, by_name = {column.strip(): value for column, value in given.items()}, given  # as for files
        if len(given) < len(by_name):
            raise UserError(f"{where} has two columns whose names differ by white space only; rename one.")
    try:
        return prompt.of_text(given) if isinstance(given, str) else prompt.of_fields(given)
    except SeveralColumns as error:
        said = (
            f"is one text and the adapter's template names {error.columns}; send an object with these, or "
            '"template": false with a whole prompt.'
        )
    except ColumnMissing as error:
        meant = meant_by(error.column, given)
        said = f"has no column {error.column!r}, only {error.there}; the prompt is made of {prompt.columns}.{meant}"
    except ColumnEmpty as error:
        said = f"has nothing in {error.column!r}."
    except NoQuestion as error:
        said = f"{error}."
    raise UserError(f"{where} {said}")
