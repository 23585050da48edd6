"""Configs: layers, overrides, plug-in tables, and the sentences of what is wrong."""

import math
import time
import warnings
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from segcredit import registry
from segcredit.config import RunConfig, load_config, presets, set_key
from segcredit.credit_audit.settings import AuditSettings, load_audit_config
from segcredit.errors import ConfigError, RegistryError, SegcreditError


@pytest.mark.parametrize("name", presets())
def test_every_preset_resolves_and_round_trips(name):
    config = load_config(name)
    assert config.method == name
    assert load_config(config.model_dump()) == config


def test_layers_lie_over_each_other(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('method = "sapo"\nsegmenter = "newline"\n[train]\nsteps = 7\n')
    config = load_config(file, ["train.epochs=3", "seed=5"], rollouts__prompts=4)
    assert config.segmenter == {"name": "newline", "blank_lines": "before", "whole": True}
    assert (config.train.steps, config.train.epochs, config.seed) == (7, 3, 5)
    assert config.rollouts.prompts == 4
    assert config.estimator["lam"] == 0.99


def test_a_dotted_key_changes_one_option_and_a_name_replaces_the_table():
    preset = load_config("sapo").segmenter
    changed = load_config("sapo", ["segmenter.top_fraction=0.2"])
    assert preset["top_fraction"] != 0.2
    assert changed.segmenter == {**preset, "top_fraction": 0.2}
    replaced = load_config("sapo", ["segmenter=random", "segmenter.seed=3"])
    assert replaced.segmenter == {"name": "random", "fraction": 0.3, "seed": 3}


def test_a_wrapper_holds_a_table():
    config = load_config("sapo", ['advantage={name="whitened", inner="td"}'])
    assert config.advantage["inner"] == {"name": "td", "gamma": 1.0, "clock": "segment"}


def test_an_option_inside_a_wrapper_is_reached_by_its_path():
    config = load_config("sapo", ["advantage.inner.lam=0.5"])
    assert config.advantage["inner"]["lam"] == 0.5


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("trian.steps=3", ConfigError, ["trian", "did you mean 'train'"]),
        ("train.stepz=3", ConfigError, ["train.stepz", "did you mean 'steps'"]),
        ("train.steps=many", ConfigError, ["train.steps", "integer", "many"]),
        ("train.steps", ConfigError, ["dotted.key=value"]),
        ("loss.ratio=word", RegistryError, ["loss.ratio", "segment"]),
        ("loss.bound=clipp", RegistryError, ["loss.bound", "did you mean 'clip'"]),
        ("loss.bound.positive=1", RegistryError, ["'clip' has no option", "low, high, dual"]),
        ("loss.aggregate.norm_length=9", RegistryError, ["has no option 'norm_length'"]),
        ("loss.ratio.gradient=half", RegistryError, ["loss.ratio", "'full' or 'own_token'"]),
        ("segmenter=newlin", RegistryError, ["segmenter", "did you mean 'newline'"]),
        ("segmenter.top=0.1", RegistryError, ["no option 'top'", "top_fraction"]),
        ("segmenter.top_fraction=2", RegistryError, ["top_fraction is 2.0", "at most 1"]),
        ("segmenter.top_fraction=abc", RegistryError, ["top_fraction", "number"]),
        ("advantage.inner.lam=7", RegistryError, ["lam is 7.0", "between 0 and 1"]),
        ("seed.deep=1", ConfigError, ["seed"]),
        ("rollouts.prompts.deep=1", ConfigError, ["rollouts.prompts"]),
    ],
)
def test_what_is_wrong_is_said_with_its_path(override, error, words):
    with pytest.raises(error) as caught:
        load_config("sapo", [override])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = = 3")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(broken)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="did you mean 'sapo'"):
        load_config("sapoo")


def test_a_method_without_axes_says_what_it_needs():
    with pytest.raises(ConfigError, match="four axes"):
        load_config({"seed": 1})
    with pytest.raises(ConfigError, match="keys segmenter"):
        load_config({"method": "mine"})


@pytest.mark.parametrize(
    "bound",
    [
        {"name": "divergence_mask", "per": "segment"},
        {"name": "growing_clip", "since": "segment"},
        {"name": "strayed_rows", "inner": "clip", "per": "segment"},
        {"name": "future_weight", "inner": {"name": "divergence_mask", "per": "segment"}},
    ],
)
def test_segments_of_the_ratio_may_be_read_by_the_bound_alone(bound: dict[str, Any]) -> None:
    given = {"ratio_segmenter": "newline", "bound": bound}
    loaded = load_config({"method": "grpo", "loss": given})
    assert loaded.loss.ratio_segmenter is not None
    with pytest.raises(ConfigError, match="reads no segments"):
        load_config({"method": "grpo", "loss": given | {"bound": "divergence_mask"}})


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["rollouts.layout=tree", "rollouts.branches=[2,3]"], "product is completions = 8"),
        (["rollouts.overlong_buffer=65"], "even an empty completion"),
        (["loss.ratio=none", "loss.bound=clip"], "ratio is 'none' and bound is 'clip'"),
        (["loss.ratio=none", "loss.ratio_segmenter=whole"], "expected no ratio_segmenter"),
        (["loss.ratio={name='none', gradient='full'}"], "'none' is the absence of a plug-in"),
        (["loss.ratio_segmenter=whole"], "'token', which reads no segments"),
        (["loss.bound=log_clip", "loss.clip_bounds=absolute"], "takes distances from 0 nats"),
        (["loss.bound=soft_gate", "loss.dual_clip=3.0"], "with bound 'clip'"),
        (["loss.clip_bounds=absolute", "loss.clip_low=2"], "expected one around 1"),
        (["loss.clip_low=low"], "loss.clip_low is 'low'; expected a number"),
        (["rollouts.keep=some"], "expected 'all' or 'varied_groups'"),
        (
            ["rollouts.layout=tree", "rollouts.branches=[2,4]", "rollouts.dynamic_sampling=true"],
            "layout = 'independent' alone",
        ),
    ],
)
def test_options_that_do_not_go_together_are_a_sentence(
    overrides: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("grpo", overrides)
    assert sentence in str(caught.value)
    assert "Value error" not in str(caught.value)
    assert "found {" not in str(caught.value)


NEW_FORMS = [
    ("sapo", ["loss.clip_low=0.1"], 'loss.bound = { name = "clip", low = 0.1, high = 0.2 }'),
    (
        "dapo",
        ["loss.clip_high=0.3"],
        'loss.bound = { name = "clip", low = 0.2, high = 0.3, dual = 10.0 }',
    ),
    (
        "grpo",
        ["loss.dual_clip=3.0"],
        'loss.bound = { name = "clip", low = 0.2, high = 0.2, dual = 3.0 }',
    ),
    (
        "grpo",
        ["loss.clip_bounds=absolute", "loss.clip_low=0.5", "loss.clip_high=1.5"],
        'loss.bound = { name = "clip", low = 0.5, high = 0.5 }',
    ),
    (
        "grpo",
        ["loss.bound=log_clip", "loss.clip_low=0.4"],
        'loss.bound = { name = "log_clip", low = 0.4, high = 0.2 }',
    ),
    (
        "cispo",
        ["loss.clip_high=4.0"],
        'loss.bound = { name = "truncated_is", low = 0.0, high = 4.0 }',
    ),
    (
        "cispo",
        ["loss.clip_bounds=around_one", "loss.clip_low=0.5", "loss.clip_high=1.0"],
        'loss.bound = { name = "truncated_is", low = 0.5, high = 2.0 }',
    ),
    (
        "grpo",
        ["loss.bound=capped_weight"],
        'loss.bound = { name = "truncated_is", low = 0.8, high = 1.2 }',
    ),
    (
        "grpo",
        ["loss.bound={name='capped_weight', high=3.0}"],
        'loss.bound = { name = "truncated_is", high = 3.0 }',
    ),
    (
        "soft_gate",
        ["loss.gate_negative=2.0", "loss.clip_low=0.1"],
        'loss.bound = { name = "soft_gate", positive = 1.0, negative = 2.0 }',
    ),
    (
        "gspo",
        ["loss.ratio_gradient=own_token"],
        'loss.ratio = { name = "sequence", gradient = "own_token" }',
    ),
    ("grpo", ["loss.ratio_gradient=own_token"], 'loss.ratio = "token"'),
    (
        "dr_grpo",
        ["loss.norm_length=24"],
        'loss.aggregate = { name = "sequence_mean_token_norm", norm_length = 24 }',
    ),
    ("grpo", ["rollouts.keep=varied_groups"], "rollouts.dynamic_sampling = true"),
    ("dapo", ["rollouts.keep=all"], "rollouts.dynamic_sampling = false"),
    ("dapo", ["rollouts.keep_rounds=2"], "rollouts.dynamic_sampling_rounds = 2"),
    ("sapo", ["record.responses=false"], "record.completions = false"),
]


@pytest.mark.parametrize(("method", "old", "new"), NEW_FORMS)
def test_old_keys_are_read_with_a_sentence_that_shows_the_new_form(
    method: str, old: list[str], new: str
) -> None:
    with pytest.warns(FutureWarning) as caught:
        found = load_config(method, old)
    said = [str(warning.message) for warning in caught]
    assert len(said) == 1
    assert f"read as {new}. Write that instead." in said[0]
    assert all(text.partition("=")[0] in said[0] for text in old if "bound" not in text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found == load_config(method, [new.replace(" = ", "=", 1)])


def test_an_old_bound_without_a_ratio_is_left_out_with_a_sentence() -> None:
    with pytest.warns(FutureWarning, match=r"loss.clip_low: nothing is bounded"):
        assert load_config("rloo", ["loss.clip_low=0.1"]) == load_config("rloo")


def test_the_bound_below_goes_with_the_ratio_and_comes_back_with_one() -> None:
    assert load_config("sapo", ["loss.ratio=none"]).loss.bound is None
    assert load_config("rloo", ["loss.ratio=token"]).loss.bound == load_config("sapo").loss.bound
    assert load_config("rloo").model_dump()["loss"]["ratio"] == "none"


def test_options_of_a_bound_are_reached_by_their_path_and_its_name_replaces_it() -> None:
    assert load_config("dapo", ["loss.bound.low=0.1"]).loss.bound == {
        "name": "clip",
        "low": 0.1,
        "high": 0.28,
        "dual": 10.0,
    }
    by_name = load_config("dapo", ["loss.bound=log_clip"]).loss.bound
    assert by_name == {"name": "log_clip", "low": 0.4, "high": 0.4}
    table = {"method": "dapo", "loss": {"bound": {"name": "clip", "high": 0.3}}}
    assert load_config(table).loss.bound == {"name": "clip", "low": 0.2, "high": 0.3, "dual": None}


FAR = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e300, 2**63, 10**5000, -(10**5000)]),
    st.integers(2**63, 10**400),
    st.integers(-(10**400), -(2**63) - 1),
    st.floats(min_value=1e31, allow_nan=False),
)
INNER = {"segmenters": "newline", "advantages": "td", "tasks": "arithmetic"}
INNER["process_rewards"] = "equations"


def numbers_of(hint):
    """Returns whether a field holds numbers, alone, in a tuple, or beside None."""
    if get_origin(hint) is Literal:
        return False
    return hint in (int, float) or any(map(numbers_of, get_args(hint)))


def config_keys(model, prefix=""):
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from config_keys(field.annotation, f"{prefix}{name}.")
        elif numbers_of(field.annotation):
            yield f"{prefix}{name}", get_origin(field.annotation) is tuple


def plugin_options():
    for kind, plugins in registry.ALL.items():
        for name in plugins.names():
            hints = registry._option_types(plugins.find(name))
            inner = {key for key, hint in hints.items() if registry._registry_of(hint)}
            wanted = dict.fromkeys(inner, INNER.get(kind))
            for key, hint in hints.items():
                if numbers_of(hint):
                    yield kind, name, key, wanted


CONFIG_KEYS = [*config_keys(RunConfig), *((f"audit.{k}", t) for k, t in config_keys(AuditSettings))]
PLUGIN_OPTIONS = st.deferred(lambda: st.sampled_from(list(plugin_options())))  # imports them all


def told(act, limit=2.0):
    """Returns the sentence that an act is refused with."""
    started = time.monotonic()
    with pytest.raises(SegcreditError) as caught:
        act()
    assert time.monotonic() - started < limit
    sentence = str(caught.value)
    assert len(sentence) < 2000
    return sentence


@settings(max_examples=150, deadline=None)
@given(key=st.sampled_from(CONFIG_KEYS), value=FAR)
def test_a_number_far_outside_is_refused_by_its_key(key, value):
    path, listed = key
    assume(path != "loss.kl_limit" or not value > 0)  # documented: inf is no limit at all
    layer = {"method": "grpo"}
    set_key(layer, path, [value, value] if listed else value)
    assert path.split(".")[-1] in told(lambda: load_audit_config(layer))


@settings(max_examples=150, deadline=None)
@given(option=PLUGIN_OPTIONS, value=FAR)
def test_an_option_far_outside_is_refused_by_its_name(option, value):
    kind, name, key, wanted = option
    said = told(lambda: registry.ALL[kind].resolve(name, {**wanted, key: value}))
    assert name in said or key in said


def test_enough_numbers_are_looked_at():
    assert len(CONFIG_KEYS) > 45
    assert len(list(plugin_options())) > 100
