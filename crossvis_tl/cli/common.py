"""What the commands share: where they print, how errors end, options that several take."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from crossvis_tl.documents import Reading
    from crossvis_tl.fidelity import Fidelity

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
FACT_HELP = "NAME=VALUE that the files lack, such as k=32 or activation=topk; repeatable."
TRUST_HELP = "Open a pickle that may run code, of an author you trust."
STYLE = {"plausible": "green", "doubtful": "yellow", "implausible": "bold red"}


@contextmanager
def user_errors() -> Iterator[None]:
    """What a user can mend ends in one clear line and exit status 2; our own mistakes keep their traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}")
        raise typer.Exit(2) from error
    except KeyboardInterrupt as stopped:
        err.print(escape(str(stopped)) or "interrupted; nothing was written")
        raise typer.Exit(130) from None


def show_fidelity(fidelity: "Fidelity") -> None:
    """The verdict first: a wrong hook or scale gives pages that look fine and mean nothing."""
    headline, *others = fidelity.lines()
    out.print(f"[{STYLE[fidelity.verdict]}]{escape(headline)}[/]")
    for line in others:
        bad = line.lstrip().startswith("warning:")
        out.print(f"[bold red]{escape(line)}[/]" if bad else escape(line))


def quiet_libraries() -> None:
    import warnings

    from transformers.utils import logging as transformers_logging

    from crossvis_tl.errors import CrossvisWarning

    warnings.simplefilter("ignore", CrossvisWarning)  # the verdict is printed with its warnings
    transformers_logging.disable_progress_bar()


def numbers(text: str | None) -> list[float] | float | None:
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--input-scale {text!r}: expected numbers with commas between them") from error
    return values if len(values) > 1 else values[0]


def all_facts(
    fact: list[str] | None,
    subfolder: str | None,
    revision: str | None,
    trust_pickle: bool,
    input_scale: str | None,
    hook_point: str | None,
    **others: Any,
) -> dict[str, Any]:
    """For `load_dictionary`: those that were given."""
    from crossvis_tl.errors import parse_facts

    facts = {"subfolder": subfolder, "revision": revision, "trust_pickle": trust_pickle or None, **others}
    facts |= {"input_scale": numbers(input_scale), "hook_point": several(hook_point)}
    given = {name: value for name, value in facts.items() if value is not None}
    return given | parse_facts(fact or [])


# Options of the commands that run models over tokens.
Models = Annotated[
    list[str] | None, typer.Option("--model", help="Folder or id; once per model, in the dictionary's order.")
]
DictionaryPath = Annotated[
    str | None, typer.Option("--dictionary", help="Folder, weight file or id of the crosscoder or transcoder.")
]
Tokens = Annotated[
    str | None,
    typer.Option("--tokens", help="Token ids, a text, JSON lines, Parquet, a folder of them, or a dataset's id."),
]
InputScale = Annotated[str | None, typer.Option(help="Factor per source, if the files lack it: 0.28,0.24")]
HookPoint = Annotated[str | None, typer.Option(help="TransformerLens hook(s), if the files lack them.")]
InputHook = Annotated[str | None, typer.Option(help="A CLT's input, if its files lack it.")]
OutputHook = Annotated[str | None, typer.Option(help="A CLT's output, if its files lack it.")]
Processing = Annotated[str | None, typer.Option(help="none or tl_default, if the files lack it.")]
Facts = Annotated[list[str] | None, typer.Option(help=FACT_HELP)]
Subfolder = Annotated[str | None, typer.Option(help="Folder inside the dictionary's repository.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the dictionary's id.")]
TrustPickle = Annotated[bool, typer.Option(help=TRUST_HELP)]
Layer = Annotated[
    int | None, typer.Option(help="Only features that read this layer; numbers in --features are then within it.")
]
Sequences = Annotated[int | None, typer.Option(help="Use only so many sequences.", min=1)]
Batch = Annotated[int, typer.Option(help="Sequences per forward pass, at most.", min=1)]
Context = Annotated[int, typer.Option(help="Tokens per sequence when a text is cut.", min=2)]
Split = Annotated[str | None, typer.Option(help="Split of a dataset or folder; default train.")]
Subset = Annotated[str | None, typer.Option(help="Subset (configuration) of a dataset that has several.")]
Column = Annotated[str | None, typer.Option(help="Where the texts or ids are; default tokens, input_ids, text ...")]
Packing = Annotated[
    str | None, typer.Option(help='Texts "joined" (default), or the beginning of "each", short ones left out.')
]
Prefix = Annotated[str, typer.Option(help="A text that each sequence begins with, within its length.")]
Suffix = Annotated[str, typer.Option(help="A text that each sequence ends with.")]
MaskAffixes = Annotated[bool, typer.Option("--mask-affixes", help="The tokens of prefix and suffix do not count.")]
Bos = Annotated[bool | None, typer.Option("--bos/--no-bos", help="BOS begins each sequence; default: of texts.")]
Shuffle = Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="Documents in an order drawn by --seed.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")]
ReplaceToken = Annotated[
    list[str] | None, typer.Option(help="MODEL:ID=ID: that model reads the second id for the first; repeatable.")
]
MaskingOption = Annotated[
    str, typer.Option("--masking", help='What does not count: "special" (BOS, padding), "all special" or "none".')
]
MaskToken = Annotated[list[str] | None, typer.Option(help="A token, or its id, that does not count; repeatable.")]
MaskPosition = Annotated[
    list[int] | None, typer.Option(help="A position that does not count: 0 is the first, -1 the last; repeatable.")
]
HighNorm = Annotated[
    float | None, typer.Option(help="Tokens whose activation norm is over so many times the median do not count.")
]
Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="Replace a ranking over the batch (BatchTopK) by a threshold found here.")
]
Replacement = Annotated[
    bool | None,
    typer.Option(
        "--replacement/--no-replacement", help="What predictions lose by the reconstruction; default: of transcoders."
    ),
]
LatentScaling = Annotated[bool, typer.Option(help="Also what beta and nu of two models need (arXiv 2504.02922).")]


def reading(  # noqa: PLR0913 - each option is one of the user's
    *,
    split: str | None,
    subset: str | None,
    column: str | None,
    packing: str | None,
    prefix: str,
    suffix: str,
    mask_affixes: bool,
    bos: bool | None,
    shuffle: bool,
    seed: int,
) -> "Reading":
    """How tokens are read. ValueError for what cannot be meant."""
    from crossvis_tl.documents import Reading

    if mask_affixes and not (prefix or suffix):
        raise ValueError("--mask-affixes goes with --prefix or --suffix")
    return Reading(
        prefix=prefix, suffix=suffix, count_affixes=not mask_affixes, prepend_bos=bos,
        packing=packing, shuffle=shuffle, seed=seed, column=column, split=split, subset=subset,  # type: ignore[arg-type]
    )  # fmt: skip


def token_names(texts: list[str] | None) -> list[int | str]:
    """Ids where they are numbers."""
    return [int(text) if text.isdecimal() else text for text in texts or []]


def several(text: str | None) -> list[str] | str | None:
    """ "a,b" -> ["a", "b"]; one name as it is."""
    return text.split(",") if text and "," in text else text


def required(model: list[str] | None, dictionary: str | None, tokens: str | None) -> tuple[list[str], str, str]:
    """ValueError naming what was not given."""
    given = {"--model": model, "--dictionary": dictionary, "--tokens": tokens}
    missing = [name for name, value in given.items() if not value]
    if not model or not dictionary or not tokens:
        raise ValueError(f"{' and '.join(missing)} must be given (see --help)")
    return model, dictionary, tokens


def refuse_with_store(given: dict[str, object]) -> None:
    """ValueError for options of a gathering that is over."""
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise ValueError(f"{' and '.join(wrong)} cannot be changed now: the store was gathered already")
