"""A feature as the front-end of circuit-tracer shows it, and the records its feature files are made of.

Read from the front-end's own code (safety-research/circuit-tracer and its forks, circuit_tracer/frontend/assets/:
util.js, feature_examples/init-feature-examples*.js).
"""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossvis_tl.dashboards import Dashboards

PREFIX = 4  # bytes of a record's length
# In place of tokens that are not known. Where there are none, the front-end goes on showing the last feature's.
NO_TOKENS = [""]
# What a graph's node shows for a feature of which no dashboard was made.
ABSENT = {
    "examples_quantiles": [{"quantile_name": "Not among the features exported", "examples": []}],
    "top_logits": NO_TOKENS,
    "bottom_logits": NO_TOKENS,
    "act_min": 0.0,
    "act_max": 0.0,
}


def feature_record(data: "Dashboards", feature: int, layer: int, index: int) -> dict[str, Any]:
    """What the front-end shows of a feature: groups of examples, and the tokens it raises and lowers most.

    `feature`: its number in `data`; `index`: that in its layer. Activations are those of the dashboards. Colours go
    from `act_min` to `act_max`. `activation_frequency`: share of counted tokens.
    """
    panel, words = data.panels[feature], data.page.vocabulary
    groups = data.feature_data_dict[feature].sequence_data.seq_group_data
    quantiles = [
        {
            "quantile_name": _title(group.title),
            "examples": [
                {
                    "tokens": [escaped(words[i]) for i in sequence.token_ids],
                    "tokens_acts_list": [float(act) for act in sequence.feat_acts],
                    "train_token_ind": shown.bold,
                    "is_repeated_datapoint": False,
                }
                for sequence, shown in zip(group.seq_data, records, strict=True)
            ],
        }
        for group, records in zip(groups, panel.sequences, strict=True)
    ]
    if not quantiles and not panel.density:
        quantiles = [{"quantile_name": "Never fired on these tokens", "examples": []}]
    lowest = min((a for q in quantiles for e in q["examples"] for a in e["tokens_acts_list"]), default=0.0)
    table = panel.logits[min(panel.logits)].table if panel.logits else None
    return {
        "layer": layer,
        "feature": index,
        "examples_quantiles": quantiles,
        "top_logits": [escaped(words[i]) for i in table.top_token_ids] if table else NO_TOKENS,
        "bottom_logits": [escaped(words[i]) for i in table.bottom_token_ids] if table else NO_TOKENS,
        "act_min": min(0.0, lowest),
        "act_max": float(panel.maximum),
        "activation_frequency": float(panel.density),
    }


def _title(title: str) -> str:
    """ "TOP ACTIVATIONS<br>MAX = 1.2" -> "Top activations, max = 1.2": the front-end shows it as text."""
    return re.sub(r"<br\s*/?>", ", ", title).capitalize()


def escaped(text: str) -> str:
    r"""A token's loose bytes (`vocabulary`) as \xe2, which the front-end puts together with its neighbours'."""
    return re.sub(r"[\udc80-\udcff]", lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", text)


def as_json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="backslashreplace")


def packed(content: bytes) -> bytes:
    """-> the record: length of what follows (4 bytes, little-endian), gzip of the JSON. The same each time."""
    body = gzip.compress(content, 6, mtime=0)
    return len(body).to_bytes(PREFIX, "little") + body


def scanned(path: Path) -> Iterator[int]:
    """Where each record of a file begins, and last where the file ends. ValueError where its lengths do not fit."""
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at < size:
            yield at
            file.seek(at)
            at += PREFIX + int.from_bytes(file.read(PREFIX), "little")
    if at != size:
        raise ValueError(f"{path} is damaged: its records do not end where it does; delete it, and it is made again")
    yield size
