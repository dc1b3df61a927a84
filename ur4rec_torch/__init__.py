"""UR4Rec in PyTorch: SASRec and a text preference retriever, trained in turns."""

from ur4rec_torch.checkpoint import load_model
from ur4rec_torch.device import count_threads
from ur4rec_torch.processes import start_processes
from ur4rec_torch.scorer import Scorer
from ur4rec_torch.trainer import JointTrainer
from ur4rec_torch.ur4rec import UR4Rec

__all__ = ["JointTrainer", "Scorer", "UR4Rec", "count_threads", "load_model", "start_processes"]
