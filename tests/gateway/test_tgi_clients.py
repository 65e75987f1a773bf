"""TGI's clients as they are published, text-generation 0.7.0 and huggingface_hub, against a real server."""

from __future__ import annotations

import time

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import ValidationError as HubValidationError

from config.engines import EchoSettings
from engines.echo import EchoEngine
from gateway.app import GatewayOptions, create_app
from tests.gateway.live import Live, serving

text_generation = pytest.importorskip("text_generation", reason="text-generation is installed without its dependencies")

from text_generation import AsyncClient, Client  # noqa: E402
from text_generation.errors import NotFoundError, ValidationError  # noqa: E402
from text_generation.types import FinishReason  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:The `dict` method is deprecated", "ignore:unclosed:ResourceWarning")

PROMPT = "The capital of France is"


@pytest.fixture
def client(native_live: Live) -> Client:
    return Client(native_live.url, timeout=120)


@pytest.fixture
def hub(native_live: Live) -> InferenceClient:
    return InferenceClient(model=native_live.url, timeout=120)


# --- text-generation --------------------------------------------------------------------------------------------------


def test_generate_tells_one_token_and_how_it_ended(client: Client):
    response = client.generate("test", max_new_tokens=1, decoder_input_details=True)
    details = response.details
    assert details.finish_reason == FinishReason.Length
    assert (details.generated_tokens, details.seed, len(details.tokens)) == (1, None, 1)
    assert details.tokens[0].text == response.generated_text
    assert details.tokens[0].logprob < 0
    assert not details.tokens[0].special
    assert details.prefill[0].logprob is None
    assert "".join(token.text for token in details.prefill) == "test"


def test_greedy_answer_is_the_stream_of_its_tokens(client: Client):
    whole = client.generate(PROMPT, max_new_tokens=12)
    events = list(client.generate_stream(PROMPT, max_new_tokens=12))
    assert "".join(event.token.text for event in events if not event.token.special) == whole.generated_text
    assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]
    assert [event.generated_text for event in events[:-1]] == [None] * (len(events) - 1)
    last = events[-1]
    assert last.generated_text == whole.generated_text
    assert last.details.finish_reason == whole.details.finish_reason
    assert last.details.generated_tokens == len(events)


def test_end_of_text_is_a_special_token(client: Client):
    prompt = "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n"
    details = client.generate(prompt, max_new_tokens=64).details
    assert details.finish_reason == FinishReason.EndOfSequenceToken
    assert details.tokens[-1].special
    assert details.tokens[-1].text == "<|im_end|>"
    assert details.generated_tokens == len(details.tokens)


def test_best_of_tells_the_others_with_their_seeds(client: Client):
    response = client.generate(PROMPT, max_new_tokens=4, best_of=2, do_sample=True)
    (other,) = response.details.best_of_sequences
    assert other.seed is not None
    assert other.seed != response.details.seed
    mean = [sum(token.logprob for token in tokens) for tokens in (response.details.tokens, other.tokens)]
    assert mean[0] >= mean[1]
    for sequence in (response.details, other):  # each seed, asked for again, gives its text again
        again = client.generate(PROMPT, max_new_tokens=4, do_sample=True, seed=sequence.seed)
        assert [token.id for token in again.details.tokens] == [token.id for token in sequence.tokens]


def test_every_sampling_parameter_at_once_is_honoured_and_repeats_by_its_seed(client: Client):
    def ask():
        return client.generate(
            PROMPT,
            do_sample=True,
            max_new_tokens=10,
            repetition_penalty=1.2,
            frequency_penalty=0.1,
            return_full_text=True,
            seed=0,
            stop_sequences=["test"],
            temperature=0.5,
            top_k=10,
            top_p=0.9,
            truncate=5,
            typical_p=0.9,
            watermark=True,
            decoder_input_details=True,
            top_n_tokens=5,
        )

    response = ask()
    assert response == ask()
    assert response.generated_text.startswith(PROMPT)
    assert response.details.seed == 0
    assert len(response.details.prefill) == 5
    assert [len(tops) for tops in response.details.top_tokens] == [5] * len(response.details.tokens)


def test_stop_string_inside_a_token_ends_the_text_and_stays_in_it(client: Client):
    text = client.generate(PROMPT, max_new_tokens=12).generated_text
    stop = text[3:6]
    response = client.generate(PROMPT, max_new_tokens=12, stop_sequences=[stop])
    assert response.generated_text == text[: text.index(stop) + len(stop)]
    assert response.details.finish_reason == FinishReason.StopSequence
    assert "".join(token.text for token in response.details.tokens) == response.generated_text


def test_client_raises_what_it_raised_against_the_original(client: Client, native_live: Live):
    with pytest.raises(ValidationError, match="max_new_tokens"):
        client.generate("test", max_new_tokens=10_000)
    with pytest.raises(NotFoundError):
        Client(f"{native_live.url}/models/none", timeout=10).generate("test")


async def test_async_client_generates_streams_and_chats(native_live: Live):
    client = AsyncClient(native_live.url, timeout=120)
    whole = await client.generate(PROMPT, max_new_tokens=4)
    events = [event async for event in client.generate_stream(PROMPT, max_new_tokens=4)]
    assert events[-1].generated_text == whole.generated_text
    with pytest.raises(ValidationError):
        await client.generate("test", max_new_tokens=10_000)
    with pytest.raises(ValidationError):
        async for _ in client.generate_stream("test", max_new_tokens=10_000):
            pass


def test_chat_of_the_older_client_which_asks_for_a_model_called_tgi_is_understood():
    app = create_app([EchoEngine(EchoSettings())], options=GatewayOptions(any_model=True))
    with serving(app, "echo") as server:
        answer = Client(server.url).chat([{"role": "user", "content": "Hi there"}], max_tokens=2, seed=1)
    assert answer.choices[0].message.content == "Hi the"
    assert answer.usage["completion_tokens"] == 2


# --- huggingface_hub --------------------------------------------------------------------------------------------------


def test_hub_client_gets_text_details_and_both_as_streams(hub: InferenceClient):
    text = hub.text_generation(PROMPT, max_new_tokens=8, return_full_text=False)
    told = hub.text_generation(PROMPT, max_new_tokens=8, return_full_text=False, details=True, top_n_tokens=2)
    assert told.generated_text == text
    assert told.details.finish_reason in ("length", "eos_token")
    assert [len(tops) for tops in told.details.top_tokens] == [2] * told.details.generated_tokens
    assert "".join(hub.text_generation(PROMPT, max_new_tokens=8, stream=True)) == text
    *_, last = hub.text_generation(PROMPT, max_new_tokens=8, stream=True, details=True)
    assert (last.generated_text, last.details.input_length) == (PROMPT + text, 5)  # the full text, unless told


def test_hub_client_reads_refusals(hub: InferenceClient):
    with pytest.raises(HubValidationError, match="max_new_tokens"):
        hub.text_generation(PROMPT, max_new_tokens=10_000)
    with pytest.raises(HubValidationError, match="top_p"):
        list(hub.text_generation(PROMPT, max_new_tokens=4, top_p=1.0, stream=True))


def test_hub_client_chats_with_a_server_that_it_knows_by_its_address(native_live: Live):
    hub = InferenceClient(base_url=native_live.url, timeout=120)
    messages = [{"role": "user", "content": "Say hi."}]
    whole = hub.chat_completion(messages, model="smollm2", max_tokens=8, temperature=0.0, logprobs=True, top_logprobs=2)
    chunks = list(hub.chat_completion(messages, model="smollm2", max_tokens=8, temperature=0.0, stream=True))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2


def test_hub_client_asks_how_the_server_is_and_what_it_serves(native_live: Live):
    hub = InferenceClient(model=native_live.url, provider="hf-inference")
    assert hub.health_check()
    info = hub.get_endpoint_info()
    assert info["model_id"] == native_live.model
    assert info["max_total_tokens"] > info["max_input_tokens"] > 0


def test_tgis_metrics_tell_of_requests_and_steps(client: Client, native_live: Live):
    def scraped() -> dict[str, float]:
        lines = httpx.get(f"{native_live.url}/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("tgi_")}

    before = scraped()
    client.generate(PROMPT, max_new_tokens=8)
    prefill, decode = (f'tgi_batch_forward_duration_count{{method="{method}"}}' for method in ("prefill", "decode"))
    deadline = time.monotonic() + 10  # steps are told a moment after the answer
    while (after := scraped())[decode] < before[decode] + 7 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert after[decode] - before[decode] == 7
    assert after[prefill] - before[prefill] >= 1
    assert after["tgi_request_count"] - before["tgi_request_count"] == 1
    assert after["tgi_request_generated_tokens_sum"] - before["tgi_request_generated_tokens_sum"] == 8


async def test_hub_clients_async_twin_streams(native_live: Live):
    async with AsyncInferenceClient(model=native_live.url, timeout=120) as hub:
        pieces = [piece async for piece in await hub.text_generation(PROMPT, max_new_tokens=4, stream=True)]
    assert len(pieces) == 4


def test_tokens_of_a_text_are_its_bytes(native_live: Live):
    text = "Grüße, 世界"
    spans = httpx.post(f"{native_live.url}/tokenize", json={"inputs": text}).json()
    assert b"".join(text.encode()[span["start"] : span["stop"]] for span in spans if span["text"]).decode()[:1] == "G"
    answer = httpx.post(
        f"{native_live.url}/chat_tokenize", json={"messages": [{"role": "user", "content": text}]}
    ).json()
    assert f"<|im_start|>user\n{text}<|im_end|>" in answer["templated_text"]
