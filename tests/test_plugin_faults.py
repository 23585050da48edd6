"""Every way in which a plug-in can be wrong ends in a sentence that names it and its file."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from typing import Any

import pytest
import torch
from torch import nn

from segcredit import (
    AdvantageScheme,
    Environment,
    PolicySource,
    ProcessReward,
    Prompt,
    SampledTokens,
    Sampler,
    Segmentation,
    Segmenter,
    Task,
    TextSegmenter,
    ValueEstimator,
    Verdict,
    load_config,
    registry,
)
from segcredit.cli import main
from segcredit.errors import ConfigError, PluginError, PolicyError, RegistryError, TaskError
from segcredit.register import load_code
from segcredit.training.build import build
from segcredit.training.credit_assignment import collect
from segcredit.training.update import improve
from small import SMALL

pytestmark = pytest.mark.usefixtures("unchecked")
BASES: dict[str, type] = {
    "segmenters": Segmenter,
    "estimators": ValueEstimator,
    "advantages": AdvantageScheme,
    "process_rewards": ProcessReward,
    "tasks": Task,
    "environments": Environment,
    "policies": PolicySource,
    "samplers": Sampler,
}
PROMPT = Prompt("sum", "1+1=", "2")
RIGHT: dict[str, dict[str, Any]] = {
    "segmenters": {
        "causal": True,
        "segment": lambda self, rollouts: Segmentation.from_starts(
            rollouts.action_mask, rollouts.action_mask
        ),
    },
    "estimators": {
        "estimate": lambda self, state, rollouts, segmentation, simulator: torch.zeros(
            segmentation.mask.shape
        ),
    },
    "advantages": {"__call__": lambda self, values: values.rewards},
    "process_rewards": {"reward": lambda self, rollouts, segmentation: torch.zeros(1)},
    "tasks": {
        "prompts": lambda self, count, generator: [
            Prompt(str(i), "1+1=", "2") for i in range(count)
        ],
        "evaluation": lambda self, count: [PROMPT],
        "verify": lambda self, prompt, text, *, truncated: Verdict(0.0, False),
        "alphabet": lambda self: "0123456789+=",
        "demonstrations": lambda self, count, generator: [(PROMPT, "2")] * count,
    },
    "policies": {},
    "samplers": {},
}
KEYS = {
    "segmenters": "segmenter",
    "estimators": "estimator",
    "advantages": "advantage",
    "process_rewards": "process_reward",
    "tasks": "task",
    "policies": "policy",
    "samplers": "sampler",
}


def broken(monkeypatch: pytest.MonkeyPatch, kind: str, **methods: Any) -> None:
    """Registers a plug-in 'mine' that is right but for some methods; None removes one."""
    body = {key: value for key, value in (RIGHT[kind] | methods).items() if value is not None}
    plugin = make_dataclass("Mine", [], bases=(BASES[kind],), namespace=body, frozen=True)
    monkeypatch.setitem(registry.ALL[kind]._local, "mine", plugin)


def stepped(kind: str) -> None:
    """Builds a run with the plug-in and makes one step."""
    small = [key for key in SMALL if not key.startswith(("task.", "policy."))]
    own = "policy.steps=2" if kind != "policies" else "seed=1"
    tasks = ["task.min_steps=1", "task.max_steps=2"] if kind != "tasks" else []
    config = load_config("grpo", [*small, own, *tasks, f"{KEYS[kind]}=mine"])
    run = build(config)
    improve(run, collect(run, 1), 1)


def raises(*_: Any, **__: Any) -> Any:
    return {}["nothing"]


def gives(value: Any) -> Any:
    return lambda *_, **__: value


FAULTS = [
    (
        "segmenters",
        {"segment": raises},
        r"'mine' \(.*test_plugin_faults.py, line \d+, in",
    ),
    ("segmenters", {"segment": gives(None)}, "segmenter 'mine'.*segment returned nothing"),
    (
        "segmenters",
        {"segment": gives([[0, 1]])},
        "returned list; expected Segmentation",
    ),
    (
        "segmenters",
        {"segment": gives(Segmentation(torch.zeros(1, 1, dtype=torch.long)))},
        r"segmenter 'mine'.*batch of shape \(1, 1\)",
    ),
    ("estimators", {"start": raises}, "estimator 'mine'.*raised KeyError"),
    ("estimators", {"start": gives(None)}, "estimator 'mine'.*start returned nothing"),
    ("estimators", {"meet": raises}, "estimator 'mine'.*raised KeyError"),
    ("estimators", {"estimate": raises}, "estimator 'mine'.*raised KeyError"),
    ("estimators", {"estimate": gives(None)}, "estimator 'mine'.*estimate returned nothing"),
    (
        "estimators",
        {"estimate": gives(torch.zeros(2))},
        r"estimate returned shape \(2,\);",
    ),
    ("estimators", {"targets": gives(1.0)}, "targets returned float; expected Tensor"),
    ("estimators", {"targets": gives(torch.zeros(3, 1))}, r"targets returned shape \(3, 1\)"),
    ("estimators", {"update": raises}, "estimator 'mine'.*raised KeyError"),
    ("advantages", {"__call__": raises}, "advantage 'mine'.*raised KeyError"),
    ("advantages", {"__call__": gives(None)}, "advantage 'mine'.*scheme returned nothing"),
    ("advantages", {"__call__": gives(torch.zeros(1, 1))}, r"advantage 'mine'.*shape \(1, 1\)"),
    ("process_rewards", {"reward": raises}, "process reward 'mine'.*raised KeyError"),
    ("process_rewards", {"reward": gives(None)}, "process reward 'mine'.*reward returned nothing"),
    ("process_rewards", {"reward": gives(torch.zeros(7))}, r"reward returned shape \(7,\)"),
    ("tasks", {"prompts": raises}, "task 'mine'.*raised KeyError"),
    ("tasks", {"prompts": gives(None)}, "task 'mine'.*stream returned nothing"),
    ("tasks", {"prompts": gives(["1+1="])}, "returned a str among its prompts"),
    ("tasks", {"prompts": lambda *_: [PROMPT]}, "returned 1 prompts; expected at least 4"),
    ("tasks", {"evaluation": raises}, "task 'mine'.*raised KeyError"),
    ("tasks", {"evaluation": gives(None)}, "evaluation returned nothing"),
    ("tasks", {"stream": gives(3)}, "stream returned int; expected PromptStream"),
    ("tasks", {"verify": raises}, "verifier of task .*raised KeyError"),
    ("tasks", {"verify": gives(1.0)}, "verify returned float; expected Verdict"),
    ("tasks", {"alphabet": raises}, "policy 'tiny'.*raised KeyError"),
    ("policies", {"load": raises}, "policy 'mine'.*raised KeyError"),
    ("policies", {"load": gives(None)}, "policy 'mine'.*load returned nothing"),
    ("policies", {"load": gives(nn.Linear(2, 2))}, "Linear that lacks decode, .*, temperature;"),
    ("samplers", {"sample": raises}, "sampler 'Mine'.*raised KeyError"),
    ("samplers", {"sample": gives(None)}, "sampler 'Mine'.*sample returned nothing"),
    (
        "samplers",
        {"sample": gives(SampledTokens(torch.zeros(2, 3, dtype=torch.long)))},
        r"sampler 'Mine'.*ids of shape \(2, 3\)",
    ),
]


@pytest.mark.parametrize(
    ("kind", "methods", "said"), FAULTS, ids=[f"{kind}-{n}" for n, (kind, *_) in enumerate(FAULTS)]
)
def test_a_wrong_plugin_is_named(monkeypatch, kind, methods, said):
    broken(monkeypatch, kind, **methods)
    with pytest.raises((PluginError, PolicyError, TaskError), match=said):
        stepped(kind)


def leaves(*_: Any, **__: Any) -> Any:
    raise SystemExit(0)


def fills(*_: Any, **__: Any) -> Any:
    raise MemoryError


def talks(*_: Any, **__: Any) -> Any:
    raise ValueError("words " * 10**6)


METHODS = {
    "segmenters": "segment",
    "estimators": "estimate",
    "advantages": "__call__",
    "process_rewards": "reward",
    "tasks": "verify",
    "policies": "load",
    "samplers": "sample",
}


@pytest.mark.parametrize("kind", list(METHODS))
@pytest.mark.parametrize(
    ("method", "said"),
    [
        (leaves, r"raised SystemExit \(0\)"),
        (fills, "MemoryError"),
        (talks, r"6,000,000 characters"),
    ],
)
def test_a_plugin_that_leaves_fills_memory_or_talks_is_named(monkeypatch, kind, method, said):
    broken(monkeypatch, kind, **{METHODS[kind]: method})
    with pytest.raises((PluginError, TaskError), match=r"[Mm]ine'.*" + said) as caught:
        stepped(kind)
    assert "test_plugin_faults.py" in str(caught.value) or kind == "tasks"
    assert len(str(caught.value)) < 5000


def filled(value: Any, grows: bool = False) -> Any:
    """Returns a method that fills the shape asked for, of whatever arguments have one."""

    def method(self: Any, *given: Any) -> Any:
        # A process reward is told the segmentation last, an estimator before the simulator.
        masks = [each.mask for each in given if hasattr(each, "mask")]
        return torch.full(masks[-1].shape, value, requires_grad=grows)

    return method


@pytest.mark.parametrize("kind", ["estimators", "advantages", "process_rewards"])
@pytest.mark.parametrize(
    ("method", "said"),
    [
        (filled(float("nan")), r"returned nan for \d+ of \d+ segments"),
        (filled(-float("inf")), r"returned -inf for"),
        (filled(True), r"returned torch.bool values; expected real numbers"),
        (filled(1j), r"returned torch.complex64 values"),
        (filled(0.5, grows=True), r"requires a gradient.*Return \.detach\(\)"),
        (lambda *given: filled(0.5)(*given).numpy(), r"returned ndarray; expected Tensor"),
    ],
)
def test_results_that_are_no_plain_finite_numbers_are_the_plugins(monkeypatch, kind, method, said):
    broken(monkeypatch, kind, **{METHODS[kind]: method})
    with pytest.raises(PluginError, match="'mine'.*" + said):
        stepped(kind)


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), 1j, "1", None, torch.ones(1)])
def test_a_reward_that_is_no_finite_number_is_the_tasks(monkeypatch, reward):
    broken(monkeypatch, "tasks", verify=gives(Verdict(reward, False)))
    with pytest.raises(TaskError, match=r"verifier of task 'Mine' .*expected a finite number"):
        stepped("tasks")


def test_a_plugin_that_leaves_where_nothing_names_it_ends_the_command_with_a_sentence(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(registry.policies, "_local", dict(registry.policies._local))
    file = tmp_path / "leaver.py"
    file.write_text(
        "import sys\nimport segcredit\nfrom segcredit.policy.tiny.tiny_lm import Tiny\n\n"
        '@segcredit.register.policy("leaver")\n'
        "class Leaver(segcredit.PolicySource):\n"
        "    def load(self, task, sampler, *, temperature, seed):\n"
        "        policy = Tiny(steps=2).load(task, sampler, temperature=temperature, seed=seed)\n"
        "        policy.decode = lambda *_: sys.exit(0)\n"
        "        return policy\n"
    )
    small = [key for key in SMALL if not key.startswith("policy.")]
    run = ["--code", str(file), "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as end:
        main(["train", "grpo", *small, "policy=leaver", *run])
    assert end.value.code == 1
    assert f"the plug-in file {file}, line 9, in <lambda>, raised SystemExit" in (
        capsys.readouterr().err
    )
    status = (tmp_path / "run" / "status.json").read_text()
    assert '"failed"' in status


REQUIRED = {
    "segmenters": ["causal", "segment"],
    "estimators": ["estimate"],
    "advantages": ["__call__"],
    "process_rewards": ["reward"],
    "tasks": ["evaluation", "prompts", "verify"],
    "environments": ["step"],
    "policies": ["load"],
    "samplers": ["sample"],
}


@pytest.mark.parametrize("kind", list(REQUIRED))
def test_an_incomplete_class_is_refused_when_it_is_looked_up(monkeypatch, kind):
    incomplete = make_dataclass("Incomplete", [], bases=(BASES[kind],), frozen=True)
    monkeypatch.setitem(registry.ALL[kind]._local, "half", incomplete)
    with pytest.raises(RegistryError, match=f"lacks {', '.join(REQUIRED[kind])}; expected every"):
        registry.ALL[kind].find("half")
    assert "lacks" in registry.ALL[kind].info("half").error


def test_a_class_without_the_base_must_have_every_member(monkeypatch):
    @dataclass(frozen=True)
    class Bare:
        def estimate(self, state, rollouts, segmentation, simulator):
            return rollouts.rewards

    monkeypatch.setitem(registry.estimators._local, "bare", Bare)
    with pytest.raises(RegistryError, match="lacks anchor, loss, meet, needs, prompt_weights"):
        registry.estimators.find("bare")


def test_what_is_no_class_or_cannot_be_built_is_refused(monkeypatch):
    monkeypatch.setitem(registry.advantages._local, "function", lambda values: values)
    with pytest.raises(RegistryError, match="'function' is a function; expected a class"):
        registry.advantages.build("function")

    @dataclass(frozen=True)
    class Odd(TextSegmenter):
        causal: bool = True
        words: list[str] = field(default_factory=list)

        def __post_init__(self):
            self.words[0]

        def split(self, text):
            return []

    monkeypatch.setitem(registry.segmenters._local, "odd", Odd)
    with pytest.raises(RegistryError, match="segmenter 'odd' raised IndexError while it was built"):
        registry.segmenters.build("odd")


@pytest.mark.parametrize("offsets", [None, [True], ["a"], [1.5], [3, 1], [99], [-1]])
def test_offsets_that_are_none_are_refused(offsets):
    @dataclass(frozen=True)
    class Split(TextSegmenter):
        causal: bool = True

        def split(self, text):
            return offsets

    from segcredit.testing import ToySimulator

    with pytest.raises(PluginError, match="segmenter 'Split' returned"):
        Split().segment(ToySimulator().enumerate())


def test_files_of_one_stem_are_two_and_one_that_exits_is_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"import sys\nsys.{folder}_was_here = True\n")
    import sys

    load_code([str(tmp_path / "a" / "mine.py"), str(tmp_path / "b" / "mine.py")])
    assert (sys.a_was_here, sys.b_was_here) == (True, True)
    leaving = tmp_path / "leaving.py"
    leaving.write_text("import sys\n\nsys.exit(3)\n")
    with pytest.raises(ConfigError, match=r"leaving\.py, line 3, raised SystemExit"):
        load_code([str(leaving)])
    with pytest.raises(ConfigError, match="no such Python file"):
        load_code([str(tmp_path / "absent.py")])


def test_the_command_line_never_calls_it_a_fault_of_segcredit(tmp_path, monkeypatch, capsys):
    # The file registers for the whole process; no other test is to meet it.
    monkeypatch.setattr(registry.tasks, "_local", dict(registry.tasks._local))
    file = tmp_path / "task.py"
    file.write_text(
        "from dataclasses import dataclass\nimport segcredit\n\n"
        '@segcredit.register.task("unverified")\n@dataclass(frozen=True)\n'
        "class Unverified(segcredit.Task):\n"
        "    def prompts(self, count, generator): return []\n"
        "    def evaluation(self, count): return []\n"
    )
    with pytest.raises(SystemExit):
        main(["train", "grpo", "task=unverified", "--code", str(file), "--output", str(tmp_path)])
    said = capsys.readouterr().err
    assert "task 'unverified'" in said
    assert "lacks verify" in said
    assert "task.py" in said
    assert "fault of segcredit" not in said


def test_a_policy_of_ones_own_that_raises_is_named_by_its_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry.policies, "_local", dict(registry.policies._local))
    file = tmp_path / "torn.py"
    file.write_text(
        "import segcredit\nfrom segcredit.policy.tiny.tiny_lm import Tiny\n\n"
        '@segcredit.register.policy("torn")\n'
        "class Torn(segcredit.PolicySource):\n"
        "    def load(self, task, sampler, *, temperature, seed):\n"
        "        policy = Tiny(steps=2).load(task, sampler, temperature=temperature, seed=seed)\n"
        "        policy.decode = self.decode\n"
        "        return policy\n"
        "    def decode(self, ids, mask):\n"
        "        return {}['text']\n"
    )
    small = [key for key in SMALL if not key.startswith("policy.")]
    run = ["--code", str(file), "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main(["train", "grpo", *small, "policy=torn", *run])
    said = capsys.readouterr().err
    assert f"the plug-in file {file}, line 11, in decode, raised KeyError" in said
    assert "fault of segcredit" not in said
