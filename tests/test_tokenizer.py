"""Ids against transformers' tokenizers; special strings in text stay text; streamed pieces join to the decoded text."""

import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from fastvlm.tokenizer import Tokenizer, TokenizerError

QWEN2 = Path(__file__).parent / "data/qwen2_tokenizer"
CASE = json.loads((Path(__file__).parent / "data/parity/small_tied/case.json").read_text())
QWEN25_EXTRA = ["<|object_ref_start|>", "<|vision_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|repo_name|>"]


def write_qwen2(folder: Path, **changes) -> Path:
    """Qwen2's files as Apple's checkpoints have them; a change of None leaves a file out."""
    files = {name: CASE["files"][name] for name in ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")}
    files |= changes
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(QWEN2 / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def qwen2_folder(tmp_path_factory):
    return write_qwen2(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def qwen2(qwen2_folder):
    return Tokenizer.from_folder(qwen2_folder)


@pytest.fixture(scope="module")
def reference(qwen2_folder):
    return AutoTokenizer.from_pretrained(qwen2_folder)


TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  leading and trailing  ",
    "tabs\tand\nnew\n\nlines\r\n end \n ",
    "I'm he'LL they'Ve it's don't 'tis",
    "12345 3.14159 1,000,000 ١٢٣ ４２ Ⅻ ½",
    "中文字符 日本語テキスト 한국어 ไทย हिन्दी العربية עברית",
    "e\u0301 vs é, \u1e9b\u0323, ﬁ, Å Å",
    "👩‍👩‍👧‍👦 🇫🇷 👍🏽 ☃️ 🤷🏻‍♀️",
    "a\u00a0b\u2003c\u3000d\u200be\ufeff",
    "def f(x):\n    return x**2  # comment\n\n\nclass A: pass",
    "https://example.org/a?b=c&d=%20#e",
    "<b>x</b> <image> <|im_start|",
    "\x00\x01\x7f\u0085\ufffd",
    "…—–“”‘’ €12,50 §4 ¿qué?",
    "a" * 500,
    " " * 100 + "x",
    "ﷺ" * 3 + "\U0001f9ff\U00020000\U000e0041",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_ids_equal_transformers(qwen2, reference, text):
    assert qwen2.encode(text) == reference.encode(text, add_special_tokens=False)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t'sStTrReE019.,<|>éﬁ中👍")), max_size=60))
def test_ids_of_any_text_equal_transformers(qwen2, reference, text):
    if not any(token in text for token in qwen2.added_tokens):
        assert qwen2.encode(text) == reference.encode(text, add_special_tokens=False)
        assert qwen2.decode(qwen2.encode(text)) == reference.decode(reference.encode(text), clean_up_tokenization_spaces=False)


def test_names_and_numbers(qwen2):
    assert qwen2.vocab_size == 151646
    assert qwen2.token_id("<|im_start|>") == 151644
    assert qwen2.eos_token_ids == (151645,)
    assert qwen2.pad_token_id == 151643
    assert qwen2.bos_token_ids == ()
    assert qwen2.unknown_ids(151936) == list(range(151646, 151936))
    assert qwen2.unknown_ids(10) == []
    with pytest.raises(KeyError, match="im_end"):
        qwen2.token_id("<|no_such|>")
    assert qwen2.token(151645) == "<|im_end|>"
    assert qwen2.token(-1) is None
    assert qwen2.token(1 << 40) is None


def test_special_strings_in_text_are_plain_text(qwen2, reference):
    for token in qwen2.special_tokens:
        for text in (token, f"a{token}b", token * 3, f"x <|im_{token}start|>"):
            ids = qwen2.encode(text)
            assert max(ids) < 151643
            assert qwen2.decode(ids) == text
    assert reference.encode("<|im_end|>") == [151645]  # so the test could fail


def test_tokens_that_only_look_special_are_plain_text_too(tmp_path):
    """Qwen2.5's list: some of its control tokens are not marked special, and transformers would make ids of them."""
    config = CASE["files"]["tokenizer_config.json"]
    extra = {
        str(151646 + index): {**config["added_tokens_decoder"]["151643"], "content": name, "special": index < 2}
        for index, name in enumerate(QWEN25_EXTRA)
    }
    config = {**config, "added_tokens_decoder": {**config["added_tokens_decoder"], **extra}}
    tokenizer = Tokenizer.from_folder(write_qwen2(tmp_path, **{"tokenizer_config.json": config}))
    for token in ("<|object_ref_start|>", "<|fim_prefix|>", "<|repo_name|>"):
        assert max(tokenizer.encode(f"a {token} b")) < 151643
    assert 151648 in tokenizer.encode("<tool_call>")  # as transformers, until a template is found to use it
    tokenizer.keep_plain(["<tool_call>"])
    assert max(tokenizer.encode("a<tool_call>")) < 151643
    assert tokenizer.encode("</tool_call><|fim_prefix|>")[0] == 151649  # the id of the one beside it has not moved
    assert tokenizer.decode([151648, 9707]) == "<tool_call>Hello"  # what a model says is shown, special tokens only are not
    assert tokenizer.decode([151646, 9707, 151645]) == "Hello"
    assert tokenizer.decode([151646, 9707, 999_999], skip_special_tokens=False) == "<|object_ref_start|>Hello"
    assert tokenizer.add_special_token("<image>") == 151652


def test_the_image_token_takes_the_next_free_id_and_the_folder_stays_as_it_is(qwen2_folder):
    before = {path.name: path.read_bytes() for path in qwen2_folder.iterdir()}
    tokenizer = Tokenizer.from_folder(qwen2_folder)
    assert tokenizer.add_special_token("<image>") == 151646
    assert tokenizer.add_special_token("<image>") == 151646
    assert tokenizer.vocab_size == 151647
    assert 151646 not in tokenizer.encode("an <image> here")
    assert tokenizer.decode([151646, 9707]) == "Hello"
    assert {path.name: path.read_bytes() for path in qwen2_folder.iterdir()} == before


def test_apples_exports_name_the_image_token_in_one_file_only(tmp_path, qwen2):
    """Apple's export script adds `<image>` to tokenizer_config.json and leaves tokenizer.json as it was."""
    config = CASE["files"]["tokenizer_config.json"]
    image = {**config["added_tokens_decoder"]["151643"], "content": "<image>"}
    config = {**config, "added_tokens_decoder": {**config["added_tokens_decoder"], "151646": image}}
    qwen2.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.from_folder(tmp_path).token_id("<image>") == 151646


def test_without_a_config_the_list_of_added_tokens_is_enough(tmp_path):
    tokenizer = Tokenizer.from_folder(write_qwen2(tmp_path, **{"tokenizer_config.json": None}))
    assert tokenizer.token_id("<|im_end|>") == 151645
    assert tokenizer.eos_token_ids == (151645,)
    assert max(tokenizer.encode("<|im_end|>")) < 151643


def test_saved_and_read_by_us_and_by_transformers(tmp_path, qwen2_folder, reference):
    ours = Tokenizer.from_folder(qwen2_folder)
    ours.add_special_token("<image>")
    ours.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert again.eos_token_ids == ours.eos_token_ids
    assert again.pad_token_id == ours.pad_token_id
    assert theirs.eos_token_id == 151645
    assert theirs.pad_token_id == 151643
    assert theirs.convert_tokens_to_ids("<image>") == 151646
    for text in TEXTS:
        assert again.encode(text) == ours.encode(text)
        if "<image>" not in text:
            assert theirs.encode(text, add_special_tokens=False) == reference.encode(text, add_special_tokens=False)
    assert theirs.encode("<|im_start|>user\nHi<|im_end|>") == [151644, 872, 198, 13048, 151645]


def test_eos_ids_come_from_every_file_that_knows_some(tmp_path):
    small_backend().save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_folder(tmp_path).eos_token_ids == ()
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 7}}))
    assert Tokenizer.from_folder(tmp_path).eos_token_ids == (7,)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 5, "text_config": {"eos_token_id": 7}}))
    assert Tokenizer.from_folder(tmp_path).eos_token_ids == (5,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4], "pad_token_id": 9}))
    assert Tokenizer.from_folder(tmp_path).eos_token_ids == (3, 4)
    assert Tokenizer.from_folder(tmp_path).pad_token_id == 9
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.eos_token_ids == (tokenizer.token_id("</s>"), 3, 4)


# Other families


def small_backend() -> Backend:
    """A byte-level vocabulary of bytes and two specials."""
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


def llama_backend(prepend: str) -> Backend:
    """Like Llama's: pieces with a low line for a space, bytes for what is unknown, a beginning-of-text token."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdehlorw!", "lo", "▁h", "▁w"]
    merges = [("l", "o"), ("▁", "h"), ("▁", "w")]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prepend == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=prepend, split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


@pytest.mark.parametrize("prepend", ["normalizer", "first", "always", "never"])
def test_pieces_between_special_tokens_are_those_of_the_whole(prepend):
    """Text cut at special tokens and encoded piece by piece, as prompts are, against the library reading all of it."""
    tokenizer = Tokenizer(llama_backend(prepend))
    assert tokenizer.bos_token_ids == (1,)
    whole = llama_backend(prepend).encode("hello world</s>hello", add_special_tokens=False).ids
    pieces = tokenizer.encode("hello world") + [tokenizer.token_id("</s>")] + tokenizer.encode("hello", is_start=False)
    assert pieces == whole


def test_special_strings_are_plain_where_the_vocabulary_holds_them():
    """A unigram vocabulary finds `</s>` as a piece of its own, whatever it is told about special tokens."""
    pieces = [("<unk>", 0.0), ("</s>", -0.1), *((letter, -2.0) for letter in "</s>ab")]
    backend = Backend(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.add_special_tokens(["</s>"])
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode("a</s>b</s>")
    assert 1 not in ids
    assert [tokenizer.token(i) for i in ids] == list("a</s>b</s>")


STREAMED = ["Hello wörld", "日本語 👩‍👩‍👧‍👦 ok", "", " spaced  out ", "\ufffd genuine", "é" * 20, "a\n\nb"]


@pytest.mark.parametrize("text", STREAMED, ids=range(len(STREAMED)))
@pytest.mark.parametrize("kind", ["qwen2", "bytes", "llama"])
def test_streamed_pieces_join_and_are_never_broken(qwen2, kind, text):
    tokenizer = {"qwen2": qwen2, "bytes": Tokenizer(small_backend()), "llama": Tokenizer(llama_backend("first"))}[kind]
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["qwen2", "bytes", "llama"])
def test_streams_of_any_ids_end(qwen2, kind):
    tokenizer = {"qwen2": qwen2, "bytes": Tokenizer(small_backend()), "llama": Tokenizer(llama_backend("first"))}[kind]
    rng = random.Random(0)
    for _ in range(20):
        ids = [rng.randrange(min(tokenizer.vocab_size + 20, rng.choice([300, 152_000]))) for _ in range(50)]
        stream = tokenizer.stream()
        text = "".join(stream.push(token_id) for token_id in ids) + stream.flush()
        if kind != "llama":  # where an invalid byte turns those before it, given out already, into U+FFFD
            assert text == tokenizer.decode(ids)


def test_an_unfinished_character_is_flushed_as_one_sign():
    tokenizer = Tokenizer(small_backend())
    stream = tokenizer.stream()
    ids = tokenizer.encode("a€")
    assert [stream.push(token_id) for token_id in ids[:-1]] == ["a", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_special_tokens_are_not_streamed(qwen2):
    stream = qwen2.stream()
    assert stream.push(9707) + stream.push(151645) + stream.flush() == "Hello"
    stream = qwen2.stream(skip_special_tokens=False)
    assert stream.push(9707) + stream.push(151645) + stream.flush() == "Hello<|im_end|>"


def test_lone_surrogates_become_replacement_signs(qwen2):
    assert qwen2.decode(qwen2.encode("a\ud800b")) == "a\ufffdb"
    assert qwen2.decode(qwen2.encode("\ud83d\udc4d")) == "👍"


# What cannot be read


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no tokenizer"),
        ({"tokenizer.json": "{"}, "damaged"),
        ({"tokenizer.json": "{}"}, "damaged"),
        ({"vocab.json": "{}", "merges.txt": "a b c"}, "do not fit"),
        ({"vocab.json": "[]", "merges.txt": ""}, "do not fit"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "", "tokenizer_config.json": '{"tokenizer_class": "GPT2Tokenizer"}'}, "save_pretrained"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "", "tokenizer_config.json": "nonsense"}, "not JSON"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "", "tokenizer_config.json": "[]"}, "expected an object"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "", "added_tokens.json": '{"<x>": 5}'}, "'<x>' is 5"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "", "added_tokens.json": '{"<x>": "5"}'}, "whole number"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "", "tokenizer_config.json": '{"added_tokens_decoder": {"x": {}}}'}, "content"),
    ],
)
def test_damaged_folders_are_named(tmp_path, files, says):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=says):
        Tokenizer.from_folder(tmp_path)


def test_flipped_bits_in_tokenizer_json_are_errors_or_tokenizers(tmp_path):
    data = llama_backend("first").to_str().encode()
    rng = random.Random(0)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 3])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        (tmp_path / "tokenizer.json").write_bytes(bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])]))
        try:
            tokenizer = Tokenizer.from_folder(tmp_path)
        except TokenizerError:
            continue
        tokenizer.encode("hello")
