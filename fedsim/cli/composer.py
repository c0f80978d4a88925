"""Hydra over fedsim's configurations, and the user's own folder of them where one is named."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fedsim.assembly.run_name import NAMED, default_name
from fedsim.cli.folder import config_folder


class _Loader(ConfigLoaderImpl):
    """Remembers what it composed last: a run is composed when it is checked, and not again when it runs.

    Lists a group's options in the folders that it has anyway; Hydra's own copies all of them for every question, which
    took a sixth of the time to check a command line.
    """

    _last: tuple[Any, DictConfig] | None = None

    def load_configuration(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *how: Any, **options: Any
    ) -> DictConfig:
        """As Hydra's, whose arguments it has."""
        key = (config_name, tuple(overrides), run_mode)
        if self._last is None or self._last[0] != key:
            cfg = super().load_configuration(config_name, overrides, run_mode, *how, **options)
            if run_mode == RunMode.RUN:  # in a sweep, a job has no name before its values are known
                _give_name(cfg)
            self._last = key, cfg
        return self._last[1]

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        """As Hydra's; only overrides can add folders."""
        if overrides:
            return super().get_group_options(group_name, results_filter, config_name, overrides)
        return self.repository.get_group_options(group_name, results_filter)


def _give_name(cfg: DictConfig) -> None:
    """Call a run that has no name by its choices: its folder is named so before its parts are built."""
    if cfg.get("name", "") is not None:
        return
    chosen = cfg.hydra.runtime.choices
    own = [OmegaConf.select(cfg, f"{group}._target_") for group in NAMED]
    parts = [str(chosen.get(group) or target) for group, target in zip(NAMED, own, strict=True)]
    cfg.name = default_name(parts, cfg.get("seed"))


@contextmanager
def composer_of(args: argparse.Namespace) -> Iterator[Hydra]:
    """Hydra over the same search path as ``hydra.main`` uses, and gone afterwards."""
    path = create_automatic_config_search_path(None, __name__, args.config_path or str(config_folder()))
    if args.config_dir is not None:
        folder = f"file://{Path(args.config_dir).resolve()}"
        path.prepend(provider="command-line", path=folder, anchor=SearchPathQuery(provider="schema"))
    hydra.version.setbase("1.3")
    composer = Hydra(task_name="fedsim", config_loader=_Loader(path))
    GlobalHydra.instance().initialize(composer)
    try:
        yield composer
    finally:
        GlobalHydra.instance().clear()
