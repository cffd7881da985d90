"""`crossvis render`: dashboards, from a model and tokens or from a store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from crossvis_tl.cli import common
from crossvis_tl.cli.common import out, show_fidelity, user_errors

if TYPE_CHECKING:
    from crossvis_tl.dashboards import Dashboards

LABELS_HELP = "Descriptions of features: Neuronpedia's export, Delphi's folder, or a CSV (feature, layer, description)."
LAYER_HELP = "The layer that --labels is of, if it does not say or holds several: 3, or 3-res-jb."


def render(  # noqa: PLR0913, PLR0917 - each option is one of the user's
    model: common.Models = None,
    dictionary: common.DictionaryPath = None,
    tokens: common.Tokens = None,
    store: Annotated[Path | None, typer.Option(help="What `crossvis gather` made, in place of --tokens.")] = None,
    features: Annotated[str, typer.Option(help='"0,5,10-20", "L3F7", "L3", "all", "top:50" (strongest).')] = "top:50",
    layer: common.Layer = None,
    page: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("features.html"),
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
    device: common.Device = None,
    dtype: Annotated[str | None, typer.Option(help="float32 (default), bfloat16 or float16, for the models.")] = None,
    seed: Annotated[int, typer.Option(help="For the random samples shown, and --shuffle.")] = 0,
    replace_token: common.ReplaceToken = None,
    masking: common.MaskingOption = "special",
    mask_token: common.MaskToken = None,
    mask_position: common.MaskPosition = None,
    high_norm: common.HighNorm = None,
    effect: Annotated[str, typer.Option(help="On logits: direct, full (slow) or none.")] = "direct",
    latent_scaling: common.LatentScaling = False,
    replacement: common.Replacement = None,
    calibrate: common.Calibrate = False,
    no_model: Annotated[bool, typer.Option("--no-model", help="With --store: no effects on logits.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Also save the dashboards' data here (.json).")] = None,
    labels: Annotated[Path | None, typer.Option(help=LABELS_HELP)] = None,
    labels_layer: Annotated[str | None, typer.Option(help=LAYER_HELP)] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A text to show under the features; repeatable.")] = None,
    prompt_page: Annotated[Path, typer.Option("--prompt-out", help="The HTML file for --prompt.")] = Path(
        "prompts.html"
    ),
) -> None:  # fmt: skip
    """Write the dashboards of some features into one HTML file."""
    with user_errors():
        from crossvis_tl.pairs import parse_replacements
        from crossvis_tl.render import RenderJob, StoredJob

        _check_outputs({"--out": page, "--json": json, "--prompt-out": prompt_page if prompt else None})
        if prompt and not all(prompt):
            raise ValueError("--prompt is empty; give a text")
        if prompt and no_model:
            raise ValueError("--prompt runs the model; leave --no-model out")
        described = _Described(labels, labels_layer)
        facts = common.all_facts(
            fact, subfolder, revision, trust_pickle, input_scale, hook_point, feature_input_hook=feature_input_hook,
            feature_output_hook=feature_output_hook, processing=processing,
        )  # fmt: skip
        common.quiet_libraries()
        cfg_fields = {"minibatch_size_tokens": batch, "seed": seed, "verbose": True}
        if store is not None:
            gathering = {
                "--tokens": tokens, "--sequences": sequences, "--mask-token": mask_token,
                "--replace-token": replace_token, "--mask-position": mask_position, "--latent-scaling": latent_scaling,
                "--masking": None if masking == "special" else masking, "--high-norm": high_norm, "--split": split,
                "--subset": subset, "--column": column, "--packing": packing, "--prefix": prefix, "--suffix": suffix,
                "--mask-affixes": mask_affixes, "--bos": bos, "--no-bos": bos is False, "--shuffle": shuffle,
            }  # fmt: skip
            gathering |= {
                "--calibrate": calibrate,
                "--replacement": replacement,
                "--no-replacement": replacement is False,
            }
            common.refuse_with_store(gathering)
            if no_model and model:
                raise ValueError("--no-model and --model contradict each other; give one of them")
            described.check(dictionary, facts)
            data = StoredJob(
                store, features, layer, dictionary, facts, model or (), no_model, device, dtype,
                effect, cfg_fields,  # type: ignore[arg-type]
            ).run(verdict=show_fidelity)  # fmt: skip
        else:
            models, path, rows = common.required(model, dictionary, tokens)
            if no_model:
                raise ValueError("--no-model goes with --store: without one the model must be run")
            described.check(path, facts)
            data = RenderJob(
                models=models, dictionary=path, tokens=rows, features=features, layer=layer, device=device,
                dtype=dtype or "float32", context=context,
                reading=common.reading(
                    split=split, subset=subset, column=column, packing=packing, prefix=prefix, suffix=suffix,
                    mask_affixes=mask_affixes, bos=bos, shuffle=shuffle, seed=seed,
                ),
                token_replacements=parse_replacements(replace_token or []), facts=facts,
                cfg_fields={"batch_size": sequences, **cfg_fields}, masking=masking,  # type: ignore[arg-type]
                masked_tokens=common.token_names(mask_token), masked_positions=mask_position or [],
                high_norm_multiple=high_norm,
                effect=effect, latent_scaling=latent_scaling, replacement=replacement,  # type: ignore[arg-type]
                calibrate=calibrate,
            ).run(verdict=show_fidelity)  # fmt: skip
        data = described.put_to(data)
        data.save_feature_centric_vis(page)
        if json is not None:
            data.save_json(json)
        if prompt:
            data.save_prompt_centric_vis(prompt, prompt_page)
            out.print(f"{len(prompt)} prompt{'s' if len(prompt) > 1 else ''} in {escape(str(prompt_page))}")
        n = len(data.feature_data_dict)
        out.print(f"{n} feature{'s' if n > 1 else ''} in {escape(str(page))} ({page.stat().st_size / 1e6:.1f} MB)")


def page(
    saved: Annotated[Path, typer.Argument(help="What `crossvis render --json` saved.")],
    page: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("features.html"),
    feature: Annotated[int | None, typer.Option(help="The feature to open on; default the map, or the first.")] = None,
    labels: Annotated[Path | None, typer.Option(help=LABELS_HELP)] = None,
    labels_layer: Annotated[str | None, typer.Option(help=LAYER_HELP)] = None,
) -> None:
    """Write the page of saved dashboards again, without model, dictionary or tokens."""
    with user_errors():
        from crossvis_tl import SaeVisData

        _check_outputs({"--out": page})
        described = _Described(labels, labels_layer)
        data = described.put_to(SaeVisData.load_json(saved))
        data.save_feature_centric_vis(page, feature)
        out.print(f"{len(data.feature_data_dict)} features in {escape(str(page))}")


class _Described:
    """--labels, read when it is made. ValueError and FileNotFoundError as `crossvis_tl.labels.load_labels`."""

    def __init__(self, path: Path | None, layer: str | None):
        from crossvis_tl.labels import Labels

        if layer is not None and path is None:
            raise ValueError("--labels-layer goes with --labels")
        self.path, self.labels = path, None if path is None else Labels.of(path)
        self.layer = int(layer) if layer is not None and layer.isdecimal() else layer

    def check(self, dictionary: str | None, facts: dict[str, Any]) -> None:
        """Before the models are loaded: whether the features described are the dictionary's, where it is named."""
        from crossvis_tl.formats import load_dictionary

        if self.labels is not None and dictionary is not None:
            self.labels.on(load_dictionary(dictionary, **facts), layer=self.layer)

    def put_to(self, data: "Dashboards") -> "Dashboards":
        """The dashboards with their descriptions, and how many have one."""
        if self.labels is None:
            return data
        data = data.with_labels(self.labels, layer=self.layer)
        n = sum(bool(panel.description) for panel in data.panels.values())
        out.print(f"{n} of {len(data.panels)} features described, from {escape(str(self.path))}")
        return data


def _check_outputs(files: dict[str, Path | None]) -> None:
    """ValueError or OSError for files that cannot be written, or one that two options name."""
    from crossvis_tl.files import check_output

    seen: dict[Path, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        check_output(path, ".json" if option == "--json" else None)
        other = seen.setdefault(path.resolve(), option)
        if other != option:
            raise ValueError(f"{other} and {option} both name {path}; give two files")
