"""The mixture: tokens are shared by rate, every piece is drawn once before any repeats, held-out rows do not train."""

import collections
import dataclasses
import json
import os

import numpy as np
import pytest

from jpeft.errors import UserError
from jpeft.pretrain.config import Pretraining, SourceConfig
from jpeft.pretrain.mixture import Mixture, PairSource, TextSource, _num_held_out, source_files
from jpeft.pretrain.setup import _sampled_texts, load_tokenizer, mixture_of_run, network_config


@pytest.fixture
def run(tiny_pretraining):
    return Pretraining.from_config(tiny_pretraining)


@pytest.fixture
def mixture(run, tmp_path) -> Mixture:
    return mixture_of(run, tmp_path)


def mixture_of(run: Pretraining, workdir) -> Mixture:
    tokenizer = load_tokenizer(run, workdir, print)
    return mixture_of_run(run, tokenizer, network_config(run, tokenizer), print)


def test_a_block_depends_on_the_seed_and_its_number_only(mixture):
    again, other = mixture.block(3), mixture.block(4)
    for batch, same in zip(mixture.block(3), again, strict=True):
        for key in batch:
            np.testing.assert_array_equal(batch[key], same[key])
    assert any(
        (batch["encoder_input_tokens"] != o["encoder_input_tokens"]).any()
        for batch, o in zip(again, other, strict=False)
    )


def test_every_source_has_its_share_of_the_tokens(mixture):
    tokens = {}
    for name, count in mixture.counts().items():
        tokens[name] = count * mixture.training[name].lengths.sum(axis=1).mean()
    for name, rate in {"books": 0.5, "news": 0.2, "pairs": 0.3}.items():
        assert tokens[name] / sum(tokens.values()) == pytest.approx(rate, abs=0.01)


def test_batches_are_packed(mixture):
    batches = mixture.block(0)
    assert {batch["encoder_input_tokens"].shape for batch in batches} == {(4, 64)}
    segments = np.concatenate([batch["encoder_segment_ids"] for batch in batches])
    assert np.mean(segments > 0) > 0.6 and segments.max() >= 2


def test_pieces_cover_their_text_and_no_more(mixture):
    source = mixture.training["books"].source
    assert isinstance(source, TextSource)
    for document in range(len(source.texts)):
        pieces = np.flatnonzero(source.document == document)
        covered = [i for p in pieces for i in range(source._start[p], source._end[p])]
        assert covered == list(range(len(source.texts[document])))
        sizes = source._end[pieces] - source._start[pieces]
        assert sizes.max() - sizes.min() <= 1


def test_a_source_is_drawn_through_before_it_begins_again(mixture, monkeypatch):
    source = mixture.training["pairs"].source
    example, drawn = source.example, collections.Counter()

    def watched(index, rng):
        drawn[index] += 1
        return example(index, rng)

    monkeypatch.setattr(source, "example", watched)
    mixture.block(0)
    assert set(drawn) == set(mixture.training["pairs"].pieces.tolist())
    assert max(drawn.values()) - min(drawn.values()) <= 1 < max(drawn.values())


def test_a_run_that_goes_on_with_another_seed_and_other_sources_holds_out_the_same_rows(run, mixture, tmp_path):
    """Its held-out rows must not have trained the model that it starts from."""

    def held_out_rows(some: Mixture, name: str) -> set[int]:
        part = some.held_out[name]
        return set(part.source.document[part.pieces].tolist())

    sources = dict(reversed([(name, source) for name, source in run.data.sources.items() if name != "news"]))
    later = dataclasses.replace(
        run,
        train=dataclasses.replace(run.train, seed=run.train.seed + 1),
        data=dataclasses.replace(run.data, sources=sources),
    )
    other = mixture_of(later, tmp_path)
    assert set(other.held_out) == {"books", "pairs"}
    for name in other.held_out:
        assert held_out_rows(other, name) == held_out_rows(mixture, name)


def test_held_out_rows_never_train(mixture, run):
    for name, part in mixture.training.items():
        apart = mixture.held_out[name]
        source = part.source
        assert len(apart.pieces) > 0
        assert not {source.document[p] for p in part.pieces} & {source.document[p] for p in apart.pieces}
    first = mixture.validation(PairSource, most_batches=1)
    np.testing.assert_array_equal(
        first[0]["encoder_input_tokens"], mixture.validation(PairSource, most_batches=1)[0]["encoder_input_tokens"]
    )


def test_what_a_row_held_out_says_trains_from_no_other_row(tiny_pretraining, tmp_path, corpus, capsys):
    """Neither from a duplicate in the same source, nor from another source that reads the same file."""
    rows = (corpus / "news.jsonl").read_text().splitlines()[:20] * 15
    (corpus / "again.jsonl").write_text("\n".join(rows) + "\n")
    tiny_pretraining.data.sources.news.files = "again.jsonl"
    tiny_pretraining.data.sources.books.files = "*books-*.jsonl"
    run = Pretraining.from_config(tiny_pretraining)
    some = SourceConfig("books-0.jsonl", "text", 0.1)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, sources={**run.data.sources, "some": some}))
    mixture = mixture_of(run, tmp_path)

    def texts(parts, name):
        source = parts[name].source
        return {source.texts[int(row)].tobytes() for row in source.document[parts[name].pieces]}

    apart = set.union(*(texts(mixture.held_out, name) for name in ("books", "news", "some")))
    assert len(apart) == 3 and not any(texts(mixture.training, name) & apart for name in ("books", "news", "some"))
    said = capsys.readouterr().out
    assert "news: 14 rows with the text of a held-out row left out of training" in said
    assert "books: 1 row with the text of a held-out row" in said


def test_rows_that_all_say_the_same_are_no_corpus(tiny_pretraining, tmp_path, corpus):
    (corpus / "same.jsonl").write_text('{"input": "a", "target": "b c"}\n' * 30)
    tiny_pretraining.data.sources.pairs.files = "same.jsonl"
    with pytest.raises(UserError, match="nothing to train on: .* does not repeat a held-out row"):
        mixture_of(Pretraining.from_config(tiny_pretraining), tmp_path)


def test_a_vocabulary_is_made_of_every_source_however_long_its_texts(tiny_pretraining, tmp_path, corpus):
    (corpus / "hindi.jsonl").write_text(json.dumps({"text": "सही उत्तर यहाँ है " * 5_000}) + "\n")
    tiny_pretraining.data.sources.news.files = "hindi.jsonl"
    tiny_pretraining.tokenizer.update({"path": None, "megabytes": 0.01})
    texts = list(_sampled_texts(Pretraining.from_config(tiny_pretraining)))
    hindi = sum(len(text) for text in texts if "सही" in text)
    assert hindi == 2_000 and sum(map(len, texts)) == pytest.approx(10_000, abs=3)


def test_what_does_not_fit_a_row_is_left_out_and_said(tiny_pretraining, tmp_path, corpus, capsys):
    (corpus / "long.jsonl").write_text(
        '{"input": "' + "word " * 99 + '", "target": "no"}\n{"input": "a", "target": "b"}\n'
    )
    tiny_pretraining.data.sources.pairs.files = "long.jsonl"
    mixture = mixture_of(Pretraining.from_config(tiny_pretraining), tmp_path)
    assert len(mixture.training["pairs"].pieces) == 1
    assert "pairs: 1 of 2 rows left out, longer than a row" in capsys.readouterr().out


def test_rows_held_out_that_cannot_be_used_are_given_as_the_reason(tiny_pretraining, tmp_path, corpus, capsys):
    """The draw stays one of all rows: it must not depend on what fits a row, which a run that goes on may change."""
    rows = (corpus / "news.jsonl").read_text().splitlines()[:60]
    source = SourceConfig("few.jsonl", "text", 1.0)

    def mixture() -> Mixture:
        (corpus / "few.jsonl").write_text("\n".join(rows) + "\n")
        run = Pretraining.from_config(tiny_pretraining)
        return mixture_of(
            dataclasses.replace(run, data=dataclasses.replace(run.data, sources={"few": source})), tmp_path
        )

    part = mixture().held_out["few"]
    (held_out,) = set(part.source.document[part.pieces].tolist())
    assert "held out" not in capsys.readouterr().out
    rows[held_out] = json.dumps({"text": "a"})
    short = mixture()
    assert len(short.held_out["few"].pieces) == 0 and held_out not in short.training["few"].source.document
    assert "few: nothing is held out, since 1 row drawn for it is left out" in capsys.readouterr().out
    assert short.why_none_held_out().startswith("no held-out loss: 1 row drawn for it is left out as too short")
    rows[:] = [*rows[:held_out], *rows[held_out + 1 :]][:9]
    assert mixture().why_none_held_out() == "no row is held out, a source needs 10 for that"


def test_no_such_file_is_one_line(tiny_pretraining, tmp_path):
    tiny_pretraining.data.sources.books.files = "absent-*.jsonl"
    with pytest.raises(UserError, match="data.sources.books: no file absent"):
        mixture_of(Pretraining.from_config(tiny_pretraining), tmp_path)


@pytest.mark.parametrize(("rows", "apart"), [(1, 0), (9, 0), (10, 1), (150, 1), (400, 2), (100_000, 200)])
def test_a_small_source_holds_out_a_row_too(rows, apart):
    assert _num_held_out(rows) == apart


def test_a_batch_that_no_block_fills_is_one_line_and_no_endless_search(tiny_pretraining, tmp_path):
    tiny_pretraining.train.batch_size = 60_000
    with pytest.raises(UserError, match=r"train.batch_size is 60000, and [\d,]+ pieces of this corpus fill"):
        mixture_of(Pretraining.from_config(tiny_pretraining), tmp_path).block(0)


def test_a_source_is_of_files_below_its_directory(tiny_pretraining, tmp_path):
    for pattern in ("/etc/*.jsonl", "../*.jsonl"):
        tiny_pretraining.data.sources.news.files = pattern
        with pytest.raises(UserError, match=r"news\.files is .*; expected a pattern below data\.path"):
            Pretraining.from_config(tiny_pretraining)
    os.mkfifo(tmp_path / "pipe.jsonl")  # opening it would block until someone writes
    with pytest.raises(UserError, match=r"pipe\.jsonl is not a regular file"):
        source_files(tmp_path, "news", SourceConfig("*.jsonl", "text", 1.0))
