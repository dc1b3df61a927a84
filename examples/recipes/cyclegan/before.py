"""CycleGAN (Zhu et al. 2017) between handwritten digits and their negatives, from unpaired images.

Two generators and two discriminators; instance normalisation, least-squares losses, cycle and identity losses, and a
buffer of earlier images, as in the paper.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import l1_loss

BATCH_SIZE, BUFFER_SIZE = 32, 64
CYCLE_WEIGHT, IDENTITY_WEIGHT = 10.0, 1.0


class Buffer:
    """Half of the images that a discriminator sees are earlier ones."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def mix(self, images_B1HW: Tensor) -> Tensor:
        """The images, of which some are exchanged for earlier ones."""
        mixed = []
        for image_1HW in images_B1HW.detach():
            if len(self.images) < BUFFER_SIZE:
                self.images.append(image_1HW)
            elif torch.rand(()) < 0.5:
                place = int(torch.randint(BUFFER_SIZE, ()))
                self.images[place], image_1HW = image_1HW, self.images[place]
            mixed.append(image_1HW)
        return torch.stack(mixed)


def train(num_steps: int = 300) -> dict[str, nn.Module]:
    """Train for a number of steps of both pairs."""
    torch.manual_seed(0)
    a_to_b, b_to_a, critic_a, critic_b = generator(), generator(), discriminator(), discriminator()
    generators, critics = nn.ModuleList([a_to_b, b_to_a]), nn.ModuleList([critic_a, critic_b])
    optimizer_g = torch.optim.Adam(generators.parameters(), lr=1e-3, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(critics.parameters(), lr=1e-3, betas=(0.5, 0.999))
    images_a, images_b = domains()
    buffer_a, buffer_b = Buffer(), Buffer()

    for _ in range(num_steps):
        real_a, real_b = draw(images_a), draw(images_b)
        fake_b, fake_a = a_to_b(real_a), b_to_a(real_b)
        for parameter in critics.parameters():
            parameter.requires_grad = False
        loss = is_real(critic_b(fake_b)) + is_real(critic_a(fake_a))
        loss = loss + CYCLE_WEIGHT * (l1_loss(b_to_a(fake_b), real_a) + l1_loss(a_to_b(fake_a), real_b))
        loss = loss + IDENTITY_WEIGHT * (l1_loss(a_to_b(real_b), real_b) + l1_loss(b_to_a(real_a), real_a))
        optimizer_g.zero_grad()
        loss.backward()
        optimizer_g.step()

        for parameter in critics.parameters():
            parameter.requires_grad = True
        loss = is_real(critic_a(real_a)) + is_fake(critic_a(buffer_a.mix(fake_a)))
        loss = loss + is_real(critic_b(real_b)) + is_fake(critic_b(buffer_b.mix(fake_b)))
        optimizer_d.zero_grad()
        loss.backward()
        optimizer_d.step()
    return {"generators": generators, "critics": critics}


def is_real(scores: Tensor) -> Tensor:
    """The least-squares loss of what should look real."""
    return (scores - 1).square().mean()


def is_fake(scores: Tensor) -> Tensor:
    """The least-squares loss of what should look generated."""
    return scores.square().mean()


class Residual(nn.Module):
    """Two convolutions with a path around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*convolution(width, width), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The input and what is added to it."""
        return x_BCHW + self.layers(x_BCHW)


def convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    """A convolution, instance normalisation and activation."""
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.InstanceNorm2d(out_channels), nn.ReLU()]


def generator(width: int = 16) -> nn.Sequential:
    """Images to images, in the range from -1 to 1."""
    return nn.Sequential(*convolution(1, width), Residual(width), nn.Conv2d(width, 1, 3, padding=1), nn.Tanh())


def discriminator(width: int = 16) -> nn.Sequential:
    """A score for each patch."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, width, 3, padding=1),
        nn.InstanceNorm2d(width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 1, 3, padding=1),
    )


def domains() -> tuple[Tensor, Tensor]:
    """Digits, and the negatives of other digits, of 8 × 8 pixels from -1 to 1."""
    images_N1HW = torch.from_numpy(load_digits().images).float().unsqueeze(1) / 8 - 1
    return images_N1HW[:800], -images_N1HW[800:1600]


def draw(images_N1HW: Tensor) -> Tensor:
    """A batch."""
    return images_N1HW[torch.randint(len(images_N1HW), (BATCH_SIZE,))]


@torch.no_grad()
def evaluate(generators: nn.Module) -> float:
    """The mean distance of translated digits to the nearest real negative."""
    a_to_b, _ = generators.children()
    digits, negatives = domains()
    return torch.cdist(a_to_b(digits).flatten(1), negatives.flatten(1)).min(dim=1).values.mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small are faster so
    print("distance before", evaluate(train(0)["generators"]))
    print("distance after", evaluate(train()["generators"]))
