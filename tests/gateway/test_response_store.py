from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.openai_responses_store import StoredResponse
from gateway.response_store import MemoryStore, SqliteStore, open_store

Store = MemoryStore | SqliteStore


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(None if request.param == "memory" else tmp_path / "responses.sqlite", 100)
    yield opened
    opened.close()


def stored(name: str, num_bytes: int = 40) -> StoredResponse:
    return StoredResponse(name, None, b"x" * (num_bytes - 2), b"[]")


def test_what_is_kept_is_found_and_what_is_deleted_is_not(store: Store):
    kept = StoredResponse("a", "before", b"{}", b"[1]")
    store.put(kept)
    assert store.get("a") == kept
    assert store.delete("a")
    assert store.get("a") is None
    assert not store.delete("a")


def test_what_was_used_longest_ago_makes_room(store: Store):
    store.put(stored("a"))
    store.put(stored("b"))
    assert store.get("a") is not None
    store.put(stored("c"))
    assert [store.get(name) is not None for name in "abc"] == [True, False, True]


def test_what_is_larger_than_the_store_is_not_kept(store: Store):
    store.put(stored("large", 101))
    assert store.get("large") is None
    store.put(stored("small", 100))
    assert store.get("small") is not None


def test_a_response_kept_again_takes_its_own_place(store: Store):
    for size in (40, 60, 50):
        store.put(stored("a", size))
    store.put(stored("b", 50))
    assert store.get("a") == stored("a", 50)
    assert store.get("b") is not None


def test_a_file_is_shared_by_processes_and_outlives_them(tmp_path: Path):
    path = tmp_path / "responses.sqlite"
    one, other = SqliteStore(path, 100), SqliteStore(path, 100)
    one.put(stored("a"))
    assert other.get("a") == stored("a")
    other.put(stored("b"))
    other.put(stored("c"))
    assert one.get("a") is None
    one.close()
    other.close()
    again = SqliteStore(path, 100)
    assert again.get("c") == stored("c")
    again.close()


def test_an_answer_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "responses.sqlite"
    store = SqliteStore(path, 100)
    other = sqlite3.connect(path)
    other.execute("DROP TABLE total")
    other.close()
    store.put(stored("a"))
    assert "the answer a was not kept" in caplog.text
    store.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path):
    path = tmp_path / "responses.sqlite"
    path.write_text("These are not the bytes you are looking for. " * 10)
    with pytest.raises(ValueError, match="responses_path"):
        SqliteStore(path, 100)
    with pytest.raises(ValueError, match="responses_path"):
        SqliteStore(tmp_path / "none" / "responses.sqlite", 100)
