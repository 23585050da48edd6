"""``segcredit segment``: what is read, how it is cut, what is shown, what is written."""

import io
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from segcredit import TextSegmenter, registry
from segcredit.cli import main
from segcredit.errors import PolicyError, StudyError
from segcredit.study.segmenting.cut import chosen_segmenters, load_policy, segment_documents
from segcredit.study.segmenting.texts import Document, read_documents
from segcredit.training.rollouts.from_texts import rollouts_of_texts

TINY = '{name="tiny", steps=0}'
CHAIN = "9-3=6\n6+2=8\n#8"
MINE = '''
from dataclasses import dataclass
import segcredit

@segcredit.register.segmenter("halves")
@dataclass(frozen=True, slots=True)
class Halves(segcredit.TextSegmenter):
    """Cuts in the middle, and fails on some texts."""

    fails_on: str = "nothing"
    reversed: bool = False

    @property
    def causal(self) -> bool:
        return False

    def split(self, text):
        if self.fails_on in text:
            raise KeyError("no middle")
        middle = len(text) // 2
        return [middle, 0] if self.reversed else [middle]

@segcredit.register.segmenter("wrapped")
@dataclass(frozen=True, slots=True)
class Wrapped(segcredit.Segmenter):
    """Another's segments as they are."""

    inner: segcredit.Segmenter

    @property
    def causal(self) -> bool:
        return self.inner.causal

    def segment(self, rollouts):
        return self.inner.segment(rollouts)

@segcredit.register.segmenter("needs_values")
@dataclass(frozen=True, slots=True)
class NeedsValues(segcredit.Segmenter):
    """Reads what no policy gives."""

    @property
    def causal(self) -> bool:
        return False

    def segment(self, rollouts):
        if rollouts.token_values is None:
            raise ValueError("needs_values cuts where token_values jump, and there are none.")
        raise NotImplementedError
'''
GREEK = "Ein Satz. 数学は楽しい 🙂🙂 naïve\r\n\tend "


@pytest.fixture
def code(tmp_path):
    file = tmp_path / "plugins.py"
    file.write_text(MINE)
    return ["--code", file]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A byte-level policy without a begin token: emoji are several tokens, merges are many."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([CHAIN, "So the end is the end. And then?"] * 9, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def policy_table(checkpoint):
    return f'{{name="hf", model="{checkpoint}"}}'


def call(*arguments):
    """Exit status of a command."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    return stopped.value.code


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


# What is read.


def test_a_text_a_file_and_standard_input_are_one_text(tmp_path, monkeypatch):
    file = tmp_path / "plain.txt"
    file.write_bytes(GREEK.encode())
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(GREEK.encode())))
    for source in (GREEK, str(file), "-"):
        # Carriage returns stay: offsets are places in the file.
        assert list(read_documents(source)) == [Document(1, GREEK)]


def test_jsonl_is_a_text_a_line_with_prompt_and_id(tmp_path, monkeypatch):
    records = [{"id": "a", "q": "?", "t": GREEK}, {"id": 7, "q": "", "t": ""}, {"q": "!", "t": "x"}]
    lines = "\r\n\n".join(json.dumps(record) for record in records)
    wanted = [
        Document(1, GREEK, "?", "a"),
        Document(2, "", "", "7"),
        Document(3, "x", "!", None),
    ]
    file = tmp_path / "any.name"
    file.write_text(lines, encoding="utf-8")
    assert list(read_documents(str(file), "t", "q")) == wanted
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(lines.encode())))
    assert list(read_documents("-", "t", "q")) == wanted


def test_half_a_character_is_replaced_by_one(tmp_path):
    file = tmp_path / "broken.jsonl"
    file.write_bytes(b'{"text": "a\\ud83db"}\n{"text": "c\xff"}\n')
    assert [d.text for d in read_documents(str(file))] == ["a\ufffdb", "c\ufffd"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": 3}', "line 2: field 'text' is 3; expected a string"),
        ('{"text": null}', "field 'text' is null"),
        ('{"body": "two", "n": 1}', "it has body, n"),
        ('["two"]', "is list rather than an object"),
        ("two", "line 2 is not JSON"),
    ],
)
def test_a_bad_line_is_a_sentence(tmp_path, line, words):
    file = tmp_path / "texts.jsonl"
    file.write_text(f'{{"text": "one"}}\n{line}\n')
    documents = read_documents(str(file))
    assert next(documents).text == "one"
    with pytest.raises(StudyError, match=re.escape(words)):
        next(documents)


@pytest.mark.parametrize(
    ("source", "field", "words"),
    [
        ("absent.txt", None, "there is no file absent.txt"),
        ("some text", "text", "there is no file some text"),
        (".", None, "is a folder"),
    ],
)
def test_a_mistyped_source_is_a_sentence(source, field, words):
    with pytest.raises(StudyError, match=re.escape(words)):
        list(read_documents(source, field))


# Which segmenters.


def test_segmenters_by_name_or_by_table(code):
    assert call("segment", "x", *code) == 0  # registers the loose file's
    specs = ["newline", '{name="wrapped", inner={name="random", fraction=0.2}}']
    chosen = chosen_segmenters(specs, policy=True)
    assert list(chosen) == ["newline", "wrapped(inner=random(fraction=0.2))"]
    inner = registry.segmenters.build("random", fraction=0.2)
    assert chosen["wrapped(inner=random(fraction=0.2))"].inner == inner


class Spaces(TextSegmenter):
    causal = True

    def split(self, text):
        return [place for place, letter in enumerate(text) if letter == " "]


@dataclass(frozen=True)
class Weighted(Spaces):
    weights: dict[str, int] = field(default_factory=dict)


def test_a_segmenter_without_fields_or_with_a_mapping_has_a_label(monkeypatch):
    monkeypatch.setitem(registry.segmenters._local, "spaces", Spaces)
    monkeypatch.setitem(registry.segmenters._local, "weighted", Weighted)
    specs = ["spaces", '{name="weighted", weights={a=1}}']
    assert list(chosen_segmenters(specs, policy=False)) == ["spaces", "weighted(weights={'a': 1})"]


def test_a_label_names_the_options_that_are_not_defaults():
    usual = '{name="cutpoint", fork="starts", every=3}'
    (label,) = chosen_segmenters([usual], policy=True)
    assert label == "cutpoint(every=3)"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{name=random}", "is not a TOML table"),
        ("{fraction=0.2}", "has no name"),
        ('{name="random", fractoin=0.2}', "did you mean 'fraction'"),
        ("newlin", "did you mean 'newline'"),
        ("entropy", "'entropy' needs tokens or a model's signals"),
    ],
)
def test_a_bad_segmenter_is_a_sentence(spec, words, capsys):
    assert call("segment", "text", "-s", "newline", "-s", spec) == 1
    shown = capsys.readouterr()
    assert words in shown.err
    assert not shown.out


def test_without_a_policy_the_sentence_names_the_option(capsys):
    assert call("segment", "text", "-s", '{name="random", fraction=0.5}') == 1
    shown = capsys.readouterr().err
    assert "random(fraction=0.5)" in shown
    assert "--policy" in shown


# How it is cut.


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(alphabet="ab\n\r 🙂", max_size=12), max_size=5))
def test_by_characters_the_segments_are_the_lines(texts):
    documents = [Document(number, text) for number, text in enumerate(texts, start=1)]
    spec = '{name="newline", blank_lines="own"}'
    chosen = {"newline": chosen_segmenters([spec], policy=False).popitem()[1]}
    for document, found in segment_documents(documents, chosen):
        lines = [line for line in re.split("(?<=\n)", document.text) if line]
        pairs = zip(found["newline"].starts, found["newline"].ends, strict=True)
        assert [document.text[start:end] for start, end in pairs] == lines
        assert found["newline"].tokens is None


def scored_one_by_one(model, prompt_ids, ids):
    """Log-probs and entropies from a pass a token, over nothing but the ids before it."""
    logprobs, entropies = [], []
    for place, token in enumerate(ids):
        before = torch.tensor([[*prompt_ids, *ids[:place]]])
        distribution = model(input_ids=before).logits[0, -1].float().log_softmax(0)
        logprobs.append(float(distribution[token]))
        entropies.append(-sum(math.exp(x) * x for x in distribution.tolist()))
    return logprobs, entropies


@torch.no_grad()
def test_given_texts_are_scored_as_completions(checkpoint):
    policy = load_policy(policy_table(checkpoint))
    prompts, texts = ["So ", "", "the end?"], [CHAIN, GREEK, "x"]
    rollouts = rollouts_of_texts(policy, prompts, texts)
    assert rollouts.texts == tuple(texts)
    assert bool(rollouts.truncated.all())
    assert rollouts.prompt_keys == tuple(prompts)
    encode = policy.tokenizer.encode
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        ids = rollouts.completion_ids[row][rollouts.action_mask[row]].tolist()
        assert ids == encode(text)
        # No begin token here: a newline stands for the prompt that is not there.
        logprobs, entropies = scored_one_by_one(policy.model, encode(prompt or "\n"), ids)
        mask = rollouts.action_mask[row]
        assert torch.allclose(rollouts.logprobs[row][mask], torch.tensor(logprobs), atol=1e-4)
        assert torch.allclose(rollouts.entropies[row][mask], torch.tensor(entropies), atol=1e-4)


@torch.no_grad()
def test_what_a_policy_puts_around_a_text_is_no_part_of_it():
    policy = load_policy(TINY)
    rollouts = rollouts_of_texts(policy, ["9-3+2=", ""], [CHAIN, "#8"])
    begin = policy.tokenizer.bos_token_id
    assert begin not in rollouts.completion_ids[rollouts.action_mask].tolist()
    assert rollouts.action_mask.sum(1).tolist() == [len(CHAIN), 2]
    places = [[[at, at + 1] for at in range(len(text))] for text in (CHAIN, "#8")]
    assert rollouts.token_spans[0].tolist() == places[0]
    assert rollouts.token_spans[1, :2].tolist() == places[1]
    # Where a begin token is put, it alone stands before a text without a prompt.
    assert rollouts.prompt_ids[1][rollouts.prompt_mask[1]].tolist() == [begin]
    assert rollouts.logprobs.isfinite().all()


def test_tokens_that_do_not_say_the_text_are_a_sentence(checkpoint):
    policy = load_policy(policy_table(checkpoint))
    for place, text in [(4, "The <end> is here"), (4, "The <end>"), (0, "<end>")]:
        words = f"after {place} characters the text goes on '<end>"
        with pytest.raises(PolicyError, match=words):
            rollouts_of_texts(policy, ["", ""], ["Fine.", text])


def test_under_a_policy_segments_are_whole_tokens_and_share_characters(checkpoint):
    policy = load_policy(policy_table(checkpoint))
    chosen = chosen_segmenters(["per_token", "newline", "whole"], policy=True)
    documents = [Document(1, GREEK), Document(2, "")]
    (_, found), (_, empty) = segment_documents(documents, chosen, policy)
    ids = policy.tokenizer.encode(GREEK)
    assert found["per_token"].tokens == (1,) * len(ids)
    smile = GREEK.index("🙂")
    pairs = zip(found["per_token"].starts, found["per_token"].ends, strict=True)
    sharing = [end for start, end in pairs if start == smile]
    assert len(sharing) == len("🙂".encode())  # untrained on emoji: a token a byte
    assert set(sharing) == {smile + 1}
    assert found["whole"].starts == (0,)
    assert found["whole"].ends == (len(GREEK),)
    assert found["whole"].tokens == (len(ids),)
    assert found["newline"].starts == (0, GREEK.index("\n") + 1)
    assert sum(found["newline"].tokens) == len(ids)
    assert [len(segments) for segments in empty.values()] == [0, 0, 0]


def test_a_signal_segmenter_cuts_where_its_rollouts_say(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {"answer": CHAIN, "q": "9-3+2="}, {"answer": "#8"})
    record = tmp_path / "out.jsonl"
    policy = load_policy(TINY)
    with torch.no_grad():
        rollouts = rollouts_of_texts(policy, ["9-3+2="], [CHAIN])
    ends = registry.segmenters.build("entropy").segment(rollouts).ends[0].nonzero()[:, 0] + 1
    options = ["--field", "answer", "--prompt-field", "q", "-q", "--output", record]
    assert call("segment", file, "-s", "entropy", "--policy", TINY, *options) == 1  # no q in line 2
    assert not record.exists()
    write_lines(file, {"answer": CHAIN, "q": "9-3+2="}, {"answer": "#8", "q": ""})
    assert call("segment", file, "-s", "entropy", "--policy", TINY, *options) == 0
    assert [row["end"] for row in rows(record) if row["number"] == 1] == ends.tolist()


# Failures.


def test_a_failing_text_is_counted_and_named(tmp_path, code, capsys):
    texts = {"a": "oo", "b": "bad", "c": "", "d": "bad too"}
    records = ({"id": name, "text": text} for name, text in texts.items())
    file = write_lines(tmp_path / "texts.jsonl", *records)
    spec = '{name="halves", fails_on="bad"}'
    record = tmp_path / "out.jsonl"
    assert call("segment", file, "-s", spec, "-s", "newline", "--output", record, *code) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "halves(fails_on=bad): 2 segments in 2 texts" in shown
    assert "newline: 3 segments in 4 texts" in shown
    assert "failed halves(fails_on=bad) on texts 2 (b), 4 (d):" in shown
    assert "KeyError: 'no middle'" in shown
    made = rows(record)
    assert [row["id"] for row in made if row["segmenter"] != "newline"] == ["a", "a"]


def test_a_segmenter_that_fails_on_every_text_is_an_error(code, capsys):
    assert call("segment", "bad", "-s", '{name="halves", fails_on="bad"}', *code) == 1
    assert call("segment", "good", "-s", '{name="halves", reversed=true}', *code) == 1
    assert "expected ascending offsets between 0 and 4" in " ".join(capsys.readouterr().out.split())


def test_what_no_policy_gives_is_the_segmenters_own_sentence(code, capsys):
    specs = ["-s", "needs_values", "-s", '{name="wrapped", inner="newline"}']
    assert call("segment", CHAIN, *specs, "--policy", TINY, *code) == 1
    shown = capsys.readouterr().out
    own = "needs_values cuts where token_values jump, and there are none."
    assert f"failed needs_values on text 1: {own}" in shown
    assert "wrapped(inner=newline): 3 segments in 1 texts" in shown


def test_many_failures_are_told_in_few_lines(tmp_path, code, capsys):
    file = write_lines(tmp_path / "t.jsonl", *({"text": f"bad {i}"} for i in range(30)))
    spec = '{name="halves", fails_on="bad 1"}'
    assert call("segment", file, "-s", spec, "-q", *code) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed")]
    assert len(told) == 1  # texts 2 and 11 to 20: eleven, of which ten are named
    assert "on texts 2, 11, 12, 13, 14, 15, 16, 17, 18, 19 and 1 more: " in told[0]


def test_a_text_that_the_policy_cannot_read_is_a_failure(tmp_path, capsys):
    file = write_lines(tmp_path / "t.jsonl", {"text": CHAIN}, {"text": "Hello"}, {"text": "#8"})
    assert call("segment", file, "-s", "newline", "--policy", TINY, "-q") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "newline: 4 segments in 2 texts" in shown
    assert "failed newline on text 2: the policy raised" in shown
    assert "a tiny policy knows its task's alphabet alone" in shown


def test_a_policy_that_cannot_be_had_is_a_sentence(capsys):
    assert call("segment", "x", "--policy", '{name="hf", model="/no/such"}') == 1
    assert "/no/such" in capsys.readouterr().err
    assert call("segment", "x", "--policy", "tinny") == 1
    assert "did you mean 'tiny'" in capsys.readouterr().err
    assert call("segment", "x", "--policy", "tiny", "--task", '{name="arithmetic", steps=1}') == 1
    assert "'arithmetic' has no option 'steps'" in capsys.readouterr().err


# What is shown.


def test_segments_side_by_side_or_below_each_other(monkeypatch, capsys):
    monkeypatch.setattr("segcredit.cli.out.width", 100, raising=False)
    assert call("segment", "one\ntwo", "-s", "newline", "-s", "latex_steps") == 0
    columns = capsys.readouterr().out
    assert re.search("newline +┃ latex_steps", columns)
    assert re.search("│ ¦two ", columns)
    monkeypatch.setattr("segcredit.cli.out.width", 30, raising=False)
    assert call("segment", "one\ntwo", "-s", "newline", "-s", "latex_steps") == 0
    assert re.search("│ newline +│ one", capsys.readouterr().out)


def test_a_shared_character_is_shown_once(checkpoint, capsys):
    assert call("segment", "a🙂b", "-s", "per_token", "--policy", policy_table(checkpoint)) == 0
    assert "a¦🙂¦¦¦¦b" in capsys.readouterr().out


def test_a_text_cannot_steer_the_terminal_nor_the_markup(capsys):
    assert call("segment", "\x1b[2Ja[red]b\x07", "-s", "newline") == 0
    shown = capsys.readouterr().out
    assert "␛[2Ja[red]b␇" in shown
    assert "\x1b" not in shown


def test_the_summary_counts(tmp_path, capsys):
    texts = ["a\nbb\nccc\n", "dddd", "", "e\nf"]
    file = write_lines(tmp_path / "t.jsonl", *({"text": text} for text in texts))
    assert call("segment", file, "--quiet") == 0
    shown = capsys.readouterr().out
    # Segments 3, 1, 0, 2 a text; characters 2, 3, 4, 4, 2, 1 a segment.
    assert "newline: 6 segments in 4 texts, 1.5 a text\n" in shown
    assert re.search(r"newline +4 +6 +2 \(0–3\) +2 \(2–4\) +0\n", shown)
    assert "dddd" not in shown
    assert call("segment", file, "--limit", 1) == 0
    shown = capsys.readouterr().out
    assert "newline: 3 segments in 1 texts" in shown
    assert "dddd" not in shown
    assert call("segment", "", "-q") == 0
    assert re.search(r"newline +1 +0 +0 \(0–0\) +– +0\n", capsys.readouterr().out)


# What is written.


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_the_output_has_a_row_a_segment(tmp_path, suffix, code):
    records = [{"id": 1, "text": "a🙂\nb"}, {"text": ""}, {"id": "x", "text": "c"}]
    file = write_lines(tmp_path / "t.jsonl", *records)
    path = tmp_path / "new" / f"out{suffix}"
    assert (
        call("segment", file, "-s", "newline", "-s", "halves", "-q", "--output", path, *code) == 0
    )
    table = pd.read_parquet(path) if suffix == ".parquet" else pd.DataFrame(rows(path))
    found = [tuple(None if pd.isna(v) else v for v in row) for row in table.itertuples(index=False)]
    assert list(table.columns) == [
        "number", "id", "segmenter", "segment", "start", "end", "tokens", "text",
    ]  # fmt: skip
    assert found == [
        (1, "1", "newline", 0, 0, 3, None, "a🙂\n"),
        (1, "1", "newline", 1, 3, 4, None, "b"),
        (1, "1", "halves", 0, 0, 2, None, "a🙂"),
        (1, "1", "halves", 1, 2, 4, None, "\nb"),
        (3, "x", "newline", 0, 0, 1, None, "c"),
        (3, "x", "halves", 0, 0, 1, None, "c"),
    ]


def test_the_output_has_tokens_under_a_policy(tmp_path):
    path = tmp_path / "out.parquet"
    assert call("segment", CHAIN, "--policy", TINY, "-q", "--output", path) == 0
    assert pd.read_parquet(path).tokens.tolist() == [6, 6, 2]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_an_output_appears_whole_or_not_at_all(tmp_path, suffix):
    file = tmp_path / "t.jsonl"
    file.write_text('{"text": "a"}\n{"text": "b"}\nbroken\n')
    path = tmp_path / f"out{suffix}"
    path.write_text("what was here")
    assert call("segment", file, "-q", "--output", path) == 1
    assert path.read_text() == "what was here"
    assert sorted(tmp_path.iterdir()) == sorted([file, path])


def test_outputs_that_cannot_be_are_sentences(tmp_path, capsys):
    assert call("segment", "x", "--output", tmp_path / "out.csv") == 1
    assert "expected one of .parquet, .jsonl" in capsys.readouterr().err
    file = write_lines(tmp_path / "t.jsonl", {"text": "a"})
    assert call("segment", file, "--output", file) == 1
    assert "is the source itself" in capsys.readouterr().err
    assert rows(file) == [{"text": "a"}]
    blocked = Path(file) / "out.jsonl"
    assert call("segment", "x", "--output", blocked) == 1
    assert "could not be written" in capsys.readouterr().err
