"""Checks segcredit on an accelerator: one table of parts, results, seconds and peak memory.

    make gpu-check                  # a bare machine: python, NVIDIA's driver, a package index
    make gpu-check DEVICE=cpu       # the same parts in small, to try the script itself
    python benchmarks/gpu_check.py --model FOLDER --parts steps-lean credit-share

It takes the first Python that has all it needs (the one that runs it, then .venv's), or makes an
environment of its own under ``--output``, where every part leaves a log. Each part is a process:
one that fails, hangs or spoils the device leaves the others alone. After ``--limit`` seconds no
part is begun. Exits with 1 where a part failed, or was not come to.

Parts that are tests compare the device with the CPU. ``credit-share`` times segmentation,
advantages and loss beside the policy's passes over the same tokens, forward and backward; sampling
is left out, so that the share of a whole step is smaller. ``steps-*`` are of GRPO, whole steps with
sampling. Without ``--model`` the policy is SmolLM2-135M's shape with random weights. Peak memory is
torch's on CUDA, the process's on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEEDS = "import beartype, hypothesis, pytest, pytest_timeout, skops, ruptures"
RESULT = "RESULT "
DEVICES = "tests/test_devices.py::test_"


@dataclass(frozen=True)
class Part:
    """A part of the check: a function of this file, or tests."""

    name: str
    limit: int
    """Seconds after which it is stopped."""
    tests: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    """More arguments of pytest on the CPU."""


@dataclass(frozen=True)
class Sizes:
    """How large the measurements are."""

    rows: int
    tokens: int
    """The batch of ``credit-share``."""
    prompts: int
    completions: int
    new_tokens: int
    """A step of ``steps-*``."""
    shape: dict[str, Any]


SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
LITTLE = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
SIZES = {
    "cuda": Sizes(512, 2048, 16, 8, 256, SMOLLM2),
    "cpu": Sizes(8, 32, 2, 2, 8, LITTLE),
}
PARTS = (
    Part("machine", 60),
    Part("loop", 60, (DEVICES + "a_step_is_that_of_the_cpu",)),
    Part("plug-ins", 120, ("tests/test_conformance.py", "-k", "another_device")),
    Part("critics", 60, (DEVICES + "a_step_of_every_critic_is_that_of_the_cpu",), ("-k", "head")),
    Part("train", 60),
    Part("credit-share", 120),
    Part("steps-lean", 90),
    Part("steps-generate", 90),
    Part("bfloat16", 60, (DEVICES + "a_step_in_bfloat16",)),
    Part("checkpoint", 60, (DEVICES + "a_run_moves_to_the_cpu",)),
    Part("fsdp", 60, (DEVICES + "fsdp_over_one_process",)),
    Part("audit", 60, (DEVICES + "an_audit_is_that_of_the_cpu",)),
    Part("policies", 60, ("tests/testing/test_policy_kit.py", "-k", "contract"), ("-k", "toy")),
    Part(
        "every-method", 150, (DEVICES + "a_step_of_every_method_is_that_of_the_cpu",), ("-k", "ppo")
    ),
    Part("steps-vllm", 90),
)
"""In the order of their worth: the last ones are what a slow network costs."""


# --- each part, in a process of its own --------------------------------------------------------


class LeftOut(Exception):
    """A part that cannot run here; the text says why."""


def machine(options: argparse.Namespace) -> str:
    import torch

    if options.device == "cpu":
        return f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    found = torch.cuda.get_device_properties(0)
    gigabytes = found.total_memory / 2**30
    return f"{found.name}, {gigabytes:.0f} GiB, torch {torch.__version__}"


def train(options: argparse.Namespace) -> str:
    """A run as users start it, of which the device is one key."""
    from segcredit import load_config
    from segcredit.training.loop import iterate

    config = load_config(
        "sapo",
        [
            f"train.device={options.device}",
            "sampler=lean",
            "policy.steps=40",
            "train.steps=2",
            "evaluate.prompts=16",
            "train.value.warmup_iterations=1",
        ],
    )
    rows = list(iterate(config, options.output / f"run-{os.getpid()}"))
    return f"{len(rows) - 1} steps, reward {rows[-1]['reward']:.3f}"


def model_folder(options: argparse.Namespace, sizes: Sizes) -> Path:
    """The model given, or one with random weights, made once; its tokens are characters."""
    if options.model is not None:
        return options.model
    folder = options.output / f"model-{sizes.shape['hidden_size']}"
    if (folder / "config.json").exists():
        return folder
    import string

    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    count = sizes.shape["vocab_size"]
    texts = ["<end>", "<pad>", *string.printable]
    texts += [f"<{number}>" for number in range(len(texts), count)]
    plain = Tokenizer(models.WordLevel({text: n for n, text in enumerate(texts)}, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex("(?m:.)"), "isolated")
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<end>", pad_token="<pad>", unk_token="?"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        **sizes.shape,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(options: argparse.Namespace, sampler: str) -> list[str]:
    sizes = SIZES[options.device]
    return [
        f"policy={{name='hf', model='{model_folder(options, sizes)}', dtype='bfloat16'}}",
        f"sampler={sampler}",
        f"train.device={options.device}",
        f"rollouts.prompts={sizes.prompts}",
        f"rollouts.completions={sizes.completions}",
        f"rollouts.max_new_tokens={sizes.new_tokens}",
        "evaluate.prompts=1",
        "evaluate.every=100",
        "record.every=100",
        "checkpoint.every=100",
        "train.patience=100",
    ]


def steps(options: argparse.Namespace, sampler: str) -> str:
    """Three steps, of which the last is timed: those before it warm up kernels and allocator."""
    from segcredit import load_config
    from segcredit.training.build import build
    from segcredit.training.credit_assignment import collect
    from segcredit.training.update import improve

    run = build(load_config("grpo", [*settings(options, sampler), "train.steps=3"]))
    for number in (1, 2, 3):
        wait(options)
        begin = time.perf_counter()
        batch = collect(run, number)
        wait(options)
        sampled = time.perf_counter()
        improve(run, batch, number)
        wait(options)
        end = time.perf_counter()
    tokens = batch.sampled.tokens
    speed = tokens / (sampled - begin)
    return (
        f"{end - begin:.2f} s a step of {tokens:,} tokens: {sampled - begin:.2f} to sample and"
        f" score ({speed:,.0f} tokens/s), {end - sampled:.2f} to update"
    )


def credit_share(options: argparse.Namespace) -> str:
    """Credit and loss beside the policy's passes over as many tokens."""
    from credit_step import batch, credit, surrogate

    from segcredit import load_config
    from segcredit.training.build import build
    from segcredit.training.rollouts.completions import micro_batches

    sizes = SIZES[options.device]
    run = build(load_config("grpo", settings(options, "lean")))
    rollouts = batch(sizes.rows, sizes.tokens).to(run.processes.device)
    segmentation, found = credit(rollouts)
    logprobs_BT = rollouts.logprobs.clone().requires_grad_()

    def passes() -> None:
        for rows in micro_batches(rollouts.action_mask, run.config.train.micro_tokens):
            scores = run.actor(rollouts.select(rows))
            (scores.logprobs.sum() + scores.entropies.sum()).backward()
            run.policy.forget_gradients()

    def of_credit() -> object:
        return credit(rollouts)

    def of_loss() -> object:
        return surrogate(rollouts, logprobs_BT, segmentation, found.per_token)

    times = {
        name: timed(work, options, repeats)
        for name, work, repeats in (
            ("credit", of_credit, 5),
            ("loss", of_loss, 5),
            ("passes", passes, 1),
        )
    }
    share = (times["credit"] + times["loss"]) / sum(times.values())
    told = (
        f"{100 * share:.2f} %: credit {1000 * times['credit']:.1f} ms, loss"
        f" {1000 * times['loss']:.1f} ms, passes {times['passes']:.2f} s at {sizes.rows} x"
        f" {sizes.tokens}"
    )
    if options.device == "cuda" and share >= 0.01:
        raise SystemExit(f"goal below 1 % missed: {told}")
    return told


def timed(work: Callable[[], object], options: argparse.Namespace, repeats: int) -> float:
    """Seconds, the median after one time that is not counted."""
    found: list[float] = []
    for _ in range(repeats + 1):
        wait(options)
        begin = time.perf_counter()
        work()
        wait(options)
        found.append(time.perf_counter() - begin)
    return statistics.median(found[1:])


def wait(options: argparse.Namespace) -> None:
    import torch

    if options.device == "cuda":
        torch.cuda.synchronize()


def vllm(options: argparse.Namespace) -> str:
    if options.server is None:
        raise LeftOut("no server: 'segcredit serve' one of the model's folder, give --server URL")
    return steps(options, f"{{name='vllm', url='{options.server}'}}")


WORK: dict[str, Callable[[argparse.Namespace], str]] = {
    "machine": machine,
    "train": train,
    "credit-share": credit_share,
    "steps-lean": lambda options: steps(options, "lean"),
    "steps-generate": lambda options: steps(options, "generate"),
    "steps-vllm": vllm,
}


def tests(arguments: Sequence[str]) -> str:
    """Runs tests in this process, slow ones too."""
    import pytest

    class Counts:
        def __init__(self) -> None:
            self.found = dict.fromkeys(("passed", "failed", "skipped"), 0)

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when == "call" or report.outcome != "passed":
                self.found[report.outcome] += 1

    counts = Counts()
    code = pytest.main(["-m", "", "-p", "no:cacheprovider", *arguments], plugins=[counts])
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.found.items() if count)
    if code:
        raise SystemExit(told or f"pytest ended with {code!r}")
    return told


def peak(device: str) -> float:
    """Gigabytes (2^30 bytes)."""
    import resource

    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def child(options: argparse.Namespace) -> int:
    """Runs one part, and tells the result in the last line."""
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    state = "failed"
    try:
        work = WORK.get(options.run)
        told, state = tests(options.tests) if work is None else work(options), "passed"
    except LeftOut as why:
        told, state = str(why), "left out"
    except SystemExit as why:
        told = str(why)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        told = f"{type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''}"
    print(RESULT + json.dumps({"state": state, "told": told, "peak": peak(options.device)}))
    return 0


# --- the whole ---------------------------------------------------------------------------------


@dataclass
class Row:
    """A line of the table."""

    part: str
    state: str
    told: str
    seconds: float
    peak: float | None = None


def ready(python: str, device: str) -> bool:
    """Tells whether a Python has all that the parts need."""
    asked = f"{NEEDS}, segcredit, torch; import importlib.metadata as m; m.version('segcredit')"
    asked += "; assert torch.cuda.is_available()" if device == "cuda" else ""
    try:
        return not subprocess.run([python, "-c", asked], cwd=ROOT, capture_output=True).returncode
    except OSError:
        return False


def prepared(options: argparse.Namespace) -> tuple[str, str]:
    """Returns a Python with all that the parts need, and how it came to it.

    Raises:
        RuntimeError: there is none; says what the installation said.
    """
    own = options.output / "venv"
    for python in (sys.executable, str(ROOT / ".venv/bin/python"), str(own / "bin/python")):
        if ready(python, options.device):
            return python, f"found: {python}"
    venv.create(own, with_pip=True)
    python = str(own / "bin" / "python")
    packages = ["-e", f"{ROOT}[changepoint,learned,lora]"]
    packages += ["beartype", "hypothesis", "pytest", "pytest-timeout"]
    command = [python, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), *packages]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=options.limit
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["pip failed"])[-1])
    if not ready(python, options.device):
        raise RuntimeError(f"installed, but torch finds no {options.device} with {python}")
    return python, f"installed: {python}"


def run(python: str, part: Part, options: argparse.Namespace, left: float) -> Row:
    """Runs a part in a process of its own."""
    command = [python, __file__, "--run", part.name, "--device", options.device]
    command += ["--output", str(options.output)]
    for name in ("model", "server"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    more = part.small if options.device == "cpu" else ()
    command += ["--tests", *(part.tests + more)] if part.tests else []
    # The parts that are tests compare with the pretended device where CUDA is not asked for.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    environment = {**os.environ, **hidden, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    log = options.output / f"{part.name}.log"
    begin = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=file, env=environment, start_new_session=True
        )
        try:
            process.wait(min(part.limit * options.patience, left))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return Row(part.name, "failed", "took too long", time.monotonic() - begin)
    seconds = time.monotonic() - begin
    lines = log.read_text(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.startswith(RESULT)), None)
    if last is None:
        return Row(part.name, "failed", f"ended with {process.returncode}, see {log}", seconds)
    found = json.loads(last.removeprefix(RESULT))
    return Row(part.name, found["state"], found["told"], seconds, found["peak"])


def table(rows: Sequence[Row]) -> str:
    """The rows as text, in columns."""
    cells = [("part", "result", "seconds", "peak GiB")]
    for row in rows:
        memory = "" if row.peak is None else f"{row.peak:.2f}"
        cells.append((row.part, f"{row.state}: {row.told}", f"{row.seconds:.1f}", memory))
    wide = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = [
        f"{part:<{wide[0]}}  {told:<{wide[1]}}  {seconds:>{wide[2]}}  {memory:>{wide[3]}}"
        for part, told, seconds, memory in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def check(options: argparse.Namespace, parts: Sequence[Part]) -> int:
    """Runs the parts one after the other, prints the table, and returns the exit code."""
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    rows: list[Row] = []

    def told(row: Row) -> None:
        rows.append(row)
        print(f"{row.part}: {row.state}: {row.told} ({row.seconds:.1f} s)", file=sys.stderr)

    try:
        python, how = prepared(options)
        told(Row("install", "passed", how, time.monotonic() - started))
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        told(Row("install", "failed", str(error), time.monotonic() - started))
        parts = ()
    for part in parts:
        left = options.limit - (time.monotonic() - started)
        if left < 5:
            told(Row(part.name, "failed", "no time was left", 0.0))
        else:
            told(run(python, part, options, left))
    print(table(rows))
    return int(any(row.state == "failed" for row in rows))


def main() -> int:
    names = [part.name for part in PARTS]
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--device", choices=sorted(SIZES), default="cuda")
    asked.add_argument("--parts", nargs="+", choices=names, default=names)
    asked.add_argument("--model", type=Path, help="folder of a causal model; none = random weights")
    asked.add_argument("--server", help="address of a vLLM server that has the same model")
    asked.add_argument("--output", type=Path, default=ROOT / "build" / "gpu-check")
    asked.add_argument("--limit", type=float, default=450, help="seconds for all of it")
    asked.add_argument("--patience", type=float, default=1, help="times each part's own limit")
    asked.add_argument("--run", help=argparse.SUPPRESS)
    asked.add_argument("--tests", nargs=argparse.REMAINDER, default=[], help=argparse.SUPPRESS)
    options = asked.parse_args()
    options.output = options.output.resolve()
    if options.run is not None:
        return child(options)
    return check(options, [part for part in PARTS if part.name in options.parts])


if __name__ == "__main__":
    sys.exit(main())
