"""Texts and ids as they come, and a run by SAEDashboard's own settings over them: packing held against a plain
reference, features against HuggingFace's hooks and sae_lens' own code."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sae_lens import SkipTranscoder, SkipTranscoderConfig, StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from tokenizers.processors import TemplateProcessing

from crossvis_tl import NeuronpediaRunner, NeuronpediaRunnerConfig, gather, load_dictionary, load_token_set
from tests.conftest import D_MODEL, N_CTX, N_LAYERS, VOCABULARY, tiny_tokenizer, write_clt
from tests.test_clt_blind import invoke
from tests.test_sae_dashboard_clt import FEATURES, HF, TL, encoded
from tests.test_sae_dashboard_clt import write as write_dashboard_clt

pytestmark = pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
WIDTH, CONTEXT, BOS = 9, 12, 0
LETTERS = [chr(33 + i) for i in range(50)]


# Texts and ids


def ids_of(text: str) -> list[int]:
    return tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]


def packed(texts, context: int, *, packing: str, bos: bool) -> list[list[int]]:
    """What sequences are, said plainly. Joined: BOS begins each, and stands between two texts within it; the last
    tokens that fill no sequence are dropped. Each: the beginning of every text that is long enough."""
    documents = [ids_of(text) for text in texts if text]
    if packing == "each":
        rows = [[BOS] * bos + ids for ids in documents]
        return [row[:context] for row in rows if len(row) >= context]
    stream: list[int] = []
    rows: list[list[int]] = []
    row: list[int] = [BOS] * bos
    for number, ids in enumerate(documents):
        stream = ([BOS] if number else []) + ids
        for token in stream:
            if len(row) == context:
                rows.append(row)
                row = [BOS] * bos
            if token == BOS and row == [BOS] * bos:
                continue  # between two sequences nothing need stand between two texts
            row.append(token)
    return rows + ([row] if len(row) == context else [])


TEXT = st.text(st.sampled_from(LETTERS), max_size=25)
QUIET = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUIET
@given(st.lists(TEXT, min_size=1, max_size=8), st.integers(3, 12), st.sampled_from(["joined", "each"]), st.booleans())
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_random_texts_are_packed_as_said(tmp_path, kind, texts, context, packing, bos):
    path = tmp_path / f"t.{kind}"
    withs = [None, *texts, None]
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps({"text": text}) for text in withs) + "\n\n")
    else:
        pq.write_table(pa.table({"text": pa.array(withs, pa.string())}), path, row_group_size=3)
    want = packed(texts, context, packing=packing, bos=bos)
    if not want:
        return  # what is too short for one sequence is a matter of its own
    got = load_token_set(path, tiny_tokenizer(), context, packing=packing, prepend_bos=bos)
    assert got.tokens.tolist() == want
    assert got.documents is not None
    assert got.documents.shape == got.tokens.shape
    # each token is of the document that its number says, among those that are not empty
    spoken = [ids_of(text) for text in texts if text]
    numbers = sorted(set(got.documents.flatten().tolist()))
    for number in numbers:
        own = [t for t, d in zip(got.tokens.flatten(), got.documents.flatten(), strict=True) if d == number]
        kept = [int(t) for t in own if t != BOS]
        assert kept == spoken[number][: len(kept)] or number >= len(spoken)


@QUIET
@given(st.lists(TEXT.filter(lambda text: len(text) > 6), min_size=1, max_size=6), st.data())
def test_affixes_stand_in_every_sequence_and_cost_their_length(tmp_path, texts, data):
    prefix = data.draw(st.text(st.sampled_from(LETTERS), max_size=3))
    suffix = data.draw(st.text(st.sampled_from(LETTERS), max_size=2))
    bos, packing = data.draw(st.booleans()), data.draw(st.sampled_from(["joined", "each"]))
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(text) for text in texts))
    context = 6
    want = packed(texts, context, packing=packing, bos=bos)
    if not want:
        return
    got = load_token_set(
        tmp_path / "t.jsonl", tiny_tokenizer(), context + len(prefix) + len(suffix), prefix=prefix, suffix=suffix,
        packing=packing, prepend_bos=bos, count_affixes=False,
    )  # fmt: skip
    first, before, after = int(bos), ids_of(prefix), ids_of(suffix)
    assert got.tokens.tolist() == [row[:first] + before + row[first:] + after for row in want]
    n = got.tokens.shape[1]
    hidden = {position % n for position in got.uncounted}
    assert hidden == {*range(first, first + len(before)), *range(n - len(after), n)}


@pytest.mark.parametrize("packing", ["joined", "each"])
@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize(("prefix", "suffix"), [("", ""), ("A", ""), ("A", "B")])
def test_a_tokenizer_that_adds_bos_by_itself_does_not_double_it(tmp_path, packing, bos, prefix, suffix):
    tokenizer = tiny_tokenizer()
    end = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{end} $A", special_tokens=[(end, BOS)])
    assert tokenizer("AB")["input_ids"][0] == BOS
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(text) for text in ("ABCDEFGH", "IJK", "LMNOPQRSTUVW")))
    options = {"packing": packing, "prepend_bos": bos, "prefix": prefix, "suffix": suffix}
    got = load_token_set(tmp_path / "t.jsonl", tokenizer, 6, **options)
    assert torch.equal(got.tokens, load_token_set(tmp_path / "t.jsonl", tiny_tokenizer(), 6, **options).tokens)


def test_a_text_exactly_as_long_as_the_context_is_kept_and_one_shorter_is_not(tmp_path):
    texts = [letters * n for letters, n in (("A", 5), ("B", 4), ("C", 6), ("D", 0))]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    got = load_token_set(tmp_path / "t.jsonl", tiny_tokenizer(), 6, packing="each")
    assert got.tokens.tolist() == [[BOS, *ids_of("AAAAA")], [BOS, *ids_of("CCCCC")]]
    with pytest.raises(ValueError, match=r"8 tokens long, the longest 7"):
        load_token_set(tmp_path / "t.jsonl", tiny_tokenizer(), 8, packing="each")


def test_bos_between_joined_texts_does_not_count_and_documents_are_theirs(tmp_path, tl_models):
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(text) for text in ("ABCDEFGH", "IJK", "LMNOPQRSTUVW")))
    tokens = load_token_set(tmp_path / "t.jsonl", tiny_tokenizer(), 6)
    dictionary = load_dictionary(write_clt(tmp_path / "clt", WIDTH), processing="none")
    acts = gather(dictionary, tl_models[1], tokens)
    assert torch.equal(acts.mask.counted, tokens.tokens != BOS)
    assert torch.equal(acts.mask.documents, tokens.documents)


@pytest.mark.parametrize("multiple", [1.0001, 3, 1e9])
@pytest.mark.parametrize("shape", [(3, 1), (1, N_CTX), (4, 10)])
def test_a_filter_of_high_norms_over_tokens_that_are_all_alike(tmp_path, hf_models, tl_models, shape, multiple):
    """One and the same token everywhere: at one position all norms are equal, and none is above the median."""
    dictionary = load_dictionary(write_clt(tmp_path / "clt", WIDTH), processing="none")
    rows = torch.full(shape, 7)
    seen: list[torch.Tensor] = []
    handles = [
        block.ln_2.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        for block in hf_models[1].transformer.h
    ]
    with torch.no_grad():
        hf_models[1](rows)
    for handle in handles:
        handle.remove()
    norms = torch.stack([x.norm(dim=-1) for x in seen])
    want = (norms <= multiple * norms.flatten(1).median(-1).values[:, None, None]).all(0)
    acts = gather(dictionary, tl_models[1], rows, high_norm_multiple=multiple)
    assert acts.mask.counted.tolist() == want.tolist()
    assert multiple < 10 or bool(want.all())
    assert shape != (3, 1) or bool(want.all())


BAD = {
    "empty.jsonl": ("", "is empty"),
    "blank.jsonl": ("\n\n", "is empty"),
    "nothing.jsonl": ('{"text": ""}\n{"text": null}\n', "is empty"),
    "number.jsonl": ('{"text": 3}', "line 1: 'text' is 3"),
    "cut.jsonl": ('{"text": "ABC"', "line 1 is no JSON"),
    "words.jsonl": ('[1, 2, 3]\n["a"]', r"line 2 is \['a'\]"),
    "columns.jsonl": ('{"a": "AB", "b": "CD"}', "columns a, b"),
    "mixed.jsonl": ('{"text": "ABCDEFGHIJ"}\n[1, 2]', "line 2 has no 'text'"),
    "kinds.jsonl": ('"ABCDEFGHIJKL"\n[1, 2, 3]', "line 2 is"),
    "floats.jsonl": ('{"tokens": [1, 2, 1.5]}', r"1\.5"),
    "huge.jsonl": ('{"tokens": [1, 2, 99999999999999999999999]}', "9999"),
    "bytes.jsonl": (b'{"text": "\xff\xfe"}', "no JSON"),
    "plain.jsonl.gz": (b"no gzip", "no JSON"),
    "object.json": ("3", "is 3"),
    "list.json": ("[]", "is empty"),
    "none.parquet": (b"PAR1xxxxPAR1", "no Parquet"),
    "bytes.txt": (b"\xff\xfe\x00", "neither UTF-8 text"),
    "empty.txt": ("", "no tokens"),
    "junk.npy": (b"junk", "no readable"),
    "junk.safetensors": (b"junk", "no readable"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path, name):
    content, words = BAD[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words) as error:
        load_token_set(path, tiny_tokenizer(), 4)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_of_mixed_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "ABCDEFGHIJ"}\n')
    (tmp_path / "README.md").write_text("words")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert load_token_set(tmp_path, tiny_tokenizer(), 6).tokens.shape == (2, 6)
    pq.write_table(pa.table({"text": ["ABCDEFGH"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="Parquet files and of JSON lines"):
        load_token_set(tmp_path, tiny_tokenizer(), 6)


COLUMNS = {
    "nulls": (pa.array([None, "ABCDEFGH", "", "IJ"], pa.string()), True),
    "large": (pa.array(["ABCDEFGH", "IJ"], pa.large_string()), True),
    "dictionary": (pa.array(["ABCDEFGH", "IJ"]).dictionary_encode(), True),
    "only nulls": (pa.array([None, None], pa.string()), False),
    "binary": (pa.array([b"ABCDEFGH"], pa.binary()), False),
    "floats": (pa.array([[1.0, 2.0]], pa.list_(pa.float32())), False),
    "null id": (pa.array([[1, None, 3]]), False),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_parquet(tmp_path, name):
    column, good = COLUMNS[name]
    pq.write_table(pa.table({"text": column}), tmp_path / "t.parquet")
    if not good:
        with pytest.raises(ValueError, match=r"t\.parquet"):
            load_token_set(tmp_path / "t.parquet", tiny_tokenizer(), 5)
        return
    got = load_token_set(tmp_path / "t.parquet", tiny_tokenizer(), 5)
    assert got.tokens.tolist() == packed(["ABCDEFGH", "IJ"], 5, packing="joined", bos=True)


def test_rows_of_ids_with_nulls_and_empty_ones(tmp_path):
    pq.write_table(pa.table({"input_ids": [[1, 2, 3, 4, 5], None, [], [6, 7]]}), tmp_path / "t.parquet")
    assert load_token_set(tmp_path / "t.parquet", None, 3).tokens.tolist() == [[1, 2, 3]]
    got = load_token_set(tmp_path / "t.parquet", None, 3, packing="joined")
    assert got.tokens.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    drawn = random.Random(4)  # noqa: S311
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lengths = [drawn.choice([4, CONTEXT - 2, CONTEXT - 1, 30]) for _ in range(40)]
    lines = [json.dumps({"text": "".join(drawn.choice(LETTERS) for _ in range(n))}) for n in lengths]
    path.write_text("\n".join(lines))
    return path


def prompts(texts: Path, n: int, *, bos: bool = True, prefix: str = "", suffix: str = "") -> torch.Tensor:
    """One of each text that is long enough, in order."""
    tokenizer, rows = tiny_tokenizer(), []
    before, after = ([*tokenizer(text, add_special_tokens=False)["input_ids"]] for text in (prefix, suffix))
    for line in texts.read_text().splitlines():
        ids = tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
        row = [0] * bos + before + ids
        if len(row) + len(after) >= CONTEXT:
            rows.append(row[: CONTEXT - len(after)] + after)
    return torch.tensor(rows[:n])


def entries(folder: Path) -> dict[int, dict]:
    files = sorted(folder.glob("batch-*.json"), key=lambda path: int(path.stem.split("-")[1]))
    return {one["feature_index"]: one for path in files for one in json.loads(path.read_text())["features"]}


def mlp_inputs(hf, tokens: torch.Tensor) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    handles = [
        block.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0])) for block in hf.transformer.h
    ]
    with torch.no_grad():
        hf(tokens)
    for handle in handles:
        handle.remove()
    return seen


def check_entry(entry: dict, acts: torch.Tensor, counted: torch.Tensor, tokens: torch.Tensor) -> None:
    """An exported feature is what `acts` [rows, positions] says where tokens count. A row's first token is left out of
    what is shown, unless it is the example itself."""
    acts = acts * counted
    assert entry["frac_nonzero"] == pytest.approx(float((acts != 0).sum() / counted.sum()), abs=2e-5)
    texts = tiny_tokenizer().convert_ids_to_tokens(range(VOCABULARY))
    rows = {tuple(texts[i] for i in row[first:]): n for n, row in enumerate(tokens.tolist()) for first in (0, 1)}
    top = []
    for one in entry["activations"]:
        row, first = rows[tuple(one["tokens"])], tokens.shape[1] - len(one["tokens"])
        assert one["values"] == pytest.approx(acts[row, first:].tolist(), abs=2e-3)
        value = one["values"][one["qualifying_token_index"]]
        if one["bin_min"] == -1:
            top.append(value)
        else:
            assert one["bin_min"] - 2e-3 <= value <= one["bin_max"] + 2e-3
    assert top == sorted(top, reverse=True)
    assert bool(top) == bool((acts != 0).any())
    assert not top or top[0] == pytest.approx(float(acts.max()), abs=2e-3)


# SAEDashboard's runner


def run(folder: Path, sae_path: Path, texts: Path, models_dir: Path, **changes) -> Path:
    asked = {
        "sae_set": "clt-20", "huggingface_dataset_path": str(texts), "n_prompts_total": 20,
        "n_tokens_in_prompt": CONTEXT, "n_prompts_in_forward_pass": 8, "n_features_at_a_time": 7,
        "shuffle_tokens": False, "model": models_dir / "base", "n_quantiles": 2, "top_acts_group_size": 4,
    }  # fmt: skip
    cfg = NeuronpediaRunnerConfig(sae_path=str(sae_path), outputs_dir=str(folder), **(asked | changes))
    return NeuronpediaRunner(cfg).run(progress=False)


@pytest.fixture(scope="module")
def dashboard_clt(tmp_path_factory) -> Path:
    return write_dashboard_clt(tmp_path_factory.mktemp("clt") / "clt", "jumprelu", "mean_std")


@pytest.mark.parametrize(
    ("options", "hidden"),
    [
        ({}, []),
        ({"prefix_str": "AB", "suffix_str": "C", "ignore_positions": [1, 2, CONTEXT - 1]}, [1, 2, CONTEXT - 1]),
        ({"prepend_bos": False, "ignore_positions": [0]}, [0]),
        ({"ignore_positions": [3, 4]}, [3, 4]),
        ({"n_prompts_total": 1}, []),
    ],
)
def test_a_run_of_a_clts_layer_is_the_formulas(tmp_path, dashboard_clt, texts, models_dir, hf_models, options, hidden):
    bos = options.get("prepend_bos", True)
    tokens = prompts(
        texts, options.get("n_prompts_total", 20), bos=bos, prefix=options.get("prefix_str", ""),
        suffix=options.get("suffix_str", ""),
    )  # fmt: skip
    out = run(tmp_path / "out", dashboard_clt, texts, models_dir, use_clt=True, clt_layer_idx=1, **options)
    (folder,) = (path for path in out.iterdir() if path.name != "gathered")
    counted = torch.ones_like(tokens, dtype=torch.bool)
    counted[:, hidden] = False
    counted[:, 0] &= not bos
    inputs = [x.reshape(-1, D_MODEL) for x in mlp_inputs(hf_models[0], tokens)]
    acts = encoded(dashboard_clt, "jumprelu", "mean_std", inputs).view(*tokens.shape, -1)
    found = entries(folder)
    skipped = json.loads((folder / "skipped_indexes.json").read_text())["skipped_indexes"]
    assert sorted([*found, *skipped]) == list(range(FEATURES))
    for index, entry in found.items():
        assert entry["n_prompts_total"] == len(tokens)
        assert entry["n_tokens_in_prompt"] == CONTEXT
        check_entry(entry, acts[..., FEATURES + index], counted, tokens)
    settings = json.loads((folder / "run_settings.json").read_text())
    asked = {"clt_layer_idx": 1, "use_clt": True, "n_tokens_in_prompt": CONTEXT, "huggingface_dataset_path": str(texts)}
    assert settings | asked | options == settings


def test_all_layers_are_one_run_and_the_same_features(tmp_path, dashboard_clt, texts, models_dir):
    whole = run(tmp_path / "whole", dashboard_clt, texts, models_dir)
    folders = sorted(path for path in whole.iterdir() if path.name != "gathered")
    assert len(folders) == N_LAYERS
    for layer, folder in enumerate(folders):
        one = run(tmp_path / str(layer), dashboard_clt, texts, models_dir, clt_layer_idx=layer)
        mine, theirs = entries(folder), entries(one / folder.name)
        assert list(mine) == list(theirs)
        for index in mine:
            for key in ("frac_nonzero", "pos_str", "neg_str", "decoder_weights_dist", "neuron_alignment_indices"):
                assert mine[index][key] == theirs[index][key]
            top = [
                [one["values"] for one in entry["activations"] if one["bin_min"] == -1]
                for entry in (mine[index], theirs[index])
            ]
            assert top[0] == top[1]


@pytest.mark.parametrize(
    ("activation", "normalisation", "tying", "templates"),
    [
        ("relu", "none", "per_source", HF),
        ("jumprelu", "sqrt_d_model", "per_target", HF),
        ("jumprelu", "none", "none", {"tl_input_template": "blocks.{}.hook_resid_mid"}),
    ],
)
def test_every_kind_of_its_clts_runs(tmp_path, texts, models_dir, activation, normalisation, tying, templates):
    blank = dict.fromkeys((*HF, *TL))
    named = templates if templates is HF else {**templates, "tl_output_template": TL["tl_output_template"]}
    path = write_dashboard_clt(tmp_path / "clt", activation, normalisation, tying, **(blank | named))
    out = run(tmp_path / "out", path, texts, models_dir, processing="none", use_clt=True)
    folders = [path for path in out.iterdir() if path.name != "gathered"]
    assert len(folders) == N_LAYERS
    assert all(any(entry["activations"] for entry in entries(folder).values()) for folder in folders)


def sae_lens_folder(folder: Path, kind: str):
    torch.manual_seed(2)
    if kind == "sae":
        where = SAEMetadata(hook_name="blocks.1.hook_resid_post", model_name="base")
        made = StandardSAE(StandardSAEConfig(d_in=D_MODEL, d_sae=WIDTH, metadata=where))
    else:
        where = SAEMetadata(
            hook_name="blocks.1.ln2.hook_normalized", hook_name_out="blocks.1.hook_mlp_out", model_name="base"
        )
        cfg = SkipTranscoderConfig(d_in=D_MODEL, d_out=D_MODEL, d_sae=WIDTH, apply_b_dec_to_input=False, metadata=where)
        made = SkipTranscoder(cfg)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    made.save_model(folder)
    return made


@pytest.mark.parametrize("kind", ["sae", "skip"])
def test_a_run_of_sae_lens_folder_is_its_own_code(tmp_path, texts, models_dir, hf_models, kind):
    """On TransformerLens' default weights, as SAEDashboard runs it, activations times the decoder rows' lengths."""
    made = sae_lens_folder(tmp_path / "sae", kind)
    tokens = prompts(texts, 20)
    hf = hf_models[0]
    with torch.no_grad():
        if kind == "sae":
            x = hf(tokens, output_hidden_states=True).hidden_states[2]
            x = x - x.mean(-1, keepdim=True)
        else:
            seen: list[torch.Tensor] = []
            handle = hf.transformer.h[1].ln_2.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
            hf(tokens)
            handle.remove()
            x = torch.nn.functional.layer_norm(seen[0], (D_MODEL,), eps=1e-5)
        acts = made.encode(x) * made.W_dec.norm(dim=-1)
    out = run(
        tmp_path / "out", tmp_path / "sae", texts, models_dir, from_local_sae=True, use_skip_transcoder=kind == "skip"
    )
    (folder,) = (path for path in out.iterdir() if path.name != "gathered")
    counted = torch.ones_like(tokens, dtype=torch.bool)
    counted[:, 0] = False
    found = entries(folder)
    assert len(found) == WIDTH
    for index, entry in found.items():
        check_entry(entry, acts[..., index], counted, tokens)


def test_high_norms_are_left_out_of_a_run(tmp_path, dashboard_clt, texts, models_dir, hf_models):
    """By brute force over what the CLT reads at any layer."""
    tokens = prompts(texts, 20)
    counted = torch.ones_like(tokens, dtype=torch.bool)
    counted[:, 0] = False
    inputs = mlp_inputs(hf_models[0], tokens)
    ratios = torch.stack([x.norm(dim=-1) / x.norm(dim=-1)[counted].median() for x in inputs]).amax(0)
    multiple = float(ratios[counted].quantile(0.8))
    kept = counted & (ratios <= multiple)
    assert 0.5 < float(kept.sum() / counted.sum()) < 0.95
    out = run(
        tmp_path / "out", dashboard_clt, texts, models_dir, ignore_high_activation_norm_multiple=multiple
    )  # fmt: skip
    acts = encoded(dashboard_clt, "jumprelu", "mean_std", [x.reshape(-1, D_MODEL) for x in inputs])
    acts = acts.view(*tokens.shape, -1)
    for layer, folder in enumerate(sorted(path for path in out.iterdir() if path.name != "gathered")):
        for index, entry in entries(folder).items():
            check_entry(entry, acts[..., layer * FEATURES + index], kept, tokens)


def test_every_source_of_tokens_gives_the_same_run(tmp_path, dashboard_clt, texts, models_dir):
    lines = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    pq.write_table(pa.table({"n": range(len(lines) + 2), "text": [None, *lines, ""]}), tmp_path / "t.parquet")
    tokens = prompts(texts, 20)
    np.save(tmp_path / "ids.npy", tokens.numpy())
    long = [[*row, 5, 6] for row in tokens.tolist()]
    (tmp_path / "ids.jsonl").write_text("\n".join(json.dumps({"input_ids": row}) for row in [[1, 2], *long]))
    want = None
    for source in (texts, tmp_path / "t.parquet", tmp_path / "ids.npy", tmp_path / "ids.jsonl"):
        out = run(tmp_path / f"of {source.name}", dashboard_clt, source, models_dir, clt_layer_idx=0)
        (folder,) = (path for path in out.iterdir() if path.name != "gathered")
        found = entries(folder)
        for entry in found.values():
            assert entry.pop("dataset") == str(source)
        want = want or found
        assert found == want, source


def test_the_command_is_the_class(tmp_path, dashboard_clt, texts, models_dir):
    result = invoke(
        "neuronpedia", "--sae-path", dashboard_clt, "--sae-set", "clt-20", "--dataset-path", texts, "--output-dir",
        tmp_path / "cli", "--use-clt", "--clt-layer-idx", 1, "--n-prompts", 20, "--n-tokens-in-prompt", CONTEXT,
        "--n-features-per-batch", 7, "--no-shuffle-tokens", "--hf-model-path", models_dir / "base", "--n-quantiles", 2,
        "--top-acts-group-size", 4, "--ignore-position", 3, "--ignore-position", 4,
        "--n-prompts-in-forward-pass", 8, "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    own = run(
        tmp_path / "own", dashboard_clt, texts, models_dir, use_clt=True, clt_layer_idx=1, ignore_positions=[3, 4]
    )
    (folder,) = (path for path in own.iterdir() if path.name != "gathered")
    for path in folder.glob("*-*.json"):
        assert path.read_bytes() == (tmp_path / "cli" / folder.name / path.name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clt_layer_idx": 3}, "no layer 3"),
        ({"clt_layer_idx": -1}, "no layer -1"),
        ({"ignore_positions": [CONTEXT]}, str(CONTEXT)),
        ({"ignore_positions": list(range(CONTEXT))}, "nothing is left"),
        ({"ignore_high_activation_norm_multiple": 1.0}, "above 1"),
        ({"n_tokens_in_prompt": 1}, "at least 2"),
        ({"prefix_str": "A" * CONTEXT}, "no room"),
        ({"huggingface_dataset_path": "missing.jsonl"}, r"missing\.jsonl"),
        ({"sae_path": "missing", "from_local_sae": True}, "missing"),
        ({"use_transcoder": True}, "holds a clt"),
        ({"use_clt": True, "use_transcoder": True}, "contradict"),
        ({"use_dfa": True}, "use_dfa"),
        ({"model_dtype": "float99"}, "float99"),
        ({"clt_dtype": "int8"}, "int8"),
        ({"clt_weights_filename": "absent.safetensors"}, r"absent\.safetensors"),
        ({"model": "missing/model/folder"}, "missing/model/folder"),
        ({"n_features_at_a_time": 0}, "n_features_at_a_time"),
        ({"layout": "sauce"}, "source"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_gathered(
    tmp_path, dashboard_clt, texts, models_dir, changes, words
):
    with pytest.raises((ValueError, OSError), match=words):
        run(tmp_path / "out", changes.pop("sae_path", dashboard_clt), texts, models_dir, **changes)
    assert not list(tmp_path.glob("out/*"))
