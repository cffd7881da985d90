"""`crossvis neuronpedia`: a run of SAEDashboard's for Neuronpedia, its options by their own names."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from crossvis_tl.cli import common
from crossvis_tl.cli.common import out, show_fidelity, user_errors

OURS = "Ours"
NO_EFFECT = "Taken, and changes nothing."


def neuronpedia(  # noqa: PLR0913, PLR0917 - each option is one of the user's
    sae_path: Annotated[str, typer.Option(help="Folder, file or id; or of --sae-set, sae_lens' release, its SAE.")],
    sae_set: Annotated[str, typer.Option(help="sae_lens' release; the source set's name without --np-set-name.")],
    dataset_path: Annotated[
        str, typer.Option(help="A dataset's id, or a local file or folder of texts or ids; default an SAE's own.")
    ] = "",
    np_set_name: Annotated[str | None, typer.Option(help="Neuronpedia's name of the source set.")] = None,
    np_sae_id_suffix: Annotated[str | None, typer.Option(help="Comes after the source set's name.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Where the folders are written.")] = Path("neuronpedia_outputs"),
    from_local_sae: Annotated[bool, typer.Option("--from-local-sae", help="--sae-path lies here.")] = False,
    use_transcoder: Annotated[bool, typer.Option("--use-transcoder", help="Need not be said.")] = False,
    use_skip_transcoder: Annotated[bool, typer.Option("--use-skip-transcoder", help="Need not be said.")] = False,
    use_clt: Annotated[bool, typer.Option("--use-clt", help="Need not be said.")] = False,
    clt_layer_idx: Annotated[int | None, typer.Option(help="One layer of a CLT; default all.", min=0)] = None,
    clt_weights_filename: Annotated[str, typer.Option(help="Of several files of weights, the one.")] = "",
    clt_dtype: Annotated[str, typer.Option(help="As --sae-dtype.")] = "",
    sae_dtype: Annotated[
        str, typer.Option("--sae-dtype", "--sae_dtype", help="Of the products of weights and activations.")
    ] = "float32",
    model_dtype: Annotated[str, typer.Option("--model-dtype", "--model_dtype", help="Of the model.")] = "float32",
    sae_converter_name: Annotated[
        str | None, typer.Option("--sae-converter-name", "--sae-loader", help="sae_lens' reader of a layout.")
    ] = None,
    hf_model_path: Annotated[
        str | None, typer.Option(help="The model's folder or id, if the files do not say.")
    ] = None,
    model_id: Annotated[str | None, typer.Option(help="Neuronpedia's name of the model.")] = None,
    layer: Annotated[int | None, typer.Option(help="The layer's number, if the hooks do not say one.", min=0)] = None,
    n_prompts: Annotated[int, typer.Option(help="Prompts, one of each text.", min=1)] = 24576,
    n_tokens_in_prompt: Annotated[int, typer.Option(help="Tokens of each, BOS included.", min=2)] = 128,
    n_prompts_in_forward_pass: Annotated[int, typer.Option(help="Prompts run at a time.", min=1)] = 32,
    n_features_per_batch: Annotated[int, typer.Option(help="Features of a file, at most.", min=1)] = 128,
    start_batch: Annotated[int, typer.Option(help="The first file to write, of each layer.", min=0)] = 0,
    end_batch: Annotated[int | None, typer.Option(help="The last.", min=0)] = None,
    n_quantiles: Annotated[int, typer.Option(help="Intervals of activations.", min=0)] = 5,
    top_acts_group_size: Annotated[int, typer.Option(help="Examples of the strongest.", min=0)] = 20,
    quantile_group_size: Annotated[int, typer.Option(help="Examples of each interval.", min=0)] = 5,
    prefix_str: Annotated[str | None, typer.Option(help="A text that each prompt begins with.")] = None,
    suffix_str: Annotated[str | None, typer.Option(help="A text that each prompt ends with.")] = None,
    ignore_position: Annotated[
        list[int] | None, typer.Option("--ignore-position", help="A position that does not count; repeatable.")
    ] = None,
    ignore_high_activation_norm_multiple: Annotated[
        float | None, typer.Option(help="Tokens whose norm is over so many times the median do not count.")
    ] = None,
    prepend_bos: Annotated[
        bool | None, typer.Option("--prepend-bos/--no-prepend-bos", help="BOS begins each prompt; default of texts.")
    ] = None,
    shuffle_tokens: Annotated[
        bool, typer.Option("--shuffle-tokens/--no-shuffle-tokens", help="Texts in an order drawn by a fixed seed.")
    ] = True,
    sparsity_threshold: Annotated[int, typer.Option(help="Written down; filters nothing.")] = -6,
    use_wandb: Annotated[bool, typer.Option("--use-wandb", help=NO_EFFECT)] = False,
    device: common.Device = None,
    processing: Annotated[
        str | None, typer.Option(help="none or tl_default: the weights it was trained on.", rich_help_panel=OURS)
    ] = None,
    fact: Annotated[list[str] | None, typer.Option(help=common.FACT_HELP, rich_help_panel=OURS)] = None,
    layout: Annotated[str, typer.Option(help='"batches" or "source".', rich_help_panel=OURS)] = "batches",
    release: Annotated[str | None, typer.Option(help="For --layout source.", rich_help_panel=OURS)] = None,
    title: Annotated[str, typer.Option(help="The release's title.", rich_help_panel=OURS)] = "",
    creator: Annotated[str, typer.Option(help="Who made it.", rich_help_panel=OURS)] = "",
    store: Annotated[
        Path | None, typer.Option(help="Where what fires is kept; default in --output-dir.", rich_help_panel=OURS)
    ] = None,
    skip_dead: Annotated[
        bool, typer.Option("--skip-dead", help="Leave out features that never fire.", rich_help_panel=OURS)
    ] = False,
) -> None:
    """Write what Neuronpedia imports, from SAEDashboard's options: gathered once, a file for each batch of features.

    The same command again goes on where it was stopped. Once one run has gathered, others may write other batches at
    the same time (--start-batch, --end-batch). What each setting of SAEDashboard's is here: docs/from-sae-dashboard.md.
    """
    with user_errors():
        from crossvis_tl.export import NeuronpediaRelease, NeuronpediaRunner, NeuronpediaRunnerConfig

        facts: dict[str, Any] = common.all_facts(fact, None, None, False, None, None)
        cfg = NeuronpediaRunnerConfig(
            sae_set=sae_set, sae_path=sae_path, outputs_dir=str(output_dir), np_sae_id_suffix=np_sae_id_suffix,
            np_set_name=np_set_name, from_local_sae=from_local_sae, sparsity_threshold=sparsity_threshold,
            huggingface_dataset_path=dataset_path, n_prompts_total=n_prompts, n_tokens_in_prompt=n_tokens_in_prompt,
            n_prompts_in_forward_pass=n_prompts_in_forward_pass, n_features_at_a_time=n_features_per_batch,
            start_batch=start_batch, end_batch=end_batch, n_quantiles=n_quantiles,
            top_acts_group_size=top_acts_group_size, quantile_group_size=quantile_group_size,
            model_dtype=model_dtype, sae_dtype=sae_dtype, model_id=model_id, layer=layer, model_device=device,
            use_wandb=use_wandb, shuffle_tokens=shuffle_tokens, prefix_str=prefix_str, suffix_str=suffix_str,
            ignore_positions=ignore_position, prepend_bos=prepend_bos,
            ignore_high_activation_norm_multiple=ignore_high_activation_norm_multiple, hf_model_path=hf_model_path,
            use_transcoder=use_transcoder, use_skip_transcoder=use_skip_transcoder, use_clt=use_clt,
            clt_layer_idx=clt_layer_idx, clt_dtype=clt_dtype, clt_weights_filename=clt_weights_filename,
            sae_converter_name=sae_converter_name, processing=processing, facts=facts, layout=layout,
            release=None if release is None else NeuronpediaRelease(release, title, creator), store=store,
            skip_dead=skip_dead,
        )  # fmt: skip
        runner = NeuronpediaRunner(cfg)
        common.quiet_libraries()
        folder = runner.run(show_fidelity)
        files = list(folder.glob("**/*batch-*.json*"))
        out.print(f"{len(files)} files of features in {escape(str(folder))}")
