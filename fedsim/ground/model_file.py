"""One model in one file: named tensors as safetensors, which other programs read; written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from fedsim.ground.files import atomic_file


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
