"""What the front door holds, said once: type checkers read it, and so does `__init__.py`."""

from .modeling.configuration_echo_clip import EchoClipConfig as EchoClipConfig
from .modeling.configuration_echoing_ecg import EchoingEcgConfig as EchoingEcgConfig
from .modeling.configuration_melp import MelpConfig as MelpConfig
from .modeling.configuration_melp_ecg import MelpEcgConfig as MelpEcgConfig
from .modeling.configuration_merl import MerlConfig as MerlConfig
from .modeling.feature_extraction_ecg import EcgFeatureExtractor as EcgFeatureExtractor
from .modeling.findings_ecg import check_ecg as check_ecg
from .modeling.modeling_echo_clip import EchoClipModel as EchoClipModel
from .modeling.modeling_echoing_ecg import EchoingEcgForSequenceClassification as EchoingEcgForSequenceClassification
from .modeling.modeling_echoing_ecg import EchoingEcgModel as EchoingEcgModel
from .modeling.modeling_melp import MelpForConditionalGeneration as MelpForConditionalGeneration
from .modeling.modeling_melp import MelpForSequenceClassification as MelpForSequenceClassification
from .modeling.modeling_melp import MelpModel as MelpModel
from .modeling.modeling_melp_ecg import MelpEcgForSequenceClassification as MelpEcgForSequenceClassification
from .modeling.modeling_melp_ecg import MelpEcgModel as MelpEcgModel
from .modeling.modeling_melp_pretraining import MelpEcgForPreTraining as MelpEcgForPreTraining
from .modeling.modeling_merl import MerlForSequenceClassification as MerlForSequenceClassification
from .modeling.modeling_merl import MerlModel as MerlModel
from .modeling.plotting_ecg import plot_ecg as plot_ecg
from .modeling.processing_ecg import EcgProcessor as EcgProcessor
from .modeling.quality_ecg import Finding as Finding
from .modeling.reading_ecg import read_ecg as read_ecg
from .modeling.record_ecg import EcgReadError as EcgReadError
from .modeling.record_ecg import EcgRecord as EcgRecord
from .modeling.repair_ecg import repair_ecg as repair_ecg
from .modeling.rhythm_ecg import heart_rate as heart_rate
from .modeling.writing_ecg import write_ecg as write_ecg

__version__: str
