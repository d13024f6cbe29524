"""From a configuration to the objects of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitkit import optim
from vitkit.config import RunConfig, build, load, load_data, preflight, resolved
from vitkit.config.build import steps
from vitkit.config.resolve import spelled_out
from vitkit.config.spec import Spec
from vitkit.data.dataset import ArrayDataset, Splits
from vitkit.data.transforms import HorizontalFlip, RandomCrop
from vitkit.errors import ConfigError
from vitkit.kernels import served_precision
from vitkit.plugins import Registries, hookimpl, registries


@pytest.fixture(scope="module")
def known() -> Registries:
    return registries()


@pytest.fixture
def data() -> Splits:
    """Return 40 + 12 colour images, 6 high and 8 wide, of 4 classes."""

    def part(count: int) -> ArrayDataset:
        images = np.arange(count * 3 * 6 * 8, dtype=np.uint32).reshape(count, 3, 6, 8) % 251
        return ArrayDataset(images.astype(np.uint8), np.arange(count) % 4, classes=list("abcd"))

    return Splits(part(40), part(12))


SMALL = ("model.variant=S/2", "model.dim=8", "model.depth=1", "model.num_heads=2",
         "train.batch_size=8", "data.augment=['flip', 'crop(padding=2)']")  # fmt: skip


def config_of(*overrides: str) -> RunConfig:
    return load([], [*SMALL, *overrides], environ={"VITKIT_BACKEND": "numpy"})


def test_sizes_come_from_the_data(known: Registries, data: Splits) -> None:
    parts = build(config_of("seed=3"), known, data)
    sizes = parts.model.config
    assert (sizes.in_channels, sizes.image_size, sizes.num_classes) == (3, (6, 8), 4)
    assert (sizes.dim, sizes.depth, sizes.mlp_dim, sizes.patch_size) == (8, 1, 32, (2, 2))
    batch = next(iter(parts.train.batches(0)))
    assert batch.images.shape == (8, 3, 6, 8)


def test_loaders_share_out_the_images(known: Registries, data: Splits) -> None:
    parts = build(config_of("data.val_fraction=0.25", "data.num_workers=2"), known, data)
    assert parts.val is not None
    assert {each.num_workers for each in (parts.train, parts.val, parts.test)} == {2}
    assert [len(each.dataset) for each in (parts.train, parts.val, parts.test)] == [30, 10, 12]
    assert (parts.train.shuffle, parts.val.shuffle, parts.test.shuffle) == (True, False, False)
    assert parts.train.transforms == parts.transforms == (HorizontalFlip(), RandomCrop(2))
    assert parts.val.transforms == parts.test.transforms == ()
    everything = build(config_of("data.val_fraction=0", "train.monitor=train_loss"), known, data)
    assert everything.val is None
    assert len(everything.train.dataset) == 40


def test_the_seed_decides_weights_order_and_split(known: Registries, data: Splits) -> None:
    def run(seed: int) -> tuple[Any, Any, Any]:
        parts = build(config_of(f"seed={seed}"), known, data)
        assert parts.val is not None
        first = next(iter(parts.train.batches(0)))
        return (
            parts.model.state_dict()["pos_embed"].tobytes(),
            first.indices.tobytes(),
            next(iter(parts.val.batches(0))).images.tobytes(),
        )

    assert run(1) == run(1)
    assert all(one != other for one, other in zip(run(1), run(2), strict=True))


def test_the_schedule_knows_the_length_of_the_run(known: Registries, data: Splits) -> None:
    config = config_of("train.epochs=20", "train.lr=0.5", "schedule=linear(min_lr=0.1)",
                       "data.val_fraction=0.25", "train.grad_accum=3")  # fmt: skip
    assert steps(config, 30) == (40, 4)  # 4 batches an epoch, so 2 updates
    schedule = build(config, known, data).schedule
    assert schedule == optim.Linear(0.5, 40, 4, 0.1)
    assert schedule(3) == 0.5
    assert schedule(40) == 0.1


def test_warm_up_may_be_given_in_parts_of_an_epoch(known: Registries) -> None:
    config = config_of("train.epochs=20", "train.warmup_epochs=2.5")
    assert steps(config, 80) == (200, 25)
    assert steps(config_of("train.warmup_epochs=0"), 80)[1] == 0
    assert steps(config_of("train.epochs=1", "train.warmup_epochs=0.9"), 8) == (1, 0)


def test_rates_left_out_are_the_optimizers_own(known: Registries, data: Splits) -> None:
    parts = build(config_of("optimizer=lion"), known, data)
    own = optim.Lion()
    assert (parts.optimizer.lr, parts.optimizer.weight_decay) == (own.lr, own.weight_decay)
    assert parts.schedule(steps(config_of("optimizer=lion"), 36)[1]) == own.lr


def test_the_optimizer_is_attached_with_what_was_given(known: Registries, data: Splits) -> None:
    config = config_of("optimizer=adamw(lr=0.25, betas=(0.5, 0.75))", "train.weight_decay=0.125")
    parts = build(config, known, data)
    optimizer: Any = parts.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.betas) == (0.25, 0.125, (0.5, 0.75))
    before = parts.model.state_dict()["head.weight"]
    for group in parts.model.groups:
        group.grads.fill(1)
    optimizer.step()
    assert not np.array_equal(parts.model.state_dict()["head.weight"], before)


def test_layers_near_the_images_learn_slower_where_asked(known: Registries, data: Splits) -> None:
    config = config_of("optimizer=sgd(lr=1.0, weight_decay=0.0)", "train.layer_decay=0.5")
    parts = build(config, known, data)
    before = parts.model.state_dict()
    for group in parts.model.groups:
        group.grads.fill(1)
    parts.optimizer.step()
    after = parts.model.state_dict()
    moved = [float(np.mean(before[name] - after[name])) for name in ("pos_embed", "head.bias")]
    assert moved == pytest.approx([0.25, 1.0], rel=1e-5)  # one block lies between


def test_the_loss_smooths_as_asked(known: Registries, data: Splits) -> None:
    logits, labels = np.array([[2.0, 0.0]]), np.array([0])
    values = []
    for smoothing in (0.0, 0.5):
        loss = build(config_of(f"train.label_smoothing={smoothing}"), known, data).loss
        value, gradient = loss(logits, labels, xp=np)
        assert gradient.shape == logits.shape
        values.append(float(value))
    plain = np.log1p(np.exp(-2))
    assert values == pytest.approx([plain, plain + 0.25 * 2], rel=1e-12)


def test_dtype_reaches_the_model(known: Registries, data: Splits) -> None:
    model = build(config_of("dtype=float64"), known, data).model
    assert {group.values.dtype for group in model.groups} == {np.dtype("float64")}


def test_precision_reaches_the_model(known: Registries, data: Splits) -> None:
    for wanted in ("float32", "bfloat16"):
        model = build(config_of(f"train.precision={wanted}"), known, data).model
        served = served_precision(wanted, model.xp, "float32")
        assert {module.precision for _, module in model.blocks[0].modules()} == {served}


def test_what_preflight_refuses_build_refuses(known: Registries, data: Splits) -> None:
    config = config_of("optimizer=adamv", "data.augment=['crop']")
    refused = preflight(config, data.train.image_shape, 4, known, num_images=40)
    with pytest.raises(ConfigError) as caught:
        build(config, known, data)
    assert caught.value.problems == refused
    assert len(refused) == 2


def test_a_resolved_run_is_the_same_run(known: Registries, data: Splits) -> None:
    config = config_of("optimizer=lion", "train.epochs=20")
    parts = build(config, known, data)
    full = resolved(config, parts, known)
    assert full.model.image_size == (6, 8)
    assert full.model.num_classes == 4
    assert full.model.activation == "gelu"
    assert (full.train.lr, full.train.warmup_epochs) == (optim.Lion().lr, 2.0)
    assert full.backend == "numpy"
    assert full.optimizer == Spec("lion", {"betas": (0.9, 0.99)})
    assert full.schedule == Spec("cosine", {"min_lr": 0.0})
    assert full.train.loss == Spec("softmax_cross_entropy")
    assert full.data.augment == (Spec("flip", {"p": 0.5}), Spec("crop", {"padding": 2}))
    again = build(full, known, data)
    assert again.model.config == parts.model.config
    assert again.schedule == parts.schedule
    assert resolved(full, again, known) == full


def test_a_resolved_run_names_the_backend_used_and_where_the_data_are(
    known: Registries, data: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load([], [*SMALL, "backend=auto", "data.path=images.npz"], environ={})
    parts = build(config, known, data)
    full = resolved(config, parts, known)
    assert full.backend == parts.model.xp.__name__ in ("numpy", "cupy")
    assert full.data.path == str((tmp_path / "images.npz").resolve())


def test_a_resolved_run_keeps_what_was_asked_of_its_components(known: Registries) -> None:
    config = config_of("optimizer=adamw(eps=1e-6)", "data.augment=['affine(degrees=5)']")
    full = spelled_out(config, known)
    assert full.optimizer == Spec("adamw", {"betas": (0.9, 0.999), "eps": 1e-6})
    assert full.data.augment[0].kwargs == {"degrees": 5, "translate": 0.0, "scale": (1.0, 1.0)}
    assert spelled_out(full, known) == full


# --- data --------------------------------------------------------------------------------------


def test_digits_need_nothing(known: Registries) -> None:
    splits = load_data(load([], [], environ={}), known)
    assert splits.train.image_shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.name=digitz"], "data.name: no dataset is named 'digitz'; did you mean 'digits'?"),
        (["data.path=/x"], "data.path: got '/x', but digits takes no path; leave it out."),
        (["data.name=folder"], "data.path: got nothing, expected where the files of folder are."),
        (["data.name=npz"], "data.path: got nothing, expected where the files of npz are."),
    ],
)
def test_a_wrong_place_is_named(known: Registries, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_data(load([], overrides, environ={}), known)
    assert caught.value.problems[0].startswith(message)


def test_a_data_set_gets_what_it_takes(
    data: Splits, with_plugin: Callable[[object], Registries]
) -> None:
    got: list[tuple[Any, ...]] = []

    def sized(root: str, image_size: int = 224, *, seed: int = 0) -> Splits:
        got.append((root, image_size, seed))
        return data

    def plain(image_size: int = 5) -> Splits:
        got.append((image_size,))
        return data

    class Zoo:
        @hookimpl
        def register_datasets(self, register: Any) -> None:
            register("sized", sized)
            register("plain", plain)
            register("anything", anything)

    def anything(*args: Any, **settings: Any) -> Splits:
        got.append((*args, settings))
        return data

    known = with_plugin(Zoo())
    for overrides in (
        ["data.name=sized", "data.path=/x", "seed=7"],
        ["data.name=sized", "data.path=/x", "model.image_size=32"],
        ["data.name=plain"],
        ["data.name=anything", "data.path=/y"],
    ):
        assert load_data(load([], overrides, environ={}), known) is data
    assert got == [("/x", 224, 7), ("/x", 32, 0), (5,), ("/y", {})]


def test_npz_is_read_from_its_path(known: Registries, tmp_path: Path) -> None:
    images = np.zeros((20, 4, 4), np.uint8)
    images[:, 0, 0] = np.arange(20)
    np.savez(tmp_path / "own.npz", x_train=images, y_train=np.arange(20) % 2)
    config = load([], ["data.name=npz", f"data.path={tmp_path / 'own.npz'}"], environ={})
    splits = load_data(config, known)
    assert len(splits.train.classes) == 2
    assert len(splits.train) + len(splits.test) == 20
