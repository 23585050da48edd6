"""``segcredit demo``: from an empty folder to a table, a picture, a page and what to do next."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path

import pytest
import tomli_w

import segcredit.study.grid
from segcredit import read_runs
from segcredit.cli import main
from segcredit.study.grid import DEMO, plan
from small import SMALL


def call(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert not stopped.value.code, arguments


def test_twenty_runs_share_one_policy_and_one_critic(tmp_path: Path) -> None:
    cells = plan(DEMO, tmp_path)
    assert len(cells) == 20
    assert {cell.config.starting_seed for cell in cells} == {0}
    # Whoever stops it early has as many runs of each arm.
    assert [cell.config.seed for cell in cells[:4]] == [0] * 4
    assert len({json.dumps(c.config.policy) for c in cells}) == 1


def test_a_demo_ends_in_a_picture_a_page_and_commands_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tomllib.loads(DEMO.read_text(encoding="utf-8"))
    small = tomllib.loads("\n".join(each.replace("={", " = {") for each in SMALL))
    pretraining = {"completions": 16, "epochs": 1}
    small["train"] |= {"steps": 2, "value": {"warmup_iterations": 0, "pretraining": pretraining}}
    small["task"] |= keys["task"]
    seeds = {"seed": [0, 1]}
    keys |= {**small, "grid": {"zip": [seeds, keys["grid"]["zip"][1]]}}
    source = tmp_path / "source" / DEMO.name
    source.parent.mkdir()
    source.write_text(tomli_w.dumps(keys), encoding="utf-8")
    monkeypatch.setattr(segcredit.study.grid, "DEMO", source)
    monkeypatch.chdir(tmp_path)
    call("demo")
    shown = capsys.readouterr().out
    assert "8 of 8 cells finished, in demo" in shown
    assert (tmp_path / "demo" / "learning_curves.png").stat().st_size > 10_000
    assert "<html" in (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    runs = read_runs("demo").runs
    assert len(runs) == 8
    commands = shown.partition("To try next:\n")[2].splitlines()
    assert len(commands) == 3
    for command in commands:
        call(*shlex.split(command, comments=True)[1:])
    assert (tmp_path / "segcredit-my-rule").is_dir()
    # Run again it trains nothing, and leaves the user's copy of the grid as it is.
    (tmp_path / "demo" / DEMO.name).write_text("changed", encoding="utf-8")
    capsys.readouterr()
    assert (tmp_path / "mine").is_dir()
    call("demo", "--json")
    document = json.loads(capsys.readouterr().out)
    assert {row["state"] for row in document["cells"]} == {"finished"}
    assert len(document["summary"]) == 4
    assert (tmp_path / "demo" / DEMO.name).read_text(encoding="utf-8") == "changed"
