"""What a vLLM server says, recorded from a real one, and a server that says it again.

    python tests/vllm_wire.py FOLDER                 writes the model that was recorded
    python tests/vllm_wire.py --record URL [BARE]    records it again

The second needs a server of that model that ``segcredit serve`` started and, to record faults
again, one that was started by hand: with VLLM_SERVER_DEV_MODE=1 and no option beside the model.
"""

from __future__ import annotations

import json
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from segcredit.policy.causal_lm import CausalPolicy
from segcredit.policy.samplers.generate import Generate
from segcredit.policy.samplers.vllm import VLLM
from segcredit.policy.tiny.warm_start import character_tokenizer
from segcredit.types import Generation, SamplingParams

RECORDED = Path(__file__).parent / "fixtures" / "vllm_wire.json"
PROMPTS = ["1+2=", "1+2=", "3+4+5=", "7="]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cool": {"temperature": 0.7},
    "few": {"suppressed": 10},  # more ids than are left
    "greedy": {"greedy": True},
    "stopped": {"stop": ("3",)},
}
GETS = ("/weight_info", "/server_info?config_format=json")
READ = {
    "model_config": ("logprobs_mode", "max_model_len"),
    "scheduler_config": ("enable_chunked_prefill", "max_num_seqs"),
    "device_config": ("device",),
}
SHARPNESS = {"a": 1.0, "b": 5.0}
"""Two sets of weights, by a factor of the output layer's."""


def policy(sampler: Any, weights: str = "a") -> CausalPolicy:
    """A Llama whose weights are sines: the same everywhere, and far from uniform."""
    tokenizer = character_tokenizer([*"0123456789+="])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,  # the smallest that vLLM has for CPUs
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for place, x in enumerate(model.parameters()):
            if x.ndim > 1:
                x.copy_(torch.sin(torch.arange(x.numel()) * 1.7 + place).view_as(x) * 0.4)
    made = CausalPolicy(model, tokenizer, sampler, suppressed_ids=[tokenizer.bos_token_id])
    return turned_into(made, weights)


def turned_into(made: CausalPolicy, weights: str) -> CausalPolicy:
    layer = made.model.get_output_embeddings().weight
    with torch.no_grad():
        layer.copy_(output_layer(weights, layer))
    return made


def output_layer(weights: str, like: torch.Tensor) -> torch.Tensor:
    return torch.sin(torch.arange(like.numel()) * 1.7).view_as(like) * 0.4 * SHARPNESS[weights]


def completions(made: CausalPolicy, case: str) -> Generation:
    chosen = dict(CASES[case])
    made.temperature = chosen.pop("temperature", 1.0)
    never = [made.tokenizer.bos_token_id, *range(5, 5 + chosen.pop("suppressed", 0))]
    made.suppressed_ids = tuple(never)
    return made.generate(
        *made.encode(PROMPTS),
        params=SamplingParams(max_new_tokens=8, **chosen),
        generator=torch.Generator().manual_seed(0),
    )


class Played(ThreadingHTTPServer):
    """A server that answers as the recorded one did, by the weights that it was made to read."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.version = "default"
        self.weights = "none yet"
        self.asked: list[str] = []
        """The paths of all requests."""
        self.faults: list[tuple[str, Any]] = []
        """What happens to the next requests of a path: a status and text, or a call that may end
        in nothing being answered."""
        self.lasting: dict[str, tuple[int, str]] = {}
        """What is always answered in the place of what was recorded."""

    @cached_property
    def recorded(self) -> dict[str, Any]:
        return json.loads(RECORDED.read_text())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def restart(self) -> None:
        self.version, self.weights = "default", "none yet"

    def reply(self, path: str, body: Any) -> tuple[int, str] | None:
        self.asked.append(path)
        for fault in [fault for fault in self.faults if fault[0] == path][:1]:
            self.faults.remove(fault)
            return fault[1]() if callable(fault[1]) else fault[1]
        return self.lasting.get(path) or (200, json.dumps(self.answer(path, body)))

    def answer(self, path: str, body: Any) -> Any:
        if path == "/weight_info":
            return {"weight_version": self.version}
        if path == "/update_weight_version":
            self.version = body["new_version"]
            return {"success": True, "new_version": self.version}
        if path == "/inference/v1/generate":
            one = next(
                known
                for known in self.recorded["draws"]
                if known["weights"] == self.weights and known["request"] == body
            )
            text = json.dumps(one["answer"]).replace("VERSION", self.version)
            return json.loads(text)
        if path == "/collective_rpc" and body["method"] == "reload_weights":
            (file,) = Path(body["kwargs"]["weights_path"]).glob("*.safetensors")
            there = load_file(file)["lm_head.weight"]
            self.weights = next(n for n in SHARPNESS if torch.equal(output_layer(n, there), there))
        if path == "/collective_rpc":
            return self.recorded[body["method"]]
        return self.recorded[path]


class _Answers(BaseHTTPRequestHandler):
    server: Played

    def do_GET(self) -> None:
        self.respond(None)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"] or 0)
        self.respond(json.loads(self.rfile.read(length) or "null"))

    def respond(self, body: Any) -> None:
        reply = self.server.reply(self.path, body)
        if reply is None:
            return  # the connection closes without a word
        self.send_response(reply[0])
        self.end_headers()
        self.wfile.write(reply[1].encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def listening(server: ThreadingHTTPServer) -> Any:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Recorder(Played):
    """Passes requests on to a real server, and keeps what it said."""

    def __init__(self, real: str) -> None:
        super().__init__()
        self.real, self.now = real, "a"
        self.kept: dict[str, Any] = {"draws": []}

    def reply(self, path: str, body: Any) -> tuple[int, str]:
        status, text = asked(self.real + path, body, "GET" if path in GETS else "POST")
        if status == 200 and path == "/inference/v1/generate":
            answer = json.loads(text.replace(self.version, "VERSION"))
            answer = {"choices": answer["choices"]}
            self.kept["draws"].append({"weights": self.now, "request": body, "answer": answer})
        elif status == 200 and path == "/update_weight_version":
            self.version = body["new_version"]
        elif status == 200 and path == "/server_info?config_format=json":
            self.kept[path] = trimmed(text)
        elif status == 200 and path != "/weight_info":
            key = body["method"] if path == "/collective_rpc" else path
            self.kept[key] = json.loads(text)
        return status, text


def trimmed(info: str) -> dict[str, Any]:
    """What the sampler reads of a server's settings; the rest names folders of its machine."""
    whole = json.loads(info)["vllm_config"]
    return {"vllm_config": {part: {k: whole[part][k] for k in keys} for part, keys in READ.items()}}


def asked(url: str, body: Any = None, method: str | None = None) -> tuple[int, str]:
    sent = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, sent, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def record(url: str) -> dict[str, Any]:
    """Draws every case from a real server; returns what it said."""
    with listening(Recorder(url)) as recorder:
        made = policy(VLLM(recorder.url))
        for case in CASES:
            completions(made, case)
        recorder.now = "b"
        turned_into(made, "b").sync()
        completions(made, "plain")
    return recorder.kept


def record_faults(url: str, bare: str) -> dict[str, Any]:
    """Makes real servers say what they say when something is wrong; the first is useless then."""
    one = {"token_ids": [3, 4], "sampling_params": {"max_tokens": 2}}
    reload = {"method": "reload_weights", "kwargs": {"weights_path": "/nowhere"}}
    return {
        "no scale-out": asked(f"{bare}/inference/v1/generate", one),
        "no dev mode": asked(f"{bare}/an endpoint of dev mode".replace(" ", "_")),
        "bare": trimmed(asked(f"{bare}/server_info?config_format=json")[1]),
        "too long": asked(f"{url}/inference/v1/generate", one | {"token_ids": [3] * 99}),
        "no folder": asked(f"{url}/collective_rpc", reload),
    }


if __name__ == "__main__":
    if sys.argv[1] == "--record":
        url, *bare = sys.argv[2:]
        found = record(url)
        faults = record_faults(url, *bare) if bare else json.loads(RECORDED.read_text())["faults"]
        RECORDED.write_text(json.dumps(found | {"faults": faults}) + "\n")
    else:
        from segcredit.study.export_policy import write_policy

        write_policy(policy(Generate()), Path(sys.argv[1]), merged=False)
