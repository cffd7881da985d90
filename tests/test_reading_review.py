"""Files of texts and ids as strangers leave them: damaged, misnamed, too large when unpacked, marked with a BOM; what
reading costs; and sources that read fewer models than are written."""

import gzip
import json
import random
import re
import tracemalloc
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from crossvis_tl import document_files, gather, high_norm, load_dictionary, load_tokens, token_files
from crossvis_tl import tokens as token_sets
from crossvis_tl.activation_fns import ReLU
from crossvis_tl.capture import Capture
from crossvis_tl.dictionary import Dictionary, Group, Site
from crossvis_tl.masking import token_mask
from crossvis_tl.packing import around, stacked
from crossvis_tl.tokens import Reading, load_token_set, open_tokens
from tests.conftest import D_MODEL, tiny_tokenizer
from tests.test_sae_dashboard_clt import write as write_crosslayer

TEXT = "ABCDEFGHIJKL"
IDS = [[0, 5, 9, 3], [0, 1, 2, 3]]
BOM = b"\xef\xbb\xbf"


def rows_of(text: str = TEXT, context: int = 5) -> list[list[int]]:
    ids = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return [[0, *ids[at : at + context - 1]] for at in range(0, len(ids) - context + 2, context - 1)]


def line(text: str = TEXT) -> bytes:
    return json.dumps({"text": text}).encode() + b"\n"


def refusal(path, kind=ValueError, **options) -> str:
    with pytest.raises(kind) as caught:
        load_tokens(path, tiny_tokenizer(), 5, **options)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


# Damaged


def packed_lines() -> bytes:
    drawn = random.Random(0)  # noqa: S311
    texts = ["".join(drawn.choice("ABCDEFG0123") for _ in range(60)) for _ in range(3000)]
    return gzip.compress(b"".join(map(line, texts)))


def test_damage_anywhere_in_a_gzipped_file_is_said_by_name_and_line(tmp_path):
    path, content, drawn, seen = tmp_path / "t.jsonl.gz", packed_lines(), random.Random(1), []  # noqa: S311
    for _ in range(30):
        damaged, at = bytearray(content), drawn.randrange(12, len(content) - 60)
        damaged[at : at + 20] = drawn.randbytes(20)
        path.write_bytes(damaged)
        seen.append(refusal(path))
    assert any(re.search(r"is damaged after line \d+: Error -3 while decompressing", text) for text in seen)


def test_a_gzipped_file_that_was_cut_off_is_said_by_line(tmp_path):
    (tmp_path / "t.jsonl.gz").write_bytes(packed_lines()[:-2000])
    assert re.search(r"is damaged after line \d+: Compressed file ended", refusal(tmp_path / "t.jsonl.gz"))


def test_bytes_that_are_no_text_are_said_by_line(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(line() * 1000 + b"\xff")
    found = re.search(r"is damaged after line (\d+): 'utf-8' codec", refusal(tmp_path / "t.jsonl"))
    assert found
    assert 500 < int(found[1]) <= 1000


@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_a_number_of_thousands_of_digits_is_said_by_line(tmp_path, name):
    (tmp_path / name).write_bytes(line() + b'{"text": ' + b"9" * 5000 + b"}\n")
    assert "line 2 is no JSON: Exceeds the limit" in refusal(tmp_path / name)


def test_a_number_of_thousands_of_digits_in_a_list_is_said(tmp_path):
    (tmp_path / "t.json").write_bytes(b"[[" + b"9" * 5000 + b"]]")
    assert "is no JSON list: Exceeds the limit" in refusal(tmp_path / "t.json")


# Misnamed

CAPITALS = {
    "T.JSONL": lambda path: path.write_bytes(line()),
    "t.Json": lambda path: path.write_bytes(b"[" + line() + b"]"),
    "t.JSONL.GZ": lambda path: path.write_bytes(gzip.compress(line())),
    "t.Parquet": lambda path: datasets.Dataset.from_list([{"text": TEXT}]).to_parquet(path),
    "t.TXT": lambda path: path.write_text(TEXT),
}


@pytest.mark.parametrize("name", CAPITALS)
def test_texts_may_be_named_in_capitals(tmp_path, name):
    CAPITALS[name](tmp_path / name)
    assert load_tokens(tmp_path / name, tiny_tokenizer(), 5).tolist() == rows_of()


@pytest.mark.parametrize("name", ["T.JSONL", "t.Parquet"])
def test_a_folder_has_files_named_in_capitals(tmp_path, name):
    CAPITALS[name](tmp_path / name)
    (tmp_path / "CONFIG.JSON").write_text("{}")
    assert load_tokens(tmp_path, tiny_tokenizer(), 5).tolist() == rows_of()


def write_array(path, array) -> None:
    with path.open("wb") as file:
        np.save(file, array)


ARRAYS = {
    "T.NPY": write_array,
    "t.NPZ": lambda path, array: path.write_bytes(packed_array(path, array)),
    "t.SafeTensors": lambda path, array: save_file({"tokens": torch.from_numpy(array)}, path),
    "t.PT": lambda path, array: torch.save(torch.from_numpy(array), path),
}


def packed_array(path, array, save=np.savez) -> bytes:
    save(path.with_name("lower.npz"), array)
    return path.with_name("lower.npz").read_bytes()


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_may_be_named_in_capitals(tmp_path, name):
    ARRAYS[name](tmp_path / name, np.array(IDS))
    assert load_tokens(tmp_path / name).tolist() == IDS


OTHERS = {
    "t.csv": r"t\.csv is a table.*\.parquet or \.jsonl",
    "t.TSV": r"t\.TSV is a table",
    "t.jsonl.zst": r"is compressed in a way that is not read here; unpack it.*\.jsonl\.gz",
    "t.jsonl.bz2": r"unpack it",
    "t.txt.xz": r"unpack it",
    "t.arrow": r"the folder that datasets\.save_to_disk wrote",
    "t.gz": r"is gzipped, of which only JSON lines are read \(\.jsonl\.gz\); unpack it",
    "t.csv.gz": r"only JSON lines",
    "t.npy.gz": r"only JSON lines",
    "t.parquet.gz": r"only JSON lines",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_text_is_not_read_as_one(tmp_path, name):
    (tmp_path / name).write_bytes(b"text,n\nABCDEFGHIJKLMNOP,1\n")
    assert re.search(OTHERS[name], refusal(tmp_path / name))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_bytes(b"text,n\nABCDEFGHIJKLMNOP,1\n")
    text = refusal(tmp_path / "folder", IsADirectoryError)
    assert name in text
    assert re.search(OTHERS[name].split("t\\.")[-1].split(".*")[0], text)


def test_a_json_file_with_a_list_on_each_line_is_told_its_name(tmp_path):
    (tmp_path / "t.json").write_text("[1, 2, 3]\n[4, 5, 6]\n")
    text = refusal(tmp_path / "t.json")
    assert re.search(r"is no JSON list: Extra data: line 2.*is read as one list: name it \.jsonl if each line is", text)
    (tmp_path / "t.json").rename(tmp_path / "t.jsonl")
    assert load_tokens(tmp_path / "t.jsonl", context=3).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("name", ["t.jsonl", "one.json"])
def test_json_over_several_lines_is_told_how_lines_are_read(tmp_path, name):
    content = [{"text": TEXT}] if name == "t.jsonl" else {"text": TEXT}
    (tmp_path / name).write_text(json.dumps(content, indent=1))
    text = refusal(tmp_path / name)
    assert "line 1 is no JSON" in text
    assert "each line is read as a document: one list over several lines is a .json file" in text
    (tmp_path / name).write_bytes(b'{"text": 0x1}\n')  # which is one line
    assert "several lines" not in refusal(tmp_path / name)


def test_a_json_list_of_lists_named_doubly_is_read_by_its_last_name(tmp_path):
    (tmp_path / "t.json.jsonl").write_text("[1, 2, 3]\n[4, 5, 6]\n")
    assert load_tokens(tmp_path / "t.json.jsonl", context=3).tolist() == [[1, 2, 3], [4, 5, 6]]


# Not there


@pytest.mark.parametrize(
    "name", ["x.jsonl.gz", "x.JSONL", "x.csv", "x.jsonl.zst", "x.safetensors", "x.ndjson", "x.txt.gz"]
)
def test_a_missing_file_in_a_missing_folder_is_not_asked_for_on_the_hub(tmp_path, monkeypatch, name):
    def asked(*_, **__):
        raise AssertionError("asked")

    monkeypatch.setattr(datasets, "load_dataset", asked)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    text = refusal(f"nofolder/{name}", FileNotFoundError)
    assert text.endswith("There is no folder nofolder. Did you mean 'folder'?")


# A byte order mark


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.jsonl.gz", "list.json", "t.txt"])
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path, name):
    content = BOM + (TEXT.encode() if name == "t.txt" else b"[" + line() + b"]" if name == "list.json" else line())
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(open_tokens(tmp_path / name, Reading()).documents) == [TEXT]


# Too large


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_line_has_a_length_that_is_read(tmp_path, monkeypatch, name):
    monkeypatch.setattr(document_files, "LONGEST_LINE", 1000)
    good, long = line("A" * 900), line("A" * 100_000)
    content = good * 2 + long
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert "line 3 is longer than 1,000 characters" in refusal(tmp_path / name)
    (tmp_path / name).write_bytes(gzip.compress(good * 2) if name.endswith(".gz") else good * 2)
    assert load_tokens(tmp_path / name, tiny_tokenizer(), 901, packing="each").shape == (2, 901)


def test_no_more_than_that_of_a_line_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(document_files, "LONGEST_LINE", 10_000)
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(line("A" * 20_000_000)))
    tracemalloc.start()
    try:
        refusal(tmp_path / "t.jsonl.gz")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


def test_a_gzipped_list_has_a_length_that_is_read_and_a_plain_one_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(document_files, "LONGEST_LIST", 1000)
    content = json.dumps([{"text": TEXT}] * 200).encode()
    (tmp_path / "t.json.gz").write_bytes(gzip.compress(content))
    assert "unpacks to more than 1,000 characters" in refusal(tmp_path / "t.json.gz")
    (tmp_path / "t.json").write_bytes(content)
    assert load_tokens(tmp_path / "t.json", tiny_tokenizer(), 13, packing="each").shape == (200, 13)


def test_an_archive_of_ids_unpacks_to_no_more_than_a_bound(tmp_path, monkeypatch):
    array = np.zeros((3, 100_000), np.int64)
    (tmp_path / "t.npz").write_bytes(packed_array(tmp_path / "t.npz", array, np.savez_compressed))
    assert load_tokens(tmp_path / "t.npz").shape == (3, 100_000)
    monkeypatch.setattr(token_files, "MOST_UNPACKED", 2**20)
    text = refusal(tmp_path / "t.npz")
    assert "unpacks to 0.0 GiB, more than the 0.0 GiB" in text
    assert "numpy.savez" in text
    np.savez(tmp_path / "stored.npz", array)  # as large on disk: no surprise
    np.save(tmp_path / "t.npy", array)
    for name in ("stored.npz", "t.npy"):
        assert load_tokens(tmp_path / name).shape == (3, 100_000)


# What reading costs


@pytest.mark.parametrize("text", ["ABC " * 5000, "\n" * 20_000, " \n" * 10_000, "A\n\n" * 7000])
def test_a_text_that_is_never_cut_is_searched_once(tmp_path, monkeypatch, text):
    (tmp_path / "t.txt").write_text(text)
    monkeypatch.setattr(document_files, "BLOCK", 100)
    finditer, searched = document_files.re.Pattern.finditer, []

    class Counting:
        def finditer(self, seam):
            searched.append(len(seam))
            return finditer(re.compile(r"\S\n(?=\S)"), seam)

    monkeypatch.setattr(document_files, "CUT", Counting())
    assert "".join(document_files._blocks(tmp_path / "t.txt")) == text
    assert 0 < sum(searched) < 1.1 * len(text)


def traced(task) -> tuple[object, int]:
    """-> what it gives, and how many bytes were held at once for it."""
    tracemalloc.start()
    try:
        return task(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("owned", "times"), [(True, 2), (False, 1.5)])
def test_rows_are_held_once(owned, times):
    rows = ((np.full(64, i), i) for i in range(10_000))
    (tokens, owners), peak = traced(lambda: stacked(rows, owned))
    assert tokens.dtype == np.int64
    assert np.array_equal(tokens, np.repeat(np.arange(10_000)[:, None], 64, 1))
    assert peak < times * tokens.nbytes
    assert (owners is not None) == owned
    if owned:
        assert owners.dtype == np.int32
        assert np.array_equal(owners, tokens)


@pytest.mark.parametrize("n", [0, 1, 1023, 1024, 1025, 1281, 1700])
def test_any_number_of_rows_is_kept_as_it_came(n):
    rows = [(np.arange(3) + i, np.arange(3) * i) for i in range(n)]
    tokens, owners = stacked(iter(rows), owned=True)
    assert tokens.shape == owners.shape == (n, 3 if n else 0)
    assert n == 0 or np.array_equal(tokens, np.stack([row for row, _ in rows]))
    assert n == 0 or np.array_equal(owners, np.stack([owner for _, owner in rows]))


def test_a_token_set_of_ids_takes_little_more_than_its_ids(tmp_path):
    ids = " ".join(["7,"] * 255 + ["7"])
    (tmp_path / "t.jsonl").write_text(f"[{ids}]\n" * 8000)
    got, peak = traced(lambda: load_token_set(tmp_path / "t.jsonl", None, 256))
    assert got.tokens.shape == (8000, 256)
    assert got.documents is None
    assert peak < 1.6 * got.tokens.nbytes


def test_numbers_of_documents_are_small(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(line() * 3)
    got = load_token_set(tmp_path / "t.jsonl", tiny_tokenizer(), 6, prefix="A", suffix="B", shuffle=True)
    assert got.documents.dtype == torch.int32
    assert got.documents.shape == got.tokens.shape


def test_affixes_stand_where_they_stood():
    rows = np.array([[0, 1, 2], [0, 3, 4]])
    assert around(rows, [7, 8], [9], True).tolist() == [[0, 7, 8, 1, 2, 9], [0, 7, 8, 3, 4, 9]]
    assert around(rows, [7, 8], [], False).tolist() == [[7, 8, 0, 1, 2], [7, 8, 0, 3, 4]]
    assert around(rows, [], [9, 9], True).tolist() == [[0, 1, 2, 9, 9], [0, 3, 4, 9, 9]]


def endless(monkeypatch, texts) -> None:
    def rows():
        while True:
            for text in texts:
                yield {"text": text}

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    stream = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": stream})
    monkeypatch.setattr(token_sets, "CHARACTERS", 10)


def test_a_stream_of_texts_that_are_all_too_short_ends_with_an_error(monkeypatch):
    endless(monkeypatch, ["AB", "ABC"])
    monkeypatch.setattr(token_sets, "PATIENCE", 50)
    words = r"50 documents in a row of the dataset org/name are less than 8 tokens long, the longest 4: give a smaller"
    with pytest.raises(ValueError, match=words):
        load_tokens("org/name", tiny_tokenizer(), 8, packing="each")


def test_a_stream_of_texts_goes_on_where_some_are_long_enough(monkeypatch):
    endless(monkeypatch, ["AB"] * 49 + [TEXT])
    monkeypatch.setattr(token_sets, "PATIENCE", 50)
    assert load_tokens("org/name", tiny_tokenizer(), 8, packing="each", n_sequences=5).shape == (5, 8)


def test_a_file_is_read_to_its_end_however_many_are_too_short(tmp_path, monkeypatch):
    (tmp_path / "t.jsonl").write_bytes(line("AB") * 200 + line())
    monkeypatch.setattr(token_sets, "PATIENCE", 50)
    assert load_tokens(tmp_path / "t.jsonl", tiny_tokenizer(), 8, packing="each").shape == (1, 8)


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False), (None, False)])
def test_reading_that_takes_long_is_shown_where_it_is_wanted(tmp_path, monkeypatch, capsys, progress, shown):
    (tmp_path / "t.jsonl").write_bytes(line() * 30)
    monkeypatch.setattr(token_sets, "DELAY", 0)
    reading = Reading()
    opened = open_tokens(tmp_path / "t.jsonl", reading)
    token_sets.token_set(opened, tiny_tokenizer(), 5, reading, "t.jsonl", progress=progress)
    assert ("Reading documents" in capsys.readouterr().err) == shown


# Files that lie elsewhere


@pytest.mark.parametrize("name", ["../secret.safetensors", "sub/../../secret.safetensors", "{}/secret.safetensors"])
def test_a_name_of_weights_does_not_lead_out_of_their_folder(tmp_path, name):
    folder = write_crosslayer(tmp_path / "clt", file="a.safetensors")
    (folder / "sub").mkdir()
    (tmp_path / "secret.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    given = name.format(tmp_path)
    with pytest.raises(
        ValueError, match=r"leads out of \S*clt; give the name of a file in it: a\.safetensors"
    ) as found:
        load_dictionary(folder, weights_filename=given)
    assert repr(given) in str(found.value)
    with pytest.raises(ValueError, match="leads out of"):
        load_dictionary(folder, weights_filename="..\\secret.safetensors")


def test_weights_may_be_links_and_lie_in_folders_below(tmp_path):
    folder = write_crosslayer(tmp_path / "clt", file="a.safetensors")
    (folder / "a.safetensors").rename(tmp_path / "blob")
    (folder / "step_1").mkdir()
    (folder / "step_1" / "model.safetensors").symlink_to(tmp_path / "blob")  # as in the hub's cache
    found = load_dictionary(folder, weights_filename="step_1/model.safetensors")
    assert found.groups[0].n_features > 0


# Norms


def crossing() -> Dictionary:
    """Reads the first model, writes the second."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    source, target = (Site(model, "blocks.0.hook_resid_post", D_MODEL, "none") for model in (0, 1))
    group = Group("L0", {0: normal(D_MODEL, 20)}, torch.zeros(20), ReLU(), {0: normal(20, D_MODEL)})
    return Dictionary(
        kind="plt", name="x", sources=(source,), targets=(target,), groups=(group,),
        b_dec=(torch.zeros(D_MODEL),),
    )  # fmt: skip


@pytest.mark.parametrize("replacements", [None, {0: {5: 7}}, {1: {5: 7}}])
def test_norms_of_a_dictionary_that_reads_fewer_models_than_it_writes(tl_models, tokens, replacements):
    capture = Capture(crossing(), tl_models, replacements)
    mask = token_mask(tokens, tiny_tokenizer())
    read = torch.where(tokens == 5, 7, tokens) if replacements and 0 in replacements else tokens
    hook = "blocks.0.hook_resid_post"
    want = tl_models[0].run_with_cache(read, names_filter=hook)[1][hook].norm(dim=-1)
    assert torch.allclose(high_norm.source_norms(capture, tokens, mask)[0], want, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::crossvis_tl.CrossvisWarning")
def test_it_is_gathered_without_tokens_of_high_norm(tl_models, tokens):
    plain, fewer = (gather(crossing(), tl_models, tokens, high_norm_multiple=multiple) for multiple in (None, 1.1))
    assert 0 < int(fewer.counted.sum()) < int(plain.counted.sum())


def test_a_dictionary_that_reads_the_second_model_and_writes_the_first(tl_models, tokens):
    made = crossing()
    swapped = replace(made, sources=(replace(made.sources[0], model=1),), targets=(replace(made.targets[0], model=0),))
    norms = high_norm.source_norms(Capture(swapped, tl_models), tokens, token_mask(tokens, tiny_tokenizer()))
    hook = "blocks.0.hook_resid_post"
    want = tl_models[1].run_with_cache(tokens, names_filter=hook)[1][hook].norm(dim=-1)
    assert torch.allclose(norms[0], want, rtol=1e-5)


def test_medians_are_of_one_source_at_a_time(tl_models, tokens, monkeypatch):
    """Of all at once two copies of their norms would be made."""
    capture, mask = Capture(crossing(), tl_models), token_mask(tokens, tiny_tokenizer())
    norms = torch.rand(7, *tokens.shape, generator=torch.Generator().manual_seed(1)) + 0.5
    norms[2, 0, 1] = float("nan")
    monkeypatch.setattr(high_norm, "source_norms", lambda *_, **__: norms)
    nanmedian, sizes = torch.Tensor.nanmedian, []

    def spied(self, *args, **options):
        sizes.append(self.numel())
        return nanmedian(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "nanmedian", spied)
    found = high_norm.without_high_norms(capture, tokens, mask, 1.4)
    high = torch.zeros_like(mask.counted)
    for one in norms:
        ordered = one[mask.counted & ~one.isnan()].sort().values
        high |= one > 1.4 * ordered[(len(ordered) - 1) // 2]
    assert torch.equal(found.counted, mask.counted & ~high)
    assert set(sizes) == {mask.n_counted}


@pytest.mark.parametrize("context", [6.5, "6", None, True, 1])
def test_a_context_that_is_no_number_of_tokens_is_named(tmp_path, context):
    (tmp_path / "t.jsonl").write_text('{"text": "ABCDEFGHIJKLMN"}')
    with pytest.raises(ValueError, match=re.escape(f"context is {context!r}; ")):
        load_token_set(tmp_path / "t.jsonl", tiny_tokenizer(), context)
