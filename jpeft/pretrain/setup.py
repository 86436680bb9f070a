"""From a pretraining config to its vocabulary, its mixture of sources and its network."""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from jpeft.errors import UserError
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
from jpeft.pretrain.vocabulary import USUAL_SIZE, train_vocabulary
from jpeft.run.processes import is_first, wait_for_all

# Spread of a new model's embeddings. T5's own, 1, hardly moves in the few thousand steps of a small model with AdamW,
# whose steps do not grow with the weights.
_EMBEDDING_STDDEV = 0.05


def load_tokenizer(run: Pretraining, workdir: Path, report: Callable[[str], None]) -> Tokenizer:
    """The tokenizer that a run names, or one trained on its corpus, once and by one process, in `workdir/tokenizer`.

    Raises:
      UserError: there is none under that name, or the corpus cannot be read.
    """
    given, key = (run.model.start, "model.start") if run.model.start else (run.tokenizer.path, "tokenizer.path")
    directory = workdir / "tokenizer"
    if given is not None:
        directory = resolve(given, what=key, flag=f"--config.{key}", report=report)
    if given is None and is_first() and not (directory / "tokenizer.json").is_file():
        size = run.tokenizer.size
        wanted = f"{size:,} pieces" if size is not None else f"up to {USUAL_SIZE:,} pieces"
        report(f"trains a vocabulary of {wanted} on up to {run.tokenizer.megabytes:g} MB of the corpus")
        made = train_vocabulary(_sampled_texts(run), size, directory, with_sentinels=run.model.family == "t5")
        if made < (size or USUAL_SIZE):
            report(f"the corpus gives {made:,} pieces, not {USUAL_SIZE:,}: the vocabulary has those (tokenizer.size)")
    wait_for_all("the vocabulary is made")
    if run.model.start is not None:
        family = family_in(directory)
        tokenizer = family.tokenizer(directory, family.read_config(directory))
    else:
        continues = run.model.family != "t5"
        tokenizer = Tokenizer.load(directory, eos_token_id=None if continues else 1, continues=continues)
    wait_for_all("the vocabulary is read")  # before the first process moves it in place
    return tokenizer.asked_by(chat_template_of(run.data.chat_template))


def _sampled_texts(run: Pretraining) -> Iterator[str]:
    """Texts of every source until each has given its share of `tokenizer.megabytes`, evenly over its files.

    The last one of a source is cut where its share ends, so that none goes without for having long texts alone.
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
    """Sizes of the network: the config's, or those of `model.start`.

    Raises:
      UserError: `model.start` is no model, one in few bits, or a decoder-only one and a key is given that only a T5
        has, or rows are longer than it has positions.
    """
    longest = run.data.input_length + run.data.target_length
    if run.model.start is not None:
        directory = resolve(run.model.start, what="model.start", flag="--config.model.start")
        config = family_in(directory).read_config(directory)
        if (kept := quantization_in(directory)) is not None:
            raise UserError(
                f"model.start is {run.model.start!r}, kept in {kept.kind}: weights in few bits do not train; name the "
                "wide model that it was made of."
            )
        if isinstance(config, T5Config):
            run.refuse_chat_template(f"model.start is {run.model.start!r}, a T5")
        else:
            run.refuse_keys_of_t5(f"model.start is {run.model.start!r}, a decoder-only model")
            if config.positions == "learned" and longest > config.max_positions:
                raise UserError(
                    f"rows of data.input_length + data.target_length = {longest:,} tokens are longer than the "
                    f"{config.max_positions:,} positions that {run.model.start!r} knows; make them shorter."
                )
        return config
    vocab_size = -(-tokenizer.vocab_size // 128) * 128
    if run.model.family == "t5":
        return run.model.t5(vocab_size)
    return run.model.decoder(
        vocab_size,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_positions=max(longest, 2048),
    )


def objective_of(config: T5Config | DecoderConfig, tokenizer: Tokenizer, data: CorpusConfig) -> Objective:
    """Span corruption for an encoder-decoder, the next token for a decoder-only model.

    Raises:
      UserError: the vocabulary has no sentinels, which span corruption needs.
    """
    if family_with(config).task_type == "CAUSAL_LM":
        return NextToken.of(tokenizer, data, pad_token_id=config.pad_token_id)
    return Denoising.of(tokenizer, data, start_token_id=config.decoder_start_token_id, pad_token_id=config.pad_token_id)


def mixture_of_run(
    run: Pretraining, tokenizer: Tokenizer, config: T5Config | DecoderConfig, report: Callable[[str], None]
) -> Mixture:
    """The run's sources, tokenised. Raises `UserError` as `load_mixture` and `objective_of`."""
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
    """The network to train, new or `model.start`'s, with every weight trainable and float32."""
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
    report("looks at which tokens stand near which, for the embeddings to start from")
    texts = [
        (part.source.texts, mixture.rates[name])
        for name, part in mixture.training.items()
        if isinstance(part.source, TextSource)
    ]
    vectors = jnp.asarray(
        cooccurrence_embeddings(texts, vocab_size=table.shape[0], width=table.shape[1], seed=run.train.seed)
    )
    table.set_value(vectors * _EMBEDDING_STDDEV)
    if not model.config.tie_word_embeddings:
        model.lm_head.kernel.set_value(vectors.T * model.config.d_model**-0.5)
