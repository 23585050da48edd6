"""The sampler of a vLLM server against what a real one said; the real one is in tests/vllm."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from segcredit import load_config, registry
from segcredit.config import RunConfig
from segcredit.errors import LostProcessError, PolicyError, RecordError, RegistryError
from segcredit.policy.causal_lm import CausalPolicy
from segcredit.policy.samplers.generate import Generate
from segcredit.policy.samplers.vllm import VLLM
from segcredit.protocols import Sampler
from segcredit.records.run_directory import RunRecords
from segcredit.records.stored_config import read_config
from segcredit.training.build import run_hash
from segcredit.types import Generation, SamplingParams
from vllm_wire import CASES, PROMPTS, Played, completions, listening, policy, turned_into

GENERATE, INFO = "/inference/v1/generate", "/server_info?config_format=json"
SENT = ["/update_weight_version", "/collective_rpc", "/reset_prefix_cache"]


@pytest.fixture
def server() -> Iterator[Played]:
    with listening(Played()) as played:
        yield played


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which then take no time."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def sampler(server: Played, **options: Any) -> VLLM:
    return VLLM(server.url, **options)


def require_own_logprobs(made: CausalPolicy, drawn: Generation) -> None:
    """Holds log-probs to a plain forward over each row alone."""
    assert drawn.logprobs is not None
    for row, (ids, mask) in enumerate(zip(*made.encode(PROMPTS), strict=True)):
        new = drawn.ids[row][drawn.mask[row]]
        whole = torch.cat([ids[mask], new])[None]
        with torch.no_grad():
            logits_TV = made.model(whole).logits[0, int(mask.sum()) - 1 : -1]
        logits_TV[:, list(made.suppressed_ids)] = -torch.inf
        own_T = (logits_TV / made.temperature).log_softmax(1).gather(1, new[:, None])[:, 0]
        assert torch.allclose(drawn.logprobs[row][drawn.mask[row]], own_T, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_log_probs_of_the_server_are_those_of_scoring(case: str, server: Played) -> None:
    made = policy(sampler(server))
    drawn = completions(made, case)
    texts = made.decode(drawn.ids, drawn.mask)[0]
    if case == "greedy":
        assert drawn.logprobs is None
        made.sampler = Generate()
        other = completions(made, case)
        assert texts == made.decode(other.ids, other.mask)[0]
        return
    assert texts[0] != texts[1], "equal prompts"
    assert len(set(drawn.mask.sum(1).tolist())) > 1
    assert not torch.isin(drawn.ids[drawn.mask], torch.tensor(made.suppressed_ids)).any()
    require_own_logprobs(made, drawn)
    if case == "stopped":
        places = [text.find("3") for text in texts]
        assert places.count(-1) < len(places)
        assert all(place in (-1, len(text) - 1) for place, text in zip(places, texts, strict=True))
        assert not any(drawn.truncated[row] for row, place in enumerate(places) if place >= 0)


def test_weights_are_sent_when_they_have_changed_and_only_then(server: Played) -> None:
    made = policy(sampler(server))
    first = completions(made, "plain")
    assert [path for path in server.asked if path in SENT] == [
        "/collective_rpc",  # which asks for the model's modules
        *SENT,
        "/update_weight_version",
    ]
    server.asked.clear()
    assert torch.equal(completions(made, "plain").ids, first.ids)
    made.sync()
    assert {*server.asked} == {GENERATE}
    server.asked.clear()
    turned_into(made, "b").sync()
    other = completions(made, "plain")
    assert [path for path in server.asked if path != GENERATE] == [
        "/weight_info",
        *SENT,
        "/update_weight_version",
    ]
    require_own_logprobs(made, other)
    assert server.version.startswith("weights-")


def test_one_copy_of_the_weights_is_kept(server: Played, tmp_path: Any) -> None:
    made = policy(sampler(server, folder=str(tmp_path)))
    for weights in ("a", "b", "a"):
        turned_into(made, weights).sync()
        (folder,) = [place for place in tmp_path.glob("*/*") if place.is_dir()]
        assert folder.name == server.version
    # Another process of the run finds the server ready.
    server.asked.clear()
    policy(sampler(server, folder=str(tmp_path))).sync()
    assert not {*server.asked} & {*SENT[::2]}


def test_a_server_that_was_started_anew_gets_the_weights_again(
    server: Played, pauses: list[float]
) -> None:
    made = policy(sampler(server))
    first = completions(made, "plain")
    server.restart()
    server.weights = "b"  # whatever it was started with
    again = completions(made, "plain")
    assert pauses
    assert server.weights == "a"
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.logprobs, again.logprobs)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "fault", [lambda: None, (500, '{"error": {"message": "EngineDeadError"}}')]
)
def test_a_server_that_is_lost_for_a_while_is_waited_for(
    fault: Any, server: Played, pauses: list[float]
) -> None:
    made = policy(sampler(server))
    first = completions(made, "plain")
    server.faults = [(GENERATE, fault)] * 2 + [("/weight_info", fault)]
    assert torch.equal(completions(made, "plain").ids, first.ids)
    assert not server.faults
    assert pauses == [1, 2]


def test_a_server_that_stays_away_ends_the_run(server: Played, pauses: list[float]) -> None:
    made = policy(sampler(server))
    completions(made, "plain")
    server.lasting = {GENERATE: (503, "")}
    with pytest.raises(LostProcessError, match=r"is gone.*answered 503.*8 more attempts.*serve'"):
        completions(made, "plain")
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_server_that_was_never_there_is_not_waited_for(pauses: list[float]) -> None:
    with pytest.raises(LostProcessError, match=r"is gone .ConnectionRefusedError.*never started"):
        completions(policy(VLLM("http://127.0.0.1:9")), "plain")
    assert not pauses


def test_a_slow_server_is_told_from_a_lost_one(server: Played) -> None:
    made = policy(sampler(server, timeout=0.2))
    server.faults = [("/weight_info", lambda: time.sleep(0.6))]
    with pytest.raises(LostProcessError, match=r"/weight_info within 0.2 seconds.*sampler.timeout"):
        made.sync()


def test_weights_of_another_run_are_an_error(server: Played, pauses: list[float]) -> None:
    made = policy(sampler(server))
    completions(made, "plain")
    server.version = "weights-of-another-run"
    with pytest.raises(PolicyError, match=r"'weights-of-another-run'.*each run a server"):
        completions(made, "plain")


def test_prefixes_of_older_weights_are_an_error(server: Played, pauses: list[float]) -> None:
    made = policy(sampler(server))
    server.faults = [("/reset_prefix_cache", (200, '{"success": false}'))] * 3
    completions(made, "plain")
    assert pauses == [0.5] * 3
    server.lasting = {"/reset_prefix_cache": (200, '{"success": false}')}
    with pytest.raises(PolicyError, match=r"did not empty its cache.*each run a server"):
        turned_into(made, "b").sync()
    # Nothing is drawn with them afterwards.
    with pytest.raises(PolicyError, match="did not empty"):
        completions(made, "plain")


def changed(info: dict[str, Any], **values: Any) -> tuple[int, str]:
    """An answer with other values of the server's config."""
    found = json.loads(json.dumps(info))
    for part in found["vllm_config"].values():
        part.update({key: value for key, value in values.items() if key in part})
    return 200, json.dumps(found)


def wrong_servers(recorded: dict[str, Any]) -> dict[str, tuple[str, Any, str]]:
    """A path, what is answered there, and what the sentence says."""
    faults, info = recorded["faults"], recorded[INFO]
    tree = recorded["get_model_inspection"]["results"][0]

    def modules(old: str, new: str) -> tuple[int, str]:
        assert old in tree
        return 200, json.dumps({"results": [tree.replace(old, new)]})

    return {
        "no dev mode": ("/weight_info", faults["no dev mode"], "without VLLM_SERVER_DEV_MODE=1"),
        "no scale-out": (GENERATE, faults["no scale-out"], "without --enable-scale-out"),
        "log-probs": (
            INFO,
            (200, json.dumps(faults["bare"])),
            "--logprobs-mode processed_logprobs",
        ),
        "chunks": (
            INFO,
            changed(info, enable_chunked_prefill=True),
            "without --no-enable-chunked-prefill",
        ),
        "vocabulary": (
            "/collective_rpc",
            modules("org_vocab_size=15", "org_vocab_size=16"),
            "another model, with a vocabulary of 16 ids; expected one of 15",
        ),
        "model": (
            "/collective_rpc",
            modules("LlamaForCausalLM", "Qwen2ForCausalLM"),
            "with a Qwen2ForCausalLM; expected a LlamaForCausalLM",
        ),
        "too long": (GENERATE, faults["too long"], r"refused .*\(400: The decoder prompt"),
    }


@pytest.mark.parametrize(
    "fault",
    ["no dev mode", "no scale-out", "log-probs", "chunks", "vocabulary", "model", "too long"],
)
def test_a_wrong_server_is_a_sentence(fault: str, server: Played) -> None:
    path, reply, sentence = wrong_servers(server.recorded)[fault]
    server.lasting = {path: tuple(reply)}  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(PolicyError, match=f"sampler 'vllm': the server at .*{sentence}.*serve'"):
        completions(policy(sampler(server)), "plain")


def test_weights_that_the_server_cannot_read_are_a_sentence(server: Played) -> None:
    made = policy(sampler(server))
    server.faults = [
        ("/collective_rpc", (200, json.dumps(server.recorded["get_model_inspection"]))),
        ("/collective_rpc", tuple(server.recorded["faults"]["no folder"])),
    ]
    with pytest.raises(PolicyError, match=r"could not read the weights.*Repo id.*sampler\.folder"):
        made.sync()


def test_a_model_of_other_settings_is_found_by_its_log_probs(server: Played) -> None:
    made = policy(sampler(server))
    made.sync()
    server.weights = "b"
    with pytest.raises(PolicyError, match="nats from the model's own in the mean of"):
        completions(made, "plain")


def altered(server: Played, case: int, **values: Any) -> Any:
    """Changes the one row that was recorded of the last prompt; case counts as CASES does."""
    found = [one for one in server.recorded["draws"] if one["weights"] == "a"]
    choice = found[3 * case + 2]["answer"]["choices"][0]
    choice["token_ids"] = choice["token_ids"][:4]
    choice["logprobs"]["content"] = choice["logprobs"]["content"][:4]
    choice.update(values)


def test_a_stop_that_the_policy_does_not_see_is_drawn_again(server: Played) -> None:
    whole = completions(policy(sampler(server)), "stopped")
    altered(server, [*CASES].index("stopped"), finish_reason="stop", stop_reason="3")
    again = completions(policy(sampler(server)), "stopped")
    assert torch.equal(whole.ids, again.ids)
    assert torch.equal(whole.mask, again.mask)


def test_a_server_with_too_short_a_context_is_a_sentence(server: Played) -> None:
    altered(server, 0, finish_reason="length")
    server.lasting = {INFO: changed(server.recorded[INFO], max_model_len=6)}
    with pytest.raises(PolicyError, match=r"cut completions at 6 tokens.*-max-model-len.*most 64"):
        completions(policy(sampler(server)), "plain")


def test_images_are_refused(server: Played) -> None:
    made = policy(sampler(server))
    with pytest.raises(PolicyError, match=r"reads pixel_values besides.*without images"):
        made.sampler.sample(
            made.model,
            *made.encode(PROMPTS),
            params=SamplingParams(max_new_tokens=2),
            pad_id=0,
            generator=torch.Generator(),
            inputs={"pixel_values": torch.zeros(1)},
        )


def test_a_run_goes_on_with_another_server(tmp_path: Path) -> None:
    def config(port: int, *more: str) -> RunConfig:
        return load_config("grpo", [f'sampler={{name="vllm", url="http://a:{port}"}}', *more])

    first, second = config(1), config(2, "sampler.timeout=9")
    assert run_hash(first) == run_hash(second)
    for one in (first, second, second):
        RunRecords.create(tmp_path, one.identity(), {}, one.carriers())
        assert load_config(read_config(tmp_path)).sampler == one.sampler
    other = config(1, "seed=1")
    with pytest.raises(RecordError, match=r"it differs in seed .there 0, now 1\)\."):
        RunRecords.create(tmp_path, other.identity(), {}, other.carriers())


def test_nothing_asked_for_is_nothing(server: Played) -> None:
    made = policy(sampler(server))
    for rows, most in ((0, 4), (2, 0)):
        ids, mask = (x[:rows] for x in made.encode(PROMPTS))
        params = SamplingParams(max_new_tokens=most)
        drawn = made.sampler.sample(
            made.model, ids, mask, params=params, pad_id=0, generator=torch.Generator()
        )
        assert drawn.ids.shape == (rows, 0)
    assert not server.asked


def test_it_is_a_plugin_that_pickles(server: Played) -> None:
    with pytest.raises(RegistryError, match="needs the option 'url'"):
        registry.samplers.build("vllm")
    plugin = registry.samplers.build("vllm", url=server.url, retries=0)
    assert isinstance(plugin, Sampler)
    assert registry.samplers.resolve("vllm", {"url": "x"}) == {
        "name": "vllm",
        "url": "x",
        "timeout": 600.0,
        "retries": 8,
        "folder": "",
    }
    completions(policy(plugin), "plain")
    again = pickle.loads(pickle.dumps(plugin))
    assert again == plugin
    assert vars(again) == {"url": server.url, "timeout": 600.0, "retries": 0, "folder": ""}
    with pytest.raises(PolicyError, match="the url is 'elsewhere'; expected one such as http"):
        completions(policy(VLLM("elsewhere")), "plain")
