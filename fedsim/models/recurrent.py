"""The character-level language model of LEAF's Shakespeare task.

McMahan et al., AISTATS 2017 (arXiv 1602.05629); Caldas et al., LEAF: A Benchmark for Federated Settings, 2018
(arXiv 1812.01097). Deviation: it predicts the next character at every position, not only at the last.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedsim.errors import InputError, require
from fedsim.models.body_head import BodyHead, require_size


class CharBody(nn.Module):
    """Embedding and LSTM: tokens [m, t] int64 -> features [m, t, hidden]."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """[m, t] -> [m, t, hidden]."""
        features: Tensor = self.lstm(self.embedding(tokens))[0]
        return features


def char_lstm(
    input_shape: tuple[int, ...], outputs: int, embedding: int = 8, hidden: int = 256, layers: int = 2
) -> BodyHead:
    """Embedding, LSTM, linear head; 819,920 parameters for LEAF's 80 characters.

    Args:
        input_shape: (t,), the length of a sequence.
        outputs: size of the vocabulary, of inputs and outputs alike.
        embedding: width of the embedding.
        hidden: width of each LSTM layer.
        layers: number of LSTM layers.
    """
    for name, value in (("embedding", embedding), ("hidden", hidden), ("layers", layers)):
        require(value >= 1, name, "be >= 1", value)
    gates = 4 * hidden * (embedding + hidden + 2 * hidden * (layers - 1))
    sizes = {"embedding": embedding, "hidden": hidden, "layers": layers}
    require_size("embedding, hidden and layers", sizes, gates + outputs * (embedding + hidden))
    if len(input_shape) != 1:
        raise InputError(f"model=char_lstm needs token sequences of shape (t,), got samples of shape {input_shape}")
    return BodyHead(CharBody(outputs, embedding, hidden, layers), nn.Linear(hidden, outputs))
