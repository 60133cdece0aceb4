"""What the converters share: reading a checkpoint, renaming its tensors, filling a model, saying what was done."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

# Theirs -> ours, as regular expressions on whole keys; the first match wins.  None: knowingly dropped.  "{qkv}" in our
# name: theirs packs the rows of q, k and v in one tensor.
KeyTable = Sequence[tuple[str, str | None]]

MELP_LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")  # MIMIC-IV-ECG: aVF first

RESIDUAL_NETWORK: KeyTable = [  # torchvision's names
    (r"conv1\.(.+)", r"stem_conv.\1"),
    (r"bn1\.(.+)", r"stem_norm.\1"),
    *[
        (rf"layer{stage + 1}\.(\d+)\.{theirs}\.(.+)", rf"stages.{stage}.blocks.\1.{ours}.\3")
        for stage in range(4)
        for theirs, ours in ((r"(conv[12]|shortcut\.[01])", r"\2"), (r"bn([12])", r"norm\2"))
    ],
]


def with_prefix(theirs: str, ours: str, table: KeyTable) -> KeyTable:
    """A table for a part of a model: `theirs` (a regular expression without groups) and `ours` lead its names."""
    return [(theirs + pattern, name if name is None else ours + name) for pattern, name in table]


def load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a `.safetensors` file or a PyTorch checkpoint (a Lightning one too), without running its pickle.

    Raises:
        ValueError: the file is damaged, or holds something else than named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch meets what is no checkpoint with errors of many classes
        reason = str(error).strip().partition("\n")[0][:200]
        raise ValueError(f"{path}: is no checkpoint that can be read without running it: {reason}") from error
    state_dict = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else checkpoint
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(f"{path} is no plain state dict: it must map names to tensors")
    return state_dict


def rename_keys(
    state_dict: Mapping[str, torch.Tensor], table: KeyTable, transposed: str = "(?!)"
) -> tuple[dict[str, torch.Tensor], list[str], list[str]]:
    """The tensors under our names (floating-point ones in float32), the keys dropped, and those not in the table.

    Args:
        transposed: regular expression for the keys of matrices that are the transpose of ours.
    """
    weights: dict[str, torch.Tensor] = {}
    dropped, unknown = [], []
    for key, tensor in state_dict.items():
        key = key.removeprefix("module.")  # of training on several devices
        matches = ((re.fullmatch(pattern, key), name) for pattern, name in table)
        match, name = next((found for found in matches if found[0]), (None, None))
        if match is None:
            unknown.append(key)
            continue
        if name is None:
            dropped.append(key)
            continue
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        tensor = tensor.T if re.fullmatch(transposed, key) else tensor
        name = match.expand(name)
        if "{qkv}" in name:
            weights |= {name.replace("{qkv}", part): rows for part, rows in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            weights[name] = tensor
    return {name: tensor.contiguous() for name, tensor in weights.items()}, dropped, unknown


def size(weights: Mapping[str, torch.Tensor], name: str, axis: int) -> int:
    """A size that a renamed tensor tells.

    Raises:
        ValueError: there is no such tensor.
    """
    if name not in weights or weights[name].ndim <= axis:
        raise ValueError(
            f"this is no checkpoint of this model: {name} (in our names), which tells a size, is missing or misshapen"
        )
    return weights[name].shape[axis]


def count(weights: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many numbered parts follow a prefix such as "encoder.layers."."""
    return len({key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)})


def residual_network_sizes(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, Any]:
    """Fields of a config: the sizes of the residual network whose renamed tensors begin with `prefix`.

    Strides are not in the tensors: as in every ResNet, all stages but the first halve the time resolution.
    """
    stages = [f"{prefix}stages.{stage}.blocks." for stage in range(count(weights, f"{prefix}stages."))]
    return {
        "num_leads": size(weights, f"{prefix}stem_conv.weight", 1),
        "stem_size": size(weights, f"{prefix}stem_conv.weight", 0),
        "hidden_sizes": [size(weights, f"{stage}0.conv1.weight", 0) for stage in stages],
        "depths": [count(weights, stage) for stage in stages],
        "strides": [2 if index else 1 for index in range(len(stages))],
    }


def bert_sizes(weights: Mapping[str, torch.Tensor], prefix: str, heads: int | None) -> dict[str, Any]:
    """Fields of `BertConfig`: the sizes of the BERT whose tensors begin with `prefix`; 64 channels a head unless
    `heads` says otherwise."""
    hidden_size = size(weights, f"{prefix}embeddings.word_embeddings.weight", 1)
    return {
        "vocab_size": size(weights, f"{prefix}embeddings.word_embeddings.weight", 0),
        "hidden_size": hidden_size,
        "num_hidden_layers": count(weights, f"{prefix}encoder.layer."),
        "num_attention_heads": heads or max(1, hidden_size // 64),
        "intermediate_size": size(weights, f"{prefix}encoder.layer.0.intermediate.dense.weight", 0),
        "max_position_embeddings": size(weights, f"{prefix}embeddings.position_embeddings.weight", 0),
        "type_vocab_size": size(weights, f"{prefix}embeddings.token_type_embeddings.weight", 0),
    }


def fill_model(
    model: PreTrainedModel,
    weights: Mapping[str, torch.Tensor],
    unknown: Sequence[str] = (),
    not_in_checkpoint: str = "(?!)",
):
    """Load renamed weights and put the model in evaluation mode.

    Args:
        unknown: keys without a name of ours.
        not_in_checkpoint: regular expression for names that the weights need not have.

    Raises:
        ValueError: keys missing, unknown or of the wrong shape, all listed.
    """
    expected = {
        name: tensor.shape
        for name, tensor in model.state_dict().items()
        if name in weights or not re.fullmatch(not_in_checkpoint, name)
    }
    wrong = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    wrong += [f"{name} is unknown" for name in [*unknown, *(weights.keys() - expected.keys())]]
    wrong += [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    if wrong:
        raise ValueError(f"the checkpoint does not fit (in our names): {'; '.join(sorted(wrong))}")
    model.load_state_dict(weights, strict=False)  # strict but for `not_in_checkpoint`, as was just checked
    model.eval()


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int):
    """
    Raises:
        ValueError: the tokenizer does not have as many tokens as the text model knows.
    """
    if len(tokenizer) != vocab_size:
        raise ValueError(
            f"{tokenizer.name_or_path} has {len(tokenizer)} tokens, but the checkpoint's text model has {vocab_size}: "
            "give the tokenizer that it was trained with"
        )


def check_leads(num_leads: int, lead_names: Sequence[str]):
    """
    Raises:
        ValueError: the model does not take as many leads as its feature extractor is to give.
    """
    if num_leads != len(lead_names):
        raise ValueError(f"the checkpoint takes {num_leads} leads, the feature extractor gives {len(lead_names)}")


def mark_license(model: PreTrainedModel, license: str, base_model: str):
    """Say in the config, and so in every model trained from this one, whose weights these are, and their licence."""
    model.config.weights_license = license
    model.config.base_model = base_model


def print_summary(model: PreTrainedModel, dropped: Sequence[str], output: Path, has_tokenizer: bool = True):
    """What was converted, what was left out, and what is missing."""
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters written to {output}")
    print(f"left out on purpose (not used by the model): {', '.join(dropped) or 'nothing'}")
    if not has_tokenizer:
        print("no tokenizer: give --tokenizer FOLDER to make texts usable")
    print("for research use; not a medical device")
