"""Pretraining of decoder-only models: packed rows, isolation of the examples of a row, and whole runs."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file

from jpeft.errors import UserError
from jpeft.eval.loss import loss_sums
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.model.family import load_model
from jpeft.model.tokenizer import Tokenizer
from jpeft.pretrain import mixture
from jpeft.pretrain.config import Pretraining
from jpeft.pretrain.loop import pretrain
from jpeft.pretrain.next_token import NextToken
from jpeft.pretrain.packing import TokenPair
from jpeft.pretrain.setup import load_tokenizer, mixture_of_run, network_config
from jpeft.run.display import Display
from tests.conftest import slow_but
from tests.decoders import MORE, TINY_DECODERS, random_decoder

QUIET = Display(quiet=True)


def objective(room: int = 12, before: tuple[int, ...] = ()) -> NextToken:
    return NextToken(room - 4, 4, before=before, eos_token_id=1, pad_token_id=0)


def test_a_text_is_read_from_its_first_token_and_ends_where_it_is_whole():
    ids, rng = np.array([5, 6, 7]), np.random.default_rng(0)
    whole = objective().of_text(ids, is_end=True, rng=rng)
    assert (whole.input.tolist(), whole.target.tolist()) == ([5], [6, 7, 1])
    piece = objective(before=(3,)).of_text(ids, is_end=False, rng=rng)
    assert (piece.input.tolist(), piece.target.tolist()) == ([3], [5, 6, 7])
    for before in ((), (3,), (3, 4)):
        some = objective(before=before)
        for is_end in (False, True):
            made = some.of_text(ids, is_end=is_end, rng=rng)
            assert some.text_lengths(3, is_end=is_end) == (len(made.input), len(made.target))
        longest = some.of_text(np.zeros(some.longest_text()), is_end=True, rng=rng)
        assert len(longest.input) + len(longest.target) == 12
    with pytest.raises(UserError, match="no text fits rows of 9 tokens"):
        NextToken(8, 1, before=(3, 4), eos_token_id=1, pad_token_id=0).longest_text()


def test_a_packed_row_has_at_each_token_the_next_of_its_example():
    text, pair = TokenPair(np.array([5]), np.array([6, 1])), TokenPair(np.array([7, 8, 9]), np.array([10, 1]))
    batch = objective(10).pack([[text, pair], []])
    assert batch["tokens"].tolist() == [[5, 6, 1, 7, 8, 9, 10, 1, 0, 0], [0] * 10]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 2, 2, 2, 0, 0], [0] * 10]
    assert batch["decoder_target_tokens"].tolist() == [[6, 1, 0, 0, 0, 10, 1, 0, 0, 0], [0] * 10]
    assert batch["decoder_loss_weights"].tolist() == [[1, 1, 0, 0, 0, 1, 1, 0, 0, 0], [0] * 10]
    assert objective(10).token_counts(batch) == (4, 4)
    assert objective(10).fill(4, 4, rows=2) == {"row": 0.4}


@pytest.mark.parametrize("kind", slow_but(["gpt_neo", "mistral"], ["llama", "gpt_neo", "gptj", "bloom", "mistral"]))
def test_examples_of_a_row_do_not_see_each_other(kind):
    """The loss of packed rows equals the sum of the losses of their examples, for every kind of positions."""
    model = random_decoder((TINY_DECODERS | MORE)[kind])
    draw = np.random.default_rng(1)
    examples = [
        TokenPair(draw.integers(3, 300, draw.integers(1, 7)), draw.integers(3, 300, draw.integers(1, 6)))
        for _ in range(6)
    ]
    inputs, targets = [example.input for example in examples], [example.target for example in examples]
    alone = DECODER_FAMILY.batch(inputs, targets, (6, 5), batch_size=6, config=model.config)
    packed = objective(34).pack([examples[:3], examples[3:]])
    loss = jax.jit(lambda batch: loss_sums(model, batch))
    expected, tokens = loss({name: jnp.asarray(value) for name, value in alone.items()})
    together = loss({name: jnp.asarray(value) for name, value in packed.items()})
    np.testing.assert_allclose(together[0], expected, rtol=1e-5)
    assert together[1] == tokens == sum(map(len, targets))
    one_text = packed | {"segment_ids": np.minimum(packed["segment_ids"], 1)}
    assert abs(loss({name: jnp.asarray(value) for name, value in one_text.items()})[0] - expected) > 1e-2


def test_a_person_is_shown_half_a_text_and_a_whole_question():
    some = objective(20)
    pair = TokenPair(np.arange(20, 26), np.array([30, 1]))
    batch = some.pack([[TokenPair(np.array([5]), np.array([6, 7, 8, 9, 1]))], [pair]])
    text = some.to_answer(batch, 0, is_text=True)
    assert (text.input.tolist(), text.target.tolist()) == ([5, 6, 7], [8, 9, 1])
    shown = some.to_answer(batch, 1, is_text=False)
    assert (shown.input.tolist(), shown.target.tolist()) == (pair.input.tolist(), pair.target.tolist())


@pytest.fixture
def decoder_pretraining(tiny_pretraining, monkeypatch):
    monkeypatch.setattr(mixture, "_EXAMPLES_IN_BLOCK", 40)
    tiny_pretraining.model.update({"family": "llama", "num_decoder_layers": Pretraining().model.num_decoder_layers})
    return tiny_pretraining


def test_pairs_are_what_fine_tuning_makes_of_them(decoder_pretraining, tmp_path):
    run = Pretraining.from_config(decoder_pretraining)
    tokenizer = load_tokenizer(run, tmp_path, print)
    made = mixture_of_run(run, tokenizer, network_config(run, tokenizer), print)
    source = made.training["pairs"].source
    pair = source.example(0, np.random.default_rng(0))
    first = json.loads((tmp_path / run.data.path / "pairs.jsonl").read_text().splitlines()[int(source.document[0])])
    assert tokenizer.decode([pair.input.tolist(), pair.target.tolist()]) == [first["input"], first["target"]]
    assert pair.input[-1] != tokenizer.eos_token_id == pair.target[-1]
    packed = made.block(0)[0]
    assert packed["tokens"].shape == (4, 64 + 24) and packed["segment_ids"].max() > 1


@pytest.mark.slow
def test_a_run_leaves_a_model_that_opens_and_goes_on(decoder_pretraining, tmp_path):
    decoder_pretraining.train.steps = 40
    run = Pretraining.from_config(decoder_pretraining)
    result = pretrain(run, tmp_path / "run", display=QUIET)
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in log if "loss" in record]
    assert losses[-1] < losses[0] - 0.5 and result["validation_loss"]["text"] < losses[0]
    assert 0.5 < result["fill"]["row"] <= 1
    model = load_model(tmp_path / "run/model")
    assert (model.config.model_type, model.config.dropout_rate, model.config.tie_word_embeddings) == (
        "llama",
        0.1,
        True,
    )
    samples = [json.loads(line) for line in (tmp_path / "run/samples/step_0000039.jsonl").read_text().splitlines()]
    assert samples[-1]["input"].startswith("Last") and len(samples[-1]["target"].split()) == 1

    decoder_pretraining.model.update({"family": "t5", "start": str(tmp_path / "run/model"), "stored_dtype": "float32"})
    decoder_pretraining.tokenizer.path = None
    decoder_pretraining.train.update({"steps": 1, "learning_rate": 1e-30})
    pretrain(Pretraining.from_config(decoder_pretraining), tmp_path / "further", display=QUIET)
    first, second = (load_file(tmp_path / name / "model/model.safetensors") for name in ("run", "further"))
    for name, value in first.items():
        np.testing.assert_array_equal(np.asarray(value, np.float32), second[name])
    assert Tokenizer.load(tmp_path / "further/model").vocab_size == Tokenizer.load(tmp_path / "run/model").vocab_size


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.family", "gpt", "model.family is 'gpt'; expected one of t5, llama"),
        ("model.num_decoder_layers", 2, "model.family is 'llama', and model.num_decoder_layers is for a T5 only"),
        ("data.noise_density", 0.3, "data.noise_density is for a T5 only; leave it out"),
        ("data.mean_span_length", 2.0, "data.mean_span_length is for a T5 only; leave it out"),
        ("model.d_kv", 7, "model.d_kv is 7; expected an even number"),
        ("model.num_heads", 3, "model.d_model is 16 and model.num_heads 3; expected a multiple"),
        ("model.start", "smollm2", "leave model.family out"),
    ],
)
def test_what_such_a_model_has_no_use_for_is_refused(decoder_pretraining, key, value, message):
    decoder_pretraining.tokenizer.path = None
    decoder_pretraining.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        Pretraining.from_config(decoder_pretraining)


def test_a_vocabulary_of_somebody_elses_has_ends_of_its_own(decoder_pretraining, vocabulary, tmp_path):
    """A new model uses the end and padding ids of the given vocabulary, not T5's 1 and 0."""
    other = shutil.copytree(vocabulary, tmp_path / "other")
    decoder_pretraining.tokenizer.path = str(other)
    run = Pretraining.from_config(decoder_pretraining)
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<unk>", "pad_token": "</s>"}))
    tokenizer = load_tokenizer(run, tmp_path, print)
    config = network_config(run, tokenizer)
    assert (tokenizer.eos_token_id, config.eos_token_id, config.pad_token_id) == (2, 2, 1)
    del settings["eos_token"]
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    (other / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="names no eos_token"):
        load_tokenizer(run, tmp_path, print)


def test_rows_longer_than_learned_positions_are_refused(decoder_pretraining, vocabulary, tmp_path):
    start = tmp_path / "gpt_neo"
    DECODER_FAMILY.save(random_decoder(TINY_DECODERS["gpt_neo"]), start)
    decoder_pretraining.model.update({"family": "t5", "start": str(start)})
    decoder_pretraining.tokenizer.path = None
    run = Pretraining.from_config(decoder_pretraining)
    with pytest.raises(UserError, match="target_length = 88 tokens are longer than the 64 positions"):
        network_config(run, Tokenizer.load(vocabulary))


SPACED_BY_ANSWERS = """
{"input": "Is it good? yes", "target": "positive"}
{"input": "Is it good? no", "target": "negative"}
{"input": "Is it good? no", "target": ""}
{"input": "", "target": "negative"}
{"input": "Is it good? maybe", "target": "yes positive"}
"""


def byte_level(directory):
    """A vocabulary that adds no space before texts, like GPT-2's: the space of an answer is part of its first token."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["Is it good? yes no maybe positive negative"] * 9, trainer)
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')


def test_an_answer_of_one_token_is_an_answer_and_none_is_left_out(decoder_pretraining, tmp_path, corpus, capsys):
    byte_level(tmp_path / "vocabulary")
    (corpus / "short.jsonl").write_text(SPACED_BY_ANSWERS.lstrip())
    decoder_pretraining.tokenizer.path = str(tmp_path / "vocabulary")
    decoder_pretraining.data.sources.pairs.files = "short.jsonl"
    run = Pretraining.from_config(decoder_pretraining)
    tokenizer = load_tokenizer(run, tmp_path, print)
    assert len(tokenizer.answers(["positive"])[0]) == len(tokenizer.answers([""])[0]) == 2
    made = mixture_of_run(run, tokenizer, network_config(run, tokenizer), print)
    assert made.training["pairs"].source.document.tolist() == [0, 1, 4]
    assert "pairs: 2 of 5 rows left out" in capsys.readouterr().out


def test_of_rows_that_fill_no_batch_the_emptiest_are_left_out(decoder_pretraining, tmp_path):
    decoder_pretraining.train.batch_size = 7
    run = Pretraining.from_config(decoder_pretraining)
    tokenizer = load_tokenizer(run, tmp_path, print)
    made = mixture_of_run(run, tokenizer, network_config(run, tokenizer), print)
    kept = np.concatenate([(batch["segment_ids"] > 0).sum(axis=1) for batch in made.block(0)])
    made = dataclasses.replace(made, batch_size=1)
    every = np.concatenate([(batch["segment_ids"] > 0).sum(axis=1) for batch in made.block(0)])
    assert 0 < len(every) - len(kept) < 7
    assert sorted(kept) == sorted(every)[len(every) - len(kept) :]


@pytest.mark.parametrize(("family", "size"), [pytest.param("t5", 400, marks=pytest.mark.slow), ("llama", 330)])
def test_a_vocabulary_made_by_a_run_that_replaces_another_is_saved(decoder_pretraining, tmp_path, family, size):
    decoder_pretraining.model.family = family
    decoder_pretraining.tokenizer.update({"path": None, "size": size, "megabytes": 0.1})
    decoder_pretraining.train.steps = 1
    for seed in (0, 1):
        decoder_pretraining.train.seed = seed
        run = Pretraining.from_config(decoder_pretraining)
        pretrain(run, tmp_path / "run", overwrite=True, display=QUIET)
        assert Tokenizer.load(tmp_path / "run/model").vocab_size == size
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "run/model/tokenizer.json"))
    ends = backend.encode("the king").ids[-1] == backend.token_to_id("</s>")
    assert ends == (family == "t5") == bool(Tokenizer.load(tmp_path / "run/model").sentinels)


def test_pairs_are_asked_by_the_chat_template_that_is_given(decoder_pretraining, tmp_path):
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}{{ '[assistant]' }}"
    (tmp_path / "chat.jinja").write_text(template.replace("{{ '[assistant]' }}", "[assistant] "))
    decoder_pretraining.data.chat_template = str(tmp_path / "chat.jinja")
    run = Pretraining.from_config(decoder_pretraining)
    tokenizer = load_tokenizer(run, tmp_path, print)
    made = mixture_of_run(run, tokenizer, network_config(run, tokenizer), print)
    pair = made.training["pairs"].source.example(0, np.random.default_rng(0))
    assert tokenizer.decode([pair.input.tolist()])[0].startswith("[user] Last word?")
    text = made.training["books"].source.example(0, np.random.default_rng(0))
    assert "[user]" not in tokenizer.decode([[*text.input.tolist(), *text.target.tolist()]])[0]
    decoder_pretraining.model.family = "t5"
    with pytest.raises(UserError, match="model.family is 't5', and data.chat_template is for decoder-only models"):
        Pretraining.from_config(decoder_pretraining)


def test_a_run_does_not_go_on_where_a_chat_template_gave_other_tokens(decoder_pretraining, tmp_path):
    """As a version left it that tokenised each text of a conversation by itself."""
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}")
    decoder_pretraining.data.chat_template = str(tmp_path / "chat.jinja")
    decoder_pretraining.train.steps = 1
    run = Pretraining.from_config(decoder_pretraining)
    pretrain(run, tmp_path / "run", display=QUIET)
    (tmp_path / "run/result.json").unlink()
    record = json.loads((tmp_path / "run/splits.json").read_text())
    del record["origins"]["chat_tokens"]
    (tmp_path / "run/splits.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="texts in the chat template have other tokens than in the version of jpeft"):
        pretrain(run, tmp_path / "run", display=QUIET)


def test_what_a_model_to_start_from_brings_is_said_not_to_be_used(decoder_pretraining):
    decoder_pretraining.model.update({"family": "t5", "start": "smollm2", "dropout_rate": 0.3})
    decoder_pretraining.tokenizer.update({"path": None, "size": 999})
    not_used = Pretraining.from_config(decoder_pretraining).not_used()
    assert {"model.d_model", "model.dropout_rate", "tokenizer.size"} <= set(not_used)
    assert "model.embeddings" not in not_used
