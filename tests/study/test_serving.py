"""What ``segcredit serve`` refuses and starts; a server that runs is in tests/vllm."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from segcredit.errors import StudyError
from segcredit.study.serving import Place, serve
from small import SMALL

PRETENDER = """#!{python}
import json, os, sys
if sys.argv[1] == "-c":
    print({cpu})
else:
    folder = sys.argv[sys.argv.index("--model") + 1]
    said = [sys.argv[1:], os.environ["VLLM_SERVER_DEV_MODE"], sorted(os.listdir(folder))]
    open({file!r}, "w").write(json.dumps(said))
    sys.exit(3)
"""
"""A Python whose vLLM writes down how it was started, and ends."""


def free() -> Place:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return Place(port=one.getsockname()[1])


def started(tmp_path: Path, source: str, *overrides: str, cpu: bool = True) -> Any:
    python, file = tmp_path / "python", tmp_path / "said.json"
    python.write_text(PRETENDER.format(python=sys.executable, cpu=cpu, file=str(file)))
    python.chmod(0o755)
    with pytest.raises(StudyError, match=r"ended with status 3.*policy\.heads=2"):
        serve(
            source,
            overrides,
            python=str(python),
            place=free(),
            more=["--max-num-seqs", "9"],
            ready=lambda url: None,
        )
    return json.loads(file.read_text())


@pytest.mark.parametrize("cpu", [True, False])
def test_a_folder_is_served_with_the_options_that_training_needs(tmp_path: Path, cpu: bool) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    words, mode, _ = started(tmp_path, str(model), cpu=cpu)
    assert words[:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert words[words.index("--model") + 1] == str(model)
    assert words[words.index("--dtype") + 1] == "bfloat16"
    assert words[words.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert "--enable-scale-out" in words
    assert ("--no-enable-chunked-prefill" in words) == cpu
    assert words[-2:] == ["--max-num-seqs", "9"]
    assert mode == "1"


def test_the_policy_of_a_config_is_written_first(tmp_path: Path) -> None:
    options = ['sampler={name="vllm", url="http://127.0.0.1:8000"}']
    words, _, files = started(tmp_path, "grpo", *SMALL, *options)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {*files}
    assert words[words.index("--dtype") + 1] == "float32"


def test_an_environment_without_vllm_is_a_sentence(tmp_path: Path) -> None:
    for python in (sys.executable, str(tmp_path / "none")):
        with pytest.raises(StudyError, match=r"has no vLLM.*-m venv vllm-env.*--python"):
            serve("grpo", python=python, ready=lambda url: None)


def test_a_port_that_is_taken_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = Place(port=taken.getsockname()[1])
        python = tmp_path / "python"
        python.write_text(PRETENDER.format(python=sys.executable, cpu=True, file=""))
        python.chmod(0o755)
        with pytest.raises(StudyError, match=f"port {place.port} of 127.0.0.1 is taken"):
            serve(str(tmp_path), python=str(python), place=place, ready=lambda url: None)
