"""Token ids as the text people read: byte-level tokens decoded, a leading space kept.

A token may hold a part of a character. Its loose bytes are then lone surrogates (U+DC80 to U+DCFF, as Python's
"surrogateescape" has it), which no text holds otherwise: a page puts neighbouring parts together again.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's byte-level alphabet: printable bytes stand for themselves, the others follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class Vocabulary:
    """Texts of token ids under a HuggingFace tokenizer; `#id` without one."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def text(self, token_id: int) -> str:
        if self.tokenizer is None:
            return f"#{token_id}"
        piece = self.tokenizer.convert_ids_to_tokens(token_id)
        if piece is None:  # an id the model has room for and the tokenizer does not use
            return f"#{token_id}"
        if piece.startswith("▁"):  # SentencePiece: decoding one token alone would lose its leading space
            return piece.replace("▁", " ")
        decoded = self.tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return decoded if "\ufffd" not in decoded else self._bytes(piece)

    def _bytes(self, piece: str) -> str:
        """Part of a character, of a byte-level alphabet or written out ("<0xE2>")."""
        alphabet = _byte_of_character()
        single = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece)
        if single:
            return bytes([int(single[1], 16)]).decode("utf-8", errors="surrogateescape")
        if not all(character in alphabet for character in piece):
            return piece
        return bytes(alphabet[character] for character in piece).decode("utf-8", errors="surrogateescape")

    def texts(self, token_ids: Iterable[int]) -> dict[int, str]:
        return {token_id: self.text(token_id) for token_id in sorted(set(token_ids))}
