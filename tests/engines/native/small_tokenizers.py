"""Real tokenizers, trained on a few lines in a moment: one for each way that text is made of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind.",
    "A tokenizer cuts text into tokens: the cat, the hat, the mat; 1234567890.",
    "def f(x):\n    return [x * 2 for x in range(10)]\n",
    "Ünïcödé text, naïve café, 你好世界 日本語 текст עברית 🎉👩‍👩‍👧",
    "the the the there then them they  double  spaces\t\ttabs\r\n\r\n",
]

# What users type: emoji, CJK, runs of whitespace, digits, line ends, combining marks, special tokens written out.
NASTY = [
    "",
    " ",
    "  leading and trailing  ",
    "a\r\nb\r\n\r\nc\td",
    "   \n\n   \n",
    "emoji 👩‍👩‍👧‍👦 🎉🏽!",
    "你好，世界。日本語テスト 한국어",
    "e\u0301 is not é, n\u0303",
    "1234567890 3.14159 1,000,000 ½ Ⅷ",
    "<|im_start|>user\nhi<|im_end|>",
    "</s> <s><unk> <0x41>",
    "don't I'LL we've 'S",
    "zero\u200bwidth\u200d \ufeff",
    "العربية עברית हिन्दी",
    "\x00\x01\x7f\U0010ffff",
    "▁metaspace ▁▁ itself Ġ Ċ",
    "a" * 300,
]


def byte_level() -> Tokenizer:
    """Byte-level BPE as GPT-2, Llama 3 and Qwen have it, with special and with visible added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<｜end▁here｜>"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("two words", normalized=False)])
    return tokenizer


def byte_fallback(*, strips_first_space: bool) -> Tokenizer:
    """SentencePiece-style BPE: Llama 2's decoder, or Gemma's, which keeps a leading space."""
    space = "▁"
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement=space, prepend_scheme="never")
    trained.train_from_iterator(TEXT[:3], trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    fixed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: i for i, token in enumerate(fixed)}
    vocab |= {token: len(fixed) + i for token, i in model["vocab"].items()}
    merges = [(left, right) for left, right in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    prefix = [normalizers.Prepend(space)] if strips_first_space else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", space)])
    steps: list[Any] = [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips_first_space else steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    """T5's and XLM's way: no byte fallback, and spaces of the first token dropped."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    """BERT's way: a space before every token that does not begin with ##."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def words() -> Tokenizer:
    """No decoder at all: tokens joined by spaces."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]", "[A]", "[B]"], show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, **files: Any) -> Path:
    """A model folder: tokenizer.json, and each of `files` as NAME.json."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
