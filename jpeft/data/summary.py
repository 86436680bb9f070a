"""Lines that tell a user about a run's rows before training: how they were interpreted, and warnings about them.

Every function returns a list of lines, each about one kind of finding with its count and an example.
"""

import collections
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jpeft.data.batches import Tokens
from jpeft.data.splits import Split, numbers_of
from jpeft.data.tasks import Example, Task
from jpeft.data.template import Template
from jpeft.errors import UserError
from jpeft.model.chat import NONE
from jpeft.model.tokenizer import Tokenizer
from jpeft.rows.values import alike, can_be_seen, is_missing
from jpeft.words import counted, short

_MOST_SHOWN = 8  # labels in one line


def check_labels(labels: Sequence[str], tokenizer: Tokenizer, max_target_length: int) -> None:
    """Raises `UserError` if the vocabulary cannot represent a label, or cannot tell two labels apart."""
    encoded = tokenizer.encode(labels, max_length=max_target_length).ids
    whole = tokenizer.answers(labels)
    seen: dict[tuple[int, ...], int] = {}
    for i, (label, ids) in enumerate(zip(labels, encoded, strict=True)):
        before = seen.setdefault(tuple(ids), i)
        if before == i:
            continue
        if whole[before] == whole[i]:
            lost = "" if label == tokenizer.round_trip([label])[0] else _lost(tokenizer, label)
            reason = f"are the same tokens to this model{lost}; rename one"
        else:
            longest = max(len(whole[before]), len(whole[i]))
            cut = f"are the same in their first {max_target_length} tokens"
            reason = f"{cut}; set data.max_target_length to {longest} or more"
        raise UserError(f"the labels {short(labels[before])} and {short(label)} {reason}.")
    for label, written in zip(labels, tokenizer.round_trip(labels), strict=True):
        if not written:
            raise UserError(f"the label {short(label)} is empty to this model{_lost(tokenizer, label)}; rename it.")


def _lost(tokenizer: Tokenizer, text: str) -> str:
    characters = tokenizer.unknown_characters(text)
    return f", whose vocabulary does not have {', '.join(map(short, characters[:4]))}" if characters else ""


def describe_targets(task: Task, targets: Sequence[Any], *, kind: str | None, few: int) -> list[str]:
    """Says whether a custom task's targets are taken as classes or as text, why, and which key changes that.

    Args:
      targets: of all training rows.
      kind: as the user gave it; None if it was inferred from the targets.
      few: the largest number of distinct targets that are taken as classes.
    """
    texts = [str(target) for target in targets if not is_missing(target)]
    distinct, rows = len({text.strip() for text in texts}), len(texts)
    lines = []
    if kind is None and task.kind == "classification":
        lines.append(
            f"targets are taken as classes: {counted(distinct, 'different one')} in {rows:,} rows "
            "(data.kind=generation takes them as text)"
        )
    elif kind is None:
        why = f"more than {few}" if distinct > few else "too many for so few rows"
        judge = "ROUGE-L" if task.metric == "rouge_l" else task.metric
        lines.append(
            f"targets are taken as text, judged by {judge}: {distinct:,} different ones in {rows:,} rows, {why} "
            "(data.kind=classification takes them as classes)"
        )
    elif task.kind == "classification" and distinct > few:
        lines.append(f"{distinct:,} different targets in {rows:,} rows are classes, as data.kind says")
    spaced = [text for text in texts if text != text.strip()]
    if spaced and task.kind == "classification":
        lines.append(
            f"{len(spaced):,} of {rows:,} targets have white space at an end, such as {short(spaced[0])}: it is ignored"
        )
    return lines


def describe_labels(task: Task, examples: Mapping[str, Sequence[Example]], tokenizer: Tokenizer) -> list[str]:
    """Lists a classification's labels with their numbers of training rows, and warns about suspicious labels.

    Args:
      examples: by split; `train` and `test` are looked at.
    """
    if not task.answers:
        return []
    training = examples["train"]
    counts = collections.Counter(example.target for example in training)
    order = sorted(task.answers, key=lambda label: -counts[label])
    shown = ", ".join(f"{short(label, quoted=False)} {counts[label]:,}" for label in order[:_MOST_SHOWN])
    if len(order) > _MOST_SHOWN:
        shown += f" ... {short(order[-1], quoted=False)} {counts[order[-1]]:,}"
    lines = [f"{counted(len(order), 'class', 'classes')}, of {len(training):,} training rows: {shown}"]
    if len(order) == 1:
        lines.append("every row has the same label: there is nothing to tell apart")
    missing = [label for label in order if not counts[label]]
    if missing:
        lines.append(f"no training row has {_listed(missing)}")
    tested = {example.target for example in examples["test"]}
    untested = [label for label in order if label not in tested]
    if untested:
        lines.append(
            f"no test row has {_listed(untested)}: the test says nothing of {'it' if len(untested) == 1 else 'them'}"
        )
    folded: dict[str, list[str]] = {}
    for label in task.answers:
        folded.setdefault(alike(label), []).append(label)
    for same in folded.values():
        if len(same) > 1:
            by_case = len({" ".join(label.casefold().split()) for label in same}) == 1
            how = "differ by case or white space alone" if by_case else "look the same"
            lines.append(f"the labels {_listed(same)} {how}: if they mean one class, make them one")
    written = dict(zip(task.answers, tokenizer.round_trip(task.answers), strict=True))
    others = [f"{label!r} as {text!r}" for label, text in written.items() if label != text]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        lines.append(
            f"the model cannot write {len(others)} of the labels as they are: {', '.join(others[:3])}{more}; "
            "such an answer counts as the label"
        )
    if not task.is_custom:
        return lines
    whole = tokenizer.answers(task.answers)
    too_long = [label for label, ids in zip(task.answers, whole, strict=True) if len(ids) > task.max_target_length]
    if too_long:
        longest = max(map(len, whole))
        lines.append(
            f"{counted(len(too_long), 'label')} cannot be answered in {task.max_target_length} tokens, such as "
            f"{short(too_long[0])}: generated, it is never right; data.max_target_length={longest} holds all"
        )
    return lines


def describe_draws(splits: Mapping[str, Sequence[Split]]) -> list[str]:
    """Says which splits of a run are drawn from rows of another source split, as those without a file of their own are.

    Args:
      splits: of each file, by the split's name.
    """
    drawn: dict[str, dict[str, None]] = {}
    for part, of_files in splits.items():
        for split in of_files:
            source = split.source.rpartition(":")[2]
            if split.rows and source != part:
                drawn.setdefault(source, {})[part] = None
    return [f"{' and '.join(parts)} rows are drawn from the {source} split" for source, parts in drawn.items()]


def cut_warnings(task: Task, tokens: Mapping[str, Tokens]) -> list[str]:
    """Warns about inputs and targets that were cut, with the config key of the length."""
    where = "" if all(part.cut_inputs == 0 for part in tokens.values()) else _cutting_place(task)
    counts = {split: (part.cut_inputs, len(part)) for split, part in tokens.items()}
    lines = _by_split(f"inputs cut to {task.max_input_length} tokens", counts, f"{where}; data.max_input_length")
    counts = {split: (part.cut_targets, len(part)) for split, part in tokens.items()}
    return lines + _by_split(f"targets cut to {task.max_target_length} tokens", counts, "data.max_target_length")


def context_warnings(tokens: Mapping[str, Tokens], context_length: int | None, note: str) -> list[str]:
    """Warns about rows that are longer, with their targets, than the texts that the model was trained with.

    Args:
      context_length: of the model's config, in tokens; None if no length is new to it.
      note: ends the line, after a semicolon.
    """
    if context_length is None:
        return []
    counts = {
        split: (int(np.sum(part.lengths().sum(axis=1) > context_length)), len(part)) for split, part in tokens.items()
    }
    what = f"rows with more than the {context_length:,} tokens that the model was trained for, answer included"
    return _by_split(what, counts, f"it may answer them worse{note}")


def row_warnings(
    task: Task, examples: Mapping[str, Sequence[Example]], tokens: Mapping[str, Tokens], tokenizer: Tokenizer
) -> list[str]:
    """Warns about rows of any split: unknown characters, empty inputs, a prompt with the answer, special tokens."""
    lines = [*_unknown_character_warnings(task, examples, tokens, tokenizer), *_empty_input_warnings(examples)]
    if task.target in Template.parse(task.template).columns:
        lines.append(f"the prompt shows the column of the answers, {task.target!r}: the metric will mean nothing")
    lines += _special_token_warnings(examples, tokenizer)
    lines += _early_end_warnings(examples, tokens, tokenizer)
    if task.kind == "generation":
        lines += _unwritable_warnings({name: part for name, part in examples.items() if name != "train"}, tokenizer)
    return lines


def _unknown_character_warnings(
    task: Task, examples: Mapping[str, Sequence[Example]], tokens: Mapping[str, Tokens], tokenizer: Tokenizer
) -> list[str]:
    of_template = tokenizer.ids([Template.parse(task.template).render(collections.defaultdict(str))])[0]
    unknown = tokenizer.unknown_token_id
    in_template = 0 if unknown is None else of_template.count(unknown)  # these are in every row: no warning
    lines: list[str] = []
    for what, text_of in (("inputs", _texts_of), ("targets", lambda row: row.target)):
        counts, example = {}, ""
        for split, part in tokens.items():
            ids = part.inputs if what == "inputs" else part.targets
            expected = in_template if what == "inputs" else 0
            if tokenizer.leaves_out_characters:  # such a tokenizer has no unknown token
                rows = [i for i, row in enumerate(examples[split]) if tokenizer.unknown_characters(text_of(row))]
            else:
                rows = [i for i, row in enumerate(ids) if np.sum(row == unknown) > expected]
            counts[split] = (len(rows), len(ids))
            if rows and not example:
                row = examples[split][rows[0]]
                characters = ", ".join(map(short, tokenizer.unknown_characters(text_of(row))[:4]))
                example = f"such as {characters} in {row.id}: the model can neither read nor write them"
        lines += _by_split(f"{what} with characters that this vocabulary does not have", counts, example)
    return lines


def _empty_input_warnings(examples: Mapping[str, Sequence[Example]]) -> list[str]:
    empty = {split: [row.id for row in part if not can_be_seen(_texts_of(row))] for split, part in examples.items()}
    first = next((ids[0] for ids in empty.values() if ids), "")
    counts = {split: (len(ids), len(examples[split])) for split, ids in empty.items()}
    return _by_split("inputs without text", counts, f"as {first}")


def _special_token_warnings(examples: Mapping[str, Sequence[Example]], tokenizer: Tokenizer) -> list[str]:
    counts, example, found = {}, "", set[str]()
    for split, part in examples.items():
        names = [tokenizer.special_names(f"{_texts_of(row)}\n{row.target}") for row in part]
        rows = [i for i, of_row in enumerate(names) if of_row]
        counts[split] = (len(rows), len(part))
        found.update(*names)
        if rows and not example:
            example = f"such as {names[rows[0]][0]!r} in {part[rows[0]].id}"
    return _by_split("rows that spell a special token", counts, f"{example}; {read_as_text(found, tokenizer)}")


def read_as_text(names: Collection[str], tokenizer: Tokenizer) -> str:
    """Says what becomes of special tokens that rows spell, and whether the model's chat template writes them as well.

    Args:
      names: of the tokens that any row spells.
    """
    wording = tokenizer.wording
    if wording.chat_template in (None, NONE):
        return "they are read as text"
    written = {*wording.before, *wording.after, wording.end}
    twice = [name for name in names if tokenizer.vocabulary.get(name) in written]
    if not twice:
        return "they are read as text"
    return (
        f"they are read as text, and the model's chat template writes {_listed(sorted(twice))} around each prompt "
        "itself: leave a chat's markup out of the rows"
    )


def _early_end_warnings(
    examples: Mapping[str, Sequence[Example]], tokens: Mapping[str, Tokens], tokenizer: Tokenizer
) -> list[str]:
    """Warns about targets that contain a token at which the model stops, such as a line break in `eos_token_id`."""
    counts, example = {}, ""
    for split, part in tokens.items():
        rows = [i for i, ids in enumerate(part.targets) if not tokenizer.ends.isdisjoint(ids[:-1].tolist())]
        counts[split] = (len(rows), len(part))
        if rows and not example:
            row = examples[split][rows[0]]
            ids = part.targets[rows[0]].tolist()
            [written] = tokenizer.decode([ids[: next(i for i, id_ in enumerate(ids) if id_ in tokenizer.ends)]])
            example = f"such as {row.id}: of {short(row.target)} an answer gives {short(written)} and ends"
    note = f"{example}; take the token out of eos_token_id in generation_config.json or config.json, or the targets"
    return _by_split("targets with a token at which the model stops", counts, note)


def _unwritable_warnings(judged: Mapping[str, Sequence[Example]], tokenizer: Tokenizer) -> list[str]:
    """Warns about targets that no answer can equal, because the tokenizer normalises some of their characters.

    Targets with unknown characters or with an end are left out: other warnings count them.
    """
    counts, example = {}, ""
    for split, part in judged.items():
        ids = tokenizer.ids([row.target for row in part])
        whole = [
            (row, text)
            for row, text, of_row in zip(part, tokenizer.decode(ids), ids, strict=True)
            if tokenizer.ends.isdisjoint(of_row)
        ]
        changed = [(row, text) for row, text in whole if text.strip() != row.target.strip()]
        changed = [(row, text) for row, text in changed if not tokenizer.unknown_characters(row.target)]
        counts[split] = (len(changed), len(part))
        if changed and not example:
            row, text = changed[0]
            example = f"such as {row.id}, {_first_difference(row.target.strip(), text.strip())}"
    note = f"{example}; accuracy, BLEU and chrF count that as wrong"
    return _by_split("targets that this vocabulary writes otherwise", counts, note)


def _first_difference(target: str, written: str) -> str:
    """Shows two texts from shortly before their first difference."""
    begin = max(0, len(os.path.commonprefix([target, written])) - 10)
    return f"{short(target[begin:])} as {short(written[begin:])}"


def same_token_warnings(
    splits: Mapping[str, Split | Sequence[Split]], inputs: Mapping[str, Sequence[int]], tokens: Mapping[str, Tokens]
) -> list[str]:
    """Warns about validation and test inputs with the same tokens, but not the same text, as one of an earlier split.

    Args:
      inputs: from `jpeft.data.splits.same_inputs`. Inputs of equal text are the subject of `jpeft.data.splits.leaks`.
    """

    def twins(name: str, of: str) -> tuple[int, int]:
        known, texts = {ids.tobytes() for ids in tokens[of].inputs}, set(numbers_of(splits[of], inputs))
        numbers = numbers_of(splits[name], inputs)
        same = [ids.tobytes() in known for ids in tokens[name].inputs]
        return sum(twin and number not in texts for twin, number in zip(same, numbers, strict=True)), len(numbers)

    note = "only what is cut off, or what this vocabulary does not tell apart, differs: what is measured flatters"
    trained = {name: twins(name, "train") for name in ("validation", "test")}
    lines = _by_split("inputs that are the same tokens as a training row's", trained, note)
    validated = {"test": twins("test", "validation")}
    return lines + _by_split("inputs that are the same tokens as a validation row's", validated, note)


def repeat_warnings(task: Task, training: Sequence[Example]) -> list[str]:
    """Warns about training rows that repeat another one, and about inputs with contradicting targets.

    Several targets of an input do not contradict each other if the task has several references per input.
    """
    by_input: dict[str, dict[str, str]] = {}
    repeated = 0
    for row in training:
        targets = by_input.setdefault(row.input, {})
        repeated += row.target in targets
        targets.setdefault(row.target, row.id)
    lines = []
    if repeated:
        lines.append(f"{repeated:,} of {len(training):,} training rows repeat another one, input and target")
    if task.same_input is None:
        contrary = [targets for targets in by_input.values() if len(targets) > 1]
        if contrary:
            ids = list(contrary[0].values())
            lines.append(
                f"{len(contrary):,} training inputs have more than one target, such as that of {ids[0]} and {ids[1]}"
            )
    return lines


def _texts_of(row: Example) -> str:
    """Returns the texts of the row's columns in the prompt, without the template, one column a line."""
    return row.input if row.fields is None else "\n".join(row.fields.values())


def _cutting_place(task: Task) -> str:
    return (
        "at their ends"
        if task.template.strip() == f"{{{task.columns[0]}}}"
        else "the longest column, never the template"
    )


def _by_split(what: str, counts: Mapping[str, tuple[int, int]], note: str) -> list[str]:
    """Returns one line with the number of affected rows of each split; none if no row is affected.

    Args:
      counts: `(affected rows, rows)` by split.
    """
    if not any(count for count, _ in counts.values()):
        return []
    shares = ", ".join(f"{count:,} of {rows:,} {split}" for split, (count, rows) in counts.items() if count)
    return [f"{what}: {shares} ({note})"]


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _MOST_SHOWN} more" if len(labels) > _MOST_SHOWN else ""
    return ", ".join(short(label) for label in labels[:_MOST_SHOWN]) + more
