"""Which features a command is to show, of a CLT of three layers with 20 features each."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossvis_tl import load_dictionary
from crossvis_tl.selection import parse_features
from tests.conftest import write_clt, write_crosscoder


@pytest.fixture(scope="module")
def clt(tmp_path_factory):
    return load_dictionary(write_clt(tmp_path_factory.mktemp("clt")))


@pytest.mark.parametrize(
    ("text", "layer", "features"),
    [
        ("all", None, None), ("top:5", None, None), ("0,5,10-12", None, [0, 5, 10, 11, 12]), ("L1F3, 2", None, [23, 2]),
        ("L2", None, list(range(40, 60))), ("l1,0", None, [*range(20, 40), 0]), ("5,5-6", None, [5, 6]),
        ("all", 1, list(range(20, 40))), ("top:5", 2, list(range(40, 60))), ("0,5-6", 1, [20, 25, 26]),
        ("L1F3", 1, [23]), ("L1", 1, list(range(20, 40))),
    ],
)  # fmt: skip
def test_features_by_number_label_and_layer(clt, text, layer, features):
    assert parse_features(text, clt, layer) == features


@given(st.integers(0, 2), st.lists(st.integers(0, 19), min_size=1, unique=True))
def test_numbers_within_a_layer_are_the_labels_numbers(clt, layer, numbers):
    found = parse_features(",".join(map(str, numbers)), clt, layer)
    assert found is not None
    assert [clt.label(feature) for feature in found] == [f"L{layer}F{number}" for number in numbers]
    assert found == parse_features(",".join(f"L{layer}F{number}" for number in numbers), clt)


@pytest.mark.parametrize(
    ("text", "layer", "says"),
    [
        ("all", 3, "there is no layer 3; this clt has layers 0, 1, 2"), ("L7", None, "there is no layer 7"),
        ("20", 1, "feature 20 is out of range: this layer has features 0 to 19"), ("60", None, "has features 0 to 59"),
        ("L0F3", 1, "L0F3 is not of layer 1"), ("L0", 2, "L0F0 is not of layer 2"), ("5-3", 1, "runs backwards"),
        ("cats", 1, "'cats' names no feature"), (" , ", 1, "names no feature; give numbers"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said(clt, text, layer, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_features(text, clt, layer)


def test_a_crosscoders_features_have_no_layers(tmp_path):
    with pytest.raises(ValueError, match="the features of this crosscoder have no layers of their own"):
        parse_features("all", load_dictionary(write_crosscoder(tmp_path / "c")), 1)
