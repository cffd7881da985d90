"""Peak memory of a cross-layer transcoder on disk: opened, 200 features taken out of it, all features encoded.

    python -m scripts.bench_big_files [--gigabytes 1] [--folder DIR]

Writes a circuit-tracer CLT of that size with random weights (bfloat16), layer by layer, then measures in a process of
its own. Memory is what the process holds of its own ("anonymous": it cannot be given back) and what it has mapped in of
the files (the system takes that back when it needs room).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS, WIDTH, TOKENS = 8, 512, 512


def write(folder: Path, gigabytes: float) -> int:
    """-> features a layer. Their decoders to the layers after them make up most of the bytes."""
    rows = LAYERS + LAYERS * (LAYERS + 1) // 2  # encoders and decoders, [F, d] each
    features = int(gigabytes * 2**30 / (rows * WIDTH * 2))
    generator = torch.Generator().manual_seed(0)
    for layer in range(LAYERS):
        W_enc = torch.empty(features, WIDTH, dtype=torch.bfloat16).normal_(generator=generator) / WIDTH**0.5
        W_dec = torch.empty(features, LAYERS - layer, WIDTH, dtype=torch.bfloat16).normal_(generator=generator)
        parts = {"W_enc": W_enc, "b_enc": torch.zeros(features), "b_dec": torch.zeros(WIDTH)}
        parts["threshold"] = torch.full((features,), 3.0)
        save_file({f"{name}_{layer}": part for name, part in parts.items()}, folder / f"W_enc_{layer}.safetensors")
        save_file({f"W_dec_{layer}": W_dec}, folder / f"W_dec_{layer}.safetensors")
    hooks = "feature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
    (folder / "config.yaml").write_text(f"model_kind: cross_layer_transcoder\n{hooks}")
    return features


def memory() -> dict[str, float]:
    """Megabytes of this process by now: its own, mapped from files, and the most of both together."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    named = {"own": "RssAnon", "mapped": "RssFile", "peak": "VmHWM"}
    return {name: round(int(fields[field]) / 1024, 1) for name, field in named.items()}


def measure(folder: Path) -> None:
    from crossvis_tl import load_dictionary

    torch.set_num_threads(1)
    steps = {"imports": memory()}
    dictionary = load_dictionary(folder)
    steps["opened"] = memory()
    chosen = torch.linspace(0, dictionary.n_features - 1, 200).long()
    for target in range(LAYERS):
        dictionary.decoder(chosen, target)
    steps["decoders of 200 features to all layers"] = memory()
    inputs = [torch.randn(TOKENS, WIDTH) for _ in range(LAYERS)]
    dictionary.encode_features(inputs, chosen)
    steps[f"200 features of {TOKENS} tokens"] = memory()
    acts = dictionary.encode_sparse(inputs)
    steps[f"all {dictionary.n_features} features of {TOKENS} tokens, {len(acts.values)} fire"] = memory()
    dictionary.decode(acts)
    steps["reconstructed"] = memory()
    sys.stdout.write(json.dumps(steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.folder)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        features = write(folder, args.gigabytes)
        size = sum(p.stat().st_size for p in folder.iterdir()) / 2**20
        sys.stdout.write(f"{size:,.0f} MB on disk, {LAYERS} layers of {features:,} features\n")
        command = [sys.executable, "-m", "scripts.bench_big_files", "--measure", "--folder", str(folder)]
        steps = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    base = steps["imports"]
    for step, now in steps.items():
        grown = ", ".join(f"{name} {now[name] - base[name]:+8.1f}" for name in ("own", "mapped", "peak"))
        sys.stdout.write(f"{grown} MB  {step}\n")


if __name__ == "__main__":
    main()
