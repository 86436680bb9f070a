"""What a pretraining run reads is recognised by content wherever its path is."""

import shutil

import pytest

from jpeft.pretrain.config import Pretraining, default_pretraining
from jpeft.pretrain.origins import origins


def test_a_corpus_in_the_home_directory_is_the_same_corpus(corpus, tiny_pretraining, tmp_path, monkeypatch):
    shutil.copytree(corpus, tmp_path / "texts")
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = origins(Pretraining.from_config(tiny_pretraining))["corpus"]
    tiny_pretraining.data.path = "~/texts"
    assert origins(Pretraining.from_config(tiny_pretraining))["corpus"] == expected


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_template_is_told_by_its_text(choice, tiny_pretraining, tmp_path):
    (template := tmp_path / "chat.jinja").write_text("{{ messages[0].content }}")
    tiny_pretraining.model.family = "llama"
    tiny_pretraining.model.num_decoder_layers = default_pretraining({}).model.num_decoder_layers
    tiny_pretraining.data.chat_template = choice
    assert "chat_template" not in origins(Pretraining.from_config(tiny_pretraining))
    tiny_pretraining.data.chat_template = str(template)
    before = origins(Pretraining.from_config(tiny_pretraining))["chat_template"]
    template.write_text("User: {{ messages[0].content }}")
    assert origins(Pretraining.from_config(tiny_pretraining))["chat_template"] not in (None, before)
