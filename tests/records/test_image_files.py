"""Images of prompts in a run directory: each once, whole, and found from the completions."""

from __future__ import annotations

import os
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from segcredit import load_config, read_runs, registry, train
from segcredit.config import RunConfig
from segcredit.errors import RecordError, StorageError
from segcredit.protocols import Prompt, Verdict
from segcredit.records.image_files import image_kind, image_name, read_image
from segcredit.records.run_directory import RunRecords
from segcredit.tasks.picture import Picture
from segcredit.training.loop import iterate
from small import SMALL
from tables import assert_same


def content(kind: str = "png", colour: str = "red") -> bytes:
    file = BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, kind)
    return file.getvalue()


def new_run(path: Path) -> RunRecords:
    return RunRecords.create(path, {"seed": 1}, {})


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp", "tiff"])
def test_a_file_is_named_by_its_content_and_kind(kind: str, tmp_path: Path) -> None:
    image = content(kind)
    assert image_kind(image) == ("" if kind == "tiff" else kind)
    name = image_name(image)
    assert name.endswith(".image" if kind == "tiff" else f".{kind}")
    assert name == image_name(bytes(image)) != image_name(content(kind, "blue"))
    new_run(tmp_path).image(image)
    assert read_image(tmp_path, name) == image


def test_an_image_is_written_once_and_again_where_it_was_cut_short(tmp_path: Path) -> None:
    run, image = new_run(tmp_path), content()
    file = tmp_path / "images" / image_name(image)
    run.image(image)
    before = file.stat()
    run.image(image)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert os.listdir(file.parent) == [file.name]
    file.write_bytes(image[:5])
    with pytest.raises(RecordError, match=r"is not what was recorded"):
        read_image(tmp_path, file.name)
    run.image(image)
    assert read_image(tmp_path, file.name) == image


@pytest.mark.parametrize("name", ["lost.png", "../config.toml", "/etc/hostname", "", ".."])
def test_what_is_no_image_of_the_run_is_a_sentence(name: str, tmp_path: Path) -> None:
    new_run(tmp_path).image(content())
    with pytest.raises(RecordError, match=r"The image .* cannot be read"):
        read_image(tmp_path, name)


def test_a_full_disk_leaves_nothing_and_a_kill_is_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path)
    run.image(content())
    half = tmp_path / "images" / f".{image_name(content())}.7.tmp"
    half.write_bytes(b"half")
    run.cut_after(-1)
    assert os.listdir(tmp_path / "images") == [image_name(content())]

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("segcredit.atomic_files.os.fsync", full)
    with pytest.raises(StorageError, match="disk or the quota is full"):
        run.image(content("jpeg"))
    assert os.listdir(tmp_path / "images") == [image_name(content())]


# --- in the loop


class Varied(Picture):
    """Rewards any text, by a checksum; some prompts show two pictures."""

    def prompts(self, count: int, generator: Any) -> list[Prompt]:
        return [self._changed(prompt) for prompt in super().prompts(count, generator)]

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        return Verdict(zlib.crc32(f"{prompt.key}{text}".encode()) % 97 / 97, False)

    def _changed(self, prompt: Prompt) -> Prompt:
        if zlib.crc32(prompt.key.encode()) % 2:
            return prompt
        turned = BytesIO()
        Image.open(BytesIO(prompt.images[0])).rotate(180).save(turned, "PNG")
        both = (turned.getvalue(), *prompt.images)
        return Prompt(prompt.key, prompt.text, prompt.answer, both)


def config(*more: str) -> RunConfig:
    sizes = {"image_size": 32, "hidden_size": 32, "intermediate_size": 32, "layers": 1, "heads": 2}
    return load_config(
        "grpo",
        [
            *SMALL,
            'task={name="varied"}',
            'policy={name="tiny_vlm"}',
            *(f"policy.{name}={value}" for name, value in sizes.items()),
            "policy.steps=2",
            "rollouts.completions=3",
            "rollouts.max_new_tokens=8",
            "task.min_steps=1",
            "task.max_steps=1",
            "evaluate.prompts=4",
            *more,
        ],
    )


@pytest.fixture(autouse=True)
def varied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.tasks, "_local", {"varied": Varied})


def test_completions_name_the_images_of_their_own_prompts(tmp_path: Path) -> None:
    found = read_runs(train(config(), tmp_path)).completions
    task = Varied(min_steps=1, max_steps=1)
    shown = {prompt.key: prompt.images for prompt in task.prompts(2000, torch.Generator())}
    for key, names in zip(found["prompt"], found["images"], strict=True):
        assert tuple(read_image(tmp_path, name) for name in names.split()) == shown[key]
    assert set(found["images"].str.split().str.len()) == {1, 2}
    named = {name for names in found["images"] for name in names.split()}
    assert set(os.listdir(tmp_path / "images")) == named
    assert len(named) < len(found)


def test_a_resumed_run_has_the_same_images(tmp_path: Path) -> None:
    whole, stopped = train(config(), tmp_path / "a" / "run"), tmp_path / "b" / "run"
    rows = iterate(config(), stopped)
    next(row for row in rows if row["step"] == 3)
    rows.close()  # pyright: ignore[reportAttributeAccessIssue]
    train(config(), stopped, resume=True)
    assert_same(whole, stopped)
    one, other = (
        {file.name: file.read_bytes() for file in (path / "images").iterdir()}
        for path in (whole, stopped)
    )
    assert one == other


def test_images_are_kept_for_recorded_completions_alone(tmp_path: Path) -> None:
    silent = train(config("record.completions=false"), tmp_path / "silent")
    text = train(load_config("grpo", SMALL), tmp_path / "text")
    assert not (silent / "images").exists()
    assert not (text / "images").exists()
    assert set(read_runs(text).completions["images"]) == {""}
