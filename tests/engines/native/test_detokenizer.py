"""Streams of tokens: the same text as decoding all at once, however they are cut, and nothing lost at the end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders

from engines.native.detokenizer import Detokenizer
from engines.native.tokenizer import Tokenizer
from engines.native.tokenizer_backend import TokenizerParts, TokenizersBackend
from tests.engines.native import small_tokenizers

PIPELINES = {
    "byte level": small_tokenizers.byte_level,
    "byte fallback": lambda: small_tokenizers.byte_fallback(strips_first_space=True),
    "byte fallback, first space kept": lambda: small_tokenizers.byte_fallback(strips_first_space=False),
    "metaspace": small_tokenizers.metaspace,
    "word pieces": small_tokenizers.word_piece,
    "words": small_tokenizers.words,
}
kinds = st.sampled_from(list(PIPELINES))


@cache
def pipeline(kind: str) -> RustTokenizer:
    return PIPELINES[kind]()


@cache
def tokenizer(kind: str) -> Tokenizer:
    return Tokenizer(TokenizerParts(backend=TokenizersBackend(pipeline(kind))))


@st.composite
def token_ids(draw: st.DrawFn, kind: str) -> list[int]:
    """Any ids, padded vocabulary included; byte tokens of a fallback only where they spell whole characters."""
    anything = st.integers(0, tokenizer(kind).vocab_size + 3)
    if not kind.startswith("byte fallback"):
        return draw(st.lists(anything, max_size=30))
    spelled = st.text(min_size=1, max_size=3).map(lambda text: [3 + byte for byte in text.encode("utf-8")])
    plain = anything.filter(lambda token_id: not 3 <= token_id < 259).map(lambda token_id: [token_id])
    return [token_id for group in draw(st.lists(spelled | plain, max_size=15)) for token_id in group]


def streamed(kind: str, ids: list[int], cuts: list[int], *, skip_special_tokens: bool) -> str:
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    detokenizer = Detokenizer(tokenizer(kind), skip_special_tokens=skip_special_tokens)
    return "".join(detokenizer.push(ids[a:b]) for a, b in pairwise(edges)) + detokenizer.finish()


def emoji_byte_ids() -> list[int]:
    """The four single-byte tokens of 🎉, as byte-level vocabularies spell them."""
    return [pipeline("byte level").token_to_id(token) for token in "ðŁİī"]


@given(st.data(), kinds, st.booleans(), st.lists(st.integers(0, 1000), max_size=40))
def test_any_cut_of_a_stream_gives_the_text_of_the_whole(
    data: st.DataObject, kind: str, skip: bool, cuts: list[int]
) -> None:
    ids = data.draw(token_ids(kind))
    assert streamed(kind, ids, cuts, skip_special_tokens=skip) == pipeline(kind).decode(ids, skip_special_tokens=skip)


@given(st.data(), kinds)
def test_pieces_per_token_join_to_the_text_and_every_piece_is_whole(data: st.DataObject, kind: str) -> None:
    ids = data.draw(token_ids(kind))
    detokenizer = Detokenizer(tokenizer(kind))
    pieces = detokenizer.push_each(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) + detokenizer.finish() == tokenizer(kind).decode(ids)


@pytest.mark.parametrize("kind", PIPELINES)
@pytest.mark.parametrize("text", small_tokenizers.NASTY)
def test_encoded_text_streams_as_it_decodes(kind: str, text: str) -> None:
    ids = tokenizer(kind).encode(text)
    for skip in (True, False):
        assert streamed(kind, ids, list(range(len(ids))), skip_special_tokens=skip) == tokenizer(kind).decode(ids, skip)


@given(st.lists(st.integers(0, 255), max_size=20), st.lists(st.integers(0, 1000), max_size=20))
def test_byte_fallback_keeps_the_valid_part_of_an_invalid_run(run: list[int], cuts: list[int]) -> None:
    kind = "byte fallback, first space kept"
    expected = bytes(run).decode("utf-8", "replace")
    assert streamed(kind, [3 + byte for byte in run], cuts, skip_special_tokens=True) == expected


@pytest.mark.parametrize("num_bytes", [1, 2, 3])
def test_text_before_a_cut_character_is_kept(num_bytes: int) -> None:
    kind = "byte level"
    ids = [*tokenizer(kind).encode("the dog "), *emoji_byte_ids()[:num_bytes]]
    detokenizer = Detokenizer(tokenizer(kind))
    shown = "".join(map(detokenizer.push, [[i] for i in ids]))
    assert shown == "the dog "
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.finish() == ""


def test_a_character_appears_with_its_last_byte() -> None:
    ids = emoji_byte_ids()
    assert Detokenizer(tokenizer("byte level")).push_each([*ids, *ids]) == ["", "", "", "🎉", "", "", "", "🎉"]


class RecordingTokenizer(Tokenizer):
    """Remembers how many ids it was asked to decode at once."""

    most_ids = 0

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        self.most_ids = max(self.most_ids, len(token_ids))
        return super().decode(token_ids, skip_special_tokens)


def windowed_byte_level() -> RecordingTokenizer:
    """A decoder that is not known to work token by token, and yet splits characters over tokens."""
    source = small_tokenizers.byte_level()
    source.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("nowhere", "nowhere")])
    return RecordingTokenizer(TokenizerParts(backend=TokenizersBackend(source)))


@pytest.mark.parametrize("text", small_tokenizers.NASTY)
def test_unknown_decoders_give_whole_characters_too(text: str) -> None:
    unknown = windowed_byte_level()
    assert unknown.token_table(skip_special_tokens=True) is None
    detokenizer = Detokenizer(unknown, skip_special_tokens=False)
    pieces = [*detokenizer.push_each(unknown.encode(text)), detokenizer.finish()]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("token", ["<|im_end|>", "Ģ"], ids=["skipped tokens", "bytes that are no character"])
def test_unknown_decoders_look_back_a_few_tokens_only(token: str) -> None:
    unknown = windowed_byte_level()
    token_id = unknown.token_id(token)
    assert token_id is not None
    detokenizer = Detokenizer(unknown)
    shown = "".join(detokenizer.push_each([token_id] * 100))
    assert unknown.most_ids < 20
    assert shown + detokenizer.finish() == unknown.decode([token_id] * 100)


def test_leading_space_belongs_to_text_that_goes_on() -> None:
    kind = "byte fallback"
    ids = tokenizer(kind).encode("the dog", add_special_tokens=False)
    assert Detokenizer(tokenizer(kind)).push(ids) == "the dog"
    assert Detokenizer(tokenizer(kind), after_text=True).push(ids) == " the dog"


@pytest.mark.parametrize(("option", "expected"), [(True, "the [A] [B] dog"), (False, "the [A][B] dog")])
def test_spaces_between_special_tokens_are_a_choice_where_a_decoder_writes_them(option: bool, expected: str) -> None:
    ids = [tokenizer("words").token_id(token) or 0 for token in ("the", "[A]", "[B]", "dog")]
    detokenizer = Detokenizer(tokenizer("words"), skip_special_tokens=False, spaces_between_special_tokens=option)
    assert "".join(detokenizer.push_each(ids)) == expected


@pytest.mark.parametrize("kind", PIPELINES)
def test_token_bytes_are_what_a_token_adds_to_running_text(kind: str) -> None:
    word = next(t for t in ("Ġthe", "▁the", "the") if tokenizer(kind).token_id(t) is not None)
    token_id = tokenizer(kind).token_id(word)
    assert token_id is not None
    assert tokenizer(kind).token_bytes[token_id].decode().strip() == "the"
    assert tokenizer(kind).token_text(token_id) == tokenizer(kind).token_bytes[token_id].decode()
    assert tokenizer(kind).token_bytes[tokenizer(kind).vocab_size + 1000] == b""


def test_a_part_of_a_character_shows_as_replacement_and_keeps_its_byte() -> None:
    token_id = emoji_byte_ids()[0]
    assert tokenizer("byte level").token_bytes[token_id] == b"\xf0"
    assert tokenizer("byte level").token_text(token_id) == "\ufffd"


def test_special_tokens_show_in_token_texts_even_when_streams_skip_them() -> None:
    token_id = tokenizer("byte level").token_id("<|im_end|>")
    assert token_id is not None
    assert tokenizer("byte level").token_text(token_id) == "<|im_end|>"
    assert Detokenizer(tokenizer("byte level")).push([token_id]) == ""
    assert Detokenizer(tokenizer("byte level"), skip_special_tokens=False).push([token_id]) == "<|im_end|>"
