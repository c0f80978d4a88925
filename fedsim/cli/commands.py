"""What ``fedsim`` does besides running: one function for each command of ``cli.argv.COMMANDS``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fedsim.cli.argv import COMMANDS
from fedsim.cli.trust import WORDS
from fedsim.errors import InputError

FOLDERS = ("--config-dir", "-cd")
"""Hydra's flag for a folder with groups of one's own, in both its forms."""


def command_first(argv: Sequence[str]) -> list[str]:
    """``list --config-dir DIR`` for ``--config-dir DIR list``, and ``--help`` for ``help``; else ``argv`` as it is.

    >>> command_first(["-cd", "mine", "list", "data"]), command_first(["help"]), command_first(["help", "list"])
    (['list', '-cd', 'mine', 'data'], ['--help'], ['list', '--help'])
    """
    at = 2 if argv[:1] and argv[0] in FOLDERS else int(bool(argv) and argv[0].startswith(f"{FOLDERS[0]}="))
    flags, rest = argv[:at], argv[at:]
    if rest[:1] == ["help"]:
        rest = [*(word for word in rest[1:] if word in COMMANDS), "--help"]
    return [*rest[:1], *flags, *rest[1:]] if rest and rest[0] in COMMANDS else [*flags, *rest]


def command(argv: Sequence[str]) -> int:
    """Run the command that ``argv`` begins with; returns the exit code.

    Raises:
        InputError: its arguments cannot be used.
    """
    name, *rest = argv
    parser = _Parser(prog=f"fedsim {name}", description=COMMANDS[name].capitalize() + ".")
    if name != "verify":  # which composes, as a run does
        shown = "shown too" if name in ("list", "presets") else "which this command does not need"
        parser.add_argument(*FOLDERS, type=Path, help=f"a folder with groups of your own, {shown}")
    if name in ("list", "presets"):
        from fedsim.cli.catalogue import show

        if name == "list":
            parser.add_argument("group", nargs="?", help="algorithm, data, partition, ...; nothing: the groups")
        parser.add_argument("option", nargs="?", help="one option: its whole documentation and its keys")
        args = parser.parse_args(rest)
        return show(args.group if name == "list" else "experiment", args.option, args.config_dir)
    if name == "verify":
        from fedsim.cli.verify import ACTORS, ROUNDS, verify

        parser.usage = "fedsim verify [GROUP=OPTION ...] [KEY=VALUE ...]"
        counts = " and ".join(map(str, ACTORS))
        parser.epilog = (
            f"Runs serially and on {counts} Ray actors; {ROUNDS} rounds unless rounds= is given. Exit 1: not equal."
        )
        _, overrides = parser.parse_known_args(rest)
        return verify(overrides)
    if name in ("download", "tune"):
        return (_download if name == "download" else _tune)(parser, rest)
    return (_export if name == "export" else _replay)(parser, rest)


def _export(parser: argparse.ArgumentParser, rest: Sequence[str]) -> int:
    from fedsim.cli.export_model import FORMATS, export

    parser.usage = f"fedsim export RUN [--best] [--format {{{','.join(FORMATS)}}}] [--out FILE] [trust=true]"
    parser.epilog = "trust=true: for onnx, also build the classes in RUN that are not fedsim's, whose code runs then."
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="the folder of a run")
    parser.add_argument("words", nargs="*", metavar="trust=true", help=argparse.SUPPRESS)
    parser.add_argument("--best", action="store_true", help="the best model, by evaluate.best, instead of the last")
    formats = "safetensors (default), pt (a state_dict for torch.load), or onnx (needs the extra onnx)"
    parser.add_argument("--format", choices=FORMATS, help=formats)
    parser.add_argument("--out", type=Path, help="a new file (default: named after RUN, in the current folder)")
    args = parser.parse_intermixed_args(rest)
    if unknown := [word for word in args.words if word not in WORDS]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return export(args.run_dir, best=args.best, kind=args.format, out=args.out, words=args.words)


def _replay(parser: argparse.ArgumentParser, rest: Sequence[str]) -> int:
    from fedsim.cli.replay import replay

    parser.usage = "fedsim replay RUN_DIR round=R [client=I[,J,...]] [trust=true] [--pdb]"
    parser.epilog = "trust=true: also build the classes in RUN_DIR that are not fedsim's, whose code runs then."
    parser.add_argument("run_dir", type=Path, help="the folder of a run")
    parser.add_argument(
        "keys", nargs="+", metavar="KEY=VALUE", help="round, from 1; client: without it, all of the round"
    )
    parser.add_argument("--pdb", action="store_true", help="stop in the debugger where the client's work begins")
    args = parser.parse_args(rest)
    words = [text for text in args.keys if text in WORDS]
    places = _places([text for text in args.keys if text not in WORDS])
    return replay(args.run_dir, *places, words, debug=args.pdb)


def _download(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    from fedsim.cli.download import download
    from fedsim.data.downloads import DOWNLOADS

    parser.epilog = f"Names: {', '.join(DOWNLOADS)}. The data sets digits, synthetic and quadratic need no download."
    parser.add_argument("names", nargs="*", metavar="NAME", help="which data sets (see below)")
    parser.add_argument("--root", help="data root (default: $FEDSIM_DATA, else fedsim/ in your cache folder)")
    parser.add_argument("--mirror", metavar="URL", help="get URL/FILE instead of each file's public home")
    args = parser.parse_args(argv)
    return download(args.names, args.root, args.mirror)


def _tune(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    from fedsim.cli.tune import tune
    from fedsim.kernels.timing import CASES

    parser.epilog = f"Models: {', '.join(CASES)}. One core, of a machine with nothing else to do; a minute or two."
    parser.add_argument("--out", type=Path, help="the file (default: fedsim/ in your configuration folder)")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME", help="measure these only (see below)")
    parser.add_argument("--quick", action="store_true", help="time everything a few times only")
    args = parser.parse_args(argv)
    return tune(args.out, args.models, quick=args.quick)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are those of every other input."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        raise InputError(f"{message}; see {self.prog} --help")


def _places(keys: Sequence[str]) -> tuple[int, tuple[int, ...] | None]:
    """Round and clients of ``round=3 client=4,7``."""
    given = dict(text.partition("=")[::2] for text in keys)
    if unknown := [key for key in given if key not in ("round", "client")]:
        raise InputError(f"replay takes round=R and client=I[,J,...], got {unknown[0]}")
    rounds = _numbers("round", given.get("round", ""))
    if len(rounds) != 1 or rounds[0] < 1:
        raise InputError(f"round must be one number from 1, got {given.get('round', 'nothing')}; add round=R")
    return rounds[0], _numbers("client", given["client"]) if "client" in given else None


def _numbers(key: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if text)
    except ValueError as error:
        raise InputError(f"{key} must be a whole number, got {text!r}") from error
