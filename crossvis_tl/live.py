"""`live()`: a prompt typed into a notebook, its tokens coloured by any feature while model and dictionary stay loaded.

The page is the one that is saved, in an `<iframe>`, with another view (`page/viewer/live_view.js`). It asks and Python
answers, each in one message, a dict that `page/live_widget.js` passes on:

| asked | answered |
|---|---|
| `page` | `page`: `html`, without dashboards |
| `hello` | `start`: what was asked last (`text`, `feature`, `pins`), so that a page drawn anew goes on with it |
| `ask`: `text`, `feature`, `pins` | `answer`: what `run_prompt` gives |
| `find`: `text` | `found`: `feature`, that of a number or label, and its `label` |
| `open`: `feature` | `dashboard`: `packed`, a gathered feature as it stands in a page, and `feature` |

Where that cannot be, the answer holds `error`, a sentence for people. Each repeats `seq` and the `view` that asked: a
widget can be shown in several places.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from crossvis_tl.capture import Capture
from crossvis_tl.page.build import page_chunks, read
from crossvis_tl.page.encode import deflate
from crossvis_tl.page.pack import pack
from crossvis_tl.page_data import feature_page
from crossvis_tl.prompts import encode_prompt, prompt_mask
from crossvis_tl.sparse import SparseActs
from crossvis_tl.vocabulary import Vocabulary

if TYPE_CHECKING:
    from crossvis_tl.dashboards import Dashboards

LISTED = 50  # the strongest features of a token that are sent
SHOWN_FACTS = ("masked", "replaced tokens")  # what changes the numbers of a prompt
Message = dict[str, Any]


def live(data: "Dashboards", prompt: str = "", *, height: int = 700) -> Any:
    """A widget for a notebook, `height` pixels high: type a prompt, see what fires on each token.

    `data`: dashboards with their model and dictionary. `prompt`: what is typed at first. ValueError where `data` lacks
    one of them; RuntimeError where anywidget is not installed.
    """
    return _widget_class()(Session(data, prompt), height=int(height))


@torch.inference_mode()
def run_prompt(
    capture: Capture, data: "Dashboards", text: str, keep: Sequence[int] = (), listed: int = LISTED
) -> Message:
    """What fires on each token of a text, of the whole dictionary; what the dashboards mask fires nowhere.

    -> `text`; [position]: `ids`, `tokens` (their texts), `counted` (false: masked) and `fired`, how many features
    fire there; `acts`: columns `token`, `feature`, `value` of the `listed` largest of each position, by position and
    size, and of all that are of a gathered feature or one of `keep`; `whole`: whether that is all that fires;
    `features` and `labels` of those in `acts`. All lists are empty for an empty text. ValueError for a text that the
    models cannot read.
    """
    if not text:
        lists: Message = {name: [] for name in ("ids", "tokens", "counted", "fired", "features", "labels")}
        return {"text": text, **lists, "acts": {"token": [], "feature": [], "value": []}, "whole": True}
    tokens = encode_prompt(capture, text)
    tokenizer = capture.models[0].tokenizer
    counted = prompt_mask(tokens, tokenizer, data.masking).counted[0]
    acts = capture.dictionary.encode_sparse(capture.run(tokens).sources)
    at, feature, value, rank = _fired(acts, counted)
    always = torch.tensor([*data.feature_data_dict, *keep], dtype=torch.long)
    sent = (rank < listed) | torch.isin(feature, always)
    numbers = feature[sent].unique().tolist()
    ids, names = tokens[0].tolist(), Vocabulary(tokenizer).texts(tokens[0].tolist())
    return {
        "text": text, "ids": ids, "tokens": [names[i] for i in ids], "counted": counted.tolist(),
        "fired": torch.bincount(at, minlength=len(ids)).tolist(),
        "acts": {
            "token": at[sent].tolist(), "feature": feature[sent].tolist(),
            "value": [float(f"{v:.6g}") for v in value[sent].tolist()],
        },
        "whole": bool(sent.all()),
        "features": numbers, "labels": [_label(capture, data, number) for number in numbers],
    }  # fmt: skip


def _fired(acts: SparseActs, counted: Bool[Tensor, " positions"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> position, feature, activation and rank at its position (0: the largest) of all that fires where it counts, by
    position and rank."""
    at, feature, value = acts.tokens.cpu(), acts.features.cpu(), acts.values.cpu()
    if not bool(value.isfinite().all()):
        wrong = int(at[~value.isfinite()][0])
        raise ValueError(
            f"an activation at position {wrong} is not a finite number; does the model overflow in {value.dtype}?"
        )
    kept = counted.cpu()[at]
    at, feature, value = at[kept], feature[kept], value[kept]
    order = value.abs().argsort(descending=True, stable=True)
    order = order[at[order].argsort(stable=True)]
    at, feature, value = at[order], feature[order], value[order]
    first = torch.searchsorted(at, at)  # where its position begins
    return at, feature, value, torch.arange(len(at)) - first


def _label(capture: Capture, data: "Dashboards", feature: int) -> str:
    """What the dashboards call it, or its layer's name; "" where that only repeats the number."""
    panel = data.panels.get(feature)
    label = panel.label if panel else capture.dictionary.label(feature)
    return "" if label == str(feature) else label


class Session:
    """Answers what a live page asks, whatever stands between them. ValueError as `Dashboards.ready` says.

    `text`, `feature`, `pins`: what was asked last.
    """

    def __init__(self, data: "Dashboards", prompt: str = ""):
        self.data, self.capture = data, data.ready()
        self.text, self.feature, self.pins = str(prompt), None, []

    def answer(self, message: object) -> Message | None:
        """-> the answer, as the module says; None for what is no question. Never raises: an error is answered."""
        answers: dict[str, tuple[str, Callable[[Message], Message]]] = {
            "page": ("page", self._page), "hello": ("start", self._start),
            "ask": ("answer", self._ask), "find": ("found", self._find), "open": ("dashboard", self._open),
        }  # fmt: skip
        asked = message if isinstance(message, dict) else {}
        if str(asked.get("kind")) not in answers:
            return None
        kind, make = answers[str(asked["kind"])]
        try:
            made = make(asked)
        except ValueError as error:
            made = {"error": str(error)}
        except Exception as error:  # whatever a model, a tokenizer or a device raises: the page says it and goes on
            made = {"error": f"{type(error).__name__}: {error}"}
        return {"kind": kind, "view": asked.get("view"), "seq": asked.get("seq"), **made}

    def _page(self, asked: Message) -> Message:
        return {"html": live_page(self.data)}

    def _start(self, asked: Message) -> Message:
        return {"text": self.text, "feature": self.feature, "pins": self.pins}

    def _ask(self, asked: Message) -> Message:
        self.text, self.feature, self.pins = str(asked["text"]), asked["feature"], list(asked["pins"])
        keep = self.pins if self.feature is None else [self.feature, *self.pins]
        self.capture.dictionary.check_features(keep)
        answer = run_prompt(self.capture, self.data, self.text, keep)
        return answer | {"tokens": json.dumps(answer["tokens"])}  # messages carry no loose bytes, and this is ASCII

    def _find(self, asked: Message) -> Message:
        wanted = str(asked["text"]).strip().removeprefix("#")
        labelled = (f for f, panel in self.data.panels.items() if panel.label.casefold() == wanted.casefold())
        feature = next(labelled, None)
        feature = self.capture.dictionary.find(wanted) if feature is None else feature
        return {"feature": feature, "label": _label(self.capture, self.data, feature)}

    def _open(self, asked: Message) -> Message:
        feature = asked["feature"]
        if feature not in self.data.feature_data_dict:
            return {"feature": feature, "error": f"feature {feature} was not gathered"}
        return {"feature": feature, "packed": packed_dashboard(self.data, feature)}


def live_page(data: "Dashboards") -> str:
    """-> the page as HTML. It holds no dashboards: it asks for each when it is looked at, so it opens at once however
    many were gathered."""
    head, _ = feature_page(data, None)
    facts = [fact for fact in head["facts"] if fact[0] in SHOWN_FACTS]
    before = next(iter(page_chunks(head | {"view": "live", "facts": facts, "open_map": False}, ())))
    return before + read("shell.html").split("%%FEATURES%%")[1]


def packed_dashboard(data: "Dashboards", feature: int) -> str:
    """-> a gathered feature as its tag in a page holds it; its tokens are places in the vocabulary of `live_page`."""
    alone = copy(data)
    alone.feature_data_dict = {feature: data.feature_data_dict[feature]}
    _, payloads = feature_page(alone, feature)
    return deflate(pack(next(payloads)[1]), f"feature {feature}")


@cache
def _widget_class() -> type:
    """The widget, made where anywidget is installed."""
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        need = "live() needs anywidget, which is not installed: pip install 'crossvis-tl[widget]'"
        raise RuntimeError(need) from error

    class Live(anywidget.AnyWidget):
        """A live page in a notebook's output; `session` answers it."""

        _esm = read("live_widget.js")
        height = traitlets.Int(700).tag(sync=True)

        def __init__(self, session: Session, **traits: Any):
            super().__init__(**traits)
            self.session = session
            self.on_msg(self._heard)

        def _heard(self, _widget: object, content: Mapping[str, Any], _buffers: object) -> None:
            answer = self.session.answer(content)
            if answer is not None:
                self.send(answer)

    return Live
