"""The search space: which settings each model has, their defaults, and the flags they become."""

import functools

import pytest

import train
from utils.errors import UserError
from utils.search.space import BANKS, Dimension, build_space, default_values, draw, narrow_space, to_flags
from utils.search.study import import_optuna


@functools.cache
def spaces() -> dict:
    from models.registry import create_model, model_arguments

    cases = {
        "cnn": (224, False, 0),
        "resnet10t": (224, True, 6),
        "lightgbm": (256, False, 0),
        "random_forest": (256, False, 0),
    }
    return {name: build_space(create_model(name), model_arguments(name), *facts) for name, facts in cases.items()}


def test_the_model_decides_what_is_searched():
    names = {name: {dimension.name for dimension in space} for name, space in spaces().items()}
    assert {"lr", "weight-decay", "augmentation", "train-size", "dropout"} == names["cnn"]
    assert names["resnet10t"] == names["cnn"] | {"freeze"}
    assert names["lightgbm"] == {"rounds", "leaves", "learning_rate", *BANKS}
    assert names["random_forest"] == {"trees", "depth", *BANKS}


def test_every_default_can_be_drawn_and_is_what_train_does():
    parser = train.get_args_parser()
    for name, space in spaces().items():
        values = draw(import_optuna().trial.FixedTrial(default_values(space)), space)
        assert values == default_values(space)
        parsed = vars(parser.parse_args(["--model", name, *to_flags(values, space, {})]))
        plain = vars(parser.parse_args([]))
        for dimension in space:
            key = dimension.name.replace("-", "_")
            if not dimension.is_model_arg and key != "train_size":  # None, which is the size of the input
                assert parsed[key] == plain[key], key


@pytest.mark.parametrize(
    ("left_out", "features"), [((), BANKS), (("dct", "lbp"), ("spectrum", "srm", "color")), (BANKS, BANKS)]
)
def test_banks_become_one_argument(left_out, features):
    space = spaces()["lightgbm"]
    values = {**default_values(space), **dict.fromkeys(left_out, False)}
    flags = to_flags(values, space, {"input_size": 128})
    assert f"features={','.join(features)}" in flags and "input_size=128" in flags and "dct=False" not in flags


def test_fixed_settings_are_not_searched():
    space = [Dimension("lr", 1e-3, low=1e-4, high=1e-2), Dimension("augmentation", "light", ("none", "light"))]
    assert [d.name for d in narrow_space(space, [], ["lr"])] == ["augmentation"]
    with pytest.raises(UserError, match="expected --search of lr, augmentation"):
        narrow_space(space, ["rate"], [])
    with pytest.raises(UserError, match="found none"):
        narrow_space(space, ["lr"], ["lr"])
