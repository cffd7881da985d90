"""What dashboards show beyond sae_vis' components, against brute force from plain forward passes and the files' own
weights: which source drives a feature, site logit lenses, probabilities, the index for the map, prompts."""

from collections import Counter
from itertools import combinations

import pytest
import torch
from sae_vis.model_fns import AutoEncoder
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer

import crossvis_tl.gathering
from crossvis_tl import (
    Column,
    DecoderNormsConfig,
    SaeVisConfig,
    SaeVisData,
    SaeVisLayoutConfig,
    SequencesConfig,
    SiteLogitsConfig,
    SourceAttributionConfig,
    gather,
    load_dictionary,
    load_model,
    merge,
    open_store,
)
from crossvis_tl.page_data import feature_page, prompt_page
from crossvis_tl.prompts import gather_prompts
from tests.architectures import build
from tests.conftest import N_CTX, N_LAYERS, write_clt, write_crosscoder
from tests.page.page_reader import read_page
from tests.test_vis_data import HOOK, autoencoder

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
LAYERS = [f"blocks.{i}.hook_resid_post" for i in range(N_LAYERS)]
FINAL = LAYERS[-1]


@pytest.fixture(scope="module")
def pair_dir(tmp_path_factory):
    return write_crosscoder(tmp_path_factory.mktemp("pair") / "crosscoder")


@pytest.fixture(scope="module")
def pair(pair_dir):
    return load_dictionary(pair_dir)


@pytest.fixture(scope="module")
def multi_dir(tmp_path_factory):
    return write_crosscoder(tmp_path_factory.mktemp("multi") / "crosscoder", n_sources=3, hook_point=LAYERS)


@pytest.fixture(scope="module")
def clt(tmp_path_factory):
    return load_dictionary(write_clt(tmp_path_factory.mktemp("layers") / "clt"))


@pytest.fixture(scope="module")
def caches(tl_models, tokens):
    """Everything both models compute on the tokens."""
    with torch.no_grad():
        return [model.run_with_cache(tokens)[1] for model in tl_models]


def weights(folder):
    return torch.load(folder / "cc_weights.pt", weights_only=True)


def parts_of(state, x, scales=None) -> torch.Tensor:
    """What each source adds to each pre-activation: [rows, positions, features, sources]."""
    scales = scales or [1.0] * len(x)
    return torch.stack([k * one @ W for k, one, W in zip(scales, x, state["W_enc"], strict=True)], dim=-1)


def lively(acts: torch.Tensor, n: int) -> list[int]:
    return (acts[:, 1:] > 0).flatten(0, 1).sum(0).topk(n).indices.tolist()


def shown(data: SaeVisData, feature: int):
    """-> sequence, record and the place of its first token, of everything shown."""
    groups = data.feature_data_dict[feature].sequence_data.seq_group_data
    for group, records in zip(groups, data.panels[feature].sequences, strict=True):
        for sequence, record in zip(group.seq_data, records, strict=True):
            yield sequence, record, record.position - record.bold


# Which source drives a feature


def check_shares(data: SaeVisData, features, parts: torch.Tensor, b_enc: torch.Tensor, tokens) -> None:
    pre = parts.sum(-1) + b_enc
    shares = parts / pre[..., None]
    firing = silent = 0
    for feature in features:
        panel = data.panels[feature]
        for sequence, record, start in shown(data, feature):
            assert len(record.sources) == parts.shape[-1]
            assert all(len(line) == len(sequence.token_ids) for line in record.sources)
            for i, act in enumerate(sequence.feat_acts):
                at = (record.row, start + i, feature)
                got = [line[i] for line in record.sources]
                assert sequence.token_ids[i] == tokens[at[:2]]
                if at[1] == 0 or pre[at] <= 0:  # BOS is masked
                    assert act == 0
                    assert got == [0.0] * parts.shape[-1]
                    silent += 1
                    continue
                want = shares[at]
                tiny = 1e-5 / float(pre[at])  # float32's noise, where sources and bias nearly cancel
                assert got == pytest.approx(want.tolist(), rel=1e-3 + tiny, abs=1e-4 + tiny)
                bias = float(b_enc[feature] / pre[at])
                assert sum(got) + bias == pytest.approx(1, abs=2e-3 * (1 + float(want.abs().sum())) + tiny)
                firing += 1
        top = panel.sequences[0]
        at = tuple(torch.tensor([[r.row, r.position] for r in top]).T)
        weight = pre[..., feature][at]
        mean = (shares[..., feature, :][at] * weight[:, None]).sum(0) / weight.sum()
        assert panel.attribution == pytest.approx(mean.tolist(), abs=2e-3)
    assert firing > 60
    assert silent > 30


def test_shares_of_two_models(pair_dir, pair, tl_models, tokens, caches):
    state = weights(pair_dir)
    parts = parts_of(state, [cache[HOOK] for cache in caches])
    features = lively(parts.sum(-1) + state["b_enc"], 3)
    data = SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=features))
    check_shares(data, features, parts, state["b_enc"], tokens)
    _, payloads = feature_page(data, None)
    for feature, payload in payloads:
        assert payload["attribution"] == data.panels[feature].attribution
        record, sequence = data.panels[feature].sequences[0][0], payload["groups"][0]["sequences"][0]
        assert sequence["s"] == record.sources


def test_shares_of_three_layers(multi_dir, tl_models, tokens, caches):
    state = weights(multi_dir)
    parts = parts_of(state, [caches[1][hook] for hook in LAYERS])
    features = lively(parts.sum(-1) + state["b_enc"], 2)
    data = SaeVisData.create(load_dictionary(multi_dir), tl_models[1], tokens, SaeVisConfig(features=features))
    check_shares(data, features, parts, state["b_enc"], tokens)


def test_shares_where_each_source_has_a_scale_of_its_own(tmp_path, tl_models, tokens, caches):
    scales = [0.5, 3.0]
    folder = write_crosscoder(tmp_path / "c", input_scale_folded=False)
    state = weights(folder)
    parts = parts_of(state, [cache[HOOK] for cache in caches], scales)
    features = lively(parts.sum(-1) + state["b_enc"], 2)
    dictionary = load_dictionary(folder, input_scale=scales)
    data = SaeVisData.create(dictionary, tl_models, tokens, SaeVisConfig(features=features))
    check_shares(data, features, parts, state["b_enc"], tokens)


def test_what_reads_one_source_has_no_shares(clt, tl_models, tokens, tmp_path):
    one = load_dictionary(write_crosscoder(tmp_path / "one", n_sources=1))
    layout = SaeVisLayoutConfig([Column(SourceAttributionConfig(), SequencesConfig(n_quantiles=0))])
    for dictionary in (clt, one, autoencoder()):
        hook = HOOK if isinstance(dictionary, AutoEncoder) else None
        cfg = SaeVisConfig(hook_point=hook, features=[2, 9], feature_centric_layout=layout)
        data = SaeVisData.create(dictionary, tl_models[1], tokens, cfg)
        for panel in data.panels.values():
            assert panel.attribution == []
            assert all(record.sources == [] for group in panel.sequences for record in group)
        _, payloads = feature_page(data, None)
        assert all(payload["attribution"] is None for _, payload in payloads)
        data.save_feature_centric_vis(tmp_path / "page.html")


def test_a_layout_that_does_not_show_sources_does_not_have_them(pair, tl_models, tokens):
    layout = SaeVisLayoutConfig([Column(SequencesConfig(n_quantiles=0))])
    data = SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=[5], feature_centric_layout=layout))
    assert data.panels[5].attribution == []
    assert all(record.sources == [] for group in data.panels[5].sequences for record in group)


def many_parts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(crossvis_tl.gathering, "PART_TOKENS", 2 * N_CTX)
    patch.setattr(crossvis_tl.gathering, "MOST_PARTS", 10**9)


def sources_of(data: SaeVisData) -> dict:
    return {
        feature: (panel.attribution, [[(r.row, r.position, r.sources) for r in group] for group in panel.sequences])
        for feature, panel in data.panels.items()
    }


def assert_same_sources(got: SaeVisData, want: SaeVisData) -> None:
    """The same examples with the same shares, to what another batch's order of summing changes."""
    assert list(got.panels) == list(want.panels)
    for feature, (mean, groups) in sources_of(want).items():
        other_mean, others = sources_of(got)[feature]
        assert other_mean == pytest.approx(mean, abs=2e-3)
        for group, other_group in zip(groups, others, strict=True):
            for (row, position, lines), (other_row, other_position, other) in zip(group, other_group, strict=True):
                assert (row, position) == (other_row, other_position)
                assert len(lines) == 2
                for line, other_line in zip(lines, other, strict=True):
                    assert other_line == pytest.approx(line, rel=2e-3, abs=2e-3)


@pytest.fixture(scope="module")
def kept(tmp_path_factory, pair, tl_models, tokens):
    """A store of many parts, and the dashboards made directly."""
    store = tmp_path_factory.mktemp("kept") / "store"
    with pytest.MonkeyPatch.context() as patch:
        many_parts(patch)
        gather(pair, tl_models, tokens, out=store, rows_per_batch=2)
    assert len(list(store.glob("part-*"))) == 6
    data = SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=[12, 5]))
    assert all(data.panels[f].attribution for f in (12, 5))
    return store, data


def test_shares_go_through_a_store(kept, pair, tl_models):
    store, want = kept
    for given in (store, open_store(store)):
        data = SaeVisData.from_store(given, pair, SaeVisConfig(features=[12, 5]), model=tl_models)
        assert_same_sources(data, want)
    assert_same_sources(SaeVisData.from_store(store, pair, SaeVisConfig(features=[12, 5])), want)


def test_shares_go_through_a_merge(kept, pair, tl_models, tokens, tmp_path):
    _, want = kept
    shards = [gather(pair, tl_models, tokens[:5]), gather(pair, tl_models, tokens[5:], out=tmp_path / "second")]
    for whole in (merge(shards), merge(shards, tmp_path / "whole")):
        assert_same_sources(SaeVisData.from_store(whole, pair, SaeVisConfig(features=[12, 5])), want)


def test_shares_are_there_after_a_gathering_that_was_stopped(kept, pair, tl_models, tokens, tmp_path, monkeypatch):
    store, _ = kept
    many_parts(monkeypatch)
    forward, calls = HookedTransformer.forward, []

    def stopping(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(HookedTransformer, "forward", stopping)
        with pytest.raises(KeyboardInterrupt, match="goes on from there"):
            gather(pair, tl_models, tokens, out=tmp_path / "store", rows_per_batch=2)
    begun = list((tmp_path / "store").glob("part-*"))
    assert 0 < len(begun) < 6
    got, want = gather(pair, tl_models, tokens, out=tmp_path / "store", rows_per_batch=2), open_store(store)
    for i in range(40):
        assert torch.equal(got.shares(i), want.shares(i))
        assert len(got.shares(i)) == len(got.of(i)[1])


def test_shares_go_through_json(kept, tmp_path):
    _, data = kept
    data.save_json(tmp_path / "d.json")
    assert sources_of(SaeVisData.load_json(tmp_path / "d.json")) == sources_of(data)


def infinite(shares: torch.Tensor) -> torch.Tensor:
    shares[:] = float("inf")
    return shares


def nan(shares: torch.Tensor) -> torch.Tensor:
    shares[:, 1] = float("nan")
    return shares


DAMAGE = {
    "infinite": infinite,
    "nan": nan,
    "one source less": lambda shares: shares[:, :1],
    "one source more": lambda shares: torch.cat([shares, shares[:, :1]], dim=-1),
    "none": lambda shares: shares[:, :0],
    "one row less": lambda shares: shares[:-1],
    "flat": lambda shares: shares.flatten(),
    "float32": lambda shares: shares.float(),
    "missing": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_shares_are_refused(damage, kept, pair, tmp_path, tl_models, tokens):
    gather(pair, tl_models, tokens[:3], [5, 12], out=tmp_path / "store")
    path = tmp_path / "store" / "part-00000.safetensors"
    content = load_file(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    shares = content.pop("shares")
    assert shares.dtype == torch.float16
    if DAMAGE[damage] is not None:
        content["shares"] = DAMAGE[damage](shares.clone()).contiguous()
    path.unlink()
    save_file(content, path, about)
    with pytest.raises(ValueError, match=r"store.* damaged"):
        SaeVisData.from_store(tmp_path / "store", pair, SaeVisConfig(features=[5, 12]))


# Site logit lens


def lens_layout(n_rows: int = 4) -> SaeVisLayoutConfig:
    return SaeVisLayoutConfig([Column(DecoderNormsConfig(), SiteLogitsConfig(n_rows=n_rows))])


def check_lens(lens, logits: torch.Tensor, n_rows: int) -> None:
    for side, largest in (("top", True), ("bottom", False)):
        want = logits.topk(min(n_rows, len(logits)), largest=largest)
        assert getattr(lens, f"{side}_ids") == want.indices.tolist()
        assert getattr(lens, side) == pytest.approx(want.values.tolist(), abs=1e-4)


def ln_lens(hf, direction: torch.Tensor) -> torch.Tensor:
    """GPT-2's own weights: the final norm centres, and multiplies by its gain."""
    return ((direction - direction.mean()) * hf.transformer.ln_f.weight) @ hf.lm_head.weight.T


@torch.no_grad()
def test_lenses_of_two_models(pair_dir, pair, hf_models, tl_models, tokens):
    W_dec = weights(pair_dir)["W_dec"]
    cfg = SaeVisConfig(features=[3, 12], feature_centric_layout=lens_layout())
    data = SaeVisData.create(pair, tl_models, tokens, cfg)
    head, payloads = feature_page(data, None)
    payloads = dict(payloads)
    for feature in (3, 12):
        lenses = data.panels[feature].lens
        assert len(lenses) == 2
        for m, lens in enumerate(lenses):
            want = ln_lens(hf_models[m], W_dec[feature, m])
            check_lens(lens, want, 4)
            drawn = payloads[feature]["sites"]["lens"][m]
            assert [head["token_ids"][place] for place, _ in drawn["top"]] == lens.top_ids
            assert [value for _, value in drawn["bottom"]] == pytest.approx(lens.bottom, rel=1e-3)


@torch.no_grad()
def test_lenses_of_more_rows_than_there_are_tokens(multi_dir, hf_models, tl_models, tokens):
    W_dec = weights(multi_dir)["W_dec"]
    for n_rows in (0, 1000):
        cfg = SaeVisConfig(features=[7], feature_centric_layout=lens_layout(n_rows))
        data = SaeVisData.create(load_dictionary(multi_dir), tl_models[1], tokens, cfg)
        assert len(data.panels[7].lens) == 3
        for t, lens in enumerate(data.panels[7].lens):
            check_lens(lens, ln_lens(hf_models[1], W_dec[7, t]), n_rows)


@torch.no_grad()
def test_lenses_of_a_clts_features_are_of_the_layers_they_write(clt, hf_models, tl_models, tokens):
    features = [2, 27, 45]
    cfg = SaeVisConfig(features=features, feature_centric_layout=lens_layout())
    data = SaeVisData.create(clt, tl_models[1], tokens, cfg)
    for feature in features:
        layer = feature // 20
        panel = data.panels[feature]
        assert panel.geometry.targets == list(range(layer, N_LAYERS))
        assert len(panel.lens) == N_LAYERS - layer
        for target, lens in zip(panel.geometry.targets, panel.lens, strict=True):
            direction = clt.groups[layer].W_dec[target][feature % 20].float()
            check_lens(lens, ln_lens(hf_models[1], direction), 4)


@torch.no_grad()
def test_a_lens_goes_through_what_the_site_is_multiplied_with(tmp_path, hf_models, tl_models, tokens):
    """Attention heads' results reach the residual stream through W_O."""
    folder = write_crosscoder(tmp_path / "z", n_sources=1, hook_point="blocks.1.attn.hook_z")
    cfg = SaeVisConfig(features=[4], feature_centric_layout=lens_layout())
    data = SaeVisData.create(load_dictionary(folder), tl_models[0], tokens, cfg)
    written = weights(folder)["W_dec"][4, 0] @ hf_models[0].transformer.h[1].attn.c_proj.weight
    (lens,) = data.panels[4].lens
    check_lens(lens, ln_lens(hf_models[0], written), 4)


@torch.no_grad()
@pytest.mark.parametrize(("name", "offset"), [("llama", 0.0), ("gemma", 1.0)])
def test_a_lens_through_a_norm_that_does_not_centre(name, offset, tmp_path):
    hf = build(name)
    model = load_model(hf)
    folder = write_crosscoder(tmp_path / "c", n_sources=1, hook_point="blocks.0.hook_resid_post")
    rows = torch.randint(1, 50, (4, 12), generator=torch.Generator().manual_seed(1))
    cfg = SaeVisConfig(features=[4, 5], feature_centric_layout=lens_layout())
    data = SaeVisData.create(load_dictionary(folder), model, rows, cfg, masking="none")
    for feature in (4, 5):
        direction = weights(folder)["W_dec"][feature, 0]
        (lens,) = data.panels[feature].lens
        check_lens(lens, (direction * (hf.model.norm.weight + offset)) @ hf.lm_head.weight.T, 4)


def test_a_site_that_writes_no_logits_has_no_lens(tmp_path, tl_models, tokens):
    hooks = ["blocks.1.ln2.hook_normalized", "blocks.2.hook_resid_post"]
    dictionary = load_dictionary(write_crosscoder(tmp_path / "c", hook_point=hooks))
    cfg = SaeVisConfig(features=[4, 9], feature_centric_layout=lens_layout())
    data = SaeVisData.create(dictionary, tl_models[0], tokens, cfg)
    for panel in data.panels.values():
        assert [lens is None for lens in panel.lens] == [True, False]
    _, payloads = feature_page(data, None)
    assert all([lens is None for lens in payload["sites"]["lens"]] == [True, False] for _, payload in payloads)
    data.save_feature_centric_vis(tmp_path / "p.html")
    data.save_json(tmp_path / "d.json")
    assert SaeVisData.load_json(tmp_path / "d.json").panels == data.panels
    alone = load_dictionary(write_crosscoder(tmp_path / "alone", n_sources=1, hook_point=hooks[:1]))
    data = SaeVisData.create(alone, tl_models[0], tokens, cfg)
    assert [panel.lens for panel in data.panels.values()] == [[None], [None]]


def test_a_layout_without_lenses_has_none(multi_dir, tl_models, tokens):
    layout = SaeVisLayoutConfig([Column(DecoderNormsConfig())])
    cfg = SaeVisConfig(features=[7], feature_centric_layout=layout)
    data = SaeVisData.create(load_dictionary(multi_dir), tl_models[1], tokens, cfg)
    assert data.panels[7].lens == []


# Probability


@pytest.mark.parametrize("effect", ["direct", "full"])
def test_probabilities_are_the_models_own(effect, pair_dir, pair, hf_models, tl_models, tokens, caches):
    state = weights(pair_dir)
    acts = (parts_of(state, [cache[HOOK] for cache in caches]).sum(-1) + state["b_enc"]).relu()
    acts[:, 0] = 0  # BOS is masked
    features = lively(acts, 2)
    layout = SaeVisLayoutConfig([Column(SequencesConfig(n_quantiles=2, top_acts_group_size=6, quantile_group_size=3))])
    cfg = SaeVisConfig(features=features, feature_centric_layout=layout)
    data = SaeVisData.create(pair, tl_models, tokens, cfg, effect=effect)
    with torch.no_grad():
        chances = [hf(tokens).logits.softmax(-1) for hf in hf_models]
    told = silent = 0
    for feature in features:
        for _sequence, record, start in shown(data, feature):
            assert set(record.effects) == {0, 1}
            for m, effects in record.effects.items():
                for i, p in enumerate(effects.p):
                    at = start + i
                    fires = at > 0 and bool(acts[record.row, at - 1, feature] > 1e-4)
                    # full: taken away at the chosen token alone, so only what follows that has an effect
                    has = fires if effect == "direct" else i > record.bold
                    if not has:
                        assert p is None
                        assert effects.loss[i] == 0
                        assert effects.up[i] == []
                        silent += 1
                        continue
                    want = chances[m][record.row, at - 1, tokens[record.row, at]].item()
                    assert p == pytest.approx(want, abs=1e-4)
                    told += 1
    assert told > 60
    assert silent > 30


def test_probabilities_are_on_the_page(pair, tl_models, tokens, tmp_path):
    data = SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=[12]))
    data.save_feature_centric_vis(tmp_path / "p.html")
    _, features = read_page((tmp_path / "p.html").read_text())
    for group, records in zip(features[12]["groups"], data.panels[12].sequences, strict=True):
        for sequence, record in zip(group["sequences"], records, strict=True):
            for m in (0, 1):
                for p, want in zip(sequence["e"][m]["p"], record.effects[m].p, strict=True):
                    assert (p is None) == (want is None)
                    assert p is None or p == pytest.approx(want, abs=5.1e-3)


# Feature index for the map


def measures_of(data: SaeVisData) -> dict[str, list]:
    head, _ = feature_page(data, None)
    for measure in head["features"]["measures"]:
        assert len(measure["values"]) == len(head["features"]["id"])
        assert measure["help"]
        assert measure["label"]
    assert not {"density", "max"} & {measure["name"] for measure in head["features"]["measures"]}
    return {measure["name"]: measure["values"] for measure in head["features"]["measures"]}


def cosine_of(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


@torch.no_grad()
def test_measures_of_two_models(pair_dir, pair, tl_models, tokens, caches):
    state = weights(pair_dir)
    features = [12, 5, 0, 31]
    data = SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=features, latent_scaling=True))
    measures = measures_of(data)
    assert set(measures) == {"relative_norm", "cosine", "driven", "nu_errors", "nu_reconstructions"}
    x = [cache[HOOK][:, 1:].flatten(0, 1) for cache in caches]
    parts = parts_of(state, x)
    pre = parts.sum(-1) + state["b_enc"]
    acts = pre.relu()
    recons = [acts @ state["W_dec"][:, m] + state["b_dec"][m] for m in (0, 1)]
    head, _ = feature_page(data, None)
    for i, feature in enumerate(features):
        d = state["W_dec"][feature]
        norms = d.norm(dim=-1)
        assert measures["relative_norm"][i] == pytest.approx(float(norms[1] / norms.sum()), abs=2e-4)
        assert measures["cosine"][i] == pytest.approx(cosine_of(d[0], d[1]), abs=2e-4)
        assert head["features"]["density"][i] == pytest.approx(float((pre[:, feature] > 0).float().mean()), rel=1e-3)
        assert head["features"]["max"][i] == pytest.approx(float(acts[:, feature].max()), rel=1e-3)
        f = acts[:, feature].double()
        column = (f[:, None] * d[1].double()).reshape(-1, 1)
        for kind, name in enumerate(("nu_errors", "nu_reconstructions")):
            betas = []
            for m in (0, 1):
                own = f[:, None] * d[m].double()
                y = recons[m].double() if kind else x[m].double() - recons[m].double() + own
                betas.append(torch.linalg.lstsq(column, y.reshape(-1, 1)).solution.item())
            assert measures[name][i] == pytest.approx(betas[0] / betas[1], rel=3e-3, abs=2e-4)
        at = torch.tensor([[r.row, r.position] for r in data.panels[feature].sequences[0]])
        at = at[:, 0] * (N_CTX - 1) + at[:, 1] - 1
        weight = acts[at, feature]
        share = (parts[at, feature, 1] / pre[at, feature] * weight).sum() / weight.sum()
        assert measures["driven"][i] == pytest.approx(float(share), abs=3e-3)


def test_measures_of_several_layers(multi_dir, tl_models, tokens):
    d = weights(multi_dir)["W_dec"]
    features = [7, 3, 20]
    data = SaeVisData.create(load_dictionary(multi_dir), tl_models[1], tokens, SaeVisConfig(features=features))
    measures = measures_of(data)
    assert set(measures) == {"cosine", "strongest_site"}
    for i, feature in enumerate(features):
        pairs = [cosine_of(d[feature, a], d[feature, b]) for a, b in combinations(range(3), 2)]
        assert measures["cosine"][i] == pytest.approx(sum(pairs) / 3, abs=2e-4)
        assert measures["strongest_site"][i] == int(d[feature].norm(dim=-1).argmax())


def test_measures_of_a_clt(clt, tl_models, tokens):
    features = [45, 2, 27]
    data = SaeVisData.create(clt, tl_models[1], tokens, SaeVisConfig(features=features))
    measures = measures_of(data)
    assert measures["layer"] == [2, 0, 1]
    assert "driven" not in measures
    assert "relative_norm" not in measures
    for i, feature in enumerate(features):
        layer = feature // 20
        rows = {t: W[feature % 20].float() for t, W in clt.groups[layer].W_dec.items()}
        pairs = [cosine_of(rows[a], rows[b]) for a, b in combinations(sorted(rows), 2)]
        if pairs:
            assert measures["cosine"][i] == pytest.approx(sum(pairs) / len(pairs), abs=2e-4)
        else:
            assert measures["cosine"][i] is None
        assert measures["strongest_site"][i] == max(rows, key=lambda t: float(rows[t].norm()))


def test_an_sae_has_no_measures_beyond_density_and_maximum(tl_models, tokens):
    data = SaeVisData.create(autoencoder(), tl_models[0], tokens, SaeVisConfig(hook_point=HOOK, features=[4, 9]))
    assert measures_of(data) == {}


def test_the_tokens_that_a_feature_is_found_by(pair, tl_models, tokens):
    data = SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=list(range(40))))
    head, _ = feature_page(data, None)
    tokenizer, found = tl_models[0].tokenizer, 0
    for feature, places in zip(head["features"]["id"], head["features"]["tokens"], strict=True):
        groups = data.panels[feature].sequences
        counts = Counter(int(tokens[r.row, r.position]) for r in groups[0]) if groups else Counter()
        ids = [head["token_ids"][place] for place in places]
        assert len(set(ids)) == len(ids)
        assert set(ids) <= set(counts)
        assert len(ids) == len(counts) or len(ids) >= 5
        assert [counts[i] for i in ids] == sorted(counts.values(), reverse=True)[: len(ids)]
        for place, token in zip(places, ids, strict=True):
            assert head["vocabulary"][place] == tokenizer.decode([token])
        found += len(ids)
    assert found > 40


# Prompts


PROMPT_IDS = [[7, 9, 12, 7, 5, 33], [20, 21, 22, 8]]


def text_of(model, ids) -> str:
    text = model.tokenizer.decode(ids)
    assert model.tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    return text


@pytest.fixture(scope="module")
def texts(tl_models) -> list[str]:
    return [text_of(tl_models[0], ids) for ids in PROMPT_IDS]


def check_rows(rows, values: torch.Tensor, eligible: torch.Tensor, n_top: int, tiny: float, *, largest: bool) -> int:
    """`rows`: [position] -> pairs of feature and formatted score; against all values [positions, features]."""
    assert len(rows) == len(values)
    n = 0
    for row, value, may in zip(rows, values, eligible, strict=True):
        want = value[may].sort(descending=largest).values[:n_top]
        scores = [float(score.rstrip("%")) / (100 if score.endswith("%") else 1) for _, score in row]
        assert scores == pytest.approx(want.tolist(), abs=tiny)
        assert len({feature for feature, _ in row}) == len(row)
        for (feature, _), score in zip(row, scores, strict=True):
            assert may[feature]
            assert score == pytest.approx(value[feature].item(), abs=tiny)
            n += 1
    return n


def direct_losses(model, cache, tokens, acts, directions) -> torch.Tensor:
    """Effect of each feature on the loss of each predicted token: [positions, features], position 0 has none."""
    final, out = cache[FINAL][0], torch.zeros(tokens.shape[1], len(directions))
    before = model.unembed(model.ln_final(final[None]))[0].log_softmax(-1)
    for feature, direction in enumerate(directions):
        less = (final - acts[:, feature, None] * direction)[None]
        after = model.unembed(model.ln_final(less))[0].log_softmax(-1)
        for p in range(1, tokens.shape[1]):
            token = tokens[0, p]
            out[p, feature] = after[p - 1, token] - before[p - 1, token]
    return out


def shifted(fires: torch.Tensor) -> torch.Tensor:
    """Whether a feature fires on the token before."""
    return torch.cat([torch.zeros_like(fires[:1]), fires[:-1]])


def quantiles_of(data: SaeVisData, acts: torch.Tensor, every: torch.Tensor) -> torch.Tensor:
    """sae_vis' own, which is nearly the share of all tokens with a smaller activation."""
    found, _ = data.feature_stats.get_quantile(acts.T.contiguous())
    share = (every[None] < acts[:, None]).float().mean(1)
    firing = acts > 0
    assert (found.T[firing] - share[firing]).abs().max() < 0.03
    return found.T


@torch.no_grad()
def test_prompts_of_a_crosscoder(pair_dir, pair, tl_models, tokens, caches, texts, tmp_path):
    state = weights(pair_dir)
    data = SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=list(range(40))))
    data.save_prompt_centric_vis(texts, tmp_path / "p.html", metric="act_size", num_top_features=3)
    head, features = read_page((tmp_path / "p.html").read_text())
    assert head["view"] == "prompt"
    assert head["prompts"]["metric"] == "act_size"
    assert len(head["prompts"]["each"]) == 2
    assert len(head["prompts"]["scopes"]) == 3
    assert "base" in head["prompts"]["scopes"][1]
    assert "tuned" in head["prompts"]["scopes"][2]
    every = (parts_of(state, [c[HOOK][:, 1:].flatten(0, 1) for c in caches]).sum(-1) + state["b_enc"]).relu()
    compared = Counter()
    for number, (prompt, ids) in enumerate(zip(head["prompts"]["each"], PROMPT_IDS, strict=True)):
        rows = torch.tensor([[0, *ids]])
        assert [head["token_ids"][place] for place in prompt["tokens"]] == rows[0].tolist()
        ran = [model.run_with_cache(rows)[1] for model in tl_models]
        parts = parts_of(state, [cache[HOOK][0] for cache in ran])
        acts = (parts.sum(-1) + state["b_enc"]).relu()
        acts[0] = 0
        values = {
            "act_size": acts,
            "act_quantile": quantiles_of(data, acts, every),
            "loss_effect": direct_losses(tl_models[0], ran[0], rows, acts, state["W_dec"][:, 0]),
        }
        most = parts.argmax(-1)
        for scope, driven in enumerate((torch.ones_like(acts, dtype=torch.bool), most == 0, most == 1)):
            for metric, value in values.items():
                fires = (acts > 0) & driven
                eligible = shifted(fires) if metric == "loss_effect" else fires
                largest = metric != "loss_effect"
                compared[metric, scope] += check_rows(
                    prompt["scores"][metric][scope], value, eligible, 3, 7e-4, largest=largest
                )
        firing = (acts > 0).any(-1).nonzero().flatten().tolist()
        assert prompt["position"] == firing[-1]
        for feature, payload in features.items():
            sequence = payload["prompts"][number]
            assert sequence["a"] == pytest.approx(acts[:, feature].tolist(), abs=1e-3)
            assert sequence["t"] == prompt["tokens"]
            want = parts[:, feature] / (parts[:, feature].sum(-1, keepdim=True) + state["b_enc"][feature])
            for s in (0, 1):
                expected = torch.where(acts[:, feature] > 0, want[:, s], 0.0)
                assert sequence["s"][s] == pytest.approx(expected.tolist(), rel=2e-3, abs=6e-3)
    assert min(compared.values()) > 0
    ranked = {
        f for prompt in head["prompts"]["each"] for m in prompt["scores"].values() for s in m for r in s for f, _ in r
    }
    assert set(features) == ranked == set(head["features"]["id"])


@torch.no_grad()
def test_prompts_of_a_clt_by_layer(clt, tl_models, tokens, texts):
    model = tl_models[1]
    data = SaeVisData.create(clt, model, tokens, SaeVisConfig(features=list(range(60))))
    found = gather_prompts(data, data.ready(), texts, None, None, 4)
    assert found.metric == "act_quantile"
    assert len(found.scopes) == 4
    assert found.scopes[1:] == [f"layer {layer}" for layer in range(3)]
    compared = Counter()
    for prompt, ids in zip(found.each, PROMPT_IDS, strict=True):
        rows = torch.tensor([[0, *ids]])
        assert prompt.tokens == rows[0].tolist()
        _, cache = model.run_with_cache(rows)
        x = [cache[f"blocks.{layer}.hook_resid_mid"][0] for layer in range(N_LAYERS)]
        acts = []
        for layer, group in enumerate(clt.groups):
            pre = x[layer] @ group.W_enc[layer].float() + group.b_enc
            acts.append(torch.where(pre > group.activation.threshold, pre, 0.0))
        acts = torch.cat(acts, dim=-1)
        acts[0] = 0
        directions = [sum(W[f % 20].float() for W in clt.groups[f // 20].W_dec.values()) for f in range(60)]
        losses = direct_losses(model, cache, rows, acts, directions)
        for scope in range(4):
            own = torch.arange(60) // 20 == scope - 1 if scope else torch.ones(60, dtype=torch.bool)
            fires = (acts > 0) & own
            compared["act_size"] += check_rows(prompt.scores["act_size"][scope], acts, fires, 4, 7e-4, largest=True)
            compared["loss_effect"] += check_rows(
                prompt.scores["loss_effect"][scope], losses, shifted(fires), 4, 7e-4, largest=False
            )
    assert min(compared.values()) > 20


def test_prompts_of_one_dictionary_part_are_ranked_as_a_whole(tl_models, tokens, texts, clt):
    data = SaeVisData.create(autoencoder(), tl_models[0], tokens, SaeVisConfig(hook_point=HOOK, features=[4, 9]))
    found = gather_prompts(data, data.ready(), texts, None, None, 4)
    assert len(found.scopes) == 1
    one_layer = SaeVisData.create(clt, tl_models[1], tokens, SaeVisConfig(features=[1, 2]))
    assert len(gather_prompts(one_layer, one_layer.ready(), texts, None, None, 4).scopes) == 1


def test_the_position_asked_for_is_opened(pair, tl_models, tokens, texts, tmp_path):
    data = SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=[5, 12]))
    data.save_prompt_centric_vis(texts[0], tmp_path / "p.html", seq_pos=2)
    head, _ = read_page((tmp_path / "p.html").read_text())
    assert [prompt["position"] for prompt in head["prompts"]["each"]] == [2]
    assert head["prompts"]["metric"] == "act_quantile"


def test_a_prompt_again_replaces_the_one_before(pair, tl_models, tokens, texts, tmp_path):
    data = SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=[5, 12]))
    data.save_prompt_centric_vis(texts, tmp_path / "p.html")
    data.save_prompt_centric_vis(texts[1], tmp_path / "again.html")
    fresh = SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=[5, 12]))
    fresh.save_prompt_centric_vis(texts[1], tmp_path / "fresh.html")
    assert (tmp_path / "again.html").read_text() == (tmp_path / "fresh.html").read_text()


def test_a_prompt_on_which_nothing_fires(pair_dir, tl_models, tokens, texts, tmp_path):
    state = weights(pair_dir)
    folder = write_crosscoder(tmp_path / "dead")
    torch.save(state | {"b_enc": state["b_enc"] - 1e6}, folder / "cc_weights.pt")
    data = SaeVisData.create(load_dictionary(folder), tl_models, tokens, SaeVisConfig(features=[5, 12]))
    data.save_prompt_centric_vis(texts, tmp_path / "p.html")
    head, features = read_page((tmp_path / "p.html").read_text())
    assert len(features) == 1
    for prompt, ids in zip(head["prompts"]["each"], PROMPT_IDS, strict=True):
        assert all(row == [] for scopes in prompt["scores"].values() for rows in scopes for row in rows)
        assert 0 <= prompt["position"] <= len(ids)
    with pytest.raises(ValueError, match=r"no feature fires on this prompt"):
        data.save_prompt_centric_vis(texts[0], tmp_path / "q.html", renderer="sae_vis")
    assert not (tmp_path / "q.html").exists()


def test_a_prompt_of_masked_tokens_alone_is_shown_or_refused_before_a_model_runs(pair, tl_models, tokens, monkeypatch):
    """Nothing can fire on it; that is no error, or one that costs nothing and leaves the prompts before it."""
    data = SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=[5, 12]))
    forward, calls = HookedTransformer.forward, []

    def spied(self, *args, **kwargs):
        calls.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(HookedTransformer, "forward", spied)
    try:
        found = gather_prompts(data, data.ready(), ["!!", "<|endoftext|>"], None, None, 5)
    except ValueError:
        assert not calls
        assert all(panel.prompts == [] for panel in data.panels.values())
    else:
        rows = [row for scopes in found.each[1].scores.values() for rows in scopes for row in rows]
        assert all(row == [] for row in rows)


@pytest.fixture(scope="module")
def few(pair, tl_models, tokens):
    return SaeVisData.create(pair, tl_models, tokens, SaeVisConfig(features=[5, 12]))


REFUSED = [
    ({"prompt": ""}, r"the prompt is empty"),
    ({"prompt": ["!!", ""]}, r"the prompt is empty"),
    ({"prompt": []}, r"no prompt.* at least one"),
    ({"metric": "act_sise"}, r"metric is 'act_sise'; expected one of .*act_size.*Did you mean 'act_size'"),
    ({"metric": "loss"}, r"metric is 'loss'; expected one of act_quantile, act_size, loss_effect"),
    ({"seq_pos": 3}, r"seq_pos is 3; the prompt has 3 tokens, 0 to 2"),
    ({"seq_pos": -1}, r"seq_pos is -1; the prompt has 3 tokens"),
    ({"prompt": ["!!!!", "!!"], "seq_pos": 4}, r"seq_pos is 4; the prompt has 3 tokens"),
    ({"num_top_features": 0}, r"num_top_features is 0; at least one"),
    ({"num_top_features": -2}, r"num_top_features is -2"),
    ({"prompt": "!" * 40}, r"prompt.*41.*24|24.*41"),
    ({"renderer": "sae-vis"}, r"renderer='sae-vis'; expected 'crossvis_tl', 'sae_vis'\. Did you mean 'sae_vis'"),
    ({"renderer": "sae_vis", "prompt": ["!!", "!"]}, r"one prompt; got 2"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "text"), REFUSED)
def test_what_cannot_be_meant_is_refused_before_a_model_runs(given, text, few, tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("a model was run")

    monkeypatch.setattr(HookedTransformer, "forward", never)
    before = [list(panel.prompts) for panel in few.panels.values()]
    with pytest.raises(ValueError, match=text):
        few.save_prompt_centric_vis(**{"prompt": "!!", "filename": tmp_path / "p.html"} | given)
    assert not (tmp_path / "p.html").exists()
    assert [panel.prompts for panel in few.panels.values()] == before


@pytest.mark.parametrize(
    "given", [{"seq_pos": 1.5}, {"seq_pos": True}, {"num_top_features": 2.5}, {"num_top_features": True}]
)
def test_numbers_that_are_no_whole_numbers_are_refused_before_a_model_runs(given, few, tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("a model was run")

    monkeypatch.setattr(HookedTransformer, "forward", never)
    with pytest.raises(ValueError, match=next(iter(given))):
        few.save_prompt_centric_vis("!!", tmp_path / "p.html", **given)


def test_prompt_data_is_what_the_page_shows(few, texts):
    """Fields of sae_vis' own class hold the last prompt."""
    found = gather_prompts(few, few.ready(), texts, "loss_effect", None, 2)
    _, payloads = prompt_page(few, found)
    for feature, payload in payloads:
        own = few.feature_data_dict[feature].prompt_data
        assert own.token_ids == found.each[-1].tokens
        assert payload["prompts"][-1]["a"] == own.feat_acts
        assert len(payload["prompts"]) == 2
