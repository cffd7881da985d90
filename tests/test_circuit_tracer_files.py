"""What circuit-tracer would read otherwise than it was saved is refused, mended or warned of.

That its own loaders and graphs agree with the rest is checked by hand: `tests/compat/circuit_tracer_writes.py`.
"""

from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from crossvis_tl import load_dictionary
from crossvis_tl.activation_fns import Activation, JumpReLU, ReLU, TopK
from crossvis_tl.dictionary import Dictionary, Group, Site
from crossvis_tl.errors import CrossvisWarning

WIDTH, LAYERS, FEATURES = 8, 3, 12


def dictionary(
    kind: str = "clt", place: str = "blocks.{}.hook_resid_mid", activations: list[Activation] | None = None,
    first: int = 0, features: tuple[int, ...] = (FEATURES,) * LAYERS, widths: tuple[int, int] = (WIDTH, WIDTH),
) -> Dictionary:  # fmt: skip
    """A random one that reads `place` of layers from `first` on, and writes after their MLPs."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def sites(name: str, width: int) -> tuple[Site, ...]:
        names = [name.format(first + i) for i in range(LAYERS)]
        hooks = name.startswith("blocks.")
        return tuple(Site(0, n if hooks else None, width, "none", hf_path=None if hooks else n) for n in names)

    chosen = activations or [ReLU()] * LAYERS
    groups = tuple(
        Group(
            f"L{first + i}", {i: normal(widths[0], n)}, normal(n), chosen[i],
            {t: normal(n, widths[1]) for t in range(i, LAYERS if kind == "clt" else i + 1)},
        )
        for i, n in enumerate(features)
    )  # fmt: skip
    return Dictionary(
        kind=kind, sources=sites(place, widths[0]), targets=sites("blocks.{}.hook_mlp_out", widths[1]), groups=groups,
        b_dec=tuple(normal(widths[1]) for _ in groups), format="random", name="mine",
    )  # fmt: skip


def jump(*levels: float) -> list[Activation]:
    return [JumpReLU(torch.full((FEATURES,), level)) for level in levels]


@pytest.mark.parametrize(
    ("place", "hook"),
    [
        ("blocks.{}.hook_resid_mid", "hook_resid_mid"),
        ("transformer.h.{}.mlp.input", "mlp.hook_in"),
        ("model.layers.{}.mlp.input", "mlp.hook_in"),
        ("model.layers.{}.pre_feedforward_layernorm.output", "mlp.hook_in"),
        ("gpt_neox.layers.{}.mlp.output", "mlp.hook_out"),
        ("model.layers.{}.post_feedforward_layernorm.output", "hook_mlp_out"),
    ],
)
def test_places_get_circuit_tracers_names(tmp_path, place, hook):
    """TransformerLens' hook that stands in for a module may be another tensor, so that the module's name counts."""
    given = dictionary(place=place)
    if not place.startswith("blocks."):
        sources = tuple(replace(s, hook=f"blocks.{i}.ln2.hook_normalized") for i, s in enumerate(given.sources))
        given = replace(given, sources=sources)
    config = yaml.safe_load((given.save(tmp_path / "out", format="circuit-tracer") / "config.yaml").read_text())
    assert (config["feature_input_hook"], config["feature_output_hook"]) == (hook, "hook_mlp_out")
    assert load_dictionary(tmp_path / "out").sources == given.sources


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"features": (12, 12, 14)}, r"its layers have different numbers of features \(12, 14\)"),
        ({"widths": (8, 10)}, r"it reads and writes different widths \(8, 10\)"),
        ({"first": 2}, r"it reads layers 2, 3, 4, and that of a CLT counts them from 0"),
        ({"kind": "plt", "activations": [TopK(3, relu=False), TopK(4, relu=False), ReLU()]}, r"or different k"),
        ({"activations": [TopK(3, relu=False)] * 3}, r"its TopK is another than circuit-tracer's"),
    ],
)
def test_what_would_be_read_otherwise_is_refused(tmp_path, given, text):
    with pytest.raises(ValueError, match=rf"mine cannot be written as a circuit-tracer dictionary: .*{text}"):
        dictionary(**given).save(tmp_path / "out", format="circuit-tracer")
    assert not list(tmp_path.iterdir())


def test_circuit_tracer_folds_nothing(tmp_path):
    given = dictionary()
    given = replace(given, sources=tuple(replace(site, processing="tl_default") for site in given.sources))
    with pytest.raises(ValueError, match=r"folded and centred by TransformerLens, and circuit-tracer runs the model's"):
        given.save(tmp_path / "out", format="circuit-tracer")


@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_relu_beside_thresholds_is_a_threshold_of_0(tmp_path, kind):
    """circuit-tracer looks into the first layer alone."""
    given = dictionary(kind, activations=[ReLU(), *jump(0.5, -0.2)])
    same = load_dictionary(given.save(tmp_path / "out", format="circuit-tracer"))
    inputs = [torch.randn(50, WIDTH) for _ in range(LAYERS)]
    torch.testing.assert_close(same.encode(inputs), given.encode(inputs))
    file, name = ("W_enc_0", "threshold_0") if kind == "clt" else ("layer_0", "activation_function.threshold")
    assert torch.equal(load_file(tmp_path / f"out/{file}.safetensors")[name], torch.zeros(FEATURES))


def test_skip_connections_of_some_layers(tmp_path):
    given = replace(dictionary("plt"), skip={(1, 1): torch.randn(WIDTH, WIDTH)})
    same = load_dictionary(given.save(tmp_path / "out", format="circuit-tracer"))
    assert set(same.skip) == {(0, 0), (1, 1), (2, 2)}
    inputs = [torch.randn(5, WIDTH) for _ in range(LAYERS)]
    acts = given.encode(inputs)
    for one, other in zip(same.decode(acts, inputs), given.decode(acts, inputs), strict=True):
        torch.testing.assert_close(one, other)


def warned(given: Dictionary, path) -> str:
    with pytest.warns(CrossvisWarning) as caught:
        given.save(path, format="circuit-tracer")
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the line that saved it
    return str(caught[0].message)


def test_what_its_release_does_not_read_is_warned_of(tmp_path):
    top = dictionary("plt", activations=[TopK(3, relu=False)] * LAYERS)
    assert "release 0.5.0 does not, and takes these transcoders for ReLU ones" in warned(top, tmp_path / "top")
    config = yaml.safe_load((tmp_path / "top/config.yaml").read_text())
    assert (config["activation"], config["k"]) == ("topk", 3)
    assert "from 0; these are of layers 4, 5, 6" in warned(dictionary("plt", first=4), tmp_path / "later")
    text = warned(dictionary(place="model.layers.{}.self_attn.output"), tmp_path / "attention")
    assert "mine: its files do not say what circuit-tracer calls feature_input_hook; write it into config" in text
    assert "feature_input_hook" not in yaml.safe_load((tmp_path / "attention/config.yaml").read_text())
