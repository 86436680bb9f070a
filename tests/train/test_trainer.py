"""The trainer on a model of one number: evaluations, the best state, and resuming after any interruption."""

import contextlib
import dataclasses
import itertools
import json
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpeft.errors import RunFailed, Stopped
from jpeft.mesh.layout import Layout
from jpeft.program import Program
from jpeft.run.processes import host_copy
from jpeft.train.monitor import Monitor
from jpeft.train.optimizer import AdamW
from jpeft.train.programs import AnsweringPrograms, Programs
from jpeft.train.progress import Progress
from jpeft.train.schedule import three_point_schedule
from jpeft.train.step import StepSums, init_state, make_update
from jpeft.train.stream import Step
from jpeft.train.trainer import Course, Listener, TimedEvaluator, Trainer


class Plain(Program):
    """Calls a function in place of a compiled program."""

    def __call__(self, *args):
        return self.function(*args)


@jax.jit
def accumulate(sums, adapter, base, key, step, micro, batch):
    noise = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, step), micro))
    pull = adapter["weight"] - batch["x"] * base["scale"] + noise
    return StepSums(nnx.State({"weight": sums.grads["weight"] + pull}), sums.loss + pull**2, sums.tokens + 1)


OPTIMIZER = AdamW()
UPDATE = jax.jit(make_update(OPTIMIZER))


class Numbers:
    """Two micro-batches per step, of numbers drawn from the position in the stream."""

    def start(self):
        return {"at": 0}

    def where(self, position):
        return {"part": position["at"] // 4}

    def steps(self, position):
        for at in itertools.count(position["at"]):
            values = np.random.default_rng([7, at]).normal(size=2).astype(np.float32)
            yield Step(
                [{"x": np.asarray(value)} for value in values],
                {"at": at + 1},
                2,
                {"tokens": 2},
                lambda at=at: f"rows {at}",
            )


@dataclasses.dataclass
class Away:
    """`<split>/loss` is the distance of the number from `target`."""

    split: str
    target: float
    asked: list = dataclasses.field(default_factory=list)
    what: str = ""
    rows: int = 3

    def __call__(self, adapter, base, on_rows):
        numbers = {f"{self.split}/loss": abs(float(adapter["weight"]) - self.target)}
        for _ in range(3):
            on_rows(1)
        self.asked.append(numbers[f"{self.split}/loss"])
        return numbers


class InMemory:
    """Checkpoints in memory, without Orbax's seconds."""

    kept: dict = {}

    def __init__(self, directory, read, *, report):
        self._at, self._read = self.kept.setdefault(directory, {}), read

    def save(self, number, arrays, progress):
        assert all(number >= before for before in self._at)
        self._at.setdefault(number, (host_copy(arrays), json.dumps(dataclasses.asdict(progress))))

    def restore(self, like):
        if not self._at:
            return None
        arrays, progress = self._at[max(self._at)]
        return jax.tree.map(jnp.asarray, arrays), self._read(**json.loads(progress))

    def finish(self):
        pass

    close = finish


@pytest.fixture
def in_memory(monkeypatch):
    monkeypatch.setattr("jpeft.train.trainer.Checkpoints", InMemory)


@pytest.fixture
def trainer(tmp_path):
    def make(name="run", *, evaluators=None, monitor=None, listener=None, steps=12, rate=0.2, scale=1.0):
        evaluators = evaluators or [TimedEvaluator(Away("validation", 0.4), 4)]
        weight = nnx.State({"weight": jnp.float32(1.0)})
        answering = AnsweringPrograms(Layout.of_devices(), Plain(float), None)
        course = Course(
            total_steps=steps,
            schedule=three_point_schedule(rate, 2 * rate, rate, total_steps=steps, warmup_fraction=0.3),
            evaluations=evaluators,
            monitor=monitor,
            seed=0,
            checkpoint_every_seconds=1e9,
            remedy="less",
        )
        (tmp_path / name).mkdir(exist_ok=True)
        return Trainer(
            Layout.of_devices().place(init_state(weight, OPTIMIZER)),
            nnx.State({"scale": jnp.float32(scale)}),
            Programs(Plain(accumulate), Plain(UPDATE), Plain(float), answering),
            Numbers(),
            course,
            Layout.of_devices(),
            Progress({"at": 0}, {"train": 0.0, "validation": 0.0, "compile": 0.0}),
            directory=tmp_path / name,
            report=lambda line: None,
            listener=listener or Listener(),
        )

    return make


def outcome(made: Trainer):
    log = (made._directory / "metrics.jsonl").read_text()
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(made.arrays())]
    progress = dataclasses.replace(made.progress, seconds={})
    return [array.tobytes() for array in arrays], progress, [json.loads(line) for line in log.splitlines()]


def run(made: Trainer):
    with made.at_work():
        made.train()
    return outcome(made)


def test_evaluators_have_their_own_times_and_all_of_them_one_at_the_end(trainer, in_memory):
    often, seldom = Away("often", 0.0), Away("seldom", 0.0)
    made = trainer(evaluators=[TimedEvaluator(often, 2), TimedEvaluator(seldom, 5)], steps=7)
    _, progress, log = run(made)
    assert [set(numbers) for numbers in progress.history] == [
        {"often/loss"}, {"often/loss"}, {"seldom/loss"}, {"often/loss"}, {"often/loss", "seldom/loss"},
    ]  # fmt: skip
    assert [record["steps_done"] for record in log if "steps_done" in record] == [2, 4, 5, 6, 7]
    assert [record["step"] for record in log if "step" in record] == list(range(1, 8))
    assert log[2] == {"steps_done": 2, "part": 0, "often_loss": often.asked[0]}
    assert progress.counts == {"tokens": 14} and progress.position == {"at": 7}


class Told(Listener):
    """Sends a stop request at one moment: in a step, in an evaluation or after one."""

    def __init__(self, moment):
        self._moment, self._now = moment, 0

    def _reached(self):
        self._now += 1
        if self._now == self._moment:
            signal.raise_signal(signal.SIGTERM)

    @contextlib.contextmanager
    def steps(self, trainer):
        yield lambda step, loss: self._reached()

    @contextlib.contextmanager
    def evaluation(self, trainer, evaluator):
        yield lambda rows: self._reached()

    def evaluated(self, trainer, numbers, *, best):
        self._reached()


def test_stopped_at_any_moment_it_ends_the_same(trainer, in_memory):
    """6 steps, 3 x 3 batches of evaluations, and after each of 3 evaluations, of which the last ends the run."""
    kinds = {"evaluators": [TimedEvaluator(Away("validation", 0.4), 2)], "monitor": Monitor(patience=9), "steps": 6}
    unbroken = run(trainer("unbroken", **kinds))
    stops = 0
    for moment in range(1, 20):
        made = trainer(f"stopped{moment}", listener=Told(moment), **kinds)
        with contextlib.suppress(Stopped):
            run(made)
            continue
        stops += 1
        assert run(trainer(f"stopped{moment}", **kinds)) == unbroken, moment
    assert stops == 6 + 9 + 2  # being asked after the last evaluation changes nothing


def test_stopped_within_an_evaluation_it_begins_with_it_anew(trainer):
    away = Away("validation", 0.4)
    with pytest.raises(Stopped, match="after step 4"):
        run(trainer(evaluators=[TimedEvaluator(away, 4)], listener=Told(6)))
    again = trainer(evaluators=[TimedEvaluator(away, 4)])
    with again.at_work() as restored:
        assert restored and again.step == 4 and not again.progress.history
        again.train()
    assert len(again.progress.history) == 3 and len(away.asked) == 3


def test_the_best_is_kept_and_it_stops_when_nothing_is_better(trainer, in_memory):
    """The number falls from 1, passes 0.4 and moves away from it."""
    kinds = {"evaluators": [TimedEvaluator(Away("validation", 0.4), 1)], "steps": 12}
    made = trainer(monitor=Monitor(patience=2), **kinds)
    run(made)
    losses = [numbers["validation/loss"] for numbers in made.progress.history]
    best = int(np.argmin(losses))
    assert 0 < best == len(losses) - 3 and made.step == len(losses) < 12
    assert made.best is not None and abs(float(made.best["weight"]) - 0.4) == pytest.approx(losses[best])
    last = trainer("last", **kinds)
    run(last)
    assert last.step == 12 and last.best is None


def test_a_number_that_is_not_finite_ends_it_with_its_place(trainer):
    with pytest.raises(RunFailed, match=r"the loss is inf at step 1 \(part 0\), rows 0; try less\."):
        run(trainer("steps", scale=1e30))
    with pytest.raises(RunFailed, match=r"the validation loss is nan after step 4 \(part 1\); try less\."):
        run(trainer("evaluation", evaluators=[TimedEvaluator(Away("validation", float("nan")), 4)]))


@dataclasses.dataclass
class Number:
    """A metric of a step; records when it is read."""

    step: int
    events: list

    def __float__(self):
        self.events.append(("read", self.step))
        return 1.0


@pytest.mark.parametrize("saves", [False, True])
def test_the_numbers_of_a_step_are_read_when_the_next_is_on_its_way_and_before_it_is_saved(saves, trainer, in_memory):
    made, events = trainer(evaluators=[TimedEvaluator(Away("validation", 0.4), 4)], steps=4), []

    def update(state, sums, schedule):
        state, sums, metrics = UPDATE(state, sums, schedule)
        events.append(("update", int(state.step)))
        return state, sums, {name: Number(int(state.step), events) for name in metrics}

    made.programs = dataclasses.replace(made.programs, update=Plain(update))
    made.course = dataclasses.replace(made.course, checkpoint_every_seconds=0.0 if saves else 1e9)
    *_, log = run(made)
    at_once = [(what, step) for step in range(1, 5) for what in ("update", "read")]
    late = [("update", 1), *((what, step + i) for i in range(1, 4) for what, step in (("update", 1), ("read", 0)))]
    assert list(dict.fromkeys(events)) == (at_once if saves else [*late, ("read", 4)])
    assert [record["step"] for record in log if "step" in record] == [1, 2, 3, 4]


def test_what_another_thread_compiles_is_taken_from_no_phase(trainer):
    """Programs may be shared: here the compilation began long before the phase."""
    made, tracing, go = trainer(), threading.Event(), threading.Event()

    def function(x):
        tracing.set()
        go.wait()
        return x

    made.programs = dataclasses.replace(made.programs, loss=Program(function))
    other = threading.Thread(target=made.programs.loss.prepare, args=(np.float32(0),))
    other.start()
    tracing.wait()
    time.sleep(0.2)
    with made.timed("validation"):
        go.set()
        other.join()
    assert made.progress.seconds["validation"] > 0 and made.progress.seconds["compile"] == 0
    with made.timed("validation"):
        Program(lambda x: x + 1).prepare(np.float32(0))
    assert made.progress.seconds["compile"] > 0


def test_rates_and_length_are_no_part_of_a_program(trainer, in_memory):
    run(trainer("one"))
    before = UPDATE._cache_size()
    other = run(trainer("two", steps=8, rate=0.05))
    assert UPDATE._cache_size() == before and other[1].position == {"at": 8}
