"""Methods by name: each is its row of the ablation, and nothing else changes."""

from pathlib import Path

import pytest

from tser.config import LossConfig
from tser.config_file import load_config
from tser.errors import UsageError
from tser.methods import METHODS

LADDER = {
    "snn": ("aggregated", "none", 0.0, 0.0),
    "kd": ("aggregated", "aggregated", 0.0, 0.0),
    "ce-per-step": ("per-step", "aggregated", 0.0, 0.0),
    "kl-per-step": ("aggregated", "per-step", 0.0, 0.0),
    "separation": ("per-step", "per-step", 0.0, 0.0),
    "tser": ("per-step", "per-step", 0.01, 0.0),
    "tser-self": ("per-step", "per-step", 0.01, 0.5),
}


def test_the_ladder_is_complete_and_in_order() -> None:
    assert list(METHODS) == list(LADDER)


@pytest.mark.parametrize("name", LADDER)
def test_a_method_sets_its_terms_and_leaves_the_rest(name: str) -> None:
    config = load_config("digits", [f"loss.method={name}", "loss.temperature=2.0"])
    loss = config.loss
    assert (loss.ce, loss.kl, loss.gamma, loss.self_weight) == LADDER[name]
    assert loss.method == name
    assert (loss.temperature, loss.alpha) == (2.0, LossConfig().alpha)
    plain = load_config("digits", ["loss.temperature=2.0"])
    assert config.model_copy(update={"loss": plain.loss}) == plain


def test_the_defaults_are_tser() -> None:
    ours = load_config("digits").loss
    assert (
        load_config("digits", ["loss.method=tser"]).loss.model_copy(update={"method": ""}) == ours
    )


def test_a_key_beside_the_method_wins_wherever_it_stands(tmp_path: Path) -> None:
    for overrides in (["loss.method=kd", "loss.gamma=0.2"], ["loss.gamma=0.2", "loss.method=kd"]):
        assert load_config("digits", overrides).loss.gamma == 0.2
    file = tmp_path / "mine.toml"
    file.write_text('[loss]\ngamma = 0.3\nmethod = "tser-self"\n')
    loss = load_config(str(file)).loss
    assert (loss.gamma, loss.self_weight) == (0.3, 0.5)
    assert load_config(str(file), ["loss.method=snn"]).loss.gamma == 0.0


def test_an_unknown_method_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown loss.method 'tsr'.*did you mean 'tser'"):
        load_config("digits", ["loss.method=tsr"])
    file = tmp_path / "mine.toml"
    file.write_text("[loss]\nmethod = 3\n")
    with pytest.raises(UsageError, match="unknown loss.method 3 in"):
        load_config(str(file))
