"""What is wrong with a run is known, and all of it, before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit.config import RunConfig, load, preflight, recipes
from vitkit.plugins import Registries, hookimpl, registries

DIGITS = (1, 8, 8)
SHAPES = {
    "digits": ((1, 8, 8), 10, 1437),
    "mnist": ((1, 28, 28), 10, 60000),
    "fashion_mnist": ((1, 28, 28), 10, 60000),
    "cifar10": ((3, 32, 32), 10, 50000),
    "cifar100": ((3, 32, 32), 100, 50000),
}


# Of digits, but independent of what its recipe is tuned to.
BASE = ("model.variant=S/2", "model.dim=64", "model.num_heads=4", "data.val_fraction=0.1",
        "data.augment=['flip']", "train.epochs=60", "train.batch_size=128", "train.lr=1e-3",
        "train.warmup_epochs=none")  # fmt: skip


@pytest.fixture(scope="module")
def known() -> Registries:
    return registries()


def found(known: Registries, *overrides: str, shape: Any = DIGITS, images: int | None = 1437,
          classes: int = 10) -> list[str]:  # fmt: skip
    """Return the problems of digits with the overrides."""
    config = load([], [*BASE, *overrides], environ={})
    return preflight(config, shape, classes, known, num_images=images)


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_has_no_problem(known: Registries, name: str) -> None:
    shape, classes, images = SHAPES[name]
    config = load([], [f"data.name={name}"], environ={})
    assert preflight(config, shape, classes, known, num_images=images) == []


@pytest.mark.parametrize("name", recipes())
def test_a_short_run_of_a_recipe_has_no_problem(known: Registries, name: str) -> None:
    shape, classes, images = SHAPES[name]
    config = load([], [f"data.name={name}"], {"train.epochs": 1}, environ={})
    assert preflight(config, shape, classes, known, num_images=images) == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.num_heads=5"], "model.num_heads: 5 heads do not divide dim 64; nearest valid: "
         "num_heads 2 or 4, or dim 60 or 65"),
        (["model.dim=50", "model.num_heads=12"], "model.num_heads: 12 heads do not divide dim 50; "
         "nearest valid: num_heads 5 or 10, or dim 48 or 60"),
        (["model.patch_size=[2, 3]"], "model.patch_size: 3 does not divide the image width 8; "
         "nearest valid: patch_size 2 or 4, or image width 6 or 9"),
        (["model.patch_size=[5, 2]"], "model.patch_size: 5 does not divide the image height 8; "),
        (["model.activation=gleu"], "model.activation: got 'gleu'; expected one of gelu, "),
        (["model.pool=clss"], "model.pool: got 'clss'; expected one of cls, mean; did you mean "
         "'cls'?"),
        (["model.variant=Q/2"], "model.variant: got 'Q/2'; expected a size (Ti, S, B, L, H), "),
        (["model.image_size=[8, 16]"], "model.image_size: got (8, 16), but the images of digits "
         "are 8 high and 8 wide; leave it out."),
        (["model.in_channels=3"], "model.in_channels: got 3, but the images of digits have 1; "
         "leave it out."),
        (["model.num_classes=5"], "model.num_classes: got 5, but digits has 10; leave it out."),
        (["train.batch_size=2000"], "train.batch_size: got 2000, expected at most 1293, the images "
         "of digits to train on."),
        (["data.val_fraction=0.9999"], "data.val_fraction: 0.9999 of digits leaves no image to "
         "train on; use a smaller part."),
        (["train.warmup_epochs=60"], "train.warmup_epochs: got 60, expected less than train.epochs "
         "(60); leave it out for a tenth of the epochs."),
        (["train.lr=0"], "train.lr: got 0, expected more than 0 and at most 10; "),
        (["train.lr=2000"], "train.lr: got 2000, expected more than 0 and at most 10; "),
        (["backend=cuppy"], "backend: got 'cuppy', expected one of auto, cupy, numpy; did you mean "
         "'cupy'?"),
        (["data.name=digit"], "data.name: no dataset is named 'digit'; did you mean 'digits'? "
         "Known: cifar10, cifar100, digits, fashion_mnist, folder, mnist, npz."),
        (["data.val_fraction=0"], "train.monitor: got 'val_loss', but data.val_fraction is 0; "
         "monitor 'train_loss', or hold back a part, such as 0.1."),
        (["train.monitor=val_accuracy"], "train.mode: got 'min', expected 'max' for val_accuracy."),
        (["train.mode=max"], "train.mode: got 'max', expected 'min' for val_loss."),
        (["train.precision=bfloat16", "dtype=float64"], "train.precision: got 'bfloat16', but "
         "dtype is 'float64'; leave one of them out."),
        (["optimizer=adamv"], "optimizer: no optimizer is named 'adamv'; did you mean 'adam'? "
         "Known: adam, adamw, lamb, lion, sgd."),
        (["optimizer=adamw(beta=3)"], "optimizer: adamw has no argument 'beta'; did you mean "
         "'betas'? It takes: betas, eps."),
        (["optimizer=adamw(betas=0.9)"], "optimizer: adamw: betas must be two numbers"),
        (["optimizer=sgd(nesterov=True)"], "optimizer: sgd: nesterov=True needs momentum > 0"),
        (["schedule=cosin"], "schedule: no schedule is named 'cosin'; did you mean 'cosine'?"),
        (["schedule=step"], "schedule: step needs milestones; write step(milestones=...)."),
        (["schedule=cosine(lr=1.0)"], "schedule: lr of cosine is set by train.lr."),
        (["schedule=cosine(warmup_steps=1)"], "schedule: warmup_steps of cosine is set by "
         "train.warmup_epochs."),
        (["schedule=cosine(total_steps=1)"], "schedule: total_steps of cosine is set by "
         "train.epochs."),
        (["schedule=cosine(min_lr=1.0)"], "schedule: cosine: min_lr must be a number"),
        (["train.loss=softmax"], "train.loss: no loss is named 'softmax'"),
        (["train.loss=sigmoid_bce(labels=3)"], "train.loss: sigmoid_bce has no argument 'labels'. "
         "It takes: none."),
        (["train.loss=sigmoid_bce(label_smoothing=0.1)"], "train.loss: label_smoothing of "
         "sigmoid_bce is set by train.label_smoothing."),
        (["data.augment=['flip', 'crup(padding=1)']"], "data.augment[1]: no transform is named "
         "'crup'; did you mean 'crop'? Known: affine, crop, flip."),
        (["data.augment=['crop']"], "data.augment[0]: crop needs padding; write crop(padding=...)"),
        (["data.augment=['crop(pad=1)']"], "data.augment[0]: crop has no argument 'pad'; did you "
         "mean 'padding'? It takes: padding."),
        (["data.augment=['crop(padding=0)']"], "data.augment[0]: crop: RandomCrop: padding must be "
         "a whole number >= 1; got 0."),
        (["schedule=step(milestones=5)"], "schedule: step: milestones must be a list of steps"),
        (["data.augment=['affine(scale=1.1)']"], "data.augment[0]: affine: RandomAffine: scale "
         "must be two factors"),
        (["backend=gpu"], "backend: got 'gpu', expected one of auto, cupy, numpy; did you mean "
         "'cupy'?"),
        (["backend=CUDA"], "backend: got 'CUDA', expected one of auto, cupy, numpy; did you mean "
         "'cupy'?"),
        (["backend=cpu"], "backend: got 'cpu', expected one of auto, cupy, numpy; did you mean "
         "'numpy'?"),
        (["data.augment=['crop(padding=\"a\")']"], "data.augment[0]: crop: "),
    ],
)  # fmt: skip
def test_a_problem_is_one_line(known: Registries, overrides: list[str], line: str) -> None:
    problems = found(known, *overrides)
    assert any(problem.startswith(line) for problem in problems), problems
    assert all("\n" not in problem for problem in problems)


def test_a_single_slip_is_a_single_line(known: Registries) -> None:
    for override in ("model.num_heads=5", "optimizer=adamv", "train.batch_size=2000",
                     "model.num_classes=5", "data.augment=['crop']", "train.lr=11"):  # fmt: skip
        assert len(found(known, override)) == 1, override


def test_several_problems_are_listed_together(known: Registries) -> None:
    problems = found(
        known,
        "model.num_heads=5",
        "model.patch_size=3",
        "model.num_classes=7",
        "train.batch_size=9999",
        "train.lr=0",
        "optimizer=adamv",
        "schedule=cosin",
        "train.loss=mse",
        "data.augment=['crup', 'flip(q=1)']",
    )
    starts = ["train.lr", "model.num_classes", "model.num_heads", "model.patch_size",
              "model.patch_size", "train.batch_size", "optimizer", "schedule", "train.loss",
              "data.augment[0]", "data.augment[1]"]  # fmt: skip
    assert [problem.split(":")[0] for problem in problems] == starts


def test_sizes_that_differ_in_height_and_width_fit(known: Registries) -> None:
    wide = (3, 24, 32)
    assert found(known, "model.patch_size=[6, 8]", shape=wide) == []
    problems = found(known, "model.patch_size=[8, 6]", shape=wide)
    assert [problem.split(";")[0] for problem in problems] == [
        "model.patch_size: 6 does not divide the image width 32"
    ]


def test_before_the_data_are_read_names_are_checked_and_sizes_are_not(known: Registries) -> None:
    config = load([], ["model.patch_size=3", "optimizer=adamv"], environ={})
    (problem,) = preflight(config, None, None, known)
    assert problem.startswith("optimizer: no optimizer is named 'adamv'")


def test_before_the_data_are_read_settings_are_judged_by_each_other(known: Registries) -> None:
    config = load([], [*BASE, "model.num_heads=5", "model.image_size=[9, 8]"], environ={})
    found = preflight(config, None, None, known)
    assert [line.split(":")[0] for line in found] == ["model.num_heads", "model.patch_size"]
    config = load([], [*BASE, "schedule=step(milestones=[9])"], environ={})
    assert preflight(config, None, None, known) == []  # the length of the warm-up is not known


def test_it_counts_what_validation_leaves(known: Registries) -> None:
    half = ["data.val_fraction=0.5", "train.batch_size=51"]
    assert found(known, *half, images=102) == []
    assert len(found(known, *half, images=101)) == 1


def test_nothing_is_allocated(known: Registries, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("preflight made an array")

    for name in ("zeros", "empty", "ones", "asarray"):
        monkeypatch.setattr(np, name, refuse)
    huge = ["model.variant=H/1", "model.dim=1280000", "model.num_heads=3"]
    problems = found(known, *huge)
    assert len(problems) == 1
    assert "do not divide" in problems[0]


def test_a_loss_that_does_not_smooth_is_not_asked_to(
    with_plugin: Callable[[object], Registries],
) -> None:
    class Zoo:
        @hookimpl
        def register_losses(self, register: Any) -> None:
            register("focal", lambda logits, labels, gamma=2.0, *, xp: None)

    known = with_plugin(Zoo())
    assert found(known, "train.loss=focal(gamma=1.0)") == []
    assert found(known, "train.loss=focal", "train.label_smoothing=0.1") == [
        "train.label_smoothing: got 0.1, expected 0, since focal takes none."
    ]


def test_a_component_that_takes_anything_is_given_anything(
    with_plugin: Callable[[object], Registries],
) -> None:
    class Zoo:
        @hookimpl
        def register_schedules(self, register: Any) -> None:
            register("free", lambda **settings: settings["lr"])

    assert found(with_plugin(Zoo()), "schedule=free(own=1)") == []
    assert found(registries(), "schedule=free(total_steps=1)") == [
        "schedule: total_steps of free is set by train.epochs."
    ]


def test_defaults_have_problems_only_where_there_is_no_data() -> None:
    config = RunConfig()
    problems = preflight(config, (3, 224, 224), 10, registries(), num_images=1000)
    assert problems == []
