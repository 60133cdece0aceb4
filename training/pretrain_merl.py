"""MERL: ECGs and reports aligned by two contrasts (Liu et al., ICML 2024, arXiv 2403.06659).

    accelerate launch -m ecgformers.training.pretrain_merl --config FILE data=[folder] text=runs/text/best

The rival that MELP compares with, trained alike: on the same pairs, from the same text stage, validated the same way
(FILE has a section `merl`; see `pretrain_melp`).  `text` may also be any BERT, such as ncbi/MedCPT-Query-Encoder, the
published choice, or be left out: random weights.  `ecg` is the ECG stage of a residual network of the same sizes.  The
negatives of both contrasts are those of all processes.
"""

from collections.abc import Sequence

from transformers import AutoTokenizer, BertModel, PreTrainedTokenizerBase

from ecgformers.modeling.configuration_merl import MerlConfig
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.modeling_merl import MerlModel
from ecgformers.modeling.processing_ecg import EcgProcessor
from ecgformers.training.alignment import AlignmentSettings, align, check_stages, load_residual_network
from ecgformers.training.loop import make_accelerator
from ecgformers.training.settings import parse_settings


def build_model(settings: AlignmentSettings, tokenizer: PreTrainedTokenizerBase) -> MerlModel:
    """The model of `settings.model`, with the weights of the text stage where there is one.

    The layer that reads the report off its first token is new where the text stage has none (masked language models).
    """
    fields = dict(settings.model)
    if settings.text:
        bert = BertModel.from_pretrained(settings.text)
        bert.resize_token_embeddings(len(tokenizer))
        fields["text_config"] = bert.config.to_diff_dict() | fields.get("text_config", {})
    fields["text_config"] = fields.get("text_config", {}) | {"vocab_size": len(tokenizer)}
    model = MerlModel(MerlConfig(**fields))
    if settings.text:
        model.text_model.load_state_dict(bert.state_dict())
    if settings.ecg:
        load_residual_network(model.ecg_model, settings.ecg)
    model.freeze_text_layers()
    return model


def main(arguments: Sequence[str] | None = None):
    settings = parse_settings(AlignmentSettings, "merl", __doc__, arguments, MerlConfig)
    check_stages(settings)
    accelerator = make_accelerator(settings.loop)
    tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer or settings.text)
    model = build_model(settings, tokenizer)
    processor = EcgProcessor(
        EcgFeatureExtractor(**settings.processor),
        tokenizer,
        lowercase=True,
        full_stop=True,
        remove_patterns=settings.remove,
        max_text_length=model.config.text_config.max_position_embeddings,
    )
    best = align(settings, accelerator, model, processor)
    accelerator.print(f"best model: {best}")


if __name__ == "__main__":
    main()
