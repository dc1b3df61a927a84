"""A small BERT of the transformers library in the folder of a sentence encoder: the reference of text encoders."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TINY: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "max_position_embeddings": 9,
}


def write_bert(folder: Path, **changes: Any) -> Any:
    """Write one with weights that are large enough to matter; returns what maps tokens (N, S) to vectors (N, T)."""
    import torch
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(BertConfig(**{**TINY, "initializer_range": 0.3, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.linspace(-0.5, 0.5, parameter.numel()).roll(len(name)))
    model.save_pretrained(folder)

    def encode(tokens_NS: NDArray[np.int32]) -> NDArray[np.float32]:
        tokens = torch.from_numpy(tokens_NS).long()
        is_token_NS = tokens != 0
        with torch.no_grad():
            hidden_NST = model(tokens, attention_mask=is_token_NS.long()).last_hidden_state
        mean_NT = (hidden_NST * is_token_NS.unsqueeze(2)).sum(1) / is_token_NS.sum(1, keepdim=True)
        vectors_NT: NDArray[np.float32] = torch.nn.functional.normalize(mean_NT, dim=1).numpy()
        return vectors_NT

    return encode
