"""The presets: each is valid and explained, one alone leaves anything to the data, and what is given wins."""

import pytest

from ur4rec.cli.settings import render_presets, render_settings
from ur4rec.config import TrainerConfig
from ur4rec.errors import ConfigurationError, UnknownNameError
from ur4rec.runs.config import RunConfig
from ur4rec.runs.presets import PRESETS, preset
from ur4rec.runs.sizes import FROM_DATA


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_be_saved_and_read_and_is_listed_for_its_data(name):
    config = preset(name)
    assert RunConfig.from_json(config.to_json()) == config
    assert bool(config.from_data) == (name == "default")
    assert f"{name}\n    {PRESETS[name].purpose}\n" in render_presets()


def test_the_presets_of_published_data_say_what_they_are_for():
    amazon, ml_1m, large = (preset(name) for name in ("amazon", "ml-1m", "large-catalogue"))
    assert ml_1m.dataset == "ml-1m"
    assert ml_1m.model_config(num_items=2).max_seq_len == 200
    assert TrainerConfig(**amazon.trainer).catalogue_loss == "sampled"
    assert (amazon.model["sasrec_dropout"], amazon.model["sasrec_item_init"]) == (0.4, "whitened")
    assert all(each.model["sasrec_embedding_scale"] for each in (amazon, ml_1m, large))
    assert TrainerConfig(**large.trainer).catalogue_loss == "sampled"
    assert TrainerConfig(**large.trainer).num_negatives > TrainerConfig().num_negatives


def test_an_unknown_preset_is_answered_with_those_that_exist():
    with pytest.raises(UnknownNameError) as caught:
        preset("ml-10m")
    assert all(name in str(caught.value) for name in PRESETS)


def test_what_is_given_is_no_longer_left_to_the_data():
    config = preset(
        "default", batch_size=32, epochs={"end_to_end": 2}, model={"max_seq_len": 30}, trainer={"sasrec_lr": 0.01}
    )
    given = {"batch_size", "end_to_end", "max_seq_len", "sasrec_lr"}
    assert set(config.from_data) == set(FROM_DATA) - given
    weighed = {"joint_loss": "separate", "fusion_fit": "held_out", "joint_lr_scale": 0.3}
    model = {"sasrec_embedding_scale": True, "fusion_popularity": True}
    assert preset("default", from_data=()) == RunConfig(model=model, trainer=weighed)
    assert preset("default", early_stopping=None).from_data == FROM_DATA


def test_heads_and_widths_that_only_fit_with_what_the_data_decides_are_taken():
    assert preset("default", model={"sasrec_hidden_dim": 33}).model_config(num_items=2).sasrec_hidden_dim == 33
    assert preset("default", model={"sasrec_num_heads": 7}).model_config(num_items=2).sasrec_num_heads == 7
    with pytest.raises(ConfigurationError, match="must be a multiple of sasrec_num_heads"):
        preset("default", model={"sasrec_hidden_dim": 33, "sasrec_num_heads": 2})


@pytest.mark.parametrize("name", ["default", "amazon", "ml-1m"])
def test_fusion_weights_learn_where_a_loss_or_fusion_that_is_given_does_not_let_them_be_chosen(name):
    def fusion_fit(**given):
        return preset(name, **given).trainer["fusion_fit"]

    assert fusion_fit() == fusion_fit(trainer={"joint_loss": "separate"}, model={"fusion": "logit"}) == "held_out"
    assert fusion_fit(trainer={"joint_loss": "fused"}) == fusion_fit(model={"fusion": "rank"}) == "training"
    with pytest.raises(ConfigurationError, match="fusion_fit='held_out' needs"):  # what is given is not changed
        fusion_fit(trainer={"joint_loss": "fused", "fusion_fit": "held_out"})


def test_popularity_has_no_weight_where_nothing_would_choose_it():
    assert preset("default").model["fusion_popularity"]
    for given in ({"trainer": {"joint_loss": "fused"}}, {"model": {"fusion": "rank"}}):
        assert not preset("default", **given).model_config(num_items=2).fusion_popularity
    learnt = preset("default", trainer={"fusion_fit": "training"}, model={"max_seq_len": 30})
    assert learnt.model == {"sasrec_embedding_scale": True, "max_seq_len": 30}
    with pytest.raises(ConfigurationError, match=r"fusion_popularity=True needs fusion_fit='held_out'.*got 'training'"):
        preset("default", trainer={"joint_loss": "fused"}, model={"fusion_popularity": True})
    assert preset("ml-1m", model={"fusion_popularity": True}).model["fusion_popularity"]


@pytest.mark.parametrize("names", ["batch_size", 3, ["colour"], [["batch_size"]]])
def test_what_cannot_be_left_to_the_data_is_refused(names):
    with pytest.raises(ConfigurationError):
        RunConfig(from_data=names)


def test_settings_that_are_from_the_data_have_no_value_yet():
    text = render_settings("default")
    assert "--set max_seq_len=? (from the data)" in text
    assert "batches of ?, epochs ? + ? + ? + ?; ? is from the data" in text
    assert "?" not in render_settings("ml-1m").partition("\n\n")[0]
