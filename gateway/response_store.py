"""Where the answers of /v1/responses are kept: in memory, or in an SQLite file that processes and restarts share.

Both hold at most so many bytes, and what was used longest ago makes room. Knows nothing of what an answer says.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import OrderedDict
from pathlib import Path

from adapters.openai_responses_store import StoredResponse

logger = logging.getLogger("headrace.gateway")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY,
    previous_id TEXT,
    response BLOB NOT NULL,
    input_items BLOB NOT NULL,
    num_bytes INTEGER NOT NULL,
    used INTEGER NOT NULL  -- grows with every use
);
CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used);
CREATE TABLE IF NOT EXISTS total (num_bytes INTEGER NOT NULL);
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM total);
CREATE TRIGGER IF NOT EXISTS response_kept AFTER INSERT ON responses
    BEGIN UPDATE total SET num_bytes = num_bytes + NEW.num_bytes; END;
CREATE TRIGGER IF NOT EXISTS response_gone AFTER DELETE ON responses
    BEGIN UPDATE total SET num_bytes = num_bytes - OLD.num_bytes; END;
"""
_NEXT_USE = "(SELECT coalesce(max(used), 0) + 1 FROM responses)"
_BUSY_TIMEOUT_S = 5.0


class MemoryStore:
    """Answers in this process's memory."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, StoredResponse] = OrderedDict()  # what was used longest ago comes first
        self._num_bytes = 0

    def get(self, response_id: str) -> StoredResponse | None:
        stored = self._kept.get(response_id)
        if stored is not None:
            self._kept.move_to_end(response_id)
        return stored

    def put(self, stored: StoredResponse) -> None:
        self.delete(stored.id)
        self._kept[stored.id] = stored
        self._num_bytes += stored.num_bytes
        while self._num_bytes > self._max_bytes:
            self.delete(next(iter(self._kept)))

    def delete(self, response_id: str) -> bool:
        stored = self._kept.pop(response_id, None)
        if stored is None:
            return False
        self._num_bytes -= stored.num_bytes
        return True

    def close(self) -> None:
        self._kept.clear()


class SqliteStore:
    """Answers in an SQLite file. A call takes well under a millisecond, so it is made on the event loop.

    Raises ValueError where the file cannot be opened or is no database. An answer that cannot be written later on, for
    the disk is full or the like, is logged and still told.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        try:
            self._db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, check_same_thread=False)
        except sqlite3.Error as error:
            raise _unusable(path, error) from error
        try:
            self._db.execute("PRAGMA journal_mode = WAL")  # readers in other processes do not wait for a writer
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            self._db.close()
            raise _unusable(path, error) from error

    def get(self, response_id: str) -> StoredResponse | None:
        query = "SELECT id, previous_id, response, input_items FROM responses WHERE id = ?"
        row = self._db.execute(query, (response_id,)).fetchone()
        if row is None:
            return None
        with self._db:
            self._db.execute(f"UPDATE responses SET used = {_NEXT_USE} WHERE id = ?", (response_id,))
        return StoredResponse(*row)

    def put(self, stored: StoredResponse) -> None:
        try:
            self._write(stored)
        except sqlite3.Error as error:
            logger.error("the answer %s was not kept: %s", stored.id, error)

    def _write(self, stored: StoredResponse) -> None:
        row = (stored.id, stored.previous_id, stored.response, stored.input_items, stored.num_bytes)
        with self._db:
            self._db.execute("DELETE FROM responses WHERE id = ?", (stored.id,))
            self._db.execute(f"INSERT INTO responses VALUES (?, ?, ?, ?, ?, {_NEXT_USE})", row)
            while self._db.execute("SELECT num_bytes FROM total").fetchone()[0] > self._max_bytes:
                self._db.execute("DELETE FROM responses WHERE used = (SELECT min(used) FROM responses)")

    def delete(self, response_id: str) -> bool:
        with self._db:
            return self._db.execute("DELETE FROM responses WHERE id = ?", (response_id,)).rowcount > 0

    def close(self) -> None:
        self._db.close()


def _unusable(path: Path, error: sqlite3.Error) -> ValueError:
    return ValueError(f"responses_path: '{path}' cannot be used: {error}")


def open_store(path: Path | None, max_bytes: int) -> MemoryStore | SqliteStore:
    """`path` None: in memory."""
    return MemoryStore(max_bytes) if path is None else SqliteStore(path, max_bytes)
