"""Parts by paths, patterns and the rest."""

import pytest

from adapters.parts import assign
from alternator import ConfigurationError

NAMES = (
    "encoder.embedding.weight",
    "encoder.layers.0.proj.weight",
    "encoder.layers.0.proj.lora_A.default.weight",
    "encoder.layers.0.proj.lora_B.default.weight",
    "encoder.layers.1.weight",
    "head.weight",
    "temperature",
)


def owners(**parts):
    return {name: match.part for name, match in assign(NAMES, parts).items()}


def test_a_path_names_all_under_it_and_nothing_that_only_begins_alike():
    assert owners(a="encoder.layers.0.proj.lora_A", b="head") == {NAMES[2]: "a", NAMES[5]: "b"}
    assert assign(("head.weight", "header.weight"), {"a": "head"}) == {"head.weight": ("a", "head")}


def test_the_deepest_match_wins_and_the_rest_comes_last():
    found = assign(NAMES, {"rest": "*", "encoder": "encoder", "first": "encoder.layers.0", "adapter": "*.lora_?"})
    assert [(match.part, match.node) for match in found.values()] == [
        ("encoder", "encoder"),
        ("first", "encoder.layers.0"),
        ("adapter", "encoder.layers.0.proj.lora_A"),
        ("adapter", "encoder.layers.0.proj.lora_B"),
        ("encoder", "encoder"),
        ("rest", ""),
        ("rest", ""),
    ]


def test_a_part_may_have_several_names_and_one_parameter_is_a_path():
    found = owners(text=["encoder.embedding", "temperature"], rest="*")
    assert [name for name, part in found.items() if part == "text"] == [NAMES[0], NAMES[6]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"a": "encodr"}, r"'encodr' of 'a' names none; there is 'encoder'"),
        ({"a": "*.bias", "b": "*"}, r"'\*.bias' of 'a' names none; there is 'encoder', 'head', 'temperature'"),
        ({"a": "encoder", "b": "enc*"}, r"'encoder.embedding.weight' is named by 'a', 'b' alike"),
        ({"a": "*", "b": "*"}, r"'encoder.embedding.weight' is named by 'a', 'b' alike"),
        ({"a": "head", "b": "head.weight", "c": "*"}, r"all that 'a' names belongs to parts named more precisely"),
        ({"a": ()}, r"a path or pattern, or several, got \(\) for 'a'"),
        ({"a": [""]}, r"got \[''\] for 'a'"),
        ({"a": [3]}, r"got \[3\] for 'a'"),
    ],
)
def test_what_is_refused(parts, message):
    with pytest.raises(ConfigurationError, match=message):
        assign(NAMES, parts)
