"""The resolved configurations of many jobs.

Hydra takes a tenth of a second for each: it composes once for each choice of options, and values, in which most jobs
differ, are set on copies of what it composed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf


class Composer:
    """Composes jobs of one sweep.

    Args:
        loader: Hydra's.
        master: the configuration of the sweep.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self._loader: Any = loader
        self._master = master
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, Override] = {}
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The resolved configuration of one job as plain containers."""
        options: list[Override] = []
        values: list[Override] = []
        for text in overrides:
            if text not in self._parsed:
                (self._parsed[text],) = self._parser.parse_overrides([text])
            override = self._parsed[text]
            is_option = override.is_hydra_override() or self._loader.repository.group_exists(override.key_or_group)
            (options if is_option else values).append(override)
        key = tuple(override.input_line or "" for override in options)
        if key not in self._bases:
            cfg = self._loader.load_sweep_config(self._master, list(key))
            base = OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"])
            OmegaConf.set_struct(base, True)
            self._bases[key] = base
        cfg = copy.deepcopy(self._bases[key])
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        return plain  # type: ignore[no-any-return]
