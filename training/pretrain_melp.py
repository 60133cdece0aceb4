"""MELP's third stage: ECGs and reports aligned at three scales.

    accelerate launch -m ecgformers.training.pretrain_melp --config training/configs/melp.yaml \
        data=[folder] text=runs/text/best ecg=runs/ecg/best

`data` are data sets with reports, built by `datasets_scripts`; `text` and `ecg` are the models of the first two stages
(either may be left out: random weights).  The best model is that with the highest mean zero-shot AUROC over the tasks
of `validation`.  The negatives are those of all processes.
"""

from collections.abc import Sequence

from transformers import AutoTokenizer, BertForMaskedLM, PreTrainedTokenizerFast

from ecgformers.modeling.configuration_melp import MelpConfig
from ecgformers.modeling.configuration_melp_ecg import MelpEcgConfig
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.modeling_melp import MelpModel
from ecgformers.modeling.modeling_melp_pretraining import MelpEcgForPreTraining
from ecgformers.modeling.processing_ecg import EcgProcessor
from ecgformers.modeling.tokenization_melp import as_report_tokenizer, special_token_settings
from ecgformers.training.alignment import AlignmentSettings, align, check_stages
from ecgformers.training.loop import make_accelerator
from ecgformers.training.settings import parse_settings


def build_model(settings: AlignmentSettings, tokenizer: PreTrainedTokenizerFast) -> MelpModel:
    """The model of `settings.model`, with the weights of the first two stages where there are any."""
    fields = dict(settings.model)
    if settings.ecg:
        encoder = MelpEcgForPreTraining.from_pretrained(settings.ecg)
        trained = encoder.config.to_diff_dict()
        sizes = {name: trained[name] for name in MelpEcgConfig.__annotations__ if name in trained}
        sizes.pop("pretraining_config")
        fields["ecg_config"] = sizes | fields.get("ecg_config", {})
    if settings.text:
        bert = BertForMaskedLM.from_pretrained(settings.text)
        fields["text_config"] = bert.config.to_diff_dict() | {"architectures": None} | fields.get("text_config", {})
    fields["text_config"] = fields.get("text_config", {}) | {"vocab_size": len(tokenizer)}
    model = MelpModel(MelpConfig(**fields, **special_token_settings(tokenizer)))
    if settings.ecg:
        model.ecg_model.encoder.load_state_dict(encoder.encoder.state_dict())
    if settings.text:
        bert.resize_token_embeddings(len(tokenizer))
        model.text_model.load_state_dict(bert.bert.state_dict())
    if model.config.ecg_config.encoder_type == "wav2vec2":
        model.ecg_model.encoder.mask_embedding.requires_grad_(False)  # for masked prediction only
    model.freeze_text_layers()
    return model


def main(arguments: Sequence[str] | None = None):
    settings = parse_settings(AlignmentSettings, "melp", __doc__, arguments, MelpConfig)
    check_stages(settings)
    accelerator = make_accelerator(settings.loop)
    tokenizer = as_report_tokenizer(AutoTokenizer.from_pretrained(settings.tokenizer or settings.text))
    model = build_model(settings, tokenizer)
    processor = EcgProcessor(
        EcgFeatureExtractor(**settings.processor),
        tokenizer,
        lowercase=True,
        full_stop=True,
        remove_patterns=settings.remove,
        max_text_length=model.config.max_text_length,
    )
    best = align(settings, accelerator, model, processor)
    accelerator.print(f"best model: {best}")


if __name__ == "__main__":
    main()
