"""ECG foundation models for the Hugging Face Hub.  For research use; not a medical device.

Importing the package makes its models, processors and pipelines known to transformers.
"""

from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"

_here = Path(__file__).resolve().parent
if not (_here / "modeling").is_dir():  # a source checkout: the sub-packages lie beside this folder
    __path__.append(str(_here.parent))

import_module("ecgformers.modeling")  # after the path above is in place

_PUBLIC = {
    "EcgFeatureExtractor": "feature_extraction_ecg",
    "EcgProcessor": "processing_ecg",
    "EcgReadError": "record_ecg",
    "EcgRecord": "record_ecg",
    "EchoClipConfig": "configuration_echo_clip",
    "EchoClipModel": "modeling_echo_clip",
    "EchoingEcgConfig": "configuration_echoing_ecg",
    "EchoingEcgForSequenceClassification": "modeling_echoing_ecg",
    "EchoingEcgModel": "modeling_echoing_ecg",
    "MelpConfig": "configuration_melp",
    "MelpEcgConfig": "configuration_melp",
    "MelpEcgForPreTraining": "modeling_melp_ecg",
    "MelpEcgForSequenceClassification": "modeling_melp_ecg",
    "MelpEcgModel": "modeling_melp_ecg",
    "MelpForConditionalGeneration": "modeling_melp",
    "MelpForSequenceClassification": "modeling_melp",
    "MelpModel": "modeling_melp",
    "MerlConfig": "configuration_merl",
    "MerlForSequenceClassification": "modeling_merl",
    "MerlModel": "modeling_merl",
    "heart_rate": "rhythm_ecg",
    "plot_ecg": "plotting_ecg",
    "read_ecg": "reading_ecg",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ecgformers' has no attribute {name!r}")
    return getattr(import_module(f"ecgformers.modeling.{_PUBLIC[name]}"), name)
