"""All tables."""

from __future__ import annotations

from tests.gateway.compatibility.chat import CHAT
from tests.gateway.compatibility.completions import COMPLETIONS
from tests.gateway.compatibility.embeddings import EMBEDDINGS
from tests.gateway.compatibility.messages import MESSAGES
from tests.gateway.compatibility.native import GENERATE, ROOT
from tests.gateway.compatibility.responses import RESPONSES
from tests.gateway.compatibility.tokenizing import TOKENIZE

TABLES = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, EMBEDDINGS, TOKENIZE, ROOT, GENERATE)
