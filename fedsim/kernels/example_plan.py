"""Which steps of a stacked model use parameters, and how their gradients by example are to be had.

A *site* is a layer that every example enters: its gradient is a product of what entered and of the derivative by what
left. A *prelude* is what becomes of a parameter before it meets the examples, as an embedding of positions that is
added to all of them: each example then gets a copy of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch.nn.functional as F
from torch import fx, nn

from fedsim.ground.layout import Layout
from fedsim.kernels.example_sites import Site, known
from fedsim.kernels.stacked import BROADCAST, StackedModel, StackedStep
from fedsim.kernels.stacked_ops import Unstackable
from fedsim.kernels.stacked_recurrent import project, recurrence

Chain: TypeAlias = tuple[StackedStep, ...]


def planned(stacked: StackedModel, model: nn.Module, layout: Layout) -> tuple[dict[str, Site], dict[str, Chain]]:
    """The sites by step, and for those that a prelude enters its steps.

    Raises:
        Unstackable: names the layer or call whose gradients by example have no form.
    """
    # By identity: tied weights lead to the one name that the layout has, frozen ones to none.
    names = {id(p): name for name, p in model.named_parameters() if name in set(layout.names)}
    owned = {path: _owned(module, names) for path, module in model.named_modules()}
    direct = {step.target: step.parameter for step in stacked.steps if step.parameter is not None}
    fixed = {step.target for step in stacked.steps if step.fixed}
    sites: dict[str, Site] = {}
    preludes: dict[str, Chain] = {}
    before: dict[str, Chain] = {}  # values of parameters that have met no examples
    data = {stacked.source}  # values that no parameter has changed
    taken: list[str] = []
    for step in stacked.steps:
        if step.fixed:
            continue
        mine = [] if step.path is None else owned[step.path]
        changed = [name for name in step.reads if name in before]
        others = [name for name in step.reads if name not in before and name not in fixed]
        if step.parameter is not None or ((mine or changed) and not others):
            before[step.target] = (*(one for name in changed for one in before[name]), step)
        elif mine or step.run in (project, recurrence) or (step.kind is F.linear and changed):
            sites[step.target] = site = _site(step, model, names, mine, changed, direct, data)
            taken += [name for name in (site.weight, *site.biases) if name is not None]
        elif not changed:
            data |= {step.target} if data.issuperset(others) else set()
        elif len(changed) == 1 and step.kind in BROADCAST and len(step.args) == 2:
            preludes[step.target] = before[changed[0]]
            used = tuple(name for one in before[changed[0]] for name in _used(one, owned))
            sites[step.target] = Site("prelude", None, changed[0], used, False)
            taken += used
        else:
            raise Unstackable(f"{step.label} has no gradients by example")
    # A weight that is used twice has the sum of two gradients; its norm is not that of either use.
    twice = [name for name in taken if taken.count(name) > 1]
    if twice:
        raise Unstackable(f"{twice[0]} is used twice")
    return sites, preludes


def _owned(module: nn.Module, names: Mapping[int, str]) -> list[str]:
    """Names of the trained parameters of a layer itself."""
    return [names[id(p)] for p in module.parameters(recurse=False) if id(p) in names]


def _used(step: StackedStep, owned: Mapping[str, list[str]]) -> list[str]:
    if step.parameter is not None:
        return [step.parameter]
    return [] if step.path is None else owned[step.path]


def _site(
    step: StackedStep,
    model: nn.Module,
    names: Mapping[int, str],
    mine: list[str],
    changed: list[str],
    direct: Mapping[str, str],
    data: set[str],
) -> Site:
    """The site of a layer, of ``F.linear`` or of a part of a recurrent layer."""
    first = step.reads[0] in data
    if mine:
        assert step.path is not None
        module = model.get_submodule(step.path)
        if not known(module):
            raise Unstackable(f"{step.label} has no gradients by example")
        weight = names.get(id(module.weight))
        return Site(step.kind, module, weight, tuple(name for name in mine if name != weight), first)
    given: list[Any] = [*step.args[1:], *step.kwargs.values()]
    weights = [value for value in given if isinstance(value, fx.Node)]
    biases = weights[1:]
    if step.run is recurrence:
        biases = [given[1]] if given[1] is not None else []
    used = [weights[0], *biases]
    if not {value.name for value in used}.issuperset(changed):  # such as a first state
        raise Unstackable(f"{step.label} has learned values beside its weights")
    if any(value.name not in direct for value in used):
        raise Unstackable(f"{step.label} has no gradients by example")
    kind = "recurrence" if step.run is recurrence else nn.Linear
    return Site(kind, None, direct[used[0].name], tuple(direct[bias.name] for bias in used[1:]), first)
