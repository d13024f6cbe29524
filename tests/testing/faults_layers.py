"""Layers with one fault each, and the words by which the kit must name it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import faulty_layers as faulty

from vitkit.testing.layers import check_layer


class Planted(NamedTuple):
    """A faulty layer, the words that name the fault, and the checks that fail."""

    make: Callable[..., Any]
    message: str
    fails: set[str]
    torch: Callable[[Any], Any] | None = None


WRONG = {"gradient", "gradient in inference", "used twice"}
HELD = {"nothing kept on self", "nothing kept in inference", "kept arrays are freed"}
PLANTED = {
    "caches its input on self": Planted(
        faulty.KeepsOnSelf, r"it keeps 'x' on self: push it on ctx", {*HELD, "used twice"}
    ),
    "caches its input on its class": Planted(
        faulty.KeepsOnTheClass,
        r"it keeps 'last' on the class KeepsOnTheClass: push it on ctx",
        {*HELD, "used twice"},
    ),
    "collects masks in a list": Planted(
        faulty.KeepsInAList, r"it keeps 'masks\.0' on self", {"nothing kept on self"}
    ),
    "keeps its input in inference": Planted(
        faulty.KeepsInInference,
        r"it keeps 'seen' on self(.|\n)*inference keeps its input alive",
        {"nothing kept on self", "nothing kept in inference"},
    ),
    "keeps a circle of references": Planted(
        faulty.KeepsACircle,
        r"after backward 1 of the arrays it kept are still alive.* a cycle of references",
        {"nothing kept in inference", "kept arrays are freed"},
    ),
    "counts in an array": Planted(
        faulty.WritesIntoABuffer,
        r"a pass changes the numbers of 'count' on self",
        {"nothing kept on self"},
    ),
    "assigns a gradient": Planted(
        faulty.AssignsAGradient,
        r"gradients add up: the gradient of 'scale' is assigned instead of added",
        {"gradients add up", "used twice"},
    ),
    "exchanges a gradient for another array": Planted(
        faulty.ExchangesAGradient,
        r"it exchanges 'scale\.grad' on self for another array",
        {"every parameter learns", "nothing kept on self"},
    ),
    "never gives a parameter its gradient": Planted(
        faulty.ForgetsAParameter,
        r"'scale' never gets a gradient",
        {*WRONG, "every parameter learns"},
    ),
    "forgets the residual in backward": Planted(
        faulty.ForgetsTheResidual,
        r"the gradient of x is wrong \(.*\): it lacks dy, the way past the branch.* Right are those"
        r" of 'weight', 'scale'",
        WRONG,
    ),
    "forgets the branch in backward": Planted(
        faulty.ForgetsTheBranch,
        r"not the derivative of forward: the gradient of x is wrong .* Right are those of 'weight'",
        WRONG,
    ),
    "transposes the gradient of a square matrix": Planted(
        faulty.Transposes,
        r"gradient of 'weight' is wrong .*: it is the transpose of the right one",
        WRONG,
    ),
    "averages a gradient over rows": Planted(
        faulty.AveragesRows, r"gradient of 'weight' is wrong .*: it is a mean over all rows", WRONG
    ),
    "has the wrong sign in one gradient": Planted(
        faulty.WrongSign, r"gradient of 'scale' is wrong .*: it has the wrong sign", WRONG
    ),
    "returns nothing from backward": Planted(
        faulty.ReturnsNothing, r"backward returned NoneType; it must return dx", {"shapes"}
    ),
    "rescales in backward where nothing was dropped": Planted(
        faulty.ScalesInBackwardAlone,
        r"in Context\(keep=True\) backward is not the derivative of inference",
        {"gradient in inference"},
    ),
    "computes in float64": Planted(
        faulty.LeaksFloat64,
        r"for float32 input and parameters y is float64, dx is float64",
        {"dtype"},
    ),
    "computes a gradient in float64": Planted(
        faulty.LeaksInAGradient, r"what is added to the gradient of 'scale' is float64", {"dtype"}
    ),
    "draws from np.random": Planted(
        faulty.DrawsFromNumpy,
        r"it draws from the global generator of np\.random",
        {
            *("draws by seed and step", "inference is deterministic", "checkpointed"),
            *("gradient", "used twice", "same on strict_device"),
        },
    ),
    "draws from a generator of its own": Planted(
        faulty.DrawsFromItsOwn,
        r"two training passes of one seed and step give different outputs",
        {"draws by seed and step", "inference is deterministic", "gradient", "used twice"},
    ),
    "draws in inference": Planted(
        faulty.DrawsInInference,
        r"it draws random numbers in inference",
        {"inference is deterministic"},
    ),
    "draws without the seed": Planted(
        faulty.ForgetsTheSeed,
        r"what it draws does not depend on the seed",
        {"draws by seed and step"},
    ),
    "computes something else in training": Planted(
        faulty.OtherwiseInTraining,
        r"in training it computes something else than in inference, though it drew nothing",
        {"draws by seed and step", "inference is deterministic"},
    ),
    "modifies x in place": Planted(
        faulty.WritesIntoX, r"forward changes x in place", {"input is not modified", "checkpointed"}
    ),
    "modifies dy in place": Planted(
        faulty.WritesIntoDy, r"backward changes dy in place", {"input is not modified"}
    ),
    "waits for the device": Planted(
        faulty.WaitsForTheDevice,
        r"forward waits for the device \(float\), inference waits for the device \(float\)",
        {"no host sync"},
    ),
    "computes with numpy": Planted(
        faulty.ComputesWithNumpy,
        r"on strict_device it raised TypeError: .* \(faulty_layers\.py, line \d+\)\. Compute with",
        {"no host sync", "same on strict_device"},
    ),
    "overflows": Planted(
        faulty.Overflows,
        r"for float32 inputs of size 1000, y is not finite: an exponential or a power overflows",
        {"extreme inputs"},
    ),
    "pushes once too often": Planted(
        faulty.PushesTwice,
        r"after backward 1 of 3 entries \(640 bytes\) are still on ctx",
        {
            *("context is empty after backward", "backward order", "kept arrays are freed"),
            *("used twice", "batches of one to three", "batch of none"),
        },
    ),
    "pushes nothing": Planted(
        faulty.PushesNothing,
        r"forward pushed nothing on ctx",
        {"context is empty after backward", "backward order"},
    ),
    "pops whatever is there": Planted(
        faulty.PopsWhatIsThere,
        r"backward took the entry of a later layer from ctx",
        {"context is empty after backward", "backward order"},
    ),
    "mixes the samples of a batch": Planted(
        faulty.MixesSamples, r"it mixes samples: 1 of 4 alone give", {"samples are independent"}
    ),
    "hides numbers outside of parameters": Planted(
        faulty.HidesNumbers,
        r"some of their numbers are in no Parameter, and a checkpoint loses them",
        {"state round trip", "checkpointed", "same on strict_device"},
    ),
    "broadcasts an input of another width": Planted(
        faulty.Scale,
        r"it takes x of shape \(4, 5, 1\), broadcasts it in silence",
        {"another width"},
    ),
    "never asks whether it has arrays": Planted(
        faulty.NeverAsksForArrays, r"forward before place\(xp\) computed something", {"not placed"}
    ),
    "takes xp by position": Planted(
        faulty.TakesXpByPosition,
        r"the last parameter of TakesXpByPosition is xp.*; it must be xp=None, keyword-only",
        {"xp is the last keyword"},
    ),
    "ignores xp": Planted(
        faulty.IgnoresXp, r"made with xp=, IgnoresXp, Dropout got no array module", {"usable alone"}
    ),
    "computes another function than its twin": Planted(
        faulty.AddsOne,
        r"forward computes something else than its torch twin",
        {"PyTorch twin"},
        faulty.twin,
    ),
    "names a parameter otherwise than its twin": Planted(
        faulty.Sound,
        r"its parameters are \{.*'scale': \(8,\).*\}, those of its torch twin \{.*'gamma': \(8,\)",
        {"PyTorch twin"},
        partial(faulty.twin, scale="gamma"),
    ),
    "is no module": Planted(
        faulty.NoLayer, r"layer NoLayer fails .*\n.*make\(\) returned NoLayer", {"is a layer"}
    ),
}
FAULTS = {
    name: (partial(check_layer, planted.make, faulty.SHAPE, torch=planted.torch), planted.message)
    for name, planted in PLANTED.items()
}
