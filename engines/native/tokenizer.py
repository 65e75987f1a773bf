"""The engine's tokenizer: text to token ids and back, and conversations to prompts.

Owns the choice of a loader by what the path is, and the small interface that the engine uses. The formats are in
tokenizer_files.py and gguf_tokenizer.py, streams of tokens in detokenizer.py, templates in chat_template.py. Imports
neither torch nor, save for folders that nothing else can read, transformers.

Every method may be called from several threads at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.native.chat_template import Message, TemplateError, compiled_template
from engines.native.gguf_tokenizer import load_gguf_tokenizer
from engines.native.tiktoken_backend import is_tiktoken_file, load_tiktoken
from engines.native.token_table import TokenPieces, TokenTable
from engines.native.tokenizer_backend import TokenizerLoadError, TokenizerParts
from engines.native.tokenizer_files import load_folder_tokenizer

DEFAULT_TEMPLATE, TOOL_TEMPLATE = "default", "tool_use"


class Tokenizer:
    """A model's tokenizer, special tokens and chat templates."""

    def __init__(self, parts: TokenizerParts) -> None:
        self._backend = parts.backend
        self._templates = dict(parts.chat_templates)
        self._special_tokens = dict(parts.special_tokens)
        self.special_ids: frozenset[int] = self._backend.special_ids
        self.eos_token_ids: frozenset[int] = parts.eos_token_ids
        bos_token = self._special_tokens.get("bos_token")
        self.bos_token_id: int | None = None if bos_token is None else self._backend.token_to_id(bos_token)
        # `token_bytes[id]`: what the token stands for in running text, special tokens as written; it may be a part of a
        # character. All streams share this table and the one that skips special tokens.
        pieces = self._backend.pieces
        self._is_concatenative = pieces is not None
        pieces = pieces or TokenPieces(self.vocab_size, self._decoded_alone, self._decoded_alone)
        self.token_bytes = TokenTable(pieces)
        self._skipping = TokenTable(pieces, hidden=self.special_ids)

    @classmethod
    def load(cls, path: str | Path, *, chat_template: str | None = None) -> Tokenizer:
        """Load from a model folder, a .gguf file, a tokenizer.json or a tiktoken vocabulary.

        `chat_template` is template source that replaces the model's own. Raises TokenizerLoadError, GGUFError or
        TemplateError (all ValueErrors), or OSError for a path that can't be read.
        """
        parts = _load_parts(Path(path))
        if chat_template is not None:
            compiled_template(chat_template)  # an operator's mistake should show at start-up
            parts = replace(parts, chat_templates={DEFAULT_TEMPLATE: chat_template})
        return cls(parts)

    def with_template(self, source: str) -> Tokenizer:
        """The same tokenizer under another chat template. Raises TemplateError for one that isn't valid Jinja."""
        compiled_template(source)
        other = copy(self)
        other._templates = {DEFAULT_TEMPLATE: source}
        return other

    @property
    def vocab_size(self) -> int:
        """How many token ids the tokenizer knows; a model's embeddings may have more rows."""
        return self._backend.vocab_size

    # --- text and tokens ----------------------------------------------------------------------------------------------

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids. Special tokens written out in the text become those tokens, as the model's own tokenizer does.

        `add_special_tokens` adds what the model puts around plain text (mostly BOS); text from a chat template has it
        already. Lone surrogates, which UTF-8 can't hold, are read as U+FFFD. Releases the GIL.
        """
        return self._backend.encode(valid_text(text), add_special_tokens)

    def encode_with_offsets(
        self, text: str, add_special_tokens: bool = True
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode`, and of each token the bytes [start, stop) of `valid_text(text)` in UTF-8 that it covers."""
        return self._backend.encode_with_offsets(valid_text(text), add_special_tokens)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence. Ids without a token stand for nothing.

        Raises ValueError for ids that can't be any tokenizer's.
        """
        try:
            return self._backend.decode(token_ids, skip_special_tokens)
        except OverflowError:
            raise ValueError("token ids must be in the range 0 to 4294967295") from None

    def token_text(self, token_id: int) -> str:
        """`token_bytes[token_id]` as text, U+FFFD where they are not whole characters."""
        return self.token_bytes[token_id].decode("utf-8", "replace")

    def token_id(self, token: str) -> int | None:
        """The id of a token written as in the vocabulary, such as "<|im_end|>"."""
        return self._backend.token_to_id(token)

    def token_table(self, skip_special_tokens: bool) -> TokenTable | None:
        """Bytes by token id, for the detokenizer; None where text is not a concatenation of tokens' bytes."""
        if not self._is_concatenative:
            return None
        return self._skipping if skip_special_tokens else self.token_bytes

    def _decoded_alone(self, token_id: int) -> bytes:
        return self._backend.decode([token_id], False).encode("utf-8")

    # --- conversations ------------------------------------------------------------------------------------------------

    @property
    def has_chat_template(self) -> bool:
        return bool(self._templates)

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        /,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text of a conversation, to be encoded with `add_special_tokens=False`.

        `chat_template` is the name of one of the model's own templates, never template text. Without it, "tool_use" is
        taken when tools are given and the model has it, else "default". `variables` go to the template beside the
        special tokens (`enable_thinking=False`, ...), and never in place of the conversation. Raises TemplateError with
        a message for the client.
        """
        source = self._template_source(chat_template, with_tools=bool(tools))
        return compiled_template(source).render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables={**self._special_tokens, **variables},
        )

    def template_source(self, *, with_tools: bool) -> str:
        """The template that a conversation is rendered with, "" where the model has none."""
        return self._template_source(None, with_tools) if self._templates else ""

    def _template_source(self, name: str | None, with_tools: bool) -> str:
        if not self._templates:
            raise TemplateError("this model has no chat template; it can complete plain text only")
        if name is None:
            name = TOOL_TEMPLATE if with_tools and TOOL_TEMPLATE in self._templates else DEFAULT_TEMPLATE
        try:
            return self._templates[name]
        except KeyError:
            names = ", ".join(sorted(self._templates))
            raise TemplateError(f"chat_template: this model has no template {name!r}, only: {names}") from None


def valid_text(text: str) -> str:
    """The text with lone surrogates, which UTF-8 can't hold, as U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _load_parts(path: Path) -> TokenizerParts:
    if path.is_dir():
        return load_folder_tokenizer(path)
    if path.suffix == ".gguf":
        return load_gguf_tokenizer(path)
    if path.name == "tokenizer.json":
        return load_folder_tokenizer(path.parent)
    if is_tiktoken_file(path):
        return TokenizerParts(backend=load_tiktoken(path, {}, model_type=None, bos_token=None))
    raise TokenizerLoadError(
        f"{path} is no tokenizer: expected a folder, a .gguf file, a tokenizer.json or a tiktoken vocabulary"
    )
