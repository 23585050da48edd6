"""Task dataset: sources, templates, rows that are not as they should be, and order."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from segcredit import load_config, registry
from segcredit.errors import TaskError
from segcredit.protocols import Prompt
from segcredit.tasks.dataset import Dataset

GSM8K = {"answer_pattern": r"####\s*(.+)", "key": "id"}
FEW = 40


def gsm8k(folder: Path, count: int = FEW, first: int = 0) -> str:
    """Rows like those of GSM8K."""
    rows = [
        {
            "id": f"g{n}",
            "question": f"Ann has {n} pens and buys {n + 1}. How many has she?",
            "answer": f"She has {n}+{n + 1} = <<{n}+{n + 1}={2 * n + 1}>>{2 * n + 1} pens.\n"
            f"#### {2 * n + 1:,}",
        }
        for n in range(first, first + count)
    ]
    return lines(folder / f"gsm8k_{first}.jsonl", rows)


def lines(file: Path, rows: list[Any]) -> str:
    file.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return str(file)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(prompts: Any) -> list[int]:
    return [int(prompt.key.removeprefix("g")) for prompt in prompts]


def test_gsm8k_few_shot_plain_text(tmp_path: Path) -> None:
    task = Dataset(
        gsm8k(tmp_path),
        **GSM8K,
        prompt="Question: {question}\nAnswer:",
        solution=" {answer}",
        system="Solve.",
        shots=2,
        until="\n\n",
        verifier="exact",
        final=r"####\s*(\S+)",
    )
    training, held_out = task.stream(0).take(20, generator()), task.evaluation(2)
    for prompt in [*training, *held_out]:
        head, first, second, asked = prompt.text.split("\n\n")
        assert head == "Solve."
        assert first.startswith(
            "Question: Ann has 0 pens and buys 1. How many has she?\nAnswer: She"
        )
        assert first.endswith("\n#### 1")
        assert second.endswith("\n#### 3")
        number = int(prompt.key[1:])
        assert (
            asked
            == f"Question: Ann has {number} pens and buys {number + 1}. How many has she?\nAnswer:"
        )
        assert prompt.answer == str(2 * number + 1)
        assert prompt.chat is None
    assert {"g0", "g1"}.isdisjoint(prompt.key for prompt in [*training, *held_out])
    answer = training[0].answer
    for text, truncated, right in [
        (f" It is so.\n#### {answer}", False, True),
        (f"\n It is so.\n#### {answer}\n\nQuestion: More?\n#### 0", True, True),
        (f" It is so.\n#### {answer}", True, False),
        (f" It is so.\n\n#### {answer}", False, False),
        ("#### 0", False, False),
    ]:
        verdict = task.verify(training[0], text, truncated=truncated)
        assert (verdict.correct, verdict.reward) == (right, float(right)), text
        assert (verdict.answer or "") == (answer if right else "0" if text == "#### 0" else "")


def test_math_in_a_chat_with_examples_of_the_config(tmp_path: Path) -> None:
    rows = [{"problem": f"What is ${n}/2$?", "answer": f"\\frac{{{n}}}{{2}}"} for n in range(20)]
    task = Dataset(
        lines(tmp_path / "math.jsonl", rows),
        prompt="{problem} Put it into \\boxed{{}}.",
        chat=True,
        system="You are careful.",
        shots=(("1+1?", " \\boxed{2}"),),
    )
    (prompt,) = task.prompts(1, generator())
    number = int(prompt.key)
    assert prompt.text == f"What is ${number}/2$? Put it into \\boxed{{}}."
    assert prompt.chat == (
        ("system", "You are careful."),
        ("user", "1+1?"),
        ("assistant", "\\boxed{2}"),
    )
    verdict = task.verify(prompt, f"So \\boxed{{{number / 2}}}", truncated=False)
    assert (verdict.correct, verdict.answer) == (True, prompt.answer)
    halves = {task.verify(prompt, said, truncated=False).answer for said in ("77/2", "$38.5$")}
    assert halves == {"38.5"}
    assert task.verify(prompt, "no idea", truncated=False).answer == ""


def write(kind: str, folder: Path, rows: dict[str, list[Any]]) -> str:
    datasets: Any = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict(rows)
    inner = folder / "data"
    inner.mkdir()
    if kind == "folder":
        made.to_csv(str(inner / "train.csv"))
        return str(inner)
    if kind == "saved":
        made.save_to_disk(str(inner))
        return str(inner)
    file = str(inner / f"rows.{kind}")
    if kind == "json":
        Path(file).write_text(json.dumps(list(made)))
    elif kind == "jsonl":
        lines(Path(file), list(made))
    elif kind == "tsv":
        made.to_csv(file, sep="\t")
    else:
        getattr(made, f"to_{kind}")(file)
    return file


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "folder", "saved"])
def test_every_kind_of_source_gives_the_same_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, streaming: bool
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {"q": [f"{n}, and?" for n in range(FEW)], "a": [str(n) for n in range(FEW)]}
    source = write(kind, tmp_path, rows)
    task = Dataset(source, prompt="{q}", answer="a", verifier="exact", streaming=streaming)
    held_out = task.evaluation(3)
    stream = task.stream(0)
    training = [prompt for _ in range(6) for prompt in stream.take(5, generator())]
    for prompt in [*held_out, *training]:
        assert (prompt.text, prompt.answer) == (f"{prompt.key}, and?", prompt.key)
    assert len({prompt.key for prompt in [*held_out, *training]}) == 33


@pytest.mark.parametrize(
    ("final", "text", "said"),
    [
        ("whole", " a\nb ", "a\nb"),
        ("first_line", "\n\n 12 \n13", "12"),
        ("last_line", "11\n 12 \n\n", "12"),
        ("answer_line", "The answer is 3.\nNo, Answer: **4**.", "4"),
        ("answer_line", "I cannot say", ""),
        ("answer_tag", "<answer>3</answer> or <answer>\n4\n</answer>", "4"),
        (r"-?\d+", "from 3 to -4.", "-4"),
    ],
)
def test_where_the_final_answer_stands(tmp_path: Path, final: str, text: str, said: str) -> None:
    task = Dataset(gsm8k(tmp_path), verifier="exact", final=final)
    verdict = task.verify(Prompt("p", "?", said), text, truncated=False)
    assert verdict.correct == bool(said)
    assert verdict.answer == " ".join(said.split())


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B) is right, since (A) is not", "B"),
        ("A cat has (C) four legs. The answer is (B).", "B"),
        ("Answer: **D**", "D"),
        ("so \\boxed{\\text{C}}", "C"),
        ("I take\nC) the third", "C"),
        ("It must be E.", "E"),
        ("Answer is A. No, the answer is B", "B"),
        ("nothing", ""),
    ],
)
def test_the_letter_of_a_choice(tmp_path: Path, text: str, letter: str) -> None:
    task = Dataset(gsm8k(tmp_path), verifier="choice")
    assert task.verify(Prompt("p", "?", "B"), text, truncated=False).answer == letter
    assert task.verify(Prompt("p", "?", "1"), text, truncated=False).correct == (letter == "B")


# Rows and options that are not as they should be.

BAD = {
    2: "{'question': 'single quotes'}",
    5: "[1, 2]",
    7: json.dumps({"id": "g7", "question": "?", "answer": "no final answer"}),
    9: json.dumps({"id": "g9", "question": None, "answer": "#### 1"}),
    11: json.dumps({"id": "g3", "question": "again?", "answer": "#### 1"}),
}


def spoilt(folder: Path) -> str:
    """Five bad rows, and a blank line before all of them."""
    file = Path(gsm8k(folder))
    rows = file.read_text().splitlines()
    file.write_text("\n" + "\n".join(BAD.get(n, row) for n, row in enumerate(rows)))
    return str(file)


@pytest.mark.parametrize("streaming", [False, True])
def test_malformed_rows_are_told_by_their_number(tmp_path: Path, streaming: bool) -> None:
    source = spoilt(tmp_path)
    strict = Dataset(source, **GSM8K, streaming=streaming)
    with pytest.raises(TaskError, match=r"^row 2, line 4 of .*gsm8k_0\.jsonl' is no JSON \(Exp"):
        strict.stream(0).take(1, generator())
    lenient = Dataset(source, **GSM8K, streaming=streaming, malformed="skip")
    with pytest.warns(
        RuntimeWarning,
        match=r"5 of 40 rows of .* skipped: row 2, line 4 .* row 5, "
        r"line 7 of .* is \[1, 2\], not an object .* row 7, .*finds nothing: it ends "
        r"'no final answer'.* And 2 more",
    ):
        prompts = lenient.stream(0).take(25, generator())
    assert {2, 5, 7, 9, 11}.isdisjoint(numbers(prompts))


@pytest.mark.parametrize("malformed", ["fatal", "skip"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_data_set_without_the_column_tells_which_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, malformed: Any
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = write(kind, tmp_path, {"problem": ["1+1"], "solution": ["2"]})
    task = Dataset(source, malformed=malformed)
    with pytest.raises(TaskError, match="has no 'question'; it has problem, solution"):
        task.prompts(1, generator())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "{question"}, r"task\.prompt is '\{question', which is no template"),
        ({"prompt": "{}"}, "a pair of braces is empty"),
        ({"answer_pattern": "("}, r"task\.answer_pattern is '\(', which is no regular expression"),
        ({"final": "last_lines"}, "did you mean 'last_line'"),
        ({"final": "("}, r"task\.final is '\('"),
        ({"verifier": "maths"}, "no verifier 'maths'; did you mean 'math'"),
        ({"buffer": 0}, r"task\.buffer is 0"),
        ({"source": "nowhere.csv"}, "'nowhere.csv', split 'train', cannot be had"),
        ({"source": "nowhere.json"}, "cannot be read"),
        ({"shots": 41}, r"has 40 rows for worked examples; task\.shots asks for 41"),
        ({"shots": 1, "solution": " {rationale}"}, r"cannot be a worked example.*'rationale'"),
        ({"evaluation_source": "nowhere.jsonl"}, "nowhere.jsonl' cannot be read"),
    ],
)
def test_options_that_are_wrong(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Dataset(**{"source": gsm8k(tmp_path), "key": "id", **options}).prompts(1, generator())


def test_a_cut_json_list_and_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('[{"question": "1", "answer"')
    with pytest.raises(TaskError, match=r"cut\.json' is no JSON"):
        Dataset(str(tmp_path / "cut.json")).prompts(1, generator())
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(TaskError, match="has no problems for training"):
        Dataset(str(tmp_path / "empty.jsonl")).prompts(1, generator())


@pytest.mark.parametrize(
    ("streaming", "message"),
    [(False, "cannot be had.*tokenizing"), (True, "from row 0 on cannot be read.*tokenizing")],
)
def test_a_csv_that_is_cut(tmp_path: Path, streaming: bool, message: str) -> None:
    (tmp_path / "cut.csv").write_text('question,answer\n"a,1\n')
    with pytest.raises(TaskError, match=message):
        Dataset(str(tmp_path / "cut.csv"), streaming=streaming).prompts(1, generator())


def test_nothing_for_evaluation_is_ever_trained_on(tmp_path: Path) -> None:
    """Not even where both files have the same numbers, or the same questions."""
    training, held_out = gsm8k(tmp_path), gsm8k(tmp_path, count=8, first=36)
    for streaming in (False, True):
        task = Dataset(
            training, evaluation_source=held_out, **{**GSM8K, "key": ""}, streaming=streaming
        )
        stream = task.stream(0)
        trained = [prompt for _ in range(12) for prompt in stream.take(6, generator())]
        judged = task.evaluation(8)
        assert [prompt.key for prompt in judged] == [f"evaluation/{n}" for n in range(8)]
        assert {p.text for p in trained}.isdisjoint(p.text for p in judged)
        assert {int(p.key) for p in trained} == set(range(36))
    with pytest.raises(TaskError, match="has 8 problems for evaluation; 9 were asked for"):
        task.evaluation(9)


def test_a_config_may_say_all_of_it(tmp_path: Path) -> None:
    table = {
        "name": "dataset",
        "source": gsm8k(tmp_path),
        "shots": [["1+1?", " 2"], ["2+2?", " 4"]],
        "verifier": "exact",
    }
    config = load_config({"method": "grpo", "task": table})
    task: Any = registry.tasks.from_table(config.task)
    assert task.shots == (("1+1?", " 2"), ("2+2?", " 4"))
    assert task.evaluation(1)[0].text.startswith("1+1? 2\n\n2+2? 4\n\nAnn has")


@pytest.mark.parametrize("blank", ["", "  ", None, float("nan"), [], ["1", ""]])
def test_an_answer_that_is_none_is_refused_with_its_row(tmp_path: Path, blank: Any) -> None:
    rows = [{"question": f"{n}?", "answer": blank if n == 3 else "1"} for n in range(20)]
    source = lines(tmp_path / "blank.jsonl", rows)
    with pytest.raises(TaskError, match=r"^row 3, line 4 of .* has (nothing in|no) 'answer'"):
        Dataset(source).prompts(1, generator())
    with pytest.warns(RuntimeWarning, match="1 of 20 rows"):
        assert "3" not in {p.key for p in Dataset(source, malformed="skip").prompts(8, generator())}


def test_a_choice_whose_true_answer_names_no_letter_is_refused(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": "(B)" if n else "both"} for n in range(20)]
    source = lines(tmp_path / "choice.jsonl", rows)
    with pytest.raises(TaskError, match=r"row 0, .* has the answer 'both', which names no letter"):
        Dataset(source, verifier="choice").prompts(1, generator())


def test_numbers_are_decimals_in_answers_and_in_worked_examples(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": n * 1e-5} for n in range(1, 20)]
    task = Dataset(lines(tmp_path / "small.jsonl", rows), shots=1, final="answer_tag")
    for prompt in task.prompts(8, generator()):
        number = int(prompt.text.rpartition("\n")[2][:-1])
        assert prompt.text.startswith("1?\n0.00001\n")
        assert float(prompt.answer) == pytest.approx(number * 1e-5)
        assert "e" not in prompt.answer
        for text, right in [
            (f"0.{number:05}", True),
            (f"0.{number + 1:05}", False),
            ("e-5", False),
        ]:
            verdict = task.verify(prompt, f"<answer>{text}</answer>", truncated=False)
            assert verdict.correct is right, text


def test_parts_of_columns_chats_and_lists_of_answers(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [
                {"role": "system", "content": "Brief."},
                {"role": "user", "content": f"{n}?"},
            ],
            "reward_model": {"ground_truth": [str(n), f"the {n}"]},
            "extra": {"index": f"k{n}"},
        }
        for n in range(20)
    ]
    table = {
        "prompt": "{prompt}",
        "answer": "reward_model.ground_truth",
        "key": "extra.index",
        "verifier": "exact",
        "chat": True,
        "chat_options": {"enable_thinking": False},
    }
    task = Dataset(lines(tmp_path / "verl.jsonl", rows), **table)
    (prompt,) = task.prompts(1, generator())
    number = prompt.key.removeprefix("k")
    assert (prompt.text, prompt.chat) == (f"{number}?", (("system", "Brief."),))
    assert prompt.chat_options == (("enable_thinking", False),)
    for text, right in [(number, True), (f"The {number}", True), ("no", False)]:
        assert task.verify(prompt, text, truncated=False).correct is right
    plain = Dataset(task.source, **{**table, "chat": False, "chat_options": {}})
    (prompt,) = plain.prompts(1, generator())
    assert prompt.text == f"Brief.\n\n{prompt.key[1:]}?"
    with pytest.raises(TaskError, match=r"has no 'reward_model\.truth'"):
        Dataset(task.source, prompt="{prompt}", answer="reward_model.truth").prompts(1, generator())
    with pytest.raises(TaskError, match=r"task\.chat_options is .*task\.chat is false"):
        Dataset(task.source, chat_options={"enable_thinking": False})


@pytest.mark.parametrize(
    ("ending", "pack"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_byte_order_marks_and_compressed_lines(
    tmp_path: Path, ending: str, pack: Any, streaming: bool
) -> None:
    rows = "".join(json.dumps({"question": f"{n}?", "answer": n}) + "\n" for n in range(20))
    file = tmp_path / f"p.jsonl{ending}"
    file.write_bytes(pack(rows.encode("utf-8-sig")))
    assert len(Dataset(str(file), streaming=streaming).stream(0).take(8, generator())) == 8
    if ending:
        file.write_bytes(pack(rows.encode())[:-12])
        with pytest.raises(TaskError, match="cannot be read"):
            Dataset(str(file), streaming=streaming, system="x").stream(0).take(18, generator())


# Order.


@pytest.mark.parametrize("options", [{}, {"streaming": True, "buffer": 7}])
def test_a_pass_has_every_problem_once_in_an_order_of_its_own(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    task = Dataset(gsm8k(tmp_path), **GSM8K, **options)
    size = sum(zlib.crc32(f"g{n}".encode()) % 10 > 0 for n in range(FEW))
    stream, again, other = task.stream(5), task.stream(5), task.stream(6)
    passes = [numbers(stream.take(size, generator(n))) for n in range(3)]
    assert passes == [numbers(again.take(size, generator())) for _ in range(3)]
    assert passes[0] != numbers(other.take(size, generator()))
    assert all(Counter(one) == Counter(passes[0]) for one in passes)
    assert len(set(passes[0])) == size
    assert len(set(map(tuple, passes))) == 3


@pytest.mark.parametrize(
    "options", [{}, {"streaming": True, "buffer": 7}, {"streaming": True, "buffer": 1000}]
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_stream_goes_on_where_another_one_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], kind: str
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {"question": [f"{n}?" for n in range(FEW)], "answer": ["1"] * FEW}
    task = Dataset(write(kind, tmp_path, rows), verifier="exact", **options)
    whole = task.stream(3)
    for step in range(20):  # 36 problems, 5 a step: several passes, and blocks that steps cut
        state = json.loads(json.dumps(whole.state_dict()))
        expected = numbers(whole.take(5, generator()))
        resumed = task.stream(3)
        resumed.load_state_dict(state)
        assert numbers(resumed.take(5, generator())) == expected, step
        following = numbers(resumed.take(5, generator()))
    assert following == numbers(whole.take(5, generator()))


def test_fewer_problems_than_a_step_takes(tmp_path: Path) -> None:
    source = gsm8k(tmp_path, count=6)
    task = Dataset(source, **GSM8K)
    size = len({p.key for p in task.prompts(6, generator())})
    assert Counter(numbers(task.stream(0).take(3 * size, generator()))).most_common()[-1][1] == 3
    with pytest.raises(TaskError, match=r"has \d problems for training; a step takes 18"):
        Dataset(source, **GSM8K, streaming=True).stream(0).take(18, generator())
