"""A small BERT learns with Transformers' Trainer which of two tokens a sequence has more of."""

import tempfile

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from adapters.transformers import AlternatingCallback
from alternator import Alternator, Cycle


class Sequences(Dataset[dict[str, torch.Tensor]]):
    """Sequences of nine tokens, each 1 or 2; the label is the more frequent one."""

    def __init__(self, num_rows: int, seed: int) -> None:
        self.tokens_NT = torch.randint(1, 3, (num_rows, 9), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.tokens_NT)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens_T = self.tokens_NT[index]
        return {"input_ids": tokens_T, "labels": ((tokens_T == 1).sum() > 4).long()}


def train(num_steps: int = 200) -> dict[str, nn.Module]:
    """Train for a number of steps of the Trainer."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=3, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = BertForSequenceClassification(config)
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        max_steps=num_steps,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    parts: dict[str, nn.Module] = {"backbone": model.bert, "head": model.classifier}
    trainer = Trainer(model, arguments, train_dataset=Sequences(1024, seed=1))
    trainer.add_callback(AlternatingCallback(Alternator(parts, rule=Cycle((3, 1))), parts))
    trainer.train()
    return parts


@torch.no_grad()
def evaluate(trained: dict[str, nn.Module]) -> float:
    """The share of held-out sequences that are told right."""
    rows = Sequences(256, seed=2)
    pooled_ND = trained["backbone"].eval()(rows.tokens_NT).pooler_output
    labels_N = torch.stack([rows[index]["labels"] for index in range(len(rows))])
    return float((trained["head"](pooled_ND).argmax(1) == labels_N).float().mean())


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small are faster so
    print("accuracy before", evaluate(train(1)))
    print("accuracy after", evaluate(train()))
