"""Checkpoints: whole or absent, and loaded without running code."""

from __future__ import annotations

import errno
import os
import random
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segcredit.errors import RecordError
from segcredit.records import checkpoint


def state(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "policy": {"weight": torch.full((2, 3), float(step))},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "groups": [{"lr": 1e-3}]},
        "betas": (0.9, None),
    }


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "checkpoints", 10, state(10))
    assert path.name == "step_000010.pt"
    found = checkpoint.load(path)
    assert found["policy"]["weight"].equal(torch.full((2, 3), 10.0))
    assert found["optimizer"]["groups"] == [{"lr": 1e-3}]
    assert found["betas"] == (0.9, None)


def test_an_optimizer_can_be_saved(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved = {"policy": model.state_dict(), "optimizer": optimizer.state_dict()}
    found = checkpoint.load(checkpoint.save(tmp_path, 1, saved))
    optimizer.load_state_dict(found["optimizer"])


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 1_000_000):
        checkpoint.save(tmp_path, step, state(step))
    assert names(tmp_path) == ["step_000002.pt", "step_1000000.pt"]
    assert checkpoint.found(tmp_path)[-1] == tmp_path / "step_1000000.pt"


def test_a_run_that_went_back_gives_up_its_later_checkpoints(tmp_path: Path) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, step, state(step))
    checkpoint.save(tmp_path, 5, state(5))
    assert names(tmp_path) == ["step_000005.pt"]


def test_latest_ignores_what_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.found(tmp_path / "absent") == []
    (tmp_path / ".step_000030.pt.7.tmp").touch()
    (tmp_path / "step_000030.pt.bak").touch()
    assert checkpoint.found(tmp_path) == []
    path = checkpoint.save(tmp_path, 1, state(1))
    assert checkpoint.found(tmp_path) == [path]
    assert names(tmp_path) == ["step_000001.pt", "step_000030.pt.bak"]


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_file_names_the_earlier_one(tmp_path: Path, content: bytes | None) -> None:
    checkpoint.save(tmp_path, 1, state(1))
    path = checkpoint.save(tmp_path, 2, state(2))
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(RecordError, match=r"delete it and resume from .* step_000001\.pt"):
        checkpoint.load(path)


def test_a_damaged_file_without_an_earlier_one_says_so(tmp_path: Path) -> None:
    path = tmp_path / "step_000002.pt"
    path.write_bytes(b"\x80\x02.")
    with pytest.raises(RecordError, match="no earlier one"):
        checkpoint.load(path)


def run_state(step: Any) -> dict[str, Any]:
    parts = ("policy", "estimator", "prompts", "further_prompts")
    return {"row": {"step": step}, **{name: {"w": torch.ones(99)} for name in parts}}


def test_every_bit_of_a_checkpoint_counts(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 2, run_state(2))
    whole, chosen = path.read_bytes(), random.Random(0)
    places = [chosen.randrange(8 * len(whole)) for _ in range(100)]
    # Of the end, where the checksum is, all.
    for place in [*places, *range(8 * (len(whole) - 103), 8 * len(whole), 3)]:
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(RecordError, match="cannot be read"):
            checkpoint.load_run(path)
    path.write_bytes(whole)
    assert checkpoint.load_run(path)["row"] == {"step": 2}


def test_a_checkpoint_of_the_version_before_is_held_against_the_sums_of_its_parts(
    tmp_path: Path,
) -> None:
    path = tmp_path / "step_000002.pt"
    torch.save(run_state(2), path)
    assert checkpoint.load_run(path)["policy"]["w"].equal(torch.ones(99))
    whole = bytearray(path.read_bytes())
    whole[whole.index(torch.ones(99).numpy().tobytes()) + 50] ^= 1
    path.write_bytes(whole)
    with pytest.raises(RecordError, match="is not what was saved"):
        checkpoint.load_run(path)


def test_a_checkpoint_that_could_unpack_to_any_size_is_refused(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, 2, run_state(2))
    path = tmp_path / "step_000003.pt"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(RecordError, match="compressed"):
        checkpoint.load(path)


@pytest.mark.parametrize("step", [-5, 10**18, 1.0, True, "2", None])
def test_a_step_that_no_run_has_is_refused(tmp_path: Path, step: Any) -> None:
    torch.save(run_state(step), tmp_path / "mine.pt")
    with pytest.raises(RecordError, match=f"of step {step!r}, which no run has"):
        checkpoint.load_run(tmp_path / "mine.pt")


@pytest.mark.parametrize("content", [{}, {"row": []}, {"policy": {}}, torch.ones(2), [1]])
def test_what_is_no_run_s_checkpoint_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "theirs.pt")
    with pytest.raises(RecordError, match=r"it (lacks|holds a)"):
        checkpoint.load_run(tmp_path / "theirs.pt")


def test_a_checkpoint_under_another_step_s_name_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 2, run_state(2)).rename(tmp_path / "step_000004.pt")
    with pytest.raises(RecordError, match="step 2, which is not that of its name"):
        checkpoint.load_run(tmp_path / "step_000004.pt")


@pytest.mark.parametrize("odd", [np.float64(1.0), defaultdict(int), np.ones(2), object()])
def test_what_could_not_be_loaded_is_refused_when_saved(tmp_path: Path, odd: Any) -> None:
    with pytest.raises(RecordError, match=r"hold state\['estimator'\]\[0\]"):
        checkpoint.save(tmp_path, 1, {"estimator": [odd]})
    assert not names(tmp_path)


def test_a_full_disk_leaves_the_earlier_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoint.save(tmp_path, 1, state(1))
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(RecordError, match="is full"):
        checkpoint.save(tmp_path, 2, state(2), keep=1)
    assert names(tmp_path) == ["step_000001.pt"]


def test_a_write_that_fails_inside_the_archive_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RecordError, match="could not be written"):
        checkpoint.save(tmp_path, 1, state(1))
    assert not names(tmp_path)


def test_keep_must_leave_one(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="keep is 0"):
        checkpoint.save(tmp_path, 1, state(1), keep=0)
