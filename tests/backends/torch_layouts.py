"""Training of a tiny model in a layout; the cases run on every rank, see `tests.several_ranks`."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.backends.torch_processes import PAYOFF, SAMPLED, STRATEGIES, TRIAL, Run, processes_of, spoil
from ur4rec.config import HELD_OUT, SCORERS
from ur4rec.data import leave_one_out, synthetic
from ur4rec.runs.ranking import Ranking
from ur4rec.schedule.stages import MODULES, TURNS

WITHOUT_LOGITS = {name: value for name, value in STRATEGIES.items() if name != "use_knowledge_distillation"}
CASES = {
    "fused": {"warmup": 0.0, "seed": 1, "ema_decay": 0.9},
    "strategies": WITHOUT_LOGITS,
    "sampled": {**STRATEGIES, **SAMPLED, "ema_decay": 0.9},
    "payoff": {"rule": PAYOFF, "probe": True, "sasrec_lr": 0.03, "fusion": "weighted", "seed": 1},
    "trial": {"rule": TRIAL, "probe": True, "sasrec_lr": 0.03, "ema_decay": 0.9, **WITHOUT_LOGITS},
    "separate": {"joint_loss": "separate", "clip_norm": 0.1},
    "popularity": {
        **{"rule": TRIAL, "probe": True, "joint_loss": "separate"},
        **{"fusion_fit": "held_out", "fusion_popularity": True},
    },
    "gated": {"label_smoothing": 0.1, "sasrec_block": "ligr"},
}
"""Settings by name; under another seed, rounding may put a unit on the other side of its ReLU's edge."""


def trained(rank, layout, names, num_steps):
    """Of each case decisions, losses, ranks of targets, and what was frozen and has moved."""
    with processes_of() as processes:
        return {name: _watched(Run(processes, **layout, **CASES[name]), num_steps) for name in names}


def outcome(run):
    """What must be that of one process."""
    decisions = [(record.active, record.reason) for record in run.records]
    if run.trainer.config.fusion_fit == HELD_OUT:
        weights = run.trainer.fit_fusion(run.targets)
        decisions.append((f"{weights.retriever:g}", f"{weights.popularity:g} {weights.scale:g}"))
    ranks = {name: each.tolist() for name, each in run.trainer.rank_all(run.targets).items()}
    return decisions, [record.losses for record in run.records], ranks


def _watched(run, num_steps):
    moved, update = [], run.trainer._update

    def watched(batch, active, rates):
        frozen = [name for name in MODULES if name not in TURNS[active]]
        before = {name: held(run.trainer, name) for name in frozen}
        found = update(batch, active, rates)
        for name in frozen:
            after = held(run.trainer, name)
            assert len(after) > 5
            moved.extend(name for old, new in zip(before[name], after, strict=True) if not old.equal(new))
        return found

    run.trainer._update = watched
    run.train(num_steps)
    return outcome(run), moved


def held(trainer, name):
    """Copies of what this process has of a module: parameters, buffers, the state of the optimizer, averages."""
    module, optimizer = getattr(trainer.model, name), trainer._optimizers[name]
    states = [each for parameter in module.parameters() for each in optimizer.state.get(parameter, {}).values()]
    averages = {} if trainer._averages is None else trainer._averages.state_dict()
    own = [each for key, each in averages.items() if key.startswith(f"{name}.")]
    tensors = [*module.parameters(), *module.buffers(), *states, *own]
    return [(each.to_local() if hasattr(each, "to_local") else each).detach().clone() for each in tensors]


def saved(rank, layout, name, folder, *steps):
    """A run that is saved."""
    with processes_of() as processes:
        save(Run(processes, **layout, **CASES[name]), folder, *steps)


def save(run, folder, stop, num_steps):
    """Train the first steps of a run and save it."""
    run.trainer.set_training_stage("joint_finetune", num_steps=num_steps)
    run.train(stop, start=1)
    run.trainer.save_checkpoint(folder)


def resumed(rank, layout, name, folder, copy, num_steps):
    """A run that continues one that was saved, having saved it again at once."""
    with processes_of() as processes:
        run = Run(processes, **layout, **CASES[name])
        run.trainer.load_checkpoint(folder)
        run.trainer.save_checkpoint(copy)
        run.train(num_steps, start=run.trainer.step)
        return outcome(run)


def with_a_loss_that_is_not_finite(rank, layout, looks):
    """A run in which rank 1 alone computes NaN in one step; on an accelerator, nobody looks at the loss."""
    with processes_of() as processes:
        run = Run(processes, **layout)
        run.trainer._loss_at_hand = looks
        spoil(run, at=7, on=rank == 1)
        run.train(12)
        return outcome(run), run.epochs[0]["nonfinite_steps"]


def ranks_of(run, processes):
    """The ranks of a run's targets, which are one batch."""
    targets = leave_one_out(synthetic(num_users=40, num_items=60)).validation
    ranking = Ranking(targets, run.trainer.model.config, processes=processes)
    found = ranking.ranks(run.trainer, SCORERS)
    return {name: each.tolist() for name, each in found.items()}


def ranked(rank, layout):
    """Of an untrained model."""
    with processes_of() as processes:
        return ranks_of(Run(processes, **layout), processes)


class Messages(TorchDispatchMode):
    """Notes the collectives of processes, and the numbers of the largest tensor in each."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if name.startswith("c10d."):
            sizes = [each.numel() for each in torch.utils._pytree.tree_leaves(args) if isinstance(each, torch.Tensor)]
            self.sizes.setdefault(name, []).append(max(sizes, default=0))
        return func(*args, **(kwargs or {}))


def messages(rank, layout, name, num_items):
    """The collectives of a step of both modules after the first ones, of a model with this number of items."""
    with processes_of() as processes:
        run = Run(processes, num_items=num_items, **layout, **CASES[name])
        run.trainer.set_training_stage("end_to_end", num_steps=4)
        batches = iter(run.batches)
        run.trainer.train_step(next(batches))
        with Messages() as seen:
            run.trainer.train_step(next(batches))
            run.trainer.flush()
        return seen.sizes, {name: each.numel() for name, each in run.trainer.model.named_parameters()}
