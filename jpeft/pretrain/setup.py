"""From a pretraining config to its vocabulary, its mixture of sources and its network."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from jpeft.errors import UserError
from jpeft.model import weights
from jpeft.model.source import resolve
from jpeft.model.t5 import T5
from jpeft.model.t5_config import T5Config
from jpeft.model.tokenizer import Tokenizer
from jpeft.model.weights import read_config
from jpeft.peft.attaching import attach
from jpeft.peft.full import Full
from jpeft.peft.selection import select
from jpeft.pretrain.config import Pretraining
from jpeft.pretrain.corpus import COLUMNS
from jpeft.pretrain.corpus_rows import read_texts
from jpeft.pretrain.corruption import SpanCorruption
from jpeft.pretrain.embeddings import cooccurrence_embeddings
from jpeft.pretrain.mixture import Mixture, RowShape, TextSource, load_mixture, source_files
from jpeft.pretrain.vocabulary import USUAL_SIZE, train_vocabulary
from jpeft.run.processes import is_first, wait_for_all
from jpeft.train.setup import compute_dtype

# Spread of a new model's embeddings. T5's own, 1, hardly moves in the few thousand steps of a small model with AdamW,
# whose steps do not grow with the weights.
_EMBEDDING_STDDEV = 0.05


def load_tokenizer(run: Pretraining, workdir: Path, report: Callable[[str], None]) -> Tokenizer:
    """The tokenizer that a run names, or one trained on its corpus, once and by one process, in `workdir/tokenizer`.

    Raises:
      UserError: there is none under that name, it lacks sentinels, or the corpus cannot be read.
    """
    given = run.model.start or run.tokenizer.path
    directory = workdir / "tokenizer" if given is None else resolve(given, report=report)
    if given is None and is_first() and not (directory / "tokenizer.json").is_file():
        size = run.tokenizer.size
        wanted = f"{size:,} pieces" if size is not None else f"up to {USUAL_SIZE:,} pieces"
        report(f"trains a vocabulary of {wanted} on up to {run.tokenizer.megabytes:g} MB of the corpus")
        made = train_vocabulary(_sampled_texts(run), size, directory)
        if made < (size or USUAL_SIZE):
            report(f"the corpus gives {made:,} pieces, not {USUAL_SIZE:,}: the vocabulary has those (tokenizer.size)")
    wait_for_all("the vocabulary is made")
    eos = 1 if run.model.start is None else read_config(directory).eos_token_id
    tokenizer = Tokenizer.load(directory, eos_token_id=eos)
    wait_for_all("the vocabulary is read")  # before the first process moves it in place
    if not tokenizer.sentinels:
        raise UserError(
            f"{directory}: the vocabulary has no <extra_id_0>, which span corruption needs; take one with T5's "
            "sentinels, or leave tokenizer.path out, so that one is made."
        )
    return tokenizer


def _sampled_texts(run: Pretraining) -> Iterator[str]:
    """Rows of every source until each has given its share of `tokenizer.megabytes`, evenly over its files."""
    total = sum(source.rate for source in run.data.sources.values())
    assert run.data.path is not None, "checked by Pretraining.from_config"
    for name, source in run.data.sources.items():
        files = source_files(Path(run.data.path).expanduser(), name, source)
        budget = run.tokenizer.megabytes * 1e6 * source.rate / total
        rows = [row for file in files for row in read_texts(file, COLUMNS[source.kind])]
        random.Random(run.train.seed).shuffle(rows)
        for row in rows:
            budget -= sum(map(len, row))
            if budget < 0:
                break
            yield from row


def network_config(run: Pretraining, tokenizer: Tokenizer) -> T5Config:
    """Sizes of the network: the config's, or those of `model.start`."""
    if run.model.start is not None:
        return read_config(resolve(run.model.start, what="model.start", flag="--config.model.start"))
    return run.model.t5(-(-tokenizer.vocab_size // 128) * 128)


def mixture_of_run(run: Pretraining, tokenizer: Tokenizer, config: T5Config, report: Callable[[str], None]) -> Mixture:
    """The run's sources, tokenised. Raises `UserError` as `load_mixture`."""
    data = run.data
    assert data.path is not None, "checked by Pretraining.from_config"
    corruption = SpanCorruption(
        tokenizer.sentinels,
        tokenizer.eos_token_id,
        noise_density=data.noise_density,
        mean_span_length=data.mean_span_length,
    )
    return load_mixture(
        Path(data.path).expanduser(),
        data.sources,
        tokenizer,
        corruption,
        RowShape(run.train.batch_size, data.input_length, data.target_length),
        start_token_id=config.decoder_start_token_id,
        pad_token_id=config.pad_token_id,
        seed=run.train.seed,
        report=report,
    )


def build_network(run: Pretraining, config: T5Config, mixture: Mixture, report: Callable[[str], None]) -> T5:
    """The network to train, new or `model.start`'s, with every weight trainable and float32."""
    dtype = compute_dtype(run.model.dtype)
    if run.model.start is not None:
        directory = resolve(run.model.start, what="model.start", flag="--config.model.start", report=report)
        model = weights.load(directory, dtype=dtype, stored_dtype=jnp.float32, dropout_rate=0.0)
    else:
        model = T5(config, dtype=dtype, rngs=nnx.Rngs(run.train.seed))
        _set_embeddings(model, run, mixture, report)
    model.encoder.remat = model.decoder.remat = run.model.remat
    return attach(model, Full(), select(model, Full()), jax.random.key(run.train.seed))


def _set_embeddings(model: T5, run: Pretraining, mixture: Mixture, report: Callable[[str], None]) -> None:
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
    model.lm_head.kernel.set_value(vectors.T * model.config.d_model**-0.5)
