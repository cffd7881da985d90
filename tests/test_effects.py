"""Effects on logits against brute force: dense float64, the model's own modules, and HuggingFace with forward hooks."""

from dataclasses import replace

import pytest
import sae_vis
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossvis_tl import SaeVisData, load_dictionary, load_model
from crossvis_tl.ablation import Pairs, ablate, extremes
from crossvis_tl.encoders import as_dictionary
from crossvis_tl.unembed import Unembedding
from tests.architectures import build
from tests.conftest import D_MODEL, N_CTX, N_LAYERS, write_crosscoder
from tests.test_golden import GOLDEN
from tests.test_vis_data import HOOK, autoencoder

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
LAST = f"blocks.{N_LAYERS - 1}.hook_resid_post"


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 3000), st.integers(0, 6), st.booleans(), st.integers(0, 2**16))
def test_extremes_are_topks(rows, n, k, largest, seed):
    values = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))
    ids, found = extremes(values, k, largest=largest)
    want = values.topk(min(k, n), dim=-1, largest=largest)
    assert torch.equal(found, want.values)
    assert torch.equal(values.gather(1, ids), want.values)


def plain_logits(unembed: Unembedding, x: torch.Tensor) -> torch.Tensor:
    """The formula, in float64."""
    x = x.double()
    centred = x - x.mean(-1, keepdim=True) if unembed.norm == "LN" else x
    scale = (centred.square().mean(-1, keepdim=True) + unembed.eps).sqrt() if unembed.norm else 1.0
    logits = x @ unembed.W.double() / scale + unembed.offset.double()
    return unembed.softcap * torch.tanh(logits / unembed.softcap) if unembed.softcap else logits


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["LN", "RMS", ""]), st.sampled_from([0.0, 5.0]), st.booleans(), st.booleans(),
    st.sampled_from([0.1, 3.0, 300.0]), st.integers(0, 2**16), st.sampled_from([0, 3]),
)  # fmt: skip
def test_taking_features_away_is_what_the_formula_says(norm, softcap, biased, whole, size, seed, k):
    """`whole`: what is added is given as it is, and not as an amount of a direction. `size`: 300 makes changes that
    would overflow if exponentials were added up as they are."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    W = normal(D_MODEL, 700)
    W = W - W.mean(0) if norm == "LN" else W
    unembed = Unembedding(W, normal(700) * biased, norm, 1e-5, softcap)
    resid, directions = normal(9, D_MODEL), normal(4, D_MODEL)
    tokens, rows = (torch.randint(0, n, (30,), generator=generator) for n in (9, 4))
    amounts, following = size * normal(30), torch.randint(0, 700, (30,), generator=generator)
    added = amounts[:, None] * directions[rows]
    pairs = Pairs(tokens, following, rows, amounts, added if whole else None)
    got = ablate(unembed, resid, directions, unembed.project(directions), pairs, k)
    before = plain_logits(unembed, resid[tokens]).log_softmax(-1)
    change = before - plain_logits(unembed, resid[tokens] - added).log_softmax(-1)
    tolerance = {"atol": 2e-3, "rtol": 1e-4} if size > 10 else {"atol": 2e-4, "rtol": 1e-4}
    torch.testing.assert_close(got.loss.double(), -change.gather(1, following[:, None])[:, 0], **tolerance)
    torch.testing.assert_close(got.up.double(), change.topk(k).values, **tolerance)
    torch.testing.assert_close(got.down.double(), change.topk(k, largest=False).values, **tolerance)
    torch.testing.assert_close(change.gather(1, got.up_ids.long()), change.topk(k).values, **tolerance)


def shown(data: SaeVisData, feature: int, model: int = 0):
    """-> row, position in it, loss effect, raised values: of every shown token the feature fires before."""
    panel = data.panels[feature]
    groups = data.feature_data_dict[feature].sequence_data.seq_group_data
    for group, records in zip(groups, panel.sequences, strict=True):
        for sequence, record in zip(group.seq_data, records, strict=True):
            effects = record.effects[model]
            for i in range(1, len(sequence.token_ids)):
                if sequence.feat_acts[i - 1] != 0:
                    yield record.row, record.position - record.bold + i, effects.loss[i], effects.up[i]


@torch.no_grad()
def test_an_output_before_a_post_norm_acts_through_that_norm(tmp_path):
    """Gemma 2: what the MLP gives goes through a norm before it is added; its scale at the token stays as it was."""
    hf = build("gemma 2")
    model = load_model(hf)
    dictionary = load_dictionary(write_crosscoder(tmp_path / "c", n_sources=1, hook_point="model.layers.1.mlp.output"))
    (group,) = dictionary.groups
    dictionary = replace(dictionary, groups=(replace(group, b_enc=group.b_enc + 0.8),))  # so that it fires at all
    tokens = torch.randint(1, 50, (6, 12), generator=torch.Generator().manual_seed(1))
    kept = {}
    mlp, norm = hf.model.layers[1].mlp, hf.model.layers[1].post_feedforward_layernorm
    handles = [
        mlp.register_forward_hook(lambda m, i, o: kept.update(raw=o)),
        hf.model.norm.register_forward_hook(lambda m, i, o: kept.update(final=i[0])),
    ]
    hf(tokens)
    for handle in handles:
        handle.remove()
    acts = dictionary.encode([kept["raw"]])
    features = (acts != 0).sum((0, 1)).topk(2).indices.tolist()
    data = SaeVisData.create(dictionary, model, tokens, sae_vis.SaeVisConfig(features=features), masking="none")
    scale = (kept["raw"].square().mean(-1, keepdim=True) + norm.eps).sqrt()
    cap = hf.config.final_logit_softcapping

    def log_probs(x: torch.Tensor) -> torch.Tensor:
        logits = hf.lm_head(hf.model.norm(x))
        return (cap * torch.tanh(logits / cap) if cap else logits).log_softmax(-1)

    checked = 0
    for feature in features:
        written = acts[..., feature, None] * dictionary.decoder(torch.tensor([feature]), 0)[0]
        change = log_probs(kept["final"]) - log_probs(kept["final"] - written / scale * (1 + norm.weight))
        for row, p, loss, up in shown(data, feature):
            assert loss == pytest.approx(-change[row, p - 1, tokens[row, p]].item(), abs=3e-4)
            assert up == pytest.approx(change[row, p - 1].topk(5).values.tolist()[: len(up)], abs=3e-4)
            checked += 1
    assert checked > 20


@torch.no_grad()
@pytest.mark.parametrize("kind", ["openai", "sae_lens"])
def test_a_normalisation_that_is_taken_back_scales_the_effect_at_each_token(kind, tl_models, tokens):
    model = tl_models[0]
    if kind == "openai":
        path = GOLDEN[0].parent / "f12_openai_topk_ln_rawkeys/checkpoint/6.pt"
        encoder = load_dictionary(path, input_layer_norm=True, hook_point="blocks.1.hook_mlp_out")
    else:
        encoder = sae_lens_sae("blocks.1.hook_mlp_out")
    acts_of = as_dictionary(encoder)
    _, cache = model.run_with_cache(tokens)
    x = cache["blocks.1.hook_mlp_out"]
    acts = acts_of.encode([x])
    features = (acts != 0).sum((0, 1)).topk(2).indices.tolist()
    data = SaeVisData.create(encoder, model, tokens, sae_vis.SaeVisConfig(features=features), masking="none")
    checked = 0
    for feature in features:
        written = acts_of.contribution(feature, acts[..., feature], 0, [x])
        assert written.norm(dim=-1)[acts[..., feature] != 0].std() > 0
        before = model.unembed(model.ln_final(cache[LAST])).log_softmax(-1)
        change = before - model.unembed(model.ln_final(cache[LAST] - written)).log_softmax(-1)
        for row, p, loss, _ in shown(data, feature):
            assert loss == pytest.approx(-change[row, p - 1, tokens[row, p]].item(), abs=3e-4)
            checked += 1
    assert checked > 10


def sae_lens_sae(hook: str):
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    torch.manual_seed(4)
    cfg = StandardSAEConfig(
        d_in=D_MODEL, d_sae=32, normalize_activations="layer_norm", metadata=SAEMetadata(hook_name=hook)
    )
    sae = StandardSAE(cfg)
    with torch.no_grad():
        for name, size in (("W_enc", 0.5), ("b_enc", 0.3), ("W_dec", 0.5), ("b_dec", 0.1)):
            parameter = getattr(sae, name)
            parameter.copy_(size * torch.randn_like(parameter))
    return sae


@torch.no_grad()
def test_full_runs_the_model_on_from_where_the_feature_is_written(hf_models, tl_models, tokens):
    """Against a forward hook on HuggingFace's own module that takes the contribution out at one token."""
    hf, encoder = hf_models[0], autoencoder()
    cfg = sae_vis.SaeVisConfig(hook_point=HOOK, features=[4, 9])
    data = SaeVisData.create(encoder, tl_models[0], tokens, cfg, masking="none", effect="full")
    kept = {}
    block = hf.transformer.h[1]
    first = block.register_forward_hook(lambda m, i, o: kept.update(x=o if torch.is_tensor(o) else o[0]))
    before = hf(tokens).logits.log_softmax(-1)
    first.remove()
    acts = torch.relu((kept["x"] - encoder.b_dec) @ encoder.W_enc + encoder.b_enc)
    checked = later = 0
    for feature in (4, 9):
        for group in data.panels[feature].sequences:
            for record in group[:3]:
                r, p = record.row, record.position

                def take(module, args, out, r=r, p=p, feature=feature):
                    x = out if torch.is_tensor(out) else out[0]
                    x[r, p] -= acts[r, p, feature] * encoder.W_dec[feature]

                handle = block.register_forward_hook(take)
                change = before[r] - hf(tokens).logits.log_softmax(-1)[r]
                handle.remove()
                effects = record.effects[0]
                for i, loss in enumerate(effects.loss):
                    at = p - record.bold + i
                    if at <= p:
                        assert loss == 0
                        assert effects.up[i] == []
                        continue
                    assert loss == pytest.approx(-change[at - 1, tokens[r, at]].item(), abs=2e-4)
                    assert effects.up[i] == pytest.approx(change[at - 1].topk(5).values.tolist(), abs=2e-4)
                    checked += 1
                    later += at > p + 1 and abs(loss) > 1e-3
    assert checked > 50
    assert later > 10


@torch.no_grad()
def test_full_takes_a_clts_feature_away_at_each_of_its_targets(hf_models, clt_dir, tl_models, tokens):
    hf, dictionary, model = hf_models[1], load_dictionary(clt_dir), tl_models[1]
    _, cache = model.run_with_cache(tokens)
    all_acts = dictionary.encode([cache[f"blocks.{i}.hook_resid_mid"] for i in range(N_LAYERS)])
    feature = 20 + int((all_acts[:, 1:, 20:40] != 0).sum((0, 1)).argmax())  # of layer 1: it writes to 1 and 2
    acts = all_acts[..., feature]
    data = SaeVisData.create(dictionary, model, tokens, sae_vis.SaeVisConfig(features=[feature]), effect="full")
    before = hf(tokens).logits.log_softmax(-1)
    record = next(one for one in data.panels[feature].sequences[0] if one.position < N_CTX - 1)
    r, p = record.row, record.position

    def taker(target: int):
        def take(module, args, out):
            out[r, p] -= dictionary.contribution(feature, acts[r, p], target)

        return take

    handles = [hf.transformer.h[t].mlp.register_forward_hook(taker(t)) for t in (1, 2)]
    change = before[r] - hf(tokens).logits.log_softmax(-1)[r]
    for handle in handles:
        handle.remove()
    i = record.bold + 1
    assert record.effects[0].loss[i] == pytest.approx(-change[p, tokens[r, p + 1]].item(), abs=2e-4)


def test_full_and_direct_agree_where_nothing_comes_after(tmp_path, tl_models, tokens):
    """At the last layer's residual stream there is nothing left to run."""
    dictionary = load_dictionary(write_crosscoder(tmp_path / "c", n_sources=1, hook_point=LAST))
    cfg = sae_vis.SaeVisConfig(features=[3])
    direct = SaeVisData.create(dictionary, tl_models[0], tokens, cfg)
    full = SaeVisData.create(dictionary, tl_models[0], tokens, cfg, effect="full")
    for a, b in zip(direct.panels[3].sequences, full.panels[3].sequences, strict=True):
        for one, other in zip(a, b, strict=True):
            at = one.bold + 1
            if at < len(one.effects[0].loss):
                assert other.effects[0].loss[at] == pytest.approx(one.effects[0].loss[at], abs=3e-4)
    assert "run on from there" in dict(full.page.facts)["logit effects"]


def test_none_leaves_the_tables_and_computes_no_effect(crosscoder_dir, tl_models, tokens, monkeypatch):
    dictionary = load_dictionary(crosscoder_dir)
    cfg = sae_vis.SaeVisConfig(features=[5])
    direct = SaeVisData.create(dictionary, tl_models, tokens, cfg)
    monkeypatch.setattr("crossvis_tl.effects.ablate", None)
    data = SaeVisData.create(dictionary, tl_models, tokens, cfg, effect="none")
    assert data.panels[5].logits == direct.panels[5].logits
    assert all(not record.effects for group in data.panels[5].sequences for record in group)
    assert dict(data.page.facts)["logit effects"] == "not computed (effect='none')"


def test_another_effect_is_refused_with_the_known_ones(crosscoder_dir, tl_models, tokens):
    with pytest.raises(ValueError, match=r"effect='fulll'; expected 'direct', 'none', 'full'\. Did you mean 'full'"):
        SaeVisData.create(load_dictionary(crosscoder_dir), tl_models, tokens, effect="fulll")


def test_effects_hold_where_features_do_not_fit_in_memory_at_once(crosscoder_dir, tl_models, tokens, monkeypatch):
    dictionary, cfg = load_dictionary(crosscoder_dir), sae_vis.SaeVisConfig(features=list(range(12)))
    want = SaeVisData.create(dictionary, tl_models, tokens, cfg)
    monkeypatch.setattr("crossvis_tl.effects.DIRECT_BUDGET", 4 * 2 * 60 * 5)
    monkeypatch.setattr("crossvis_tl.ablation.CPU_TOKENS", 1)
    monkeypatch.setattr("crossvis_tl.ablation.CPU_PAIRS", 1)
    monkeypatch.setattr("crossvis_tl.feature_acts.BLOCK", 7)
    again = SaeVisData.create(dictionary, tl_models, tokens, cfg)
    assert list(again.panels) == list(want.panels)
    for feature, panel in want.panels.items():
        for a, b in zip(panel.sequences, again.panels[feature].sequences, strict=True):
            for one, other in zip(a, b, strict=True):
                assert one.effects[1].loss == pytest.approx(other.effects[1].loss, abs=2e-4)


def test_a_sequence_shorter_than_its_buffer(crosscoder_dir, tl_models, tokens):
    layout = sae_vis.SaeVisLayoutConfig(
        [sae_vis.data_config_classes.Column(sae_vis.data_config_classes.SequencesConfig(buffer=(40, 40)))]
    )
    cfg = sae_vis.SaeVisConfig(features=[5], feature_centric_layout=layout)
    data = SaeVisData.create(load_dictionary(crosscoder_dir), tl_models, tokens, cfg)
    sequences = data.feature_data_dict[5].sequence_data.seq_group_data[0].seq_data
    assert sequences
    assert all(len(sequence.token_ids) == N_CTX for sequence in sequences)
