"""Tokens left out for the norm of their activations: which, of what, and that a store keeps to them; and token sets
that say themselves what of them does not count."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import crossvis_tl.gathering
from crossvis_tl import SaeVisConfig, SaeVisData, high_norm, load_dictionary, open_store
from crossvis_tl.capture import Capture
from crossvis_tl.cli import app
from crossvis_tl.high_norm import without_high_norms
from crossvis_tl.masking import set_mask, token_mask
from crossvis_tl.store import merge_acts
from crossvis_tl.tokens import TokenSet, load_token_set
from tests.conftest import N_CTX, tiny_tokenizer, write_clt, write_crosscoder

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
HOOK = "blocks.1.hook_resid_post"
MULTIPLE = 1.15
WORDS = f"activations of more than {MULTIPLE} times the median norm"


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory):
    return load_dictionary(write_crosscoder(tmp_path_factory.mktemp("dictionary") / "crosscoder"))


@pytest.fixture(scope="module")
def capture(dictionary, tl_models):
    return Capture(dictionary, tl_models)


@pytest.fixture(scope="module")
def norms(tl_models, tokens) -> torch.Tensor:
    """[models, rows, positions], straight from the definition."""
    caches = [model.run_with_cache(tokens, names_filter=HOOK)[1] for model in tl_models]
    return torch.stack([cache[HOOK].norm(dim=-1) for cache in caches])


@pytest.fixture(scope="module")
def expected(norms, tokens) -> torch.Tensor:
    """Which tokens count: all but BOS, and but those that one model finds large."""
    counted = tokens != 0
    high = torch.zeros_like(counted)
    for one in norms:
        ordered = one[counted].sort().values
        high |= one > MULTIPLE * ordered[(len(ordered) - 1) // 2]
    assert 0 < int((high & counted).sum()) < int(counted.sum())
    return counted & ~high


def plain_mask(tl_models, tokens):
    return token_mask(tokens, tl_models[0].tokenizer)


def test_tokens_of_high_norm_at_any_source_do_not_count(capture, tl_models, tokens, expected):
    before = plain_mask(tl_models, tokens)
    mask = without_high_norms(capture, tokens, before, MULTIPLE)
    assert torch.equal(mask.counted, expected)
    left_out = int((before.counted & ~expected).sum())
    assert mask.masked == (*before.masked, (WORDS, left_out))
    assert json.loads(mask.how) == {**json.loads(before.how), "high_norm": MULTIPLE}
    for name in ("lead", "tail", "documents"):
        assert torch.equal(getattr(mask, name), getattr(before, name))


def test_none_leaves_the_mask_as_it_is(capture, tl_models, tokens):
    before = plain_mask(tl_models, tokens)
    assert without_high_norms(capture, tokens, before, None) is before
    high = without_high_norms(capture, tokens, before, 1e6)
    assert torch.equal(high.counted, before.counted)
    assert high.masked[-1][1] == 0


def test_tokens_that_do_not_count_do_not_move_the_median(capture, tl_models, tokens, norms):
    """BOS is the token with the highest norm in most models; SAEDashboard's median has it."""
    positions = list(range(5))
    before = token_mask(tokens, tl_models[0].tokenizer, masked_positions=positions)
    mask = without_high_norms(capture, tokens, before, MULTIPLE)
    medians = norms[:, :, 5:].flatten(1).median(-1).values
    high = (norms > MULTIPLE * medians[:, None, None]).any(0)
    assert torch.equal(mask.counted, before.counted & ~high)


@pytest.mark.parametrize("at_a_time", [1, N_CTX * 5, 10**6])
def test_batches_do_not_matter(capture, tl_models, tokens, expected, monkeypatch, at_a_time):
    monkeypatch.setattr(high_norm, "TOKENS_AT_A_TIME", at_a_time)
    assert torch.equal(without_high_norms(capture, tokens, plain_mask(tl_models, tokens), MULTIPLE).counted, expected)


def test_out_of_memory_fewer_sequences_are_run_at_a_time(capture, tl_models, tokens, expected, monkeypatch):
    run, sizes = Capture.run, []

    def limited(self, rows, **options):
        sizes.append(len(rows))
        if len(rows) > 3:
            raise RuntimeError("CUDA out of memory")
        return run(self, rows, **options)

    monkeypatch.setattr(Capture, "run", limited)
    assert torch.equal(without_high_norms(capture, tokens, plain_mask(tl_models, tokens), MULTIPLE).counted, expected)
    assert sizes == [12, 6, 3, 3, 3, 3]


def test_padding_before_a_row_changes_no_norm(capture, tokens):
    tokenizer = SimpleNamespace(bos_token_id=0, pad_token_id=59)
    rows = tokens[:4].clone()
    rows[rows == 59] = 7
    rows = rows[:, :-3]
    padded = torch.cat([torch.full((4, 3), 59), rows], dim=1)
    plain = without_high_norms(capture, rows, token_mask(rows, tokenizer), MULTIPLE)
    mask = without_high_norms(capture, padded, token_mask(padded, tokenizer), MULTIPLE)
    assert torch.equal(mask.counted[:, 3:], plain.counted)
    assert not mask.counted[:, :3].any()


@pytest.mark.parametrize("n_sources", [1, 3])
def test_every_source_of_a_transcoder_is_read_and_no_layer_beyond_the_last(
    tmp_path, tl_models, tokens, monkeypatch, n_sources
):
    clt = load_dictionary(write_clt(tmp_path / "clt"))
    capture = Capture(clt, [tl_models[1]])
    capture.dictionary = replace(capture.dictionary, sources=capture.dictionary.sources[:n_sources])
    names = [f"blocks.{layer}.hook_resid_mid" for layer in range(n_sources)]
    cache = tl_models[1].run_with_cache(tokens, names_filter=lambda name: name in names)[1]
    run, ends = tl_models[1].run_with_hooks, []

    def spied(*args, stop_at_layer, **options):
        ends.append(stop_at_layer)
        return run(*args, stop_at_layer=stop_at_layer, **options)

    monkeypatch.setattr(tl_models[1], "run_with_hooks", spied)
    norms = high_norm.source_norms(capture, tokens, plain_mask(tl_models, tokens))
    assert torch.allclose(norms, torch.stack([cache[name].norm(dim=-1) for name in names]), rtol=1e-5)
    assert set(ends) == {n_sources}


def create(dictionary, tl_models, tokens, **options) -> SaeVisData:
    cfg = options.pop("cfg", None) or SaeVisConfig(features=range(12), minibatch_size_tokens=3)
    return SaeVisData.create(dictionary, tl_models, tokens, cfg, effect="none", **options)


def test_every_statistic_and_example_is_of_tokens_that_count(dictionary, tl_models, tokens, expected):
    data = create(dictionary, tl_models, tokens, high_norm_multiple=MULTIPLE)
    sources = [model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK] for model in tl_models]
    acts = dictionary.encode(sources)[..., :12]
    counted = acts[expected]
    for feature, panel in data.panels.items():
        assert panel.maximum == pytest.approx(counted[:, feature].max().item(), rel=1e-3, abs=1e-4)
        fires = (counted[:, feature] > 0).float().mean().item()
        title = data.feature_data_dict[feature].acts_histogram_data.title
        assert title.endswith(f"{fires:.3%}" if fires else "NEVER FIRED")
        bold = [(one.row, one.position) for group in panel.sequences for one in group]
        assert bold or not fires
        assert all(expected[row, position] for row, position in bold)
    facts = dict(data.page.facts)
    assert WORDS in facts["masked"]
    assert facts["tokens"].startswith(f"{int(expected.sum())} counted")


def test_a_config_says_it_too_and_an_argument_goes_before_it(dictionary, tl_models, tokens, expected):
    cfg = SaeVisConfig(features=[1], high_norm_multiple=MULTIPLE)
    assert f"{int(expected.sum())} counted" in dict(create(dictionary, tl_models, tokens, cfg=cfg).page.facts)["tokens"]
    facts = dict(create(dictionary, tl_models, tokens, cfg=cfg, high_norm_multiple=1e6).page.facts)
    assert f"{int((tokens != 0).sum())} counted" in facts["tokens"]


@pytest.mark.parametrize("multiple", [1, 0.5, 0, -3, float("nan"), float("inf"), "10", True])
def test_what_is_no_multiple_is_refused(dictionary, tl_models, tokens, multiple):
    with pytest.raises(ValueError, match=r"high_norm_multiple is .*; expected a number above 1, such as 10"):
        create(dictionary, tl_models, tokens, high_norm_multiple=multiple)


def test_nothing_left_is_an_error(capture, tl_models, monkeypatch):
    rows = torch.tensor([[0, 5, 6]])
    norms = torch.tensor([[[1.0, 1.0, 9.0]], [[1.0, 9.0, 1.0]]])
    monkeypatch.setattr(high_norm, "source_norms", lambda *_, **__: norms)
    with pytest.raises(ValueError, match=r"more than 2 times the median norm \(2 tokens\); nothing is left"):
        without_high_norms(capture, rows, plain_mask(tl_models, rows), 2)


# Stores


def no_norms(patch) -> None:
    def measured(*_, **__):
        raise AssertionError("norms were measured again")

    patch.setattr(high_norm, "source_norms", measured)


def many_parts(patch) -> None:
    patch.setattr(crossvis_tl.gathering, "PART_TOKENS", 2 * N_CTX)
    patch.setattr(crossvis_tl.gathering, "MOST_PARTS", 10**9)


def test_a_gathering_that_was_stopped_goes_on_and_ends_the_same(
    tmp_path, dictionary, tl_models, tokens, expected, monkeypatch
):
    many_parts(monkeypatch)
    options = {"high_norm_multiple": MULTIPLE, "cfg": SaeVisConfig(features=range(12), minibatch_size_tokens=1)}
    create(dictionary, tl_models, tokens, store=tmp_path / "whole", **options)
    calls, run = [], Capture.run

    def stops(self, rows, **more):
        calls.append(len(rows))
        if len(calls) == 10:
            raise KeyboardInterrupt
        return run(self, rows, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Capture, "run", stops)
        with pytest.raises(KeyboardInterrupt, match="holds the first"):
            create(dictionary, tl_models, tokens, store=tmp_path / "store", **options)
    with monkeypatch.context() as patch:
        no_norms(patch)
        create(dictionary, tl_models, tokens, store=tmp_path / "store", **options)
    got, want = open_store(tmp_path / "store"), open_store(tmp_path / "whole")
    assert torch.equal(got.counted, expected)
    assert got.manifest == want.manifest
    assert all(torch.equal(got.sums[name], want.sums[name]) for name in want.sums)
    for i in range(12):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(got.of(i), want.of(i), strict=True))


@pytest.mark.parametrize("what", ["multiple", "none", "tokens", "positions", "documents"])
def test_a_folder_of_another_gathering_is_refused_before_anything_is_run(
    tmp_path, dictionary, tl_models, tokens, monkeypatch, what
):
    given = {"tokens": tokens, "high_norm_multiple": MULTIPLE}
    change = {
        "multiple": {"high_norm_multiple": 1.2},
        "none": {"high_norm_multiple": None},
        "tokens": {"tokens": tokens.flip(0)},
        "positions": {"masked_positions": [3]},
        "documents": {"documents": torch.arange(12) // 2},
    }[what]
    create(dictionary, tl_models, **given, store=tmp_path / "store")
    no_norms(monkeypatch)
    create(dictionary, tl_models, **given, store=tmp_path / "store")
    with pytest.raises(ValueError, match="other tokens" if what == "tokens" else "another mask or other documents"):
        create(dictionary, tl_models, **(given | change), store=tmp_path / "store")


def test_a_folder_that_is_none_is_refused_before_anything_is_run(tmp_path, dictionary, tl_models, tokens, monkeypatch):
    no_norms(monkeypatch)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is no store"):
        create(dictionary, tl_models, tokens, high_norm_multiple=MULTIPLE, store=tmp_path)


def test_a_store_is_opened_again_as_it_was_asked_for(tmp_path, dictionary, tl_models, tokens):
    create(dictionary, tl_models, tokens, high_norm_multiple=MULTIPLE, store=tmp_path / "store")
    for said in (None, MULTIPLE):
        cfg = SaeVisConfig(features=[1, 2], high_norm_multiple=said)
        data = SaeVisData.from_store(tmp_path / "store", dictionary, cfg, model=tl_models, tokens=tokens)
        assert WORDS in dict(data.page.facts)["masked"]
    with pytest.raises(ValueError, match=r"cfg.high_norm_multiple is 3, but \S+ has 1.15, which is settled"):
        SaeVisData.from_store(tmp_path / "store", dictionary, SaeVisConfig(features=[1], high_norm_multiple=3))
    create(dictionary, tl_models, tokens, store=tmp_path / "plain")
    with pytest.raises(ValueError, match=r"cfg.high_norm_multiple is 3, but \S+ has None, which is settled"):
        SaeVisData.from_store(tmp_path / "plain", dictionary, SaeVisConfig(features=[1], high_norm_multiple=3))


def test_shards_are_merged_each_by_its_own_medians(tmp_path, dictionary, tl_models, tokens):
    shards = []
    for name, rows in (("a", tokens[:7]), ("b", tokens[7:])):
        create(dictionary, tl_models, rows, high_norm_multiple=MULTIPLE, store=tmp_path / name)
        shards.append(open_store(tmp_path / name))
    merged = merge_acts(shards)
    assert merged.mask.masked[-1] == (WORDS, sum(shard.mask.masked[-1][1] for shard in shards))
    create(dictionary, tl_models, tokens[7:], high_norm_multiple=2, store=tmp_path / "other")
    with pytest.raises(ValueError, match="another mask"):
        merge_acts([shards[0], open_store(tmp_path / "other")])


def test_prompts_are_masked_by_tokens_and_positions_only(tmp_path, dictionary, tl_models, tokens):
    """There is no median to compare a prompt's tokens to: what fires on them is shown."""
    data = create(dictionary, tl_models, tokens, high_norm_multiple=1.0001)
    plain = create(dictionary, tl_models, tokens)
    data.save_json(tmp_path / "data.json")
    again = SaeVisData.load_json(tmp_path / "data.json")
    for one in (data, plain):
        one.save_prompt_centric_vis("ABCDEFG", tmp_path / "prompts.html")
    shown = [[panel.prompts[0].acts for panel in one.panels.values()] for one in (data, plain)]
    assert shown[0] == shown[1]
    assert any(any(acts) for acts in shown[0])
    assert json.loads(again.masking)["high_norm"] == 1.0001


# Token sets that know their documents, and prefixes that do not count


def lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


TEXTS = ["THEQUICKBROWNFOX" * 3, "JUMPSOVER" * 4, "THELAZYDOG" * 2]


def test_a_token_set_is_taken_with_what_it_knows(tmp_path, dictionary, tl_models):
    given = load_token_set(
        lines(tmp_path / "t.jsonl", TEXTS), tiny_tokenizer(), 12, prefix="AB", suffix="C", count_affixes=False
    )
    data = create(dictionary, tl_models, given, store=tmp_path / "store")
    acts = open_store(tmp_path / "store")
    assert torch.equal(acts.mask.documents, given.documents)
    want = torch.ones_like(acts.counted)
    want[:, [0, 1, 2, 11]] = False
    want &= given.tokens != 0  # what stands between two texts at the end of a row is padding of this tokenizer
    tail = given.tokens == 0
    assert torch.equal(acts.counted | tail, want | tail)
    assert f"prefix and suffix ({3 * len(given.tokens)} tokens)" in dict(data.page.facts)["masked"]
    assert json.loads(acts.mask.how)["uncounted"] == [1, 2, -1]
    SaeVisData.from_store(tmp_path / "store", dictionary, SaeVisConfig(features=[1]), tokens=given)
    counted = create(dictionary, tl_models, TokenSet(given.tokens, given.documents))
    assert "prefix" not in dict(counted.page.facts)["masked"]


def test_bos_that_was_put_between_texts_does_not_count(tmp_path):
    tokenizer = tiny_tokenizer()
    given = load_token_set(lines(tmp_path / "t.jsonl", ["ABC", "DEFGHIJ", "KLMN"]), tokenizer, 6)
    a, b, c, d, e, f, g, h, i, j, k = tokenizer("ABCDEFGHIJK", add_special_tokens=False)["input_ids"]
    assert given.tokens.tolist() == [[0, a, b, c, 0, d], [0, e, f, g, h, i], [0, j, 0, k, k + 1, k + 2]]
    mask = set_mask(given, tokenizer)
    assert mask.counted.tolist() == [[False, *[True] * 3, False, True], [False, *[True] * 5],
                                     [False, True, False, *[True] * 3]]  # fmt: skip
    assert "BOS (3 tokens), padding (0 tokens), BOS between texts (2 tokens)" in mask.text
    assert json.loads(mask.how)["separator"] == 0
    assert set_mask(given, tokenizer, "none").counted.all()
    assert torch.equal(set_mask(given, tokenizer, "all special").counted, mask.counted)
    each = load_token_set(tmp_path / "t.jsonl", tokenizer, 4, packing="each")
    assert set_mask(each, tokenizer).how == token_mask(each.tokens, tokenizer).how
    own = TokenSet(torch.tensor([[0, 5, 0, 6]]), torch.tensor([[0, 0, 0, 0]]), separator=0)
    assert set_mask(own, tokenizer).counted.tolist() == [[False, True, True, True]]  # of the text, not put there


def test_positions_of_a_suffix_that_looks_like_padding_are_still_its_own():
    tokenizer = SimpleNamespace(bos_token_id=0, pad_token_id=59, eos_token_id=59)
    rows = torch.tensor([[0, 5, 6, 7, 59], [0, 8, 9, 10, 59]])
    mask = set_mask(TokenSet(rows, uncounted=(-1,)), tokenizer)
    assert mask.counted.tolist() == [[False, True, True, True, False]] * 2


def test_documents_that_a_file_knows_are_numbered_on_where_shards_are_merged(tmp_path, dictionary, tl_models):
    shards = []
    for name, texts in (("a", TEXTS[:2]), ("b", TEXTS[2:] + TEXTS[:1])):
        given = load_token_set(lines(tmp_path / f"{name}.jsonl", texts), tiny_tokenizer(), 10)
        create(dictionary, tl_models, given, store=tmp_path / name)
        shards.append(open_store(tmp_path / name))
    first, second = (shard.mask.documents for shard in shards)
    merged = merge_acts(shards).mask.documents
    assert torch.equal(merged, torch.cat([first, second + int(first.max()) + 1]))


def test_documents_go_with_the_sequences_that_are_taken(dictionary, tl_models, tokens, tmp_path):
    given = TokenSet(tokens, torch.arange(12)[:, None].expand(tokens.shape) // 2)
    cfg = SaeVisConfig(features=[1], batch_size=5)
    create(dictionary, tl_models, given, cfg=cfg, store=tmp_path / "store")
    acts = open_store(tmp_path / "store")
    assert acts.mask.documents[:, 0].tolist() == [0, 0, 1, 1, 2]
    SaeVisData.from_store(tmp_path / "store", dictionary, cfg, tokens=given)
    with pytest.raises(ValueError, match="other tokens"):
        SaeVisData.from_store(tmp_path / "store", dictionary, cfg, tokens=TokenSet(tokens.flip(0)))


# The command line


@pytest.fixture
def desk(tmp_path, models_dir, tokens):
    np.save(tmp_path / "tokens.npy", tokens.numpy())
    write_crosscoder(tmp_path / "crosscoder")
    lines(tmp_path / "t.jsonl", TEXTS)

    def crossvis(command, *words, tokens="tokens.npy"):
        models = ["--model", models_dir / "base", "--model", models_dir / "tuned", "--device", "cpu"]
        given = [command, *models, "--dictionary", tmp_path / "crosscoder", "--tokens", tmp_path / tokens, *words]
        return CliRunner().invoke(app, [str(word) for word in given])

    return crossvis


def shown(result, path) -> dict:
    assert result.exit_code == 0, result.output or repr(result.exception)
    return dict(SaeVisData.load_json(path).page.facts)


def test_the_command_line_takes_the_multiple(desk, tmp_path, expected, monkeypatch):
    out = ["--features", "0-5", "--out", tmp_path / "p.html", "--json", tmp_path / "d.json"]
    facts = shown(desk("render", *out, "--high-norm", MULTIPLE), tmp_path / "d.json")
    assert facts["tokens"].startswith(f"{int(expected.sum())} counted")
    assert WORDS in facts["masked"]
    assert WORDS in (tmp_path / "p.html").read_text()
    first = desk("gather", "--out", tmp_path / "store", "--high-norm", MULTIPLE)
    assert first.exit_code == 0, first.output
    assert torch.equal(open_store(tmp_path / "store").counted, expected)
    no_norms(monkeypatch)
    again = desk("gather", "--out", tmp_path / "store", "--high-norm", MULTIPLE)
    assert again.exit_code == 0, again.output
    other = desk("gather", "--out", tmp_path / "store", "--high-norm", 3)
    assert other.exit_code == 2
    assert "another mask" in other.stderr


@pytest.mark.parametrize("command", ["render", "gather"])
def test_the_command_line_takes_what_texts_need(desk, tmp_path, command):
    words = [
        "--context", 12, "--sequences", 4, "--prefix", "AB", "--suffix", "C", "--mask-affixes", "--column", "text",
        "--packing", "joined", "--bos", "--shuffle", "--seed", 7,
    ]  # fmt: skip
    given = load_token_set(
        tmp_path / "t.jsonl", tiny_tokenizer(), 12, n_sequences=4, prefix="AB", suffix="C", column="text",
        packing="joined", prepend_bos=True, shuffle=True, seed=7,
    )  # fmt: skip
    if command == "gather":
        result = desk("gather", *words, "--out", tmp_path / "store", tokens="t.jsonl")
        assert result.exit_code == 0, result.output or repr(result.exception)
        acts = open_store(tmp_path / "store")
        assert torch.equal(acts.tokens, given.tokens)
        assert torch.equal(acts.mask.documents, given.documents)
        assert not acts.counted[:, [0, 1, 2, 11]].any()
    else:
        files = ["--out", tmp_path / "p.html", "--json", tmp_path / "d.json", "--features", "0-3"]
        facts = shown(desk("render", *words, *files, tokens="t.jsonl"), tmp_path / "d.json")
        assert "in 4 sequences of 12" in facts["tokens"]
        assert "prefix and suffix (12 tokens)" in facts["masked"]


REFUSED = [
    (["--column", "txet"], "has no column 'txet', only text"),
    (["--packing", "join"], "packing='join'; expected"),
    (["--mask-affixes"], "--mask-affixes goes with --prefix or --suffix"),
    (["--split", "train"], "split= means nothing for"),
    (["--high-norm", "0.5"], "high_norm_multiple is 0.5"),
    (["--context", "4", "--prefix", "ABCD"], "prefix and suffix are 4 tokens long"),
]


@pytest.mark.parametrize(("words", "text"), REFUSED)
def test_the_command_line_refuses_in_one_line(desk, tmp_path, words, text):
    result = desk("gather", *words, "--out", tmp_path / "store", tokens="t.jsonl")
    assert result.exit_code == 2, result.output or repr(result.exception)
    assert text in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("words", "name"),
    [(["--high-norm", "3"], "--high-norm"), (["--no-bos"], "--no-bos"), (["--prefix", "A"], "--prefix"),
     (["--shuffle"], "--shuffle"), (["--split", "test"], "--split")],
)  # fmt: skip
def test_a_store_cannot_be_read_in_another_way(tmp_path, words, name):
    result = CliRunner().invoke(app, ["render", "--store", str(tmp_path), *words])
    assert result.exit_code == 2
    assert f"{name} cannot be changed now" in result.stderr
