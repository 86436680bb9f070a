"""Prompts and answers in chat templates have the tokens that `transformers` gives the whole conversation."""

import json
import random
import re

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from jpeft.data.prompts import PromptTokens
from jpeft.data.summary import check_labels
from jpeft.data.task_file import TaskOfRun
from jpeft.errors import UserError
from jpeft.model.decoder_config import DecoderConfig
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.model.family import chat_tokens_in
from jpeft.model.tokenizer import Tokenizer
from tests.conftest import slow_but
from tests.decoders import LLAMA

ZEPHYR = (  # its marks are plain text
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] + eos_token }}"
    "{% else %}{{ '<|assistant|>\n' + m['content'] + eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
TOKENS_ALONE = (  # messages stand between special tokens
    "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)
NO_MARKS = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
PHI_3 = (
    "{% for m in messages %}{{ '<|im_start|>\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>\n' }}{% endif %}"
)
TEMPLATES = {
    "zephyr": ZEPHYR,
    "llama 2": LLAMA_2,
    "chatml": CHATML,
    "llama 3": LLAMA_3,
    "tokens alone": TOKENS_ALONE,
    "no marks": NO_MARKS,
}
KINDS = slow_but(["first", "legacy", "bytes"], ["first", "always", "never", "legacy", "bytes", "bytes with a space"])
MESSAGES = ("my invoice", "hello there ", "  two\n\nlines", "", "\n[x] ")
CORPUS = ["my invoice refund ship tech user assistant system [INST] [/INST] hello there two words lines"] * 5


def vocabulary(kind: str) -> tokenizers.Tokenizer:
    """A small BPE whose rules put a space before some texts (`prepend_scheme` of Llama, or a normaliser), or none."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    of_bytes = kind.startswith("bytes")
    model = models.BPE() if of_bytes else models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    with_space = pre_tokenizers.ByteLevel(add_prefix_space=kind == "bytes with a space")
    made.pre_tokenizer = with_space if of_bytes else pre_tokenizers.Metaspace()
    made.decoder = decoders.ByteLevel() if of_bytes else decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=430,
        special_tokens=[*special, *([] if of_bytes else bytes_)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        if of_bytes
        else [*"abcdefghijklmnopqrstuvwxyzINST[]/|<>_"],
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    if kind == "legacy":
        made.pre_tokenizer = None
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    elif not of_bytes:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    return made


def write(directory, kind: str, template, *, added=None, **settings) -> None:
    """Write the tokenizer files of a chat model; `added` changes the added tokens from the fourth on."""
    described = json.loads(vocabulary(kind).to_str())
    described["added_tokens"] = [
        {**token, **(added or {})} if token["id"] > 2 else token
        for token in described["added_tokens"]
        if not token["content"].startswith("<0x")
    ]
    (directory / "tokenizer.json").write_text(json.dumps(described))
    end = "<|im_end|>" if isinstance(template, str) and "im_end" in template else "</s>"
    roles = {"bos_token": "<s>", "eos_token": end, "unk_token": "<unk>"}
    known = {"tokenizer_class": "TokenizersBackend", "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps({**roles, **known, **settings}))


def load(directory) -> Tokenizer:
    return Tokenizer.load(directory, eos_token_id=None, continues=True)


def conversation(theirs, message: str, answer: str | None = None) -> list[int]:
    messages = [{"role": "user", "content": message}]
    if answer is None:
        return theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return theirs.apply_chat_template([*messages, {"role": "assistant", "content": answer}], return_dict=False)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_has_the_tokens_of_transformers(kind, name, tmp_path):
    write(tmp_path, kind, TEMPLATES[name])
    ours, theirs = load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    prompts = PromptTokens("{text}", ours, 200)([{"text": message} for message in MESSAGES]).ids
    for message, prompt in zip(MESSAGES, prompts, strict=True):
        assert prompt == conversation(theirs, message), message
    # What follows text that ends in white space could share a token with it in a whole text, here it never does.
    for answer in ("ship", "two words", "[x]"):
        [ids] = ours.answers([answer])
        whole = conversation(theirs, "my invoice", answer)
        assert [*prompts[0], *ids] == whole[: len(prompts[0]) + len(ids)], answer
        assert ours.decode([ids]) == [answer]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", [{"rstrip": True}, {"lstrip": True}, {"lstrip": True, "rstrip": True}])
def test_white_space_beside_a_token_may_be_part_of_it(flags, kind, tmp_path):
    write(tmp_path, kind, PHI_3, added=flags)
    ours, theirs = load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for message in MESSAGES:
        [prompt] = PromptTokens("{text}", ours, 200)([{"text": message}]).ids
        assert prompt == conversation(theirs, message), message
        [ids] = ours.answers([message])
        whole = conversation(theirs, "my invoice", message)
        at = len(conversation(theirs, "my invoice"))
        if message.strip():  # without text, the white space before it would be the end token's
            assert ids == whole[at : at + len(ids)], message


def test_an_answer_may_follow_a_token_that_is_not_special(tmp_path):
    """As after Qwen 3's `</think>`; such a token may take the white space after it."""
    for rstrip in (False, True):
        write(tmp_path, "first", PHI_3.replace("<|im_start|>\n", "<think>\n"))
        described = json.loads((tmp_path / "tokenizer.json").read_text())
        token = {**described["added_tokens"][-1], "id": 430, "content": "<think>", "special": False, "rstrip": rstrip}
        described["added_tokens"].append(token)
        (tmp_path / "tokenizer.json").write_text(json.dumps(described))
        ours, theirs = load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
        [prompt] = PromptTokens("{text}", ours, 200)([{"text": "my invoice"}]).ids
        [answer] = ours.answers(["ship"])
        assert [*prompt, *answer] == conversation(theirs, "my invoice", "ship")[: len(prompt) + len(answer)]


def test_a_normaliser_for_the_beginning_of_a_text_leaves_an_answer_alone(tmp_path):
    write(tmp_path, "always", CHATML)
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    doubled = {"type": "Replace", "pattern": {"Regex": r"\A\u2581"}, "content": "\u2581\u2581"}
    steps = [
        {"type": "Strip", "strip_left": True, "strip_right": False},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        {**doubled, "pattern": {"Regex": "\\A\u2581"}},
    ]
    described["normalizer"] = {"type": "Sequence", "normalizers": steps}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    ours, theirs = load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    [prompt] = PromptTokens("{text}", ours, 200)([{"text": "my invoice"}]).ids
    for answer in ("ship", " ship"):
        [ids] = ours.answers([answer])
        assert [*prompt, *ids] == conversation(theirs, "my invoice", answer)[: len(prompt) + len(ids)]


def test_words_that_are_marked_one_by_one_stay_marked(tmp_path):
    """As in vocabularies of XGLM's kind: splitting at white space comes before the space that begins each word."""
    write(tmp_path, "always", CHATML)
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    steps = [{"type": "WhitespaceSplit"}, described["pre_tokenizer"]]
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    ours, theirs = load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    [prompt] = PromptTokens("{text}", ours, 200)([{"text": "my invoice"}]).ids
    [ids] = ours.answers(["two words"])
    assert [*prompt, *ids] == conversation(theirs, "my invoice", "two words")[: len(prompt) + len(ids)]


@pytest.mark.parametrize("kind", ["first", "bytes"])
@pytest.mark.parametrize("name", ["llama 3", "phi 3"])
def test_a_prompt_that_is_cut_is_that_of_a_shorter_text(name, kind, tmp_path):
    """Also where white space at the ends of the message, or beside special tokens, is left out."""
    write(tmp_path, kind, PHI_3 if name == "phi 3" else LLAMA_3, added={"rstrip": True} if name == "phi 3" else {})
    tokenizer, template = load(tmp_path), " Topic: {a}\n{b} "
    longest, draw = 30, random.Random(0)
    cut, whole = PromptTokens(template, tokenizer, longest), PromptTokens(template, tokenizer, 10_000)
    for _ in range(8):
        a, b = ("".join(draw.choices("ab \n", k=draw.randrange(40))) for _ in range(2))
        made = cut([{"a": a, "b": b}])
        assert len(made.ids[0]) <= longest
        ways = [{"a": a[:i], "b": b[:j]} for i in range(len(a) + 1) for j in range(len(b) + 1)]
        assert made.ids[0] in (whole(ways).ids if made.cut[0] else whole([{"a": a, "b": b}]).ids)


@pytest.mark.parametrize(("template", "added"), [(LLAMA_3, {}), (PHI_3, {"rstrip": True})])
def test_a_prompt_is_cut_no_more_for_white_space_that_is_stripped(template, added, tmp_path):
    write(tmp_path, "bytes", template, added=added)
    prompts = PromptTokens("{text}", load(tmp_path), 40)
    [bare, spaced] = prompts([{"text": space + "invoice " * 60} for space in ("", "\n" * 60)]).ids
    assert spaced == bare and len(bare) == 40


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ("| trim", ((None, None), (None, None))),
        (".lstrip('\n')", (("\n", ""), ("\n", ""))),
        (".rstrip()", (("", None), ("", None))),
        (".strip(' ')", ((" ", " "), (" ", " "))),
    ],
)
def test_what_a_template_strips_from_messages_is_stripped(filter_, expected, tmp_path):
    write(tmp_path, "bytes", CHATML.replace("m['content']", f"(m['content']{filter_})"))
    ours, theirs = load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert (ours.wording.prompt_strip, ours.wording.answer_strip) == expected
    for message in ("\n\n hello there \n ", " \t ", "\thello"):
        [prompt] = PromptTokens("{text}", ours, 200)([{"text": message}]).ids
        assert prompt == conversation(theirs, message)
        [in_parts] = PromptTokens(" {a}{b} ", ours, 200)([{"a": "", "b": message}]).ids
        assert in_parts == conversation(theirs, f" {message} ")
        [answer] = ours.answers([message])
        assert conversation(theirs, "x", message)[len(conversation(theirs, "x")) :][: len(answer)] == answer


@pytest.mark.parametrize("change", ["| upper", ".replace('\n\n', '\n')", "| tojson", ".replace('\t', ' ')"])
def test_a_template_that_changes_messages_in_another_way_is_refused(change, tmp_path):
    write(tmp_path, "bytes", CHATML.replace("m['content']", f"(m['content']{change})"))
    said = r"changes messages, such as one with .*; expected one that strips|does not write each message once"
    with pytest.raises(UserError, match=said) as raised:
        assert load(tmp_path).wording
    assert "\n" not in str(raised.value)


def test_text_between_an_answer_and_its_end_is_refused(tmp_path):
    write(tmp_path, "bytes", LLAMA_2.replace("' ' + eos_token", "' over ' + eos_token"))
    with pytest.raises(UserError, match=r"writes ' over ' between an answer and its end token; expected white space"):
        assert load(tmp_path).wording


def test_labels_are_counted_with_all_that_surrounds_an_answer(tmp_path):
    write(tmp_path, "bytes", LLAMA_2)
    tokenizer, labels = load(tmp_path), ["shipping", "ship"]
    with pytest.raises(UserError, match="same in their first 2 tokens") as raised:
        check_labels(labels, tokenizer, 2)
    named = int(re.findall(r"\d+", str(raised.value))[-1])
    assert named == max(map(len, tokenizer.answers(labels)))


def test_named_templates_of_which_none_is_the_default_are_named(tmp_path):
    templates = [{"name": name, "template": CHATML} for name in ("rag", "tool_use")]
    write(tmp_path, "bytes", templates)
    [note] = load(tmp_path).notes
    assert "none of its chat templates ('rag'; 'tool_use') is the default: prompts have none unless" in note
    assert load(tmp_path).wording.chat_template == "none" and load(tmp_path).chat_template is None
    write(tmp_path, "bytes", [*templates, {"name": "default", "template": CHATML}], eos_token="<|im_end|>")
    assert load(tmp_path).notes == [] and load(tmp_path).wording.chat_template == CHATML


@pytest.mark.parametrize(
    ("kind", "legacy", "noted"),
    [("always", False, True), ("always", True, False), ("legacy", True, False), ("first", False, False)]
    + [("first", True, True), ("never", False, True), ("bytes", False, False), ("bytes with a space", False, False)],
)
def test_other_rules_of_transformers_for_a_llama_tokenizer_are_named(kind, legacy, noted, tmp_path):
    write(tmp_path, kind, CHATML, tokenizer_class="LlamaTokenizer", legacy=legacy)
    found = load(tmp_path).notes
    assert len(found) == noted and all("transformers 5 puts a space before" in note for note in found)
    ours, theirs = load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    [prompt] = PromptTokens("{text}", ours, 200)([{"text": "my invoice"}]).ids
    assert (prompt == conversation(theirs, "my invoice")) == (not noted or kind == "never")


# --- runs and adapters of earlier versions, in which each text was tokenised by itself ---


def test_only_what_a_conversation_changes_is_told_from_earlier_versions(tmp_path):
    def tokens(kind, template, **changes):
        write(tmp_path, kind, template, **changes)
        return load(tmp_path).chat_tokens

    assert tokens("bytes", CHATML) is None and tokens("never", CHATML) is None
    assert tokens("always", TOKENS_ALONE) is None  # as each text by itself
    told = [
        tokens("always", CHATML),
        tokens("first", CHATML),
        tokens("bytes", LLAMA_3),
        tokens("bytes", LLAMA_2),
        tokens("bytes", PHI_3, added={"rstrip": True}),
    ]
    assert None not in told and len({*told}) == len(told)
    tokenizer = load(tmp_path)
    assert tokenizer.answers(["ship"]) != tokenizer.asked_by("none").answers(["ship"]) and tokenizer.chat_tokens
    assert tokenizer.asked_by("none").chat_tokens is None
    assert load(tmp_path).fingerprint != (write(tmp_path, "bytes", PHI_3), load(tmp_path).fingerprint)[1]


def test_an_adapter_that_learned_other_tokens_is_told(tmp_path):
    write(tmp_path, "first", CHATML)
    now = load(tmp_path).chat_tokens
    earlier = TaskOfRun(template="{text}", chat_template=CHATML)
    assert "when texts in its chat template were other tokens" in str(earlier.in_other_tokens(now))
    assert earlier.in_other_tokens(None) is None and TaskOfRun(template="{text}").in_other_tokens(now) is None
    TaskOfRun(template="{text}", chat_template=CHATML, chat_tokens=now).write(tmp_path)
    again = TaskOfRun.read(tmp_path)
    assert again is not None and again.in_other_tokens(now) is None


def test_how_texts_become_tokens_is_read_from_the_models_files(tmp_path):
    write(tmp_path, "first", CHATML)
    config = DecoderConfig.from_dict({**LLAMA.to_dict(), "vocab_size": 430, "eos_token_id": 4})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    found = chat_tokens_in(tmp_path, "auto")
    assert found == DECODER_FAMILY.tokenizer(tmp_path, config).chat_tokens is not None
    assert chat_tokens_in(tmp_path, "none") is None
    write(tmp_path, "bytes", CHATML)
    assert chat_tokens_in(tmp_path, "auto") is None
