"""Turn the EchoingECG files of the authors into a folder that `AutoModel.from_pretrained` loads.

    python -m ecgformers.modeling.convert_echoing_ecg_checkpoint --checkpoint FILE --output DIR
        (--scaler FILE | --no-scaler) [--tokenizer DIR]

The model wants leads standardised with the 12 means and scales that come with the weights: `--scaler` names that file.
Without them (`--no-scaler`) only the model is written, and its inputs are yours to standardise.  To use texts, give
the folder of BioBERT v1.1's tokenizer.  Sizes are read off the tensors; the number of attention heads is not in them,
and is BERT's (64 channels a head) unless given.

The authors' weights are under CC BY-NC-ND 4.0: a converted folder is for your own use.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from .configuration_echoing_ecg import EchoingEcgConfig
from .feature_extraction_ecg import EcgFeatureExtractor
from .leads_ecg import STANDARD_LEADS
from .modeling_echoing_ecg import EchoingEcgModel
from .processing_ecg import EcgProcessor
from .scaler_ecg import read_standard_scaler

PROMPT_TEMPLATE = "Given the data for ECG. The corresponding ECG report is : {text}\n\n."

# Theirs -> ours, as regular expressions on whole keys; the first match wins.  None: knowingly dropped.
_HEAD = [
    (r"linear\.(.+)", r"head.mean_projection.\1"),
    (r"gpool\.gru\.(.+)", r"head.mean_pooling.gru.\1"),
    (r"gpool\.linear\.(.+)", r"head.mean_pooling.score.\1"),
    (r"std_linear\.(.+)", r"head.logvar_projection.\1"),
    (r"std_gpool\.gru\.(.+)", r"head.logvar_pooling.gru.\1"),
    (r"std_gpool\.linear\.(.+)", r"head.logvar_pooling.score.\1"),
]
_NUM_STAGES = 4
_KEYS: list[tuple[str, str | None]] = [
    (r"ecg_encoder\.conv1\.(.+)", r"ecg_model.stem_conv.\1"),
    (r"ecg_encoder\.bn1\.(.+)", r"ecg_model.stem_norm.\1"),
    *[
        (rf"ecg_encoder\.layer{i + 1}\.(\d+)\.{theirs}\.(.+)", rf"ecg_model.stages.{i}.blocks.\1.{ours}.\3")
        for i in range(_NUM_STAGES)
        for theirs, ours in ((r"(conv[12]|shortcut\.[01])", r"\2"), (r"bn([12])", r"norm\2"))
    ],
    *[(rf"ecg_encoder\.{theirs}", rf"ecg_model.{ours}") for theirs, ours in _HEAD],
    (r"text_encoder\.backbone\.pooler\..+", None),  # BERT's pooler, never used
    (r"text_encoder\.backbone\.(.+)", r"text_model.bert.\1"),
    *[(rf"text_encoder\.{theirs}", rf"text_model.{ours}") for theirs, ours in _HEAD],
]
_MATCHING = "matching_loss."  # a and b of the match logit, which the released file lacks


def _rename(state_dict: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str], list[str]]:
    """The tensors under our names, the keys that are dropped, and those that are unknown."""
    weights, dropped, unknown = {}, [], []
    for key, tensor in state_dict.items():
        for pattern, ours in _KEYS:
            if match := re.fullmatch(pattern, key):
                if ours is None:
                    dropped.append(key)
                else:
                    weights[match.expand(ours)] = tensor
                break
        else:
            unknown.append(key)
    return weights, dropped, unknown


def _read_config(weights: Mapping[str, torch.Tensor], num_text_heads: int | None) -> EchoingEcgConfig:
    """Sizes of renamed weights."""

    def size(name: str, axis: int) -> int:
        if name not in weights or weights[name].ndim <= axis:
            raise ValueError(
                f"this is no EchoingECG checkpoint: {name}, which tells a size, is missing or has too few axes"
            )
        return weights[name].shape[axis]

    def count(prefix: str) -> int:
        return len({key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)})

    hidden_size = size("text_model.bert.embeddings.word_embeddings.weight", 1)
    return EchoingEcgConfig(
        num_leads=size("ecg_model.stem_conv.weight", 1),
        stem_size=size("ecg_model.stem_conv.weight", 0),
        hidden_sizes=[size(f"ecg_model.stages.{i}.blocks.0.conv1.weight", 0) for i in range(_NUM_STAGES)],
        depths=[count(f"ecg_model.stages.{i}.blocks.") for i in range(_NUM_STAGES)],
        projection_dim=size("ecg_model.head.mean_projection.weight", 0),
        pooling_size=size("ecg_model.head.mean_pooling.score.weight", 1),
        text_config={
            "vocab_size": size("text_model.bert.embeddings.word_embeddings.weight", 0),
            "hidden_size": hidden_size,
            "num_hidden_layers": count("text_model.bert.encoder.layer."),
            "num_attention_heads": num_text_heads or max(1, hidden_size // 64),
            "intermediate_size": size("text_model.bert.encoder.layer.0.intermediate.dense.weight", 0),
            "max_position_embeddings": size("text_model.bert.embeddings.position_embeddings.weight", 0),
            "type_vocab_size": size("text_model.bert.embeddings.token_type_embeddings.weight", 0),
        },
    )


def convert(
    state_dict: Mapping[str, torch.Tensor], num_text_heads: int | None = None
) -> tuple[EchoingEcgModel, list[str]]:
    """Build the model that a checkpoint of the authors holds.

    Args:
        state_dict: their keys and tensors.
        num_text_heads: attention heads of the text encoder, by default one for 64 channels.

    Returns:
        the model in float32, in evaluation mode, and the keys left out on purpose.

    Raises:
        ValueError: keys missing, unknown or of the wrong shape, all listed.
    """
    weights, dropped, unknown = _rename(state_dict)
    model = EchoingEcgModel(_read_config(weights, num_text_heads))
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith(_MATCHING)}
    wrong = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    wrong += [f"{name} is unknown" for name in [*unknown, *(weights.keys() - expected.keys())]]
    wrong += [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    if wrong:
        raise ValueError(f"the checkpoint does not fit (in our names): {'; '.join(sorted(wrong))}")
    model.load_state_dict(weights, strict=False)  # strict but for a and b, as was just checked
    return model.eval(), dropped


def _load(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors or PyTorch file; a pickle that holds more than tensors is refused."""
    if path.suffix == ".safetensors":
        return load_file(path)
    state_dict = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(f"{path} is no plain state dict: it must map names to tensors")
    return state_dict


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help=".pt or .safetensors")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    scaling = parser.add_mutually_exclusive_group(required=True)
    scaling.add_argument(
        "--scaler", type=Path, help="the StandardScaler that comes with the weights (pickle or joblib)"
    )
    scaling.add_argument("--no-scaler", action="store_true", help="write no feature extractor: it needs the scaler")
    parser.add_argument("--tokenizer", type=Path, help="folder with BioBERT's tokenizer")
    parser.add_argument("--text-heads", type=int, help="attention heads of the text encoder")
    args = parser.parse_args(arguments)

    feature_extractor = None
    if args.scaler is not None:
        means, scales = read_standard_scaler(args.scaler)
        feature_extractor = EcgFeatureExtractor(
            lead_names=STANDARD_LEADS,
            sampling_rate=100,
            num_samples=1000,
            bandpass=(0.5, 40.0),
            normalization="standard",
            lead_means=means,
            lead_scales=scales,
        )
    tokenizer = None
    if args.tokenizer is not None:
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer, local_files_only=True)

    model, dropped = convert(_load(args.checkpoint), args.text_heads)
    config, text_config = model.config, model.text_model.bert.config
    if feature_extractor is not None and config.num_leads != len(STANDARD_LEADS):
        raise ValueError(f"the checkpoint takes {config.num_leads} leads, the feature extractor gives 12")
    if tokenizer is not None and len(tokenizer) != text_config.vocab_size:
        raise ValueError(
            f"{args.tokenizer} has {len(tokenizer)} tokens, but the checkpoint's text encoder has "
            f"{text_config.vocab_size}: give the tokenizer that it was trained with"
        )

    model.save_pretrained(args.output)
    if feature_extractor is not None and tokenizer is not None:
        EcgProcessor(
            feature_extractor,
            tokenizer,
            prompt_template=PROMPT_TEMPLATE,
            lowercase=True,
            max_text_length=text_config.max_position_embeddings,
        ).save_pretrained(args.output)
    elif feature_extractor is not None:
        feature_extractor.save_pretrained(args.output)
    elif tokenizer is not None:
        tokenizer.save_pretrained(args.output)

    print(f"EchoingEcgModel with {model.num_parameters():,} parameters written to {args.output}")
    print(f"left out on purpose (not used by the model): {', '.join(dropped) or 'nothing'}")
    print(
        "not in the checkpoint: a and b of the match logit are at their initial values "
        f"({config.init_negative_scale:g} and {config.init_shift:g}), so match probabilities are uncalibrated"
    )
    if feature_extractor is None:
        print(
            "no scaler: no feature extractor was written; standardise each lead yourself (I II III aVR aVL aVF V1-V6)"
        )
    if tokenizer is None:
        print("no tokenizer: give --tokenizer FOLDER to make texts usable")
    print("for research use; not a medical device")


if __name__ == "__main__":
    main()
