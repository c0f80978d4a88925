"""One model in one file: named tensors as safetensors, which other programs read; written whole or not at all.

Read are also the files of ``torch.save``, as far as they hold tensors alone: nothing in them is called.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fedsim.errors import InputError, first_line
from fedsim.ground.files import LAST_MODEL, atomic_file

_PICKLED = (b"PK\x03\x04", b"\x80")
"""How files begin that ``torch.save`` wrote: a zip archive, or a pickle in earlier versions."""


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's ``state_dict``, every tensor with memory of its own: tied ones stand there by each of their names."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}


def write_model(path: Path, model: nn.Module, **notes: Any) -> None:
    """Write a model's named tensors.

    Args:
        path: of the file, which is replaced as a whole.
        model: what is written.
        notes: short facts for the file's header.
    """
    content = save(tensors_of(model), {name: str(value) for name, value in notes.items()})
    with atomic_file(path) as file:
        file.write(content)


def model_file(place: str, key: str) -> Path:
    """The file of a model: the one that is named, or the last model in the folder of a run.

    Raises:
        InputError: there is none.
    """
    file = Path(place) / LAST_MODEL if os.path.isdir(place) else Path(place)
    if not os.path.isfile(file):
        must = f"{key} must be a file of named tensors (safetensors, .pt or .pth) or the folder of a run"
        raise InputError(f"{must}, got {place!r}; there is no {file}")
    return file


def file_sha256(file: Path) -> str:
    """sha256 of a file."""
    hashed = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(2**20):
            hashed.update(part)
    return hashed.hexdigest()


def read_model(file: Path, key: str) -> dict[str, Tensor]:
    """The named tensors in a file; of a mapping that ``torch.save`` wrote, those under ``state_dict`` if it has that.

    Raises:
        InputError: it is damaged, or holds something else.
    """
    must, do = f"{key} must be a file of named tensors", "write it with torch.save(model.state_dict(), FILE)"
    try:
        with file.open("rb") as opened:
            start = opened.read(9)
            opened.seek(0)
            if start.startswith(_PICKLED) and start[8:] != b"{":  # as safetensors have, behind a number of eight bytes
                found = torch.load(opened, map_location="cpu", weights_only=True)
            else:
                found = load(opened.read())
    except pickle.UnpicklingError as error:
        raise InputError(f"{must}, got {file}, which holds more than tensors, or is damaged; {do}") from error
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError, EOFError) as error:
        raise InputError(f"{must}, got {file}: {first_line(error)}") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()
    ):
        raise InputError(f"{must}, got {file}, which holds {type(found).__name__}; {do}")
    for name, value in found.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            must = f"{key} must be a file of dense tensors of numbers"
            raise InputError(f"{must}, got {file}, whose {name} is sparse, quantised or without numbers")
    return dict(found)
