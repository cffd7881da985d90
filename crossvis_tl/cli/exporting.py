"""`crossvis export`: what was gathered and shown, for other tools."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from crossvis_tl.cli import common
from crossvis_tl.cli.common import out, show_fidelity, user_errors

export = typer.Typer(help="Write what was gathered for other tools: Delphi, circuit-tracer.", no_args_is_help=True)


@export.command()
def delphi(
    store: Annotated[Path, typer.Option(help="What `crossvis gather` made.")],
    folder: Annotated[Path, typer.Option("--out", help="The folder to write; one that was begun is gone on with.")],
    splits: Annotated[int, typer.Option(help="Files for each hook point.", min=1)] = 5,
    module: Annotated[
        list[str] | None, typer.Option(help="Folder's name of a hook point, in order; repeatable. Default: its hook.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32 (exact) or float16 (as Delphi's own), of activations.")
    ] = "float32",
    model_name: Annotated[
        str | None, typer.Option(help="Whose tokenizer Delphi loads; default: where the store's model was loaded from.")
    ] = None,
) -> None:
    """Write Delphi's latent cache, for explaining and scoring features."""
    with user_errors():
        from crossvis_tl.export import export_delphi

        common.quiet_libraries()
        export_delphi(
            store, folder, n_splits=splits, modules=module, dtype=dtype,  # type: ignore[arg-type]
            model_name=model_name,
        )  # fmt: skip
        _report(folder, "**/*.safetensors")


@export.command("circuit-tracer")
def circuit_tracer(  # noqa: PLR0913, PLR0917 - each option is one of the user's
    folder: Annotated[Path, typer.Option("--out", help="The folder to write; one that was begun is gone on with.")],
    store: Annotated[Path | None, typer.Option(help="What `crossvis gather` made.")] = None,
    data: Annotated[Path | None, typer.Option(help="In place of --store: what `crossvis render --json` saved.")] = None,
    features: Annotated[str, typer.Option(help='With --store: "all", "0,5,10-20", "L3F7" or "top:50".')] = "all",
    dictionary: common.DictionaryPath = None,
    model: common.Models = None,
    fact: common.Facts = None,
    subfolder: common.Subfolder = None,
    revision: common.Revision = None,
    trust_pickle: common.TrustPickle = False,
    device: common.Device = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="With --store: no tokens raised and lowered.")] = False,
) -> None:
    """Write circuit-tracer's feature files, so that the nodes of its graphs show examples."""
    with user_errors():
        from crossvis_tl.export import export_circuit_tracer
        from crossvis_tl.formats import load_dictionary
        from crossvis_tl.render import StoredJob
        from crossvis_tl.vis_data import SaeVisData

        if (store is None) == (data is None):
            raise ValueError("give --store or --data, one of the two (see --help)")
        common.quiet_libraries()
        facts = common.all_facts(fact, subfolder, revision, trust_pickle, None, None)
        if data is not None:
            if dictionary is None:
                raise ValueError("--data needs --dictionary, which says how many features each layer has")
            loaded = load_dictionary(dictionary, **facts)
            export_circuit_tracer(SaeVisData.load_json(data), folder, dictionary=loaded)
        elif store is not None:
            if no_model and model:
                raise ValueError("--no-model and --model contradict each other; give one of them")
            job = StoredJob(store, features, dictionary, facts, model or (), no_model, device)
            export_circuit_tracer(job.run(verdict=show_fidelity), folder)
        _report(folder, "layer_*.bin")


def _report(folder: Path, pattern: str) -> None:
    files = list(folder.glob(pattern))
    size = sum(path.stat().st_size for path in files)
    out.print(f"{len(files)} files of features in {escape(str(folder))} ({size / 1e6:.1f} MB)")
