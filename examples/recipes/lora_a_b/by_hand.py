"""LoRA (Hu et al. 2022, with peft) on a small Llama: the matrices A and B of every adapter.

The base is random and frozen. Tokens follow a rule of arithmetic, which the adapters have to bring to it.
"""

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB_SIZE, LENGTH, BATCH_SIZE = 32, 16, 32


def train(num_steps: int = 400) -> dict[str, nn.Module]:
    """Train for a number of updates."""
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()

    for step in range(num_steps):
        active = "lora_B" if step // 2 % 2 == 0 else "lora_A"
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(f".{active}." in name)
        tokens_BL = sample_tokens(BATCH_SIZE)
        loss = model(input_ids=tokens_BL, labels=tokens_BL).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"model": model}


def make_model() -> nn.Module:
    """A Llama of two layers with an adapter in each of its linear layers."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=LENGTH, **sizes))
    return get_peft_model(base, LoraConfig(r=8, lora_dropout=0.05, target_modules="all-linear"))


def sample_tokens(size: int) -> Tensor:
    """Sequences of shape (size, L) in which each token is five more than three times the one before."""
    tokens_BL = torch.randint(VOCAB_SIZE, (size, LENGTH))
    for place in range(1, LENGTH):
        tokens_BL[:, place] = (3 * tokens_BL[:, place - 1] + 5) % VOCAB_SIZE
    return tokens_BL


@torch.no_grad()
def evaluate(model: nn.Module) -> float:
    """The share of next tokens that are predicted."""
    model.eval()
    tokens_BL = sample_tokens(256)
    predicted_BL = model(input_ids=tokens_BL).logits.argmax(dim=-1)
    return (predicted_BL[:, :-1] == tokens_BL[:, 1:]).float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small are faster so
    print("accuracy before", evaluate(train(0)["model"]))
    print("accuracy after", evaluate(train()["model"]))
