"""The models; importing this package registers them with the transformers Auto classes."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
)

from .configuration_echoing_ecg import EchoingEcgConfig
from .configuration_melp import MelpConfig, MelpEcgConfig
from .feature_extraction_ecg import EcgFeatureExtractor
from .modeling_echoing_ecg import EchoingEcgForSequenceClassification, EchoingEcgModel
from .modeling_melp import MelpForConditionalGeneration, MelpForSequenceClassification, MelpModel
from .modeling_melp_ecg import MelpEcgForPreTraining, MelpEcgForSequenceClassification, MelpEcgModel
from .processing_ecg import EcgProcessor

_MODELS = {
    EchoingEcgConfig: {
        AutoModel: EchoingEcgModel,
        AutoModelForSequenceClassification: EchoingEcgForSequenceClassification,
    },
    MelpConfig: {
        AutoModel: MelpModel,
        AutoModelForSequenceClassification: MelpForSequenceClassification,
        AutoModelForSpeechSeq2Seq: MelpForConditionalGeneration,
    },
    MelpEcgConfig: {
        AutoModel: MelpEcgModel,
        AutoModelForPreTraining: MelpEcgForPreTraining,
        AutoModelForSequenceClassification: MelpEcgForSequenceClassification,
    },
}

for config_class, models in _MODELS.items():
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoFeatureExtractor.register(config_class, EcgFeatureExtractor, exist_ok=True)
    if "text_config" in config_class.sub_configs:
        AutoProcessor.register(config_class, EcgProcessor, exist_ok=True)
    for auto_class, model_class in models.items():
        auto_class.register(config_class, model_class, exist_ok=True)
