"""The models: strict, frozen, and with one place for each setting."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from vitkit.backend.precision import PRECISIONS
from vitkit.config import RunConfig, Spec
from vitkit.config.run import DataConfig, ModelConfig, TrainConfig, settle
from vitkit.errors import ConfigError
from vitkit.models import ViTConfig
from vitkit.signals import Terminated


def test_an_empty_table_is_a_whole_run() -> None:
    config = RunConfig.model_validate({})
    assert config == RunConfig()
    assert config.data.name == "digits"
    assert config.optimizer == Spec("adamw")
    assert config.train.monitor == "val_loss"


def test_the_model_has_the_settings_that_vit_has() -> None:
    assert set(ModelConfig.model_fields) == {field.name for field in fields(ViTConfig)}


def test_the_precisions_are_those_of_models() -> None:
    assert get_args(TrainConfig.model_fields["precision"].annotation) == PRECISIONS


def test_nothing_can_be_changed() -> None:
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.train.epochs = 3


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        (TrainConfig, "epochs", True),
        (TrainConfig, "epochs", 3.0),
        (TrainConfig, "epochs", "3"),
        (TrainConfig, "epochs", 0),
        (TrainConfig, "epochs", 2**63),
        (TrainConfig, "lr", "0.1"),
        (TrainConfig, "lr", True),
        (TrainConfig, "lr", -1.0),
        (TrainConfig, "lr", float("nan")),
        (TrainConfig, "lr", float("inf")),
        (TrainConfig, "max_time", "2 weeks"),
        (TrainConfig, "max_time", ""),
        (TrainConfig, "max_time", "h"),
        (TrainConfig, "max_time", "0s"),
        (TrainConfig, "max_time", 0),
        (TrainConfig, "mode", "maximum"),
        (TrainConfig, "label_smoothing", 1.0),
        (TrainConfig, "layer_decay", 0.0),
        (TrainConfig, "ema_decay", 1.0),
        (TrainConfig, "loss", "mse()()"),
        (TrainConfig, "epoch", 3),
        (TrainConfig, "precision", "float8"),
        (TrainConfig, "precision", None),
        (TrainConfig, "callbacks", "printer"),
        (TrainConfig, "callbacks", ["printer(3)"]),
        (ModelConfig, "mlp", 3),
        (ModelConfig, "gradient_checkpointing", 1),
        (ModelConfig, "dropout", 1.0),
        (ModelConfig, "dropout", -0.1),
        (ModelConfig, "image_size", 0),
        (ModelConfig, "image_size", True),
        (ModelConfig, "image_size", [32]),
        (ModelConfig, "image_size", [32, 32, 3]),
        (ModelConfig, "image_size", [32, 0]),
        (ModelConfig, "image_size", 32.0),
        (ModelConfig, "variant", "none"),
        (DataConfig, "val_fraction", 1.0),
        (DataConfig, "augment", "flip"),
        (DataConfig, "augment", ["flip", "crop(3)"]),
        (DataConfig, "num_workers", -1),
        (RunConfig, "seed", -1),
        (RunConfig, "name", "../up"),
        (RunConfig, "name", "a\n"),
        (RunConfig, "dtype", "float16"),
        (RunConfig, "optimizer", None),
    ],
)
def test_a_wrong_value_is_refused(section: Any, name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        section.model_validate({name: value})


@pytest.mark.parametrize(
    ("section", "name", "value", "kept"),
    [
        (TrainConfig, "lr", 1, 1.0),
        (TrainConfig, "max_time", "2h", 7200.0),
        (TrainConfig, "max_time", "1h30m", 5400.0),
        (TrainConfig, "max_time", "90s", 90.0),
        (TrainConfig, "max_time", 12.5, 12.5),
        (TrainConfig, "max_grad_norm", "none", None),
        (TrainConfig, "patience", None, None),
        (ModelConfig, "image_size", 32, 32),
        (ModelConfig, "image_size", [32, 48], (32, 48)),
        (ModelConfig, "patch_size", (4, 8), (4, 8)),
        (DataConfig, "augment", [{"name": "crop", "padding": 4}, "flip"],
         (Spec("crop", {"padding": 4}), Spec("flip"))),
        (TrainConfig, "callbacks", ["printer(every=2)"], (Spec("printer", {"every": 2}),)),
        (ModelConfig, "norm", "none", None),
        (RunConfig, "name", "first-try_2.0", "first-try_2.0"),
        (RunConfig, "optimizer", {"name": "lion"}, Spec("lion")),
    ],
)  # fmt: skip
def test_a_right_value_is_kept(section: Any, name: str, value: object, kept: object) -> None:
    read = getattr(section.model_validate({name: value}), name)
    assert read == kept
    assert type(read) is type(kept)


def test_rates_in_specs_are_kept_in_train() -> None:
    config = RunConfig.model_validate(
        {
            "optimizer": "adamw(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)",
            "schedule": {"name": "cosine", "warmup_epochs": 3, "min_lr": 1e-5},
            "train": {"epochs": 7},
        }
    )
    assert config.optimizer == Spec("adamw", {"betas": (0.9, 0.95)})
    assert config.schedule == Spec("cosine", {"min_lr": 1e-5})
    train = config.train
    assert (train.lr, train.weight_decay, train.warmup_epochs, train.epochs) == (1e-3, 0.1, 3, 7)


def test_rates_in_specs_join_a_train_that_is_an_object() -> None:
    config = RunConfig.model_validate(
        {"optimizer": "lion(lr=1e-4)", "train": TrainConfig(epochs=7)}
    )
    assert (config.train.lr, config.train.epochs) == (1e-4, 7)


def test_a_rate_given_twice_is_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate({"optimizer": "adamw(lr=1e-3)", "train": {"lr": 0.1}})
    assert "train.lr: got 0.1 and optimizer 'adamw(lr=0.001)', expected one of the two." in str(
        caught.value
    )


def test_a_rate_in_a_spec_is_checked_as_a_setting() -> None:
    with pytest.raises(ValidationError, match=r"train\.lr"):
        RunConfig.model_validate({"optimizer": "adamw(lr='fast')"})


def test_errors_of_our_own_are_config_errors_when_called_alone() -> None:
    with pytest.raises(ConfigError):
        settle({"schedule": "cosine(warmup_epochs=1)", "train": {"warmup_epochs": 2}})


@pytest.mark.parametrize("signal", [KeyboardInterrupt, Terminated])
def test_a_signal_while_a_table_is_made_is_no_error_of_a_setting(
    signal: type[BaseException],
) -> None:
    class Interrupted(Spec):
        def __str__(self) -> str:
            raise signal

    with pytest.raises(signal):
        RunConfig.model_construct(optimizer=Interrupted("adamw")).model_dump()
