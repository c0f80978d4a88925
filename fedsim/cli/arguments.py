"""The words of a command line, read as Hydra reads them: flags, and overrides of the form KEY=VALUE."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode

from fedsim.assembly.problems import collect, did_you_mean
from fedsim.cli.argv import COMMANDS
from fedsim.cli.composer import composer_of
from fedsim.cli.explain import groups_of, no_word, unknown, without_hydra
from fedsim.cli.guesses import as_key, bare, meanings, without_spaces
from fedsim.errors import InputError


def flags_of(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, with the other words as ``overrides``; raises InputError where they do not go together."""
    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        unknown_flag = message.startswith("unrecognized arguments") or "ignored explicit argument" in message
        meant = _with_place(as_key(argv)) if unknown_flag else ""
        raise InputError(f"{message}; {f'keys have no dashes: {meant}; ' if meant else ''}see fedsim --help")

    parser.error = error  # type: ignore[method-assign]
    args = parser.parse_args(argv)
    args.config_name = args.config_name or "config"
    modes = {"--run": args.run, "-m": args.multirun, "--cfg": args.cfg, "--info": args.info}
    if sum(map(bool, modes.values())) > 1:
        raise InputError(f"give one of {', '.join(modes)}, got {' and '.join(k for k, v in modes.items() if v)}")
    if args.resolve and not (args.cfg or args.help):
        raise InputError("--resolve needs --cfg, got neither --cfg nor --help; add --cfg job")
    if args.config_dir is not None and not Path(args.config_dir).is_dir():
        raise InputError(f"--config-dir must be an existing folder, got {args.config_dir!r}")
    return args


def _with_place(text: str) -> str:
    """``algorithm.lr=0.1`` for ``lr=0.1``; KEY=VALUE itself where there is such a key, or none comes to mind."""
    if not text:
        return ""
    with composer_of(get_args_parser().parse_args([])) as composer:
        (override,) = parsed_overrides(composer, [text])
        cfg = composer.compose_config("config", [], RunMode.RUN)
        groups = groups_of(composer)
        known = unknown(cfg, groups, override) is None
        word, _, value = text.partition("=")
        found = [] if known else meanings(word, value, without_hydra(cfg), groups)
        return " or ".join(found) or text


def parsed_overrides(composer: Hydra, overrides: Sequence[str]) -> list[Override]:
    """The overrides, parsed; raises InputError with one line for each word that is none."""
    parser = OverridesParser.create(config_loader=composer.config_loader)
    if meant := without_spaces(overrides):
        raise InputError(f"an argument must be KEY=VALUE without blanks, got {' '.join(overrides)!r}; write {meant}")
    parsed: list[Override] = []
    problems: list[str] = []
    for number, text in enumerate(overrides):
        with collect(problems):
            if text.isidentifier():
                raise InputError(_no_value(composer, overrides, number))
            parsed += _parsed_one(parser, text)
    problems += [line for override in parsed if (line := no_word(composer, override))]
    if problems:
        raise InputError("\n".join(problems))
    return parsed


def _no_value(composer: Hydra, overrides: Sequence[str], number: int) -> str:
    """The line about a word that is no KEY=VALUE: a command, an option, or a key with its value behind a blank."""
    word, after = overrides[number], "".join(overrides[number + 1 : number + 2])
    cfg = composer.compose_config("config", [], RunMode.RUN)
    value = "" if "=" in after or after.startswith(("-", "~")) else after
    meant = bare(word, value, without_hydra(cfg), groups_of(composer)) or did_you_mean(word, COMMANDS, "fedsim ")
    return f"an argument must be KEY=VALUE, got {word!r}; {meant}see fedsim --help"


def _parsed_one(parser: OverridesParser, text: str) -> list[Override]:
    try:
        if text.startswith("="):  # Hydra's grammar lets it pass
            raise HydraException("no KEY before the =")
        return parser.parse_overrides([text])
    except HydraException as error:
        lines = [
            line for line in str(error).splitlines() if not line.startswith(("Error parsing override", "See https"))
        ]
        why = lines[0] if lines else "cannot be parsed"
        raise InputError(f"an argument must be KEY=VALUE, got {text!r} ({why}); quote special characters") from error
