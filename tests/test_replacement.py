"""What predictions lose with reconstructions put in, against HuggingFace's own model with forward hooks; and what of a
feature's effect on logits each layer has."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from crossvis_tl import SaeVisConfig, SaeVisData, gather, load_dictionary, load_model, merge, open_store, replacement
from crossvis_tl.activation_fns import ReLU
from crossvis_tl.capture import Capture
from crossvis_tl.cli import app
from crossvis_tl.dictionary import Dictionary, Group, Site
from crossvis_tl.fidelity import Fidelity
from crossvis_tl.losses import ReplacementLoss, SiteLoss
from crossvis_tl.masking import token_mask
from crossvis_tl.replacement import replacement_losses
from tests.conftest import N_CTX, N_LAYERS, write_clt, write_crosscoder
from tests.page.page_reader import read_page

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")


@pytest.fixture(scope="module")
def clt(tmp_path_factory):
    return load_dictionary(write_clt(tmp_path_factory.mktemp("clt")), processing="none")


class Changed:
    """HuggingFace's GPT-2 with some MLP outputs changed at some positions: replaced by what a CLT makes of the inputs
    that its encoders see on the way, or by nothing. Sequential by construction: a hook runs when its layer does."""

    def __init__(self, hf, dictionary, counted, layers, *, zero=False, given=None):
        self.hf, self.dictionary, self.counted, self.zero, self.given = hf, dictionary, counted, zero, given
        self.layers, self.inputs = layers, {}

    def reads(self, layer):
        def hook(module, args):
            self.inputs[layer] = args[0]  # the input of ln_2 is the stream that the CLT reads

        return hook

    def writes(self, layer):
        def hook(module, args, output):
            if layer not in self.layers:
                return output
            changed = output.clone()
            changed[self.counted] = 0.0 if self.zero else self.recon(layer)[self.counted]
            return changed

        return hook

    def recon(self, layer):
        if self.given is not None:
            return self.given[layer]
        seen = [self.inputs.get(i, torch.zeros_like(self.inputs[0])) for i in range(N_LAYERS)]
        return self.dictionary.decode(self.dictionary.encode(seen))[layer]

    @torch.no_grad()
    def loss(self, tokens, predicts):
        handles = []
        for i, block in enumerate(self.hf.transformer.h):
            handles.append(block.ln_2.register_forward_pre_hook(self.reads(i)))
            handles.append(block.mlp.register_forward_hook(self.writes(i)))
        try:
            logits = self.hf(tokens).logits
        finally:
            for handle in handles:
                handle.remove()
        nats = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        return float(nats[predicts[:, :-1]].mean())


@pytest.mark.parametrize("masking", ["special", "none"])
def test_losses_of_a_clt_are_those_of_huggingface_with_hooks(clt, hf_models, tl_models, tokens, masking):
    capture = Capture(clt, [tl_models[1]])
    mask = token_mask(tokens, tl_models[1].tokenizer, masking)
    (found,) = replacement_losses(capture, tokens, mask, 10**6)
    predicts = mask.counted.clone()
    predicts[:, -1] = False
    assert found.n_tokens == int(predicts.sum())

    def loss(layers, **options):
        return Changed(hf_models[1], clt, mask.counted, layers, **options).loss(tokens, predicts)

    assert found.clean == pytest.approx(loss([]), abs=1e-4)
    for layer, site in enumerate(found.sites):
        assert site.label == f"blocks.{layer}.hook_mlp_out"
        assert site.loss == pytest.approx(loss([layer]), abs=1e-4)
        assert site.zeroed == pytest.approx(loss([layer], zero=True), abs=1e-4)
    every = range(N_LAYERS)
    assert found.together is not None
    assert found.together.loss == pytest.approx(loss(every), abs=1e-4)
    assert found.together.zeroed == pytest.approx(loss(every, zero=True), abs=1e-4)
    # what earlier layers have become matters: put in from the model as it is, the loss is another one
    run = Changed(hf_models[1], clt, mask.counted, [])
    run.loss(tokens, predicts)
    clean = clt.decode(clt.encode([run.inputs[i] for i in every]))
    assert abs(found.together.loss - loss(every, given=clean)) > 1e-3
    assert found.note == ""


def test_padding_and_masked_tokens_stay_as_they_are(clt, tl_models, tokens):
    """Left, right and no padding give the same numbers."""
    model = tl_models[1]
    short, pad = tokens[:, : N_CTX - 6], torch.zeros(len(tokens), 6, dtype=torch.long)
    found = []
    for rows in (short, torch.cat([pad, short], 1), torch.cat([short, pad], 1)):
        mask = token_mask(rows, model.tokenizer)
        (one,) = replacement_losses(Capture(clt, [model]), rows, mask, 10**6)
        found.append(one)
    for other in found[1:]:
        assert other.n_tokens == found[0].n_tokens
        assert other.clean == pytest.approx(found[0].clean, abs=1e-5)
        assert other.together.loss == pytest.approx(found[0].together.loss, abs=1e-5)


def test_a_perfect_reconstruction_loses_nothing(tl_models, tokens):
    """A transcoder that writes what it is given back, through as many rectified features with a large bias."""
    width = tl_models[0].cfg.d_model
    site = Site(0, "blocks.1.hook_resid_post", width, "none")
    group = Group("", {0: torch.eye(width)}, torch.full((width,), 100.0), ReLU(), {0: torch.eye(width)})
    perfect = Dictionary(
        kind="sae", sources=(site,), targets=(site,), groups=(group,), b_dec=(torch.full((width,), -100.0),), name="id"
    )  # fmt: skip
    mask = token_mask(tokens, tl_models[0].tokenizer)
    (found,) = replacement_losses(Capture(perfect, [tl_models[0]]), tokens, mask)
    assert found.sites[0].loss == pytest.approx(found.clean, abs=1e-4)
    assert found.together is None


def test_a_crosscoder_of_two_models_is_put_into_each_from_both_as_they_are(tmp_path, hf_models, tl_models, tokens):
    dictionary = load_dictionary(write_crosscoder(tmp_path / "c"))
    mask = token_mask(tokens, tl_models[0].tokenizer)
    found = replacement_losses(Capture(dictionary, tl_models), tokens, mask, 10**6)
    assert [one.model for one in found] == ["base", "tuned"]
    streams = []
    for hf in hf_models:
        with torch.no_grad():
            streams.append(hf(tokens, output_hidden_states=True).hidden_states[2])
    recons = dictionary.decode(dictionary.encode(streams))
    predicts = mask.counted.clone()
    predicts[:, -1] = False
    for m, (hf, one) in enumerate(zip(hf_models, found, strict=True)):

        def put(module, args, output, m=m):
            whole = isinstance(output, tuple)
            stream = (output[0] if whole else output).clone()
            stream[mask.counted] = recons[m][mask.counted]
            return (stream, *output[1:]) if whole else stream

        handle = hf.transformer.h[1].register_forward_hook(put)
        with torch.no_grad():
            logits = hf(tokens).logits
        handle.remove()
        nats = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        assert one.sites[0].loss == pytest.approx(float(nats[predicts[:, :-1]].mean()), abs=1e-4)


def test_sites_that_read_later_ones_are_put_in_from_the_model_as_it_is(tmp_path, tl_models, tokens):
    """An acausal crosscoder has no replacement model of its own, and says so."""
    hooks = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
    dictionary = load_dictionary(write_crosscoder(tmp_path / "c"))
    sites = tuple(replace(site, model=0, hook=hook) for site, hook in zip(dictionary.sources, hooks, strict=True))
    one_model = replace(dictionary, sources=sites, targets=sites)
    (found,) = replacement_losses(Capture(one_model, tl_models[:1]), tokens, token_mask(tokens, tl_models[0].tokenizer))
    assert found.together is not None
    assert found.note == "all together: of the reconstructions made from the model as it is"


def test_what_cannot_be_put_in_is_said(tl_models, tokens):
    """What a norm gives is no hook of its own: TransformerLens' is before gain and bias."""
    width = tl_models[0].cfg.d_model
    site = Site(0, None, width, "none", hf_path="transformer.h.1.mlp.input")
    group = Group("", {0: torch.eye(width)}, torch.zeros(width), ReLU(), {0: torch.eye(width)})
    sae = Dictionary(kind="sae", sources=(site,), targets=(site,), groups=(group,), b_dec=(torch.zeros(width),))
    mask = token_mask(tokens, tl_models[0].tokenizer)
    (found,) = replacement_losses(Capture(sae, tl_models[:1]), tokens, mask)
    assert found.clean is None
    assert found.note == "not measured: transformer.h.1.mlp.input is no hook of its own in this model"
    assert found.lines() == [f"  loss with the reconstruction put into base: {found.note}"]


def test_nothing_is_predicted_from_rows_of_one_token(clt, tl_models):
    tokens = torch.full((3, 1), 5)
    mask = token_mask(tokens, tl_models[1].tokenizer)
    assert replacement_losses(Capture(clt, [tl_models[1]]), tokens, mask) == []


def test_gathering_measures_it_of_transcoders_and_keeps_it(clt, tl_models, tokens, tmp_path, crosscoder_dir):
    made = gather(clt, tl_models[1], tokens, [1, 2], out=tmp_path / "store")
    (losses,) = made.fidelity.losses
    assert losses.clean is not None
    assert open_store(tmp_path / "store").fidelity.losses == [losses]
    assert Fidelity.from_dict(made.fidelity.as_dict()) == made.fidelity
    text = "\n".join(made.fidelity.lines())
    assert f"loss {losses.clean:.3f} of tuned on {losses.n_tokens} tokens; with the reconstruction put in:" in text
    assert "all together" in text
    assert gather(load_dictionary(crosscoder_dir), tl_models, tokens, [1]).fidelity.losses == []


def test_a_store_from_before_opens_and_nonsense_is_refused(clt, tl_models, tokens, tmp_path):
    gather(clt, tl_models[1], tokens, [1, 2], out=tmp_path / "store")
    path = tmp_path / "store" / "manifest.json"
    content = json.loads(path.read_text())
    kept = content.pop("losses")
    path.write_text(json.dumps(content))
    assert open_store(tmp_path / "store").fidelity.losses == []
    (good,) = kept
    wrong = (
        [{"model": 3}], [good | {"clean": "3"}], [good | {"sites": [{"label": "x"}]}], {"a": 1}, [good | {"sites": {}}],
        [good | {"n_tokens": 0}], [good | {"n_tokens": "9"}], [good | {"clean": 10**400}], [good | {"clean": 1e7}],
    )  # fmt: skip
    for bad in wrong:
        path.write_text(json.dumps(content | {"losses": bad}))
        with pytest.raises(ValueError, match=r"manifest\.json is damaged: 'losses' is"):
            open_store(tmp_path / "store")


def test_merged_gatherings_have_the_mean_over_all_tokens(clt, tl_models, tokens):
    parts = [gather(clt, tl_models[1], rows, [1]) for rows in (tokens[:4], tokens[4:])]
    (merged,), (a,), (b,) = merge(parts).fidelity.losses, parts[0].fidelity.losses, parts[1].fidelity.losses
    n = a.n_tokens + b.n_tokens
    assert a.clean is not None
    assert b.clean is not None
    assert merged.n_tokens == n
    assert merged.clean == pytest.approx((a.clean * a.n_tokens + b.clean * b.n_tokens) / n)
    for i, site in enumerate(merged.sites):
        assert site.loss == pytest.approx((a.sites[i].loss * a.n_tokens + b.sites[i].loss * b.n_tokens) / n)


def test_recovered_is_nothing_where_the_site_is_worth_nothing():
    assert SiteLoss("x", 3.0, 2.0).recovered(2.0) is None
    assert SiteLoss("x", 2.5, 4.0).recovered(2.0) == pytest.approx(0.75)
    lines = ReplacementLoss("m", 2.0, 5, [SiteLoss("x", 3.0, 2.0)]).lines()
    assert "what the site is worth cannot be told" in lines[1]
    assert SiteLoss("x", 2.5, 4.0, error=1.1).recovered(2.0) is None


# Shares of the layers


def test_shares_of_layers_are_those_of_the_effect_and_add_up(clt, hf_models, tl_models, tokens):
    data = SaeVisData.create(clt, tl_models[1], tokens, SaeVisConfig(features=list(range(clt.n_features))))
    hf = hf_models[1]
    gain = hf.transformer.ln_f.weight.detach()
    W_U = hf.lm_head.weight.detach().T

    def logits(direction):
        out = ((direction - direction.mean()) * gain) @ W_U
        return out - out.mean()

    for feature, panel in data.panels.items():
        assert panel.geometry is not None
        parts = [logits(clt.decoder(torch.tensor([feature]), t)[0]) for t in panel.geometry.targets]
        whole = torch.stack(parts).sum(0)
        want = [float(part @ whole / (whole @ whole)) for part in parts]
        if len(parts) == 1:
            assert [lens and lens.share for lens in panel.lens] == [None]
            continue
        got = [lens.share if lens and lens.share else 0.0 for lens in panel.lens]
        assert sum(got) == pytest.approx(1, abs=2e-3)
        assert got == pytest.approx(want, abs=2e-3)


def test_no_shares_where_an_effect_is_no_sum(tmp_path, tl_models, tokens):
    """A later place of the residual stream holds the earlier one's part already."""
    dictionary = load_dictionary(write_crosscoder(tmp_path / "c"))
    hooks = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
    sites = tuple(replace(site, model=0, hook=hook) for site, hook in zip(dictionary.sources, hooks, strict=True))
    data = SaeVisData.create(
        replace(dictionary, sources=sites, targets=sites), tl_models[0], tokens, SaeVisConfig(features=[3])
    )
    assert [lens and lens.share for lens in data.panels[3].lens] == [None, None]


def test_it_can_be_asked_for_and_left_out(clt, tl_models, tokens, crosscoder_dir):
    crosscoder = load_dictionary(crosscoder_dir)
    data = SaeVisData.create(crosscoder, tl_models, tokens, SaeVisConfig(features=[3]), replacement=True)
    assert data.page.fidelity is not None
    assert [one["model"] for one in data.page.fidelity["losses"]] == ["base", "tuned"]
    data = SaeVisData.create(clt, tl_models[1], tokens, SaeVisConfig(features=[3]), replacement=False)
    assert data.page.fidelity is not None
    assert data.page.fidelity["losses"] == []


def test_options_of_the_command(clt_dir, models_dir, tokens, tmp_path):
    np.save(tmp_path / "tokens.npy", tokens.numpy())
    common = ["--model", models_dir / "tuned", "--dictionary", clt_dir, "--tokens", tmp_path / "tokens.npy"]

    def run(*arguments: object):
        return CliRunner().invoke(app, [str(one) for one in arguments])

    out = run("render", *common, "--layer", 2, "--features", "top:3", "--out", tmp_path / "page.html")
    assert out.exit_code == 0, out.output
    assert "all together" in out.output
    head, _ = read_page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(head["features"]["id"]) == 3
    assert all(40 <= feature < 60 for feature in head["features"]["id"])
    out = run("gather", *common, "--layer", 1, "--no-replacement", "--out", tmp_path / "store")
    assert out.exit_code == 0, out.output
    assert "reconstruction put in" not in out.output
    out = run("render", "--store", tmp_path / "store", "--layer", 1, "--features", "0,2", "--out", tmp_path / "b.html")
    assert out.exit_code == 0, out.output
    head, _ = read_page((tmp_path / "b.html").read_text(encoding="utf-8"))
    assert head["features"]["id"] == [20, 22]
    out = run("render", "--store", tmp_path / "store", "--no-replacement", "--out", tmp_path / "c.html")
    assert out.exit_code == 2
    assert "--no-replacement cannot be changed now" in out.output
    out = run("render", "--store", tmp_path / "store", "--layer", 2, "--features", "all", "--out", tmp_path / "c.html")
    assert out.exit_code == 2
    assert "no feature of layer 2 is there" in out.output


# What an independent review found


def test_numbers_that_overflow_are_said_and_the_store_opens(clt, models_dir, tokens, tmp_path):
    huge = replace(clt, b_dec=tuple(torch.full_like(bias, 1e6) for bias in clt.b_dec))
    half = load_model(models_dir / "tuned", dtype=torch.float16)
    acts = gather(huge, half, tokens, [1], out=tmp_path / "store")
    (losses,) = acts.fidelity.losses
    assert losses.clean is None
    assert losses.note.startswith("not measured: with the reconstruction put in the model's numbers overflow")
    assert open_store(tmp_path / "store").fidelity.losses == [losses]


@pytest.mark.parametrize("fitting", [5, 1])
def test_where_memory_does_not_suffice_fewer_sequences_are_taken(clt, tl_models, tokens, monkeypatch, fitting):
    capture, mask = Capture(clt, [tl_models[1]]), token_mask(tokens, tl_models[1].tokenizer)
    whole = replacement_losses(capture, tokens, mask, 10**6)
    before, sizes = replacement._Run._nats, []

    def small(self, logits, ids):
        sizes.append(len(logits))
        if len(logits) > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return before(self, logits, ids)

    monkeypatch.setattr(replacement._Run, "_nats", small)
    (found,) = replacement_losses(capture, tokens, mask, 10**6)
    assert max(sizes) == len(tokens)
    assert found.n_tokens == whole[0].n_tokens
    assert found.together is not None
    assert whole[0].together is not None
    assert found.together.loss == pytest.approx(whole[0].together.loss, abs=1e-6)


def test_no_memory_at_all_is_a_note_and_no_end(clt, tl_models, tokens, monkeypatch, tmp_path):
    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(replacement._Run, "_nats", never)
    (found,) = gather(clt, tl_models[1], tokens, [1], out=tmp_path / "store").fidelity.losses
    assert found.note == "not measured: memory did not suffice"
    assert open_store(tmp_path / "store").fidelity.losses == [found]


def test_a_later_source_reads_what_was_put_in_at_the_very_hook(tl_models, tokens):
    """`blocks.0.hook_resid_post` and `blocks.1.hook_resid_pre` are one tensor by two names."""
    generator, width = torch.Generator().manual_seed(1), 16

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    W_enc, W_dec = [normal(width, 20) for _ in range(2)], [0.2 * normal(20, width) for _ in range(2)]

    def chain(name: str) -> Dictionary:
        sources = (Site(0, "blocks.0.hook_resid_pre", width, "none"), Site(0, name, width, "none"))
        targets = tuple(Site(0, f"blocks.{i}.hook_resid_post", width, "none") for i in range(2))
        groups = tuple(Group(f"L{i}", {i: W_enc[i]}, torch.zeros(20), ReLU(), {i: W_dec[i]}) for i in range(2))
        zero = torch.zeros(width)
        return Dictionary(kind="plt", sources=sources, targets=targets, groups=groups, b_dec=(zero, zero), name="c")

    mask = token_mask(tokens, None, "none")
    found = [
        replacement_losses(Capture(chain(name), tl_models[:1]), tokens, mask, 10**6)[0].together
        for name in ("blocks.1.hook_resid_pre", "blocks.0.hook_resid_post")
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].loss == pytest.approx(found[1].loss, abs=1e-6)


def test_the_first_token_of_another_document_is_not_predicted(clt, tl_models, tokens):
    documents = torch.zeros_like(tokens)
    documents[:, 10:] = 1
    capture, tokenizer = Capture(clt, [tl_models[1]]), tl_models[1].tokenizer
    (whole,) = replacement_losses(capture, tokens, token_mask(tokens, tokenizer), 10**6)
    (parted,) = replacement_losses(capture, tokens, token_mask(tokens, tokenizer, documents=documents), 10**6)
    assert parted.n_tokens == whole.n_tokens - len(tokens)


def test_what_a_gathering_was_not_asked_for_can_be_added(clt, tl_models, tokens, tmp_path):
    assert gather(clt, tl_models[1], tokens, [1], out=tmp_path / "s", replacement=False).fidelity.losses == []
    assert gather(clt, tl_models[1], tokens, [1], out=tmp_path / "s").fidelity.losses == []  # nothing is run again
    assert gather(clt, tl_models[1], tokens, [1], out=tmp_path / "s", replacement=True).fidelity.losses
    crosscoder = replace(clt, kind="crosscoder")
    assert gather(crosscoder, tl_models[1], tokens, [1], out=tmp_path / "c").fidelity.losses == []
    (found,) = gather(crosscoder, tl_models[1], tokens, [1], out=tmp_path / "c", replacement=True).fidelity.losses
    assert open_store(tmp_path / "c").fidelity.losses == [found]


@pytest.mark.parametrize("bad", [5, None, [{"model": 1}], [{"n_tokens": "<b>"}], "share"])
def test_losses_and_shares_of_a_strangers_json(clt, tl_models, tokens, tmp_path, bad):
    SaeVisData.create(clt, tl_models[1], tokens, SaeVisConfig(features=[1])).save_json(tmp_path / "data.json")
    content = json.loads((tmp_path / "data.json").read_text())
    own = content["crossvis_tl"]
    if bad == "share":
        own["panels"]["1"]["lens"][0]["share"] = "<img src=x>"
    elif isinstance(bad, list):
        own["page"]["fidelity"]["losses"][0] |= bad[0]
    else:
        own["page"]["fidelity"]["losses"] = bad
    (tmp_path / "data.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"data\.json is damaged"):
        SaeVisData.load_json(tmp_path / "data.json")
