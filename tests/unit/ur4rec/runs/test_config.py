"""The configuration of a run as a file that people edit: refused in words, or as valid as any other."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ur4rec.errors import ConfigurationError, DataError
from ur4rec.runs.config import RunConfig
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.plan import Plan
from ur4rec.runs.presets import preset

GOOD = preset("smoke").to_json()
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([*GOOD, "mystery"]), values, st.sampled_from([None, *GOOD["model"], *GOOD["epochs"], "sasrec_lr"])
)
def test_any_value_is_refused_or_written_back_as_it_was(name, value, inner):
    content = json.loads(json.dumps({**GOOD, name: value if inner is None else {inner: value}}))
    try:
        config = RunConfig.from_json(content)
    except ConfigurationError:
        return
    assert config.to_json() == {**GOOD, **content}
    assert Plan(config=config).stage in config.epochs


def test_a_configuration_of_before_splits_and_protocols_is_read():
    before = {name: value for name, value in GOOD.items() if name not in ("data", "split", "repeats")}
    assert RunConfig.from_json(before) == preset("smoke")


def test_a_configuration_that_was_saved_is_read_back():
    assert RunConfig.from_json(json.loads(json.dumps(GOOD))) == preset("smoke")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": "64"}, "batch_size must be an integer of at least 1, got '64'"),
        ({"seed": True}, "seed must be an integer of at least 0, got True"),
        ({"min_item_interactions": 0}, "min_item_interactions must be an integer of at least 1, got 0"),
        ({"early_stopping": 0}, "early_stopping must be an integer of at least 1, got 0"),
        ({"eval_every": None}, "eval_every must be an integer of at least 1, got None"),
        ({"eval_users": 2.5}, "eval_users must be an integer of at least 1, got 2.5"),
        ({"encoder": None}, "encoder must be a string that is not empty, got None"),
        ({"dataset": "a\0"}, "dataset must be a string that is not empty"),
        ({"epochs": {"warmup": 1}}, "unknown stage 'warmup'; expected one of"),
        ({"epochs": {"end_to_end": 10**9}}, "epochs of end_to_end must be at most 100000, got 1000000000"),
        ({"trainer": {"seed": 1}}, "unknown setting of trainer 'seed'"),
        ({"model": {"num_items": 5}}, "unknown setting of model 'num_items'"),
        ({"model": {"num_users": 5}}, "unknown setting of model 'num_users'"),
        ({"user_texts": ""}, "user_texts must be a string that is not empty"),
        ({"allow_leakage": 1}, "allow_leakage must be true or false, got 1"),
        ({"model": 3}, "model must be settings by name, got 3"),
        ({"split": "random"}, "unknown split 'random'; expected one of ('auto', 'leave-one-out', 'temporal', 'given')"),
        ({"repeats": True}, "unknown repeats True; expected one of ('auto', 'allow', 'exclude')"),
        ({"data": {"deduplicate": 1}}, "deduplicate must be"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(changes, message):
    with pytest.raises(ConfigurationError) as caught:
        RunConfig.from_json({**GOOD, **changes})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[[1, 2]]",
        b"{}{}",
        b'{"a": \xff}',
        b"\0",
        b"[" * 100_000,
        b'{"a": 1' + b"1" * 9999 + b"}",
    ],
)
def test_a_damaged_json_file_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(DataError, match=r"config.json must hold a JSON object"):
        RunDirectory.open_existing(tmp_path).read_json("config.json")


def test_a_directory_in_place_of_a_json_file_is_named(tmp_path):
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(DataError, match=r"metrics.json must hold a JSON object .*Is a directory"):
        RunDirectory(tmp_path).read_json("metrics.json")
