"""Tokenizers from folders, GGUF files and tiktoken vocabularies: the tokens that the model's own tokenizer gives."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import normalizers

from engines.native.chat_template import TemplateError
from engines.native.gguf_metadata import GGUFError
from engines.native.pre_tokenizers import LLAMA3_SPLIT, PRE_TOKENIZATIONS, QWEN2_SPLIT
from engines.native.token_table import byte_alphabet
from engines.native.tokenizer import Tokenizer
from engines.native.tokenizer_backend import TokenizerLoadError, set_boundary_tokens
from tests.engines.native.small_tokenizers import NASTY, TEXT, byte_fallback, byte_level, save

# --- folders ----------------------------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|endoftext|>",
    "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False},
    "clean_up_tokenization_spaces": False,
}


def load_reference(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def declared(token: str, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    return {"content": token, **plain, **flags}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="plain"),
        pytest.param({"add_bos_token": True, "add_eos_token": True}, id="leaves BOS to tokenizer.json"),
        pytest.param({"additional_special_tokens": ["<|im_start|>"]}, id="lists special tokens"),
        pytest.param(
            {"added_tokens_decoder": {"406": declared("<|new|>"), "407": declared("<mark>", special=False)}},
            id="adds tokens",
        ),
        pytest.param({"added_tokens_decoder": {"404": declared("<think>", lstrip=True)}}, id="changes a token's flags"),
    ],
)
def test_folder_gives_the_ids_that_transformers_gives(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = save(byte_level(), tmp_path / "model", tokenizer_config={**CONFIG, **changes})
    tokenizer, reference = Tokenizer.load(folder), load_reference(folder)
    for text in [*NASTY, "a <think> b", "x<|new|>y <mark>z"]:
        for add_special_tokens in (True, False):
            ids = tokenizer.encode(text, add_special_tokens)
            assert ids == reference.encode(text, add_special_tokens=add_special_tokens)
            for skip in (True, False):
                assert tokenizer.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip)


def test_what_tokenizer_json_puts_around_a_text_is_an_option(tmp_path: Path) -> None:
    pipeline = byte_level()
    set_boundary_tokens(pipeline, "<|endoftext|>", "<|im_end|>")
    tokenizer = Tokenizer.load(save(pipeline, tmp_path / "model", tokenizer_config={**CONFIG, "add_bos_token": False}))
    plain = tokenizer.encode("the dog", add_special_tokens=False)
    assert tokenizer.encode("the dog") == [400, *plain, 402]


def test_byte_level_text_survives_the_round_trip(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(save(byte_level(), tmp_path / "model", tokenizer_config=CONFIG))
    for text in NASTY:
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_training_settings_in_the_file_do_not_apply(tmp_path: Path) -> None:
    pipeline = byte_level()
    expected = pipeline.encode("the dog " * 50).ids
    pipeline.enable_truncation(8)
    pipeline.enable_padding(length=1000)
    assert Tokenizer.load(save(pipeline, tmp_path / "model")).encode("the dog " * 50) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({"generation_config": {"eos_token_id": [400, 7]}}, {400, 7, 402}, id="list of ids"),
        pytest.param(
            {"generation_config": {"eos_token_id": 400}, "config": {"eos_token_id": 9}}, {400, 402}, id="one id"
        ),
        pytest.param({"generation_config": {}, "config": {"eos_token_id": 9}}, {9, 402}, id="from config.json"),
        pytest.param({}, {402}, id="only the tokenizer's"),
    ],
)
def test_eos_ids_are_the_generation_configs_and_the_tokenizers(
    tmp_path: Path, files: dict[str, Any], expected: set[int]
) -> None:
    tokenizer = Tokenizer.load(save(byte_level(), tmp_path / "model", tokenizer_config=CONFIG, **files))
    assert tokenizer.token_id("<|im_end|>") == 402
    assert tokenizer.eos_token_ids == expected
    assert tokenizer.bos_token_id == tokenizer.token_id("<|endoftext|>") == 400
    assert tokenizer.vocab_size == 406


def test_special_tokens_map_fills_in_for_the_config(tmp_path: Path) -> None:
    folder = save(byte_level(), tmp_path / "model", special_tokens_map={"bos_token": {"content": "<|im_start|>"}})
    assert Tokenizer.load(folder).bos_token_id == 401


def test_special_token_outside_the_vocabulary_is_left_out(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(save(byte_level(), tmp_path / "model", tokenizer_config={"bos_token": "<nowhere>"}))
    assert tokenizer.bos_token_id is None
    assert tokenizer.vocab_size == 406


def test_folder_without_tokenizer_json_is_read_through_transformers(tmp_path: Path) -> None:
    model = json.loads(byte_level().to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges + "\n", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}', encoding="utf-8")
    tokenizer, reference = Tokenizer.load(tmp_path), load_reference(tmp_path)
    for text in NASTY:
        assert tokenizer.encode(text) == reference.encode(text)
    assert tokenizer.bos_token_id == reference.bos_token_id


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param({}, "no tokenizer.json", id="empty folder"),
        pytest.param({"tokenizer.model": "\n\x0e\n"}, "need the packages sentencepiece", id="broken model"),
        pytest.param({"tokenizer.json": "{}"}, r"tokenizer\.json can't be read", id="no pipeline"),
        pytest.param({"tokenizer_config.json": "{"}, "is not JSON", id="broken config"),
        pytest.param({"tokenizer_config.json": "[]"}, "JSON object", id="config is a list"),
    ],
)
def test_folder_that_cannot_be_read_says_which_file(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerLoadError, match=message):
        Tokenizer.load(tmp_path)


def test_path_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"\x00\x01")
    with pytest.raises(TokenizerLoadError, match="expected a folder"):
        Tokenizer.load(path)
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "missing.gguf")


# --- use --------------------------------------------------------------------------------------------------------------


def test_lone_surrogates_are_read_as_replacement_characters(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(save(byte_level(), tmp_path / "model"))
    assert tokenizer.decode(tokenizer.encode("a\ud83db\ud83c\udf89")) == "a\ufffdb🎉"


def test_ids_without_a_token_stand_for_nothing_and_impossible_ids_are_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(save(byte_level(), tmp_path / "model"))
    the = tokenizer.encode("the")
    assert tokenizer.decode([*the, 100_000, *the]) == "thethe"
    for token_id in (-1, 1 << 40):
        with pytest.raises(ValueError, match="4294967295"):
            tokenizer.decode([token_id])


def test_threads_may_share_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(save(byte_level(), tmp_path / "model", tokenizer_config=CONFIG))
    texts = [text * 20 + str(i) for i, text in enumerate(NASTY * 8)]
    expected = [tokenizer.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == expected
        assert list(pool.map(lambda ids: tokenizer.decode(ids, False), expected)) == texts


def test_loading_and_encoding_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    folder = save(byte_level(), tmp_path / "model", tokenizer_config=CONFIG)
    program = (
        "import sys; from engines.native.tokenizer import Tokenizer\n"
        "from engines.native.detokenizer import Detokenizer\n"
        f"t = Tokenizer.load({str(folder)!r}); Detokenizer(t).push(t.encode('the dog'))\n"
        "sys.exit(' '.join({'torch', 'transformers', 'gguf', 'tiktoken'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


# --- chat templates ---------------------------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "hi"}]


def test_template_sees_special_tokens_and_variables(tmp_path: Path) -> None:
    source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ mood }}"
    folder = save(byte_level(), tmp_path / "model", tokenizer_config={**CONFIG, "chat_template": source})
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.has_chat_template
    assert tokenizer.apply_chat_template(MESSAGES, mood="!") == "<|endoftext|>hi<|im_end|>!"
    assert tokenizer.apply_chat_template(MESSAGES, self=1, messages=[]) == "<|endoftext|>hi<|im_end|>"


def test_template_is_chosen_by_name_by_tools_and_by_default(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    folder = save(byte_level(), tmp_path / "model", tokenizer_config={"chat_template": named})
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("documents", encoding="utf-8")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.apply_chat_template(MESSAGES) == "plain"
    assert tokenizer.apply_chat_template(MESSAGES, tools=[{"type": "function"}]) == "with tools"
    assert tokenizer.apply_chat_template(MESSAGES, chat_template="rag") == "documents"
    with pytest.raises(TemplateError, match="only: default, rag, tool_use"):
        tokenizer.apply_chat_template(MESSAGES, chat_template="{{ 1 + 1 }}")


def test_template_file_goes_before_the_config_and_the_operators_before_both(tmp_path: Path) -> None:
    folder = save(byte_level(), tmp_path / "model", tokenizer_config={"chat_template": "old"})
    (folder / "chat_template.jinja").write_text("new", encoding="utf-8")
    assert Tokenizer.load(folder).apply_chat_template(MESSAGES) == "new"
    assert Tokenizer.load(folder, chat_template="own").apply_chat_template(MESSAGES) == "own"
    with pytest.raises(TemplateError, match="not valid"):
        Tokenizer.load(folder, chat_template="{% if %}")


def test_model_without_template_says_so(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(save(byte_level(), tmp_path / "model"))
    assert not tokenizer.has_chat_template
    with pytest.raises(TemplateError, match="no chat template"):
        tokenizer.apply_chat_template(MESSAGES)


# --- GGUF -------------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, model: str, tokens: list[str], types: list[int], **keys: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for key, value in keys.items():
        name = f"tokenizer.{key}" if key.startswith("chat_template") else f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_level_gguf(path: Path, pipeline: RustTokenizer, **keys: Any) -> Path:
    added = pipeline.get_added_tokens_decoder()
    tokens = [pipeline.id_to_token(i) for i in range(pipeline.get_vocab_size(True))]
    types = [(3 if added[i].special else 4) if i in added else 1 for i in range(len(tokens))]
    merges = [" ".join(pair) for pair in json.loads(pipeline.to_str())["model"]["merges"]]
    return write_gguf(path, "gpt2", tokens, types, **{"merges": merges, "pre": "gpt-2", **keys})


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "default"])
def test_byte_level_gguf_gives_the_original_pipelines_ids(tmp_path: Path, pre: str) -> None:
    pipeline = byte_level()
    pipeline.pre_tokenizer = PRE_TOKENIZATIONS[pre].pre_tokenizer()
    if pre == "qwen2":
        pipeline.normalizer = normalizers.NFC()
    tokenizer = Tokenizer.load(byte_level_gguf(tmp_path / "m.gguf", pipeline, pre=pre, add_bos_token=False))
    for text in NASTY:
        ids = tokenizer.encode(text)
        if pre != "llama-bpe":  # which takes words that are tokens whole, without merging
            assert ids == pipeline.encode(text).ids
        if pre != "qwen2":
            assert tokenizer.decode(ids, False) == text


PRE_CUTS = [
    ("gpt-2", "I'm 1234 x", ["I", "'m", " 1234", " x"]),
    ("smollm", "I'm 1234 x", ["I", "'m", " ", "1", "2", "3", "4", " x"]),
    ("llama-bpe", "I'M 1234\n\nx", ["I", "'M", " ", "123", "4", "\n\n", "x"]),
    ("qwen2", "I'M 12 (ok)\n x", ["I", "'M", " ", "1", "2", " (", "ok", ")\n", " x"]),
    ("default", "a+1234 b", ["a", "+", "123", "4", " b"]),
    ("tekken", "camelCase 12", ["camel", "Case", " ", "1", "2"]),
    ("deepseek-v3", "x=1234你好", ["x", "=", "123", "4", "你好"]),
    ("falcon", "a`b 1234", ["a", "`", "b", " ", "123", "4"]),
    ("deepseek-coder", "ab\n12 你", ["ab", "\n", "1", "2", " ", "你"]),
    ("qwen35", "हिन्दी 12", ["हिन्दी", " ", "1", "2"]),
    ("gpt-4o", "It'S XMLFile", ["It'S", " XMLFile"]),
]


@pytest.mark.parametrize(("pre", "text", "expected"), PRE_CUTS, ids=[cut[0] for cut in PRE_CUTS])
def test_text_is_cut_as_the_name_says(pre: str, text: str, expected: list[str]) -> None:
    alphabet = byte_alphabet()
    pieces = PRE_TOKENIZATIONS[pre].pre_tokenizer().pre_tokenize_str(text)
    assert [bytes(alphabet[char] for char in piece).decode() for piece, _ in pieces] == expected


@pytest.mark.parametrize(("pre", "num_tokens"), [("llama-bpe", 1), ("gpt-2", 3)])
def test_a_word_that_no_merge_gives_is_taken_whole_where_the_model_does(
    tmp_path: Path, pre: str, num_tokens: int
) -> None:
    tokens = [*byte_alphabet(), "ab", "zqx"]
    path = write_gguf(tmp_path / "m.gguf", "gpt2", tokens, [1] * len(tokens), merges=["a b"], pre=pre)
    assert len(Tokenizer.load(path).encode("zqx")) == num_tokens


def test_llama3_and_qwen2_differ_in_digits_alone() -> None:
    assert LLAMA3_SPLIT.replace("{1,3}", "") == QWEN2_SPLIT


def test_gguf_special_tokens_templates_and_ends_are_read(tmp_path: Path) -> None:
    pipeline = byte_level()
    pipeline.add_special_tokens(["<|eot_id|>"])
    path = byte_level_gguf(
        tmp_path / "m.gguf",
        pipeline,
        pre="llama-bpe",
        bos_token_id=401,
        eos_token_id=400,
        eot_token_id=403,
        eom_token_id=999_999,
        **{"chat_template": "usual {{ bos_token }}", "chat_template.tool_use": "tools"},
    )
    tokenizer = Tokenizer.load(path)
    assert tokenizer.bos_token_id == 401
    # named by keys: 400 and 403; by what the token says: <|endoftext|>, <|im_end|>, <|eot_id|>
    assert tokenizer.eos_token_ids == {400, 402, 403, 406}
    assert tokenizer.special_ids == {400, 401, 402, 403, 406}
    assert tokenizer.encode("the") == [401, *tokenizer.encode("the", add_special_tokens=False)]
    assert tokenizer.encode("a<think>b", add_special_tokens=False)[1] == tokenizer.token_id("<think>")
    assert tokenizer.apply_chat_template(MESSAGES) == "usual <|im_start|>"
    assert tokenizer.apply_chat_template(MESSAGES, tools=[{}]) == "tools"


def sentencepiece_oracle(text: str, vocab: dict[str, int], scores: list[float]) -> list[int]:
    """SentencePiece's BPE by its definition: join the best-scored neighbours, leftmost first, while any can be."""
    symbols = list("▁" + text.replace(" ", "▁"))
    while True:
        joined = [(-scores[vocab[a + b]], i) for i, (a, b) in enumerate(zip(symbols, symbols[1:])) if a + b in vocab]  # noqa: B905, RUF007
        if not joined:
            break
        at = min(joined)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return [
        token_id
        for symbol in symbols
        for token_id in ([vocab[symbol]] if symbol in vocab else [vocab[f"<0x{b:02X}>"] for b in symbol.encode()])
    ]


@pytest.mark.parametrize("prefix", [True, False], ids=["space prefix", "no prefix"])
def test_sentencepiece_gguf_merges_by_score(tmp_path: Path, prefix: bool) -> None:
    source = byte_fallback(strips_first_space=prefix)
    tokens = [source.id_to_token(i) for i in range(source.get_vocab_size())]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]
    scores = [0.0] * 259 + [-float(i * 37 % 1009) for i in range(len(tokens) - 259)]  # in no order of the vocabulary
    keys: dict[str, Any] = {"scores": scores, "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    path = write_gguf(tmp_path / "m.gguf", "llama", tokens, types, add_space_prefix=prefix, **keys)
    tokenizer = Tokenizer.load(path)
    assert tokenizer.eos_token_ids == {2}
    vocab = {token: i for i, token in enumerate(tokens)}
    for text in [*NASTY, *TEXT]:
        if "<s>" in text:
            continue
        ids = tokenizer.encode(text)
        if prefix and text:
            assert ids == [1, *sentencepiece_oracle(text, vocab, scores)]
        assert ids[0] == 1
        assert tokenizer.decode(ids) == text.replace("▁", " ")  # U+2581 can't be told from a space


@pytest.mark.parametrize(
    ("model", "keys", "message"),
    [
        pytest.param("t5", {}, "'gpt2' and 'llama'", id="another kind"),
        pytest.param(
            "gpt2", {"pre": "unheard-of", "merges": ["a b"]}, "unheard-of.*known are.*smollm", id="unknown cut"
        ),
        pytest.param("gpt2", {"merges": ["a b", "ab"]}, "not a pair", id="broken merge"),
        pytest.param("gpt2", {"merges": ["a b", "x y"]}, "vocabulary", id="merge of unknown tokens"),
        pytest.param("llama", {}, "one score per token", id="no scores"),
        pytest.param("gpt2", {"merges": "a b"}, "merges is not a list", id="wrong type"),
    ],
)
def test_gguf_vocabulary_that_cannot_be_read_says_why(
    tmp_path: Path, model: str, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(TokenizerLoadError, match=message):
        Tokenizer.load(write_gguf(tmp_path / "m.gguf", model, ["a", "b", "ab"], [1, 1, 1], **keys))


def test_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"not a model at all")
    with pytest.raises(GGUFError, match="not a GGUF file"):
        Tokenizer.load(tmp_path / "m.gguf")


def test_smollm2_is_read_from_its_gguf(smollm2_gguf: Path) -> None:
    tokenizer = Tokenizer.load(smollm2_gguf)
    assert tokenizer.vocab_size == 49152
    assert tokenizer.token_id("<|im_end|>") in tokenizer.eos_token_ids
    for text in NASTY:
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "What is 12 + 30?"}])
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    texts = [tokenizer.token_text(i) for i in ids]
    assert texts[:3] == ["<|im_start|>", "system", "\n"]
    at = texts.index("What")
    assert texts[at:] == [
        *("What", " is", " ", "1", "2", " +", " ", "3", "0", "?", "<|im_end|>", "\n", "<|im_start|>"),
        *("ass", "istant", "\n"),
    ]  # fmt: skip


# --- tiktoken ---------------------------------------------------------------------------------------------------------


def write_tiktoken(path: Path, pipeline: RustTokenizer) -> dict[str, int]:
    alphabet = byte_alphabet()
    ranks = json.loads(pipeline.to_str())["model"]["vocab"]
    lines = (
        base64.b64encode(bytes(alphabet[c] for c in token)) + f" {rank}\n".encode() for token, rank in ranks.items()
    )
    path.write_bytes(b"".join(lines))
    return ranks


def tiktoken_folder(folder: Path, name: str, model_type: str | None = "llama") -> RustTokenizer:
    pipeline = byte_level()
    pipeline.pre_tokenizer = PRE_TOKENIZATIONS["llama-bpe"].pre_tokenizer()
    write_tiktoken(folder / name, pipeline)
    added = {i: declared(t.content) for i, t in pipeline.get_added_tokens_decoder().items() if t.special}
    config = {**CONFIG, "add_bos_token": True, "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    return pipeline


@pytest.mark.parametrize("name", ["tokenizer.model", "tiktoken.model", "model.tiktoken"])
def test_tiktoken_vocabulary_gives_the_pipelines_tokens(tmp_path: Path, name: str) -> None:
    pipeline = tiktoken_folder(tmp_path, name)
    tokenizer = Tokenizer.load(tmp_path)
    for text in NASTY:
        ids = tokenizer.encode(text)
        assert ids[0] == tokenizer.bos_token_id == 400
        assert tokenizer.decode(ids[1:], False) == text
        assert ids[1:] == tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.encode("the dog<|im_end|>") == [400, *pipeline.encode("the dog<|im_end|>").ids]
    assert tokenizer.decode([400, *pipeline.encode("the").ids, 402, 99_999]) == "the"
    assert tokenizer.token_text(402) == "<|im_end|>"
    assert tokenizer.eos_token_ids == {402}
    assert tokenizer.token_id("the") == pipeline.token_to_id("the")
    assert tokenizer.token_id("no such token") is None


def test_tiktoken_file_alone_is_a_tokenizer_without_special_tokens(tmp_path: Path) -> None:
    write_tiktoken(tmp_path / "ranks.tiktoken", byte_level())
    tokenizer = Tokenizer.load(tmp_path / "ranks.tiktoken")
    assert tokenizer.decode(tokenizer.encode("the dog <|im_end|>")) == "the dog <|im_end|>"
    assert tokenizer.special_ids == frozenset()


def test_tiktoken_vocabulary_of_an_unknown_family_is_refused(tmp_path: Path) -> None:
    tiktoken_folder(tmp_path, "tiktoken.model", model_type="kimi")
    with pytest.raises(TokenizerLoadError, match="kimi"):
        Tokenizer.load(tmp_path)


def test_damaged_tiktoken_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tiktoken").write_bytes(base64.b64encode(b"a") + b" 0\n" + b"broken line here\n")
    with pytest.raises(TokenizerLoadError, match="tiktoken"):
        Tokenizer.load(tmp_path / "x.tiktoken")


@pytest.mark.parametrize("text", ["Hello there", "Grüße, 世界! 🦊", "a\ud800b", ""])
def test_offsets_are_the_bytes_that_each_token_covers(smollm2_gguf, text):
    tokenizer = Tokenizer.load(smollm2_gguf)
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    covered = [whole[start:stop] for start, stop in offsets]
    for token_id, part in zip(ids, covered, strict=True):
        # A token that is a part of a character covers all of it, for the tokenizer counts characters.
        assert tokenizer.token_bytes[token_id] in part
