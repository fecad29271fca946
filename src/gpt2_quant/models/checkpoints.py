"""What a checkpoint folder holds, read before any of it is loaded and without torch.

transformers trusts config.json: where the weights have other shapes it makes random ones, where an
entry is missing it takes a default. So the two are held against each other here, once, for every
script. Names and shapes of the weights stand in the safetensors headers.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..records import file_sha256

REMAKE = "make the checkpoint again or fetch it again"
NO_CONFIG = f"is not a model's configuration: {REMAKE}"
# transformers' defaults for what decides the shapes.
SIZES = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
FRACTIONS = "resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range"
# What else config.json may ask for, and what the scripts take alone.
TAKEN = {
    "add_cross_attention": (None, False), "output_attentions": (None, False),
    "return_dict": (None, True), "problem_type": (None, "single_label_classification"),
}  # fmt: skip
QUANTIZED_BY = {"gpt2_quant": "scheme", "bitsandbytes": "load_in_"}  # method -> an entry it needs
FLOATS = "F64", "F32", "F16", "BF16"  # safetensors' names
SHARDS = "model.safetensors.index.json"


def read_config(folder: Path) -> dict[str, Any]:
    """Its config.json with the sizes filled in. Raises UserError unless a GPT-2 can be so."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no config.json: give a folder that save_pretrained wrote")
    config = SIZES | _read_json(path, NO_CONFIG)
    if not (kind := config.get("model_type")):
        raise UserError(f"{path} {NO_CONFIG}")
    if kind != "gpt2":
        raise UserError(f"{folder} is a {kind} model, and this project quantizes GPT-2: name one")
    if "id2label" not in config and isinstance(names := config.get("label2id"), dict):
        config["id2label"] = {str(number): name for name, number in names.items()}
    for fault in _config_faults(config):
        raise UserError(f"{path}: {fault}: correct it, or give another checkpoint")
    return config


def _config_faults(config: dict[str, Any]) -> Iterator[str]:
    for name in (*SIZES, *["n_inner"] * (config.get("n_inner") is not None)):
        if type(config[name]) is not int or config[name] < 1:
            yield f"{name} is {config[name]}, not a whole number of at least 1"
    for name in FRACTIONS:
        if type(value := config.get(name, 0)) not in (int, float) or not 0 <= value <= 1:
            yield f"{name} is {value}, not a number from 0 to 1"
    if config["n_embd"] % config["n_head"]:
        yield f"n_embd {config['n_embd']} is no multiple of n_head {config['n_head']}"
    for name, taken in TAKEN.items():
        if config.get(name) not in taken:
            yield f"{name} is {config[name]}, which must be {taken[1]}"
    for name in ("pad_token_id", "eos_token_id"):
        token, known = config.get(name), range(config["vocab_size"])
        if token is not None and (type(token) is not int or token not in known):
            yield f"{name} is {token}, and the model knows {len(known)} tokens"
    names = config.get("id2label") or {}
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
        yield "id2label must name the classes 0, 1, …"
    if quantization := config.get("quantization_config"):
        entries = quantization if isinstance(quantization, dict) else {}
        needed = QUANTIZED_BY.get(entries.get("quant_method", "bitsandbytes"), "none")
        if not any(name.startswith(needed) for name in entries):
            yield f"quantization_config is not one of {' or '.join(QUANTIZED_BY)}"


def check_checkpoint(folder: Path, new_head: bool = False) -> Path:
    """`folder`, a GPT-2 whose weights are as config.json says, with a classification head unless a
    `new_head` is to come.

    Raises UserError where it is not, and for files that are missing, damaged or cut short.
    """
    folder = Path(folder)
    config, found = read_config(folder), stored_tensors(folder)
    for fault in _weight_faults(config, found):
        mend = "give the config.json that belongs to the weights"
        raise UserError(f"{folder}: {fault} by its config.json: {mend}")
    if new_head:
        return folder
    if "score.weight" not in found:
        fault = f"{folder} lacks score.weight, so it is no classifier but a language model"
        raise UserError(f"{fault}: fine-tune it with script 1 (--base-model)")
    names, rows = config.get("id2label"), number_of_labels(folder)
    if names and len(names) != rows:
        fault = f"names {len(names)} classes in config.json, and its head has {rows}"
        raise UserError(f"{folder} {fault}: name as many in id2label")
    return folder


def number_of_labels(folder: Path) -> int:
    """The rows of its head, whose codes may be stored flat."""
    _, shape = stored_tensors(folder)["score.weight"]
    return math.prod(shape) // read_config(folder)["n_embd"]


Tensors = dict[str, tuple[str, tuple[int, ...]]]  # name -> dtype and shape


def _weight_faults(config: dict, found: Tensors) -> Iterator[str]:
    layers = len({name.split(".")[1] for name in found if name.startswith("h.")})
    if layers != config["n_layer"]:
        yield f"there are {layers} layers, which are {config['n_layer']}"
    if config.get("quantization_config"):
        return  # its method looks at the rest
    for name, shape in expected_shapes(config).items():
        dtype, said = found.get(name, ("", ()))
        if not dtype:
            yield f"{name} is missing, which is there"
        elif said != shape:
            yield f"{name} is {list(said)}, which is {list(shape)}"
        elif dtype not in FLOATS:
            yield f"{name} is stored as {dtype}, which are floats"


def expected_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Of every tensor but the head, by name."""
    width, inner = config["n_embd"], config.get("n_inner") or 4 * config["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config["vocab_size"], width),
        "wpe.weight": (config["n_positions"], width),
    }
    products = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
    products |= {"mlp.c_fc": (width, inner), "mlp.c_proj": (inner, width)}
    norms = ["ln_f"]
    for layer in range(config["n_layer"]):
        norms += [f"h.{layer}.ln_1", f"h.{layer}.ln_2"]
        for name, shape in products.items():  # [in, out]
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[1:]}
    return shapes | {f"{norm}.{leaf}": (width,) for norm in norms for leaf in ("weight", "bias")}


def weights_files(folder: Path) -> list[Path]:
    """The safetensors file, or its shards. Raises UserError where one is missing."""
    folder = Path(folder)
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / SHARDS).is_file():
        entries = _read_json(folder / SHARDS, f"lists no shards: {REMAKE}").get("weight_map")
        names = sorted(set(map(str, entries.values()))) if isinstance(entries, dict) else []
        if not names or any(Path(name).name != name for name in names):
            raise UserError(f"{folder / SHARDS} lists no shards: {REMAKE}")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UserError(f"{folder} lacks the shard {missing[0]}: {REMAKE}")
        return [folder / name for name in names]
    for pickle in sorted([*folder.glob("*.bin"), *folder.glob("*.pt")]):
        kind = str((read_config(folder).get("architectures") or [""])[0])
        kind = kind if kind.isidentifier() else "AutoModelForSequenceClassification"
        convert = f"from transformers import {kind} as M; M.from_pretrained(F).save_pretrained(F)"
        fault = f"{pickle} is a pickle, which can run code when it is read; if you trust its source"
        raise UserError(f'{fault}, convert it: python -c "F={str(folder)!r}; {convert}"')
    raise UserError(f"{folder} has no model.safetensors: save it with save_pretrained")


def weights_sha256(folder: Path) -> str:
    """Of the file; of shards, the sha256 of theirs."""
    digests = [file_sha256(path) for path in weights_files(folder)]
    joined = hashlib.sha256("".join(digests).encode()).hexdigest()
    return digests[0] if len(digests) == 1 else joined


def stored_tensors(folder: Path) -> Tensors:
    """Dtype and shape by name, without the prefix that GPT-2 has below a head.

    Raises UserError for a file that is damaged or cut short.
    """
    from safetensors import SafetensorError, safe_open

    found: Tensors = {}
    for path in weights_files(folder):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118  it is no mapping
                    kept = file.get_slice(name)
                    shape = tuple(kept.get_shape())
                    found[name.removeprefix("transformer.")] = str(kept.get_dtype()), shape
        except SafetensorError as fault:
            raise UserError(f"{path} is damaged or cut short ({fault}): {REMAKE}") from fault
    return found


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        return {**json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, TypeError, RecursionError) as fault:  # TypeError: no mapping
        raise UserError(f"{path} {otherwise}") from fault
