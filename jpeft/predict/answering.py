"""Answers a window of rows: generates answers, or chooses the likeliest label."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jpeft.data.prompts import PromptIds
from jpeft.data.summary import read_as_text
from jpeft.eval.generate import Batching, by_row, make_generate_scored, num_unended
from jpeft.eval.labels import PackedLabels, make_label_log_probs, rounded
from jpeft.model.language_model import advising
from jpeft.model.tokenizer import Tokenizer
from jpeft.peft.attaching import split
from jpeft.predict.questions import Question, QuestionTokens, special_tokens_in, unreadable_in
from jpeft.program import Program, spec
from jpeft.recent import Recent

_LEAST_LENGTH = 16


class Answering(abc.ABC):
    """A loaded model that answers. Few shapes are compiled: lengths, and sizes of short batches, are powers of two.

    Attributes:
      answered: the number of rows answered so far.
      cut: how many of them had an input longer than `max_input_length`.
      beyond: how many had more tokens than the model was trained for.
      spelling: how many spell a special token.
      spelled: the names of these tokens.
      unreadable: how many contain what the vocabulary lacks.
      lacking: the first such piece; empty if there is none.
      unended: how many generated answers reached the most tokens of an answer before their end.
      program: the compiled program, with its compile time.
    """

    program: Program

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        max_input_length: int,
        batch_size: int,
        answer_length: int,
        key: str = "--max-input-length",
        remedy: str,
    ):
        """Prepares answering; programs are compiled with the first batch of each shape.

        Args:
          max_input_length: in tokens; longer prompts are cut as in training.
          batch_size: rows.
          answer_length: tokens of an answer, or of all labels together.
          key: the name of `max_input_length` in messages.
          remedy: what the message advises if the model has too few positions.
        """
        self.graphdef, self._adapter, self._base = split(model)
        self._config, self._tokenizer = model.config, tokenizer
        self._tokens = QuestionTokens(tokenizer, max_input_length, key=key)
        self._batch_size, self._remedy = batch_size, remedy
        self._shapes = [(length, 1) for length in lengths_up_to(max_input_length, model.longest_input(answer_length))]
        self.context_length: int | None = model.config.context_length
        self.answered = self.cut = self.beyond = self.spelling = self.unreadable = self.unended = 0
        self.spelled: dict[str, None] = {}
        self.lacking = ""

    def __call__(
        self, questions: Sequence[Question | str], *, on_batch: Callable[[int], None] = lambda rows: None
    ) -> list[dict[str, Any]]:
        """Answers questions; a text is a whole prompt.

        Args:
          on_batch: called after each batch with its number of questions.

        Returns:
          For each question the fields of its answer's line.
        """
        asked = [Question.as_it_stands(each) if isinstance(each, str) else each for each in questions]
        encoded = self._tokens(asked)
        with advising(self._remedy):
            results = by_row(
                self.program,
                self._adapter,
                self._base,
                [np.asarray(ids, np.int32) for ids in encoded.ids],
                Batching(
                    shapes=self._shapes,
                    batch_size=min(self._batch_size, power_of_two(len(asked))),
                    padding_id=self._config.padding_id,
                    on_batch=on_batch,
                ),
            )
        self._count(asked, encoded)
        return self._answers(results)

    def _count(self, asked: Sequence[Question], encoded: PromptIds) -> None:
        self.answered += len(asked)
        self.cut += encoded.num_cut
        if self.context_length is not None:
            self.beyond += sum(len(ids) > self.context_length for ids in encoded.ids)
        names = [special_tokens_in(question, self._tokenizer) for question in asked]
        self.spelling += sum(map(bool, names))
        self.spelled |= dict.fromkeys(name for of_question in names for name in of_question)
        for question, ids in zip(asked, encoded.ids, strict=True):
            if pieces := unreadable_in(question, ids, self._tokenizer):
                self.unreadable += 1
                self.lacking = self.lacking or pieces[0]

    @property
    def read_as_text(self) -> str:
        """Says what becomes of the special tokens that the questions spell."""
        return read_as_text(self.spelled, self._tokenizer)

    @abc.abstractmethod
    def _answers(self, results: list[Any]) -> list[dict[str, Any]]:
        """The answers' fields, from the program's result for each row."""


class Generating(Answering):
    """Generates answers; the confidence is the mean log-probability of an answer's tokens, `</s>` included."""

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        max_output_length: int,
        num_beams: int,
        made: Recent[Program] | None = None,
        **batching: Any,
    ):
        """Args: `made`: programs of earlier instances, reused for a model of the same structure."""
        key = batching.get("key", "--max-input-length")
        remedy = f"lower {key} or {key.replace('input', 'output')}"
        super().__init__(model, tokenizer, answer_length=max_output_length, remedy=remedy, **batching)
        lengths = {"max_length": max_output_length, "num_beams": num_beams}
        make = lambda: Program(make_generate_scored(self.graphdef, **lengths))
        trees = (self._adapter, self._base)
        shardings = tuple(getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(trees))
        self.program = (
            make() if made is None else made.get((self.graphdef, spec(trees), shardings, *lengths.values()), make)
        )

    def _answers(self, results: list[Any]) -> list[dict[str, Any]]:
        tokens = [result.tokens.tolist() for result in results]
        self.unended += num_unended(tokens, self._tokenizer)
        texts = self._tokenizer.decode(tokens)
        return [
            {"prediction": text, "confidence": rounded(result.log_prob)}
            for text, result in zip(texts, results, strict=True)
        ]


class Choosing(Answering):
    """Chooses the likeliest label; its confidence is as if it were generated, probabilities are among the labels."""

    def __init__(self, model: Any, tokenizer: Tokenizer, *, labels: Sequence[str], **batching: Any):
        self._labels = PackedLabels.of(labels, tokenizer, model.config)
        super().__init__(
            model,
            tokenizer,
            answer_length=len(self._labels.targets),
            remedy="lower --max-input-length, or have the answers generated (--generate)",
            **batching,
        )
        self.program = Program(make_label_log_probs(self.graphdef, self._labels))

    def _answers(self, results: list[Any]) -> list[dict[str, Any]]:
        choices = map(self._labels.choose, results)
        return [
            {"prediction": choice.text, "confidence": choice.confidence, "probabilities": choice.probabilities}
            for choice in choices
        ]


def lengths_up_to(longest: int, most: int | None = None) -> list[int]:
    """The padded lengths up to `longest`: powers of two from 16 on, capped at `most`, the model's limit.

    A `longest` above `most` is the last length, so that the model raises its own error.
    """
    lengths = [_LEAST_LENGTH]
    while lengths[-1] < longest:
        lengths.append(lengths[-1] * 2)
    if most is None or lengths[-1] <= most:
        return lengths
    return [*(length for length in lengths if length < most), most, *([longest] if longest > most else [])]


def power_of_two(least: int) -> int:
    """The smallest power of two that is not below `least`."""
    return 1 << (least - 1).bit_length()
