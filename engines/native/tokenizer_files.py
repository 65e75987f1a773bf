"""The tokenizer in a model folder: tokenizer.json and what stands beside it in Hugging Face's layout.

    tokenizer.json             the pipeline itself, or else
    *.tiktoken, *.model        a tiktoken vocabulary, or else
    anything else              whatever transformers' AutoTokenizer can make of the folder (slow to import)
    tokenizer_config.json      special tokens, further added tokens, chat template
    special_tokens_map.json    special tokens, where the config has none
    chat_template.jinja        the chat template; additional_chat_templates/NAME.jinja are named variants
    generation_config.json     EOS ids; config.json's, where there is none

Reads what transformers reads, to the same effect. So what is put around a text is for tokenizer.json to say, whatever
`add_bos_token` in the config says; that counts for vocabularies which can't say it themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from engines.native.tiktoken_backend import is_tiktoken_file, load_tiktoken
from engines.native.tokenizer_backend import (
    TokenizerBackend,
    TokenizerLoadError,
    TokenizerParts,
    TokenizersBackend,
    add_tokens,
)

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_folder_tokenizer(folder: Path) -> TokenizerParts:
    """Raises TokenizerLoadError naming the folder or the file in it that can't be used."""
    config = _read_json(folder / "tokenizer_config.json")
    special_tokens = _special_tokens(config, _read_json(folder / "special_tokens_map.json"))
    backend, special_tokens = _backend(folder, config, special_tokens)
    return TokenizerParts(
        backend=backend,
        special_tokens=special_tokens,
        eos_token_ids=_eos_token_ids(folder, backend, special_tokens.get("eos_token")),
        chat_templates=_chat_templates(folder, config),
    )


def _read_json(path: Path) -> dict[str, Any]:
    """The file's object, {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerLoadError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerLoadError(f"{path} does not hold a JSON object")
    return cast(dict[str, Any], value)


# --- the pipeline -----------------------------------------------------------------------------------------------------


def _backend(
    folder: Path, config: Mapping[str, Any], special_tokens: dict[str, str]
) -> tuple[TokenizerBackend, dict[str, str]]:
    """The pipeline and the special tokens, to which transformers' own defaults may add."""
    pipeline_file = folder / "tokenizer.json"
    if pipeline_file.is_file():
        try:
            pipeline = RustTokenizer.from_file(str(pipeline_file))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerLoadError(f"{pipeline_file} can't be read: {error}") from error
        _complete(pipeline, config, special_tokens)
        return TokenizersBackend(pipeline), special_tokens
    for path in _tiktoken_candidates(folder):
        if is_tiktoken_file(path):
            model_type: str | None = _read_json(folder / "config.json").get("model_type")
            declared = {token.content: token_id for token_id, token in _declared_tokens(config)}
            bos_token = special_tokens.get("bos_token") if config.get("add_bos_token") else None
            return load_tiktoken(path, declared, model_type, bos_token), special_tokens
    pipeline, defaults = _load_with_transformers(folder)
    return TokenizersBackend(pipeline), defaults | special_tokens


def _tiktoken_candidates(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*.tiktoken"))
    yield from (path for path in (folder / "tiktoken.model", folder / "tokenizer.model") if path.is_file())


def _load_with_transformers(folder: Path) -> tuple[RustTokenizer, dict[str, str]]:
    from transformers import AutoTokenizer

    try:
        tokenizer: object = cast(Any, AutoTokenizer).from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # anything may go wrong in a loader for every format there ever was
        needs = (
            " (SentencePiece models need the packages sentencepiece and protobuf)"
            if any(folder.glob("*.model"))
            else ""
        )
        raise TokenizerLoadError(
            f"{folder} has no tokenizer.json, and transformers can't load its tokenizer either{needs}: {error}"
        ) from error
    pipeline: object = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(pipeline, RustTokenizer):
        raise TokenizerLoadError(
            f"{folder}: transformers loads a {type(tokenizer).__name__}, which has no fast pipeline behind it; "
            "convert it to a tokenizer.json"
        )
    named: Mapping[str, object] = getattr(tokenizer, "special_tokens_map", {})
    return pipeline, {name: token for name in _NAMED if (token := _content(named.get(name))) is not None}


def _complete(pipeline: RustTokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> None:
    """Bring into the pipeline the tokens that only the config knows."""
    present = {token.content: token for token in pipeline.get_added_tokens_decoder().values()}
    declared = [token for _, token in _declared_tokens(config) if _flags(token) != _flags(present.get(token.content))]
    listed = [*special_tokens.values(), *_extra_special_tokens(config)]
    known = present.keys() | {token.content for token in declared}
    # A special token that the vocabulary lacks is left out: its new id would lie beyond the model's embeddings.
    missing = [t for t in dict.fromkeys(listed) if t not in known and pipeline.token_to_id(t) is not None]
    add_tokens(pipeline, [*declared, *(AddedToken(token, special=True, normalized=False) for token in missing)])


def _declared_tokens(config: Mapping[str, Any]) -> list[tuple[int, AddedToken]]:
    """`added_tokens_decoder`, by id."""
    entries = sorted((int(token_id), token) for token_id, token in config.get("added_tokens_decoder", {}).items())
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return [
        (token_id, AddedToken(token["content"], **{flag: token[flag] for flag in flags if flag in token}))
        for token_id, token in entries
    ]


def _flags(token: AddedToken | None) -> tuple[bool, ...] | None:
    if token is None:
        return None
    return (token.single_word, token.lstrip, token.rstrip, token.normalized, token.special)


# --- special tokens ---------------------------------------------------------------------------------------------------


def _special_tokens(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, str]:
    named = ((name, _content(config.get(name)) or _content(special_map.get(name))) for name in _NAMED)
    return {name: token for name, token in named if token is not None}


def _content(token: object) -> str | None:
    """A token is written as a string or as an object with its text under `content`."""
    if isinstance(token, Mapping):
        token = cast(Mapping[str, object], token).get("content")
    return token if isinstance(token, str) and token else None


def _extra_special_tokens(config: Mapping[str, Any]) -> list[str]:
    extra: list[str] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        tokens: Sequence[object] | Mapping[str, object] = config.get(key) or ()
        values = tokens.values() if isinstance(tokens, Mapping) else tokens
        extra += [token for token in map(_content, values) if token is not None]
    return extra


def _eos_token_ids(folder: Path, backend: TokenizerBackend, eos_token: str | None) -> frozenset[int]:
    ids: int | list[int] | None = _read_json(folder / "generation_config.json").get("eos_token_id")
    if ids is None:
        ids = _read_json(folder / "config.json").get("eos_token_id")
    found = {ids} if isinstance(ids, int) else set(ids or ())
    own = None if eos_token is None else backend.token_to_id(eos_token)
    return frozenset(found if own is None else found | {own})


# --- chat templates ---------------------------------------------------------------------------------------------------


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    templates: dict[str, str] = {}
    in_config: object = config.get("chat_template")
    if isinstance(in_config, str):
        templates["default"] = in_config
    elif isinstance(in_config, list):
        entries = cast(list[Mapping[str, str]], in_config)
        templates.update({entry["name"]: entry["template"] for entry in entries})
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        templates["default"] = own_file.read_text(encoding="utf-8")
    return templates
