"""Turn the EchoingECG files of the authors into a folder that `AutoModel.from_pretrained` loads.

    python -m ecgformers.modeling.converting.echoing_ecg --checkpoint FILE --output DIR
        (--scaler FILE | --no-scaler) [--tokenizer DIR]

The model wants leads standardised with the 12 means and scales that come with the weights: `--scaler` names that file.
Without them (`--no-scaler`) only the model is written, and its inputs are yours to standardise.  To use texts, give
the folder of BioBERT v1.1's tokenizer.  Sizes are read off the tensors; the number of attention heads is not in them,
and is BERT's (64 channels a head) unless given.

The authors' weights are under CC BY-NC-ND 4.0: a converted folder is for your own use.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoTokenizer

from ecgformers.modeling.configuration_echoing_ecg import EchoingEcgConfig
from ecgformers.modeling.converting.checkpoint import (
    RESIDUAL_NETWORK,
    KeyTable,
    bert_sizes,
    check_leads,
    check_tokenizer,
    fill_model,
    load_checkpoint,
    mark_license,
    print_summary,
    rename_keys,
    residual_network_sizes,
    size,
    with_prefix,
)
from ecgformers.modeling.converting.scaler import read_standard_scaler
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgModel
from ecgformers.modeling.processing_ecg import EcgProcessor

PROMPT_TEMPLATE = "Given the data for ECG. The corresponding ECG report is : {text}\n\n."

_HEAD: KeyTable = [
    (r"linear\.(.+)", r"head.mean_projection.\1"),
    (r"gpool\.gru\.(.+)", r"head.mean_pooling.gru.\1"),
    (r"gpool\.linear\.(.+)", r"head.mean_pooling.score.\1"),
    (r"std_linear\.(.+)", r"head.logvar_projection.\1"),
    (r"std_gpool\.gru\.(.+)", r"head.logvar_pooling.gru.\1"),
    (r"std_gpool\.linear\.(.+)", r"head.logvar_pooling.score.\1"),
]
_KEYS: KeyTable = [
    *with_prefix(r"ecg_encoder\.", "ecg_model.", [*_HEAD, *RESIDUAL_NETWORK]),
    (r"text_encoder\.backbone\.pooler\..+", None),  # BERT's pooler, never used
    (r"text_encoder\.backbone\.(.+)", r"text_model.bert.\1"),
    *with_prefix(r"text_encoder\.", "text_model.", _HEAD),
]
_NOT_IN_CHECKPOINT = r"logit_(scale|bias)"  # a and b of the match logit


def _read_config(weights: Mapping[str, torch.Tensor], num_text_heads: int | None) -> EchoingEcgConfig:
    """Sizes of renamed weights."""
    residual_network = residual_network_sizes(weights, "ecg_model.")
    del residual_network["strides"]  # always those
    return EchoingEcgConfig(
        projection_dim=size(weights, "ecg_model.head.mean_projection.weight", 0),
        pooling_size=size(weights, "ecg_model.head.mean_pooling.score.weight", 1),
        text_config=bert_sizes(weights, "text_model.bert.", num_text_heads),
        **residual_network,
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
    weights, dropped, unknown = rename_keys(state_dict, _KEYS)
    model = EchoingEcgModel(_read_config(weights, num_text_heads))
    fill_model(model, weights, unknown, _NOT_IN_CHECKPOINT)
    return model, dropped


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

    model, dropped = convert(load_checkpoint(args.checkpoint), args.text_heads)
    config, text_config = model.config, model.text_model.bert.config
    if feature_extractor is not None:
        check_leads(config.num_leads, STANDARD_LEADS)
    if tokenizer is not None:
        check_tokenizer(tokenizer, text_config.vocab_size)

    mark_license(model, "cc-by-nc-nd-4.0", "EchoingECG")
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

    print_summary(model, dropped, args.output, tokenizer is not None)
    print(
        "not in the checkpoint: a and b of the match logit are at their initial values "
        f"({config.init_negative_scale:g} and {config.init_shift:g}), so match probabilities are uncalibrated"
    )
    if feature_extractor is None:
        print(
            "no scaler: no feature extractor was written; standardise each lead yourself (I II III aVR aVL aVF V1-V6)"
        )


if __name__ == "__main__":
    main()
