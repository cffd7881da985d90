"""`crossvis export`: what was gathered and shown, for other tools."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from crossvis_tl.cli import common
from crossvis_tl.cli.common import out, show_fidelity, user_errors

if TYPE_CHECKING:
    from crossvis_tl.export.streaming import Given

HELP = "Write what was gathered for other tools: Delphi, circuit-tracer, Neuronpedia."
export = typer.Typer(help=HELP, no_args_is_help=True)
# Of an export that makes dashboards, or takes those that were made.
Folder = Annotated[Path, typer.Option("--out", help="The folder to write; one that was begun is gone on with.")]
FromStore = Annotated[Path | None, typer.Option("--store", help="What `crossvis gather` made.")]
FromData = Annotated[
    Path | None, typer.Option("--data", help="In place of --store: what `crossvis render --json` saved.")
]
Features = Annotated[str, typer.Option(help='"all", "0,5,10-20", "L3F7" or, of a store, "top:50".')]
NoModel = Annotated[bool, typer.Option("--no-model", help="With --store: no tokens raised and lowered.")]


@export.command()
def delphi(
    store: Annotated[Path, typer.Option(help="What `crossvis gather` made.")],
    folder: Folder,
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
        try:
            export_delphi(
                store, folder, n_splits=splits, modules=module, dtype=dtype,  # type: ignore[arg-type]
                model_name=model_name,
            )  # fmt: skip
        except KeyboardInterrupt:
            text = f"interrupted: {folder} holds the files that were whole; the same command goes on from there"
            raise KeyboardInterrupt(text) from None
        _report(folder, "**/*.safetensors")


@export.command("circuit-tracer")
def circuit_tracer(  # noqa: PLR0913, PLR0917 - each option is one of the user's
    folder: Folder,
    store: FromStore = None,
    data: FromData = None,
    features: Features = "all",
    dictionary: common.DictionaryPath = None,
    model: common.Models = None,
    fact: common.Facts = None,
    subfolder: common.Subfolder = None,
    revision: common.Revision = None,
    trust_pickle: common.TrustPickle = False,
    device: common.Device = None,
    no_model: NoModel = False,
) -> None:
    """Write circuit-tracer's feature files, so that the nodes of its graphs show examples."""
    with user_errors():
        from crossvis_tl.export import export_circuit_tracer

        facts = common.all_facts(fact, subfolder, revision, trust_pickle, None, None)
        given = _given(store, data, features, dictionary, model, facts, device, no_model)
        export_circuit_tracer(
            given.what, folder, dictionary=given.dictionary, model=given.models, features=given.features, progress=True
        )
        _report(folder, "layer_*.bin")


@export.command()
def neuronpedia(  # noqa: PLR0913, PLR0917 - each option is one of the user's
    folder: Folder,
    model_id: Annotated[str, typer.Option(help="Neuronpedia's name of the model, such as gemma-2-2b.")],
    source_set: Annotated[str, typer.Option(help="Neuronpedia's name of the source set, such as clt-16k.")],
    store: FromStore = None,
    data: FromData = None,
    features: Features = "all",
    layer: Annotated[
        int | None, typer.Option(help="Only this layer's features, numbered within it; or the number to give.")
    ] = None,
    suffix: Annotated[str | None, typer.Option(help="Comes after the source set's name.")] = None,
    layout: Annotated[
        str, typer.Option(help='"batches", as SAEDashboard 0.8 writes, or "source", for Neuronpedia\'s bulk import.')
    ] = "batches",
    release: Annotated[str | None, typer.Option(help="For --layout source: the release's name in addresses.")] = None,
    title: Annotated[str, typer.Option(help="Its title, for people.")] = "",
    creator: Annotated[str, typer.Option(help="Who made it.")] = "",
    url: Annotated[str, typer.Option(help="Where to read of it.")] = "",
    description: Annotated[str, typer.Option(help="Of the source set, such as 'Transcoder - 16k'.")] = "",
    hf_repo: Annotated[str, typer.Option(help="Where the weights are on the hub.")] = "",
    hf_folder: Annotated[str, typer.Option(help="The folder in it.")] = "",
    dataset: Annotated[str, typer.Option(help="Where the tokens are from, such as monology/pile-uncopyrighted.")] = "",
    batch: Annotated[int, typer.Option(help="Features of each file, at most.", min=1)] = 128,
    start_batch: Annotated[int, typer.Option(help="The first to write, of each layer.", min=0)] = 0,
    end_batch: Annotated[int | None, typer.Option(help="The last to write.", min=0)] = None,
    skip_dead: Annotated[bool, typer.Option(help="Leave out features that never fire.")] = False,
    quantiles: Annotated[int, typer.Option(help="Intervals of activations.", min=0)] = 5,
    top: Annotated[int, typer.Option(help="Examples of the strongest activations.", min=0)] = 20,
    per_quantile: Annotated[int, typer.Option(help="Examples of each interval.", min=0)] = 5,
    of_model: Annotated[int, typer.Option(help="Whose logits, of several models.", min=0)] = 0,
    unit_decoders: Annotated[
        bool, typer.Option(help="Scale activations to decoder rows of length 1, as SAEDashboard does for SAEs.")
    ] = False,
    dictionary: common.DictionaryPath = None,
    model: common.Models = None,
    fact: common.Facts = None,
    subfolder: common.Subfolder = None,
    revision: common.Revision = None,
    trust_pickle: common.TrustPickle = False,
    device: common.Device = None,
    no_model: NoModel = False,
) -> None:
    """Write what Neuronpedia imports: dashboards of every feature, a folder for each layer."""
    with user_errors():
        from crossvis_tl.export import NeuronpediaRelease, export_neuronpedia

        said = None
        if release is not None:
            said = NeuronpediaRelease(release, title, creator, url, description, hf_repo, hf_folder)
        if layout == "source" and said is None:
            raise ValueError("--layout source needs --release, --title and --creator")
        facts = common.all_facts(fact, subfolder, revision, trust_pickle, None, None)
        given = _given(store, data, features, dictionary, model, facts, device, no_model, layer)
        export_neuronpedia(
            given.what, folder, model_id=model_id, source_set=source_set, dictionary=given.dictionary,
            model=given.models, layer=layer, sae_id_suffix=suffix, layout=layout, release=said, dataset=dataset,
            features=given.features, skip_dead=skip_dead, features_per_batch=batch, start_batch=start_batch,
            end_batch=end_batch, n_quantiles=quantiles, top_acts_group_size=top, quantile_group_size=per_quantile,
            of_model=of_model, unit_decoders=unit_decoders, progress=True,
        )  # fmt: skip
        _report(folder, "**/*batch-*.json*")


def _given(
    store: Path | None,
    data: Path | None,
    features: str,
    dictionary: str | None,
    model: list[str] | None,
    facts: Mapping[str, Any],
    device: str | None,
    no_model: bool,
    layer: int | None = None,
) -> "Given":
    """What is to be exported, opened. ValueError for options that do not go together."""
    if (store is None) == (data is None):
        raise ValueError("give --store or --data, one of the two (see --help)")
    if no_model and model:
        raise ValueError("--no-model and --model contradict each other; give one of them")
    common.quiet_libraries()
    from crossvis_tl.export.streaming import StreamedJob, saved

    if data is not None:
        if dictionary is None:
            raise ValueError("--data needs --dictionary, which says how many features each layer has")
        return saved(data, dictionary, facts, features, layer)
    assert store is not None  # noqa: S101 - said above
    return StreamedJob(store, features, layer, dictionary, facts, model or (), no_model, device).opened(show_fidelity)


def _report(folder: Path, pattern: str) -> None:
    files = list(folder.glob(pattern))
    size = sum(path.stat().st_size for path in files)
    out.print(f"{len(files)} files of features in {escape(str(folder))} ({size / 1e6:.1f} MB)")
