"""From the word that a user gives as MODEL to files on this machine, downloading them when needed.

Owns what MODEL may be: the demo model's name, a folder, a .gguf file, a hub id. Knows nothing of what is in the files.
No torch here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.demo_model import DEMO_MODEL, resolve_demo_model
from engines.native.weights import OnProgress

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_WEIGHT_FILES = ("*.safetensors",)
_DUPLICATES = ("original/*", "consolidated*", "onnx/*", "*/*.safetensors")  # the same weights in other layouts


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies: a folder of config.json and safetensors, or a .gguf file. `name` is what clients call it."""

    path: Path
    kind: Literal["folder", "gguf"]
    name: str


def resolve_model(section: NativeSettings, on_progress: OnProgress) -> ModelFiles:
    """Blocks while downloading. Raises EngineUnavailable, which says what MODEL may be or why it cannot be fetched."""
    path = Path(section.model).expanduser()
    if path.is_dir():
        return _folder(path, section.model)
    if path.is_file():
        return _single_file(path, section.model)
    if section.model == DEMO_MODEL:
        return ModelFiles(resolve_demo_model(on_progress), "gguf", DEMO_MODEL)
    if path.suffix == ".gguf" or not _HUB_ID.fullmatch(section.model):
        raise EngineUnavailable(f"model: there is no file or folder {section.model}.", field="model")
    return _folder(_download(section, on_progress), section.model)


def _folder(path: Path, name: str) -> ModelFiles:
    if not (path / "config.json").is_file():
        raise EngineUnavailable(
            f"model: {name} has no config.json. Pass a folder with config.json and safetensors, or a .gguf file.",
            field="model",
        )
    return ModelFiles(path, "folder", name)


def _single_file(path: Path, name: str) -> ModelFiles:
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise EngineUnavailable(f"model: {name} is not a GGUF file. Pass a .gguf file or a folder.", field="model")
    return ModelFiles(path, "gguf", name)


def _download(section: NativeSettings, on_progress: OnProgress) -> Path:
    # Imported here: a local model needs none of it, and it takes a while.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    wanted = [*_TEXT_FILES, *(() if section.load_format == "dummy" else _WEIGHT_FILES)]
    try:
        folder = snapshot_download(
            section.model,
            revision=section.revision,
            allow_patterns=wanted,
            ignore_patterns=list(_DUPLICATES),
            tqdm_class=_progress_bar(on_progress),
        )
    except GatedRepoError as error:
        problem = "its authors ask for a licence to be accepted on the hub, and for a token in HF_TOKEN"
        raise _unavailable(section, problem) from error
    except RevisionNotFoundError as error:
        raise _unavailable(section, f"it has no revision '{section.revision}'") from error
    except RepositoryNotFoundError as error:
        raise _unavailable(section, "the hub knows no model of that name (or a token in HF_TOKEN is needed)") from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise _unavailable(section, f"it is not in the local cache and the hub did not answer ({reason})") from error
    return Path(folder)


def _unavailable(section: NativeSettings, problem: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"model: {section.model} cannot be fetched: {problem}. Pass a folder with config.json and safetensors, a .gguf "
        f"file, or {DEMO_MODEL}.",
        field="model",
    )


def _progress_bar(on_progress: OnProgress) -> type[Any]:
    """A tqdm bar that draws nothing and tells `on_progress` the bytes that have arrived.

    The hub's client may count them twice, on the network and on the disk: the count that is ahead is told.
    """
    from tqdm.auto import tqdm

    most = 0

    class ReportingBar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": False, "delay": 1e9})

        def display(self, *_args: Any, **_kwargs: Any) -> None:
            pass

        def update(self, n: float | None = 1) -> bool | None:
            result = super().update(n)
            nonlocal most
            if self._counts_bytes and self.total:
                most = max(most, int(self.n))
                on_progress("download", most, int(self.total))
            return result

    return ReportingBar
