"""Token sets: every file format read back, what is refused and how, and which positions count."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from crossvis_tl import load_tokens
from crossvis_tl.masking import token_mask
from crossvis_tl.tokens import check_tokens
from crossvis_tl.vocabulary import Vocabulary
from tests.conftest import N_CTX, VOCABULARY, tiny_tokenizer

IDS = torch.tensor([[0, 5, 59, 7], [0, 1, 2, 3], [0, 9, 9, 9]])
WRITERS = {
    "npy": lambda path: np.save(path, IDS.numpy().astype("uint16")),
    "npz": lambda path: np.savez(path, IDS.numpy().astype("int32")),
    "safetensors": lambda path: save_file({"tokens": IDS}, path),
    "pt": lambda path: torch.save(IDS, path),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_array_format_reads_back_as_int64(tmp_path, suffix):
    path = tmp_path / f"tokens.{suffix}"
    WRITERS[suffix](path)
    got = load_tokens(path)
    assert got.dtype == torch.int64
    assert torch.equal(got, IDS)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64"])
def test_integer_widths_do_not_change_ids(tmp_path, dtype):
    np.save(tmp_path / "t.npy", IDS.numpy().astype(dtype))
    assert torch.equal(load_tokens(tmp_path / "t.npy"), IDS)


def test_large_uint16_ids_do_not_turn_negative(tmp_path):
    np.save(tmp_path / "t.npy", np.array([[0, 40_000, 65_535]], dtype="uint16"))
    assert load_tokens(tmp_path / "t.npy").tolist() == [[0, 40_000, 65_535]]


def test_the_array_named_tokens_is_taken_among_others(tmp_path):
    np.savez(tmp_path / "t.npz", mask=np.ones((3, 4), int), tokens=IDS.numpy())
    assert torch.equal(load_tokens(tmp_path / "t.npz"), IDS)


def test_text_is_cut_into_rows_that_begin_with_bos(tmp_path):
    text = "ABCDEFGHIJKLMNOPQRSTUV"
    (tmp_path / "t.txt").write_text(text)
    tokenizer = tiny_tokenizer()
    rows = load_tokens(tmp_path / "t.txt", tokenizer, context=5)
    assert rows.shape == (5, 5)
    assert (rows[:, 0] == tokenizer.bos_token_id).all()
    assert tokenizer.decode(rows[:, 1:].flatten()) == text[:20]


def test_text_without_a_bos_token_fills_whole_rows(tmp_path):
    (tmp_path / "t.txt").write_text("ABCDEFGHIJK")
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    rows = load_tokens(tmp_path / "t.txt", tokenizer, context=5)
    assert rows.shape == (2, 5)
    assert tokenizer.decode(rows.flatten()) == "ABCDEFGHIJ"


def refusal(path, tokenizer=None, context=128, error=ValueError) -> str:
    """-> the error's text, which must be one line that names the file."""
    with pytest.raises(error) as caught:
        load_tokens(path, tokenizer, context)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_a_missing_file_is_named_with_what_to_give(tmp_path):
    text = refusal(tmp_path / "tokens.npy", error=FileNotFoundError)
    assert "does not exist" in text
    assert "array of ids or a text file" in text


def test_a_missing_file_comes_with_near_misses(tmp_path):
    np.save(tmp_path / "tokens.npy", IDS.numpy())
    assert "'tokens.npy'" in refusal(tmp_path / "token.npy", error=FileNotFoundError)


def test_a_folder_is_called_a_folder(tmp_path):
    assert "is a folder" in refusal(tmp_path, error=(OSError, ValueError))


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


BROKEN = {
    "float.npy": (lambda p, _: np.save(p, np.zeros((2, 3))), "integers"),
    "complex.npy": (lambda p, _: np.save(p, np.zeros((2, 3), complex)), "integers"),
    "bool.npy": (lambda p, _: np.save(p, np.zeros((2, 3), bool)), "integers"),
    "cube.npy": (lambda p, _: np.save(p, np.zeros((2, 3, 4), int)), r"\(2, 3, 4\).*\[sequences, positions\]"),
    "words.npy": (lambda p, _: np.save(p, np.array([["a", "b"]])), "token ids"),
    "objects.npy": (lambda p, bomb: np.save(p, np.array([bomb], dtype=object)), "token ids"),
    "noise.npy": (lambda p, _: p.write_bytes(b"abc"), "token ids"),
    "empty.npy": (lambda p, _: p.write_bytes(b""), "token ids"),
    "noise.npz": (lambda p, _: p.write_bytes(b"abc"), "token ids"),
    "two.npz": (lambda p, _: np.savez(p, a=IDS.numpy(), b=IDS.numpy()), "a, b.*'tokens'"),
    "none.npz": (lambda p, _: np.savez(p), "nothing"),
    "noise.safetensors": (lambda p, _: p.write_bytes(b"abc"), "token ids"),
    "noise.pt": (lambda p, _: p.write_bytes(b"abc"), "token ids"),
    "empty.pt": (lambda p, _: p.write_bytes(b""), "token ids"),
    "list.pt": (lambda p, _: torch.save([IDS], p), "list"),
    "number.pt": (lambda p, _: torch.save({"tokens": 3}, p), "token"),
    "bomb.pt": (lambda p, bomb: torch.save({"tokens": bomb}, p), "token ids"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_without_ids_is_refused_by_name_and_runs_no_code(tmp_path, name):
    write, words = BROKEN[name]
    write(tmp_path / name, Bomb(tmp_path / "boom"))
    assert re.search(words, refusal(tmp_path / name))
    assert not (tmp_path / "boom").exists()


def test_a_truncated_array_is_refused(tmp_path):
    np.save(tmp_path / "t.npy", IDS.numpy())
    content = (tmp_path / "t.npy").read_bytes()
    (tmp_path / "t.npy").write_bytes(content[:-20])
    assert "token ids" in refusal(tmp_path / "t.npy")


@pytest.mark.parametrize(
    ("content", "context", "words"),
    [(b"", 8, "empty"), (b"ABCDEF", 1, "context"), (b"ABCDEF", 0, "context"), (b"\xff\xfe\x80\x81", 8, "UTF-8")],
)
def test_bad_text_is_refused(tmp_path, content, context, words):
    (tmp_path / "t.txt").write_bytes(content)
    assert words in refusal(tmp_path / "t.txt", tiny_tokenizer(), context)


def test_text_needs_a_tokenizer(tmp_path):
    (tmp_path / "t.txt").write_text("ABCDEF")
    text = refusal(tmp_path / "t.txt")
    assert "no tokenizer" in text
    assert ".npy" in text


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (torch.zeros(0, 5, dtype=torch.long), r"empty.*at least one"),
        (torch.zeros(5, 0, dtype=torch.long), r"empty"),
        (torch.zeros(5, dtype=torch.long), r"\[sequences, positions\].*\(5,\)"),
        (torch.zeros(1, 2, 3, dtype=torch.long), r"\[sequences, positions\].*\(1, 2, 3\)"),
        (torch.zeros(2, 3), r"integer.*float32"),
        (torch.zeros(2, 3, dtype=torch.bool), r"integer.*bool"),
        (torch.tensor([[0, VOCABULARY]]), rf"id {VOCABULARY}\b.*vocabulary of {VOCABULARY}\b"),
        (torch.tensor([[0, -1]]), rf"id -1\b.*vocabulary of {VOCABULARY}\b"),
        (torch.ones(1, N_CTX + 1, dtype=torch.long), rf"{N_CTX + 1} positions.*context is {N_CTX}\b"),
        ([[1, 2]], r"integer ids.*list"),
        ("hello", r"integer ids.*str"),
    ],
)
def test_check_tokens_names_place_and_fault(tl_models, tokens, words):
    with pytest.raises(ValueError, match=words) as caught:
        check_tokens(tokens, tl_models[0], "tokens.npy")
    assert str(caught.value).startswith("tokens.npy ")


def test_check_tokens_lets_good_ones_pass(tl_models, tokens):
    check_tokens(tokens, tl_models[0])
    check_tokens(tokens.int(), tl_models[0])
    check_tokens(torch.full((1, N_CTX), VOCABULARY - 1), tl_models[0])


def tokenizer_with(bos, pad) -> SimpleNamespace:
    return SimpleNamespace(bos_token_id=bos, pad_token_id=pad)


SPECIAL = [(0, 0), (1, 0), (0, 1), (0, None), (None, 0), (None, None)]


@st.composite
def padded_rows(draw):
    """-> (tokenizer, tokens, expected): rows of padding, BOS, anything between two ordinary tokens, padding."""
    bos, pad = draw(st.sampled_from(SPECIAL))
    width = draw(st.integers(4, 12))
    rows, expected = [], []
    for _ in range(draw(st.integers(1, 5))):
        n_bos = 0 if bos is None else draw(st.integers(0, 1))
        body = draw(st.integers(2, width - n_bos) if pad is not None else st.just(width - n_bos))
        left = draw(st.integers(0, width - n_bos - body)) if pad is not None else 0
        ends = st.integers(2, 9)
        inner = draw(st.lists(st.integers(0, 9), min_size=body - 2, max_size=body - 2))
        right = width - left - n_bos - body
        rows.append([pad] * left + [bos] * n_bos + [draw(ends), *inner, draw(ends)] + [pad] * right)
        expected.append([False] * (left + n_bos) + [True] * body + [False] * right)
    return tokenizer_with(bos, pad), torch.tensor(rows), torch.tensor(expected)


@settings(deadline=None, max_examples=200)
@given(padded_rows())
def test_the_mask_is_leading_run_and_trailing_padding_and_nothing_else(case):
    tokenizer, tokens, expected = case
    assert torch.equal(token_mask(tokens, tokenizer).counted, expected)


@settings(deadline=None, max_examples=200)
@given(padded_rows())
def test_the_text_accounts_for_every_position_left_out(case):
    tokenizer, tokens, expected = case
    text = token_mask(tokens, tokenizer).text
    assert sum(int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", text)) == int((~expected).sum())


@settings(deadline=None, max_examples=50)
@given(padded_rows())
def test_masking_none_counts_everything(case):
    tokenizer, tokens, _ = case
    mask = token_mask(tokens, tokenizer, "none")
    assert mask.counted.shape == tokens.shape
    assert mask.counted.all()


def test_the_text_tells_bos_from_padding():
    tokens = torch.tensor([[0, 0, 1, 5, 6], [1, 5, 6, 0, 0], [1, 5, 0, 1, 6]])
    text = token_mask(tokens, tokenizer_with(1, 0)).text
    assert re.search(r"BOS \(3 tokens\)", text)
    assert re.search(r"padding \(4 tokens\)", text)


def test_bos_that_doubles_as_padding_is_counted_once_a_row():
    text = token_mask(torch.tensor([[0, 0, 0, 5, 6], [0, 5, 6, 0, 0]]), tokenizer_with(0, 0)).text
    assert re.search(r"BOS \(2 tokens\)", text)
    assert re.search(r"padding \(4 tokens\)", text)


def test_large_counts_are_written_with_separators():
    tokens = torch.full((1500, 3), 5)
    tokens[:, 0] = 0
    assert "1,500" in token_mask(tokens, tokenizer_with(0, None)).text


@pytest.mark.parametrize("pad", [None, 1])
def test_a_doubled_bos_is_not_called_padding(pad):
    text = token_mask(torch.tensor([[0, 0, 5, 6]]), tokenizer_with(0, pad)).text
    assert re.search(r"BOS \(2 tokens\)", text)


def test_a_row_of_padding_alone_is_left_out_whole():
    counted = token_mask(torch.tensor([[0, 0, 0], [1, 5, 6]]), tokenizer_with(1, 0)).counted
    assert counted.tolist() == [[False] * 3, [False, True, True]]


@pytest.mark.parametrize(("bos", "pad"), [(0, 0), (1, 0), (0, None), (None, 0)])
def test_nothing_left_is_an_error(bos, pad):
    tokens = torch.full((2, 4), 0)
    if bos:
        tokens[:, 0] = bos
    with pytest.raises(ValueError, match="every token is BOS or padding"):
        token_mask(tokens, tokenizer_with(bos, pad))


def test_an_unknown_masking_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"nonee.*special.*none"):
        token_mask(IDS, tokenizer_with(0, 0), "nonee")


class Pieces:
    """A tokenizer that knows some pieces and decodes each by itself, as HuggingFace's do."""

    def __init__(self, pieces):
        self.pieces = pieces

    def convert_ids_to_tokens(self, i):
        return self.pieces[i][0]

    def decode(self, ids, **_):
        return self.pieces[ids[0]][1].decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    ("piece", "content", "text"),
    [
        ("Ġcat", b" cat", " cat"),
        ("Ċ", b"\n", "\n"),
        ("ĠðŁ", b" \xf0\x9f", " \udcf0\udc9f"),
        ("ĺĢ", b"\x98\x80", "\udc98\udc80"),
        ("<0xE2>", b"\xe2", "\udce2"),
        ("ï¿½", "\ufffd".encode(), "\ufffd"),  # the character that stands for broken ones, itself
        ("▁cat", b"cat", " cat"),
    ],
)
def test_tokens_are_the_text_they_are_and_loose_bytes_stay_bytes(piece, content, text):
    found = Vocabulary(Pieces([(piece, content)])).text(0)
    assert found == text
    assert found.encode("utf-8", errors="surrogateescape") == (content if piece[0] != "▁" else b" cat")
