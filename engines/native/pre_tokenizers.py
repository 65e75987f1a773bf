"""How text is cut before byte-level BPE merges it, by the names that GGUF files give in `tokenizer.ggml.pre`.

A vocabulary's merges were learned on text cut in one way; cut otherwise, the same text gives other tokens, and the
model gets worse without any error. GGUF names the way instead of spelling it, so this table spells it: the regular
expressions are those of the models' own tokenizer.json files, the names those that conversion scripts write.

Knows nothing of vocabularies. A name that is not here is refused, not guessed at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tokenizers import Regex
from tokenizers import pre_tokenizers as pre

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK3_SPLIT = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


@dataclass(frozen=True, slots=True)
class PreTokenization:
    """`splits` are applied one after the other, each to the pieces that the one before left.

    `ignore_merges`: a piece that is a token of the vocabulary is taken whole, without merging. `adds_bos`: what a file
    that says nothing about it means. `nfc`: text is brought into Unicode's composed form first.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False
    nfc: bool = False

    def pre_tokenizer(self) -> pre.PreTokenizer:
        splits = [pre.Split(Regex(split), behavior="isolated") for split in self.splits]
        return pre.Sequence([*splits, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


def _table() -> dict[str, PreTokenization]:
    gpt2 = PreTokenization((GPT2_SPLIT,))
    digits = PreTokenization((r"\p{N}", GPT2_SPLIT))
    qwen2 = PreTokenization((QWEN2_SPLIT,), nfc=True)
    llama3 = PreTokenization((LLAMA3_SPLIT,), ignore_merges=True, adds_bos=True)
    falcon = PreTokenization((r"[\p{P}\$\+<=>\^~\|`]+", GPT2_SPLIT, "[0-9][0-9][0-9]"))
    coder = PreTokenization((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_HANGUL, r"\p{N}"))
    default = PreTokenization((r"[\p{P}\$\+<=>\^~\|]+", GPT2_SPLIT, r"\p{N}+", "[0-9][0-9][0-9]"))
    by_kind: list[tuple[PreTokenization, str]] = [
        (gpt2, "gpt-2 phi-2 mpt olmo jais gigachat a.x-4.0 mellum exaone4 trillion granite-docling"),
        (digits, "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
        (llama3, "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2"),
        (PreTokenization((LLAMA3_SPLIT,)), "dbrx smaug-bpe chatglm-bpe"),
        (PreTokenization((LLAMA3_SPLIT,), ignore_merges=True), "glm4 glm5"),
        (qwen2, "qwen2 deepseek-r1-qwen megrez kormo"),
        (PreTokenization((QWEN2_SPLIT,)), "stablelm2 hunyuan solar-open grok-2"),
        (PreTokenization((_QWEN35_SPLIT,), nfc=True), "qwen35"),
        (PreTokenization((_TEKKEN_SPLIT,), ignore_merges=True, adds_bos=True), "tekken"),
        (PreTokenization((_GPT4O_SPLIT,)), "gpt-4o llama4 kanana2 minimax-m2"),
        (falcon, "falcon"),
        (coder, "deepseek-coder"),
        (PreTokenization((r"\p{N}{1,3}", _HAN_KANA, _DEEPSEEK3_SPLIT)), "deepseek-v3 hunyuan-dense"),
        (default, "default"),
    ]
    return {name: kind for kind, names in by_kind for name in names.split()}


PRE_TOKENIZATIONS: Mapping[str, PreTokenization] = MappingProxyType(_table())
