"""Parts of a model: the rest, names and patterns, lists of modules and parameters; their modes and buffers too."""

import copy

import pytest
import torch
from torch import nn

from adapters.torch import AlternatingOptimizer, FreezeError
from adapters.torch.naming import Naming
from alternator import Alternator, ConfigurationError, Cycle
from tests.conformance.freeze_contract_torch import adamw, batch, optimizer_state, same_bits


class Net(nn.Module):
    """A body and a head in a row, both with normalisation, and dropout between them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1))

    def forward(self, x_BD):
        return self.head(self.dropout(self.body(x_BD)))


SPELLINGS = {
    "modules": lambda net: {"backbone": net, "head": net.head},
    "modules, the inner first": lambda net: {"head": net.head, "backbone": net},
    "names": lambda _: {"backbone": "*", "head": "head"},
    "patterns": lambda _: {"backbone": ("*",), "head": ["head.[01]", "head.[23]*"]},
    "parameters": lambda net: {"backbone": net, "head": net.head.parameters()},
    "a mixed list": lambda net: {"backbone": net, "head": ["head.0", net.head[1], net.head[3].weight, "head.3.bias"]},
}


def loss(net, step):
    torch.manual_seed(step)
    return net(batch(step)).square().mean()


def build(net, modules, optimizers=None, *, cycle=2, model=True, **options):
    names = ("backbone", "head")
    optimizers = optimizers or adamw(net.parameters())
    alternator = Alternator(names, rule=Cycle(cycle))
    options = {"frozen_mode": "inference", **options}
    return AlternatingOptimizer(alternator, modules, optimizers, model=net if model else None, **options)


def by_hand(num_steps):
    """The same as the backbone and the head of `Net` taking turns of two steps, with no adapter."""
    net = Net()
    optimizer = adamw(net.parameters())
    for step in range(num_steps):
        net.train()
        is_head = step // 2 % 2 == 1
        net.requires_grad_(not is_head)
        net.head.requires_grad_(is_head)
        net.train(not is_head)
        net.head.train(is_head)
        loss(net, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net, optimizer


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_model_and_a_part_of_it_train_in_turns(spelling):
    net = Net()
    optimizer = adamw(net.parameters())
    alternating = build(net, SPELLINGS[spelling](net), optimizer)
    for step in range(8):
        is_head = alternating.active == "head"
        frozen = [net.body] if is_head else [net.head]
        before = copy.deepcopy([[part.state_dict(), optimizer_state(optimizer, part)] for part in frozen])
        assert [net.training, net.dropout.training, net.body[3].training] == [not is_head] * 3
        assert [submodule.training for submodule in net.head[:]] == [is_head] * 4
        alternating.step(loss(net, step))
        assert same_bits(before, [[part.state_dict(), optimizer_state(optimizer, part)] for part in frozen])
    expected, expected_optimizer = by_hand(8)
    assert same_bits(net.state_dict(), expected.state_dict())
    assert same_bits(optimizer_state(optimizer, net), optimizer_state(expected_optimizer, expected))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_release_and_evaluation_leave_the_modes_as_they_were(spelling):
    net = Net()
    net.head[2].eval()
    net.body[1].eval()
    chosen = [submodule.training for submodule in net.modules()]
    alternating = build(net, SPELLINGS[spelling](net))
    for name in ("head", "backbone"):
        alternating.force(name)
        alternating.eval()
        assert not any(submodule.training for submodule in net.modules())
        alternating.train()
        assert net.body.training == (name == "backbone")
    alternating.release()
    assert [submodule.training for submodule in net.modules()] == chosen
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_without_model_the_rest_is_that_of_the_module_given():
    net = Net()
    alternating = build(net, {"backbone": net, "head": net.head}, model=False)
    alternating.force("head")
    assert not net.dropout.training
    assert net.head.training


def test_a_part_within_a_part_within_a_part():
    net = Net()
    modules = {"backbone": net, "head": net.head, "last": net.head[3]}
    alternating = AlternatingOptimizer(Alternator(modules), modules, adamw(net.parameters()))
    for name in modules:
        alternating.force(name)
        required = {key for key, parameter in net.named_parameters() if parameter.requires_grad}
        training = {key for key, submodule in net.named_modules() if submodule.training}
        last = {"head.3.weight", "head.3.bias"}
        heads = {key for key, _ in net.named_parameters() if key.startswith("head.")} - last
        bodies = {key for key, _ in net.named_parameters() if key.startswith("body.")}
        assert required == {"backbone": bodies, "head": heads, "last": last}[name]
        assert ("head.3" in training, "head.1" in training, "dropout" in training) == tuple(
            name == each for each in ("last", "head", "backbone")
        )


class Norms(nn.Module):
    """Two blocks with a normalisation each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"linear": nn.Linear(6, 6), "norm": nn.BatchNorm1d(6), "dropout": nn.Dropout(0.2)})
            for _ in range(2)
        )

    def forward(self, x_BD):
        for block in self.blocks:
            x_BD = block["dropout"](block["norm"](block["linear"](x_BD)))
        return x_BD


NORMS = {
    "a pattern for modules": lambda _: "*.norm",
    "a pattern for parameters": lambda _: "*.norm.*",
    "modules": lambda net: [block["norm"] for block in net.blocks],
    "parameters": lambda net: [p for block in net.blocks for p in block["norm"].parameters()],
}


@pytest.mark.parametrize("model", [True, False], ids=["model", "no model"])
@pytest.mark.parametrize("rest", ["*", "module"])
@pytest.mark.parametrize("spelling", NORMS)
def test_statistics_belong_to_the_part_of_the_parameters_beside_them(spelling, rest, model):
    if not model and (rest == "*" or "pattern" in spelling):
        rest = "module"
        spelling = "parameters"
    net = Norms()
    optimizer = adamw(net.parameters())
    modules = {"backbone": rest if rest == "*" else net, "head": NORMS[spelling](net)}
    alternating = build(net, modules, optimizer, cycle=1, model=model)
    for step in range(4):
        norms = [block["norm"] for block in net.blocks]
        others = [block["linear"] for block in net.blocks]
        is_norms = alternating.active == "head"
        assert {norm.training for norm in norms} == {is_norms}
        assert {block["dropout"].training for block in net.blocks} == {not is_norms}
        before = copy.deepcopy([[each.state_dict() for each in part] for part in (others, norms)])
        alternating.step(loss(net, step))
        after = [[each.state_dict() for each in part] for part in (others, norms)]
        assert [same_bits(*pair) for pair in zip(before, after, strict=True)] == [is_norms, not is_norms]
        moved = not torch.equal(before[1][0]["running_mean"], norms[0].running_mean)
        assert moved == is_norms


def test_a_buffer_of_a_part_named_by_parameters_is_watched():
    net = Norms()
    alternating = build(net, {"backbone": net, "head": NORMS["parameters"](net)}, cycle=9)
    net.blocks[1]["norm"].running_mean.add_(1)
    with pytest.raises(FreezeError, match=r"'backbone.blocks.1.norm.running_mean' has been"):
        alternating.step(loss(net, 0))
    alternating.apply()
    net.load_state_dict(net.state_dict())
    alternating.step(loss(net, 0))


def test_the_frozen_mode_is_that_of_the_part():
    net = Norms()
    modules = {"backbone": net, "head": NORMS["parameters"](net)}
    alternating = build(net, modules, cycle=1, frozen_mode={"head": "batch", "backbone": "inference"})
    for step in range(4):
        norm, is_norms = net.blocks[0]["norm"], alternating.active == "head"
        assert norm.training
        assert net.blocks[0]["dropout"].training != is_norms
        before = copy.deepcopy(norm.state_dict())
        alternating.step(loss(net, step))
        assert same_bits(before, norm.state_dict()) != is_norms


class Clip(nn.Module):
    """As open_clip arranges its towers: that of text has parameters of the model itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.visual = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.1))
        self.token_embedding = nn.Embedding(10, 6)
        self.positional_embedding = nn.Parameter(torch.randn(3, 6))
        self.transformer = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.1))
        self.ln_final = nn.LayerNorm(6)
        self.text_projection = nn.Parameter(torch.randn(6, 4))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("mask", torch.ones(3))

    def forward(self, images_BD, tokens_BL):
        x_BLD = self.token_embedding(tokens_BL) + self.positional_embedding * self.mask[:, None]
        texts_BD = self.ln_final(self.transformer(x_BLD)).mean(1) @ self.text_projection
        return self.logit_scale.exp() * self.visual(images_BD) @ texts_BD.T


TOWERS = {
    "a mixed list": lambda clip: (
        [clip.transformer, clip.token_embedding, clip.positional_embedding, clip.ln_final, clip.text_projection],
        clip.logit_scale,
    ),
    "names": lambda _: (
        ["transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection"],
        "logit_scale",
    ),
    "patterns": lambda _: (["t*", "positional_*", "ln_*"], ["*_scale"]),
}


@pytest.mark.parametrize("pair", [False, True], ids=["one optimizer", "its own"])
@pytest.mark.parametrize("spelling", TOWERS)
def test_towers_of_modules_and_parameters(spelling, pair):
    clip = Clip()
    text, always = TOWERS[spelling](clip)
    modules = {"image": "visual" if spelling == "names" else clip.visual, "text": text}
    scale = adamw([clip.logit_scale])
    towers = adamw([p for p in clip.parameters() if not pair or p is not clip.logit_scale])
    alternating = AlternatingOptimizer(
        Alternator(modules, rule=Cycle(1)),
        modules,
        towers,
        model=clip,
        always=(always, scale) if pair else always,
    )
    for step in range(4):
        is_text = alternating.active == "text"
        before = copy.deepcopy(dict(clip.named_parameters()))
        assert clip.transformer[1].training == is_text
        assert clip.visual[1].training != is_text
        assert clip.training
        logits_BB = clip(batch(step)[:4], torch.randint(10, (4, 3), generator=torch.Generator().manual_seed(step)))
        alternating.step(nn.functional.cross_entropy(logits_BB, torch.arange(4)))
        moved = {key for key, parameter in clip.named_parameters() if not torch.equal(parameter, before[key])}
        image = {"visual.0.weight", "visual.0.bias"}
        assert moved == {"logit_scale", *(set(before) - image - {"logit_scale"} if is_text else image)}


def test_the_always_group_can_be_the_rest():
    net = Net()
    modules = {"backbone": net.body, "head": net.head[3]}
    for always in ("*", net):
        alternating = build(net, modules, always=always)
        for name in modules:
            alternating.force(name)
            assert net.head[1].training
            assert net.head[0].weight.requires_grad
            assert net.head[3].weight.requires_grad == (name == "head")
        alternating.release()


class Tied(nn.Module):
    """A head that has the weight of the embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 4)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embedding.weight

    def forward(self, tokens_B):
        return self.head(self.middle(self.embedding(tokens_B)))


def trained(net, modules, **options):
    """Per turn the names of what trains."""
    alternating = build(net, modules, **options)
    found = {}
    for name in ("backbone", "head"):
        alternating.force(name)
        found[name] = {key for key, parameter in net.named_parameters() if parameter.requires_grad}
    alternating.release()
    return found


TIED = (
    r"a parameter must belong to one module, but '{0}' of 'backbone' is 'head.weight' of 'head'; the two are tied: "
    r"name the parameter itself in the one that trains it.*always="
)


@pytest.mark.parametrize("names", [True, False])
def test_tied_weights_are_refused_with_what_to_do(names):
    net = Tied()
    given = {"backbone": "*", "head": "head"} if names else {"backbone": net, "head": net.head}
    with pytest.raises(ConfigurationError, match=TIED.format("backbone.embedding.weight")) as error:
        build(net, given)
    assert "\n" not in str(error.value)
    towers = {"backbone": [net.embedding, net.middle], "head": net.head}
    with pytest.raises(ConfigurationError, match=TIED.format(r"backbone\[0\].weight")):
        build(net, towers)


@pytest.mark.parametrize("key", ["embedding.weight", "head.weight"])
def test_tied_weights_named_by_themselves_belong_there(key):
    net = Tied()
    own = {"embedding.weight"}
    rest = {"middle.weight", "middle.bias", "head.bias"}
    found = trained(net, {"backbone": ["*", key], "head": ["head"]})
    assert found == {"backbone": own | rest - {"head.bias"}, "head": {"head.bias"}}
    found = trained(net, {"backbone": net, "head": [net.head, net.get_parameter(key)]})
    assert found == {"backbone": rest - {"head.bias"}, "head": own | {"head.bias"}}
    found = trained(net, {"backbone": "*", "head": "head"}, always=key)
    assert found == {"backbone": own | rest - {"head.bias"}, "head": own | {"head.bias"}}


def test_a_tied_weight_named_in_both_is_refused():
    net = Tied()
    with pytest.raises(
        ConfigurationError, match=r"'backbone\[1\]' of 'backbone' is 'head.head.weight' of 'head'; name it in one"
    ):
        build(net, {"backbone": [net, net.head.weight], "head": ["head", "head.weight"]})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backbone": "bodi", "head": "head"}, r"must name parameters of the model, but 'bodi' of 'backbone' .*'body'"),
        (
            {"backbone": "*", "head": "*.gate"},
            r"but '\*.gate' of 'head' names none; there is 'body', 'dropout', 'head'",
        ),
        ({"backbone": "*", "head": "training"}, r"'training' of 'head' names none"),
        ({"backbone": "body", "head": "head.3"}, r"must belong to a module, but 'head.0.weight'.* belongs to none"),
        ({"backbone": "*", "head": ""}, r"named by a path or pattern"),
        (
            {"backbone": ["body", "head"], "head": "head"},
            r"'backbone.head' of 'backbone' is 'head' of 'head'; name it in one",
        ),
        ({"backbone": "body", "head": ["*", 3]}, r"must be an nn.Module, a name in model=, .*'head\[1\]' is not"),
        ({"backbone": 3, "head": "head"}, r"'backbone\[0\]' is not"),
        ({"backbone": ["body", "head"], "head": ["body.*", "head.*"]}, r"that 'backbone' names belongs to 'head'"),
        ({"backbone": "*", "head": "dropout"}, r"a module must have parameters, but 'head' has none"),
    ],
)
def test_names_that_name_nothing_or_too_much(given, message):
    net = Net()
    with pytest.raises(ConfigurationError, match=message) as error:
        build(net, given)
    assert "\n" not in str(error.value)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_names_without_model():
    net = Net()
    with pytest.raises(
        ConfigurationError, match=r"path or pattern within the model, but 'head' of 'head' .*give model="
    ):
        build(net, {"backbone": net, "head": "head"}, model=False)


def test_a_part_of_which_everything_is_declared_always():
    net = Net()
    with pytest.raises(ConfigurationError, match=r"all that 'head' names belongs to 'always', .*declared always"):
        build(net, {"backbone": net, "head": net.head}, always=net.head.parameters())


class Split(nn.Module):
    """One module with statistics, of which two parts have a parameter."""

    def __init__(self, *, persistent=True):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        if not persistent:
            self.norm._non_persistent_buffers_set.update(dict(self.norm.named_buffers()))

    def parts(self, *more):
        return {"backbone": [self.one, self.norm.weight, *more], "head": [self.two, self.norm.bias]}


def test_statistics_between_two_parts_are_refused_until_they_follow_one():
    net = Split()
    with pytest.raises(ConfigurationError, match=r"'norm' has parameters of 'backbone', 'head' .*add 'norm' itself"):
        build(net, net.parts())
    alternating = build(net, net.parts("norm"))
    alternating.force("head")
    assert not net.norm.training
    assert (net.norm.weight.requires_grad, net.norm.bias.requires_grad) == (False, True)


def test_caches_between_two_parts_follow_none():
    net = Split(persistent=False)
    alternating = build(net, net.parts())
    for name in ("head", "backbone"):
        alternating.force(name)
        assert net.norm.training


def test_a_list_of_parameters_without_model_has_no_mode():
    net = Net()
    modules = {"backbone": list(net.body.parameters()), "head": list(net.head.parameters())}
    alternating = build(net, modules, model=False)
    alternating.train()
    assert net.head.training
    alternating.release()
    build(net, modules)
    assert not net.head.training
    assert net.body.training


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"base": nn.Linear(6, 6)})
        self.adapters = nn.ModuleDict({"adapter_0": nn.Linear(6, 6)})

    def forward(self, x_BD):
        for layer in (*self.layers.values(), *self.adapters.values()):
            x_BD = layer(x_BD)
        return x_BD


@pytest.mark.parametrize("where", ["head", "backbone"])
def test_what_grows_within_a_pattern_or_the_rest_belongs_there(where):
    net = Growing()
    optimizer = adamw(net.parameters())
    alternating = build(net, {"backbone": "*", "head": "*adapter_*"}, optimizer, cycle=1)
    new = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    if where == "head":
        net.adapters["adapter_1"] = new
    else:
        net.layers["more"] = new
    optimizer.add_param_group({"params": new.parameters()})
    alternating.apply()
    for step in range(4):
        is_active = alternating.active == where
        before = copy.deepcopy(new.state_dict())
        alternating.step(loss(net, step))
        assert same_bits(before, new.state_dict()) != is_active


def test_the_names_of_what_can_be_spelled_in_other_ways_are_as_they_were():
    """States of optimizers are saved by these names."""
    net = Net()
    always = net.head[3]
    naming = Naming({"a": net.body, "b": net.head[:3].parameters()}, always)
    assert {name: list(part.parameters) for name, part in naming.parts().items()} == {
        "a": ["a.0.weight", "a.0.bias", "a.1.weight", "a.1.bias"],
        "b": ["b[0]", "b[1]", "b[2]", "b[3]"],
        "always": ["always.weight", "always.bias"],
    }
    naming = Naming({"a": "body", "b": net.head}, "head.3.bias", net)
    assert {name: list(part.parameters) for name, part in naming.parts().items()} == {
        "a": ["a.0.weight", "a.0.bias", "a.1.weight", "a.1.bias"],
        "b": ["b.0.weight", "b.0.bias", "b.1.weight", "b.1.bias", "b.3.weight"],
        "always": ["always[0]"],
    }


def test_parts_named_in_several_ways_have_paths_of_the_model_in_their_names():
    net = Clip()
    naming = Naming({"text": ["transformer", net.token_embedding, "*_projection"], "rest": "*"}, None, net)
    names = {name: list(part.parameters) for name, part in naming.parts().items()}
    assert names["text"] == [
        "text.transformer.0.weight",
        "text.transformer.0.bias",
        "text[1].weight",
        "text.text_projection",
    ]
    assert "rest.visual.0.weight" in names["rest"]
    assert "rest.positional_embedding" in names["rest"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_run_continues_from_its_saved_state(spelling):
    def start():
        net = Net()
        optimizer = adamw(net.parameters())
        return net, build(net, SPELLINGS[spelling](net), optimizer, cycle=3)

    net, alternating = start()
    net.head[3].bias.requires_grad_(False)
    net.head[1].eval()
    alternating.force("head")
    for step in range(5):
        alternating.step(loss(net, step))
    saved = copy.deepcopy([net.state_dict(), alternating.state_dict(include_optimizers=True)])
    other, continued = start()
    other.load_state_dict(saved[0])
    continued.load_state_dict(saved[1])
    for step in range(5, 12):
        assert alternating.step(loss(net, step)) == continued.step(loss(other, step))
    assert same_bits(net.state_dict(), other.state_dict())
    assert [s.training for s in net.modules()] == [s.training for s in other.modules()]


def test_optimizers_of_their_own_hold_the_rest():
    net = Net()
    heads = {id(parameter) for parameter in net.head.parameters()}
    optimizers = {
        "backbone": adamw([parameter for parameter in net.parameters() if id(parameter) not in heads]),
        "head": adamw(net.head.parameters()),
    }
    alternating = build(net, {"backbone": net, "head": net.head}, optimizers)
    for step in range(8):
        alternating.step(loss(net, step))
    assert same_bits(net.state_dict(), by_hand(8)[0].state_dict())


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_compiled(spelling):
    torch._dynamo.reset()
    net = Net()
    compiled = torch.compile(net, backend="eager")
    optimizer = adamw(net.parameters())
    alternator = Alternator(("backbone", "head"), rule=Cycle(2))
    alternating = AlternatingOptimizer(alternator, SPELLINGS[spelling](net), optimizer, model=compiled)
    for step in range(8):
        alternating.step(loss(compiled, step))
    assert same_bits(net.state_dict(), by_hand(8)[0].state_dict())
    torch._dynamo.reset()


def test_a_module_that_overrides_train_and_holds_another_part():
    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[0].eval()
            return self

    net = Net()
    net.body = Frozen(*net.body)
    net.train()
    alternating = build(net, {"backbone": net, "head": nn.ModuleList([net.body[3], net.head])})
    assert (net.body[1].training, net.body[0].training) == (True, False)
    alternating.force("head")
    assert (net.body[1].training, net.body[0].training, net.head.training) == (False, False, True)
    assert net.body[3].training
