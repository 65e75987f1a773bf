from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from engines.errors import GenerationFailed, Overloaded
from tests.gateway.asgi import Call, app_of, chat, post
from tests.gateway.scripted import HELLO, STARTED, ScriptedEngine, forever, text, turn

CHAT = "/v1/chat/completions"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(app: object) -> Samples:
    call = await Call(app, path="/metrics").run()
    assert call.headers["content-type"].startswith("text/plain")
    return parse(call.body.decode())


def parse(body: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def labels(**pairs: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(pairs.items()))


async def test_answered_request_is_counted_with_its_tokens_and_times():
    app = app_of(ScriptedEngine(HELLO))
    await chat(app).run()
    await chat(app, stream=False).run()
    samples = await scrape(app)
    model = labels(model="scripted")
    assert samples["headrace_requests_total", labels(route=CHAT, status="200")] == 2
    assert samples["headrace_request_duration_seconds_count", labels(route=CHAT, model="scripted")] == 2
    assert samples["headrace_time_to_first_token_seconds_count", model] == 2
    assert samples["headrace_time_per_output_token_seconds_count", model] == 2
    assert samples["headrace_prompt_tokens_total", model] == 6
    assert samples["headrace_completion_tokens_total", model] == 4
    assert samples["headrace_requests_in_progress", ()] == 1  # the scrape itself


async def test_client_that_left_is_counted_with_what_was_generated():
    engine = ScriptedEngine((STARTED, text("a"), forever))
    app = app_of(engine)
    call = chat(app)
    task = call.start()
    await turn()
    before = await scrape(app)
    assert before["headrace_requests_in_progress", ()] == 2
    assert before["headrace_engine_requests_running", labels(model="scripted")] == 1
    call.leave()
    await task
    after = await scrape(app)
    assert after["headrace_requests_in_progress", ()] == 1
    assert after["headrace_engine_requests_running", labels(model="scripted")] == 0
    assert after["headrace_requests_total", labels(route=CHAT, status="200")] == 1  # that was sent before it left
    assert after["headrace_completion_tokens_total", labels(model="scripted")] == 1


async def test_labels_never_hold_what_a_client_sent():
    app = app_of()
    await Call(app, path="/evil-path").run()
    await chat(app, model="evil-model").run()
    await Call(app, path="/v1/models/evil-name").run()
    call = await Call(app, path="/metrics").run()
    assert b"evil" not in call.body
    samples = parse(call.body.decode())
    assert samples["headrace_requests_total", labels(route="other", status="404")] == 1
    assert samples["headrace_requests_total", labels(route=CHAT, status="404")] == 1


async def test_tgis_names_count_each_request_once_whatever_its_route():
    app = app_of(ScriptedEngine(HELLO))
    await chat(app).run()
    await post(app, "/generate", {"inputs": "Hi", "parameters": {"max_new_tokens": 5}}).run()
    await post(app, "/generate_stream", {"inputs": "Hi", "parameters": {"max_new_tokens": 5}}).run()
    await post(app, "/tokenize", {"inputs": "Hi"}).run()
    samples = await scrape(app)
    assert samples["tgi_request_count", ()] == 3
    assert samples["tgi_request_success", ()] == 3
    for name in ("", "validation_", "queue_", "inference_", "mean_time_per_token_"):
        assert samples[f"tgi_request_{name}duration_count", ()] == 3, name
    assert samples["tgi_request_generated_tokens_sum", ()] == 6
    assert samples["tgi_request_input_length_sum", ()] == 9
    assert samples["tgi_request_max_new_tokens_sum", ()] == 10
    assert samples["tgi_batch_current_size", ()] == samples["tgi_queue_size", ()] == 0


async def test_tgis_failures_have_tgis_words():
    broken = (STARTED, text("a"), GenerationFailed("lost"))
    app = app_of(ScriptedEngine((Overloaded("full"),), broken, broken, (STARTED, text("a"), forever)))
    ask = {"inputs": "Hi", "parameters": {}}
    await post(app, "/generate", ask).run()
    await post(app, "/generate", ask).run()
    await post(app, "/generate_stream", ask).run()
    leaving = post(app, "/generate_stream", ask)
    task = leaving.start()
    await turn()
    leaving.leave()
    await task
    await post(app, "/generate_stream", {"inputs": ""}).run()
    samples = await scrape(app)
    failures = {err: samples["tgi_request_failure", labels(err=err)] for err in ("overloaded", "validation", "dropped")}
    assert failures == {"overloaded": 1, "validation": 1, "dropped": 1}
    assert samples["tgi_request_failure", labels(err="generation")] == 2
    assert (samples["tgi_request_count", ()], samples["tgi_request_success", ()]) == (5, 0)


PROCESS = """
import asyncio, sys
from pathlib import Path
from tests.gateway.asgi import Call, app_of, chat

async def main():
    app = app_of(metrics_dir=Path(sys.argv[1]))
    await chat(app).run()
    print((await Call(app, path="/metrics").run()).body.decode())

asyncio.run(main())
"""


def test_processes_of_one_directory_answer_for_all(tmp_path: Path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    command = [sys.executable, "-W", "error", "-c", PROCESS, str(tmp_path)]
    bodies = [subprocess.run(command, env=environment, check=True, capture_output=True).stdout for _ in range(2)]
    first, second = (parse(body.decode()) for body in bodies)
    key = "headrace_requests_total", labels(route=CHAT, status="200")
    assert (first[key], second[key]) == (1, 2)
    assert second["headrace_completion_tokens_total", labels(model="scripted")] == 4
    assert second["tgi_request_success", ()] == 2
    assert second["headrace_engine_requests_running", labels(model="scripted")] == 0
