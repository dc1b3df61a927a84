"""Encode texts with sentence-transformers: a script that `ur4rec.text.encoders` runs in a process of its own.

Usage: python sentence_encoder.py MODEL TEXTS.json VECTORS.npy
"""

import json
import sys
from pathlib import Path

import numpy as np


def main(model: str, texts_path: str, vectors_path: str) -> None:
    """Read a JSON list of texts and write their vectors as float32."""
    from sentence_transformers import SentenceTransformer

    texts = json.loads(Path(texts_path).read_text())
    vectors = SentenceTransformer(model, device="cpu").encode(texts, batch_size=64, show_progress_bar=False)
    np.save(vectors_path, np.asarray(vectors, np.float32))


if __name__ == "__main__":
    main(*sys.argv[1:])
