"""Fuzz test of the command line: wrong calls of every command end with one line of error, no traceback and no hang.

The seed and the number of calls are variable: `JPEFT_FUZZ_SEED=7 JPEFT_FUZZ_CALLS=2000 pytest -m slow tests/fuzz`.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import queue
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jpeft.cli import build_parser, run_experiment
from jpeft.cli.config_flags import _config_keys
from jpeft.config import Run
from jpeft.pretrain.config import Pretraining

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("JPEFT_FUZZ_SEED", "0"))
CALLS = int(os.environ.get("JPEFT_FUZZ_CALLS", "640"))
# On an idle machine; a busy one gives a call less CPU time.
MOST_SECONDS = 30.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
MOST_MEGABYTES = 2048.0
PROCESSES = 2  # each with its own calls and directory

NUMBERS = (
    "-1 0 1 2 3 7 1e3 0.5 -0.0 1e400 nan inf -inf 2147483648 4294967296 9223372036854775808 1180591620717411303424 "
    "0x10 1_000 ١ 1,5 1e-400"
).split() + ["9" * 5000, "1." + "9" * 4000, "+", "-", ""]
TEXTS = [
    "",
    " ",
    "x",
    "None",
    "True",
    "[]",
    "{}",
    "null",
    "a,b,,c",
    ",",
    "=",
    "--",
    "-",
    "*",
    "%s%n%d",
    "日本語",
    "\udcff\udcfe",
    "é\u0301\u200f",
    "a" * 300,
    "n" * 5000,
    "/".join(["d"] * 3000),
    "../../..",
    "~",
    "~no_such_user_here/x",
    "no/such/name",
    "lora",
    "q,v",
    "0-9999999999",
    "5-2",
    "0,2,6-11",
    "{text",
    "{}",
    "{0}",
    "{input:>1000000000}",
    "{input!r:{input}}",
    "{input.__class__}",
    "(((",
    "(a+)+$",
    "(?P<n>.*)(?P=n)",
    "nan",
    "1e999",
    "http://[::1",
    "data=2,model=x",
    "lora:official:99999999",
    "9" * 5000,
    "line\nbreak",
]


def make_files(directory: Path) -> list[str]:
    """Create files and directories that every command must reject where it expects a valid one."""
    directory.mkdir()
    contents = {
        "empty": b"",
        "empty.jsonl": b"",
        "empty.csv": b"",
        "binary.jsonl": bytes(range(256)) * 4,
        "binary.parquet": b"PAR1" + bytes(64) + b"PAR1",
        "binary.py": b"\x00\xff\xfe",
        "deep.jsonl": b"[" * 100_000,
        "deep.json": b'{"a":' * 100_000,
        "list.jsonl": b"[1, 2]\nnull\n3\n",
        "digits.jsonl": b'{"input": ' + b"9" * 5000 + b', "target": "x"}\n',
        "nan.jsonl": b'{"input": NaN, "target": "x"}\n' * 40,
        "surrogate.jsonl": b'{"input": "\\ud800", "target": "x"}\n' * 40,
        "few.jsonl": b'{"input": "a", "target": "b"}\n',
        "quotes.csv": b'input,target\n"a,b\nc,"d\n',
        "raises.py": b"def get_config(*_):\n    raise OSError(5, 'no such luck')\n",
        "exits.py": b"def get_config(*_):\n    raise SystemExit(77)\n",
        "recurses.py": b"def get_config(*a):\n    return get_config(*a)\n",
        "returns.py": b"def get_config(*_):\n    return None\n",
        "nested.py": b"def get_config(*_):\n    return {'train': {'seed': {'deep': 1}}}\n",
        "foreign.py": b"def get_config(*_):\n    return {'train': 3, 'model': {'name': ['x']}}\n",
    }
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    for name, files in {
        "emptydir": {},
        "model": {"config.json": b"[]", "model.safetensors": b"x", "tokenizer.json": b"{"},
        "adapter": {"adapter_config.json": b'{"peft_type": "LORA", "r": "x"}', "adapter_model.safetensors": bytes(9)},
        "run": {"config.json": b"null", "result.json": b"[" * 99_999, "adapter/jpeft_adapter.json": b"{}"},
        "rows": {"train.jsonl": b"", "test.csv": b"\xff"},
    }.items():
        for file, content in {**files}.items():
            (directory / name / file).parent.mkdir(parents=True, exist_ok=True)
            (directory / name / file).write_bytes(content)
        (directory / name).mkdir(exist_ok=True)
    os.mkfifo(directory / "pipe.jsonl")
    (directory / "loop").symlink_to("loop")
    (directory / "nowhere").symlink_to("is_not_there")
    return [*(str(path) for path in sorted(directory.iterdir())), "/dev/null", "/dev/zero", "/proc/self/mem", "/"]


class Place:
    """The valid inputs of calls: a model, rows, a finished run."""

    def __init__(self, directory: Path, model: Path, rows: Path, finished: Path, wrong_files: list[str]):
        self.directory, self.model, self.rows, self.wrong_files = directory, model, rows, wrong_files
        directory.mkdir()
        self.finished = directory / "finished"
        shutil.copytree(finished, self.finished)
        (directory / "taken").mkdir()
        (directory / "taken/file").write_text("mine")
        self.config = ROOT / "configs/lora_custom.py"
        # Valid values: most calls have one wrong value among them, and fail because of it.
        self.right = [str(model), str(rows), str(self.finished), str(self.finished / "adapter"), str(self.config)]

    def run_flags(self) -> list[str]:
        return [
            f"--config={self.config}",
            f"--config.model.name={self.model}",
            f"--config.data.path={self.rows}",
            "--config.train.max_epochs=1",
            "--config.data.max_train=16",
            "--config.data.max_target_length=8",
            "--quiet",
        ]


def value(draw: random.Random, place: Place, kind: str = "") -> str:
    """Draw a value for an option that takes a `number`, a `path` or any text; mostly of that kind but invalid."""
    if kind == "number" and draw.random() < 0.8:
        return draw.choice(NUMBERS)
    if kind == "path" and draw.random() < 0.7:
        return draw.choice(place.wrong_files)
    return draw.choice(draw.choice([NUMBERS, TEXTS, TEXTS, place.wrong_files, place.right]))


def config_flag(draw: random.Random, place: Place, config_type: type = Run) -> str:
    kinds = _config_keys(config_type)
    key = draw.choice(list(kinds))
    kind = "number" if re.match("int|float", kinds[key]) else "path" if re.search("path|name|adapter", key) else ""
    if draw.random() < 0.05:
        at = draw.randrange(len(key))
        key = key[:at] + draw.choice(["", "x", ".", "..", "\udcff", "_"]) + key[at + 1 :]
    return f"--config.{key}={value(draw, place, kind)}" if draw.random() < 0.97 else f"--config.{key}"


def file_flag(draw: random.Random, place: Place) -> str:
    """A flag with an invalid file, directory or config that a run reads."""
    name = draw.choice(
        ["config", "config.data.path", "config.model.name", "config.method.from_adapter", "config.data.path"]
    )
    return f"--config{name}={draw.choice(place.wrong_files)}"


# Makes a call certain to fail, but late, after every check that could report another wrong value.
NO_COLUMN = "--config.data.template=What of {no_such_column}?"


def main_call(draw: random.Random, place: Place) -> list[str]:
    flags = place.run_flags()
    workdir = place.directory / f"run{draw.randrange(10**9)}" if draw.random() < 0.8 else value(draw, place, "path")
    if draw.random() < 0.25:
        wrong = file_flag(draw, place)
        flags = [flag for flag in flags if not flag.startswith(f"{wrong.partition('=')[0]}=")] + [wrong]
        doomed = NO_COLUMN
    else:
        flags += [config_flag(draw, place) for _ in range(draw.choice([1, 1, 2]))]
        doomed = f"--config.model.name={place.directory}/no_model" if draw.random() < 0.6 else NO_COLUMN
    return ["main.py", *flags, doomed, f"--workdir={workdir}"]


def overwrite_call(draw: random.Random, place: Place) -> list[str]:
    doomed = NO_COLUMN if draw.random() < 0.25 else f"--config.model.name={place.directory}/no_model"
    wrong = config_flag(draw, place) if draw.random() < 0.8 else file_flag(draw, place).replace("--config=", "--c=")
    flags = [*place.run_flags(), wrong, doomed]
    return ["main.py", *flags, f"--workdir={place.finished}", "--overwrite"]


def pretrain_call(draw: random.Random, place: Place) -> list[str]:
    flags = [
        f"--config={ROOT / 'configs/pretrain/mini.py'}",
        f"--config.data.path={place.directory}/no_corpus",
        f"--workdir={place.directory}/pretrained",
    ]
    flags += [config_flag(draw, place, Pretraining) for _ in range(draw.choice([1, 2]))]
    return ["jpeft", "pretrain", *flags]


def options(command: str) -> list[argparse.Action]:
    """The flags and positional arguments of a command, taken from its parser."""
    subparsers = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return [a for a in subparsers.choices[command]._actions if not isinstance(a, argparse._HelpAction)]


def commands() -> list[str]:
    subparsers = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return list(subparsers.choices)


def base_of(command: str, place: Place) -> tuple[list[str], list[str]]:
    """A valid call of a command, and arguments that make it certain to fail, as late as possible."""
    out = f"--out={place.directory}/taken"
    run, model = str(place.finished), f"--model={place.model}"
    return {
        "predict": ([model, f"--input={place.rows}"], ["--template=Of {no_such_column}"]),
        "evaluate": ([f"--adapter={run}", f"--data={place.rows}"], [f"--model={place.directory}/no_model"]),
        "serve": ([model, "--port=0"], [f"--adapters={place.directory}/no_adapters"]),
        "merge": ([run], [out]),
        "export": ([run], [out]),
        "import": ([run], [out]),
        "params": ([model], []),
        "quantize": ([str(place.model)], [out]),
        "report": ([run], []),
        "recommend": ([f"--data={place.rows}"], [f"--model={place.directory}/no_model"]),
        "grid": ([f"--config={ROOT / 'configs/benchmark.py'}", "--scales=low", "--dry-run"], []),
        "plan": ([f"--config={place.config}", f"--config.model.name={place.model}"], ["--device=none such"]),
        "train": (place.run_flags(), [f"--config.model.name={place.directory}/no_model"]),
    }[command]


def command_call(draw: random.Random, place: Place, command: str) -> list[str]:
    flags, doomed = base_of(command, place)
    choices = options(command)
    wrong = []
    for _ in range(draw.choice([1, 1, 2])):
        action = draw.choice(choices)
        if not action.option_strings:
            wrong.append(value(draw, place, "path"))
        elif action.nargs == 0 or draw.random() < 0.05:
            wrong.append(action.option_strings[0])
        else:
            named = getattr(action.type, "__name__", "")
            kind = (
                "number"
                if named in ("number", "parsed", "<lambda>", "int", "float")
                else "path"
                if named == "path"
                else ""
            )
            wrong.append(f"{action.option_strings[0]}={value(draw, place, kind)}")
    if command in ("grid", "recommend", "plan", "train") and draw.random() < 0.4:
        wrong.append(config_flag(draw, place))
    if draw.random() < 0.1:
        wrong.append(draw.choice(["--no-such-flag", "--no-such=1", "stray", "--config.x", "--=", "-z", "--config.=="]))
    if draw.random() < 0.1:
        flags = flags[1:]
    return ["jpeft", command, *flags, *wrong, *doomed]


def draw_calls(place: Place, count: int, seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    others = [command for command in commands() if command != "pretrain"]
    makers: list[Callable[[], list[str]]] = [
        *[lambda: main_call(draw, place)] * 5,
        *[lambda: overwrite_call(draw, place)] * 3,
        *[lambda: pretrain_call(draw, place)] * 2,
        *[(lambda command=command: command_call(draw, place, command)) for command in others],
        lambda: ["jpeft", draw.choice(["", "trian", "--version", "-h", "\udcff", "x" * 5000]), value(draw, place)],
    ]
    return [makers[i % len(makers)]() for i in range(count)]


def state(directory: Path) -> str:
    """The names, contents and times of all files in a directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        digest.update(f"{path.relative_to(directory)} {path.lstat().st_mtime_ns if path.is_file() else ''}".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


class Forked:
    """A running `forked.py`."""

    def __init__(self, environment: dict[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forked.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    def __call__(self, argv: list[str], cwd: Path) -> dict:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"argv": argv, "cwd": str(cwd), "seconds": MOST_SECONDS}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def wrong_with(answer: dict) -> list[str]:
    """The rules that a call broke."""
    found = []
    if "Traceback (most recent call last)" in answer["err"] + answer["out"]:
        found.append("traceback")
    if answer["late"]:
        found.append(f"took more than {MOST_SECONDS:g} s")
    elif answer["status"] not in (0, 1, 2):
        found.append(f"exit status {answer['status']}")
    if answer["megabytes"] > MOST_MEGABYTES:
        found.append(f"{answer['megabytes']:.0f} MB")
    if answer["status"] in (1, 2) and not re.search("^error: .", answer["err"], re.MULTILINE):
        found.append("no line that says why")
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_checkpoint, toy_jsonl) -> Path:
    workdir = tmp_path_factory.mktemp("finished") / "run"
    flags = [
        f"--config={ROOT / 'configs/lora_custom.py'}",
        f"--config.model.name={tiny_checkpoint}",
        f"--config.data.path={toy_jsonl}",
        "--config.train.max_epochs=1",
        "--config.data.max_train=16",
        "--config.data.max_target_length=8",
    ]
    assert run_experiment(["main.py", *flags, "--quiet", f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture(scope="module")
def environment(caches) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "JPEFT_CACHE": str(caches),
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PYTHONIOENCODING": "utf-8:surrogateescape",
        "TOKENIZERS_PARALLELISM": "false",
    }


@pytest.mark.slow
def test_wrong_calls_are_one_line_and_harm_nothing(tmp_path, tiny_checkpoint, toy_jsonl, finished, environment):
    wrong_files = make_files(tmp_path / "wrong")
    failures: "queue.Queue[str]" = queue.Queue()
    taken = []

    def work(number: int) -> int:
        place = Place(tmp_path / f"place{number}", tiny_checkpoint, toy_jsonl, finished, wrong_files)
        forked = Forked(environment)
        calls = draw_calls(place, CALLS // PROCESSES, SEED * PROCESSES + number)
        for argv in calls:
            # Files added there by an earlier valid call, such as a report into the run's directory, are fine.
            before = state(place.finished) if "--overwrite" in argv else ""
            answer = forked(argv, place.directory)
            taken.append((answer["seconds"], argv))
            found = wrong_with(answer)
            if "--overwrite" in argv and state(place.finished) != before:
                found.append("the finished run is not what it was")
                shutil.rmtree(place.finished)
                shutil.copytree(finished, place.finished)
                before = state(place.finished)
            if found:
                said = answer["err"].strip().splitlines()[-12:]
                failures.put(f"{', '.join(found)}: {[arg[:200] for arg in argv]}\n    " + "\n    ".join(said))
        forked.close()
        return len(calls)

    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
        done = sum(pool.map(work, range(PROCESSES)))
    found = [failures.get() for _ in range(failures.qsize())]
    slowest = "\n".join(f"{seconds:.1f} s {[arg[:80] for arg in argv]}" for seconds, argv in sorted(taken)[-3:])
    assert not found, f"{len(found)} of {done} calls:\n\n" + "\n\n".join(found) + f"\n\nslowest:\n{slowest}"
    assert done >= 500


@pytest.mark.slow
def test_calls_in_processes_of_their_own_end_as_in_a_fork(tmp_path, tiny_checkpoint, toy_jsonl, finished, environment):
    wrong_files = make_files(tmp_path / "wrong")
    place = Place(tmp_path / "place", tiny_checkpoint, toy_jsonl, finished, wrong_files)
    calls = random.Random(SEED).sample(draw_calls(place, 200, SEED + 99), 6)
    forked = Forked(environment)
    for argv in calls:
        program = [str(ROOT / "main.py")] if argv[0] == "main.py" else ["-m", "jpeft.cli"]
        arguments = [os.fsencode(arg) for arg in argv[1:]]
        done = subprocess.run(
            [sys.executable, *program, *arguments],
            env=environment,
            cwd=place.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
        )
        assert b"Traceback" not in done.stderr, (argv, done.stderr)
        assert done.returncode == forked(argv, place.directory)["status"], argv
    forked.close()
