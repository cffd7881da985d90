"""Bad input to the Python API: what was wrong, what was expected, what to do; before any long work."""

import copy
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from sae_vis.data_config_classes import SaeVisConfig
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer

from crossvis_tl import CrossvisWarning, ModelMismatchError, SaeVisData, attach, load_dictionary, load_model
from tests import conftest
from tests.conftest import D_MODEL, N_CTX, VOCABULARY, tiny_hf, tiny_tokenizer, write_clt, write_crosscoder

HOOK = "blocks.1.hook_resid_post"


def refusal(call, error=ValueError) -> str:
    """-> the text of the error, which is one line for people."""
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert text.strip()
    assert "\n" not in text
    assert "\x1b" not in text
    return text


def says(text: str, *words: str) -> None:
    missing = [word for word in words if word not in text]
    assert not missing, text


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


# Models


@pytest.fixture
def model_copy(tmp_path, models_dir) -> Path:
    return Path(shutil.copytree(models_dir / "base", tmp_path / "copy"))


def test_a_missing_model_folder_comes_with_a_near_miss(models_dir):
    text = refusal(lambda: load_model(models_dir / "bass"), FileNotFoundError)
    says(text, str(models_dir / "bass"), "does not exist", "Did you mean 'base'?")


def test_a_missing_model_folder_that_resembles_nothing_has_no_suggestion(models_dir):
    text = refusal(lambda: load_model(models_dir / "zzqqxx"), FileNotFoundError)
    says(text, str(models_dir / "zzqqxx"))
    assert "Did you mean" not in text


@pytest.mark.parametrize("name", ["bass", "./bass", "models/bass"])
def test_a_relative_name_beside_model_folders_comes_with_a_near_miss(tmp_path, models_dir, monkeypatch, name):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "models").symlink_to(models_dir)
    monkeypatch.chdir(tmp_path if name.startswith("models") else models_dir)
    says(refusal(lambda: load_model(name), (OSError, ValueError)), "bass", "Did you mean 'base'?")


@pytest.mark.parametrize(("inside", "words"), [(None, "nothing"), ("readme.txt", "readme.txt")])
def test_a_folder_that_is_no_model(tmp_path, inside, words):
    folder = tmp_path / "empty"
    folder.mkdir()
    if inside:
        (folder / inside).write_text("hello")
    says(refusal(lambda: load_model(folder)), str(folder), "no model", "config.json", words)


def test_a_dictionary_is_no_model(crosscoder_dir):
    says(refusal(lambda: load_model(crosscoder_dir)), str(crosscoder_dir), "no model")


def test_a_file_is_no_model(crosscoder_dir):
    path = crosscoder_dir / "cc_weights.pt"
    says(refusal(lambda: load_model(path)), str(path), "is a file", "folder")


@pytest.mark.parametrize(
    "content", ['{"model_type": garbage', "[1, 2]", "{}", '{"model_type": "nonsense"}', "\x00\x01"]
)
def test_a_garbage_config(model_copy, content):
    (model_copy / "config.json").write_text(content)
    text = refusal(lambda: load_model(model_copy))
    says(text, str(model_copy), "cannot be loaded", "Expected a folder with config.json and weights")
    assert ".. " not in text


def test_truncated_model_weights(model_copy):
    path = model_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    says(refusal(lambda: load_model(model_copy)), str(model_copy))


def test_missing_model_weights(model_copy):
    (model_copy / "model.safetensors").unlink()
    says(refusal(lambda: load_model(model_copy)), str(model_copy), "model.safetensors")


def test_model_weights_of_another_shape(model_copy):
    config = json.loads((model_copy / "config.json").read_text())
    (model_copy / "config.json").write_text(json.dumps(config | {"n_embd": 2 * D_MODEL}))
    says(refusal(lambda: load_model(model_copy)), str(model_copy))


def test_a_model_and_a_tokenizer_in_hand_need_no_name():
    assert load_model(tiny_hf(4), tokenizer=tiny_tokenizer()).cfg.d_vocab == VOCABULARY


@pytest.mark.parametrize("value", [7, None, ["base"]])
def test_a_model_of_another_type(value):
    says(refusal(lambda: load_model(value), TypeError), "folder", type(value).__name__)


@pytest.mark.parametrize("device", ["qpu", "cuda:99"])
def test_a_device_that_is_not_there(models_dir, device):
    text = refusal(lambda: load_model(models_dir / "base", device=device))
    says(text, device)
    assert "cannot be made a HookedTransformer" not in text


# Dictionaries


def edit_config(folder: Path, drop: tuple[str, ...] = (), **changes) -> Path:
    config = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in config.items() if k not in drop}))
    return folder


def edit_weights(folder: Path, change) -> Path:
    path = folder / "cc_weights.pt"
    state = torch.load(path)
    change(state)
    torch.save(state, path)
    return folder


def test_a_missing_dictionary_comes_with_a_near_miss(crosscoder_dir):
    path = crosscoder_dir.parent / "croscoder"
    says(refusal(lambda: load_dictionary(path), FileNotFoundError), str(path), "does not exist", "'crosscoder'")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "."])
def test_a_model_is_no_dictionary(models_dir, name):
    path = models_dir / "base" / name
    text = refusal(lambda: load_dictionary(path))
    says(text, str(path), "no dictionary", "crosscoders", "W_enc, W_dec, b_enc, b_dec")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello", "cannot be read"),
        (b"", "cannot be read"),
        ([torch.zeros(2)], "list"),
        (torch.zeros(2, 3, dtype=torch.long), "Tensor"),
        ({"a": 3}, "no tensors"),
        ({"a": torch.zeros(3)}, "lacks W_dec, W_enc, b_dec, b_enc"),
    ],
)
def test_a_file_that_is_no_dictionary(tmp_path, content, words):
    path = tmp_path / "x.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    says(refusal(lambda: load_dictionary(path)), str(path), words)


def test_a_text_called_safetensors_is_no_dictionary(tmp_path):
    (tmp_path / "x.safetensors").write_text("hello")
    says(refusal(lambda: load_dictionary(tmp_path / "x.safetensors")), "x.safetensors")


def test_an_empty_folder_is_no_dictionary(tmp_path):
    says(refusal(lambda: load_dictionary(tmp_path)), str(tmp_path), "found: nothing", "Readable")


@pytest.mark.parametrize("size", [2000, -100])
def test_truncated_weights(crosscoder_dir, size):
    path = crosscoder_dir / "cc_weights.pt"
    path.write_bytes(path.read_bytes()[:size])
    text = refusal(lambda: load_dictionary(crosscoder_dir))
    says(text, str(path), "damaged")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(crosscoder_dir, tmp_path, zipped):
    path = crosscoder_dir / "cc_weights.pt"
    torch.save({"W_enc": Bomb(tmp_path / "boom")}, path, _use_new_zipfile_serialization=zipped)
    text = refusal(lambda: load_dictionary(crosscoder_dir))
    says(text, str(path), "run code", "refused")
    assert "can still be loaded" not in text
    assert "`weights_only` set to `False`" not in text
    assert not (tmp_path / "boom").exists()


def test_a_yaml_that_would_run_code_does_not_run(clt_dir, tmp_path):
    (clt_dir / "config.yaml").write_text(f'!!python/object/apply:os.system ["touch {tmp_path / "boom"}"]')
    says(refusal(lambda: load_dictionary(clt_dir)), str(clt_dir / "config.yaml"))
    assert not (tmp_path / "boom").exists()


SHAPES = {
    "W_dec transposed": ("W_dec", lambda w: w.transpose(0, 1).contiguous(), "(40, 2, 16)"),
    "W_dec with fewer features": ("W_dec", lambda w: w[:30], "(40, 2, 16)"),
    "W_dec narrower": ("W_dec", lambda w: w[..., :8], "(40, 2, 16)"),
    "W_dec without sources": ("W_dec", lambda w: w[:, 0], "(40, 2, 16)"),
    "W_enc without sources": ("W_enc", lambda w: w[0], "[sources, d_model, features]"),
    "b_enc shorter": ("b_enc", lambda b: b[:3], "(40,)"),
    "b_dec of one source": ("b_dec", lambda b: b[:1], "(2, 16)"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_that_contradict_each_other(crosscoder_dir, case):
    name, change, expected = SHAPES[case]
    edit_weights(crosscoder_dir, lambda state: state.update({name: change(state[name])}))
    found = str(tuple(torch.load(crosscoder_dir / "cc_weights.pt")[name].shape))
    says(refusal(lambda: load_dictionary(crosscoder_dir)), "cc_weights.pt", name, found, expected)


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(crosscoder_dir, name, value):
    edit_weights(crosscoder_dir, lambda state: state[name].flatten()[:1].fill_(value))
    says(refusal(lambda: load_dictionary(crosscoder_dir)), "cc_weights.pt", name, "NaN", "damaged")


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_a_missing_tensor(crosscoder_dir, name):
    edit_weights(crosscoder_dir, lambda state: state.pop(name))
    says(refusal(lambda: load_dictionary(crosscoder_dir)), "cc_weights.pt", f"lacks {name}")


def test_weights_that_are_integers(crosscoder_dir):
    edit_weights(crosscoder_dir, lambda state: state.update(W_enc=state["W_enc"].int()))
    says(refusal(lambda: load_dictionary(crosscoder_dir)), "W_enc", "int32")


def test_a_dictionary_without_features(tmp_path):
    folder = write_crosscoder(tmp_path / "none", features=0)
    says(refusal(lambda: load_dictionary(folder)), "cc_weights.pt", "feature")


@pytest.mark.parametrize("content", ["{broken", "[]", "\x00"])
def test_a_damaged_dictionary_config(crosscoder_dir, content):
    (crosscoder_dir / "cfg.json").write_text(content)
    says(refusal(lambda: load_dictionary(crosscoder_dir)), str(crosscoder_dir / "cfg.json"))


@pytest.mark.parametrize(("name", "value", "true"), [("d_in", 17, "16"), ("dict_size", 41, "40")])
def test_a_config_that_contradicts_the_weights(crosscoder_dir, name, value, true):
    edit_config(crosscoder_dir, **{name: value})
    says(refusal(lambda: load_dictionary(crosscoder_dir)), str(crosscoder_dir / "cfg.json"), name, str(value), true)


SCALE = ("input_scale", "input_scale_folded")


@pytest.mark.parametrize("drop", [SCALE, ("input_scale",), ("input_scale_folded",)])
def test_a_missing_input_scale_is_named_with_how_to_pass_it(crosscoder_dir, drop):
    edit_config(crosscoder_dir, drop=drop)
    text = refusal(lambda: load_dictionary(crosscoder_dir))
    says(text, str(crosscoder_dir), "input_scale=[", "input_scale=1.0", "source")


@pytest.mark.parametrize(
    "value", [[1.0, 2.0, 3.0], [], [-1.0, 2.0], 0, float("nan"), float("inf"), "big", ["a", "b"], [None, 1.0], {}]
)
def test_an_input_scale_that_is_none(crosscoder_dir, value):
    edit_config(crosscoder_dir, drop=SCALE)
    text = refusal(lambda: load_dictionary(crosscoder_dir, input_scale=value))
    says(text, "input_scale", repr(value), "2 positive numbers")


def test_an_input_scale_beside_folded_weights(crosscoder_dir):
    says(refusal(lambda: load_dictionary(crosscoder_dir, input_scale=[3.0, 3.0])), "input_scale", "folded")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("input_scal", "Did you mean 'input_scale'?"), ("hook_pont", "'hook_point'"), ("procesing", "'processing'")],
)
def test_an_unknown_fact_comes_with_a_near_miss(crosscoder_dir, name, suggestion):
    text = refusal(lambda: load_dictionary(crosscoder_dir, **{name: "none"}))
    says(text, repr(name), suggestion, "known: ")


@pytest.mark.parametrize("where", ["caller", "config"])
def test_an_unknown_processing(crosscoder_dir, where):
    if where == "config":
        edit_config(crosscoder_dir, processing="tldefault")
    facts = {"processing": "tldefault"} if where == "caller" else {}
    text = refusal(lambda: load_dictionary(crosscoder_dir, **facts))
    says(text, "'tldefault'", "none", "tl_default")


@pytest.mark.parametrize("hook", [3, {"a": 1}, ["a", "b", "c"], [1, 2]])
@pytest.mark.parametrize("where", ["caller", "config"])
def test_a_hook_point_that_is_no_name(crosscoder_dir, hook, where):
    if where == "config":
        edit_config(crosscoder_dir, hook_point=hook)
    facts = {"hook_point": hook} if where == "caller" else {}
    says(refusal(lambda: load_dictionary(crosscoder_dir, **facts)), "hook_point")


@pytest.mark.parametrize("name", [f"W_{side}_{i}.safetensors" for side in ("enc", "dec") for i in range(3)])
def test_a_clt_with_a_missing_layer_file(clt_dir, name):
    (clt_dir / name).unlink()
    says(refusal(lambda: load_dictionary(clt_dir), (FileNotFoundError, ValueError)), str(clt_dir), name)


def test_a_clt_without_its_last_layer(clt_dir):
    for name in ("W_enc_2", "W_dec_2"):
        (clt_dir / f"{name}.safetensors").unlink()
    says(refusal(lambda: load_dictionary(clt_dir), (FileNotFoundError, ValueError)), str(clt_dir), "layer")


CLT_SHAPES = {
    "W_dec_1": (lambda w: w[:, :1], "(20, 1, 16)"),
    "W_dec_0": (lambda w: w[:3], "(3, 3, 16)"),
    "b_enc_1": (lambda b: b[:3], "(3,)"),
    "b_dec_2": (lambda b: b[:3], "(3,)"),
    "threshold_1": (lambda t: t[:3], "(3,)"),
    "W_enc_1": (lambda w: w[:, :5], "(20, 5)"),
    "W_enc_0": (lambda w: w * float("nan"), "NaN"),
}


@pytest.mark.parametrize("name", CLT_SHAPES)
def test_clt_tensors_that_do_not_fit(clt_dir, name):
    change, words = CLT_SHAPES[name]
    path = clt_dir / f"{'W_dec' if 'W_dec' in name else 'W_enc'}_{name[-1]}.safetensors"
    state = load_file(path)
    save_file(state | {name: change(state[name]).contiguous()}, path)
    says(refusal(lambda: load_dictionary(clt_dir)), str(clt_dir), name, words)


def test_a_truncated_clt_layer(clt_dir):
    path = clt_dir / "W_dec_0.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    says(refusal(lambda: load_dictionary(clt_dir)), str(path), "download complete")


@pytest.mark.parametrize("text", ["foo", "L9F1", "-1", "", "L0F1", "3.5", "40", "1e1", "0x3"])
def test_a_label_that_names_no_feature_of_a_crosscoder(crosscoder_dir, text):
    dictionary = load_dictionary(crosscoder_dir)
    message = refusal(lambda: dictionary.find(text))
    says(message, text, "39" if text == "40" else "names no feature")
    assert "Did you mean ''" not in message


@pytest.mark.parametrize(("text", "words"), [("L9F1", "L9F1"), ("L1F20", "0 to 19"), ("60", "0 to 59"), ("L1F", "L1F")])
def test_a_label_that_names_no_feature_of_a_clt(clt_dir, text, words):
    dictionary = load_dictionary(clt_dir)
    message = refusal(lambda: dictionary.find(text))
    says(message, words)
    assert "Did you mean 'L2' or 'L1'" not in message, "a layer alone is no label"


@pytest.mark.parametrize("shapes", [[(3, 16)], [(3, 16), (3, 15)], [(3, 16), (4, 16)], [(3, 16)] * 3, []])
def test_encoding_what_does_not_fit(crosscoder_dir, shapes):
    dictionary = load_dictionary(crosscoder_dir)
    says(refusal(lambda: dictionary.encode([torch.zeros(shape) for shape in shapes])), "source")


# Dashboards


@pytest.fixture
def no_long_work(monkeypatch):
    """A forward pass over the whole token set is long work; the checks' own may be tiny."""
    forward = HookedTransformer.forward

    def guarded(self, input, *args, **kwargs):
        assert input.shape[0] * input.shape[1] <= 2 * N_CTX, "long work before the check"
        return forward(self, input, *args, **kwargs)

    monkeypatch.setattr(HookedTransformer, "forward", guarded)


@pytest.fixture
def create(crosscoder_dir, tl_models, tokens, no_long_work):
    """`SaeVisData.create` with good arguments, each of which a test may replace."""

    def call(dictionary=None, models=tl_models, tokens=tokens, masking="special", **cfg):
        config = SaeVisConfig(**({"features": [0, 1]} | cfg))
        return SaeVisData.create(dictionary or load_dictionary(crosscoder_dir), models, tokens, config, masking=masking)

    return call


FEATURES = {
    "past the end": ([0, 40], ("feature 40", "0 to 39")),
    "far past the end": (list(range(500)), ("feature 40", "0 to 39")),
    "negative": ([-1], ("feature -1", "0 to 39")),
    "none": ([], ("features is empty", "None for all")),
    "twice": ([3, 5, 3], ("twice", "feature 3")),
    "words": (["a"], ("features", "'a'")),
    "fractions": ([1.5], ("features", "1.5")),
}


@pytest.mark.parametrize("case", FEATURES)
def test_features_that_cannot_be_shown(create, case):
    features, words = FEATURES[case]
    says(refusal(lambda: create(features=features)), *words)


@pytest.mark.parametrize("case", FEATURES)
def test_features_that_cannot_be_attached(crosscoder_dir, tl_models, no_long_work, case):
    features, words = FEATURES[case]
    says(refusal(lambda: attach(load_dictionary(crosscoder_dir), tl_models, features)), *words[:1])


TOKENS = {
    "float": (lambda t: t.float(), ("integer", "float32")),
    "bool": (lambda t: t.bool(), ("integer", "bool")),
    "one sequence without its axis": (lambda t: t[0], ("[sequences, positions]",)),
    "outside the vocabulary": (lambda t: t + 1, (f"id {VOCABULARY}", f"vocabulary of {VOCABULARY}")),
    "negative": (lambda t: t - 1, ("id -1", "vocabulary")),
    "no sequence": (lambda t: t[:0], ("empty",)),
    "no position": (lambda t: t[:, :0], ("empty",)),
    "too long": (lambda t: torch.cat([t, t], 1), (f"{2 * N_CTX} positions", f"context is {N_CTX}")),
    "a list": (lambda t: t.tolist(), ("list",)),
    "a text": (lambda t: "hello", ("str",)),
    "BOS alone": (lambda t: t * 0, ("every token is BOS",)),
    "one BOS a row": (lambda t: t[:, :1], ("every token is BOS",)),
}


@pytest.mark.parametrize("case", TOKENS)
def test_tokens_that_cannot_be_used(create, tokens, case):
    change, words = TOKENS[case]
    says(refusal(lambda: create(tokens=change(tokens))), *words)


def test_an_unknown_masking(create):
    says(refusal(lambda: create(masking="nonee")), "masking", "'nonee'", "special", "none")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_wrong_number_of_models(create, crosscoder_dir, tl_models, count):
    models = (tl_models * 2)[:count]
    text = refusal(lambda: create(models=models))
    says(text, *(("reads 2 models, in training order", f"got {count}") if count else ("no model was given",)))
    if count:
        says(refusal(lambda: attach(load_dictionary(crosscoder_dir), models, [0])), "2 models", f"got {count}")


def test_two_models_for_a_clt(create, clt_dir):
    says(refusal(lambda: create(dictionary=load_dictionary(clt_dir))), "1 model", "got 2")


@pytest.mark.parametrize("kind", ["crosscoder", "clt"])
def test_a_dictionary_of_another_width(create, tmp_path, tl_models, monkeypatch, kind):
    monkeypatch.setattr(conftest, "D_MODEL", 8)
    dictionary = load_dictionary({"crosscoder": write_crosscoder, "clt": write_clt}[kind](tmp_path / "narrow"))
    models = tl_models if kind == "crosscoder" else tl_models[0]
    text = refusal(lambda: create(dictionary=dictionary, models=models))
    says(text, "narrow", "8 wide", "base", "16 wide")


def test_attaching_a_dictionary_of_another_width(tmp_path, tl_models, monkeypatch):
    monkeypatch.setattr(conftest, "D_MODEL", 8)
    dictionary = load_dictionary(write_crosscoder(tmp_path / "narrow"))
    says(refusal(lambda: attach(dictionary, tl_models, [0])), "narrow", "8 wide", "16 wide")


def test_a_clt_of_a_model_with_more_layers(create, tmp_path, tl_models, monkeypatch):
    monkeypatch.setattr(conftest, "N_LAYERS", 4)
    dictionary = load_dictionary(write_clt(tmp_path / "other"))
    says(refusal(lambda: create(dictionary=dictionary, models=tl_models[0])), "other", "3 layers")


def test_models_of_different_vocabularies(create, tmp_path, tl_models, monkeypatch):
    monkeypatch.setattr(conftest, "VOCABULARY", 50)
    tiny_hf(4).save_pretrained(tmp_path / "small")
    tiny_tokenizer().save_pretrained(tmp_path / "small")
    other = load_model(tmp_path / "small")
    says(refusal(lambda: create(models=[tl_models[0], other])), "vocabularies", "60 and 50")


@pytest.mark.parametrize("by", ["config", "caller"])
@pytest.mark.parametrize(
    ("hook", "near"), [("blocks.9.hook_resid_post", "blocks.2.hook_resid_post"), ("blocks.1.hook_resid_pots", HOOK)]
)
def test_a_wrong_hook_comes_with_near_misses(create, crosscoder_dir, tl_models, by, hook, near):
    edit_config(crosscoder_dir, **({"hook_point": hook} if by == "config" else {}))
    facts = {"hook_point": hook} if by == "caller" else {}
    dictionary = load_dictionary(crosscoder_dir, **facts)
    for call in (lambda: create(dictionary=dictionary), lambda: attach(dictionary, tl_models, [0])):
        says(refusal(call), repr(hook), "base", f"Did you mean '{near}'", "layers")


def test_a_missing_hook_is_asked_for(create, crosscoder_dir, tl_models):
    edit_config(crosscoder_dir, drop=("hook_point",))
    dictionary = load_dictionary(crosscoder_dir)
    assert dictionary.missing == ("hook_point",)
    for call in (lambda: create(dictionary=dictionary), lambda: attach(dictionary, tl_models, [0])):
        says(refusal(call), "hook_point=")


def test_a_clt_without_hooks_cannot_be_given_one_for_all(create, clt_dir, tl_models):
    (clt_dir / "config.yaml").unlink()

    def call():
        create(dictionary=load_dictionary(clt_dir), models=tl_models[0], hook_point="blocks.1.hook_resid_mid")

    says(refusal(call), "config.yaml")


def test_a_hook_that_contradicts_the_dictionary(create):
    text = refusal(lambda: create(hook_point="blocks.0.hook_resid_post"))
    says(text, "'blocks.0.hook_resid_post'", HOOK)


def test_a_dictionary_of_a_hook_of_another_width(create, crosscoder_dir):
    edit_config(crosscoder_dir, hook_point="blocks.1.mlp.hook_post")
    says(refusal(create), "16 wide at blocks.1.mlp.hook_post", "64 wide")


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("entry", ["create", "attach"])
def test_a_processed_model_for_a_dictionary_of_unprocessed_ones(create, crosscoder_dir, tl_models, place, entry):
    models = list(tl_models)
    models[place] = copy.deepcopy(models[place])
    models[place].process_weights_()
    call = {
        "create": lambda: create(models=models),
        "attach": lambda: attach(load_dictionary(crosscoder_dir), models, [0]),
    }[entry]
    text = refusal(call, ModelMismatchError)
    says(text, "processed", ["base", "tuned"][place], "crossvis_tl.load_model")


def test_a_processed_model_for_a_clt(create, clt_dir, tl_models):
    model = copy.deepcopy(tl_models[1])
    model.process_weights_()
    says(refusal(lambda: create(dictionary=load_dictionary(clt_dir), models=model), ModelMismatchError), "processed")


@pytest.mark.parametrize("encoder", ["crosscoder", Path("crosscoder"), 3])
def test_an_encoder_of_another_type(create, encoder):
    says(refusal(lambda: create(dictionary=encoder), TypeError), type(encoder).__name__, "load_dictionary")


@pytest.mark.parametrize("logits_of", [2, -1])
def test_logits_of_a_model_that_is_not_there(crosscoder_dir, tl_models, logits_of):
    text = refusal(lambda: attach(load_dictionary(crosscoder_dir), tl_models, [0], logits_of=logits_of))
    says(text, f"logits_of is {logits_of}", "2 models")


def test_too_many_features_for_stock(tmp_path, tl_models):
    dictionary = load_dictionary(write_crosscoder(tmp_path / "wide", features=4097))
    says(refusal(lambda: attach(dictionary, tl_models)), "4097", "4096", "features=[")


# Poor but legal input ends in dashboards, with a warning


def shown(dictionary, models, tokens, **cfg) -> SaeVisData:
    with pytest.warns(CrossvisWarning, match="implausible"):
        return SaeVisData.create(dictionary, models, tokens, SaeVisConfig(**cfg))


@pytest.mark.parametrize("dead", [[2, 4], list(range(40))])
def test_features_that_never_fire_are_shown_as_such(crosscoder_dir, tl_models, tokens, dead):
    edit_weights(crosscoder_dir, lambda state: state["b_enc"].index_fill_(0, torch.tensor(dead), -1e6))
    data = shown(load_dictionary(crosscoder_dir), tl_models, tokens, features=[4, 2])
    assert list(data.feature_data_dict) == [4, 2]
    assert data.panels[4].density == 0
    assert data.panels[4].maximum == 0


@pytest.mark.parametrize("width", [2, 3])
def test_short_sequences_are_shown(crosscoder_dir, tl_models, tokens, width):
    data = shown(load_dictionary(crosscoder_dir), tl_models, tokens[:, :width], features=range(8))
    assert list(data.feature_data_dict) == list(range(8))


def test_a_hook_off_the_residual_stream_is_shown(crosscoder_dir, tl_models, tokens):
    """The heads' outputs side by side happen to be as wide as the residual stream."""
    edit_config(crosscoder_dir, hook_point="blocks.1.attn.hook_z")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CrossvisWarning)
        data = SaeVisData.create(load_dictionary(crosscoder_dir), tl_models, tokens, SaeVisConfig(features=[0, 1]))
    assert list(data.feature_data_dict) == [0, 1]


@pytest.mark.parametrize("features", [(i for i in (0, 1)), torch.tensor([0, 1])], ids=["generator", "tensor"])
def test_feature_numbers_are_taken_in_any_form(crosscoder_dir, tl_models, tokens, features):
    data = shown(load_dictionary(crosscoder_dir), tl_models, tokens[:2], features=features)
    assert list(data.feature_data_dict) == [0, 1]


# Files appear whole or not at all


@pytest.fixture(scope="module")
def data(tmp_path_factory, tl_models, tokens) -> SaeVisData:
    dictionary = load_dictionary(write_crosscoder(tmp_path_factory.mktemp("data") / "crosscoder"))
    return shown(dictionary, tl_models, tokens[:2], features=[0, 1])


def savers(data) -> dict:
    return {
        "page.html": data.save_feature_centric_vis,
        "prompt.html": lambda path: data.save_prompt_centric_vis("ABC", path),
        "data.json": data.save_json,
    }


@pytest.mark.parametrize("name", ["page.html", "prompt.html", "data.json"])
def test_an_output_in_a_missing_folder(data, tmp_path, name):
    text = refusal(lambda: savers(data)[name](tmp_path / "nowhere" / name), FileNotFoundError)
    says(text, str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["page.html", "prompt.html", "data.json"])
def test_an_output_that_is_a_folder(data, tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    text = refusal(lambda: savers(data)[name](tmp_path / "out" / name), (OSError, ValueError))
    says(text, str(tmp_path / "out" / name))
    assert "folder" in text or "directory" in text
    assert [p.name for p in (tmp_path / "out").rglob("*")] == [name]


@pytest.mark.parametrize("name", ["page.html", "prompt.html", "data.json"])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_failing_disk_leaves_what_was_there(data, tmp_path, monkeypatch, name, before):
    folder = tmp_path / "out"
    folder.mkdir()
    if before:
        (folder / name).write_text(before)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    monkeypatch.setattr("os.rename", full)
    says(refusal(lambda: savers(data)[name](folder / name), OSError), str(folder / name), "o space left")
    assert {p.name: p.read_text() for p in folder.iterdir()} == ({name: before} if before else {})


@pytest.mark.parametrize("name", ["page.html", "prompt.html", "data.json"])
def test_outputs_are_as_readable_as_any_new_file(data, tmp_path, name):
    (tmp_path / "plain").write_text("")
    savers(data)[name](tmp_path / name)
    assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_under_another_name(data, tmp_path):
    says(refusal(lambda: data.save_json(tmp_path / "data.txt")), "data.txt", ".json")
    assert not (tmp_path / "data.txt").exists()


@pytest.mark.parametrize("feature", [2, -1, 40])
def test_a_page_that_opens_on_a_feature_not_gathered(data, tmp_path, feature):
    says(refusal(lambda: data.save_feature_centric_vis(tmp_path / "p.html", feature)), f"{feature}", "0, 1")
    assert not (tmp_path / "p.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": ""}, ("prompt is empty",)),
        ({"prompt": "A" * 100}, ("context is 24",)),
        ({"metric": "act_sise"}, ("'act_sise'", "Did you mean 'act_size'")),
        ({"seq_pos": 99}, ("seq_pos is 99", "4 tokens")),
        ({"num_top_features": 0}, ("num_top_features", "0")),
    ],
)
def test_a_prompt_page_that_cannot_be(data, tmp_path, arguments, words):
    given = {"prompt": "ABC", "filename": tmp_path / "p.html"} | arguments
    says(refusal(lambda: data.save_prompt_centric_vis(**given)), *words)
    assert not (tmp_path / "p.html").exists()


@pytest.mark.parametrize("content", ["{", "[]", "{}", "\x00", '{"crossvis_tl": 3}', '{"crossvis_tl": {"version": 1}}'])
def test_json_that_is_none_of_ours(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    says(refusal(lambda: SaeVisData.load_json(path)), str(path))


def test_json_that_was_cut_off(data, tmp_path):
    path = tmp_path / "x.json"
    data.save_json(path)
    path.write_text(path.read_text()[:5000])
    says(refusal(lambda: SaeVisData.load_json(path)), str(path))


def test_json_of_a_later_version(data, tmp_path):
    path = tmp_path / "x.json"
    data.save_json(path)
    content = json.loads(path.read_text())
    content["crossvis_tl"]["version"] = 999
    path.write_text(json.dumps(content))
    says(refusal(lambda: SaeVisData.load_json(path)), str(path), "999")
