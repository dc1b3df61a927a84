"""A small BERT that learns to count under Transformers' Trainer, and the same by a plain loop: what tests compare."""

import copy

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from adapters.transformers import AlternatingCallback
from alternator import Alternator, Plateau
from tests.conformance.freeze_contract_torch import optimizer_state

NAMES = ("backbone", "head")
MODULES = {"backbone": "bert", "head": "classifier"}
RULE = Plateau(threshold=0.4, min_steps=2, window=3)
NUM_ROWS = 64


class Counts(Dataset):
    """Sequences of eight tokens; whether the token 1 is in the majority."""

    def __init__(self, num_rows=NUM_ROWS, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.ids_ND = torch.randint(1, 3, (num_rows, 8), generator=generator)
        self.labels_N = ((self.ids_ND == 1).sum(1) > 4).long()

    def __len__(self):
        return len(self.ids_ND)

    def __getitem__(self, index):
        return {"input_ids": self.ids_ND[index], "labels": self.labels_N[index]}


class Recorded(Alternator):
    """Keeps its decisions, and what it is given to record."""

    def __init__(self, modules=NAMES, rule=RULE):
        self.decisions = []
        self.losses = []
        super().__init__(modules, rule=rule)

    def advance(self, *, updated=True):
        self.decisions.append(super().advance(updated=updated))
        return self.decisions[-1]

    def record(self, module, value, *, step=None):
        self.losses.append((step, module, float(value)))
        super().record(module, value, step=step)


def bert(dropout=0.1):
    torch.manual_seed(0)
    sizes = {"vocab_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 8, "num_labels": 2}
    return BertForSequenceClassification(
        BertConfig(**sizes, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    )


def arguments(folder, **options):
    quiet = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no", "use_cpu": True}
    quiet |= {"per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 0.01, "seed": 1}
    return TrainingArguments(output_dir=str(folder), **(quiet | options))


class Run:
    """One training with the Trainer."""

    def __init__(self, folder, *, model=None, alternator=None, given=None, kind=Trainer, callbacks=(), **options):
        self.model = bert() if model is None else model
        self.alternator = alternator or Recorded()
        self.callback = AlternatingCallback(self.alternator, **({"modules": MODULES} | (given or {})))
        self.trainer = kind(
            model=self.model,
            args=arguments(folder, **options),
            train_dataset=Counts(),
            eval_dataset=Counts(16, seed=1),
            callbacks=[self.callback, *callbacks],
        )

    def train(self, **options):
        self.trainer.train(**options)
        return self

    def outcome(self):
        return outcome(self.model, self.trainer.optimizer)


def outcome(model, optimizer):
    """The model's parameters and buffers, and the optimizer's state."""
    inside = getattr(optimizer, "optimizer", optimizer)
    return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer_state(inside, model)})
