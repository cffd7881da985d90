"""What we write for Neuronpedia, held against what SAEDashboard 0.8.0 wrote of the same weights and tokens.

`tests/compat/record_neuronpedia.py` recorded it. Everything is compared: keys and their order, types, every number and
text. What is not the same is listed here, and why; nothing else may differ:

- text: theirs are the tokenizer's own pieces ("Ã©", and "Ã" for half a letter), ours is text ("é", and "\\xc3");
- an example at a row's first token: theirs lacks that token and points at -1, ours keeps the row whole;
- samples of an interval: theirs are drawn by Python's random numbers; both must be of the interval's tokens. The lowest
  holds silent tokens there, so that its share differs too;
- a feature that never fired: theirs has examples of zeros and arbitrary neighbours, ours none;
- a feature among its own neighbours: there where all others' correlations are below 0;
- with BOS, which theirs counts in densities, shares of intervals and correlations, and ours in nothing.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

from crossvis_tl import export_neuronpedia, gather, load_dictionary
from crossvis_tl.dictionary import Dictionary
from crossvis_tl.feature_acts import FeatureActs
from crossvis_tl.vocabulary import _byte_of_character

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning", "ignore::DeprecationWarning")
ORACLES = Path(__file__).parent / "oracles" / "neuronpedia"
FEATURES, ROWS, POSITIONS, DEAD = 8, 30, 10, 7
FOLDER = "tiny_res-tiny_blocks.0.hook_resid_post_8"
SIZES: dict[str, Any] = {"n_quantiles": 3, "top_acts_group_size": 6, "quantile_group_size": 2}
SPECIAL = ("<bos>", "<eos>", "<pad>", "<|outofrange|>")


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    config = json.loads((ORACLES / "model.json").read_text())
    model = HookedTransformer(HookedTransformerConfig(**config, device="cpu"))
    missing, unexpected = model.load_state_dict(load_file(ORACLES / "model.safetensors"), strict=False)
    assert (missing, unexpected) == (["blocks.0.attn.mask", "blocks.0.attn.IGNORE"], [])
    raw = Tokenizer.from_file(str(ORACLES / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    return model


@pytest.fixture(scope="module", params=["plain", "scaled", "bos"])
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def dictionary(name) -> Dictionary:
    return load_dictionary(ORACLES / ("sae_scaled" if name == "scaled" else "sae"), processing="as given")


@pytest.fixture(scope="module")
def acts(name, model, dictionary) -> FeatureActs:
    """SAEDashboard masks BOS by itself where it does; without BOS nothing is masked."""
    tokens = load_file(ORACLES / name / "tokens.safetensors")["tokens"]
    return gather(dictionary, model, tokens, masking="special" if name == "bos" else "none")


@pytest.fixture(scope="module")
def written(tmp_path_factory, name, model, acts, dictionary) -> Path:
    """Told to choose, to correlate and to scale as SAEDashboard does."""
    root = export_neuronpedia(
        acts, tmp_path_factory.mktemp("neuronpedia") / name, model_id="tiny", source_set="res-tiny",
        dictionary=dictionary, model=model, dataset="none", features_per_batch=5, per_document=None, distinct=False,
        correlated="batch", unit_decoders=name == "scaled", **SIZES,
    )  # fmt: skip
    assert [path.name for path in root.iterdir()] == [FOLDER]
    return root / FOLDER


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def features(theirs: Path, ours: Path) -> list[tuple[dict, dict]]:
    return [
        pair
        for number in (0, 1)
        for pair in zip(*(read(folder / f"batch-{number}.json")["features"] for folder in (theirs, ours)), strict=True)
    ]


@pytest.fixture(scope="module")
def pairs(name, written) -> list[tuple[dict, dict]]:
    found = features(ORACLES / name, written)
    assert [theirs["feature_index"] for theirs, _ in found] == list(range(FEATURES))
    return found


def shape(value: Any) -> Any:
    """Keys in order, and types: of a list those that come in it."""
    if isinstance(value, dict):
        return [(key, shape(part)) for key, part in value.items()]
    if isinstance(value, list):
        kinds: list = []
        for kind in map(shape, value):
            if kind not in kinds:
                kinds.append(kind)
        return ["list", *sorted(kinds, key=str)]
    return type(value).__name__


def text(piece: str) -> str:
    """What we write for a piece of their vocabulary."""
    if piece in SPECIAL:
        return piece
    # their own table turns some pieces into text: the space, the line's end, the dash
    own, alphabet = {" ": 0x20, "\n": 0x0A}, _byte_of_character()
    raw = b"".join("–".encode() if c == "–" else bytes([own[c] if c in own else alphabet[c]]) for c in piece)
    return raw.decode(errors="surrogateescape").translate({0xDC00 + byte: f"\\x{byte:02x}" for byte in range(128, 256)})


def test_the_same_files_with_the_same_settings(name, written):
    there = {path.name for path in (ORACLES / name).glob("*.json")}
    assert there | {"crossvis_export.json", f"tokens_{ROWS}.pt"} == {path.name for path in written.iterdir()}
    theirs, ours = (read(folder / "run_settings.json") for folder in (ORACLES / name, written))
    assert list(ours) == list(theirs)
    own = {"sae_path", "outputs_dir", "n_prompts_in_forward_pass", "shuffle_tokens"}  # of the run itself
    assert {key for key in theirs if ours[key] != theirs[key]} <= own
    assert [type(ours[key]) for key in theirs] == [type(theirs[key]) for key in theirs]
    assert (written / "skipped_indexes.json").read_text() == (ORACLES / name / "skipped_indexes.json").read_text()


def test_saedashboard_would_read_the_same_tokens_from_our_file(name, written):
    tokens = torch.load(written / f"tokens_{ROWS}.pt", weights_only=True)
    assert torch.equal(tokens, load_file(ORACLES / name / "tokens.safetensors")["tokens"])


def test_a_batch_file_begins_as_theirs(name, written):
    for number in (0, 1):
        texts = [(folder / f"batch-{number}.json").read_text() for folder in (ORACLES / name, written)]
        begins = [one[: one.index('"features": [{')] for one in texts]
        assert begins[0] == begins[1] != ""


def test_keys_their_order_and_types_are_theirs(pairs):
    for theirs, ours in pairs:
        if theirs["feature_index"] == DEAD:  # nothing stands where theirs has what was not there
            assert list(ours) == list(theirs)
            assert [type(ours[key]) for key in theirs] == [type(theirs[key]) for key in theirs]
        else:
            assert shape(ours) == shape(theirs)


EQUAL = (
    "feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "neg_values",
    "pos_values", "freq_hist_data_bar_values", "freq_hist_data_bar_heights", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "n_prompts_total", "n_tokens_in_prompt", "dataset", "decoder_weights_dist", "vector",
)  # fmt: skip


def close(ours: Any, theirs: Any) -> bool:
    """The same, or numbers one apart in the last digit: sums of another order fall to the other side of a half."""
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(close, ours, theirs))
    return abs(ours - theirs) < 0.00101 if isinstance(theirs, float) else ours == theirs


@pytest.mark.parametrize("key", EQUAL)
def test_numbers_are_theirs(pairs, key):
    for theirs, ours in pairs:
        assert close(ours[key], theirs[key]), theirs["feature_index"]
    numbers = [
        (mine, other)
        for theirs, ours in pairs
        if isinstance(theirs[key], list)
        for mine, other in zip(ours[key], theirs[key], strict=True)
    ]
    assert sum(mine != other for mine, other in numbers) <= 0.02 * len(numbers)


@pytest.mark.parametrize("key", ["neg_str", "pos_str"])
def test_tokens_raised_and_lowered_are_theirs_as_text(pairs, key):
    for theirs, ours in pairs:
        assert ours[key] == [text(piece) for piece in theirs[key]]
    assert {"é", "\\xc3", "–", "<|outofrange|>"} <= {
        word for _, ours in pairs for word in ours["neg_str"] + ours["pos_str"]
    }


def test_densities(name, pairs):
    for theirs, ours in pairs:
        if name != "bos":
            assert ours["frac_nonzero"] == theirs["frac_nonzero"]
        else:  # theirs is a share of all tokens, BOS among them
            fired = round(theirs["frac_nonzero"] * ROWS * POSITIONS)
            assert ours["frac_nonzero"] == pytest.approx(fired / (ROWS * (POSITIONS - 1)), abs=5e-6)


def neighbours(feature: dict, kind: str) -> list[tuple[int, float, float]]:
    columns = (feature[f"correlated_{kind}_{part}"] for part in ("indices", "pearson", "l1"))
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("kind", ["neurons", "features"])
def test_neighbours(name, pairs, kind):
    """With BOS, theirs are of other tokens: those of the tokens we count are looked at without it."""
    for theirs, ours in pairs if name != "bos" else []:
        own, there, feature = neighbours(ours, kind), neighbours(theirs, kind), theirs["feature_index"]
        if feature == DEAD:
            assert own == []
            continue
        kept = [row for row in there if kind == "neurons" or row[0] != feature]  # itself
        assert len(own) == 3
        assert feature not in {row[0] for row in own if kind == "features"}
        assert len(kept) >= 2
        assert close([list(row) for row in own[: len(kept)]], [list(row) for row in kept])


def groups(feature: dict) -> dict[tuple[float, float], list[dict]]:
    found: dict[tuple[float, float], list[dict]] = {}
    for one in feature["activations"]:
        found.setdefault((one["bin_min"], one["bin_max"]), []).append(one)
    return found


def test_top_examples_are_theirs(name, pairs):
    at_the_beginning = 0
    for theirs, ours in pairs[:DEAD]:
        (edge, own), (their_edge, there) = (next(iter(groups(one).items())) for one in (ours, theirs))
        assert edge == their_edge
        assert edge[0] == -1
        for one, other in zip(own, there, strict=True):
            assert one["values"][one["qualifying_token_index"]] > 0
            expected = other | {"tokens": [text(piece) for piece in other["tokens"]]}
            if other["qualifying_token_index"] == -1:
                at_the_beginning += 1
                assert one["qualifying_token_index"] == 0
                assert len(one["tokens"]) == POSITIONS
                one |= {"tokens": one["tokens"][1:], "values": one["values"][1:], "qualifying_token_index": -1}
            assert close(one.pop("values"), expected.pop("values"))
            assert one == expected
    assert (at_the_beginning > 0) == (name != "bos")


def test_of_a_feature_that_never_fired_there_are_no_examples(pairs):
    theirs, ours = pairs[DEAD]
    assert ours["activations"] == []
    assert not any(any(one["values"]) for one in theirs["activations"])


def test_intervals_are_theirs_and_samples_are_of_them(name, pairs, acts, dictionary):
    n, lengths = SIZES["n_quantiles"], dictionary.decoder(torch.arange(FEATURES), 0).norm(dim=-1)
    for theirs, ours in pairs[:DEAD]:
        own, there = (list(groups(one).items())[1:] for one in (ours, theirs))
        assert [bounds for bounds, _ in own] == [bounds for bounds, _ in there]
        _, values = acts.of(theirs["feature_index"])
        values = values * lengths[theirs["feature_index"]]
        edges = torch.linspace(0, float(values.max()), n + 1).tolist()
        for i, ((_, mine), (_, other)) in enumerate(zip(own, there, strict=True)):
            low, high = edges[n - 1 - i], edges[n - i]
            inside = int(((values >= low) & (values <= high)).sum())
            strengths = [one["values"][one["qualifying_token_index"]] for one in mine]
            assert all(max(low, 1e-9) - 0.0011 <= value <= high + 0.0011 for value in strengths)
            assert len(mine) == min(inside, SIZES["quantile_group_size"])
            assert all(one["bin_contains"] == pytest.approx(inside / acts.n_counted, abs=6e-6) for one in mine)
            silent = ROWS * POSITIONS - len(values) if i == n - 1 else 0  # their lowest interval holds the silent ones
            assert other[0]["bin_contains"] * ROWS * POSITIONS == pytest.approx(inside + silent, abs=0.01)
