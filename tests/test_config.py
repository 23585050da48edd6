"""Configs: layers, overrides, plug-in tables, and the sentences of what is wrong."""

import pytest

from segcredit.config import load_config, presets
from segcredit.errors import ConfigError, RegistryError


@pytest.mark.parametrize("name", presets())
def test_every_preset_resolves_and_round_trips(name):
    config = load_config(name)
    assert config.method == name
    assert load_config(config.model_dump()) == config


def test_layers_lie_over_each_other(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('method = "sapo"\nsegmenter = "newline"\n[train]\nsteps = 7\n')
    config = load_config(file, ["train.epochs=3", "seed=5"], rollouts__prompts=4)
    assert config.segmenter == {"name": "newline"}
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
        ("loss.ratio=word", ConfigError, ["loss.ratio", "segment"]),
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
    ("overrides", "sentence"),
    [
        (["rollouts.layout=tree", "rollouts.branches=[2,3]"], "product is completions = 8"),
        (["rollouts.overlong_buffer=65"], "even an empty completion"),
        (["loss.bound=log_clip", "loss.clip_bounds=absolute"], "log_clip takes distances"),
        (["loss.bound=soft_gate", "loss.dual_clip=3.0"], "with bound 'clip'"),
        (
            ["rollouts.layout=tree", "rollouts.branches=[2,4]", "rollouts.keep=varied_groups"],
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
