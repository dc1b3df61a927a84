"""UR4Rec in JAX: SASRec and a text preference retriever, trained in turns."""

from ur4rec_jax.checkpoint import load_model
from ur4rec_jax.device import count_threads
from ur4rec_jax.processes import start_processes
from ur4rec_jax.scorer import Scorer
from ur4rec_jax.trainer import JointTrainer
from ur4rec_jax.ur4rec import UR4Rec

__all__ = ["JointTrainer", "Scorer", "UR4Rec", "count_threads", "load_model", "start_processes"]
