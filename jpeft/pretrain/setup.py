"""Builds vocabulary, mixture of sources and network of a pretraining run from its config."""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from jpeft.errors import UserError
from jpeft.files import write_whole
from jpeft.model.chat import chat_template_of
from jpeft.model.decoder import Decoder
from jpeft.model.decoder_config import DecoderConfig
from jpeft.model.family import compute_dtype, family_in, family_with
from jpeft.model.source import resolve
from jpeft.model.t5 import T5
from jpeft.model.t5_config import T5Config
from jpeft.model.tokenizer import Tokenizer
from jpeft.model.weight_files import quantization_in
from jpeft.peft.attaching import attach
from jpeft.peft.full import Full
from jpeft.peft.selection import select
from jpeft.pretrain.config import CorpusConfig, Pretraining
from jpeft.pretrain.corpus import COLUMNS
from jpeft.pretrain.corpus_rows import read_texts
from jpeft.pretrain.denoising import Denoising
from jpeft.pretrain.embeddings import cooccurrence_embeddings
from jpeft.pretrain.mixture import Mixture, TextSource, load_mixture, source_files
from jpeft.pretrain.next_token import NextToken
from jpeft.pretrain.objective import Objective
from jpeft.pretrain.origins import origins
from jpeft.pretrain.vocabulary import USUAL_SIZE, train_vocabulary
from jpeft.run.directory import has_checkpoint
from jpeft.run.processes import is_first, wait_for_all

# Standard deviation of a new model's embeddings. From T5's own value, 1, they hardly move in the few thousand steps of
# a small model.
_EMBEDDING_STDDEV = 0.05
_CORPUS_RECORD = "corpus.fingerprint"  # beside a trained vocabulary: of the corpus that it is made of


def load_tokenizer(run: Pretraining, workdir: Path, report: Callable[[str], None]) -> Tokenizer:
    """Loads the tokenizer that the config names, or trains one on the corpus in `workdir/tokenizer`.

    It is trained once for a corpus: again if the corpus has changed since, unless a checkpoint in `workdir` depends on
    it. All processes of a run have to call it; the first one trains.

    Raises:
      UserError: there is no tokenizer of that name, or the corpus cannot be read.
    """
    if is_first() and trains_own_vocabulary(run):
        corpus = origins(run).get("corpus")  # before it is read: a change while it is read counts as one
        if not _has_vocabulary(workdir, corpus):
            _train_vocabulary(run, workdir / "tokenizer", corpus, report)
    wait_for_all("the vocabulary is made")
    return read_tokenizer(run, workdir, report)


def read_tokenizer(run: Pretraining, workdir: Path, report: Callable[[str], None]) -> Tokenizer:
    """As `load_tokenizer`, but never trains one: `workdir/tokenizer` holds it by now."""
    given, key = (run.model.start, "model.start") if run.model.start else (run.tokenizer.path, "tokenizer.path")
    directory = workdir / "tokenizer"
    if given is not None:
        directory = resolve(given, what=key, flag=f"--config.{key}", report=report)
    if run.model.start is not None:
        family = family_in(directory)
        tokenizer = family.tokenizer(directory, family.read_config(directory))
    else:
        continues = run.model.is_decoder_only
        tokenizer = Tokenizer.load(directory, eos_token_id=None if continues else 1, continues=continues)
    wait_for_all("the vocabulary is read")  # the first process will move its files
    return tokenizer.asked_by(chat_template_of(run.data.chat_template))


def trains_own_vocabulary(run: Pretraining) -> bool:
    """Whether the config names no tokenizer, neither by itself nor by the model to start from."""
    return run.model.start is None and run.tokenizer.path is None


def _has_vocabulary(workdir: Path, corpus: str | None) -> bool:
    """Whether there is a vocabulary to use: one of this corpus, or one of any corpus that a checkpoint depends on.

    Earlier versions recorded no corpus.
    """
    if not (workdir / "tokenizer/tokenizer.json").is_file():
        return False
    record = workdir / "tokenizer" / _CORPUS_RECORD
    return has_checkpoint(workdir) or (record.is_file() and record.read_bytes() == _recorded(corpus))


def _recorded(corpus: str | None) -> bytes:
    return f"{corpus}\n".encode()


def _train_vocabulary(run: Pretraining, directory: Path, corpus: str | None, report: Callable[[str], None]) -> None:
    """Trains a vocabulary in `directory` and records there the fingerprint of the corpus that it is made of."""
    size, record = run.tokenizer.size, directory / _CORPUS_RECORD
    wanted = f"{size:,} pieces" if size is not None else f"up to {USUAL_SIZE:,} pieces"
    report(f"trains a vocabulary of {wanted} on up to {run.tokenizer.megabytes:g} MB of the corpus")
    record.unlink(missing_ok=True)  # a kill from here on leaves no record, never that of another vocabulary
    pieces = train_vocabulary(_sampled_texts(run), size, directory, with_sentinels=not run.model.is_decoder_only)
    with write_whole(record) as beside:
        beside.write_bytes(_recorded(corpus))
    if pieces < (size or USUAL_SIZE):
        report(f"the corpus gives {pieces:,} pieces, not {USUAL_SIZE:,}: the vocabulary has those (tokenizer.size)")


def _sampled_texts(run: Pretraining) -> Iterator[str]:
    """Yields texts of every source up to its share of `tokenizer.megabytes`, evenly over its files.

    The last text of a source is truncated at its share, so that a source of long texts is not left out.
    """
    total = sum(source.rate for source in run.data.sources.values())
    assert run.data.path is not None, "checked by Pretraining.from_config"
    for name, source in run.data.sources.items():
        files = source_files(Path(run.data.path).expanduser(), name, source)
        budget = math.ceil(run.tokenizer.megabytes * 1e6 * source.rate / total)
        rows = [row for file in files for row in read_texts(file, COLUMNS[source.kind])]
        random.Random(run.train.seed).shuffle(rows)
        for text in itertools.chain.from_iterable(rows):
            if budget <= 0:
                break
            yield text[:budget]
            budget -= len(text)


def network_config(run: Pretraining, tokenizer: Tokenizer) -> T5Config | DecoderConfig:
    """The config of the network: of a new one, or that of `model.start`.

    Raises:
      UserError: `model.start` is no model or is quantized; a key is set that such a model has no use for; or rows are
        longer than its positions.
    """
    longest = run.data.input_length + run.data.target_length
    if run.model.start is not None:
        directory = resolve(run.model.start, what="model.start", flag="--config.model.start")
        config = family_in(directory).read_config(directory)
        if (kept := quantization_in(directory)) is not None:
            raise UserError(
                f"model.start is {run.model.start!r}, stored as {kept.kind}: quantized weights cannot be trained; name "
                "the model that it was quantized from."
            )
        decoder_only = isinstance(config, DecoderConfig)
        kind = "a decoder-only model" if decoder_only else "a T5"
        why = f"model.start is {run.model.start!r}, {kind}"
        run.refuse_keys_of_other_families(why, decoder_only=decoder_only)
        if decoder_only and config.positions == "learned" and longest > config.max_positions:
            raise UserError(
                f"rows of data.input_length + data.target_length = {longest:,} tokens are longer than the "
                f"{config.max_positions:,} positions that {run.model.start!r} knows; make them shorter."
            )
        return config
    vocab_size = -(-tokenizer.vocab_size // 128) * 128
    return run.model.new_config(
        vocab_size,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_positions=max(longest, 2048),
    )


def objective_of(config: T5Config | DecoderConfig, tokenizer: Tokenizer, data: CorpusConfig) -> Objective:
    """The objective of a family: span corruption for an encoder-decoder, next tokens for a decoder-only model.

    Raises:
      UserError: the vocabulary lacks the sentinels that span corruption needs.
    """
    if family_with(config).task_type == "CAUSAL_LM":
        return NextToken.of(tokenizer, data, pad_token_id=config.pad_token_id)
    return Denoising.of(tokenizer, data, start_token_id=config.decoder_start_token_id, pad_token_id=config.padding_id)


def mixture_of_run(
    run: Pretraining, tokenizer: Tokenizer, config: T5Config | DecoderConfig, report: Callable[[str], None]
) -> Mixture:
    """Loads the run's sources, tokenised. Raises `UserError` as `load_mixture` and `objective_of` do."""
    data = run.data
    assert data.path is not None, "checked by Pretraining.from_config"
    return load_mixture(
        Path(data.path).expanduser(),
        data.sources,
        tokenizer,
        objective_of(config, tokenizer, data),
        batch_size=run.train.batch_size,
        seed=run.train.seed,
        report=report,
    )


def build_network(
    run: Pretraining, config: T5Config | DecoderConfig, mixture: Mixture, report: Callable[[str], None]
) -> T5 | Decoder:
    """Builds the network to train, new or from `model.start`, with every weight trainable and float32."""
    dtype, family = compute_dtype(run.model.dtype), family_with(config)
    if run.model.start is not None:
        directory = resolve(run.model.start, what="model.start", flag="--config.model.start", report=report)
        not_used = f"; not used: {', '.join(run.not_used())}" if run.not_used() else ""
        report(f"model.start brings its own vocabulary and sizes ({_sizes(config)}){not_used}")
        model = family.load(directory, dtype=dtype, stored_dtype=jnp.float32, dropout_rate=0.0)
    else:
        model = family.build(config, dtype=dtype, seed=run.train.seed)
        _set_embeddings(model, run, mixture, report)
    family.arrange(model, scan_layers=True, remat=run.model.remat)
    return attach(model, Full(), select(model, Full()), jax.random.key(run.train.seed))


def _sizes(config: T5Config | DecoderConfig) -> str:
    names = ("d_model", "d_kv", "d_head", "d_ff", "num_heads", "num_layers", "num_decoder_layers")
    return ", ".join(f"{name} {getattr(config, name)}" for name in names if hasattr(config, name))


def _set_embeddings(model: T5 | Decoder, run: Pretraining, mixture: Mixture, report: Callable[[str], None]) -> None:
    table = model.shared.embedding
    if run.model.embeddings == "random":
        table.set_value(table[...] * _EMBEDDING_STDDEV)
        return
    report("counts which tokens occur near which, to initialise the embeddings")
    texts = [
        (part.source.texts, part.source.document[part.pieces], mixture.rates[name])
        for name, part in mixture.training.items()
        if isinstance(part.source, TextSource)
    ]
    vectors = jnp.asarray(
        cooccurrence_embeddings(texts, vocab_size=table.shape[0], width=table.shape[1], seed=run.train.seed)
    )
    table.set_value(vectors * _EMBEDDING_STDDEV)
    if not model.config.tie_word_embeddings:
        model.lm_head.kernel.set_value(vectors.T * model.config.d_model**-0.5)
