"""From checkpoints to the browser: what the page shows is what the dictionary, the models and the tokens give."""

import pytest
import sae_vis
import torch

from crossvis_tl import SaeVisData, load_dictionary
from crossvis_tl.page_data import feature_page, prompt_page
from crossvis_tl.prompts import gather_prompts

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture
def crosscoder_data(crosscoder_dir, tl_models, tokens):
    cfg = sae_vis.SaeVisConfig(features=[3, 12, 30])
    return SaeVisData.create(load_dictionary(crosscoder_dir), tl_models, tokens, cfg)


def number(page, selector: str) -> float:
    text = page.locator(selector).first.inner_text()
    return float(text.replace("−", "-").replace("%", "").replace("+", "").replace(",", ""))


def test_a_crosscoders_page(crosscoder_data, crosscoder_dir, tl_models, tokens, open_page):
    head, payloads = feature_page(crosscoder_data, 12)
    page = open_page(head, list(payloads))
    dictionary = load_dictionary(crosscoder_dir)
    x = [m.run_with_cache(tokens)[1][HOOK][:, 1:].flatten(0, 1) for m in tl_models]
    acts = dictionary.encode(x)
    assert "Implausible" in page.locator("body").inner_text()
    for feature in (12, 30, 3):
        if feature != 12:
            page.evaluate(f"location.hash = 'f={feature}'")
            page.wait_for_selector(f"[data-feature-id='{feature}']")
        assert number(page, "[data-field='density']") == pytest.approx(
            100 * (acts[:, feature] > 0).float().mean().item(), abs=6e-3
        )
        assert number(page, "[data-field='max']") == pytest.approx(acts[:, feature].max().item(), abs=6e-4)
        norms = [dictionary.decoder(torch.tensor([feature]), t).norm().item() for t in range(2)]
        shown = [number(page, f"[data-site-norm='{t}']") for t in range(2)]
        assert shown == pytest.approx(norms, abs=6e-4)
        assert number(page, "[data-field='relative-norm']") == pytest.approx(norms[1] / sum(norms), abs=6e-4)
        assert page.locator("[data-panel='LogitsTable']").inner_text().count("tuned") >= 1


def test_a_token_shows_its_activation_and_effects_under_each_model(crosscoder_data, open_page):
    head, payloads = feature_page(crosscoder_data, 12)
    page = open_page(head, list(payloads))
    sequence = crosscoder_data.feature_data_dict[12].sequence_data.seq_group_data[0].seq_data[0]
    record = crosscoder_data.panels[12].sequences[0][0]
    token = page.locator("[data-panel='Sequences'] [data-token]").nth(record.bold)
    assert float(token.get_attribute("data-act")) == pytest.approx(sequence.feat_acts[record.bold], rel=1e-3)
    after = page.locator("[data-panel='Sequences'] [data-token]").nth(record.bold + 1)
    after.hover()
    tooltip = page.locator("[role='tooltip']").inner_text().replace("−", "-")
    for m in (0, 1):
        loss = record.effects[m].loss[record.bold + 1]
        assert f"{abs(loss):.3f}"[:4] in tooltip
    assert "base" in tooltip
    assert "tuned" in tooltip


def test_a_clts_page_names_its_layers(clt_dir, tl_models, tokens, open_page):
    data = SaeVisData.create(load_dictionary(clt_dir), tl_models[1], tokens, sae_vis.SaeVisConfig(features=[25, 45]))
    head, payloads = feature_page(data, None)
    page = open_page(head, list(payloads))
    assert "L1F5" in page.locator("main article").inner_text()
    assert page.locator("[data-site-norm]").count() == 2
    page.keyboard.press("j")
    page.wait_for_selector("[data-feature-id='45']")
    assert page.locator("[data-site-norm]").count() == 1


def test_a_prompts_page(crosscoder_data, tl_models, open_page):
    from crossvis_tl.capture import Capture

    prompt = "HELLO!"
    capture = Capture(crosscoder_data.encoder, tl_models)
    prompts = gather_prompts(crosscoder_data, capture, [prompt], "act_size", None, 10)
    shown = prompts.each[0]
    assert shown.tokens[0] == 0
    x = [m.run_with_cache(torch.tensor([shown.tokens]))[1][HOOK][0] for m in tl_models]
    acts = crosscoder_data.encoder.encode(x)
    acts[0] = 0
    for position, rows in enumerate(shown.scores["act_size"][0]):
        expected = {f: f"{acts[position, f].item():.3f}" for f in (3, 12, 30) if acts[position, f] > 0}
        assert dict(rows) == expected
    head, payloads = prompt_page(crosscoder_data, prompts)
    page = open_page(head, list(payloads))
    page.wait_for_selector("main article")
    best, score = shown.scores["act_size"][0][shown.position][0]
    assert f"#{best}" in page.locator("main").inner_text()
    assert score in page.locator("main").inner_text()
