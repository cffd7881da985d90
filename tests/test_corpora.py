"""Texts and rows of ids from every kind of file, folder and dataset; how documents become sequences."""

import gzip
import json
import re
from itertools import chain

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sae_lens.tokenization_and_batching import concat_and_batch_sequences

from crossvis_tl import document_files, documents, load_tokens
from crossvis_tl import tokens as token_sets
from crossvis_tl.packing import joined, one_of_each
from crossvis_tl.tokens import load_token_set
from tests.conftest import tiny_tokenizer

TEXTS = ["ABCDEFG", "HIJ", "KLMNOPQRSTUVW", "XY"]
BOS = 0


def ids_of(text: str) -> list[int]:
    return tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]


def expected(texts=TEXTS, context=6) -> torch.Tensor:
    """Joined by sae_lens itself, as its ActivationsStore does."""
    stream = (torch.tensor(ids_of(text)) for text in texts)
    return torch.stack(list(concat_and_batch_sequences(stream, context, BOS, None, BOS)))


def records(texts=TEXTS, column="text"):
    return [{"id": i, column: text} for i, text in enumerate(texts)]


def write_lines(path, items):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)


def write_list(path, items):
    path.write_text(json.dumps(list(items), indent=1))


def write_parquet(path, items):
    pq.write_table(pa.Table.from_pylist(list(items)), path, row_group_size=2)


def saved(path, items):
    datasets.Dataset.from_list(list(items)).save_to_disk(path)


def saved_splits(path, items):
    test = datasets.Dataset.from_list([{**item, "text": "ZZZZZZZZZ"} for item in items])
    datasets.DatasetDict({"test": test, "train": datasets.Dataset.from_list(list(items))}).save_to_disk(path)


def shards(path, items, suffix=".jsonl"):
    """As on the hub: data/train-00000-of-00002 ..., and files that are none."""
    (path / "data").mkdir(parents=True)
    (path / ".cache").mkdir()
    (path / "README.md").write_text("# data\n")
    (path / "config.json").write_text("{}")
    write = write_parquet if suffix == ".parquet" else write_lines
    items = list(items)
    write(path / ".cache" / f"train{suffix}", items)
    write(path / "data" / f"train-00000-of-00002{suffix}", items[:1])
    write(path / "data" / f"train-00001-of-00002{suffix}", items[1:])
    write(path / "data" / f"test-00000-of-00001{suffix}", [{"text": "ZZZZZZZZZ"}])


KINDS = {
    "t.jsonl": write_lines,
    "t.ndjson": write_lines,
    "t.json": write_lines,
    "list.json": write_list,
    "t.jsonl.gz": write_lines,
    "t.parquet": write_parquet,
    "saved": saved,
    "splits": saved_splits,
    "shards": shards,
    "parquets": lambda path, items: shards(path, items, ".parquet"),
}


@pytest.mark.parametrize("name", KINDS)
def test_texts_of_every_kind_are_joined_as_sae_lens_joins_them(tmp_path, name):
    KINDS[name](tmp_path / name, records())
    got = load_token_set(tmp_path / name, tiny_tokenizer(), 6)
    assert torch.equal(got.tokens, expected())
    assert got.tokens.dtype == torch.int64
    assert str(tmp_path / name) in got.origin
    assert torch.equal(load_tokens(tmp_path / name, tiny_tokenizer(), 6), got.tokens)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "splits"])
@pytest.mark.parametrize("column", ["tokens", "input_ids"])
def test_ids_of_every_kind_are_taken_one_each(tmp_path, name, column):
    rows = [[0, 5, 9, 3], [7, 7, 1, 2], [0, 1, 2, 3]]
    KINDS[name](tmp_path / name, [{"text": "ABC", column: row} for row in rows])
    if name in ("shards", "parquets"):
        (tmp_path / name / "data").joinpath(
            f"test-00000-of-00001{'.jsonl' if name == 'shards' else '.parquet'}"
        ).unlink()
    got = load_token_set(tmp_path / name, None, 4)
    assert got.tokens.tolist() == rows
    assert got.documents is None  # each may be packed of several: BOS and end tokens tell


@pytest.mark.parametrize("line", [lambda row: row, lambda row: {"ids": row}])
def test_lines_need_no_names_and_an_only_column_none_of_the_usual(tmp_path, line):
    write_lines(tmp_path / "t.jsonl", [line([0, 1, 2]), line([3, 4, 5])])
    assert load_tokens(tmp_path / "t.jsonl", context=3).tolist() == [[0, 1, 2], [3, 4, 5]]
    write_lines(tmp_path / "t.jsonl", [line(text) for text in TEXTS])
    assert torch.equal(load_tokens(tmp_path / "t.jsonl", tiny_tokenizer(), 6), expected())


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet", "saved"])
def test_the_column_named_is_taken(tmp_path, name):
    KINDS[name](tmp_path / name, [{"text": "ZZZZZZZZZZ", "tokens": [1, 2], "body": text} for text in TEXTS])
    assert torch.equal(load_tokens(tmp_path / name, tiny_tokenizer(), 6, column="body"), expected())


def test_null_and_empty_texts_are_passed_over(tmp_path):
    texts = [None, TEXTS[0], "", TEXTS[1], None, *TEXTS[2:]]
    for name in ("t.jsonl", "t.parquet"):
        KINDS[name](tmp_path / name, records(texts))
        assert torch.equal(load_tokens(tmp_path / name, tiny_tokenizer(), 6), expected())


def test_a_text_with_half_a_surrogate_pair_is_no_reason_to_stop(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "AB\\ud83dCD"}\n{"text": "EFGH"}\n')
    assert load_tokens(tmp_path / "t.jsonl", tiny_tokenizer(), 5).shape == (2, 5)


# How documents become sequences

DOCUMENTS = st.lists(st.lists(st.integers(0, 5), max_size=12), max_size=8)
OPTIONAL = st.sampled_from([None, 0, 1])


def stream(documents):
    return ((i, np.array(ids, dtype=np.int64)) for i, ids in enumerate(documents))


@settings(deadline=None, max_examples=300)
@given(DOCUMENTS, st.integers(2, 9), OPTIONAL, OPTIONAL)
@example([[2] * 4, [3] * 4], 6, 0, 0)  # the separator is the last of a row
def test_joining_is_sae_lens_own(documents, context, bos, separator):
    tensors = (torch.tensor(ids, dtype=torch.long) for ids in documents)
    want = [row.tolist() for row in concat_and_batch_sequences(tensors, context, bos, None, separator)]
    got = [row.tolist() for row, _ in joined(stream(documents), context, bos, separator)]
    assert got[: len(want)] == want
    assert [len(row) for row in got[len(want) :]] in ([], [len(got[-1])]) if got else not want
    assert not want or len(got) == len(want)


@settings(deadline=None, max_examples=300)
@given(DOCUMENTS, st.integers(2, 9), OPTIONAL, OPTIONAL)
def test_no_token_is_lost_or_comes_twice(documents, context, bos, separator):
    """Ids of documents are made distinct, so that what was put between them can be told."""
    numbers = iter(range(10, 1000))
    documents = [[next(numbers) for _ in ids] for ids in documents]
    rows = list(joined(stream(documents), context, bos, separator))
    kept = [(int(token), int(owner)) for row, owners in rows for token, owner in zip(row, owners, strict=True)]
    own = [(token, owner) for token, owner in kept if token >= 10]
    everything = [(token, i) for i, ids in enumerate(documents) for token in ids]
    assert own == everything[: len(own)]
    put = sum(bos is not None for _ in rows) + (len(documents) if separator is not None else 0)
    assert len(everything) - len(own) < context or not rows
    assert len(kept) - len(own) <= put
    owners = [owner for _, owner in kept]
    assert owners == sorted(owners)


@settings(deadline=None, max_examples=300)
@given(DOCUMENTS, st.integers(2, 9), OPTIONAL)
def test_one_of_each_is_sae_lens_own(documents, context, bos):
    tensors = (torch.tensor(ids, dtype=torch.long) for ids in documents)
    want = concat_and_batch_sequences(tensors, context, bos, None, bos, disable_concat_sequences=True)
    short: list[int] = []
    full = ((i, ids) for i, ids in stream(documents) if len(ids))
    got = [row.tolist() for row, _ in one_of_each(full, context, bos, short)]
    assert got == [row.tolist() for row in want]
    assert len(got) + len(short) == sum(bool(ids) for ids in documents)


def test_documents_are_numbered_where_they_are_known(tmp_path):
    write_lines(tmp_path / "t.jsonl", records(["ABCDEFG", "HIJ", "KLM"]))
    got = load_token_set(tmp_path / "t.jsonl", tiny_tokenizer(), 6)
    assert got.documents.tolist() == [[0] * 6, [0, 0, 0, 1, 1, 1], [1, 1, 2, 2, 2, 2]]
    (tmp_path / "t.txt").write_text("ABCDEFGHIJKL")
    assert load_token_set(tmp_path / "t.txt", tiny_tokenizer(), 6).documents is None


def test_without_a_bos_token_nothing_stands_between_and_documents_are_still_known(tmp_path):
    write_lines(tmp_path / "t.jsonl", records(["ABCD", "EFGH"]))
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    got = load_token_set(tmp_path / "t.jsonl", tokenizer, 4)
    assert got.tokens.tolist() == [ids_of("ABCD"), ids_of("EFGH")]
    assert got.documents.tolist() == [[0] * 4, [1] * 4]


def test_each_text_by_itself(tmp_path):
    write_lines(tmp_path / "t.jsonl", records())
    got = load_token_set(tmp_path / "t.jsonl", tiny_tokenizer(), 8, packing="each")
    assert got.tokens.tolist() == [[BOS, *ids_of("ABCDEFG")], [BOS, *ids_of("KLMNOPQ")]]
    assert got.documents.tolist() == [[0] * 8, [2] * 8]


def test_rows_of_ids_are_cut_left_out_or_joined(tmp_path, caplog):
    rows = [[1, 2, 3, 4, 5, 6], [7, 8], [9, 10, 11, 12]]
    write_lines(tmp_path / "t.jsonl", [{"tokens": row} for row in rows])
    assert load_tokens(tmp_path / "t.jsonl", context=4).tolist() == [[1, 2, 3, 4], [9, 10, 11, 12]]
    assert "1 of less than 4 tokens are left out" in caplog.text
    whole = load_token_set(tmp_path / "t.jsonl", context=4, packing="joined")
    assert whole.tokens.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert whole.documents.tolist() == [[0] * 4, [0, 0, 1, 1], [2] * 4]


def test_bos_of_rows_of_ids_is_left_as_it_is_or_added(tmp_path):
    write_lines(tmp_path / "t.jsonl", [[1, 2, 3, 4], [0, 5, 6, 7]])
    for bos in (None, False):
        got = load_tokens(tmp_path / "t.jsonl", tiny_tokenizer(), 4, prepend_bos=bos)
        assert got.tolist() == [[1, 2, 3, 4], [0, 5, 6, 7]]
    got = load_tokens(tmp_path / "t.jsonl", tiny_tokenizer(), 4, prepend_bos=True)
    assert got.tolist() == [[0, 1, 2, 3], [0, 5, 6, 7]]


def test_texts_without_bos(tmp_path):
    write_lines(tmp_path / "t.jsonl", records(["ABC", "DEFGH"]))
    got = load_tokens(tmp_path / "t.jsonl", tiny_tokenizer(), 4, prepend_bos=False)
    assert got.tolist() == [[*ids_of("ABC"), BOS], ids_of("DEFG")]


@pytest.mark.parametrize("suffix", ["npy", "jsonl"])
def test_arrays_and_rows_take_the_same_options(tmp_path, suffix):
    rows = [[0, 5, 6, 7, 8], [0, 9, 10, 11, 12], [0, 1, 2, 3, 4]]
    path = tmp_path / f"t.{suffix}"
    np.save(path, np.array(rows)) if suffix == "npy" else write_lines(path, rows)
    assert load_tokens(path, context=5, n_sequences=2).tolist() == rows[:2]
    got = load_tokens(path, tiny_tokenizer(), 5, prefix="A", suffix="B")
    a, b = ids_of("AB")
    assert got.tolist() == [[0, a, *row[1:3], b] for row in rows]
    shuffled = load_tokens(path, context=5, shuffle=True, seed=3)
    assert sorted(shuffled.tolist()) == sorted(rows)
    assert torch.equal(load_tokens(path, context=5, shuffle=True, seed=3), shuffled)


# Prefix and suffix


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("packing", ["joined", "each"])
def test_prefix_and_suffix_stand_in_every_sequence_within_its_length(tmp_path, bos, packing):
    write_lines(tmp_path / "t.jsonl", records(["ABCDEFGHIJKL", "MNOPQRSTUVWX"]))
    got = load_token_set(
        tmp_path / "t.jsonl", tiny_tokenizer(), 9, prefix="YZ", suffix="X", prepend_bos=bos, packing=packing,
        count_affixes=False,
    )  # fmt: skip
    plain = load_token_set(tmp_path / "t.jsonl", tiny_tokenizer(), 6, prepend_bos=bos, packing=packing)
    first = int(bos)
    a, b, c = ids_of("YZX")
    assert got.tokens.shape == (len(plain.tokens), 9)
    assert got.tokens.tolist() == [[*row[:first], a, b, *row[first:], c] for row in plain.tokens.tolist()]
    assert got.uncounted == (first, first + 1, -1)
    kept = [i for i in range(9) if i not in (first, first + 1, 8)]
    assert torch.equal(got.documents[:, kept], plain.documents)


def test_a_prefix_that_begins_with_bos_does_not_double_it(tmp_path):
    write_lines(tmp_path / "t.jsonl", records())
    end = tiny_tokenizer().bos_token
    one = load_tokens(tmp_path / "t.jsonl", tiny_tokenizer(), 8, prefix=f"{end}YZ", prepend_bos=False)
    assert torch.equal(one, load_tokens(tmp_path / "t.jsonl", tiny_tokenizer(), 8, prefix="YZ"))


def test_prefix_and_suffix_count_unless_told_otherwise(tmp_path):
    write_lines(tmp_path / "t.jsonl", records())
    assert load_token_set(tmp_path / "t.jsonl", tiny_tokenizer(), 8, prefix="YZ").uncounted == ()


# Order, and how much is read


def test_no_more_is_read_than_is_needed(tmp_path, monkeypatch):
    path = tmp_path / "t.jsonl"
    write_lines(path, records(["ABCDEFG"] * 40))
    path.write_text(path.read_text() + "this is no JSON\n")
    monkeypatch.setattr(token_sets, "CHARACTERS", 20)
    assert load_tokens(path, tiny_tokenizer(), 8, n_sequences=3).shape == (3, 8)
    with pytest.raises(ValueError, match=r"line 41 is no JSON"):
        load_tokens(path, tiny_tokenizer(), 8)


def test_how_much_is_tokenised_at_a_time_changes_nothing(tmp_path, monkeypatch):
    write_lines(tmp_path / "t.jsonl", records())
    whole = load_tokens(tmp_path / "t.jsonl", tiny_tokenizer(), 6)
    monkeypatch.setattr(token_sets, "CHARACTERS", 1)
    assert torch.equal(load_tokens(tmp_path / "t.jsonl", tiny_tokenizer(), 6), whole)


@pytest.mark.parametrize("block", [1, 7, 30, 10_000])
def test_a_long_text_in_parts_is_the_same_text(tmp_path, monkeypatch, block):
    text = "ABC\nDEF\n\nGHI\n JKL\n" * 20
    (tmp_path / "t.txt").write_text(text)
    whole = load_tokens(tmp_path / "t.txt", tiny_tokenizer(), 9)
    monkeypatch.setattr(document_files, "BLOCK", block)
    parts = list(document_files._blocks(tmp_path / "t.txt"))
    assert "".join(parts) == text
    assert (len(parts) > 1) == (block < 100)
    assert all(re.search(r"\S\n$", part) for part in parts[:-1])
    assert torch.equal(load_tokens(tmp_path / "t.txt", tiny_tokenizer(), 9), whole)


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet", "saved", "shards"])
@pytest.mark.parametrize("buffer", [3, 100])
def test_shuffling_keeps_every_document_and_is_drawn_by_the_seed(tmp_path, monkeypatch, name, buffer):
    monkeypatch.setattr(documents, "BUFFER", buffer)
    texts = [chr(65 + i) * 5 for i in range(20)]
    KINDS[name](tmp_path / name, records(texts))

    def load(**options):
        return load_token_set(tmp_path / name, tiny_tokenizer(), 6, packing="each", **options).tokens.tolist()

    plain, shuffled = load(), load(shuffle=True, seed=1)
    assert sorted(shuffled) == sorted(plain)
    assert shuffled != plain
    assert load(shuffle=True, seed=1) == shuffled
    assert load(shuffle=True, seed=2) != shuffled
    assert len(load(shuffle=True, n_sequences=4)) == 4


def test_documents_go_with_their_sequences_when_shuffled(tmp_path):
    write_lines(tmp_path / "t.jsonl", records([chr(65 + i) * 5 for i in range(12)]))
    got = load_token_set(tmp_path / "t.jsonl", tiny_tokenizer(), 6, packing="each", shuffle=True)
    letters = {int(row[1]) for row in got.tokens}
    assert len(letters) == len({int(row[0]) for row in got.documents}) == 12
    assert got.documents.tolist() != [[i] * 6 for i in range(12)]


# Datasets of the hub


class Stub:
    """Stands for `datasets.load_dataset`. `asked`: what it was called with."""

    def __init__(self, splits):
        self.splits, self.asked = splits, []

    def __call__(self, path, name=None, **options):
        self.asked.append((path, name, options))
        if isinstance(self.splits, Exception):
            raise self.splits
        return self.splits


def streamed(items, read=None):
    def rows():
        for item in items:
            if read is not None:
                read.append(item)
            yield item

    return datasets.IterableDataset.from_generator(rows)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)

    def put(splits):
        stub = Stub(splits)
        monkeypatch.setattr(datasets, "load_dataset", stub)
        return stub

    return put


def test_a_dataset_of_the_hub_is_streamed(hub):
    stub = hub(datasets.IterableDatasetDict({"test": streamed([]), "train": streamed(records())}))
    got = load_token_set("org/name", tiny_tokenizer(), 6)
    assert torch.equal(got.tokens, expected())
    assert got.documents is not None
    load_tokens("hf://datasets/org/name@v1.0", tiny_tokenizer(), 6, subset="en")
    plain = {"revision": None, "streaming": True}
    assert stub.asked == [("org/name", None, plain), ("org/name", "en", plain | {"revision": "v1.0"})]


def test_only_what_is_needed_of_a_dataset_is_fetched(hub, monkeypatch):
    monkeypatch.setattr(token_sets, "CHARACTERS", 10)
    read = []
    hub({"train": streamed(records(["ABCDEFG"] * 1000), read)})
    assert load_tokens("org/name", tiny_tokenizer(), 8, n_sequences=5).shape == (5, 8)
    assert len(read) < 20


def test_offline_what_the_cache_has_is_taken(hub, monkeypatch):
    stub = hub(datasets.DatasetDict({"train": datasets.Dataset.from_list(records())}))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert torch.equal(load_tokens("org/name", tiny_tokenizer(), 6), expected())
    assert stub.asked[0][2]["streaming"] is False
    shuffled = load_tokens("org/name", tiny_tokenizer(), 4, packing="each", shuffle=True)
    plain = load_tokens("org/name", tiny_tokenizer(), 4, packing="each")
    assert sorted(shuffled.tolist()) == sorted(plain.tolist())


def test_a_dataset_of_the_hub_has_an_end_unless_told_otherwise(hub, monkeypatch, caplog):
    monkeypatch.setattr(token_sets, "HUB_SEQUENCES", 7)
    hub({"train": streamed(records(["ABCDEFG"] * 30))})
    assert load_tokens("org/name", tiny_tokenizer(), 8).shape == (7, 8)
    assert "the first 7 sequences of the dataset org/name are taken" in caplog.text


def test_a_dataset_of_the_hub_is_shuffled_by_its_own_means(hub):
    hub({"train": streamed(records([chr(65 + i) * 5 for i in range(20)]))})
    plain = load_tokens("org/name", tiny_tokenizer(), 6, packing="each").tolist()
    shuffled = load_tokens("org/name", tiny_tokenizer(), 6, packing="each", shuffle=True, seed=1).tolist()
    assert sorted(shuffled) == sorted(plain)
    assert shuffled != plain


def test_the_split_named_is_taken(hub, tmp_path):
    other = streamed(records(["ZZZZZZZZZ"]))
    hub({"train": other, "validation": streamed(records())})
    assert torch.equal(load_tokens("org/name", tiny_tokenizer(), 6, split="validation"), expected())
    saved_splits(tmp_path / "splits", records(["ZZZZZZZZZ"]))
    shards(tmp_path / "shards", records())
    for name in ("splits", "shards"):
        got = load_tokens(tmp_path / name, tiny_tokenizer(), 6, split="test")
        assert got.tolist() == [[BOS, *ids_of("ZZZZZ")]]


NOT_FOUND = datasets.exceptions.DatasetNotFoundError(
    "Dataset 'org/name' doesn't exist on the Hub or cannot be accessed."
)
HUB_ERRORS = {
    "no such": (NOT_FOUND, FileNotFoundError, r"org/name is no file or folder here.*doesn't exist on the Hub"),
    "offline": (
        ConnectionError("Couldn't reach 'org/name' on the Hub"),
        FileNotFoundError,
        r"org/name.*Couldn't reach",
    ),
    "code": (
        RuntimeError("Dataset scripts are no longer supported, but found name.py"),
        FileNotFoundError,
        r"scripts are no longer supported",
    ),
    "subset": (
        ValueError("BuilderConfig 'eng' not found. Available: ['en', 'de']\nmore"),
        ValueError,
        r"org/name needs another subset=.*Available: \['en', 'de'\].*Did you mean 'en'",
    ),
    "split": ({"train": [], "test": []}, ValueError, r"splits train, test; split='tset' is none of them.*'test'"),
    "which split": ({"a": [], "b": []}, ValueError, r"splits a, b; say which"),
    "empty": ({"test": []}, ValueError, "org/name is empty"),
    "column": ({"test": [{"txet": "A", "n": 1}]}, ValueError, r"no column 'text', only txet, n.*'txet'"),
    "which column": ({"test": [{"a": "A", "b": "B"}]}, ValueError, r"columns a, b; say which.*column="),
    "chat": (
        {"test": [{"messages": [{"role": "user", "content": "A"}]}]},
        ValueError,
        r"the dataset org/name, row 0: 'messages' is \[\{'role'.*expected a text or a list of token ids",
    ),
}


@pytest.mark.parametrize("what", HUB_ERRORS)
def test_what_is_wrong_with_a_dataset_is_said(hub, what):
    answer, kind, words = HUB_ERRORS[what]
    stub = hub(answer)
    options = {"subset": {"subset": "eng"}, "split": {"split": "tset"}, "column": {"column": "text"}}.get(what, {})
    with pytest.raises(kind, match=words) as caught:
        load_tokens("org/name", tiny_tokenizer(), 6, **options)
    assert "\n" not in str(caught.value)
    assert len(stub.asked) == 1


@pytest.mark.parametrize("source", ["data/tokens.npy", "data/t.jsonl", "here/t.txt", "name", "a/b/c"])
def test_a_file_that_is_missing_is_not_asked_for_on_the_hub(hub, tmp_path, monkeypatch, source):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    stub = hub(AssertionError("asked"))
    with pytest.raises(FileNotFoundError, match=f"{source} does not exist"):
        load_tokens(source, tiny_tokenizer(), 6)
    assert stub.asked == []


def test_a_name_misspelt_beside_a_folder_comes_with_near_misses(tmp_path, hub):
    saved(tmp_path / "corpus", records())
    stub = hub(AssertionError("asked"))
    with pytest.raises(FileNotFoundError, match="Did you mean 'corpus'"):
        load_tokens(tmp_path / "corpu", tiny_tokenizer(), 6)
    assert stub.asked == []


# What is refused

BAD = {
    "noise.jsonl": (lambda p: p.write_text('{"text": "A"}\n{"text": \n'), r"noise.jsonl, line 2 is no JSON"),
    "bytes.jsonl": (lambda p: p.write_bytes(b"\xff\xfe\x80"), "bytes.jsonl is no JSON"),
    "noise.jsonl.gz": (lambda p: p.write_bytes(b"abc"), "noise.jsonl.gz is no JSON"),
    "empty.jsonl": (lambda p: p.write_text("\n"), "empty.jsonl is empty"),
    "nulls.jsonl": (lambda p: p.write_text('{"text": null}\n{"text": ""}\n'), "nulls.jsonl is empty"),
    "other.jsonl": (lambda p: p.write_text('{"a": "A", "b": 1}\n'), r"other.jsonl has the columns a, b; say which"),
    "later.jsonl": (lambda p: p.write_text('{"text": "A"}\n{"txt": "B"}\n'), r"later.jsonl, line 2 has no 'text'"),
    "mixed.jsonl": (
        lambda p: p.write_text('{"text": "A"}\n{"text": [1]}\n'),
        r"mixed.jsonl, line 2: 'text' is \[1\], where those before are texts",
    ),
    "number.jsonl": (lambda p: p.write_text('{"text": 3}\n'), r"line 1: 'text' is 3; expected a text or a list"),
    "floats.jsonl": (lambda p: p.write_text('{"tokens": [1, 2.5]}\n'), r"line 1: 'tokens' is \[1, 2.5\]; expected"),
    "ragged.jsonl": (lambda p: p.write_text('{"tokens": [[1], [2, 3]]}\n'), r"is \[\[1\], \[2, 3\]\]; expected"),
    "true.jsonl": (lambda p: p.write_text('{"tokens": [true, false]}\n'), r"'tokens' is \[True, False\]; expected"),
    "huge.jsonl": (lambda p: p.write_text(f'{{"tokens": [{2**63}]}}\n'), r"is \[9223372036854775808\]; expected"),
    "object.json": (lambda p: p.write_text('{\n "a": 1\n}'), r"object.json, line 1 is no JSON"),
    "noise.parquet": (lambda p: p.write_bytes(b"PAR1abc"), "noise.parquet is no Parquet file"),
    "short.jsonl": (
        lambda p: p.write_text('{"tokens": [1, 2, 3]}\n{"tokens": [1]}\n'),
        r"nothing of \S*short.jsonl is 6 tokens long, the longest 3: give a smaller context, or packing='joined'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name_and_line(tmp_path, name):
    write, words = BAD[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=words) as caught:
        load_tokens(tmp_path / name, tiny_tokenizer(), 6)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_parquet_file_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    write_parquet(path, records(["ABCDEFG" * 50] * 50))
    content = bytearray(path.read_bytes())
    content[20:400] = bytes(380)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"t.parquet is damaged after row \d+"):
        load_tokens(path, tiny_tokenizer(), 6)


def test_a_damaged_dataset_folder_is_refused(tmp_path):
    saved(tmp_path / "saved", records())
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"saved is no readable folder of datasets.save_to_disk"):
        load_tokens(tmp_path / "saved", tiny_tokenizer(), 6)


def test_folders_of_two_kinds_and_of_unknown_splits_are_refused(tmp_path):
    shards(tmp_path / "both", records())
    write_parquet(tmp_path / "both" / "t.parquet", records())
    with pytest.raises(ValueError, match="Parquet files and of JSON lines"):
        load_tokens(tmp_path / "both", tiny_tokenizer(), 6)
    shards(tmp_path / "shards", records())
    with pytest.raises(ValueError, match=r"split='tests', but no file.*there are test, train.*Did you mean 'test'"):
        load_tokens(tmp_path / "shards", tiny_tokenizer(), 6, split="tests")


OPTIONS = [
    ({"n_sequences": 0}, "n_sequences is 0"),
    ({"n_sequences": True}, "n_sequences is True"),
    ({"seed": -1, "shuffle": True}, "seed is -1"),
    ({"packing": "join"}, r"packing='join'; expected 'joined', 'each'.*'joined'"),
    ({"prefix": 3}, "prefix is 3"),
    ({"prefix": "ABCDE", "suffix": "F"}, r"prefix and suffix are 6 tokens long.*sequences of 6"),
    ({"subset": "en"}, r"subset= means nothing for \S*t.jsonl"),
    ({"split": "train"}, r"split= means nothing for \S*t.jsonl"),
    ({"column": "txet"}, r"has no column 'txet', only id, text.*'text'"),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_options_that_cannot_be_meant_are_refused(tmp_path, options, words):
    write_lines(tmp_path / "t.jsonl", records())
    with pytest.raises(ValueError, match=words):
        load_tokens(tmp_path / "t.jsonl", tiny_tokenizer(), 6, **options)


def test_options_of_texts_mean_nothing_for_an_array(tmp_path):
    np.save(tmp_path / "t.npy", np.array([[0, 1, 2]]))
    (tmp_path / "t.txt").write_text("ABCDEF")
    with pytest.raises(ValueError, match=r"column= and packing= means? nothing for \S*t.npy, an array"):
        load_tokens(tmp_path / "t.npy", column="text", packing="each")
    with pytest.raises(ValueError, match=r"column= means nothing"):
        load_tokens(tmp_path / "t.txt", tiny_tokenizer(), column="text")


def test_bos_and_affixes_need_a_tokenizer_that_has_them(tmp_path):
    write_lines(tmp_path / "t.jsonl", [[1, 2, 3, 4]])
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match="prepend_bos is True, but the tokenizer has no BOS token"):
        load_tokens(tmp_path / "t.jsonl", tokenizer, 4, prepend_bos=True)
    with pytest.raises(ValueError, match="prefix and suffix are texts, and the model has no tokenizer"):
        load_tokens(tmp_path / "t.jsonl", None, 4, prefix="A")


def test_a_prefix_does_not_go_beside_padding_or_before_some_bos_only(tmp_path):
    np.save(tmp_path / "padded.npy", np.array([[0, 1, 2, 3], [0, 1, 0, 0]]))
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match=r"row 1 of \S*padded.npy holds padding"):
        load_tokens(tmp_path / "padded.npy", tokenizer, suffix="A")
    np.save(tmp_path / "some.npy", np.array([[0, 1, 2, 3], [4, 1, 2, 3]]))
    with pytest.raises(ValueError, match=r"some.npy begin with BOS and some do not; prepend_bos=True"):
        load_tokens(tmp_path / "some.npy", tokenizer, prefix="A")


def test_every_id_of_a_joined_corpus_is_of_its_texts_or_bos(tmp_path):
    write_lines(tmp_path / "t.jsonl", records())
    got = load_tokens(tmp_path / "t.jsonl", tiny_tokenizer(), 5)
    own = [token for token in got.flatten().tolist() if token != BOS]
    assert own == list(chain.from_iterable(ids_of(text) for text in TEXTS))[: len(own)]
