"""The command line: `crossvis demo`, `crossvis render`, `crossvis inspect`, `crossvis hooks`."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from crossvis_tl.fidelity import Fidelity

app = typer.Typer(
    help="Feature dashboards for crosscoders and cross-layer transcoders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
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
    except KeyboardInterrupt:
        err.print("interrupted; nothing was written")
        raise typer.Exit(130) from None


@app.callback()
def setup(
    verbose: Annotated[bool, typer.Option("--verbose", help="Log what is done, and other libraries' notes.")] = False,
) -> None:
    """Feature dashboards for crosscoders and cross-layer transcoders."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="Folder for the pages; made if it is not there.")] = Path(
        "demo_out"
    ),
) -> None:
    """Dashboards of the crosscoder and the cross-layer transcoder that ship with the package."""
    with user_errors():
        from crossvis_tl.demo import run_demo

        _quiet_libraries()
        result = run_demo(folder, say=out.print, verdict=show_fidelity)
        for page in result.pages:
            out.print(f"[bold]open[/] {escape(str(page))}  ({page.stat().st_size / 1e6:.1f} MB)")
        out.print("worth a look:")
        for feature in result.highlights:
            out.print(f"  {escape(feature)}")


@app.command()
def render(  # noqa: PLR0913, PLR0917 - each option is one of the user's
    model: Annotated[list[str], typer.Option(help="Folder or id; once per model, in the dictionary's order.")],
    dictionary: Annotated[str, typer.Option(help="Folder, weight file or id of the crosscoder or transcoder.")],
    tokens: Annotated[Path, typer.Option(help="Token ids (.npy, .npz, .safetensors, .pt) or a text file.")],
    features: Annotated[str, typer.Option(help='"0,5,10-20", "L3F7", "all" or "top:50" (by maximum).')] = "top:50",
    page: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("features.html"),
    input_scale: Annotated[str | None, typer.Option(help="Factor per source, if the files lack it: 0.28,0.24")] = None,
    hook_point: Annotated[str | None, typer.Option(help="TransformerLens hook(s), if the files lack them.")] = None,
    feature_input_hook: Annotated[str | None, typer.Option(help="A CLT's input, if its files lack it.")] = None,
    feature_output_hook: Annotated[str | None, typer.Option(help="A CLT's output, if its files lack it.")] = None,
    processing: Annotated[str | None, typer.Option(help="none or tl_default, if the files lack it.")] = None,
    fact: Annotated[list[str] | None, typer.Option(help=FACT_HELP)] = None,
    subfolder: Annotated[str | None, typer.Option(help="Folder inside the dictionary's repository.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the dictionary's id.")] = None,
    trust_pickle: Annotated[bool, typer.Option(help=TRUST_HELP)] = False,
    sequences: Annotated[int | None, typer.Option(help="Use only so many sequences.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Sequences per forward pass.", min=1)] = 64,
    context: Annotated[int, typer.Option(help="Tokens per sequence when a text is cut.", min=2)] = 128,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16, for the models.")] = "float32",
    seed: Annotated[int, typer.Option(help="For the random samples shown.")] = 0,
    replace_token: Annotated[
        list[str] | None, typer.Option(help="MODEL:ID=ID: that model reads the second id for the first; repeatable.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Also save the dashboards' data here (.json).")] = None,
) -> None:  # fmt: skip
    """Write the dashboards of some features into one HTML file."""
    with user_errors():
        from crossvis_tl.errors import parse_facts
        from crossvis_tl.files import check_output
        from crossvis_tl.pairs import parse_replacements
        from crossvis_tl.render import RenderJob

        check_output(page)
        if json is not None:
            check_output(json, ".json")
            if json.resolve() == page.resolve():
                raise ValueError(f"--out and --json both name {page}; give two files")
        _quiet_libraries()
        facts: dict[str, Any] = {
            "hook_point": hook_point.split(",") if hook_point and "," in hook_point else hook_point,
            "feature_input_hook": feature_input_hook,
            "feature_output_hook": feature_output_hook,
            "processing": processing,
            "input_scale": _numbers(input_scale),
            "subfolder": subfolder,
            "revision": revision,
            "trust_pickle": trust_pickle or None,
        } | parse_facts(fact or [])
        job = RenderJob(
            models=model, dictionary=dictionary, tokens=tokens, features=features, device=device, dtype=dtype,
            context=context, token_replacements=parse_replacements(replace_token or []),
            facts={name: value for name, value in facts.items() if value is not None},
            cfg_fields={"batch_size": sequences, "minibatch_size_tokens": batch, "seed": seed, "verbose": True},
        )  # fmt: skip
        data = job.run(verdict=show_fidelity)
        data.save_feature_centric_vis(page)
        if json is not None:
            data.save_json(json)
        n = len(data.feature_data_dict)
        out.print(f"{n} feature{'s' if n > 1 else ''} in {escape(str(page))} ({page.stat().st_size / 1e6:.1f} MB)")


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="Folder, weight file or id of a crosscoder, transcoder or SAE.")],
    fact: Annotated[list[str] | None, typer.Option(help=FACT_HELP)] = None,
    subfolder: Annotated[str | None, typer.Option(help="Folder inside the repository.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of an id.")] = None,
    trust_pickle: Annotated[bool, typer.Option(help=TRUST_HELP)] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a file is: format, sites, activation, sizes, what is missing, and how to load it."""
    with user_errors():
        from crossvis_tl import inspection
        from crossvis_tl.errors import parse_facts

        options: dict[str, Any] = {"subfolder": subfolder, "revision": revision, "trust_pickle": trust_pickle}
        found = inspection.inspect(path, **options, **parse_facts(fact or []))
        if json:
            typer.echo(found.as_json())
            return
        style = {"needed": "bold red", "missing": "yellow", "load it": "bold green"}
        for label, text in inspection.lines(found):
            out.print(f"[{style.get(label, 'bold')}]{escape(label):<14}[/]{escape(text)}")


@app.command()
def hooks(
    model: Annotated[str, typer.Argument(help="Folder or id of a HuggingFace model; only its config is read.")],
    layer: Annotated[int | None, typer.Option(help="Only this layer's rows.")] = None,
    find: Annotated[str | None, typer.Option(help="One tensor, by any of its names.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print which TransformerLens hook holds which HuggingFace tensor."""
    with user_errors():
        from crossvis_tl.hooks import find_hook, hook_table
        from crossvis_tl.hooks.show import as_json, details, table_lines

        if find is not None:
            rows = [find_hook(model, find, layer)]
            if json:
                typer.echo(as_json(rows))
            else:
                out.print(details(rows[0]))
            return
        rows = hook_table(model, layer)
        if json:
            typer.echo(as_json(rows))
        else:
            for line in table_lines(rows, collapse=layer is None):
                out.print(line)


def _numbers(text: str | None) -> list[float] | float | None:
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--input-scale {text!r}: expected numbers with commas between them") from error
    return values if len(values) > 1 else values[0]


def show_fidelity(fidelity: "Fidelity") -> None:
    """The verdict first: a wrong hook or scale gives pages that look fine and mean nothing."""
    headline, *others = fidelity.lines()
    out.print(f"[{STYLE[fidelity.verdict]}]{escape(headline)}[/]")
    for line in others:
        bad = line.lstrip().startswith("warning:")
        out.print(f"[bold red]{escape(line)}[/]" if bad else escape(line))


def _quiet_libraries() -> None:
    import warnings

    from transformers.utils import logging as transformers_logging

    from crossvis_tl.errors import CrossvisWarning

    warnings.simplefilter("ignore", CrossvisWarning)  # the verdict is printed with its warnings
    transformers_logging.disable_progress_bar()


def main() -> None:
    # Threads that spin while they wait make everything several times slower when another program has a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()
