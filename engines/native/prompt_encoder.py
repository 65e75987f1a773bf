"""Prompts to token ids: the tokenizer, the chat template, and which work goes to a thread, off the event loop.

Knows the model's files and the settings of its text; knows no core, no sockets and no limits of the model.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from config.engines import NativeSettings
from engines.api import ChatPrompt, Prompt, TextPrompt, TokensPrompt
from engines.errors import EngineUnavailable, InvalidRequest
from engines.native.dialect import Dialect
from engines.native.tokenizer import Tokenizer, valid_text

_INLINE_CHARS = 4096  # shorter texts are tokenized on the event loop: a thread's hand-over costs more
_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")


class PromptEncoder:
    """One per engine. Making it reads files, which is work for a thread too; `threads` stay the caller's.

    `path` is that of the model. Raises EngineUnavailable where no tokenizer can be loaded.
    """

    def __init__(self, section: NativeSettings, path: Path, threads: ThreadPoolExecutor) -> None:
        self.tokenizer = _load_tokenizer(section, path)
        self._threads = threads
        self._trusts_templates = section.trust_request_chat_template
        self._dialect = Dialect(self.tokenizer, section.tool_parser, section.reasoning_parser)
        self._dialect_under = lru_cache(16)(self._dialect.under)  # by template

    def dialect_for(self, prompt: Prompt) -> Dialect:
        """The model's own, or that of the request's template. Raises InvalidRequest for one that is not taken."""
        if not isinstance(prompt, ChatPrompt) or prompt.template is None:
            return self._dialect
        if not self._trusts_templates:
            raise InvalidRequest(
                "chat_template: templates are the server's; --trust-request-chat-template would take a request's.",
                field="chat_template",
            )
        return self._dialect_under(prompt.template)

    async def encode(self, prompt: Prompt) -> tuple[list[int], str]:
        """A prompt's token ids and its text. Raises InvalidRequest where the template refuses the conversation."""
        if isinstance(prompt, TokensPrompt):
            return list(prompt.token_ids), ""
        return await self.off_loop(_size(prompt), self._encode_now, prompt)

    async def encode_with_offsets(self, prompt: Prompt) -> tuple[str, list[int], list[tuple[int, int]]]:
        """`encode`, and where in the text each token is; neither text nor places for a prompt of token ids."""
        if isinstance(prompt, TokensPrompt):
            return "", list(prompt.token_ids), []
        return await self.off_loop(_size(prompt), self._encode_with_offsets_now, prompt)

    async def off_loop(
        self, num_chars: int, work: Callable[[*_Arguments], _Result], *arguments: *_Arguments
    ) -> _Result:
        """What `work` returns: done in a thread where the text is long, and at once where it is short."""
        if num_chars <= _INLINE_CHARS:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _encode_now(self, prompt: TextPrompt | ChatPrompt) -> tuple[list[int], str]:
        text = self._text_of(prompt)
        return self.tokenizer.encode(text, add_special_tokens=prompt.add_special_tokens), text

    def _encode_with_offsets_now(self, prompt: TextPrompt | ChatPrompt) -> tuple[str, list[int], list[tuple[int, int]]]:
        text = valid_text(self._text_of(prompt))
        return text, *self.tokenizer.encode_with_offsets(text, add_special_tokens=prompt.add_special_tokens)

    def _text_of(self, prompt: TextPrompt | ChatPrompt) -> str:
        return prompt.text if isinstance(prompt, TextPrompt) else self.dialect_for(prompt).render(prompt)


def _load_tokenizer(section: NativeSettings, model: Path) -> Tokenizer:
    path = section.tokenizer or model
    try:
        return Tokenizer.load(path, chat_template=_chat_template(section.chat_template))
    except (ValueError, OSError) as error:
        raise EngineUnavailable(f"tokenizer: '{path}' cannot be loaded: {error}", field="tokenizer") from error


def _chat_template(path: Path | None) -> str | None:
    """A template's source. Raises OSError or ValueError for a file that holds none."""
    if path is None:
        return None
    source = path.expanduser().read_text(encoding="utf-8")
    if path.suffix != ".json":
        return source
    template = json.loads(source).get("chat_template")
    if not isinstance(template, str):
        raise ValueError(f"{path} holds no chat_template")
    return template


def _size(prompt: TextPrompt | ChatPrompt) -> int:
    """Characters, roughly: enough to tell a short prompt from a long one."""
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    if prompt.template is not None:
        return _INLINE_CHARS + 1  # what it does may take long
    return sum(len(str(message.get("content"))) for message in prompt.messages) + len(str(prompt.tools or ""))
