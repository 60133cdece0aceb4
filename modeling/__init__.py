"""The models; importing this package makes them known to the transformers Auto classes and pipelines."""

from typing import Any

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    PreTrainedConfig,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_echo_clip import EchoClipConfig
from .configuration_echoing_ecg import EchoingEcgConfig
from .configuration_melp import MelpConfig, MelpEcgConfig
from .configuration_merl import MerlConfig
from .feature_extraction_ecg import EcgFeatureExtractor
from .modeling_echo_clip import EchoClipModel
from .modeling_echoing_ecg import EchoingEcgForSequenceClassification, EchoingEcgModel
from .modeling_melp import MelpForConditionalGeneration, MelpForSequenceClassification, MelpModel
from .modeling_melp_ecg import MelpEcgForPreTraining, MelpEcgForSequenceClassification, MelpEcgModel
from .modeling_merl import MerlForSequenceClassification, MerlModel
from .pipelines_ecg import EcgClassificationPipeline, EcgToTextPipeline, ZeroShotEcgClassificationPipeline
from .processing_ecg import EcgProcessor

_CLASSES: dict[type[PreTrainedConfig], dict[Any, type]] = {
    EchoClipConfig: {AutoModel: EchoClipModel},
    EchoingEcgConfig: {
        AutoFeatureExtractor: EcgFeatureExtractor,
        AutoProcessor: EcgProcessor,
        AutoModel: EchoingEcgModel,
        AutoModelForSequenceClassification: EchoingEcgForSequenceClassification,
    },
    MelpConfig: {
        AutoFeatureExtractor: EcgFeatureExtractor,
        AutoProcessor: EcgProcessor,
        AutoModel: MelpModel,
        AutoModelForSequenceClassification: MelpForSequenceClassification,
        AutoModelForSpeechSeq2Seq: MelpForConditionalGeneration,
    },
    MelpEcgConfig: {
        AutoFeatureExtractor: EcgFeatureExtractor,
        AutoProcessor: EcgFeatureExtractor,  # the tower alone has no text to tokenize
        AutoModel: MelpEcgModel,
        AutoModelForPreTraining: MelpEcgForPreTraining,
        AutoModelForSequenceClassification: MelpEcgForSequenceClassification,
    },
    MerlConfig: {
        AutoFeatureExtractor: EcgFeatureExtractor,
        AutoProcessor: EcgProcessor,
        AutoModel: MerlModel,
        AutoModelForSequenceClassification: MerlForSequenceClassification,
    },
}

for config_class, classes in _CLASSES.items():
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for auto_class, registered in classes.items():
        auto_class.register(config_class, registered, exist_ok=True)

for task, pipeline_class, auto_class in (
    ("ecg-classification", EcgClassificationPipeline, AutoModelForSequenceClassification),
    ("zero-shot-ecg-classification", ZeroShotEcgClassificationPipeline, AutoModel),
    ("ecg-to-text", EcgToTextPipeline, AutoModelForSpeechSeq2Seq),
):
    PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=auto_class)
