"""The image: linted, its parts known to fit each other, and, where the tools for it are, built and served from."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.cli.tgi_flags import FLAGS, VARIABLES, Refusal
from tests.gateway.asgi import Call, app_of, chat
from tests.gateway.scripted import HELLO, ScriptedEngine

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = ["Dockerfile", "Dockerfile.cpu"]
PROVISIONING = DOCKER / "grafana" / "provisioning"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfile_is_clean(name: str):
    beside_python = str(Path(sys.executable).parent)
    hadolint = shutil.which("hadolint", path=os.pathsep.join([beside_python, os.environ.get("PATH", "")]))
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    lint = subprocess.run([hadolint, str(DOCKER / name)], capture_output=True, text=True, check=False)
    assert (lint.returncode, lint.stdout) == (0, "")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_is_pinned_and_runs_as_nobody_special(name: str):
    text = (DOCKER / name).read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert all(re.search(r":\S*\d{8}", base) for base in bases), bases
    assert "USER 1000" in text
    assert "HEALTHCHECK" in text
    assert 'ENTRYPOINT ["text-generation-launcher"]' in text


def test_what_the_image_is_built_from_reaches_the_build():
    allowed = set(re.findall(r"(?m)^!(.+)$", (ROOT / ".dockerignore").read_text()))
    packages = re.search(r"include = \[(.+)\]", (ROOT / "pyproject.toml").read_text())
    assert packages is not None
    for name in re.findall(r'"(\w+)\*"', packages[1]):
        assert name in allowed
    for path in allowed:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", DOCKERFILES)
def test_documented_command_needs_only_the_images_name_changed(name: str):
    """docker run --gpus all --shm-size 1g -p 8080:80 -v $HF_CACHE:/data headrace --model-id Qwen/Qwen3-32B"""
    environment = image_environment(name)
    ask = (
        "import json, os, sys; from gateway.cli.launch import translate; from config.settings import load_settings\n"
        "from huggingface_hub import constants\n"
        "loaded = load_settings(translate({'model_id': 'Qwen/Qwen3-32B'}, dict(os.environ)).settings)\n"
        "(engine,), server = loaded.engines, loaded.server\n"
        "print(json.dumps([engine.model, server.host, server.port, constants.HF_HUB_CACHE]))"
    )
    container = {**environment, "PATH": os.environ["PATH"], "HOSTNAME": "3f1c9a0b7d2e"}
    run = subprocess.run([sys.executable, "-c", ask], env=container, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == ["Qwen/Qwen3-32B", "0.0.0.0", 80, "/data/hub"]
    text = (DOCKER / name).read_text()
    assert "\nEXPOSE 80\n" in text
    assert environment["HF_HUB_DISABLE_TELEMETRY"] == environment["DO_NOT_TRACK"] == "1"


def image_environment(name: str) -> dict[str, str]:
    """What ENV says in a Dockerfile's last stage."""
    last = (DOCKER / name).read_text().rpartition("\nFROM ")[2]
    (block,) = re.findall(r"(?m)^ENV ((?:.*\\\n)*.*)$", last)
    return dict(word.split("=", 1) for word in block.replace("\\\n", " ").split())


@pytest.fixture(scope="module")
def compose() -> tuple[dict[str, Any], dict[str, Any]]:
    """compose.yml as it is read, and with compose.cpu.yml on top of it."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!reset", lambda *_: None)
    gpu, cpu = (
        yaml.load(interpolated((DOCKER / name).read_text()), Loader) for name in ("compose.yml", "compose.cpu.yml")
    )
    return gpu, merged(gpu, cpu)


def interpolated(text: str) -> str:
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        if value is None:
            result.pop(key)
        else:
            result[key] = merged(result[key], value) if isinstance(value, dict) and key in result else value
    return result


def test_compose_files_are_valid_by_composes_own_schema(compose: tuple[dict[str, Any], ...]):
    schemas = pytest.importorskip("check_jsonschema.builtin_schemas", reason="check-jsonschema is not installed")
    schema = json.loads((Path(schemas.__file__).parent / "vendor" / "compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    for document in compose:
        assert [error.message for error in validator.iter_errors(document)] == []
    assert list(validator.iter_errors({"services": {"a": {"imagine": "b"}}}))  # it can say no


def test_compose_gives_gpus_or_does_without_them(compose: tuple[dict[str, Any], ...]):
    gpu, cpu = (document["services"]["headrace"] for document in compose)
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", "all", ["gpu"])
    assert "deploy" not in cpu
    assert (gpu["build"]["dockerfile"], cpu["build"]["dockerfile"]) == ("docker/Dockerfile", "docker/Dockerfile.cpu")
    assert gpu["volumes"] == ["models:/data"]


def test_what_compose_starts_finds_one_another(compose: tuple[dict[str, Any], ...]):
    services = compose[0]["services"]
    port = image_environment("Dockerfile")["PORT"]
    assert services["headrace"]["ports"] == [f"127.0.0.1:8080:{port}"]
    prometheus = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    ((target,),) = [config["targets"] for job in prometheus["scrape_configs"] for config in job["static_configs"]]
    assert target == f"headrace:{port}"  # at /metrics, Prometheus' default
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == f"http://prometheus:{services['prometheus']['ports'][0].rpartition(':')[2]}"
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "headrace.yml").read_text())["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "headrace.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_compose_mounts_files_that_there_are():
    services = yaml.safe_load((DOCKER / "compose.yml").read_text())["services"]
    assert (ROOT / services["headrace"]["build"]["dockerfile"]).is_file()
    for name in ("prometheus", "grafana"):
        assert re.search(r":v?\d+\.\d+\.\d+$", services[name]["image"])
        for mount in services[name]["volumes"]:
            assert (DOCKER / mount.split(":")[0]).exists(), mount


TGI_DASHBOARD = {
    "tgi_batch_concat": ["reason"],
    "tgi_batch_concat_duration_bucket": ["le", "method"],
    "tgi_batch_current_max_tokens": [],
    "tgi_batch_current_size": [],
    "tgi_batch_decode_duration_bucket": ["le", "method"],
    "tgi_batch_filter_duration_bucket": ["le", "method"],
    "tgi_batch_forward_duration_bucket": ["le", "method"],
    "tgi_batch_inference_duration_bucket": ["le", "method"],
    "tgi_queue_size": [],
    "tgi_request_count": [],
    "tgi_request_duration_bucket": ["le"],
    "tgi_request_failure": ["err"],
    "tgi_request_generated_tokens_bucket": ["le"],
    "tgi_request_generated_tokens_count": [],
    "tgi_request_generated_tokens_sum": [],
    "tgi_request_input_length_bucket": ["le"],
    "tgi_request_mean_time_per_token_duration_bucket": ["le"],
    "tgi_request_queue_duration_bucket": ["le"],
    "tgi_request_skipped_tokens_bucket": ["le"],
    "tgi_request_success": [],
}
"""Every series that the dashboard of TGI's own repository asks for, and the labels that it groups or filters by."""


async def test_dashboards_ask_for_metrics_that_there_are():
    app = app_of(ScriptedEngine(HELLO))
    await chat(app).run()
    served = (await Call(app, path="/metrics").run()).body.decode()
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "headrace.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = {name for expression in expressions for name in re.findall(r"\b(?:headrace|tgi)_\w+", expression)}
    assert len(names) > 10
    for name in names:
        assert re.search(rf"(?m)^{name}[ {{]", served), name
    labels: dict[str, list[str]] = {}
    for family in text_string_to_metric_families(served):
        for sample in family.samples:
            labels[sample.name] = sorted(sample.labels)
    assert {name: labels.get(name) for name in TGI_DASHBOARD} == TGI_DASHBOARD


def test_guide_lists_every_flag_and_why_it_is_refused():
    guide = (ROOT / "docs" / "tgi.md").read_text()
    for flag in FLAGS:
        assert f"`--{flag.name}`" in guide
        if isinstance(flag.becomes, Refusal):
            assert f"- `--{flag.name}`: {flag.becomes.why}." in guide
    for variable in VARIABLES:
        assert f"`{variable.variable}`" in guide


@pytest.mark.container
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_image_builds_and_serves(kind: str, smollm2_gguf: Path, tmp_path: Path):
    missing = [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root, buildah and debootstrap; missing: {missing}")
    check = subprocess.run(
        [str(ROOT / "scripts" / "check_image"), kind, str(smollm2_gguf)],
        env={**os.environ, "BASE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout[-4000:] + check.stderr[-4000:]
    assert "built, healthy, answered" in check.stdout
