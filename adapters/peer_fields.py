"""Fields that vLLM's clients send to OpenAI's routes and that this server does not honour, each with the reason.

What it does honour of them stands with the fields of the routes themselves.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from adapters.wire import NoEffect, Refused, WireModel

_BEAMS = "beam search is not supported; best_of of /v1/completions ranks samples"
_NO_MEDIA = "images, audio and video are not supported"
_ONE_PLACE = "a prompt is computed where it is answered"
_RENDERED = "belongs to vLLM's routes for rendered prompts, which are not here"


class PeerFields(WireModel):
    """Fields of every generating route."""

    session_id: Annotated[
        str | None, NoEffect("names a conversation to a router; prefixes are found here wherever they recur.")
    ] = None
    stream_interval: Annotated[
        int | None, Field(ge=1), NoEffect("bundles tokens into pieces; pieces are sent here as tokens come.")
    ] = None
    guided_decoding_backend: Annotated[
        str | None, NoEffect("chooses among vLLM's libraries for forms; there is one here.")
    ] = None

    guided_whitespace_pattern: Annotated[
        Any, Refused("whitespace between JSON tokens cannot be chosen; send a grammar")
    ] = None
    use_beam_search: Annotated[Any, Refused(_BEAMS, (False,))] = None
    length_penalty: Annotated[Any, Refused(_BEAMS, (1.0,))] = None
    early_stopping: Annotated[Any, Refused(_BEAMS, (False,))] = None
    repetition_detection: Annotated[
        Any, Refused("answers are not ended for repeating themselves; send repetition_penalty or frequency_penalty")
    ] = None
    logprob_token_ids: Annotated[
        Any, Refused("log-probabilities are told of the likeliest tokens; allowed_token_ids and logit_bias choose")
    ] = None
    logits_processors: Annotated[Any, Refused("code that clients name is not run", ([],))] = None
    vllm_xargs: Annotated[Any, Refused("there are no extensions that would read it", ({},))] = None
    kv_transfer_params: Annotated[Any, Refused(_ONE_PLACE)] = None
    ec_transfer_params: Annotated[Any, Refused(_ONE_PLACE)] = None
    mm_processor_kwargs: Annotated[Any, Refused(_NO_MEDIA, ({},))] = None
    media_io_kwargs: Annotated[Any, Refused(_NO_MEDIA, ({},))] = None
    return_token_offsets: Annotated[Any, Refused(_RENDERED, (False,))] = None
    return_mm_kwargs: Annotated[Any, Refused(_RENDERED, (True,))] = None
    routed_experts_prompt_start: Annotated[Any, Refused("models of experts are not supported", (0,))] = None
