"""MODEL to files: local paths as they are, hub ids from a small hub of our own, words for everything that fails."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlparse

import gguf
import pytest

from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.weights import no_progress
from engines.native.weights.resolve import resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"\x00" * 3_000_000,
    "tokenizer.json": b"{}",
    "original/consolidated.00.safetensors": b"x" * 100,
    "consolidated.safetensors": b"x" * 100,
    "pytorch_model.bin": b"x" * 100,
}


class SmallHub(BaseHTTPRequestHandler):
    """The part of the hub's HTTP interface that a snapshot download uses, for the one model `maker/tiny`."""

    def do_HEAD(self) -> None:
        self.do_GET(send_body=False)

    def do_GET(self, send_body: bool = True) -> None:
        path = urlparse(self.path).path
        if path.startswith("/api/models/maker/tiny/revision/") and not path.endswith("/nowhere"):
            siblings = [{"rfilename": name} for name in REPOSITORY]
            self._answer(json.dumps({"_id": "0", "id": "maker/tiny", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith("/api/models/maker/tiny/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in REPOSITORY.items()
            ]
            self._answer(json.dumps(entries).encode())
        elif path.startswith(f"/maker/tiny/resolve/{COMMIT}/"):
            name = path.split(COMMIT + "/")[1]
            data = REPOSITORY[name]
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._answer(data if send_body else b"", {**headers, "Content-Length": str(len(data))})
        else:
            code = "RevisionNotFound" if "nowhere" in path else "RepoNotFound"
            self._answer(b"{}", {"X-Error-Code": code}, status=404)

    def _answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), SmallHub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


SCRIPT = """
import json, sys
from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.weights.resolve import resolve_model
progress = []
try:
    files = resolve_model(NativeSettings(**json.loads(sys.argv[1])), lambda *told: progress.append(told))
    answer = {"path": str(files.path), "kind": files.kind, "name": files.name}
except EngineUnavailable as error:
    answer = {"error": error.message, "field": error.field}
print(json.dumps({**answer, "progress": progress, "torch": "torch" in sys.modules}))
"""


def resolve_in_a_fresh_process(settings: dict[str, Any], cache: Path, **environment: str) -> dict[str, Any]:
    """The hub's client reads its environment when it is imported."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(settings)],
        env={**clean, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_a_hub_id_is_downloaded_once_without_duplicate_weights(hub: str, tmp_path: Path) -> None:
    first = resolve_in_a_fresh_process({"model": "maker/tiny"}, tmp_path, HF_ENDPOINT=hub)
    folder = Path(first["path"])
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json", "model.safetensors", "tokenizer.json"}
    assert (first["kind"], first["name"], first["torch"]) == ("folder", "maker/tiny", False)
    assert {stage for stage, _, _ in first["progress"]} == {"download"}
    done = [done for _, done, _ in first["progress"]]
    assert done == sorted(done)
    assert done[-1] == first["progress"][-1][2] == sum(len(REPOSITORY[name]) for name in found)
    offline = resolve_in_a_fresh_process({"model": "maker/tiny"}, tmp_path, HF_HUB_OFFLINE="1")
    assert offline["path"] == first["path"]


def test_dummy_weights_need_no_weight_files(hub: str, tmp_path: Path) -> None:
    found = resolve_in_a_fresh_process({"model": "maker/tiny", "load_format": "dummy"}, tmp_path, HF_ENDPOINT=hub)
    assert not (Path(found["path"]) / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "environment", "words"),
    [
        ({"model": "maker/unknown"}, {}, "knows no model of that name"),
        ({"model": "maker/tiny", "revision": "nowhere"}, {}, "no revision 'nowhere'"),
        ({"model": "maker/tiny"}, {"HF_HUB_OFFLINE": "1"}, "not in the local cache"),
        ({"model": "maker/tiny"}, {"HF_ENDPOINT": "http://127.0.0.1:1"}, "not in the local cache"),
    ],
    ids=["unknown", "revision", "offline", "unreachable"],
)
def test_a_hub_id_that_cannot_be_fetched_says_why_and_what_to_pass_instead(
    hub: str, tmp_path: Path, settings: dict[str, Any], environment: dict[str, str], words: str
) -> None:
    answer = resolve_in_a_fresh_process(settings, tmp_path, **{"HF_ENDPOINT": hub, **environment})
    assert words in answer["error"]
    assert "Pass a folder with config.json and safetensors, a .gguf file" in answer["error"]
    assert answer["field"] == "model"


def test_a_folder_and_a_gguf_file_are_used_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    folder = resolve_model(NativeSettings(model=str(tmp_path)), no_progress)
    assert (folder.path, folder.kind, folder.name) == (tmp_path, "folder", str(tmp_path))
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    file = resolve_model(NativeSettings(model=str(tmp_path / "a.gguf")), no_progress)
    assert (file.path, file.kind) == (tmp_path / "a.gguf", "gguf")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("/no/such/folder", "no file or folder /no/such/folder"),
        ("./weights.gguf", "no file or folder ./weights.gguf"),
        ("a b", "no file or folder a b"),
        ("{folder}", "has no config.json"),
        ("{folder}/text.gguf", "is not a GGUF file"),
    ],
    ids=["path", "gguf", "no-hub-id", "folder-without-config", "not-gguf"],
)
def test_a_path_that_is_no_model_is_named(tmp_path: Path, model: str, words: str) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(EngineUnavailable, match=words) as caught:
        resolve_model(NativeSettings(model=model.format(folder=tmp_path)), no_progress)
    assert caught.value.field == "model"


def test_the_demo_models_name_is_its_file(smollm2_gguf: Path) -> None:
    files = resolve_model(NativeSettings(), no_progress)
    assert (files.path, files.kind, files.name) == (smollm2_gguf, "gguf", "smollm2-135m")
