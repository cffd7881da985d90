"""The texts the demo models learn from, as fixed-length token sequences.

Three kinds, all under free licences: *prose* (the King James Bible, public domain, Debian package `bible-kjv`),
*docs* (the Python documentation's reStructuredText, PSF licence, Debian package `python3.11-doc`) and *code* (the
Python standard library's source, PSF licence, from the interpreter that runs this).
"""

import hashlib
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

CONTEXT = 128
VOCABULARY = 4096
BOS = "<|endoftext|>"
HELD_OUT_SHARE = 0.04
DOCS_FOLDER = Path("/usr/share/doc/python3.11/html/_sources")
# Tables of numbers and test suites teach a small model nothing anyone would want to look at.
CODE_LEFT_OUT = re.compile(r"/(site-packages|test|tests|idle_test|encodings|pydoc_data|lib2to3|__pycache__)/")


def prose() -> list[str]:
    """One document a chapter, verse numbers and line breaks taken out."""
    reader = shutil.which("bible")
    if reader is None:
        raise FileNotFoundError("the command `bible` is missing; install Debian's package bible-kjv and run this again")
    text = subprocess.run(
        [reader, "-l100000", "gen1:1-rev22:21"], capture_output=True, text=True, check=True, encoding="latin-1"
    ).stdout
    chapters = re.split(r"\n\s*\n(?=[^\n]+ \d+\s*\n)|\n(?=[A-Z0-9][A-Za-z ]+ \d+\n\n)", text)
    return [re.sub(r"(?m)^\s*\d+ ", "", chapter).strip() for chapter in chapters if len(chapter) > 200]


def docs() -> list[str]:
    if not DOCS_FOLDER.is_dir():
        raise FileNotFoundError(f"{DOCS_FOLDER} is missing; install Debian's package python3.11-doc and run this again")
    return [path.read_text(encoding="utf-8") for path in sorted(DOCS_FOLDER.rglob("*.rst.txt"))]


def code() -> list[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in library.rglob("*.py") if not CODE_LEFT_OUT.search(f"/{path.relative_to(library)}"))
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


def held_out(document: str) -> bool:
    """A document's own text decides, so the split never depends on order or on what else there is."""
    return int(hashlib.sha256(document.encode()).hexdigest()[:8], 16) / 2**32 < HELD_OUT_SHARE


def train_tokenizer(documents: list[str], folder: Path) -> PreTrainedTokenizerFast:
    raw = ByteLevelBPETokenizer()
    raw.train_from_iterator(documents, vocab_size=VOCABULARY, min_frequency=2, special_tokens=[BOS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw._tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        unk_token=BOS,
        model_max_length=CONTEXT,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def sequences(documents: list[str], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """-> uint16 [sequences, CONTEXT]: each begins with the BOS token and lies within one document."""
    rows = []
    bos = tokenizer.bos_token_id
    for document in documents:
        ids = tokenizer(document, verbose=False)["input_ids"]
        for start in range(0, len(ids) - CONTEXT + 2, CONTEXT - 1):
            rows.append([bos, *ids[start : start + CONTEXT - 1]])
    return np.array(rows, dtype=np.uint16)
