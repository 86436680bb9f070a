"""`jpeft serve`: serves many adapters of one base over HTTP."""

import argparse
import json
import shlex
import sys
from typing import TYPE_CHECKING

from jpeft.cli.arguments import MODEL, number, path, whole, wholes
from jpeft.words import counted

if TYPE_CHECKING:
    from jpeft.serve.app import Service
    from jpeft.serve.engine import Asking

_DESCRIPTION = """Serves one base model with any number of adapters over HTTP, on one device. Requests for different
adapters share a batch.

  jpeft serve --model mini --adapters runs
  curl localhost:8000/generate -H 'Content-Type: application/json' \\
       -d '{"adapter": "lora_agnews_low", "inputs": ["Ferrari wins in Monza"]}'

Each adapter answers as jpeft predict and its run's own test do: with its template (a request may send columns, or a
complete prompt with "template": false), its labels, from which the likeliest is chosen, and its maximum lengths.

Every adapter in the directory --adapters is loaded at the start: runs, and adapters in jpeft's or PEFT's layout, one
directory each; --adapters may also name a single adapter. They determine the size of the bank: the largest rank, the
longest prompt, the adapted modules. --room reserves space for other adapters, which PUT /adapters/NAME loads later.
Clients can load by name only, from that directory only, and safetensors only. Adapters that cannot be served are listed
with the reason, at the start and by GET /adapters.

All padded shapes are compiled before the server listens: (batch sizes) x (input lengths) x (output lengths, and labels)
programs; later starts take them from the cache. http://HOST:PORT/docs documents requests and errors, /metrics is for
Prometheus, /healthz and /readyz for a supervisor. On SIGTERM the server finishes accepted requests and exits with 0.

There is no authentication and no TLS: leave it on 127.0.0.1, or put a proxy in front of it."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds `jpeft serve` with its flags to the command line."""
    parser = commands.add_parser(
        "serve",
        help="answer over HTTP by many adapters of one base",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, metavar="BASE", help=MODEL)
    parser.add_argument("--adapters", type=path, required=True, metavar="DIR", help="where adapters are loaded from")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of weights and activations (auto: bfloat16 on an accelerator, float32 otherwise)",
    )
    parser.add_argument(
        "--quantization",
        default="auto",
        metavar="HOW",
        help="of the base: none, int8, nf4, nf4,double (auto: as its files have it)",
    )
    parser.add_argument(
        "--also-base", action="append", default=[], metavar="NAME", help="what adapters may call the base, besides BASE"
    )
    parser.add_argument(
        "--capacity", type=whole(1, 65_536), default=64, metavar="N", help="adapters loaded at once (64)"
    )
    parser.add_argument(
        "--room",
        action="append",
        default=[],
        metavar="METHOD[:READING[:SIZE]]",
        help="room for adapters that come later, such as lora:official:16 or prompt:paper:20; may be repeated",
    )
    shapes = parser.add_argument_group("shapes, compiled at the start; the last of each is the largest that is taken")
    shapes.add_argument("--batch-sizes", type=wholes(1, 4096), default=(1, 4, 16), metavar="N,..", help="rows (1,4,16)")
    shapes.add_argument(
        "--input-lengths",
        type=wholes(2, 65_536),
        metavar="N,...",
        help="tokens (64,256, the last raised to the runs' own)",
    )
    shapes.add_argument(
        "--output-lengths",
        type=wholes(1, 16_384),
        metavar="N,...",
        help="tokens (16,64, the last raised to the runs' own)",
    )
    shapes.add_argument(
        "--label-tokens",
        type=whole(0, 65_536),
        metavar="N",
        help="of all labels of a row (as many as the adapters' have)",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-inputs", type=whole(1), default=16, metavar="N", help="of one request (16)")
    limits.add_argument("--max-body-bytes", type=whole(1), default=1 << 20, metavar="N", help="of one request (1 MiB)")
    limits.add_argument("--max-input-chars", type=whole(1), default=65536, metavar="N", help="of one input (65536)")
    limits.add_argument("--max-queue", type=whole(1), default=256, metavar="N", help="inputs that may wait (256)")
    limits.add_argument("--max-wait-ms", type=number(0), default=5.0, metavar="MS", help="for a batch to fill (5)")
    limits.add_argument("--timeout", type=number(0), default=60.0, metavar="S", help="of one request (60)")
    parser.add_argument(
        "--follow-links", action="store_true", help="serve adapters that links in DIR lead to, wherever they are"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=whole(0, 65_535), default=8000, help="0 takes a free one (8000)")
    parser.add_argument("--json", action="store_true", help="print what is served as one line of JSON")
    parser.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    from jpeft.serve.listen import bind, require_extra, serve_until_told

    require_extra()
    with bind(arguments.host, arguments.port) as bound:  # first, so that a port in use is an error at once
        service = _service(arguments)

        def listening(url: str) -> None:
            loaded = service.engine.bank.names
            if arguments.json:
                print(json.dumps({"url": url, "model": arguments.model, "adapters": loaded}), flush=True)
            else:
                what = f"{arguments.model} and {counted(len(loaded), 'adapter')}"
                print(f"serving  {what} at {url}, documented at {url}/docs", flush=True)
                if loaded:
                    print(f"ask      {_example(url, loaded[0], service.engine.asking(loaded[0]))}", flush=True)

        serve_until_told(service, bound, listening)
    return 0


def _example(url: str, name: str, asking: "Asking") -> str:
    """An example `curl` command for an adapter."""
    columns = () if asking.prompt is None else asking.prompt.columns
    given = "a text" if len(columns) < 2 else {column: "a text" for column in columns}
    body = shlex.quote(json.dumps({"adapter": name, "inputs": [given]}, ensure_ascii=False))
    return f"curl {url}/generate -H 'Content-Type: application/json' -d {body}"


def _service(arguments: argparse.Namespace) -> "Service":
    """Loads the model and adapters, and compiles all shapes."""
    from jpeft.process import prepare_process
    from jpeft.serve.app import Service
    from jpeft.serve.limits import Limits
    from jpeft.serve.start import Choices, ShapeFlags, start

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    prepare_process(say)
    sizes = ShapeFlags(arguments.batch_sizes, arguments.input_lengths, arguments.output_lengths, arguments.label_tokens)
    choices = Choices(
        model=arguments.model,
        adapters=arguments.adapters,
        dtype=arguments.dtype,
        base_names=(arguments.model, *arguments.also_base),
        capacity=arguments.capacity,
        room=tuple(arguments.room),
        follow_links=arguments.follow_links,
        quantization=arguments.quantization,
    )
    limits = Limits(
        inputs=arguments.max_inputs,
        body_bytes=arguments.max_body_bytes,
        characters=arguments.max_input_chars,
        queued_rows=arguments.max_queue,
        wait_seconds=arguments.max_wait_ms / 1000,
        request_seconds=arguments.timeout,
    )
    return Service(*start(choices, sizes, say=say), limits)
