"""CLIP (Radford et al. 2021, the model of transformers) on drawn pairs: an image tower and a text tower.

An image shows a square of one colour at one place; its text names the colour, the row and the column.
"""

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

SIZE, PATCH, NUM_COLOURS = 16, 4, 4
NUM_PLACES = SIZE // PATCH
NUM_PAIRS, BATCH_SIZE = NUM_COLOURS * NUM_PLACES**2, 32
START, END = 0, 1


def train(num_steps: int = 600) -> dict[str, nn.Module]:
    """Train for a number of updates."""
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    towers = [[model.vision_model, model.visual_projection], [model.text_model, model.text_projection]]

    for step in range(num_steps):
        model.train().requires_grad_(True)
        for module in towers[1 - step % 2]:
            module.eval().requires_grad_(False)
        images, tokens_BL = draw(torch.randperm(NUM_PAIRS)[:BATCH_SIZE])
        loss = model(input_ids=tokens_BL, pixel_values=images, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"model": model}


def make_model() -> nn.Module:
    """Two towers of two layers each."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 16, "max_position_embeddings": 5, "eos_token_id": END, "bos_token_id": START, **sizes}
    vision = {"image_size": SIZE, "patch_size": PATCH, **sizes}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))


def draw(pairs_B: Tensor) -> tuple[Tensor, Tensor]:
    """Images of shape (B, 3, SIZE, SIZE) and texts of shape (B, 5) of pairs by number."""
    colours_B, places_B = pairs_B // NUM_PLACES**2, pairs_B % NUM_PLACES**2
    rows_B, columns_B = places_B // NUM_PLACES, places_B % NUM_PLACES
    palette_C3 = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    images = 0.1 * torch.randn(len(pairs_B), 3, SIZE, SIZE)
    for image, colour, row, column in zip(images, colours_B, rows_B, columns_B, strict=True):
        top, left = PATCH * row, PATCH * column
        image[:, top : top + PATCH, left : left + PATCH] += palette_C3[colour][:, None, None]
    words = [torch.full_like(pairs_B, START), 2 + colours_B, 6 + rows_B, 10 + columns_B, torch.full_like(pairs_B, END)]
    return images, torch.stack(words, dim=1)


@torch.no_grad()
def evaluate(model: nn.Module) -> float:
    """The share of images whose text is the nearest of all texts."""
    model.eval()
    images, tokens_NL = draw(torch.arange(NUM_PAIRS))
    logits_NN = model(input_ids=tokens_NL, pixel_values=images).logits_per_image
    return (logits_NN.argmax(dim=1) == torch.arange(NUM_PAIRS)).float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small are faster so
    print("accuracy before", evaluate(train(0)["model"]))
    print("accuracy after", evaluate(train()["model"]))
