"""Which plugins a run uses: written down with it, and compared with what is here later."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from vitkit.config.run import RunConfig
from vitkit.errors import CheckpointError
from vitkit.nn.layers import PARTS
from vitkit.plugins import Plugin, Plugins
from vitkit.registry import Registry
from vitkit.train.needed import Needed, missing, shown


def record_of(config: RunConfig, plugins: Plugins) -> list[dict[str, Any]]:
    """Return the plugins that are loaded and what a run uses of each, as plain values.

    Parameters
    ----------
    config : RunConfig
        The run, resolved.
    plugins : Plugins
        Those of this process.

    Returns
    -------
    list of dict
        ``Plugin.to_dict()`` and ``"uses"``, such as ``["activation mish"]``; what ships is left
        out.
    """
    used = [(each, name) for each, name in _names(config, plugins) if name in each]
    kernels = plugins.registries.kernels
    for entry in kernels.entries():
        if entry.details["backend"] == config.backend:
            used.append((kernels, entry.name))
    record = []
    for plugin in plugins.loaded.values():
        if plugin.source == "built in":
            continue
        origin = str(Path(plugin.origin).resolve()) if plugin.source == "file" else plugin.origin
        uses = [f"{each.kind} {n}" for each, n in used if each.entry(n).plugin == plugin.label]
        uses = list(dict.fromkeys(uses))
        record.append({**plugin.to_dict(), "origin": origin, "uses": uses})
    return record


def refuse_missing(
    config: RunConfig,
    recorded: Sequence[Needed],
    plugins: Plugins,
    kinds: Collection[str] | None = None,
) -> None:
    """Raise if a run names what came from a plugin that is not here.

    Parameters
    ----------
    config : RunConfig
        What is about to be used.
    recorded : sequence of Needed
        The plugins that it was made with.
    plugins : Plugins
        Those of this process.
    kinds : collection of str, optional
        Those that matter, such as ``("dataset", "loss")``; all by default.

    Raises
    ------
    CheckpointError
        Naming each plugin, what it brought, and how to get it.
    """
    absent = [
        f"{registry.kind} {name}"
        for registry, name in _names(config, plugins)
        if (kinds is None or registry.kind in kinds) and name not in registry
    ]
    lines = missing(recorded, absent)
    if lines:
        raise CheckpointError("\n".join(lines))


def changes(recorded: Sequence[Needed], plugins: Plugins) -> list[str]:
    """Return a line for each plugin of a run that is another one, or of another version, here."""
    lines = []
    for plugin in recorded:
        for use in plugin.uses:
            kind, _, name = use.partition(" ")
            registry = next((r for _, r in plugins.registries if r.kind == kind), None)
            if registry is None:
                continue
            if name in registry:
                label = registry.entry(name).plugin
                here = next((p for p in plugins.loaded.values() if p.label == label), None)
                if here is None or _same(plugin, here):
                    continue
                end = f"; here it is that of plugin {here.label!r}."
            elif kind == "kernel":
                end = ", which is not here: the last digits of numbers may differ."
            else:
                continue  # not needed, or refused where it is
            lines.append(f"It was made with {shown(use)} of plugin {plugin.label!r}{end}")
            break
    return lines


def _same(recorded: Needed, here: Plugin) -> bool:
    """Whether a plugin is what it was; a file may have moved."""
    if recorded.source == here.source == "file":
        return recorded.version == here.version
    return (recorded.origin, recorded.version) == (here.origin, here.version)


def _names(config: RunConfig, plugins: Plugins) -> list[tuple[Registry, str]]:
    """Return the names in a configuration, each with the table it is looked up in."""
    registries, model = plugins.registries, config.model
    named: list[tuple[Registry, str | None]] = [
        (registries.models, model.variant.partition("/")[0]),
        (registries.activations, model.activation),
        *((registries.layers, getattr(model, part)) for part in PARTS),
        (registries.optimizers, config.optimizer.name),
        (registries.schedules, config.schedule.name),
        (registries.losses, config.train.loss.name),
        (registries.datasets, config.data.name),
        *((registries.transforms, spec.name) for spec in config.data.augment),
        *((registries.callbacks, spec.name) for spec in config.train.callbacks),
    ]
    return [(registry, name) for registry, name in named if name is not None]
