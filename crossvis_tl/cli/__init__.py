"""The command line: `crossvis demo`, `render`, `page`, `gather`, `merge`, `export`, `inspect` and `hooks`."""

import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from crossvis_tl.cli.common import FACT_HELP, TRUST_HELP, out, quiet_libraries, show_fidelity, user_errors
from crossvis_tl.cli.exporting import export
from crossvis_tl.cli.neuronpedia import neuronpedia
from crossvis_tl.cli.rendering import page, render
from crossvis_tl.cli.storing import gather, merge

app = typer.Typer(
    help="Feature dashboards for crosscoders and cross-layer transcoders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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

        quiet_libraries()
        result = run_demo(folder, say=out.print, verdict=show_fidelity)
        for page in result.pages:
            out.print(f"[bold]open[/] {escape(str(page))}  ({page.stat().st_size / 1e6:.1f} MB)")
        out.print("worth a look:")
        for feature in result.highlights:
            out.print(f"  {escape(feature)}")


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


app.command()(render)
app.command()(page)
app.add_typer(export, name="export")
app.command()(neuronpedia)
app.command()(gather)
app.command()(merge)


def main() -> None:
    # Threads that spin while they wait make everything several times slower when another program has a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()
