"""Cross-layer transcoders, transcoder sets and skip transcoders as their users mean them: everything here is held
against the raw weights and HuggingFace's own forward hooks, none of it against this package's encoding or decoding."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from crossvis_tl import (
    SaeVisConfig,
    SaeVisData,
    calibrate,
    gather,
    load_dictionary,
    open_store,
)
from crossvis_tl.cli import app
from crossvis_tl.page_data import feature_page
from tests.conftest import D_MODEL, N_CTX, N_LAYERS, VOCABULARY, write_crosscoder

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
WIDTH = 9
FEW = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass
class Raw:
    """Weights by layer, and what they mean. `reads`: "resid_mid" or "mlp_in". `decoders`: [features, d] by (source,
    target)."""

    encode: Callable[[int, Tensor], Tensor]
    decoders: dict[tuple[int, int], Tensor]
    b_dec: list[Tensor]
    reads: str = "resid_mid"
    skip: dict[int, Tensor] = field(default_factory=dict)  # x @ skip

    def recon(self, target: int, seen: dict[int, Tensor]) -> Tensor:
        out = self.b_dec[target].clone()
        for (s, t), W in self.decoders.items():
            if t == target:
                out = out + self.encode(s, seen[s]) @ W
        if target in self.skip:
            out = out + seen[target] @ self.skip[target]
        return out


def normals(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def full_clt(folder: Path, seed: int = 7, thresholds: bool = True) -> Raw:
    """circuit-tracer's layout."""
    normal = normals(seed)
    folder.mkdir(parents=True, exist_ok=True)
    W_enc = [0.5 * normal(WIDTH, D_MODEL) for _ in range(N_LAYERS)]
    b_enc = [0.3 * normal(WIDTH) - 0.4 for _ in range(N_LAYERS)]
    theta = [0.3 * normal(WIDTH).abs() + 0.05 for _ in range(N_LAYERS)]
    b_dec = [0.1 * normal(D_MODEL) for _ in range(N_LAYERS)]
    decoders = {}
    for i in range(N_LAYERS):
        decoder = 0.3 * normal(WIDTH, N_LAYERS - i, D_MODEL)
        decoders |= {(i, t): decoder[:, t - i] for t in range(i, N_LAYERS)}
        state = {f"W_enc_{i}": W_enc[i], f"b_enc_{i}": b_enc[i], f"b_dec_{i}": b_dec[i]}
        save_file(state | ({f"threshold_{i}": theta[i]} if thresholds else {}), folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": decoder}, folder / f"W_dec_{i}.safetensors")
    (folder / "config.yaml").write_text(
        "model_name: tuned\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: hook_resid_mid\n"
        "feature_output_hook: hook_mlp_out\nscan: test\n"
    )

    def encode(layer: int, x: Tensor) -> Tensor:
        pre = x @ W_enc[layer].T + b_enc[layer]
        return pre * (pre > theta[layer]) if thresholds else pre.clamp_min(0)

    return Raw(encode, decoders, b_dec)


def window_clt(folder: Path, window: int = 2, k: int = 3, seed: int = 5) -> Raw:
    """clt-training's layout: layer i writes to i ... i + window - 1; the k largest of each token."""
    normal = normals(seed)
    weights, biases, decoders = [], [], {}
    b_dec = [torch.zeros(D_MODEL) for _ in range(N_LAYERS)]
    cfg = {
        "activation": "topk", "expansion_factor": 1, "normalize_decoder": False, "num_latents": WIDTH, "k": k,
        "skip_connection": False, "transcode": True, "n_targets": window, "n_sources": 1, "normalize_io": False,
        "divide_cross_layer": False, "train_post_encoder": False, "post_encoder_scale": False,
        "per_source_tied": False, "secondary_target_tied": False, "coalesce_topk": "none", "topk_coalesced": False,
        "use_fp8": False, "d_in": D_MODEL,
    }  # fmt: skip
    for i in range(N_LAYERS):
        at = folder / f"h.{i}.mlp"
        at.mkdir(parents=True)
        weights.append(0.5 * normal(WIDTH, D_MODEL))
        biases.append(0.2 * normal(WIDTH))
        state = {
            "encoder.weight": weights[i], "encoder.bias": biases[i], "W_dec": torch.zeros(WIDTH, D_MODEL),
            "b_dec": torch.zeros(D_MODEL),
        }  # fmt: skip
        for j in range(min(window, N_LAYERS - i)):
            decoders[i, i + j] = 0.3 * normal(WIDTH, D_MODEL)
            bias = 0.1 * normal(D_MODEL)
            b_dec[i + j] = b_dec[i + j] + bias
            state |= {f"W_decs.{j}": decoders[i, i + j], f"b_decs.{j}": bias}
        save_file(state, at / "sae.safetensors")
        (at / "cfg.json").write_text(json.dumps(cfg | {"n_targets": min(window, N_LAYERS - i)}))
    run = {
        "sae": cfg,
        "model": "tuned",
        "hookpoints": [f"h.{i}.mlp" for i in range(N_LAYERS)],
        "hookpoints_in": [],
        "cross_layer": window,
    }
    (folder / "config.json").write_text(json.dumps(run))

    def encode(layer: int, x: Tensor) -> Tensor:
        pre = (x @ weights[layer].T + biases[layer]).clamp_min(0)
        kept = pre.topk(k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, kept.indices, kept.values)

    return Raw(encode, decoders, b_dec, reads="mlp_in")


def skip_transcoders(folder: Path, seed: int = 3) -> Raw:
    """circuit-tracer's layout of a set of transcoders, each with its own layer's skip connection."""
    normal = normals(seed)
    folder.mkdir(parents=True)
    W_enc, b_enc, decoders, b_dec, skip, names = [], [], {}, [], {}, []
    for i in range(N_LAYERS):
        W_enc.append(0.5 * normal(WIDTH, D_MODEL))
        b_enc.append(0.3 * normal(WIDTH) - 0.3)
        decoders[i, i] = 0.3 * normal(WIDTH, D_MODEL)
        b_dec.append(0.1 * normal(D_MODEL))
        W_skip = 0.1 * normal(D_MODEL, D_MODEL)
        skip[i] = W_skip.T
        state = {
            "W_enc": W_enc[i], "b_enc": b_enc[i], "W_dec": decoders[i, i], "b_dec": b_dec[i],
            "W_skip": W_skip.contiguous(),
        }  # fmt: skip
        save_file(state, folder / f"layer_{i}.safetensors")
        names.append(f"- layer_{i}.safetensors\n")
    (folder / "config.yaml").write_text(
        "model_name: tuned\nmodel_kind: transcoder_set\nfeature_input_hook: hook_resid_mid\n"
        "feature_output_hook: hook_mlp_out\nscan: test\ntranscoders:\n" + "".join(names)
    )
    return Raw(lambda i, x: (x @ W_enc[i].T + b_enc[i]).clamp_min(0), decoders, b_dec, skip=skip)


KINDS = {
    "clt": (full_clt, {}),
    "window": (window_clt, {}),
    "skip": (skip_transcoders, {"activation": "relu"}),
}


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request, tmp_path_factory):
    """-> what was loaded, and what it is."""
    write, facts = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "dictionary"
    raw = write(folder)
    return load_dictionary(folder, processing="none", **facts), raw


@pytest.fixture(scope="module")
def clt_pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / "dictionary"
    raw = full_clt(folder)
    return load_dictionary(folder, processing="none"), raw


class Watched:
    """HuggingFace's model, watched at every layer, its MLPs' outputs changed where that is asked for."""

    def __init__(self, hf, raw: Raw):
        self.hf, self.raw, self.seen, self.out = hf, raw, {}, {}

    @torch.no_grad()
    def run(self, tokens: Tensor, changed=(), where: Tensor | None = None, *, zero: bool = False) -> Tensor:
        """-> logits"""
        handles = []
        for i, block in enumerate(self.hf.transformer.h):
            reader = block.ln_2 if self.raw.reads == "resid_mid" else block.mlp

            def reads(module, args, i=i):
                self.seen[i] = args[0]

            def writes(module, args, output, i=i):
                self.out[i] = output
                if i not in changed:
                    return None
                new = output.clone()
                new[where] = 0.0 if zero else self.raw.recon(i, self.seen)[where]
                return new

            handles += [reader.register_forward_pre_hook(reads), block.mlp.register_forward_hook(writes)]
        try:
            return self.hf(tokens).logits
        finally:
            for handle in handles:
                handle.remove()

    def acts(self, tokens: Tensor) -> Tensor:
        """[rows, positions, layers * features]"""
        self.run(tokens)
        return torch.cat([self.raw.encode(i, self.seen[i]) for i in range(N_LAYERS)], -1)


def dense(acts) -> Tensor:
    found = torch.zeros(len(acts.features), acts.tokens.numel())
    for i in range(len(acts.features)):
        where, values = acts.of(i)
        found[i, where.long()] = values.float()
    return found.view(-1, *acts.tokens.shape).permute(1, 2, 0)


# What is gathered


def test_gathered_activations_are_the_formulas_on_huggingfaces_activations(pair, hf_models, tl_models, tokens):
    dictionary, raw = pair
    acts = gather(dictionary, tl_models[1], tokens)
    want = Watched(hf_models[1], raw).acts(tokens)
    want[:, 0] = 0  # BOS does not count
    torch.testing.assert_close(dense(acts), want, atol=1e-4, rtol=1e-3)


def test_quality_by_layer_is_brute_force(pair, hf_models, tl_models, tokens):
    dictionary, raw = pair
    fidelity = gather(dictionary, tl_models[1], tokens).fidelity
    watched = Watched(hf_models[1], raw)
    acts = watched.acts(tokens)[:, 1:].reshape(-1, N_LAYERS, WIDTH)
    assert fidelity.n_tokens == len(acts)
    assert [group.label for group in fidelity.groups] == [f"layer {i}" for i in range(N_LAYERS)]
    for i, (site, group) in enumerate(zip(fidelity.sites, fidelity.groups, strict=True)):
        true = watched.out[i][:, 1:].reshape(-1, D_MODEL)
        recon = raw.recon(i, watched.seen)[:, 1:].reshape(-1, D_MODEL)
        fvu = (true - recon).square().sum() / (true - true.mean(0)).square().sum()
        assert site.fvu == pytest.approx(float(fvu), rel=1e-3)
        assert group.l0 == pytest.approx(float((acts[:, i] != 0).float().sum(-1).mean()), abs=1e-3)
        assert group.dead == pytest.approx(float((acts[:, i] == 0).all(0).float().mean()), abs=1e-6)
    assert fidelity.l0 == pytest.approx(sum(group.l0 for group in fidelity.groups), abs=1e-2)


def nats(logits: Tensor, tokens: Tensor, predicts: Tensor) -> float:
    each = cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    return float(each[predicts[:, :-1]].mean())


def test_losses_with_reconstructions_put_in_are_huggingfaces(pair, hf_models, tl_models, tokens):
    dictionary, raw = pair
    rows = tokens[:8]
    (found,) = gather(dictionary, tl_models[1], rows).fidelity.losses
    counted = torch.ones_like(rows, dtype=torch.bool)
    counted[:, 0] = False
    watched = Watched(hf_models[1], raw)

    def loss(changed, **options):
        return nats(watched.run(rows, changed, counted, **options), rows, counted)

    assert found.n_tokens == 8 * (N_CTX - 2)
    assert found.clean == pytest.approx(loss(()), abs=2e-4)
    assert len(found.sites) == N_LAYERS
    for i, site in enumerate(found.sites):
        assert site.loss == pytest.approx(loss((i,)), abs=2e-4)
        assert site.zeroed == pytest.approx(loss((i,), zero=True), abs=2e-4)
    assert found.together.loss == pytest.approx(loss(range(N_LAYERS)), abs=2e-4)
    assert found.together.zeroed == pytest.approx(loss(range(N_LAYERS), zero=True), abs=2e-4)


@FEW
@given(data=st.data())
def test_random_masks_leave_tokens_as_they_are_and_out_of_the_loss(clt_pair, hf_models, tl_models, data):
    """Masked tokens, wherever they stand, keep the model's own activation and nothing is predicted from them."""
    dictionary, raw = clt_pair
    n_rows, length = data.draw(st.integers(1, 3)), data.draw(st.integers(3, N_CTX))
    ids = st.lists(st.integers(1, VOCABULARY - 1), min_size=length, max_size=length)
    rows = torch.tensor(data.draw(st.lists(ids, min_size=n_rows, max_size=n_rows)))
    masked = data.draw(st.lists(st.sampled_from(sorted(set(rows.flatten().tolist()))), max_size=4, unique=True))
    positions = data.draw(st.lists(st.integers(0, length - 1), max_size=3, unique=True))
    counted = ~torch.isin(rows, torch.tensor(masked, dtype=torch.long))
    counted[:, positions] = False
    if not counted.any():
        return
    acts = gather(dictionary, tl_models[1], rows, masked_tokens=masked, masked_positions=positions)
    watched = Watched(hf_models[1], raw)
    want = watched.acts(rows) * counted[..., None]
    torch.testing.assert_close(dense(acts), want, atol=1e-4, rtol=1e-3)
    if not counted[:, :-1].any():
        assert all(one.clean is None or one.n_tokens == 0 for one in acts.fidelity.losses)
        return
    (found,) = acts.fidelity.losses
    assert found.n_tokens == int(counted[:, :-1].sum())
    assert found.clean == pytest.approx(nats(watched.run(rows), rows, counted), abs=5e-4)
    every = watched.run(rows, range(N_LAYERS), counted)
    assert found.together.loss == pytest.approx(nats(every, rows, counted), abs=5e-4)


def test_left_padding_right_padding_and_none_are_one_gathering(pair, tl_models, tokens):
    dictionary, _ = pair
    short = tokens[:5, :10]
    padding = torch.zeros(5, 7, dtype=torch.long)
    plain = gather(dictionary, tl_models[1], short)
    left = gather(dictionary, tl_models[1], torch.cat([padding, short], 1))
    right = gather(dictionary, tl_models[1], torch.cat([short, padding], 1))
    torch.testing.assert_close(dense(left)[:, 7:], dense(plain), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dense(right)[:, :10], dense(plain), atol=1e-5, rtol=1e-4)
    assert not dense(left)[:, :7].any()
    assert not dense(right)[:, 10:].any()
    for other in (left, right):
        assert other.fidelity.n_tokens == plain.fidelity.n_tokens
        for a, b in zip(other.fidelity.sites, plain.fidelity.sites, strict=True):
            assert a.fvu == pytest.approx(b.fvu, rel=1e-3)
        (mine,), (theirs,) = other.fidelity.losses, plain.fidelity.losses
        assert mine.n_tokens == theirs.n_tokens
        assert mine.together.loss == pytest.approx(theirs.together.loss, abs=1e-3)


@pytest.mark.parametrize("shape", [(1, N_CTX), (1, 1), (3, 1), (1, 2), (4, 2)])
def test_a_single_sequence_and_rows_of_one_or_two_tokens(clt_pair, hf_models, tl_models, shape):
    dictionary, raw = clt_pair
    rows = torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(4))
    acts = gather(dictionary, tl_models[1], rows)
    want = Watched(hf_models[1], raw).acts(rows)
    torch.testing.assert_close(dense(acts), want, atol=1e-4, rtol=1e-3)
    data = SaeVisData.from_store(acts, dictionary, SaeVisConfig(features=list(range(27))), model=tl_models[1])
    for feature in range(27):
        assert data.panels[feature].maximum == pytest.approx(float(want[..., feature].max().clamp_min(0)), abs=1e-4)
        assert data.panels[feature].density == pytest.approx(float((want[..., feature] != 0).float().mean()), abs=1e-6)


# What a feature does


def direct(hf, direction: Tensor) -> Tensor:
    """Logits of a direction in the final residual stream, before the norm divides, less their mean."""
    with torch.no_grad():
        out = ((direction - direction.mean()) * hf.transformer.ln_f.weight) @ hf.lm_head.weight.T
    return out - out.mean()


@pytest.fixture(scope="module")
def shown(pair, tl_models, tokens):
    dictionary, raw = pair
    cfg = SaeVisConfig(features=list(range(N_LAYERS * WIDTH)))
    return SaeVisData.create(dictionary, tl_models[1], tokens, cfg), raw


def test_norms_are_of_each_layer_written(shown):
    data, raw = shown
    for feature, panel in data.panels.items():
        s, i = divmod(feature, WIDTH)
        targets = sorted(t for (source, t) in raw.decoders if source == s)
        assert panel.layer == s
        assert panel.label == f"L{s}F{i}"
        assert panel.geometry.targets == targets
        assert panel.geometry.norms == pytest.approx([float(raw.decoders[s, t][i].norm()) for t in targets], abs=1e-3)


def test_shares_and_lenses_are_of_each_layer_written(shown, hf_models):
    data, raw = shown
    for feature, panel in data.panels.items():
        s, i = divmod(feature, WIDTH)
        parts = [direct(hf_models[1], raw.decoders[s, t][i]) for t in panel.geometry.targets]
        whole = sum(parts)
        assert len(panel.lens) == len(parts)
        for lens, part in zip(panel.lens, parts, strict=True):
            assert lens.top_ids[0] == int(part.argmax())
            assert lens.bottom_ids[0] == int(part.argmin())
            spread = lens.top[0] - lens.bottom[0]
            assert spread == pytest.approx(float(part.max() - part.min()), rel=1e-2, abs=2e-3)
            share = float(part @ whole / (whole @ whole))
            assert lens.share is None if len(parts) == 1 else lens.share == pytest.approx(share, abs=2e-3)
        if len(parts) > 1:
            assert sum(lens.share for lens in panel.lens) == pytest.approx(1, abs=2e-3)


def test_logits_are_of_all_decoders_together(shown, hf_models, tl_models):
    data, raw = shown
    for feature, panel in data.panels.items():
        s, i = divmod(feature, WIDTH)
        whole = direct(hf_models[1], sum(W[i] for (source, _), W in raw.decoders.items() if source == s))
        table = panel.logits[0].table
        assert table.top_token_ids[0] == int(whole.argmax())
        assert table.bottom_token_ids[0] == int(whole.argmin())
        spread = table.top_logits[0] - table.bottom_logits[0]
        assert spread == pytest.approx(float(whole.max() - whole.min()), rel=1e-2, abs=2e-3)


@FEW
@given(seed=st.integers(0, 10**6), scales=st.lists(st.sampled_from([0.0, 1e-3, 1.0, 50.0]), min_size=3, max_size=3))
def test_shares_of_random_weights_add_up_and_a_decoder_of_zeros_has_none(
    tmp_path_factory, hf_models, tl_models, seed, scales
):
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("random") / "clt"
    full_clt(folder, seed)
    path = folder / "W_dec_0.safetensors"
    decoder = load_file(path)["W_dec_0"] * torch.tensor(scales)[None, :, None]
    save_file({"W_dec_0": decoder}, path)
    dictionary = load_dictionary(folder, processing="none")
    rows = torch.randint(1, VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(seed))
    data = SaeVisData.create(dictionary, tl_models[1], rows, SaeVisConfig(features=list(range(WIDTH))))
    for i in range(WIDTH):
        parts = [direct(hf_models[1], decoder[i, t]) for t in range(N_LAYERS)]
        whole = sum(parts)
        shares = [lens.share for lens in data.panels[i].lens]
        if not any(scales):
            assert shares == [None] * 3
            continue
        want = [float(part @ whole / (whole @ whole)) for part in parts]
        assert shares == pytest.approx(want, abs=5e-3)
        assert sum(shares) == pytest.approx(1, abs=5e-3)


def test_the_map_has_layers_and_the_layer_that_is_written_most(shown):
    data, raw = shown
    head, _ = feature_page(data, None)
    measures = {one["name"]: one["values"] for one in head["features"]["measures"]}
    ids = head["features"]["id"]
    assert measures["layer"] == [feature // WIDTH for feature in ids]
    for feature, strongest in zip(ids, measures["strongest_site"], strict=True):
        s, i = divmod(feature, WIDTH)
        norms = {t: float(W[i].norm()) for (source, t), W in raw.decoders.items() if source == s}
        assert strongest == max(norms, key=norms.__getitem__)
    fidelity = head["fidelity"]
    assert [len(fidelity[key]) for key in ("sites", "groups")] == [N_LAYERS, N_LAYERS]
    assert len(fidelity["losses"][0]["sites"]) == N_LAYERS


def test_a_crosscoder_of_two_models_is_put_into_each(tmp_path, hf_models, tl_models, tokens):
    """Both models' reconstructions come from both models' activations as they are; tokens that do not count stay."""
    folder = write_crosscoder(tmp_path / "cc")
    state = torch.load(folder / "cc_weights.pt", weights_only=True)
    acts = gather(load_dictionary(folder), tl_models, tokens[:8], masked_positions=[4, 5], replacement=True)
    counted = torch.ones(8, N_CTX, dtype=torch.bool)
    counted[:, [0, 4, 5]] = False

    def run(hf, changed: Tensor | None):
        seen: list[Tensor] = []

        def hook(module, args, output):
            stream = output[0] if isinstance(output, tuple) else output
            seen.append(stream)
            if changed is None:
                return None
            new = stream.clone()
            new[counted] = changed[counted]
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = hf.transformer.h[1].register_forward_hook(hook)
        with torch.no_grad():
            logits = hf(tokens[:8]).logits
        handle.remove()
        return logits, seen[0]

    x = [run(hf, None)[1] for hf in hf_models]
    features = sum((x[m] @ state["W_enc"][m] for m in range(2)), start=state["b_enc"]).clamp_min(0)
    assert len(acts.fidelity.losses) == 2
    for m, (found, hf) in enumerate(zip(acts.fidelity.losses, hf_models, strict=True)):
        recon = features @ state["W_dec"][:, m] + state["b_dec"][m]
        for value, changed in ((found.clean, None), (found.sites[0].loss, recon), (found.sites[0].zeroed, 0 * recon)):
            assert value == pytest.approx(nats(run(hf, changed)[0], tokens[:8], counted), abs=2e-4)


# Layers by themselves


def test_a_layers_features_alone_are_what_they_are_among_all(pair, tl_models, tokens):
    dictionary, _ = pair
    whole = dense(gather(dictionary, tl_models[1], tokens))
    chosen = [2 * WIDTH + 3, 4, 2 * WIDTH]  # none of layer 1, in no order
    some = gather(dictionary, tl_models[1], tokens, chosen)
    order = some.features.tolist()
    assert sorted(order) == sorted(chosen)
    torch.testing.assert_close(dense(some), whole[..., order])
    data = SaeVisData.from_store(some, dictionary, SaeVisConfig(features=chosen), model=tl_models[1])
    assert {f: data.panels[f].layer for f in chosen} == {chosen[0]: 2, 4: 0, chosen[2]: 2}
    with pytest.raises(ValueError, match=rf"{WIDTH + 1}"):
        SaeVisData.from_store(some, dictionary, SaeVisConfig(features=[WIDTH + 1]), model=tl_models[1])


@pytest.fixture(scope="module")
def desk(tmp_path_factory, models_dir, tokens):
    folder = tmp_path_factory.mktemp("desk")
    raw = full_clt(folder / "clt")
    np.save(folder / "tokens.npy", tokens.numpy())
    base = ["--model", str(models_dir / "tuned"), "--dictionary", str(folder / "clt"), "--processing", "none"]
    return folder, raw, [*base, "--tokens", str(folder / "tokens.npy"), "--device", "cpu"]


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_layer_on_the_command_line_numbers_features_within_it(desk, hf_models, tokens, tmp_path):
    _, raw, words = desk
    store = tmp_path / "store"
    result = invoke("gather", *words, "--layer", 1, "--out", store)
    assert result.exit_code == 0, result.output
    acts = open_store(store)
    assert acts.features.tolist() == list(range(WIDTH, 2 * WIDTH))
    want = Watched(hf_models[1], raw).acts(tokens)[..., WIDTH : 2 * WIDTH]
    want[:, 0] = 0
    torch.testing.assert_close(dense(acts), want, atol=1e-4, rtol=1e-3)

    page, saved = tmp_path / "page.html", tmp_path / "page.json"
    result = invoke("render", *words, "--layer", 1, "--features", "0,5-6", "--out", page, "--json", saved)
    assert result.exit_code == 0, result.output
    assert list(SaeVisData.load_json(saved).panels) == [WIDTH, WIDTH + 5, WIDTH + 6]

    of_store = tmp_path / "of_store.html"
    result = invoke("render", "--store", store, "--layer", 1, "--features", "5", "--out", of_store, "--json", saved)
    assert result.exit_code == 0, result.output
    assert list(SaeVisData.load_json(saved).panels) == [WIDTH + 5]
    result = invoke("render", "--store", store, "--features", "L1F5", "--out", of_store, "--json", saved)
    assert result.exit_code == 0, result.output
    assert list(SaeVisData.load_json(saved).panels) == [WIDTH + 5]
    result = invoke("render", "--store", store, "--features", "all", "--out", of_store, "--json", saved)
    assert result.exit_code == 0, result.output
    assert list(SaeVisData.load_json(saved).panels) == list(range(WIDTH, 2 * WIDTH))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--layer", 3], "layer 3"),
        (["--layer", -1], "layer -1"),
        (["--layer", 1, "--features", str(WIDTH)], str(WIDTH)),
        (["--layer", 1, "--features", "L2F0"], "L2F0"),
        (["--layer", 1, "--features", "3-1"], "3-1"),
        (["--layer", 1, "--features", ""], "names no feature"),
        (["--layer", 1, "--features", "L7"], "L7|layer 7"),
    ],
)
@pytest.mark.parametrize("command", ["gather", "render"])
def test_a_wrong_layer_or_feature_is_one_line_and_status_2(desk, tmp_path, command, extra, words):
    _, _, base = desk
    result = invoke(command, *base, *extra, "--out", tmp_path / ("s" if command == "gather" else "s.html"))
    assert result.exit_code == 2
    assert re.search(words, result.output)
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_layer_that_was_not_gathered_is_named(desk, tmp_path):
    _, _, words = desk
    store = tmp_path / "store"
    assert invoke("gather", *words, "--layer", 1, "--features", "0,3", "--out", store).exit_code == 0
    assert open_store(store).features.tolist() == [WIDTH, WIDTH + 3]
    for asked in (["--layer", 2], ["--features", "L2"], ["--features", "L1F4"], ["--layer", 1, "--features", "1"]):
        result = invoke("render", "--store", store, *asked, "--out", tmp_path / "p.html")
        assert result.exit_code == 2, asked
        assert "Traceback" not in result.output
        assert not (tmp_path / "p.html").exists()


# Rankings that are calibrated


def test_a_calibrated_ranking_over_the_batch_is_one_by_token(tmp_path, tl_models, tokens):
    """Rows, their order and the tokens beside them no longer matter; k fire on average where it was calibrated."""
    from tests.test_sae_dashboard_clt import K, write

    dictionary = load_dictionary(write(tmp_path / "clt", "batchtopk"))
    assert dictionary.batch_dependent
    with pytest.raises(ValueError, match="calibrate"):
        gather(dictionary, tl_models[0], tokens)
    fixed = calibrate(dictionary, tl_models[0], tokens)
    whole = gather(fixed, tl_models[0], tokens)
    assert whole.fidelity.l0 == pytest.approx(K, abs=0.02)
    by_rows = torch.cat([dense(gather(fixed, tl_models[0], tokens[i : i + 5])) for i in (0, 5, 10)])
    torch.testing.assert_close(by_rows, dense(whole), atol=1e-4, rtol=1e-3)
    some = gather(fixed, tl_models[0], tokens, [1, 25, 41])
    torch.testing.assert_close(dense(some), dense(whole)[..., [1, 25, 41]], atol=1e-4, rtol=1e-3)
    data = SaeVisData.from_store(whole, fixed, SaeVisConfig(features=[1, 25]), model=tl_models[0])
    assert {panel.layer for panel in data.panels.values()} == {0, 1}
