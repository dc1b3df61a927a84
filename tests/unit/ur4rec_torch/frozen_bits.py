"""What a frozen step must not change, and how the tests train."""

import torch


def bits(trainer, module):
    """Everything of a module that a frozen step must not change: parameters, buffers, moments and step counts."""
    submodule, optimizer = getattr(trainer.model, module), trainer._optimizers[module]
    tensors = dict(submodule.state_dict())
    for name, parameter in submodule.named_parameters():
        tensors |= {f"{name}/{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def train(trainer, batches):
    for batch in batches:
        trainer.train_step(batch)
