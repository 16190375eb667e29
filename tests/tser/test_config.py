"""Configurations: layers, strictness, what a complaint says, and the way back to TOML."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tser.config import LossConfig, NeuronConfig, RunConfig
from tser.config_file import (
    dump_config,
    load_config,
    nearest,
    parse_config,
    preset_names,
    preset_text,
)
from tser.errors import UsageError

SECTIONS = ("data", "teacher", "student", "neuron", "loss", "train")


def complaint(source: str, *overrides: str) -> str:
    """What is said about a configuration: one line, exit code 2."""
    with pytest.raises(UsageError) as caught:
        load_config(source, overrides)
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert "\n" not in text
    return text


def write(folder: Path, text: str, name: str = "mine.toml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


# --- presets -------------------------------------------------------------------------------


def test_the_presets_that_ship() -> None:
    assert {"digits", "fashion-mnist"} <= set(preset_names())
    assert preset_names() == sorted(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_names_itself(name: str) -> None:
    config = load_config(name)
    assert config.preset == name
    for section, values in tomllib.loads(preset_text(name)).items():
        assert section in SECTIONS
        for key, value in values.items():
            assert getattr(getattr(config, section), key) == value


def test_an_unknown_preset_is_refused_with_the_nearest_name() -> None:
    text = complaint("digit")
    assert "there is no preset or file 'digit', did you mean 'digits'?" in text
    assert "fashion-mnist" in text
    assert "did you mean" not in complaint("zzzzzz")
    assert "no preset or file ''" in complaint("")


# --- layers --------------------------------------------------------------------------------


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == RunConfig()


def test_a_preset_wins_over_the_defaults_and_an_override_over_both() -> None:
    shipped = tomllib.loads(preset_text("fashion-mnist"))
    default = RunConfig()
    config = load_config("fashion-mnist", ["train.lr=0.25", "neuron.v_th = 0.5"])
    assert shipped["data"]["name"] != default.data.name
    assert config.data.name == shipped["data"]["name"]
    assert config.train.batch_size == shipped["train"]["batch_size"]
    assert shipped["train"]["lr"] != 0.25
    assert config.train.lr == 0.25
    assert config.neuron == NeuronConfig(v_th=0.5)
    assert config.loss == default.loss


def test_a_file_wins_over_the_defaults_and_an_override_over_both(tmp_path: Path) -> None:
    file = write(tmp_path, "[train]\nepochs = 7\nlr = 0.5\n[loss]\nkl = 'none'\n")
    config = load_config(file, ["train.epochs=9"])
    assert (config.train.epochs, config.train.lr, config.loss.kl) == (9, 0.5, "none")
    assert config.train.momentum == RunConfig().train.momentum
    assert config.preset == ""


def test_the_last_override_wins() -> None:
    assert load_config("digits", ["train.epochs=5", "train.epochs=6"]).train.epochs == 6


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.epochs=5", "train", "epochs", 5),
        (" train.epochs = 5 ", "train", "epochs", 5),
        ("train.lr=1", "train", "lr", 1.0),
        ("train.lr=1e-2", "train", "lr", 0.01),
        ("data.flip=true", "data", "flip", True),
        ("loss.kl=aggregated", "loss", "kl", "aggregated"),
        ("loss.kl = aggregated ", "loss", "kl", "aggregated"),
        ("loss.kl='aggregated'", "loss", "kl", "aggregated"),
        ("train.device=cuda:1", "train", "device", "cuda:1"),
        ("data.root=/some where/else", "data", "root", "/some where/else"),
        ("data.root=a=b", "data", "root", "a=b"),
        ("data.root=", "data", "root", ""),
    ],
)
def test_an_override_is_toml_or_a_bare_word(
    override: str, section: str, key: str, value: Any
) -> None:
    found = getattr(getattr(load_config("digits", [override]), section), key)
    assert found == value
    assert type(found) is type(value)


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=5", ("unknown configuration key 'train.epoch'", "did you mean 'epochs'?")),
        ("data.nam=x", ("'data.nam'", "did you mean 'name'?", "limit_train")),
        ("trian.epochs=5", ("'trian'", "did you mean 'train'?")),
        ("neuron.tau=1", ("'neuron.tau'", "did you mean 'tau_mem'?")),
        ("qqq.zzz=1", ("'qqq'", "known here: preset, data")),
        ("preset.x=1", ("--set 'preset.x=1'", "preset is a value, not a section")),
        ("train.lr.x=1", ("--set 'train.lr.x=1'", "lr is a value, not a section")),
        ("train", ("--set takes section.key=value", "'train'")),
        ("=5", ("--set takes section.key=value", "'=5'")),
        ("train.=5", ("--set takes section.key=value",)),
        (".epochs=5", ("--set takes section.key=value",)),
        ("train=5", ("bad value for train in digits", "got 5")),
    ],
)
def test_an_unknown_key_is_refused(override: str, words: tuple[str, ...]) -> None:
    text = complaint("digits", override)
    assert all(word in text for word in words), text


def test_an_unknown_key_of_a_file_names_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[student]\ntimestep = 3\n")
    text = complaint(file)
    assert f"unknown configuration key 'student.timestep' in {file}" in text
    assert "did you mean 'timesteps'?" in text


@pytest.mark.parametrize(
    "override",
    [
        "student.timesteps=0",
        "student.timesteps=-1",
        "student.stages=0",
        "student.width=0",
        "teacher.epochs=0",
        "train.batch_size=1",
        "train.lr=0",
        "train.lr=-0.1",
        "train.momentum=1",
        "train.weight_decay=-0.5",
        "train.warmup_epochs=-1",
        "train.seed=-1",
        "train.seed=4294967296",
        "data.limit_train=-1",
        "data.shift=-1",
        "neuron.dt=0",
        "neuron.tau_mem=0",
        "neuron.alpha=0",
        "loss.alpha=-0.1",
        "loss.gamma=-0.1",
        "loss.temperature=0",
        # not numbers
        "train.lr=nan",
        "train.lr=inf",
        "train.lr=fast",
        "neuron.v_th=nan",
        "neuron.v_th=inf",
        "neuron.v_leak=-inf",
        "loss.gamma=nan",
        # of another type
        "train.epochs=5.0",
        "train.epochs='5'",
        "train.epochs=true",
        "train.lr='0.1'",
        "data.flip=1",
        "data.flip='yes'",
        "data.name=5",
        "data.name=[1]",
        # not a choice
        "loss.ce=per_step",
        "loss.kl=off",
        "loss.weighting=mean",
        "loss.entropy_at=2",
        "neuron.surrogate=super",
        "train.device=gpu",
        "train.device=cuda:",
        "train.device=meta",
    ],
)
def test_a_bad_value_is_refused_by_its_name(override: str) -> None:
    key, _, given = override.partition("=")
    text = complaint("digits", override)
    assert text.startswith(f"bad value for {key} in digits: ")
    assert text.lower().replace("'", "").endswith(f", got {given}".replace("'", ""))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["neuron.dt=0.01"], "dt = 0.01 s must not exceed tau_mem = 0.002 s"),
        (["neuron.v_th=0"], "v_th must lie above v_leak and v_reset"),
        (["neuron.v_leak=1"], "v_th must lie above v_leak and v_reset"),
        (["neuron.v_reset=1.5"], "v_th must lie above v_leak and v_reset"),
        (["loss.weighting=convex", "loss.alpha=1.5"], "alpha = 1.5 must be at most 1"),
    ],
)
def test_values_that_do_not_go_together_are_refused(overrides: list[str], words: str) -> None:
    text = complaint("digits", *overrides)
    section = overrides[0].partition(".")[0]
    assert text.startswith(f"bad value for {section} in digits: ")
    assert words in text


def test_the_limits_themselves_are_allowed() -> None:
    NeuronConfig(dt=2e-3, tau_mem=2e-3)
    LossConfig(weighting="convex", alpha=1.0)
    LossConfig(weighting="additive", alpha=1.5)
    load_config("digits", ["train.batch_size=2", "train.seed=4294967295", "data.shift=0"])


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert complaint(str(missing)) == f"there is no configuration file {missing}"
    (tmp_path / "folder.toml").mkdir()
    assert "cannot read the configuration file" in complaint(str(tmp_path / "folder.toml"))
    broken = write(tmp_path, "[train\nepochs = 5\n", "broken.toml")
    assert f"{broken} is not valid TOML" in complaint(broken)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    assert "cannot read the configuration file" in complaint(str(tmp_path / "bytes.toml"))


def test_a_value_in_place_of_a_section(tmp_path: Path) -> None:
    file = write(tmp_path, "train = 'fast'\n")
    assert complaint(file).startswith(f"bad value for train in {file}: ")
    assert "train is a value, not a section" in complaint(file, "train.epochs=3")


def test_parse_config_names_its_origin() -> None:
    with pytest.raises(UsageError, match=r"'data\.nmae' in a checkpoint, did you mean 'name'"):
        parse_config({"data": {"nmae": "digits"}}, origin="a checkpoint")


def test_nearest() -> None:
    assert nearest("epoch", ["epochs", "lr"]) == ", did you mean 'epochs'?"
    assert nearest("epoch", ["lr"]) == nearest("epoch", []) == ""


# --- the model itself ----------------------------------------------------------------------


@pytest.mark.parametrize("section", SECTIONS)
def test_a_configuration_is_frozen(section: str) -> None:
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, section, getattr(config, section))
    part = getattr(config, section)
    key = next(iter(type(part).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(part, key, getattr(part, key))


def test_loading_twice_shares_nothing() -> None:
    load_config("digits", ["train.epochs=1", "data.shift=3"])
    assert load_config("digits") == load_config("digits")
    assert load_config("digits").data.shift != 3


def test_every_value_is_described() -> None:
    for section in SECTIONS:
        model = RunConfig.model_fields[section].annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for name, field in model.model_fields.items():
            assert field.description, f"{section}.{name}"


def names_of(model: type[BaseModel], key: str) -> st.SearchStrategy[Any]:
    return st.sampled_from(get_args(model.model_fields[key].annotation))


CONFIGS = st.fixed_dictionaries(
    {
        "preset": st.text(max_size=8),
        "data": st.fixed_dictionaries(
            {
                "name": st.text(st.characters(codec="utf-8"), max_size=8),
                "root": st.text(st.characters(codec="utf-8"), max_size=20),
                "limit_train": st.integers(0, 10**6),
                "flip": st.booleans(),
            }
        ),
        "neuron": st.fixed_dictionaries(
            {
                "dt": st.floats(1e-9, 1e-3),
                "v_th": st.floats(1e-3, 1e30),
                "v_leak": st.floats(-1e30, 0.0),
                "surrogate": names_of(NeuronConfig, "surrogate"),
                "alpha": st.floats(1e-300, 1e6),
            }
        ),
        "loss": st.fixed_dictionaries(
            {
                "ce": names_of(LossConfig, "ce"),
                "kl": names_of(LossConfig, "kl"),
                "weighting": names_of(LossConfig, "weighting"),
                "entropy_at": names_of(LossConfig, "entropy_at"),
                "alpha": st.floats(0, 1),
                "gamma": st.floats(0, 1e6),
            }
        ),
        "train": st.fixed_dictionaries({"seed": st.integers(0, 2**32 - 1)}),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(values=CONFIGS)
def test_dump_and_parse_give_the_same_configuration(values: dict[str, Any]) -> None:
    config = parse_config(values, origin="a test")
    assert parse_config(tomllib.loads(dump_config(config)), origin="a dump") == config


@pytest.mark.parametrize("name", preset_names())
def test_a_dump_holds_every_value_and_loads_from_a_file(name: str, tmp_path: Path) -> None:
    config = load_config(name, ["train.seed=3"])
    file = write(tmp_path, dump_config(config))
    assert load_config(file) == config
    written = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    assert set(written) == {"preset", *SECTIONS}
    for section in SECTIONS:
        assert set(written[section]) == set(type(getattr(config, section)).model_fields)


def test_reading_a_configuration_does_not_import_torch() -> None:
    code = (
        "import sys; from tser.config_file import load_config; load_config('digits'); "
        "print([name for name in ('torch', 'norse', 'numpy', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_a_file_can_start_from_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "fashion-mnist"\n[student]\ntimesteps = 2\n')
    config = load_config(str(file), ["train.epochs=3"])
    shipped = tomllib.loads(preset_text("fashion-mnist"))
    assert config.student.timesteps == 2
    assert config.student.width == shipped["student"]["width"]
    assert config.train.epochs == 3
    assert config.train.batch_size == shipped["train"]["batch_size"]
