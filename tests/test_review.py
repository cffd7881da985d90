"""What an independent review found, held."""

import copy
import json
import math
import pickle

import pytest
import sae_vis
import torch
from sae_vis.data_config_classes import Column, FeatureTablesConfig, SequencesConfig
from typer.testing import CliRunner

from crossvis_tl import CrossvisWarning, SaeVisData, gather, load_dictionary, merge, open_store
from crossvis_tl.activation_fns import ReLU
from crossvis_tl.cli import app
from crossvis_tl.dictionary import Dictionary, Group, Site
from crossvis_tl.page_data import prompt_page
from crossvis_tl.prompts import gather_prompts
from tests.conftest import N_CTX, write_crosscoder
from tests.test_golden import GOLDEN
from tests.test_vis_data import HOOK, autoencoder

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")


class Payload:
    """A pickle that would write a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_store_from_a_stranger_runs_nothing_and_fetches_nothing(tmp_path, crosscoder_dir, tl_models, tokens):
    store = tmp_path / "store"
    gather(load_dictionary(crosscoder_dir), tl_models, tokens, out=store)
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "cc_weights.pt").write_bytes(pickle.dumps({"W_enc": Payload(tmp_path / "PWNED")}))
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["origin"] = {"dictionary": str(evil), "facts": {"trust_pickle": True, "path": "x"}, "models": []}
    (store / "manifest.json").write_text(json.dumps(manifest))
    arguments = ["render", "--store", str(store), "--no-model", "--out", str(tmp_path / "p.html")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "PWNED").exists()
    manifest["origin"]["dictionary"] = "someone/dictionary"
    (store / "manifest.json").write_text(json.dumps(manifest))
    result = CliRunner().invoke(app, arguments)
    assert "which is not here; give --dictionary" in result.output


@pytest.mark.parametrize("name", ["f3a_strictly_causal", "f3c_clt_topk"])
def test_a_crosscoder_with_other_targets_than_sources_is_gathered(name, tl_models, tokens):
    path = GOLDEN[0].parent / name / "checkpoint"
    facts = {"hook_point": "blocks.0.hook_resid_mid", "processing": "none"}
    facts["hook_point_out"] = [f"blocks.{i}.hook_mlp_out" for i in range(3)]
    dictionary = load_dictionary(path, **facts)
    assert len(dictionary.sources) != len(dictionary.targets)
    data = SaeVisData.create(dictionary, tl_models[0], tokens, sae_vis.SaeVisConfig(features=[0, 1]))
    assert len(data.page.fidelity["sites"]) == len(dictionary.targets)


def shown_prompt(data: SaeVisData, text: str):
    return gather_prompts(data, data.capture, [text], None, None, 5)


def test_a_prompt_is_read_as_the_dashboards_were(crosscoder_dir, tl_models, tokens):
    dictionary = load_dictionary(crosscoder_dir)
    cfg = sae_vis.SaeVisConfig(features=list(range(40)))
    text = tl_models[0].tokenizer.decode([7, 9, 12, 7, 5])
    swapped = {0: {7: 8, 9: 3}}
    data = SaeVisData.create(dictionary, tl_models, tokens, cfg, token_replacements=swapped, masking="none")
    shown_prompt(data, text)
    rows = torch.tensor([[0, 7, 9, 12, 7, 5]])
    read = [rows.clone(), rows]
    read[0][rows == 7], read[0][rows == 9] = 8, 3
    x = [m.run_with_cache(part)[1][HOOK] for m, part in zip(tl_models, read, strict=True)]
    want = dictionary.encode(x)[0]
    for feature in range(40):
        got = data.feature_data_dict[feature].prompt_data.feat_acts
        assert got == pytest.approx(want[:, feature].tolist(), abs=2e-4)  # BOS too: nothing was masked
    head, payloads = prompt_page(data, shown_prompt(data, text))
    assert len(head["prompts"]["each"][0]["tokens"]) == 6
    assert all(len(payload["prompts"][0]["t"]) == 6 for _, payload in payloads)


def test_a_prompt_of_nothing_but_ends_and_text_keeps_its_places(tl_models, tokens):
    cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=[4, 9])
    data = SaeVisData.create(autoencoder(), tl_models[0], tokens, cfg)
    text = tl_models[0].tokenizer.decode([7, 9, 12])
    shown = shown_prompt(data, f"<|endoftext|><|endoftext|>{text}<|endoftext|>")
    for feature in (4, 9):
        assert len(data.feature_data_dict[feature].prompt_data.token_ids) == len(shown.each[0].tokens)


def test_a_store_whose_hook_the_call_named_shows_prompts(tmp_path, tl_models, tokens):
    cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=[4])
    SaeVisData.create(autoencoder(), tl_models[0], tokens, cfg, store=tmp_path / "s")
    data = SaeVisData.from_store(tmp_path / "s", autoencoder(), sae_vis.SaeVisConfig(features=[4]), model=tl_models[0])
    data.save_prompt_centric_vis(tl_models[0].tokenizer.decode([7, 9, 12]), tmp_path / "prompt.html")


def test_correlations_are_correlations(tl_models, tokens):
    """One counted token, and a feature that is constant: nothing to correlate, where rounding once gave thousands."""
    encoder = autoencoder()
    encoder.W_enc[:, 3], encoder.b_enc[3] = 0.0, 1.7
    encoder.b_enc[5] = -1e4
    cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=[3, 4, 5, 9])
    few = [p for p in range(N_CTX) if p != 6]
    for rows, masked in ((tokens, ()), (tokens[:1], few)):
        data = SaeVisData.create(encoder, tl_models[0], rows, cfg, masked_positions=masked)
        for feature in (3, 4, 9):
            tables = data.feature_data_dict[feature].feature_tables_data
            found = [*tables.correlated_neurons_pearson, *tables.correlated_features_pearson]
            assert all(math.isfinite(r) and abs(r) <= 1 for r in found)
        tables = data.feature_data_dict[3].feature_tables_data
        assert set(tables.correlated_neurons_pearson) | set(tables.correlated_features_pearson) <= {0.0}
        assert data.feature_data_dict[5].feature_tables_data.correlated_neurons_indices == []


def test_activations_that_overflow_are_named_while_gathering(tmp_path, tl_models, tokens):
    model = copy.deepcopy(tl_models[0])
    model.blocks[0].mlp.b_out.data[0] = float("inf")
    with pytest.raises(ValueError, match=r"NaN or infinite activations at blocks\.1\.hook_resid_post, in sequences"):
        gather(autoencoder(), model, tokens, hook_point=HOOK, out=tmp_path / "s")
    with pytest.raises(ValueError, match="was not finished"):
        open_store(tmp_path / "s")


def test_a_folder_of_the_users_keeps_its_files(tmp_path, crosscoder_dir, tl_models, tokens):
    (tmp_path / "mine").mkdir()
    for name in (".movie.mkv.part", "other.txt"):
        (tmp_path / "mine" / name).write_text("mine")
    with pytest.raises(FileExistsError, match="holds other things and is no store"):
        gather(load_dictionary(crosscoder_dir), tl_models, tokens, out=tmp_path / "mine")
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == [".movie.mkv.part", "other.txt"]


def test_the_same_tokens_twice_are_not_merged(crosscoder_dir, tl_models, tokens):
    one = gather(load_dictionary(crosscoder_dir), tl_models, tokens)
    with pytest.raises(ValueError, match="of the very same tokens"):
        merge([one, one])


def test_neurons_are_dropped_where_one_shard_lacks_them(crosscoder_dir, tl_models, tokens, monkeypatch):
    dictionary = load_dictionary(crosscoder_dir)
    one = gather(dictionary, tl_models, tokens[:6])
    monkeypatch.setattr("crossvis_tl.sums.PRODUCTS_BUDGET", 1)
    other = gather(dictionary, tl_models, tokens[6:])
    for shards in ([one, other], [other, one]):
        assert "sites.products" not in merge(shards).sums


@pytest.mark.parametrize(
    ("component", "text"),
    [
        (FeatureTablesConfig(n_rows=-1), r"FeatureTablesConfig\.n_rows is -1; expected a whole number of at least 0"),
        (SequencesConfig(buffer=(-1, 5)), r"SequencesConfig\.buffer is \(-1, 5\); expected how many tokens"),
        (SequencesConfig(n_quantiles=-2), r"n_quantiles is -2"),
        (SequencesConfig(top_logits_hoverdata=2.5), r"top_logits_hoverdata is 2\.5"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_before_any_work(component, text, tl_models, tokens, monkeypatch):
    monkeypatch.setattr("crossvis_tl.vis_data.gather", None)
    layout = sae_vis.SaeVisLayoutConfig([Column(component)])
    cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=[1], feature_centric_layout=layout)
    with pytest.raises(ValueError, match=text):
        SaeVisData.create(autoencoder(), tl_models[0], tokens, cfg)


def test_strongest_features_cannot_be_asked_of_a_gathering(tmp_path):
    arguments = [
        "--model",
        "m",
        "--dictionary",
        "d",
        "--tokens",
        "t",
        "--features",
        "top:5",
        "--out",
        str(tmp_path / "s"),
    ]
    result = CliRunner().invoke(app, ["gather", *arguments])
    assert result.exit_code == 2
    assert "the strongest are known afterwards" in result.output


def test_the_page_says_where_nothing_is_written(tmp_path, tl_models, tokens):
    dictionary = load_dictionary(
        write_crosscoder(tmp_path / "c", n_sources=1, hook_point="blocks.1.ln2.hook_normalized")
    )
    data = SaeVisData.create(dictionary, tl_models[0], tokens, sae_vis.SaeVisConfig(features=[1]), effect="full")
    assert dict(data.page.facts)["logit effects"].startswith("none: the sites that are written do not add")


def test_an_input_before_a_norms_gain_is_told_from_the_one_after_it(tl_models, tokens):
    """TransformerLens' `ln2.hook_normalized` has stood on either side of the gain: the diagnosis names the other."""
    width, layers = tl_models[0].cfg.d_model, range(tl_models[0].cfg.n_layers)
    right = tuple(Site(0, f"blocks.{i}.mlp.hook_in", width, "none") for i in layers)
    wrong = tuple(Site(0, f"blocks.{i}.ln2.hook_normalized", width, "none") for i in layers)
    identity, bias = torch.eye(width), torch.full((width,), 100.0)
    groups = tuple(Group(f"L{i}", {i: identity}, bias, ReLU(), {i: identity}) for i in layers)
    perfect = Dictionary(
        kind="plt", sources=wrong, targets=right, groups=groups, b_dec=tuple(-bias for _ in layers), name="id"
    )
    with pytest.warns(CrossvisWarning, match="likely cause: it reads mlp.hook_in, not what its config names"):
        gather(perfect, tl_models[0], tokens, [0])


def test_an_sae_of_sae_lens_prints_no_weights():
    dictionary = load_dictionary(GOLDEN[0].parent / "f13_standard_sae" / "checkpoint")
    assert len(repr(dictionary)) < 300
    assert "features reading" in repr(dictionary)
