"""`crossvis gather` and `crossvis merge`: stores of feature activations, to be rendered later."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from crossvis_tl.cli import common
from crossvis_tl.cli.common import out, show_fidelity, user_errors


def gather(  # noqa: PLR0913, PLR0917 - each option is one of the user's
    store: Annotated[Path, typer.Option("--out", help="The folder to keep it in; one that was begun is gone on with.")],
    model: common.Models = None,
    dictionary: common.DictionaryPath = None,
    tokens: common.Tokens = None,
    features: Annotated[str, typer.Option(help='"all", or those to keep: "0,5,10-20", "L3F7", "L3".')] = "all",
    layer: common.Layer = None,
    input_scale: common.InputScale = None,
    hook_point: common.HookPoint = None,
    feature_input_hook: common.InputHook = None,
    feature_output_hook: common.OutputHook = None,
    processing: common.Processing = None,
    fact: common.Facts = None,
    subfolder: common.Subfolder = None,
    revision: common.Revision = None,
    trust_pickle: common.TrustPickle = False,
    sequences: common.Sequences = None,
    batch: common.Batch = 64,
    context: common.Context = 128,
    split: common.Split = None,
    subset: common.Subset = None,
    column: common.Column = None,
    packing: common.Packing = None,
    prefix: common.Prefix = "",
    suffix: common.Suffix = "",
    mask_affixes: common.MaskAffixes = False,
    bos: common.Bos = None,
    shuffle: common.Shuffle = False,
    seed: Annotated[int, typer.Option(help="For --shuffle.", min=0)] = 0,
    device: common.Device = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16, for the models.")] = "float32",
    replace_token: common.ReplaceToken = None,
    masking: common.MaskingOption = "special",
    mask_token: common.MaskToken = None,
    mask_position: common.MaskPosition = None,
    high_norm: common.HighNorm = None,
    latent_scaling: common.LatentScaling = False,
    replacement: common.Replacement = None,
    calibrate: common.Calibrate = False,
) -> None:
    """Run the model(s) over tokens once and keep what fires, for `crossvis render --store`."""
    with user_errors():
        from crossvis_tl.pairs import parse_replacements
        from crossvis_tl.render import RenderJob

        common.quiet_libraries()
        models, path, rows = common.required(model, dictionary, tokens)
        facts = common.all_facts(
            fact, subfolder, revision, trust_pickle, input_scale, hook_point, feature_input_hook=feature_input_hook,
            feature_output_hook=feature_output_hook, processing=processing,
        )  # fmt: skip
        job = RenderJob(
            models=models, dictionary=path, tokens=rows, features=features, layer=layer, device=device, dtype=dtype,
            context=context,
            reading=common.reading(
                split=split, subset=subset, column=column, packing=packing, prefix=prefix, suffix=suffix,
                mask_affixes=mask_affixes, bos=bos, shuffle=shuffle, seed=seed,
            ),
            token_replacements=parse_replacements(replace_token or []), facts=facts,
            cfg_fields={"batch_size": sequences, "minibatch_size_tokens": batch, "verbose": True},
            masking=masking, masked_tokens=common.token_names(mask_token),  # type: ignore[arg-type]
            masked_positions=mask_position or [], high_norm_multiple=high_norm, latent_scaling=latent_scaling,
            replacement=replacement,
            calibrate=calibrate,
        )  # fmt: skip
        _report(job.gather(store, verdict=show_fidelity), store)


def merge(
    stores: Annotated[list[Path], typer.Argument(help="Folders of different token sets, in order.")],
    store: Annotated[Path, typer.Option("--out", help="The folder to write; it must be new.")],
) -> None:
    """Make one store of several, gathered on different tokens by the same dictionary and models."""
    with user_errors():
        from crossvis_tl.feature_store import merge as merged

        common.quiet_libraries()
        acts = merged(stores, store)
        show_fidelity(acts.fidelity)
        _report(acts, store)


def _report(acts, store: Path) -> None:
    fired, size = int(acts.starts[-1]), sum(path.stat().st_size for path in store.iterdir())
    out.print(
        f"{len(acts.features):,} features, {fired:,} activations on {acts.n_counted:,} tokens in {escape(str(store))} "
        f"({size / 1e6:.1f} MB)"
    )
