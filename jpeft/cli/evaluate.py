"""`jpeft evaluate`: evaluates an adapter or model on a labelled file, as a run evaluates its test split."""

import argparse
import json

from jpeft.cli.arguments import add_what_answers, path, whole
from jpeft.errors import UserError
from jpeft.files import output_path

_DESCRIPTION = """Answers every row of a labelled file and computes the metrics, as the run's own test does: with its
prompt, labels, lengths, way of answering and metric.

  jpeft evaluate --adapter runs/tickets --data new.csv
  jpeft evaluate --adapter runs/tickets --data other.jsonl --target label --input body --output answers.jsonl
  jpeft evaluate --model google/flan-t5-base --data mine.csv --template 'Summarize: {text}' --target summary

--adapter is a run's directory or an adapter's, wherever it was exported to; --model a merged model, the result of full
tuning, or the base of an adapter that has moved. --data is a file (.csv, .tsv, .jsonl, .json, .parquet), or a directory
as runs read it, of which --split is taken. Columns are called as in the run's own rows unless --target, --input or
--template say otherwise. If the run's prompts list its labels, a --template gets the list, too.

Rows with a label that the run did not know count as wrong; their number is printed. If the run's own rows still exist,
so is how many rows of the file the run trained on. --output writes one line per row, as a run's predictions.jsonl.
More: docs/evaluate.md."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft evaluate` with its flags to the command line."""
    parser = commands.add_parser(
        "evaluate",
        help="evaluate an adapter or model on a labelled file",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_what_answers(parser)
    rows = parser.add_argument_group("what is judged")
    rows.add_argument("--data", type=path, required=True, metavar="FILE", help="rows with their right answers")
    rows.add_argument("--split", metavar="NAME", help="which split of a directory (default: test)")
    rows.add_argument("--target", metavar="COLUMN", help="column of the right answers (default: the run's)")
    rows.add_argument("--input", metavar="COLUMN", help="column of the texts, instead of the template's columns")
    rows.add_argument("--template", metavar="TEXT", help="the prompt, with a row's columns in it (default: the run's)")
    how = parser.add_argument_group("how")
    how.add_argument("--answer", help="generate, or score to choose from the labels (default: as the run's test)")
    how.add_argument(
        "--metrics", metavar="NAMES", help="metrics to compute, separated by commas (default: those of the run's test)"
    )
    how.add_argument("--num-beams", type=whole(1, 256), metavar="N", help="beams of generation (default: the run's)")
    how.add_argument("--batch-size", type=whole(1, 65_536), default=32, metavar="ROWS", help="default: %(default)s")
    out = parser.add_argument_group("what comes out")
    out.add_argument("--output", type=path, metavar="FILE", help="one JSON line a row: input, target, answer, score")
    out.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    out.add_argument("--json", action="store_true", help="print the numbers as JSON")
    out.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from jpeft.rows.reading import require_lines_ending

    output = arguments.output
    if arguments.overwrite and output is None:
        raise UserError("--overwrite goes with --output, which is not given; name a FILE, or leave it out.")
    if output is not None and (output.is_dir() or (output.exists() and not arguments.overwrite)):
        what = "a directory; name a file" if output.is_dir() else "there already; name another, or give --overwrite"
        raise UserError(f"--output {output} is {what}.")
    if output is not None:
        require_lines_ending(output, f"--output {output}")
        output = output_path(output, f"--output {output}")

    from jpeft.data.sources import files_read
    from jpeft.data.template import template_warnings
    from jpeft.files import require_apart, require_writable
    from jpeft.predict.answer_source import AnswerSource
    from jpeft.predict.evaluation import Evaluation, evaluate
    from jpeft.process import prepare_process
    from jpeft.run.display import Display

    display = Display(quiet=arguments.quiet)
    prepare_process(display.say)
    for line in template_warnings(arguments.template or ""):
        display.say(line)
    source = AnswerSource.find(arguments.model, arguments.adapter, report=display.say)
    test = Evaluation.of(
        source,
        template=arguments.template,
        input=arguments.input,
        target=arguments.target,
        answer=arguments.answer,
        num_beams=arguments.num_beams,
        dtype=arguments.dtype,
        quantization=arguments.quantization,
        metrics=arguments.metrics,
        report=display.say,
    )
    if output is not None:  # checked before the work
        require_apart(output, read=files_read(test.task, arguments.data))
        require_writable(output)
    name, rows = test.read(arguments.data, arguments.split, report=display.say)
    total = len(next(iter(rows.values()))) * (2 if test.answer == "score" else 1)
    with display.task(str(arguments.data), total) as bar:
        outcome = evaluate(test, name, rows, batch_size=arguments.batch_size, on_rows=bar.advance, report=display.say)
    if arguments.json:
        print(json.dumps({"data": str(arguments.data), **outcome.record()}, indent=2, ensure_ascii=False))
    else:
        _print(outcome, arguments)
    if output is not None:  # last: if the disk is full, the metrics have been printed
        outcome.write(output)
    return 0


def _print(outcome, arguments: argparse.Namespace) -> None:
    from jpeft.cli.run_summary import print_classes, print_macro_f1, print_numbers
    from jpeft.predict.evaluation import shown_labels
    from jpeft.words import counted

    record = outcome.record()
    rows = record["rows"]
    print_numbers({**record, "test_examples": rows})
    if record["per_class"] is not None:
        print_macro_f1(record)
        print_classes(record["per_class"])
    if outcome.unknown_labels:
        unknown = sum(outcome.unknown_labels.values())
        labels, known = shown_labels(outcome.unknown_labels), outcome.accuracy_of_known
        others = "there are no others" if known is None else f"accuracy of the others {known:.4f}"
        print(f"unknown  {counted(unknown, 'row')} with labels that the run did not know ({labels}): wrong whatever")
        print(f"         is answered; {others}")
    if record["cut"]["inputs"]:
        longest = outcome.test.task.max_input_length
        print(f"cut      {record['cut']['inputs']:,} of {rows:,} inputs to {longest} tokens, in their longest column")
    if outcome.test.answer == "generate" and (cut := record["cut"]["targets"]):
        most = outcome.test.task.max_target_length
        print(f"cut      {cut:,} of {rows:,} targets are longer than the {most} tokens of an answer: none can be it")
    for split, number in (outcome.seen or {}).items():
        if number:
            what = "trained on" if split == "train" else "chose its best epoch by"
            print(f"seen     {number:,} of {counted(rows, 'row')} have a text that the run {what}: the number is too")
            print("         good for them")
    if outcome.why_not_seen is not None and outcome.test.source.task is not None:
        which = "the run" if outcome.seen is None else "an earlier run"
        print(f"seen     whether {which} trained on any of these rows is not known: {outcome.why_not_seen}")
    for line in record["warnings"]:
        print(f"warning  {line}")
    if arguments.output is not None:
        print(f"written  {arguments.output} ({counted(rows, 'row')})")
