"""The tiny policies that read pictures: warm start, cache, and the whole loop with them."""

from __future__ import annotations

import base64
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segcredit import load_config, read_runs, registry, train
from segcredit.config import RunConfig
from segcredit.credit_audit import audit, load_audit_config
from segcredit.credit_audit.truth import load_truth, measure_truth
from segcredit.episodes import complete, demonstrated
from segcredit.errors import PolicyError, RegistryError, StudyError
from segcredit.policy.samplers.generate import Generate
from segcredit.policy.tiny.sft_loss import imitation_losses
from segcredit.policy.tiny.tiny_vlm import TinyVLM
from segcredit.protocols import Prompt, Verdict
from segcredit.study.report import write_report
from segcredit.tasks.arithmetic import Arithmetic
from segcredit.tasks.picture import Picture
from segcredit.training.build import build
from segcredit.training.rollouts.completions import as_rollouts, with_extras
from segcredit.types import SamplingParams
from small import SMALL

ARCHITECTURES = ("llava", "qwen2_5_vl")
TASK = Picture(min_steps=1, max_steps=1, square=16)
OPTIONS = {"image_size": 32, "hidden_size": 32, "intermediate_size": 32, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGCREDIT_CACHE", str(folder))


def _load(architecture: str, task: Any = TASK, *, steps: int = 2, seed: int = 0) -> Any:
    source: Any = TinyVLM(architecture=architecture, steps=steps, **OPTIONS)
    return source.load(task, Generate(), temperature=1.0, seed=seed)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_square_of_the_picture_is_a_token(architecture: str) -> None:
    policy = _load(architecture)
    ids, mask, extras = policy.encode_prompts(TASK.prompts(3, _generator()))
    assert mask.all()
    assert (ids == policy.inputs.slot_ids[0]).sum(1).tolist() == [4, 4, 4]
    assert all("pixel_values" in extra for extra in extras)
    assert policy.decode(ids, mask)[0] == ("=",) * 3
    text = TASK.alphabet()
    assert policy.decode(*policy.encode([text]))[0] == (text,)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_warm_start_is_cached_and_learns(architecture: str, folder: Path) -> None:
    state = torch.get_rng_state()
    first = _load(architecture)
    files = {path: path.stat().st_mtime_ns for path in folder.glob("tiny_vlm-*.safetensors")}
    second = _load(architecture)
    assert {p: p.stat().st_mtime_ns for p in folder.glob("tiny_vlm-*.safetensors")} == files
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    shown = [demonstrated(TASK, *pair) for pair in TASK.demonstrations(64, _generator(9))]
    losses = [
        next(iter(imitation_losses(_load(architecture, steps=steps), shown, 64)))().item()
        for steps in (0, 2, 20)
    ]
    assert losses[2] < losses[1] < losses[0]
    assert not torch.equal(
        _load(architecture, seed=1).model.lm_head.weight, first.model.lm_head.weight
    )


def test_the_imitation_loss_is_the_mean_over_completions_and_their_ends() -> None:
    policy = _load("llava")
    pairs = TASK.demonstrations(3, _generator())
    (loss,) = imitation_losses(policy, [demonstrated(TASK, *pair) for pair in pairs], 3)
    total, count = 0.0, 0
    for prompt, text in pairs:
        given = policy.images.encode(prompt)
        ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        completion = torch.tensor([*ids, policy.end_ids[0]])
        before = given["input_ids"].shape[1]
        logits = policy.model(
            input_ids=torch.cat([given["input_ids"], completion[None]], 1),
            pixel_values=given["pixel_values"],
        ).logits[0, before - 1 : -1]
        logits[:, list(policy.suppressed_ids)] = -torch.inf
        total += float(torch.nn.functional.cross_entropy(logits, completion, reduction="sum"))
        count += len(completion)
    assert float(loss()) == pytest.approx(total / count, abs=1e-5)


def test_a_task_without_images_can_be_imitated_too() -> None:
    policy = _load("llava", Arithmetic(min_steps=1, max_steps=1))
    found = complete(
        policy,
        Arithmetic(),
        [Prompt("1+1", "1+1=", "2")] * 2,
        params=SamplingParams(max_new_tokens=4),
        generator=_generator(),
    )
    assert as_rollouts(found, policy, micro_tokens=100).logprobs.isfinite().all()


class Silent(Picture):
    """Has no alphabet."""

    def alphabet(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TinyVLM(architecture="other"), ValueError, "expected one of llava, qwen2_5_vl"),
        (lambda: TinyVLM(square=15), ValueError, "even number that divides the image_size 64"),
        (lambda: TinyVLM(hidden_size=72, heads=8), ValueError, "multiple of four times the 8"),
        (lambda: registry.policies.build("tiny_vlm", layers=0), RegistryError, "'layers' is 0"),
        (lambda: _load("llava", Silent()), PolicyError, "has no alphabet"),
    ],
)
def test_options_and_tasks_that_do_not_fit(make: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# --- the whole loop, unchanged


def _config(method: str, architecture: str, *more: str) -> RunConfig:
    options = [f"policy.{name}={value}" for name, value in OPTIONS.items()]
    return load_config(
        method,
        [
            *SMALL,
            'task={name="varied"}',
            'policy={name="tiny_vlm"}',
            *options,
            "task.min_steps=1",
            "task.max_steps=1",
            "policy.steps=2",
            f"policy.architecture={architecture}",
            "rollouts.prompts=3",
            f"rollouts.completions={4 if method == 'spo_tree' else 3}",
            *(["rollouts.branches=[2, 2]"] if method == "spo_tree" else []),
            "rollouts.max_new_tokens=12",
            "train.steps=2",
            "evaluate.prompts=4",
            *more,
        ],
    )


@pytest.fixture
def varied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.tasks, "_local", {"varied": Varied})


class Varied(Picture):
    """Rewards any text, by a checksum: no warm start is needed to win some."""

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        return Verdict(zlib.crc32(f"{prompt.key}{text}".encode()) % 97 / 97, False)


@pytest.mark.usefixtures("varied")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", ["grpo", "ppo", "sapo", "vineppo", "spo_tree"])
def test_every_kind_of_method_trains_on_images(
    method: str, architecture: str, tmp_path: Path
) -> None:
    """Critics, continuations and trees; the first minibatch's ratio says that scoring agrees."""
    path = train(_config(method, architecture), tmp_path / "run")
    runs = read_runs(path)
    assert runs.runs.status.tolist() == ["finished"]
    assert np.isfinite(runs.steps.loss[1:]).all()
    assert set(runs.completions.prompt.str.len()) == {3}


@pytest.mark.usefixtures("varied")
def test_the_same_config_and_seed_give_the_same_run(tmp_path: Path) -> None:
    config = _config("sapo", "qwen2_5_vl")
    one, other = (read_runs(train(config, tmp_path / name)).steps for name in "ab")
    kept = [name for name in one.columns if name not in ("run", "cpu_seconds")]
    assert one[kept].equals(other[kept])


@pytest.mark.usefixtures("varied")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_stored_truth_keeps_the_images(architecture: str, tmp_path: Path) -> None:
    config = _config("grpo", architecture)
    truth = measure_truth(config, tmp_path / "t", prompts=2, completions=2, continuations=1)
    assert truth.tokens > 0
    again = load_truth(tmp_path / "t")
    assert again.prompts == truth.prompts
    assert all(prompt.images for prompt in again.prompts)
    policy = build(config).actor
    again.require_policy(policy, micro_tokens=1000)
    with pytest.raises(StudyError, match="another policy under the same name"):
        again.require_policy(_load(architecture, steps=20), micro_tokens=1000)
    whole = with_extras(again.rollouts, policy, again.prompts)
    found = policy(whole).logprobs[whole.action_mask]
    torch.testing.assert_close(found, whole.logprobs[whole.action_mask], atol=1e-4, rtol=0)


@pytest.mark.usefixtures("varied")
def test_credit_is_audited_on_images(tmp_path: Path) -> None:
    """Four segmenters, a critic and continuations against the measured truth."""
    quick = [
        "prompts=3",
        "completions=2",
        "continuations=0.3",
        "training_steps=1",
        "gradient_samples=0",
        "resamples=20",
        'segmenters=["newline", "entropy", "per_token", "whole"]',
        'estimators=["critic", "monte_carlo"]',
    ]
    config = _config("sapo", "qwen2_5_vl").model_dump(mode="json", exclude_none=True)
    judged = load_audit_config(config, [f"audit.{each}" for each in quick])
    path = audit(judged, tmp_path / "audit")
    found = read_runs(path).audit
    assert set(found.segmenter.dropna()) == {"newline", "entropy", "per_token", "whole"}
    assert found.value.notna().any()
    write_report(path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'"data:image/png;base64,([^"]+)"', page)
    shown = {base64.b64decode(source) for source in sources}
    # Every prompt's, each once however many completions it has.
    assert len(sources) == len(shown)
    assert shown == {
        image for prompt in load_truth(path / "truth").prompts for image in prompt.images
    }
