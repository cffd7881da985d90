"""What a person should know about a row: traps of a name, and why a tensor does not exist."""

from dataclasses import replace

from crossvis_tl.hooks.derive import BLOCK, Names
from crossvis_tl.hooks.record import Hook

PARALLEL = "attention and MLP read the same residual stream in this architecture's parallel blocks"
NO_MODULE = "no HuggingFace module gives this tensor"
ACTIVATIONS = ("act_fn", "act", "activation_fn")


def noted(hook: Hook, names: Names) -> Hook:
    """The row with notes: on the name where it is a trap, and on what does not exist."""
    if hook.status == "absent":
        return hook.with_note(_absent(hook, names))
    match = BLOCK.fullmatch(hook.name or "")
    layer, short = (int(match[1]), match[2]) if match else (None, hook.name or "")
    return hook.with_note(*_traps(layer, short, hook, names))


def _traps(layer: int | None, short: str, hook: Hook, names: Names) -> list[str]:
    block = f"blocks.{layer}"
    post = {"hook_attn_out": ("ln1_post", "attn.hook_out"), "hook_mlp_out": ("ln2_post", "mlp.hook_out")}
    found = []
    for written, (norm, raw) in post.items():
        if layer is None or not names.has_norm(layer, norm):
            continue
        if short == written:
            found.append(
                f"after the post-norm: what is added to the residual stream. The module's raw output is {block}.{raw}"
            )
        elif short == raw or (hook.transform == "rescale" and norm in short):
            found.append(
                f"before the post-norm: the module's raw output. What is added to the residual stream is "
                f"{block}.{written}"
            )
    if short.endswith("hook_normalized") and hook.transform == "affine":
        found.append(
            "the hook holds the activations before the norm's gain (and bias), HuggingFace's output is after them; in "
            "TransformerLens 2 the hook of a LayerNorm was after them too"
        )
    if short == "hook_mlp_in":
        after = f"{block}.mlp.hook_in"
        found.append(f"the residual stream before the norm; what HuggingFace's MLP reads is {after}")
    if short == "mlp.hook_post" and names.gated:
        found.append("the product of activation and linear part, not the activation function's own output")
    if short == "attn.hook_pattern":
        found.append("HuggingFace gives it with eager attention only")
    if hook.flag:
        found.append(f"fires with model.set_{hook.flag}(True) only")
    return found


def _absent(hook: Hook, names: Names) -> str:
    if hook.name is None:
        return _no_hook(hook, names)
    match = BLOCK.fullmatch(hook.name)
    short = match[2] if match else hook.name
    fused = [path for path, (_, reads) in names.fused.items() if hook.name in reads]
    n_layers = names.skeleton.n_layers
    whole = "HuggingFace has no module for the MLP as a whole in this architecture"
    reasons = [
        (match is not None and int(match[1]) >= n_layers, f"there are {n_layers} layers, counted from 0"),
        (short == "hook_resid_mid" and names.parallel, PARALLEL),
        (short.startswith("ln2") and names.parallel, f"one norm serves both halves of a block here, ln1; {PARALLEL}"),
        (short == "mlp.hook_pre_linear" and not names.gated, "the MLP has no gate, so no linear part beside it"),
        (short == "hook_pos_embed", "positions enter by rotation in the attention, no embedding is added"),
        (bool(fused), f"HuggingFace computes it in one tensor with others, the output of {''.join(fused[:1])}"),
        (short in ("mlp.hook_in", "mlp.hook_out"), whole),
    ]
    return next((reason for holds, reason in reasons if holds), NO_MODULE)


def _no_hook(hook: Hook, names: Names) -> str:
    leaf = (hook.hf_path or "").rsplit(".", 1)[-1]
    if leaf in ACTIVATIONS and names.gated:
        return "no hook fires between the activation function and its product with the linear part"
    if leaf in ("q_norm", "k_norm"):
        return "TransformerLens orders heads and positions its own way in the norms of queries and keys"
    return "no TransformerLens hook holds this tensor"


def literal_index(hook: Hook) -> Hook:
    """For `.output[0]` of a module whose output is no tuple."""
    return replace(hook).with_note(
        "HuggingFace gives a bare tensor here since transformers 5, and a literal [0] of it would be the first "
        "sequence of the batch; the whole tensor is meant"
    )
