"""Run sentence-transformers: a script that `ur4rec.text.encoders` runs in a process of its own.

Usage: python sentence_encoder.py NAME FOLDER.txt                  download a model, without code and without pickles
       python sentence_encoder.py FOLDER TEXTS.json VECTORS.npy    encode texts
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

PATTERNS = ["*.json", "*.model", "*.safetensors", "*.txt"]


def fetch(name: str, folder_path: str) -> None:
    """Have a model of the Hugging Face Hub in its cache, and write the folder that it is in."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ModuleNotFoundError("No module named 'sentence_transformers'")
    from huggingface_hub import snapshot_download

    name = name if "/" in name else f"sentence-transformers/{name}"
    Path(folder_path).write_text(snapshot_download(name, allow_patterns=PATTERNS))


def encode(folder: str, texts_path: str, vectors_path: str) -> None:
    """Read a JSON list of texts and write their vectors as float32."""
    from sentence_transformers import SentenceTransformer

    texts = json.loads(Path(texts_path).read_text())
    model = SentenceTransformer(folder, device="cpu", trust_remote_code=False, local_files_only=True)
    vectors = model.encode(texts, batch_size=64, show_progress_bar=False)
    np.save(vectors_path, np.asarray(vectors, np.float32))


if __name__ == "__main__":
    (encode if len(sys.argv) == 4 else fetch)(*sys.argv[1:])
