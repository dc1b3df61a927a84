"""LoRA (Hu et al. 2022, with peft) and a new classification head on a small BERT.

The base is random and frozen. A sequence is of the class of which it has more tokens.
"""

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

VOCAB_SIZE, LENGTH, BATCH_SIZE, NUM_CLASSES = 64, 15, 32, 2


def train(num_steps: int = 500) -> dict[str, nn.Module]:
    """Train for a number of updates."""
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    model.train()

    for _ in range(num_steps):
        tokens_BL, classes_B = sample(BATCH_SIZE)
        loss = model(input_ids=tokens_BL, labels=classes_B).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"model": model}


def make_model() -> nn.Module:
    """A BERT of two layers with adapters; peft trains a copy of the head."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=LENGTH, num_labels=NUM_CLASSES, **sizes)
    adapters = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, target_modules=["query", "value", "dense"])
    return get_peft_model(BertForSequenceClassification(config), adapters)


def sample(size: int) -> tuple[Tensor, Tensor]:
    """Sequences of shape (size, L), and their classes of shape (size)."""
    tokens_BL = torch.randint(VOCAB_SIZE, (size, LENGTH))
    counts_B = (tokens_BL % NUM_CLASSES).sum(dim=1)
    return tokens_BL, (counts_B > LENGTH // 2).long()


@torch.no_grad()
def evaluate(model: nn.Module) -> float:
    """The share of sequences whose class is predicted."""
    model.eval()
    tokens_BL, classes_B = sample(1000)
    return (model(input_ids=tokens_BL).logits.argmax(dim=-1) == classes_B).float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small are faster so
    print("accuracy before", evaluate(train(0)["model"]))
    print("accuracy after", evaluate(train()["model"]))
