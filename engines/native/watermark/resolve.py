"""Which mark a request gets: what it asked for, over how the engine is set, over the schemes' own defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from config.engines import NativeSettings
from engines.api import WatermarkParams, WatermarkScheme
from engines.errors import InvalidRequest
from engines.native.types import GREEN_LIST, GREEN_LIST_SELF, GUMBEL, SYNTHID, Watermark
from engines.native.watermark.detect import MAX_TOKENS, Detection, detect
from engines.native.watermark.prf import secret_to_key

PUBLIC_KEY = "15485863"  # TGI's hash key: known to everyone, so it proves nothing to anyone
MAX_CONTEXT_WIDTH = 16
MAX_DEPTH = 32  # bits of one hash

DEFAULT_CONTEXT_WIDTH: Mapping[WatermarkScheme, int] = {"green_list": 1, "gumbel": 4, "synthid": 4}
_FIELDS_OF_ONE: Mapping[str, WatermarkScheme] = {
    "gamma": "green_list",
    "delta": "green_list",
    "self_hash": "green_list",
    "depth": "synthid",
}


def requested(asked: WatermarkParams | bool | None, section: NativeSettings) -> Watermark | None:
    """The mark of a request that says `asked`, None: as the engine is set. Raises InvalidRequest naming the field."""
    if asked is None:
        asked = section.watermark
    if isinstance(asked, bool):
        return resolve(WatermarkParams(), section) if asked else None
    return resolve(asked, section, path="watermark.")


def scheme_of(asked: WatermarkParams, section: NativeSettings) -> WatermarkScheme:
    return asked.scheme or section.watermark_scheme


def resolve(asked: WatermarkParams, section: NativeSettings, *, path: str = "") -> Watermark:
    """Every field decided. Raises InvalidRequest for a field that the scheme does not have; `path` leads its name."""
    scheme = scheme_of(asked, section)
    for name, owner in _FIELDS_OF_ONE.items():
        if getattr(asked, name) is not None and owner != scheme:
            field = path + name
            raise InvalidRequest(f"{field}: only {owner} has it, and the scheme is {scheme}.", field=field)
    configured = section.watermark_key
    secret = asked.key or (configured.get_secret_value() if configured is not None else PUBLIC_KEY)
    as_set = section.watermark_context_width if scheme == section.watermark_scheme else None
    self_hash = section.watermark_self_hash if asked.self_hash is None else asked.self_hash
    gamma = section.watermark_gamma if asked.gamma is None else asked.gamma
    return Watermark(
        scheme=_code(scheme, self_hash),
        key=secret_to_key(secret),
        context_width=asked.context_width or as_set or DEFAULT_CONTEXT_WIDTH[scheme],
        threshold=round(gamma * 2**32),
        delta=section.watermark_delta if asked.delta is None else asked.delta,
        depth=(asked.depth or section.watermark_depth) if scheme == "synthid" else 0,
    )


@dataclass(frozen=True, slots=True)
class Detector:
    """A test that is ready to run, which takes a moment per token. max_tokens: of one text."""

    run: Callable[[Sequence[int]], Detection]
    max_tokens: int


def detector(asked: WatermarkParams, section: NativeSettings, vocab_size: int) -> Detector:
    """What looks for the mark that `asked` describes, of a model with `vocab_size` logits. Raises InvalidRequest."""
    if asked.lists != "tgi":
        return Detector(partial(detect, watermark=resolve(asked, section)), MAX_TOKENS)
    hash_key = tgi_hash_key(asked, section)
    share = section.watermark_gamma if asked.gamma is None else asked.gamma
    from engines.native.watermark import torch_lists  # imports numpy, which nothing else here needs

    return Detector(
        partial(torch_lists.detect, hash_key=hash_key, share=share, vocab_size=vocab_size), torch_lists.MAX_TOKENS
    )


def tgi_hash_key(asked: WatermarkParams, section: NativeSettings) -> int:
    """The key of TGI's lists, which is a number. Raises InvalidRequest for what TGI cannot have marked with."""
    for name in ("context_width", "self_hash", "delta", "depth"):
        if getattr(asked, name) is not None:
            raise InvalidRequest(f"{name}: with lists tgi it cannot be chosen.", field=name)
    if scheme_of(asked, section) != "green_list":
        raise InvalidRequest("lists: tgi marks by green_list alone; ask for that scheme.", field="lists")
    key = asked.key or PUBLIC_KEY
    if not (key.isascii() and key.isdigit() and len(key) <= 20):
        raise InvalidRequest("key: with lists tgi it is TGI's hash key, a number.", field="key")
    return int(key)


def _code(scheme: WatermarkScheme, self_hash: bool) -> int:
    if scheme == "green_list":
        return GREEN_LIST_SELF if self_hash else GREEN_LIST
    return GUMBEL if scheme == "gumbel" else SYNTHID
