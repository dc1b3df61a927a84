"""Items in parts and ``fully_shard``: the run of one process in every layout, and what moves between processes."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.backends import torch_layouts
from tests.backends.torch_layouts import CASES, outcome
from tests.backends.torch_processes import Run
from ur4rec.config import ModelConfig, TrainerConfig
from ur4rec.errors import ConfigurationError
from ur4rec.training.mesh import Mesh
from ur4rec.training.processes import ONE_PROCESS
from ur4rec_torch.layout import check_layout

CLOSE, NUM_STEPS = 1e-5, 50
LAYOUTS = {
    "items=4": {"mesh": "items=4"},
    "data=2,items=2": {"mesh": "data=2,items=2"},
    "data=2,items=2, shard": {"mesh": "data=2,items=2", "shard": True},
    "data=4, shard": {"shard": True},
}
"""Of four processes."""
SHOWN = {
    "data=2,items=2": [*CASES],
    "data=2,items=2, shard": ["sampled", "payoff", "trial"],
    "items=2": ["fused", "payoff", "popularity"],
}
"""The cases of a layout; the others have one."""
PAIRS = {"items=2": {"mesh": "items=2"}, "data=2, shard": {"shard": True}}
"""Of two."""


@pytest.fixture(scope="module")
def one():
    """The outcome of one process by case."""
    return {name: outcome(Run(**settings).train(NUM_STEPS)) for name, settings in CASES.items()}


def check_same(found, expected, first=0):
    """Decisions are equal, losses up to rounding, ranks but for scores that are nearer to each other than that."""
    assert found[0] == expected[0][first:]
    for ours, theirs in zip(found[1], expected[1][first:], strict=True):
        assert ours == pytest.approx(theirs, rel=CLOSE)
    assert found[2].keys() == expected[2].keys()
    for scorer, ranks in expected[2].items():
        difference = np.abs(np.subtract(found[2][scorer], ranks))
        assert difference.max() <= 1, scorer
        assert difference.mean() <= 0.1, scorer


@pytest.mark.parametrize("layout", [*LAYOUTS, *PAIRS])
def test_a_run_in_a_layout_is_that_of_one_process_and_what_is_frozen_keeps_its_bits(layout, two, four, one):
    ranks, settings = (four, LAYOUTS[layout]) if layout in LAYOUTS else (two, PAIRS[layout])
    names = SHOWN.get(layout, ["fused"])
    for found in ranks.run(torch_layouts.trained, settings, names, NUM_STEPS):
        for name, (result, moved) in found.items():
            assert len({active for active, _ in result[0]}) > 1
            assert not moved
            check_same(result, one[name])


def arrays_of(folder):
    """Weights and moments of a checkpoint."""
    return {name: each for path in sorted(folder.glob("*.safetensors")) for name, each in load_file(path).items()}


@pytest.mark.parametrize("name", ["fused", "sampled", "trial", "popularity"])
def test_a_checkpoint_is_that_of_one_process_and_is_resumed_in_any_layout(name, two, four, one, tmp_path):
    """Loaded and saved again in another layout, it has the same bits."""
    layout = LAYOUTS["data=2,items=2, shard"]
    four.run(torch_layouts.saved, layout, name, tmp_path / "four", 23, NUM_STEPS)
    torch_layouts.save(Run(**CASES[name]), tmp_path / "one", 23, NUM_STEPS)
    arrays, expected = (arrays_of(tmp_path / each) for each in ("four", "one"))
    assert arrays.keys() == expected.keys()
    for key, array in arrays.items():
        if ".key" in key and "bias" in key:  # attention does not depend on it: its gradients are rounding alone
            continue
        np.testing.assert_allclose(array, expected[key], rtol=1e-4, atol=1e-6, err_msg=key)
    pairs = [(two, PAIRS["items=2"]), (four, LAYOUTS["items=4"])]
    if name == "fused":
        pairs += [(two, PAIRS["data=2, shard"]), (four, LAYOUTS["data=4, shard"])]
    for number, (ranks, settings) in enumerate(pairs):
        copy = tmp_path / f"copy{number}"
        for found in ranks.run(torch_layouts.resumed, settings, name, tmp_path / "four", copy, NUM_STEPS):
            check_same(found, one[name], first=23)
        again = arrays_of(copy)
        assert again.keys() == arrays.keys()
        assert [key for key in arrays if not np.array_equal(again[key], arrays[key])] == []


@pytest.mark.parametrize("layout", ["items=4", "data=2,items=2, shard"])
def test_what_is_not_finite_in_one_process_is_skipped_by_all(layout, four):
    for looks in (True, False):
        found = four.run(torch_layouts.with_a_loss_that_is_not_finite, LAYOUTS[layout], looks)
        assert [number for _, number in found] == [1] * 4
        assert all(repr(result) == repr(found[0][0]) for result, _ in found)


def test_a_process_without_a_batch_of_its_own_takes_part_in_ranking(four):
    expected = torch_layouts.ranks_of(Run(), ONE_PROCESS)
    for layout in ("data=2,items=2", "data=4, shard"):
        assert four.run(torch_layouts.ranked, LAYOUTS[layout]) == [expected] * 4


@pytest.mark.parametrize("name", ["fused", "sampled"])
def test_no_message_of_a_step_is_as_large_as_the_table_or_its_part(name, four):
    num_items, dim = 3001, 8
    for sizes, parameters in four.run(torch_layouts.messages, LAYOUTS["items=4"], name, num_items):
        assert parameters["sasrec.item_embedding.weight"] < num_items * dim / 3.9
        assert {"c10d.allreduce_.default"} <= sizes.keys()
        assert max(map(max, sizes.values())) < num_items * dim / 8


def test_where_the_table_is_spread_it_moves_as_a_whole(four):
    """So that the test above would see it."""
    (sizes, _), *_ = four.run(torch_layouts.messages, LAYOUTS["data=4, shard"], "fused", 3001)
    assert max(map(max, sizes.values())) >= 3001 * 8


@pytest.mark.parametrize(
    ("mesh", "shard", "settings", "message"),
    [
        ("items=2", False, {"fusion": "rank"}, "a mesh with items=2 needs a fusion .* got 'rank'; take one of"),
        (
            *("items=2", False, {"fusion": "weighted", "label_smoothing": 0.1}),
            "a fusion of logits to smooth labels, got label_smoothing=0.1 with fusion='weighted'; take fusion='logit'",
        ),
        ("items=2", False, {"use_knowledge_distillation": True}, "got use_knowledge_distillation=True with"),
        ("items=2", False, {"sasrec_loss": "bce"}, "needs sasrec_loss='ce', got 'bce'; take that"),
        ("data=4", True, {"catalogue_loss": "sampled"}, "with a mesh such as 'data=2,items=2', or take shard=False"),
    ],
)
def test_what_a_layout_cannot_do_is_refused(mesh, shard, settings, message):
    sizes = {part.split("=")[0]: int(part.split("=")[1]) for part in mesh.split(",")}
    model = ModelConfig(num_items=60, fusion=settings.pop("fusion", "logit"))
    with pytest.raises(ConfigurationError, match=message):
        check_layout(Mesh(**sizes), model, TrainerConfig(**settings), shard=shard)
    check_layout(Mesh(data=4), model, TrainerConfig(**settings), shard=False)
