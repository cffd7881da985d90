"""Folders of cross-layer transcoders as SAEDashboard takes them: every activation, normalisation and tying of decoders,
those included with which its own code fails (TopK, tied decoders) or gives other numbers (BatchTopK, sqrt_d_model)."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens import HookedTransformer

from crossvis_tl import SaeVisConfig, SaeVisData, calibrate, inspect, load_dictionary
from crossvis_tl.capture import Capture
from crossvis_tl.errors import MissingFact
from tests.conftest import D_MODEL, N_LAYERS

FEATURES, K = 20, 4
ACTIVATIONS = ("jumprelu", "relu", "batchtopk", "topk")
NORMALISATIONS = ("none", "mean_std", "sqrt_d_model")
TYINGS = ("none", "per_source", "per_target")
HF = {"mlp_input_template": "transformer.h.{}.mlp.input", "mlp_output_template": "transformer.h.{}.mlp.output"}
TL = {"tl_input_template": "blocks.{}.ln2.hook_normalized", "tl_output_template": "blocks.{}.hook_mlp_out"}
ONLY_TL = TL | dict.fromkeys(HF)


def write(
    folder: Path, activation: str = "jumprelu", normalisation: str = "none", tying: str = "none",
    file: str = "any name.safetensors", seed: int = 11, **config,
) -> Path:  # fmt: skip
    """A random one; `config` over what its cfg.json says."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    folder.mkdir(parents=True, exist_ok=True)
    layers = range(N_LAYERS)
    decoders = {"none": [f"{s}->{t}" for s in layers for t in layers if t >= s]}.get(tying, [str(i) for i in layers])
    state = {}
    for i in layers:
        state[f"encoder_module.encoders.{i}.weight"] = 0.4 * normal(FEATURES, D_MODEL)
        state[f"encoder_module.encoders.{i}.bias_param"] = 0.2 * normal(FEATURES)
    for name in decoders:
        state[f"decoder_module.decoders.{name}.weight"] = 0.3 * normal(D_MODEL, FEATURES)
        state[f"decoder_module.decoders.{name}.bias_param"] = 0.1 * normal(D_MODEL)
    if tying != "none":
        for t in layers:
            state[f"decoder_module.feature_offset.{t}"] = 0.1 * normal(FEATURES)
            state[f"decoder_module.feature_scale.{t}"] = 1 + 0.1 * normal(FEATURES)
    if activation == "jumprelu":
        state["theta_manager.log_threshold"] = 0.3 * normal(N_LAYERS, FEATURES) - 0.5
    if file.endswith(".safetensors"):
        save_file(state, folder / file)
    else:
        torch.save(state, folder / file)
    said = {
        "num_features": FEATURES, "num_layers": N_LAYERS, "d_model": D_MODEL, "model_name": "base",
        "normalization_method": normalisation, "activation_fn": activation, "batchtopk_k": K, "topk_k": K,
        "topk_mode": "global", "clt_dtype": "float32", "decoder_tying": tying,
        "enable_feature_offset": tying != "none", "enable_feature_scale": tying != "none", "skip_connection": False,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(said | HF | TL | config))
    if normalisation == "mean_std":
        parts = ("inputs", "targets")
        stats = {
            str(i): {
                p: {"mean": normal(D_MODEL).tolist(), "std": (0.5 + normal(D_MODEL).abs()).tolist()} for p in parts
            }
            for i in layers
        }
        (folder / "norm_stats.json").write_text(json.dumps(stats))
    return folder


def stored(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(next(folder.glob("*.safetensors")))


def norm(folder: Path, normalisation: str, layer: int, part: str) -> tuple[Tensor, Tensor]:
    """-> what is subtracted, and what is then divided by."""
    if normalisation == "mean_std":
        stats = json.loads((folder / "norm_stats.json").read_text())[str(layer)][part]
        return torch.tensor(stats["mean"]), torch.tensor(stats["std"]) + 1e-6
    return torch.zeros(D_MODEL), torch.full((D_MODEL,), D_MODEL**-0.5 if normalisation == "sqrt_d_model" else 1.0)


def encoded(folder: Path, activation: str, normalisation: str, inputs: list[Tensor], *, per_layer=False) -> Tensor:
    """By the formulas, [tokens, layers * features]."""
    state, pres = stored(folder), []
    for i, x in enumerate(inputs):
        mean, std = norm(folder, normalisation, i, "inputs")
        W, b = (state[f"encoder_module.encoders.{i}.{part}"] for part in ("weight", "bias_param"))
        pres.append(((x - mean) / std) @ W.T + b)
    if activation == "relu":
        return torch.cat(pres, 1).clamp_min(0)
    if activation == "jumprelu":
        theta = state["theta_manager.log_threshold"].exp()
        return torch.cat([pre * (pre >= theta[i]) for i, pre in enumerate(pres)], 1)
    if per_layer:
        return torch.cat([pre * (pre >= pre.sort(1, descending=True).values[:, K - 1 : K]) for pre in pres], 1)
    pre = torch.cat(pres, 1)
    z = (pre - pre.mean(0)) / (pre.std(0) + 1e-6)
    if activation == "batchtopk":
        return pre * (z >= z.flatten().sort(descending=True).values[K * len(z) - 1])
    return pre * (z >= z.sort(1, descending=True).values[:, K - 1 : K])


def decoded(folder: Path, normalisation: str, tying: str, acts: Tensor) -> list[Tensor]:
    state, by_layer, out = stored(folder), acts.split(FEATURES, 1), []
    for t in range(N_LAYERS):
        recon = torch.zeros(len(acts), D_MODEL)
        for s in range(t + 1):
            name = {"none": f"{s}->{t}", "per_source": str(s), "per_target": str(t)}[tying]
            a = by_layer[s]
            if tying != "none":
                offset, scale = (state[f"decoder_module.feature_{part}.{t}"] for part in ("offset", "scale"))
                a = torch.where(a != 0, (a + offset) * scale, a)
            recon += a @ state[f"decoder_module.decoders.{name}.weight"].T
            if tying != "per_target" or s == t:
                recon += state[f"decoder_module.decoders.{name}.bias_param"]
        mean, std = norm(folder, normalisation, t, "targets")
        out.append(recon * std + mean)
    return out


def random_inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [0.4 + torch.randn(24, D_MODEL, generator=generator) for _ in range(N_LAYERS)]


@pytest.mark.parametrize(("activation", "normalisation", "tying"), list(product(ACTIVATIONS, NORMALISATIONS, TYINGS)))
def test_every_kind_is_what_its_formulas_say(tmp_path, activation, normalisation, tying):
    folder = write(tmp_path / "clt", activation, normalisation, tying)
    dictionary, inputs = load_dictionary(folder), random_inputs()
    want = encoded(folder, activation, normalisation, inputs)
    assert 0.03 < float((want != 0).float().mean()) < 0.7
    acts = dictionary.encode(inputs)
    torch.testing.assert_close(acts, want, atol=1e-4, rtol=1e-4)
    for recon, expected in zip(
        dictionary.decode(acts, inputs), decoded(folder, normalisation, tying, want), strict=True
    ):
        torch.testing.assert_close(recon, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_top_k_of_each_layer_is_asked_for(tmp_path, activation):
    """Its producer's code gives zeros then, and registers a meaning that it never calls."""
    folder = write(tmp_path / "clt", activation, topk_mode="per_layer")
    with pytest.raises(MissingFact, match=r"topk_mode = 'per_layer', with which its producer's code gives zeros"):
        load_dictionary(folder)
    dictionary, inputs = load_dictionary(folder, topk_mode="per_layer"), random_inputs()
    if activation == "topk":
        want = encoded(folder, activation, "none", inputs, per_layer=True)
        torch.testing.assert_close(dictionary.encode(inputs), want, atol=1e-4, rtol=1e-4)
    counts = (dictionary.encode(inputs) != 0).unflatten(1, (N_LAYERS, FEATURES)).sum((0, 2))
    assert counts.tolist() == [K * 24] * N_LAYERS
    every = load_dictionary(folder, topk_mode="global").encode(inputs)
    assert int((every != 0).sum()) == K * 24
    with pytest.raises(ValueError, match=r"topk_mode='per_layr'; expected 'global', 'per_layer'\. Did you mean"):
        load_dictionary(folder, topk_mode="per_layr")


def test_untied_decoders_have_no_offsets_whatever_the_config_says(tmp_path):
    """As the producer's decoder makes them for tied ones alone."""
    config = {"enable_feature_offset": True, "enable_feature_scale": True}
    want = load_dictionary(write(tmp_path / "plain")).encode(random_inputs())
    assert torch.equal(load_dictionary(write(tmp_path / "untied", **config)).encode(random_inputs()), want)
    tied = write(tmp_path / "tied", tying="per_source")
    state = {name: tensor for name, tensor in stored(tied).items() if "feature_scale.1" not in name}
    save_file(state, tied / "any name.safetensors")
    with pytest.raises(ValueError, match=r"lacks the tensor feature_scale\.1, which its config"):
        load_dictionary(tied)


@pytest.mark.parametrize("share", [0.08, 0.5])
def test_k_may_be_a_share_of_all_features(tmp_path, share):
    acts = load_dictionary(write(tmp_path / "clt", "topk", topk_k=share)).encode(random_inputs())
    assert set((acts != 0).sum(1).tolist()) == {-int(-share * N_LAYERS * FEATURES // 1)}


@pytest.mark.parametrize("file", ["any name.safetensors", "model.safetensors", "model.pt", "model.bin", "clt_v2.pt"])
def test_weights_of_any_name(tmp_path, file):
    want = load_dictionary(write(tmp_path / "one")).encode(random_inputs())
    folder = write(tmp_path / "two", file=file)
    save_file({"other": torch.ones(1)}, folder / "a first one.safetensors")
    (folder / "another first one.safetensors").write_bytes(b"damaged")
    for path in (folder, folder / file):
        assert torch.equal(load_dictionary(path).encode(random_inputs()), want)
    assert torch.equal(load_dictionary(folder, weights_filename=file).encode(random_inputs()), want)


def test_several_weights_are_asked_about(tmp_path):
    folder = write(tmp_path / "clt", file="clt_checkpoint_900.safetensors", seed=1)
    write(folder, file="clt_checkpoint_1000.safetensors", seed=2)
    inputs = random_inputs()
    last = load_dictionary(folder).encode(inputs)  # steps of one training
    assert torch.equal(last, load_dictionary(folder / "clt_checkpoint_1000.safetensors").encode(inputs))
    write(folder, file="a copy.safetensors", seed=3)  # the first by name: SAEDashboard's choice
    with pytest.raises(MissingFact, match=r"several transcoders: a copy\.safetensors, clt_.*; pass weights_filename="):
        load_dictionary(folder)
    assert "weights_filename" in inspect(folder).needed
    for file in ("a copy", "clt_checkpoint_1000", "clt_checkpoint_900"):
        acts = load_dictionary(folder, weights_filename=f"{file}.safetensors").encode(inputs)
        assert torch.equal(acts, last) == (file == "clt_checkpoint_1000")
    with pytest.raises(FileNotFoundError, match=r"no file weights_filename='a cpy\.safe.*Did you mean 'a copy\.safe"):
        load_dictionary(folder, weights_filename="a cpy.safetensors")
    with pytest.raises(ValueError, match=r"is a weight file; leave weights_filename='a copy\.safetensors' out"):
        load_dictionary(folder / "a copy.safetensors", weights_filename="a copy.safetensors")
    with pytest.raises(ValueError, match=r"cfg\.json is not a crosslayer-coding transcoder, it lacks the tensor enc"):
        load_dictionary(folder, weights_filename="cfg.json")


def test_statistics_that_are_missing_are_an_error(tmp_path):
    """SAEDashboard warns, and encodes raw activations."""
    folder = write(tmp_path / "clt", normalisation="mean_std")
    text = (folder / "norm_stats.json").read_text()
    (folder / "norm_stats.json").unlink()
    for word in ("mean_std", "auto", "estimated_mean_std"):
        write(folder, normalization_method=word)
        with pytest.raises(
            FileNotFoundError, match=rf"lacks norm_stats\.json, with which .* are normalised \({word}\)"
        ):
            load_dictionary(folder)
    assert not load_dictionary(folder, normalization_method="none").normalize
    stats = json.loads(text)
    del stats["1"]["inputs"]["std"]
    (folder / "norm_stats.json").write_text(json.dumps(stats))
    with pytest.raises(ValueError, match=r"lacks the std of layer 1's inputs"):
        load_dictionary(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"normalization_method": "auto_sqrt_d_model"},
        {"normalization_method": "estimated_mean_std_sqrt_d_model"},
        {"normalization_method": None, "sqrt_d_model_normalize": True},
    ],
)
def test_older_words_for_normalisations(tmp_path, config):
    """As the producer reads its older configs."""
    inputs = random_inputs()
    want = load_dictionary(write(tmp_path / "new", normalisation="sqrt_d_model")).encode(inputs)
    assert torch.equal(load_dictionary(write(tmp_path / "old", **config)).encode(inputs), want)


def test_unknown_words(tmp_path):
    with pytest.raises(ValueError, match=r"normalization_method='mean_sd'; expected 'none'.*Did you mean 'mean_std'"):
        load_dictionary(write(tmp_path / "a", normalization_method="mean_sd"))
    with pytest.raises(ValueError, match=r"decoder_tying = 'per_layer'; known: none, per_source, per_target"):
        load_dictionary(write(tmp_path / "b", decoder_tying="per_layer"))
    with pytest.raises(ValueError, match=r"tl_input_template = 'blocks\.0\.hook_mlp_in'; expected '\{\}' where"):
        load_dictionary(write(tmp_path / "c", tl_input_template="blocks.0.hook_mlp_in"))


def read_by(folder: Path, model: HookedTransformer, tokens: Tensor, **facts) -> list[Tensor]:
    return Capture(load_dictionary(folder, **facts), [model]).run(tokens).sources


def test_the_modules_are_read_that_it_was_trained_on(tmp_path, tl_models, hf_models, tokens):
    """HuggingFace's, held against its own forward hooks."""
    folder = write(tmp_path / "clt")
    dictionary = load_dictionary(folder)
    assert [site.place for site in dictionary.sources] == [f"transformer.h.{i}.mlp.input" for i in range(N_LAYERS)]
    seen = {}
    hooks = [
        block.mlp.register_forward_hook(lambda m, args, out, i=i: seen.update({(i, 0): args[0], (i, 1): out}))
        for i, block in enumerate(hf_models[0].transformer.h)
    ]
    with torch.no_grad():
        hf_models[0](tokens)
    for hook in hooks:
        hook.remove()
    captured = Capture(dictionary, tl_models[:1]).run(tokens)
    for i in range(N_LAYERS):
        torch.testing.assert_close(captured.sources[i], seen[i, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(captured.targets[i], seen[i, 1], atol=1e-4, rtol=1e-4)


def test_on_which_weights_a_hook_is_read_is_asked_for(tmp_path, tl_models, tokens):
    """The same name is another tensor on folded weights, which SAEDashboard 0.8.0 has, than on unfolded ones."""
    folder = write(tmp_path / "clt", **ONLY_TL)
    dictionary = load_dictionary(folder)
    assert [site.place for site in dictionary.sources] == [f"blocks.{i}.ln2.hook_normalized" for i in range(N_LAYERS)]
    assert dictionary.missing == ("processing",)
    assert dictionary.encode(random_inputs()).shape == (24, 60)
    with pytest.raises(ValueError, match=r"do not say it: load_dictionary\(path, processing=\.\.\.\)"):
        SaeVisData.create(dictionary, tl_models[0], tokens, SaeVisConfig(features=[1]))
    with pytest.raises(
        MissingFact, match=r"feature_input_hook='ln2\.hook_out' for after .*hook_normalized' for before"
    ):
        load_dictionary(folder, processing="none")
    folded = read_by(folder, tl_models[0], tokens, processing="tl_default")
    after = read_by(folder, tl_models[0], tokens, processing="none", feature_input_hook="ln2.hook_out")
    before = read_by(folder, tl_models[0], tokens, processing="none", feature_input_hook="ln2.hook_normalized")
    for i, block in enumerate(tl_models[0].blocks):
        torch.testing.assert_close(folded[i], before[i])
        torch.testing.assert_close(after[i], before[i] * block.ln2.w + block.ln2.b)
        assert float((after[i] - before[i]).abs().max()) > 0.1


def test_folded_weights_read_at_the_hook(tmp_path, tl_models, tokens):
    """As SAEDashboard 0.8.0 does with a config that names both."""
    both = write(tmp_path / "both")
    dictionary = load_dictionary(both, processing="tl_default")
    assert [site.place for site in dictionary.targets] == [f"blocks.{i}.hook_mlp_out" for i in range(N_LAYERS)]
    _, cache = tl_models[0].run_with_cache(tokens)
    for i, x in enumerate(read_by(both, tl_models[0], tokens, processing="tl_default")):
        torch.testing.assert_close(x, cache[f"blocks.{i}.ln2.hook_normalized"])
    alone = write(tmp_path / "alone", tl_input_template=None)
    with pytest.raises(
        MissingFact, match=r"names transformer\.h\.0\.mlp\.input alone.*not folded; pass feature_input_h"
    ):
        load_dictionary(alone, processing="tl_default")


@pytest.mark.parametrize("name", ["tl_input_template", "mlp_input_template"])
def test_other_hooks(tmp_path, tl_models, tokens, name):
    """A template of either name, as SAEDashboard takes them; the caller's own wins."""
    config = ONLY_TL | {"tl_input_template": None} | {name: "blocks.{0}.hook_resid_mid"}
    folder = write(tmp_path / "clt", **config)
    _, cache = tl_models[0].run_with_cache(tokens)
    for i, x in enumerate(read_by(folder, tl_models[0], tokens, processing="none")):
        torch.testing.assert_close(x, cache[f"blocks.{i}.hook_resid_mid"])
    facts = {"processing": "none", "feature_input_hook": "hook_resid_pre"}
    for i, x in enumerate(read_by(folder, tl_models[0], tokens, **facts)):
        torch.testing.assert_close(x, cache[f"blocks.{i}.hook_resid_pre"])


def test_without_any_template_the_hooks_are_asked_for(tmp_path):
    dictionary = load_dictionary(write(tmp_path / "clt", **dict.fromkeys(HF | TL)))
    assert dictionary.missing == ("feature_input_hook", "feature_output_hook", "processing")


@pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
@pytest.mark.parametrize(
    ("activation", "normalisation", "tying"),
    [("jumprelu", "mean_std", "none"), ("relu", "sqrt_d_model", "per_source"), ("batchtopk", "none", "per_target"),
     ("topk", "mean_std", "per_target")],
)  # fmt: skip
def test_a_page_of_each_activation(tmp_path, tl_models, hf_models, tokens, activation, normalisation, tying):
    folder = write(tmp_path / "clt", activation, normalisation, tying)
    dictionary = load_dictionary(folder)
    if activation.endswith("topk"):
        with pytest.raises(ValueError, match=r"dictionary = crossvis_tl\.calibrate\(dictionary, models, tokens\)"):
            SaeVisData.create(dictionary, tl_models[0], tokens, SaeVisConfig(features=[1]))
        dictionary = calibrate(dictionary, tl_models[0], tokens)
    inputs = Capture(dictionary, tl_models[:1]).run(tokens).sources
    flat = [x.flatten(0, 1) for x in inputs]
    acts = dictionary.encode(flat) if activation.endswith("topk") else encoded(folder, activation, normalisation, flat)
    fires = (acts != 0).unflatten(0, tokens.shape)[:, 1:].flatten(0, 1).float().mean(0)  # BOS is not shown
    features = [int(fires[first : first + FEATURES].argmax()) + first for first in (0, FEATURES, 2 * FEATURES)]
    data = SaeVisData.create(dictionary, tl_models[0], tokens, SaeVisConfig(features=features))
    for layer, feature in enumerate(features):
        panel = data.panels[feature]
        assert panel.label == f"L{layer}F{feature - layer * FEATURES}"
        assert panel.density == pytest.approx(float(fires[feature]), abs=1e-6)
        assert panel.density > 0
        assert panel.geometry.targets == list(range(layer, N_LAYERS))
    data.save_feature_centric_vis(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert all(part in page for part in ("<!doctype html>", panel.label, data.encoder.activation))
