"""``fedsim export RUN``: a run's model as one file for other programs.

Named tensors (``safetensors``, ``pt``) are read from the run's own file, and nothing is built. ``onnx`` is a program,
not only numbers: the module is built anew from the run's config.yaml, so a folder that names classes which are not
fedsim's needs ``trust=true``.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from fedsim.callbacks.base import require_package
from fedsim.cli.folder import config_folder
from fedsim.cli.resume import stopped
from fedsim.errors import InputError, first_line, require
from fedsim.ground.console import note
from fedsim.ground.files import atomic_file
from fedsim.ground.own_code import FAILURES, error_line
from fedsim.record.kept_models import BEST, LAST
from fedsim.record.run_folder import DONE, summary_of

FORMATS = {"safetensors": (".safetensors",), "pt": (".pt", ".pth"), "onnx": (".onnx",)}
"""The formats, and the ends of the names of their files."""


def export(run_dir: Path, *, best: bool, kind: str | None, out: Path | None, words: Sequence[str] = ()) -> int:
    """Write the file; returns the exit code.

    Args:
        run_dir: the folder of a run.
        best: the best model so far instead of the last.
        kind: of ``FORMATS``; None: what the name of ``out`` says, else safetensors.
        out: the new file; None: named after the run's folder, in the current one.
        words: ``trust=true`` for a folder that names other classes than fedsim's.

    Raises:
        InputError: the folder has no such model, a damaged one, or the file cannot be written.
    """
    kind = kind or _kind_of(out)
    if kind == "onnx":
        for module in ("onnx", "onnxscript"):
            require_package(module, "onnx", "--format onnx")
    content, tensors = _read(_model_of(run_dir, best=best))
    name = f"{run_dir.absolute().name}{'-best' if best else ''}{FORMATS[kind][0]}"
    file = Path(name) if out is None else out
    require(not os.path.lexists(file), "--out", "be a new file", str(file))
    if kind == "pt":
        saved = io.BytesIO()
        torch.save(tensors, saved)
        content = saved.getvalue()
    elif kind == "onnx":
        content = _onnx(run_dir, tensors, words)
    try:
        with atomic_file(file) as opened:
            opened.write(content)
    except OSError as error:
        raise InputError(f"--out must be a file that can be written, got {file}: {error.strerror}") from error
    note(f"wrote {file}: {len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers")
    return 0


def _kind_of(out: Path | None) -> str:
    """The format that the name of a file says."""
    if out is None:
        return "safetensors"
    found = [kind for kind, ends in FORMATS.items() if out.suffix.lower() in ends]
    ends = ", ".join(end for ends in FORMATS.values() for end in ends)
    require(bool(found), "--out", f"end in {ends}", str(out), "or say --format")
    return found[0]


def _model_of(run_dir: Path, *, best: bool) -> Path:
    """The file of a run's model; InputError says why there is none."""
    config = run_dir / "config.yaml"
    require(os.path.isdir(run_dir), "RUN", "be the folder of a run", str(run_dir), f"there is no {run_dir}")
    require(os.path.isfile(config), "RUN", "be the folder of a run", str(run_dir), f"there is no {config}")
    file = run_dir / (BEST if best else LAST)
    if os.path.isfile(file):
        return file
    summary = summary_of(run_dir)
    if summary is not None and summary["status"] in DONE:
        why = "nothing finite was evaluated" if best else "its method has no model of all clients, or it was removed"
    else:
        state = "has not come to its end" if summary is None else f"is {summary['status']}"
        why = f"it {state}; go on with fedsim resume={run_dir}"
        if not best and os.path.isfile(run_dir / BEST):
            why += ", or take the best model so far with --best"
    raise InputError(f"the run in {run_dir} has no {file.name}: {why}")


def _read(file: Path) -> tuple[bytes, dict[str, Tensor]]:
    """The bytes of a model's file and the tensors in them."""
    try:
        content = file.read_bytes()
        return content, load(content)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{file} must hold a model as safetensors, got a damaged file ({why})") from error


def _onnx(run_dir: Path, tensors: dict[str, Tensor], words: Sequence[str]) -> bytes:
    """The model as ONNX, for any number of samples: input ``x``, output ``outputs``."""
    model, shape, tokens = _module(run_dir, tensors, words)
    from fedsim.models import zero_sample

    sample = zero_sample(model, shape, tokens=tokens)
    several = sample.expand(2, *shape).clone()  # one would be taken for a fixed size
    program = io.BytesIO()
    try:
        batch = ({0: torch.export.Dim("samples")},)
        made: Any = torch.onnx.export(
            model, (several,), dynamic_shapes=batch, input_names=["x"], output_names=["outputs"], verbose=False
        )
        made.save(program)
    except FAILURES as error:  # of torch's exporter, or of a model of the user's own
        raise InputError(f"the model of {run_dir} cannot be written as ONNX: {error_line(error)}") from error
    return program.getvalue()


def _module(run_dir: Path, tensors: dict[str, Tensor], words: Sequence[str]) -> tuple[nn.Module, tuple[int, ...], bool]:
    """The run's module with these tensors in evaluation mode, the shape of a sample, and whether that is tokens."""
    from fedsim.assembly.assemble import assemble
    from fedsim.assembly.configuration import build_run
    from fedsim.assembly.parts import Parts

    config, _ = stopped([f"resume={run_dir}", "engine=serial", *words], config_folder())
    assembled = assemble(Parts(**build_run(config | {"callbacks": {}})))
    prepared, dataset = assembled.prepared, assembled.dataset
    model = prepared.setup.models[prepared.number or 0]
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        why = f"the tensors of {type(model).__name__}, which its config.yaml names"
        raise InputError(f"the model in {run_dir} must hold {why}, got others ({first_line(error)})") from error
    model.eval()
    return model, dataset.input_shape, dataset.train.x.dtype.kind == "i"
