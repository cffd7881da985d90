"""Two models read the same ids; where the ids mean other things to them, that is said or mended."""

import pytest
import torch
from sae_vis import SaeVisConfig

from crossvis_tl import CrossvisWarning, SaeVisData, load_dictionary, load_model
from crossvis_tl.capture import Capture
from crossvis_tl.pairs import parse_replacements, tokenizer_differences
from crossvis_tl.tokens import replaced_tokens
from tests.conftest import tiny_hf, tiny_tokenizer


def other_tokenizer():
    """As the tiny one, with two of its characters exchanged and a padding token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = dict(tiny_tokenizer().get_vocab())
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=end, eos_token=end, unk_token=end, pad_token="#")  # noqa: S106


@pytest.fixture(scope="module")
def pair():
    return [load_model(tiny_hf(1), tokenizer=tiny_tokenizer()), load_model(tiny_hf(2), tokenizer=other_tokenizer())]


def test_differences_are_told_for_the_ids_that_are_used(pair, tokens):
    notes = tokenizer_differences(pair, tokens, {})
    assert len(notes) == 2
    assert notes[0].startswith("2 of the 60 token ids used mean other tokens to")
    assert "1 is '!' and '\"'" in notes[0]
    assert "pad 0 and 3" in notes[1]
    assert len(tokenizer_differences(pair, torch.tensor([[0, 5, 6]]), {})) == 1
    assert tokenizer_differences([pair[0], pair[0]], tokens, {}) == []


def test_what_is_replaced_is_no_difference(pair, tokens):
    assert not any("mean other" in note for note in tokenizer_differences(pair, tokens, {1: {1: 2, 2: 1}}))


def test_the_dashboard_says_so(pair, tokens, crosscoder_dir):
    with pytest.warns(CrossvisWarning, match="token ids used mean other tokens"):
        data = SaeVisData.create(load_dictionary(crosscoder_dir), pair, tokens, SaeVisConfig(features=[0]))
    assert any("mean other tokens" in text for text in data.page.fidelity["warnings"])


def test_a_model_reads_the_ids_given_in_place_of_others(pair, tokens, crosscoder_dir):
    """As the producers of chat crosscoders do: the base model reads other ids where the template's stand."""
    dictionary = load_dictionary(crosscoder_dir)
    swap = {1: 2, 2: 1, 3: 59}
    got = Capture(dictionary, pair, {0: swap}).run(tokens)
    plain = Capture(dictionary, pair).run(tokens)
    swapped = torch.tensor([[swap.get(int(t), int(t)) for t in row] for row in tokens])
    assert torch.equal(replaced_tokens(tokens, swap), swapped)
    torch.testing.assert_close(got.sources[0], Capture(dictionary, pair).run(swapped).sources[0])
    assert torch.equal(got.sources[1], plain.sources[1])
    with pytest.warns(CrossvisWarning):
        data = SaeVisData.create(dictionary, pair, tokens, SaeVisConfig(features=[0]), token_replacements={0: {3: 59}})
    name = data.page.models[0]
    assert ["replaced tokens", f"{name} reads 59 for 3"] in data.page.facts


@pytest.mark.parametrize(
    ("replacements", "text"),
    [
        ({2: {1: 1}}, "token_replacements name model 2; there are models 0 to 1"),
        ({0: {1: 99}}, "the id 99, outside its vocabulary of 60"),
    ],
)
def test_replacements_that_cannot_be(pair, crosscoder_dir, replacements, text):
    with pytest.raises(ValueError, match=text):
        Capture(load_dictionary(crosscoder_dir), pair, replacements)


def test_replacements_on_the_command_line():
    assert parse_replacements(["0:128006=1432", "0:5=6", "1: 7 = 8"]) == {0: {128006: 1432, 5: 6}, 1: {7: 8}}
    for text in ("0:1", "1=2", "a:1=2", "0:1=-2"):
        with pytest.raises(ValueError, match=r"expected MODEL:ID=ID, such as 0:128006=1432"):
            parse_replacements([text])
