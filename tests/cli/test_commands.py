"""The real command line, in process; one test in a process of its own."""

import re
import subprocess
import sys
from importlib import metadata

import pytest

import segcredit
from segcredit import read_runs
from segcredit.cli import main
from segcredit.errors import StudyError
from small import SMALL

MINE = '''
from dataclasses import dataclass
import segcredit

@segcredit.register.segmenter("operators")
@dataclass(frozen=True, slots=True)
class Operators(segcredit.TextSegmenter):
    """A sign closes its segment."""

    @property
    def causal(self) -> bool:
        return True

    def split(self, text):
        return [i + 1 for i, c in enumerate(text) if c in "+-"]
'''


LOSS = '''
from dataclasses import dataclass
import segcredit
import torch

@segcredit.register.bound("tanh")
@dataclass(frozen=True, slots=True)
class Tanh(segcredit.Bound):
    """A ratio that saturates at a distance from 1."""

    width: float = 0.2

    def __call__(self, ratio, log_ratio, advantages, logprobs):
        held = 1 + self.width * torch.tanh((ratio - 1) / self.width)
        return segcredit.Bounded(-advantages * held)

@segcredit.register.ratio("half")
@dataclass(frozen=True, slots=True)
class Half(segcredit.Ratio):
    """The square root of the token's ratio."""

    def average(self, log_ratio, action_mask, segmentation):
        return log_ratio / 2

@segcredit.register.aggregation("root_length")
@dataclass(frozen=True, slots=True)
class RootLength(segcredit.Aggregation):
    """A row's sum over the root of its length."""

    def numerator(self, weighted, counts):
        return (weighted.sum(1) / counts.sum(1).clamp(min=1).sqrt()).sum()

    def denominator(self, counts):
        return (counts.sum(1) > 0).sum().to(counts.dtype)
'''


def call(*arguments):
    """Exit status of a command."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    return stopped.value.code


def test_train_and_results(tmp_path, capsys):
    assert call("train", "sapo", *SMALL, "--output", tmp_path / "run") == 0
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    assert f"Next: segcredit report {tmp_path / 'run'}" in shown.replace("\n", " ")
    figure = tmp_path / "curve.png"
    assert call("results", tmp_path, "--by", "method", "--figure", figure) == 0
    assert "sapo" in capsys.readouterr().out
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_version_is_that_of_the_distribution(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out == f"segcredit {segcredit.__version__}\n"
    assert segcredit.__version__ == metadata.version("segcredit")


def test_a_text_is_cut_in_one_line():
    assert segcredit.segment("2+2=4\nSo 4.") == ["2+2=4\n", "So 4."]
    steps = {"name": "steps", "markers": ["numbered"]}
    assert segcredit.segment("1. a\n2. b", steps) == ["1. a\n", "2. b"]
    assert segcredit.segment("") == []
    with pytest.raises(StudyError, match="'Entropy' needs tokens or a model's signals"):
        segcredit.segment("a", "entropy")


LONG = "n" * 300
FAR_OUT = [
    (["config", LONG], "there is no preset 'nnn"),
    (["train", f"{LONG}.toml"], "File name too long"),
    (["results", LONG], "File name too long"),
    (["report", LONG], "File name too long"),
    (["evaluate", "grpo", "--k", "²"], "--k is '²'; expected whole numbers"),
    (["evaluate", "grpo", "--k", "9" * 5000], "expected whole numbers"),
    (["evaluate", "grpo", "--prompts", "99999999999"], "evaluate.prompts: Input should be less"),
    (["config", "grpo", f"seed={'9' * 5000}"], "an integer has more than 4,300 digits"),
    (["config", "grpo", f"task={'[' * 5000}"], "nested too deeply"),
    (["config", "grpo", "a." * 5000 + "b=1"], "has 5001 parts"),
    (["segment", "text", "-s", "{name=" + "[" * 5000], "nested too deeply"),
    (["segment", "text", "-s", LONG], "there is no segmenter"),
    (["results", "{runs}", "--statistic", "foo"], "no statistic 'foo'. There are: mean, iqm"),
    (["results", "{runs}", "--figure", "a.gif"], "no figure format 'gif'"),
    (["results", "{runs}", "--export", "a.csv", "--table", "seps"], "did you mean 'steps'?"),
]


@pytest.mark.parametrize(("arguments", "said"), FAR_OUT, ids=[said for _, said in FAR_OUT])
def test_what_is_far_out_is_a_short_sentence(arguments, said, tmp_path, capsys, monkeypatch):
    def unread(*_, **__):
        raise AssertionError("the runs were read")

    monkeypatch.setattr(
        "segcredit.records.tables.read_runs", unread if "{runs}" in arguments else read_runs
    )
    assert call(*arguments) == 1
    told = capsys.readouterr().err
    assert said in told
    assert "fault of segcredit" not in told
    assert len(told) < 1200


def test_a_line_of_json_that_cannot_be_parsed_is_named(tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    for content, said in (("[" * 10**5, "nested too deeply"), ("9" * 10**5, "4,300 digits")):
        file.write_text(content)
        assert call("segment", file) == 1
        assert re.search(f"texts.jsonl, line 1 is not JSON: .*{said}", capsys.readouterr().err)


def test_a_grid_is_refused_where_one_run_is_trained(tmp_path, capsys):
    file = tmp_path / "grid.toml"
    file.write_text('method = "grpo"\n[grid]\nseeds = 2\n')
    assert call("train", file, *SMALL, "--output", tmp_path / "run") == 1
    assert "the config has a [grid] table" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_unknown_keys_are_counted_and_the_first_are_shown(tmp_path, capsys):
    file = tmp_path / "keys.toml"
    file.write_text('method = "grpo"\n' + "".join(f"key{n} = 1\n" for n in range(20_000)))
    assert call("config", file) == 1
    told = capsys.readouterr().err
    assert "key0: there is no such key" in told
    assert "... and 19,980 more faults." in told


def test_a_grid_with_a_loose_file_and_a_failing_cell(tmp_path, capsys):
    code = tmp_path / "mine.py"
    code.write_text(MINE)
    grid = tmp_path / "grid.toml"
    grid.write_text(
        'method = "sapo"\n[grid]\nsegmenter = ["operators", "whole"]\n'
        '"rollouts.max_new_tokens" = [24, 1]\n'
    )
    options = ["--output", tmp_path / "runs", "--code", code, "--workers", "2"]
    assert call("grid", grid, *SMALL[:3], *SMALL[4:], "train.patience=2", *options) == 1
    shown = capsys.readouterr().out
    assert "2 of 4 cells finished" in shown
    assert "rewards of the first 2 steps were equal" in shown.replace("\n", " ")
    runs = read_runs(tmp_path / "runs")
    assert sorted(runs.runs.status) == ["failed", "failed", "finished", "finished"]
    assert set(runs.runs.segmenter) == {"operators", "whole"}
    assert runs.steps.groupby("run").step.max().max() == 4


def test_a_loss_of_ones_own_is_one_file(tmp_path, capsys):
    code = tmp_path / "loss.py"
    code.write_text(LOSS)
    own = ["loss.ratio=half", "loss.bound={name='tanh', width=0.1}", "loss.aggregate=root_length"]
    wider = ["loss.bound.width=0.3", "train.value.aggregate=root_length"]
    options = ["--code", code, "--output", tmp_path / "run"]
    assert call("train", "sapo", *SMALL, *own, *wider, *options) == 0
    runs = read_runs(tmp_path / "run")
    assert runs.runs[["loss.ratio", "loss.bound", "loss.aggregate"]].iloc[0].tolist() == [
        *("half", "tanh", "root_length"),
    ]
    assert runs.runs["loss.bound.width"].tolist() == [0.3]
    assert runs.steps.loss[1:].notna().all()
    assert runs.steps.ratio_max.max() < 2
    capsys.readouterr()
    assert call("train", "sapo", "loss.bound=tanh", "loss.bound.low=1", *options) == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert "has no option 'low'" in said
    assert "width" in said
    assert call("list") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("tanh", "root_length", "truncated_is", "token_mean"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "sapoo"], "did you mean 'sapo'"),
        (["train", "sapo", "segmenter=newlin"], "did you mean 'newline'"),
        (["train", "sapo", "train.stepz=1"], "did you mean 'steps'"),
        (["train", "sapo", "train.steps=x"], "valid integer"),
        (["train", "grpo", "policy={name='hf', model='/no/such/model'}"], "/no/such/model"),
        (["grid", "sapo"], "no [grid] table"),
        (["results", "/no/such/runs"], "/no/such/runs"),
        (["segment", "some text", "-s", "entropy"], "model's signals"),
        (["segment", "absent.jsonl"], "there is no file"),
        (["train", "sapo", "--code", "absent.py"], "no such Python file"),
    ],
)
def test_bad_input_is_a_sentence(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 1
    shown = capsys.readouterr().err
    assert words in shown
    assert "Traceback" not in shown


def test_an_output_that_holds_another_config_is_refused(tmp_path, capsys):
    assert call("train", "grpo", *SMALL, "--output", tmp_path / "run") == 0
    before = read_runs(tmp_path / "run").steps
    assert call("train", "grpo", *SMALL, "seed=1", "--output", tmp_path / "run") == 1
    assert "seed" in capsys.readouterr().err
    assert read_runs(tmp_path / "run").steps.equals(before)


def test_a_key_of_an_earlier_version_is_a_note_without_a_line_of_our_code():
    command = [sys.executable, "-m", "segcredit", "config", "grpo", "loss.clip_high=0.3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("note: loss.clip_high: is of an earlier version, and read as")
    assert done.stderr.count("\n") == 1


def test_malformed_toml(tmp_path, capsys):
    file = tmp_path / "bad.toml"
    file.write_text("= 3")
    assert call("train", file) == 1
    assert "is not TOML" in capsys.readouterr().err


def test_config_prints_toml_that_is_read_back(tmp_path, capsys):
    import tomllib

    from segcredit import load_config

    assert call("config", "sapo") == 0
    assert load_config(tomllib.loads(capsys.readouterr().out)) == load_config("sapo")


def test_list_shows_every_kind(capsys):
    assert call("list") == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("entropy", "critic", "gae", "arithmetic", "tiny"))
    assert call("list", "--check") == 0
    assert capsys.readouterr().out == shown


def test_list_follows_a_plugin_through_its_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("segcredit.cli.out.width", 400)
    package = tmp_path / "outside_rules" / "deep"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("raise SystemExit('was run')")
    (package / "__init__.py").write_text("from ..rules import Rule as Mine\nfrom . import torn\n")
    (package.parent / "rules.py").write_text('class Rule:\n    """A rule.\n\n    More."""\n')
    (package / "torn.py").write_text("class Torn:\n  def")
    rules = {
        "mine": "outside_rules.deep:Mine",
        "torn": "outside_rules.deep.torn:Torn",
        "gone": "outside_rules.deep.gone:Gone",
    }
    offer(tmp_path, monkeypatch, "outside", "segcredit.segmenters", rules)
    assert call("list") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"mine A rule. outside 1.0 {package / '__init__.py'}" in shown
    assert "'torn' (entry point 'outside_rules.deep.torn:Torn' of outside 1.0) cannot be" in shown
    assert "there is no module 'outside_rules.deep.gone'" in shown


def test_segment_shows_several_side_by_side(tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "one\\ntwo"}\n{"text": ""}\n{"text": "three"}\n')
    assert call("segment", file, "-s", "newline") == 0
    assert "newline: 3 segments in 3 texts" in capsys.readouterr().out
    file.write_text('{"text": "one"}\n{"body": "two"}\n')
    assert call("segment", file) == 1
    assert "line 2 has no field 'text'" in capsys.readouterr().err


def test_importing_a_type_is_light():
    program = (
        "import sys; from segcredit import RolloutBatch, Segmentation;"
        "print([m for m in ('pandas', 'transformers', 'spacy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


COMMANDS = '''
"""Commands of a package outside."""

def greet(name: str, times: int = 1):
    """Say hello to somebody.

    More than once, if asked.
    """
    for _ in range(times):
        print(f"hello {name}")

def refuse(path: str):
    """Never does it."""
    from segcredit.errors import StudyError
    raise StudyError(f"{path} [is] refused.")

def untyped(what: int | str):
    """Typer knows no such type."""

number = 3
'''


def offer_commands(folder, monkeypatch, distribution, **values):
    names = {name.replace("_", "-"): value for name, value in values.items()}
    offer(folder, monkeypatch, distribution, "segcredit.commands", names)


def offer(folder, monkeypatch, distribution, group, values):
    """A distribution with entry points, as pip leaves it in a folder of the path."""
    place = folder / f"{distribution}-1.0.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in values.items()]
    (place / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def offered(tmp_path, monkeypatch):
    (tmp_path / "outside_commands.py").write_text(COMMANDS)
    (tmp_path / "broken_commands.py").write_text("import no_such_package\n")
    offer_commands(
        tmp_path,
        monkeypatch,
        "outside",
        greet_them="outside_commands:greet",
        refuse="outside_commands:refuse",
        untyped="outside_commands:untyped",
        number="outside_commands:number",
        broken="broken_commands:main",
        config="outside_commands:greet",
        twice="outside_commands:greet",
    )
    offer_commands(tmp_path, monkeypatch, "second", twice="outside_commands:refuse")
    yield
    for name in ("outside_commands", "broken_commands"):
        sys.modules.pop(name, None)


def test_commands_of_plugins_are_listed_without_being_imported(offered, capsys):
    assert call("--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "greet-them From outside 1.0" in shown
    assert "broken From outside 1.0" in shown
    assert not {"outside_commands", "broken_commands"} & set(sys.modules)
    assert call("config") == 0  # one of ours, whatever others call theirs
    assert "sapo" in capsys.readouterr().out
    assert not {"outside_commands", "broken_commands"} & set(sys.modules)


def test_a_command_of_a_plugin_runs_with_its_own_arguments_and_help(offered, capsys):
    assert call("greet-them", "Ada", "--times", 2) == 0
    assert capsys.readouterr().out == "hello Ada\nhello Ada\n"
    assert call("greet-them", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(r"Usage: .*greet-them \[OPTIONS\]", shown)
    assert "Say hello to somebody." in shown
    assert "--times" in shown
    assert call("greet-them") == 2
    assert "Missing argument" in capsys.readouterr().err
    assert call("refuse", "this") == 1
    assert capsys.readouterr().err == "error: this [is] refused.\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", "failed to import: ModuleNotFoundError: No module named 'no_such_package'"),
        ("number", "(entry point 'outside_commands:number' of outside 1.0) is int; expected"),
        ("untyped", "cannot be called from the command line"),
        ("twice", "is offered by two distributions, outside 1.0 and second 1.0"),
    ],
)
def test_a_command_that_cannot_be_had_is_a_sentence(offered, capsys, name, words):
    for arguments in ([name], [name, "--help"]):
        assert call(*arguments) == 1
        shown = capsys.readouterr().err
        assert f"command {name!r}" in shown
        assert words in shown
        assert "Traceback" not in shown


def test_list_reads_what_it_does_not_import(offered, capsys, monkeypatch):
    monkeypatch.setattr("segcredit.cli.out.width", 400)
    assert call("list") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "greet-them Say hello to somebody." in shown
    assert "offered by two distributions, outside 1.0 and second 1.0" in shown
    assert "no_such_package" not in shown
    assert not {"outside_commands", "broken_commands"} & set(sys.modules)


def test_list_check_imports_everything_and_shows_what_fails(offered, capsys, monkeypatch):
    monkeypatch.setattr("segcredit.cli.out.width", 400)
    assert call("list", "--check") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "greet-them Say hello to somebody." in shown
    assert "No module named 'no_such_package'" in shown
    assert "outside_commands" in sys.modules


def test_help_waits_for_no_heavy_import():
    program = (
        "import sys; from segcredit.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'pandas', 'spacy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr


def test_an_interruption_says_why_and_how_to_go_on(monkeypatch, capsys):
    def stopped(*given, **named):
        raise KeyboardInterrupt("process 1 of 2 was lost.")

    monkeypatch.setattr("segcredit.config.load_config", stopped)
    with pytest.raises(SystemExit, match="130"):
        main(["config", "sapo"])
    said = " ".join(capsys.readouterr().err.split())
    assert said == (
        "process 1 of 2 was lost. What was recorded is intact; to go on: segcredit config sapo"
    )
