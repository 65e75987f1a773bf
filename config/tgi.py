"""What the routes of Text Generation Inference's native API are told: limits, and what TGI gave no say in."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TgiSection(BaseModel):
    """Limits of POST /, /generate, /generate_stream and their kin; the numbers are TGI's own defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_best_of: int = Field(default=2, ge=1, le=128, description="Largest `best_of` of a native request.")
    max_stop_sequences: int = Field(default=4, ge=0, description="Most `stop` strings of a native request.")
    max_top_n_tokens: int = Field(default=5, ge=0, le=20, description="Largest `top_n_tokens` of a native request.")
    max_client_batch_size: int = Field(
        default=4,
        ge=1,
        description="Most `instances` of one POST /vertex; with tgi_dialect also most prompts of one /v1/completions.",
    )
    keep_stop: bool = Field(
        default=True,
        description="Leave a stop string in a native answer's text, as TGI does; the OpenAI routes always cut it.",
    )
    tgi_dialect: bool = Field(
        default=False,
        description="Take requests of the OpenAI routes as TGI does, and answer with its headers; see docs/tgi.md.",
    )
    compute_type: str = Field(
        default="headrace", pattern=r"^[ -~]{1,128}$", description="What the header x-compute-type says."
    )
