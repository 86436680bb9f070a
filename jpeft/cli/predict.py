"""`jpeft predict`: answers rows of text with any model and adapter."""

import argparse
import sys
from pathlib import Path

from jpeft.cli.arguments import add_what_answers, path, whole
from jpeft.errors import UserError
from jpeft.words import counted, short

_FORMATS = ("lines", "jsonl", "json", "csv", "tsv", "parquet")
_DESCRIPTION = """Answers texts. Prints one JSON line for each, in the order of the input: the row, `prediction` and
`confidence`.

  jpeft predict --model google/flan-t5-base "Is the sky blue?"
  jpeft predict --adapter runs/lora_custom --input questions.txt --output answers.jsonl
  jpeft predict --adapter runs/lora_agnews_low --input news.jsonl > topics.jsonl      rows with the task's column, text
  jpeft predict --model merged --input mine.jsonl --template 'Translate to German: {english}'
  jpeft predict --model mini --labels "positive,negative" --template "Review: {input} Sentiment?" < reviews.txt

Model: --model is mini, smollm2, a hub id, a directory or a GGUF file. --adapter is the directory of a run or of an
adapter, in jpeft's or PEFT's layout; its base is the one that it names, unless --model names another. An adapter keeps
the prompt template, the labels and the lengths of its run, wherever it is copied to.

Input: a file of rows (.jsonl, .json, .csv, .tsv, .parquet, compressed or not; docs/data.md) or of plain lines. Standard
input is read as JSON lines if its first line is a JSON object. The prompt is made by --template, or by the run's
template if the row has its columns; otherwise it is the row's `input` as it stands, unless `input` is one of them.

If there are labels, the likeliest is chosen and `probabilities` are printed; otherwise an answer is generated.
`confidence` is the mean log-probability of the answer's tokens, including </s>. If the run's prompts list its labels,
so do these, with another --template or other --labels as well. More: docs/predict.md.

The same command resumes a call with --output that was stopped or killed."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft predict` with its flags to the command line."""
    parser = commands.add_parser(
        "predict",
        help="answer texts with any model and adapter",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="to answer, instead of --input")
    add_what_answers(parser)
    rows = parser.add_argument_group("what is answered")
    rows.add_argument("--input", metavar="FILE", help="- is standard input (default)")
    rows.add_argument("--format", choices=_FORMATS, help="default: by FILE's ending, or the first line")
    rows.add_argument("--template", metavar="TEXT", help="the prompt, with a row's columns in it: 'Topic of {text}?'")
    rows.add_argument(
        "--max-input-length",
        type=whole(2, 65_536),
        metavar="TOKENS",
        help="longer prompts are cut (default: a run's, or 512)",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--labels",
        metavar="A,B,...",
        help='choose among these; "A, B" is one with a comma (default: labels of the run)',
    )
    how.add_argument("--generate", action="store_true", help="generate, though the run has labels")
    how.add_argument(
        "--max-output-length",
        type=whole(1, 4_096),
        metavar="TOKENS",
        help="of an answer (default: a run's, or 128)",
    )
    how.add_argument(
        "--num-beams", type=whole(1, 256), metavar="N", help="of generation (default: a run's, or 1, greedy)"
    )
    how.add_argument("--batch-size", type=whole(1, 65_536), default=32, metavar="ROWS", help="default: %(default)s")
    out = parser.add_argument_group("where answers go")
    out.add_argument("--output", type=path, metavar="FILE", help="default: standard output")
    out.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    out.add_argument("--quiet", action="store_true", help="no progress and no summary")
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    from jpeft.data.labels import labels_between_commas
    from jpeft.data.template import template_warnings
    from jpeft.files import require_apart
    from jpeft.predict.answer_file import AnswerFile, files_beside
    from jpeft.predict.answer_source import AnswerSource
    from jpeft.predict.call import Call
    from jpeft.predict.meter import Meter
    from jpeft.predict.output import Printed
    from jpeft.predict.rows import Input
    from jpeft.predict.run import Predicting
    from jpeft.process import prepare_process

    if arguments.output is None and sys.stdout is None:
        raise UserError("standard output is closed; open it, or name a file by --output.")
    if arguments.overwrite and arguments.output is None:
        raise UserError("--overwrite goes with --output, which is not given; name a FILE, or leave it out.")
    given = Input.of(arguments.texts, arguments.input, arguments.format)
    if arguments.output is not None and given.file is not None:
        require_apart(arguments.output, read=[given.file], written=files_beside(arguments.output))
    with Meter(given.size, quiet=arguments.quiet) as meter:
        prepare_process(meter.say)
        for line in template_warnings(arguments.template or ""):
            meter.say(line)
        source = AnswerSource.find(arguments.model, arguments.adapter, report=meter.say)
        call = Call.of(
            source,
            template=arguments.template,
            labels=None if arguments.labels is None else labels_between_commas(arguments.labels, "--labels"),
            generate=arguments.generate,
            max_input_length=arguments.max_input_length,
            max_output_length=arguments.max_output_length,
            num_beams=arguments.num_beams,
            batch_size=arguments.batch_size,
            dtype=arguments.dtype,
            quantization=arguments.quantization,
            report=meter.say,
        )
        if given.from_terminal:
            meter.say("reads lines from the terminal; Ctrl-D ends them")
        if arguments.output is None:
            predicting = Predicting(call, given, Printed(), meter)
            predicting.run()
        else:
            record = {"input": given.name, "format": given.format, **call.record()}
            with AnswerFile(arguments.output, record, overwrite=arguments.overwrite) as file:
                predicting = Predicting(call, given, file, meter)
                predicting.run()
    _summarize(predicting, meter, arguments.output)
    return 0


def _summarize(predicting, meter, output: Path | None) -> None:
    answering = predicting.answering
    if answering is None:
        if output is None:
            meter.say("there was no row to answer")
        else:
            meter.say(f"{output} is complete: {counted(predicting.rows, 'answer')}; --overwrite computes them again")
        return
    rate, compiling = answering.answered / predicting.seconds, answering.program.compile_seconds
    meter.say(
        f"answered  {counted(answering.answered, 'row')} in {predicting.seconds:.1f} s, {rate:,.1f} a second; "
        f"compiled for {compiling:.1f} s"
    )
    if answering.cut:
        meter.say(
            f"cut       {answering.cut:,} of them were longer than --max-input-length, and lost the end of their "
            "longest column"
        )
    if answering.beyond:
        meter.say(
            f"long      {answering.beyond:,} of them have more than the {answering.context_length:,} tokens that the "
            "model was trained for: it may answer them worse"
        )
    if answering.spelling:
        meter.say(
            f"special   {answering.spelling:,} of them spell a special token, such as "
            f"{next(iter(answering.spelled))!r}; {answering.read_as_text}"
        )
    if answering.unended:
        meter.say(
            f"unended   {answering.unended:,} of the answers reached --max-output-length before their end, and are cut "
            "there"
        )
    if answering.unreadable:
        meter.say(
            f"unknown   {answering.unreadable:,} of them have characters that this vocabulary does not have, such as "
            f"{short(answering.lacking)}: the model cannot read them"
        )
    if output is not None:
        meter.say(f"wrote     {output} ({counted(predicting.rows, 'answer')})")
