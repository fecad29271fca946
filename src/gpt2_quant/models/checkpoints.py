"""What a checkpoint folder holds, read before any of it is loaded and without torch.

transformers trusts config.json: where the weights have other shapes it makes random ones, where an
entry is missing it takes a default. So config, tokenizer and weights are held against each other
here, once, for every script. The weights' names and shapes are in the safetensors headers.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..records import file_sha256

REMAKE = "make the checkpoint again or fetch it again"
NO_CONFIG = f"is not a model's configuration: {REMAKE}"
# The sizes that decide the shapes, with the defaults of transformers' GPT2Config.
SIZES = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
QUANTIZED_BY = {"gpt2_quant": "scheme", "bitsandbytes": "load_in_"}  # method -> an entry it needs
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SHARDS = "model.safetensors.index.json"


class Stored(NamedTuple):
    """A tensor as its file's header has it, e.g. ("F32", (768, 2304))."""

    dtype: str
    shape: tuple[int, ...]


def read_config(folder: Path) -> dict[str, Any]:
    """Its config.json. Raises UserError unless it is that of a GPT-2 that can exist."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no config.json: give a folder that save_pretrained wrote")
    config = _read_json(path, NO_CONFIG)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{path} {NO_CONFIG}")
    if kind != "gpt2":
        raise UserError(f"{folder} is a {kind} model, and this project quantizes GPT-2: name one")
    for name, default in SIZES.items():
        size = config.setdefault(name, default)
        if type(size) is not int or size < 1:
            raise UserError(f"{path}: {name} is {size}, not a whole number of at least 1: {REMAKE}")
    if config["n_embd"] % config["n_head"]:
        said = f"n_embd {config['n_embd']} is no multiple of n_head {config['n_head']}"
        raise UserError(f"{path}: {said}: {REMAKE}")
    if config.get("add_cross_attention"):
        raise UserError(f"{folder} has cross-attention: give a GPT-2 that reads one text")
    for name in ("pad_token_id", "eos_token_id"):
        number = config.get(name)
        if number is not None and (
            type(number) is not int or number not in range(config["vocab_size"])
        ):
            said = f"{name} is {number}, which is no token of {config['vocab_size']}"
            raise UserError(f"{path}: {said}: correct it, or take it out")
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        needed = QUANTIZED_BY.get(method or "bitsandbytes")
        if needed is None or not any(name.startswith(needed) for name in quantization or ()):
            known = " or ".join(QUANTIZED_BY)
            said = f"its quantization_config is not one of {known}"
            raise UserError(f"{path}: {said}: give the float checkpoint it was made from")
    return config


def check_checkpoint(folder: Path, new_head: bool = False) -> Path:
    """`folder`, a GPT-2 whose weights are as config.json says, with a classification head unless a
    `new_head` is to come.

    Raises UserError where it is not, and for files that are missing, damaged or cut short.
    """
    folder = Path(folder)
    config = read_config(folder)
    found = stored_tensors(folder, new_head)
    if not config.get("quantization_config"):
        _check_shapes(folder, config, found)
    if new_head:
        return folder
    if "score.weight" not in found:
        fault = f"{folder} lacks score.weight, so it is no classifier but a language model"
        raise UserError(f"{fault}: fine-tune it with script 1 (--base-model)")
    names, rows = _class_names(folder, config), number_of_labels(folder)
    if names and len(names) != rows:
        fault = f"{folder} names {len(names)} classes in config.json, and its head has {rows}"
        raise UserError(f"{fault}: name as many in id2label")
    return folder


def number_of_labels(folder: Path) -> int:
    """The head's, which config.json need not say."""
    tensor = stored_tensors(folder)["score.weight"]
    return tensor.shape[0] if tensor.shape else 0


def _class_names(folder: Path, config: dict) -> list[str]:
    names = config.get("id2label") or {}
    numbers = {str(number) for number in range(len(names))}
    if not isinstance(names, dict) or set(names) != numbers:
        raise UserError(f"{folder}/config.json: id2label must name the classes 0, 1, …: {REMAKE}")
    return [str(name) for name in names.values()]


def _check_shapes(folder: Path, config: dict, found: dict[str, Stored]) -> None:
    expected = expected_shapes(config)
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{folder} lacks {name}, which its config.json asks for: {REMAKE}")
        if found[name].shape != shape:
            said, needed = list(found[name].shape), list(shape)
            fault = f"{folder}: {name} is {said} where its config.json asks for {needed}"
            raise UserError(f"{fault}: give the config.json that belongs to the weights")
        if found[name].dtype not in ("F64", "F32", "F16", "BF16"):
            fault = f"{folder}: {name} is stored as {found[name].dtype}, not as floats"
            raise UserError(f"{fault}: give the float checkpoint it was made from")
    beyond = f"h.{config['n_layer']}."
    if any(name.startswith(beyond) for name in found):
        fault = f"{folder} has more layers than the {config['n_layer']} of its config.json"
        raise UserError(f"{fault}: give the config.json that belongs to the weights")


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


def weights_files(folder: Path, language_model: bool = False) -> list[Path]:
    """The safetensors file, or its shards. Raises UserError where one is missing."""
    folder = Path(folder)
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / SHARDS).is_file():
        shards = _read_json(folder / SHARDS, f"lists no shards: {REMAKE}").get("weight_map")
        names = set(shards.values()) if isinstance(shards, dict) else set()
        if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise UserError(f"{folder / SHARDS} lists no shards: {REMAKE}")
        missing = [name for name in sorted(names) if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{folder} lacks the shard {missing[0]}: {REMAKE}")
        return [folder / name for name in sorted(names)]
    pickles = [path for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    if pickles:
        kind = "AutoModelForCausalLM" if language_model else "AutoModelForSequenceClassification"
        command = f"from transformers import {kind} as M; M.from_pretrained(F).save_pretrained(F)"
        fault = f"{pickles[0]} is a pickle, which can run code when it is read"
        mend = f'convert it, if you trust its source: python -c "F={str(folder)!r}; {command}"'
        raise UserError(f"{fault}; {mend}")
    how = "make it again, or save it with save_pretrained"
    raise UserError(f"{folder} has no model.safetensors: {how}")


def weights_sha256(folder: Path) -> str:
    """Of the file; of shards, the sha256 of theirs."""
    digests = [file_sha256(path) for path in weights_files(folder)]
    joined = hashlib.sha256("".join(digests).encode()).hexdigest()
    return digests[0] if len(digests) == 1 else joined


def stored_tensors(folder: Path, language_model: bool = False) -> dict[str, Stored]:
    """By name, without the prefix that GPT-2 has below a head. Raises UserError for a file that is
    damaged or cut short.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Stored] = {}
    for path in weights_files(folder, language_model):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118  it is no mapping
                    tensor = file.get_slice(name)
                    stored = Stored(str(tensor.get_dtype()), tuple(tensor.get_shape()))
                    found[name.removeprefix("transformer.")] = stored
        except (SafetensorError, OSError) as fault:
            raise UserError(f"{path} is damaged or cut short ({fault}): {REMAKE}") from fault
    return found


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise UserError(f"{path} {otherwise}") from fault
    if not isinstance(entries, dict):
        raise UserError(f"{path} {otherwise}")
    return entries
