"""What a named size must be: options of which a ViT can be made that is right and can be kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from vitkit.backend import philox
from vitkit.errors import ConfigError
from vitkit.models import MODELS, ViT, ViTConfig
from vitkit.models.sizes import OPTIONS_OF_A_SIZE, REQUIRED
from vitkit.nn.context import Context
from vitkit.registry import is_name
from vitkit.testing.check import Check, Skip, run_checks
from vitkit.testing.gradients import directional_derivative_error
from vitkit.testing.parts.staged import staged

PATCHES = (4, 8, 16, 32)
GRID = 2
TOLERANCE = 1e-6
HEAD_WIDTH = 4
BATCH = 2


def check_model(name: str, options: Mapping[str, Any]) -> None:
    """Check a size of a ViT: its options, its forward and its gradient.

    Parameters
    ----------
    name : str
        What it is registered under: ``"Mu"``, used as ``"Mu/16"``.
    options : mapping of str to object
        ``dim``, ``depth``, ``num_heads``, and any others of ``ViT`` but the patch.

    Raises
    ------
    ConformanceError
        Listing what is wrong.
    """
    run_checks(f"the model {name!r}", model_checks(name, options))


def model_checks(name: str, options: Mapping[str, Any]) -> list[Check]:
    """Return the checks of :func:`check_model`, which takes the same arguments."""
    return staged(
        [
            Check("name", partial(_has_a_name, name)),
            Check("options", partial(_options_fit, name, options)),
        ],
        [
            Check("registered as given", partial(_is_registered, name, options)),
            Check("declared", partial(_can_be_declared, name, options)),
            Check("kept and read", partial(_can_be_kept, options)),
            Check("forward", partial(_computes, name, options)),
            Check("gradient", partial(_is_differentiated, options)),
        ],
    )


def _variant(patch: int) -> str:
    """Return a variant that ships, all of whose sizes are overridden."""
    return f"Ti/{patch}"


def _with_images(options: Mapping[str, Any], patch: int) -> dict[str, Any]:
    """Return the options with images of two by two patches, whatever size they state."""
    return {"mlp_dim": 4 * options["dim"], **options, "image_size": GRID * patch}


def _has_a_name(name: str) -> None:
    if not is_name(name):
        raise AssertionError(
            f"{name!r} cannot be written in a variant: a name is made of letters, digits and '_', "
            "and the patch comes after a slash: 'Mu' is used as 'Mu/16'."
        )


def _options_fit(name: str, options: Mapping[str, Any]) -> None:
    problems = [f"{each} is missing" for each in REQUIRED if options.get(each) is None]
    problems += [
        f"{each} is not an option that a size may have"
        for each in options
        if each not in OPTIONS_OF_A_SIZE
    ]
    if problems:
        raise AssertionError(
            f"{'; '.join(problems)}. Write register({name!r}, dim=..., depth=..., num_heads=...), "
            "and others of vitkit.ViT; the patch is the user's, and stands after the slash."
        )
    stated = {key: value for key, value in options.items() if key != "image_size"}
    for patch in PATCHES:
        try:
            ViTConfig.of(_variant(patch), **_with_images(stated, patch))
        except ConfigError as error:
            raise AssertionError(
                f"no ViT can be made of them, at patch {patch}: {'; '.join(error.problems)}."
            ) from error
    if "image_size" in options:
        _divided(name, options)


def _divided(name: str, options: Mapping[str, Any]) -> None:
    """Check that the images that are stated can be cut into any patches at all."""
    problems = []
    for patch in PATCHES:
        try:
            ViTConfig.of(_variant(patch), **options)
            return
        except ConfigError as error:
            problems.append(f"'{name}/{patch}': {'; '.join(error.problems)}")
    raise AssertionError(
        f"image_size={options['image_size']!r} goes with no patch of {PATCHES}: {problems[0]}."
    )


def _is_registered(name: str, options: Mapping[str, Any]) -> None:
    """Compare with what ``"Mu/16"`` stands for, where it is registered."""
    if name not in MODELS:
        raise Skip(f"{name!r} is not registered here, so it cannot be asked for by name")
    config = ViTConfig.of(f"{name}/{PATCHES[0]}", image_size=GRID * PATCHES[0])
    for option, value in options.items():
        found = getattr(config, option)
        if option != "image_size" and found != value:
            raise AssertionError(
                f"'{name}/{PATCHES[0]}' has {option}={found!r}, where {value!r} is checked here: "
                f"another {name!r} is registered, by plugin {MODELS.entry(name).plugin!r}."
            )


def _can_be_declared(name: str, options: Mapping[str, Any]) -> None:
    """Count the parameters of the whole model, without memory for them."""
    for patch in PATCHES:
        try:
            model = ViT(_variant(patch), backend=None, **_options(options, patch))
        except Exception as error:
            raise AssertionError(
                f"ViT('{name}/{patch}') raised {type(error).__name__}: {error}"
            ) from error
        if model.num_parameters <= 0 or len(model.blocks) != options["depth"]:
            raise AssertionError(
                f"ViT('{name}/{patch}') has {model.num_parameters} parameters in "
                f"{len(model.blocks)} blocks; depth={options['depth']} was given."
            )


def _options(options: Mapping[str, Any], patch: int, **changes: Any) -> Any:
    return {**_with_images(options, patch), **changes}


def _can_be_kept(options: Mapping[str, Any]) -> None:
    """Write the configuration as a checkpoint does, and read it again."""
    config = ViTConfig.of(_variant(PATCHES[0]), **_with_images(options, PATCHES[0]))
    try:
        again = ViTConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    except (TypeError, ConfigError) as error:
        raise AssertionError(
            f"the configuration cannot be kept in a checkpoint: {error}. Give plain numbers and "
            "strings: int(...) and float(...) of those that are NumPy's."
        ) from error
    if again != config:
        raise AssertionError(
            f"the configuration is another one after it was written and read: {again} instead of "
            f"{config}."
        )


def _computes(name: str, options: Mapping[str, Any]) -> None:
    """Run one block of full width on two images."""
    patch = PATCHES[0]
    given = _options(options, patch, depth=1)
    model = ViT(_variant(patch), **given)
    shape = (BATCH, model.config.in_channels, GRID * patch, GRID * patch)
    images = philox(0, "conformance").standard_normal(shape).astype("float32")
    logits, features = model(images), model.features(images)
    expected = (BATCH, model.config.num_classes)
    if logits.shape != expected:
        raise AssertionError(f"the logits have shape {logits.shape}, expected {expected}.")
    if logits.dtype != np.float32 or features.dtype != np.float32:
        raise AssertionError(f"logits are {logits.dtype} for float32 images; float32 is due.")
    if not (np.isfinite(logits).all() and np.isfinite(features).all()):
        raise AssertionError(
            f"a block of '{name}/{patch}' gives numbers that are not finite: look at the "
            "activation, layer_norm_eps and the layers that are named in the options."
        )
    if (features[0] == features[1]).all():
        raise AssertionError(
            f"a block of '{name}/{patch}' gives the same for any image: look at the activation and "
            "the layers that are named in the options."
        )


def _is_differentiated(options: Mapping[str, Any]) -> None:
    """Differentiate two narrow blocks with all other options, in float64."""
    heads, width = options["num_heads"], HEAD_WIDTH * options["num_heads"]
    given = _options(options, PATCHES[0], depth=2, dim=width, mlp_dim=2 * width, num_classes=3)
    model = ViT(_variant(PATCHES[0]), **{**given, "num_heads": heads}, dtype="float64")
    rng = philox(0, "conformance")
    for group in model.groups:  # the head begins with zeros, and would hide everything below it
        group.values[...] += 0.2 * rng.standard_normal(group.values.shape)
    shape = (BATCH, model.config.in_channels, *model.config.image_size)
    images, weights = rng.standard_normal(shape), rng.standard_normal((BATCH, 3))

    def loss(*_: Any) -> Any:
        return (model.forward(images, Context(train=True, seed=1)) * weights).sum()

    ctx = Context(train=True, seed=1)
    model.forward(images, ctx)
    model.zero_grad()
    dimages = model.backward(weights, ctx)
    values = [images, *(group.values for group in model.groups)]
    gradients = [dimages, *(group.grads for group in model.groups)]
    error = directional_derivative_error(loss, values, gradients)
    if not error < TOLERANCE:
        raise AssertionError(
            f"the gradient of a ViT with these options is wrong (relative error {error:.2g}): "
            "check the activation and the layers that they name, each alone."
        )
