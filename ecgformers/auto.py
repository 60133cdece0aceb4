"""What transformers' Auto classes and pipelines know of us: a name a model type and class, the classes when asked for.

Why not `AutoModel.register`: it wants the classes, so that importing ecgformers would load torch, transformers and
every model.  transformers' own models are names in tables, and the module that a name is taken from is imported at its
first use.  Ours are entered in the same tables as soon as transformers has loaded them (`sys.meta_path` says when),
with the front door, `ecgformers`, in the place of the module `transformers.models.<model type>`.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

CONFIGS = {
    "echo_clip": "EchoClipConfig",
    "echoing_ecg": "EchoingEcgConfig",
    "melp": "MelpConfig",
    "melp_ecg": "MelpEcgConfig",
    "merl": "MerlConfig",
}
EXTRACTORS = dict.fromkeys(("echoing_ecg", "melp", "melp_ecg", "merl"), "EcgFeatureExtractor")
TABLES: dict[str, dict[str, dict[str, str]]] = {
    "configuration_auto": {"CONFIG_MAPPING": CONFIGS},
    "feature_extraction_auto": {"FEATURE_EXTRACTOR_MAPPING": EXTRACTORS},
    "processing_auto": {
        "PROCESSOR_MAPPING": {
            **dict.fromkeys(("echoing_ecg", "melp", "merl"), "EcgProcessor"),
            "melp_ecg": "EcgFeatureExtractor",  # the tower alone has no text to tokenize
        }
    },
    "modeling_auto": {
        "MODEL_MAPPING": {
            "echo_clip": "EchoClipModel",
            "echoing_ecg": "EchoingEcgModel",
            "melp": "MelpModel",
            "melp_ecg": "MelpEcgModel",
            "merl": "MerlModel",
        },
        "MODEL_FOR_PRETRAINING_MAPPING": {"melp_ecg": "MelpEcgForPreTraining"},
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING": {
            "echoing_ecg": "EchoingEcgForSequenceClassification",
            "melp": "MelpForSequenceClassification",
            "melp_ecg": "MelpEcgForSequenceClassification",
            "merl": "MerlForSequenceClassification",
        },
        "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING": {"melp": "MelpForConditionalGeneration"},
    },
}
PIPELINES = "ecgformers.modeling.pipelines_ecg"


def make_known() -> None:
    """Enter our names where transformers is loaded already, and elsewhere as soon as it is."""
    for model_type in CONFIGS:
        sys.modules[f"transformers.models.{model_type}"] = sys.modules["ecgformers"]
    after: dict[str, Callable[[ModuleType], object]] = {f"transformers.models.auto.{name}": _enter for name in TABLES}
    after |= {"transformers.pipelines": _load_pipelines, PIPELINES: _register_pipelines}
    sys.meta_path.insert(0, _AfterImport(after))
    for name in after.keys() & sys.modules.keys():
        after[name](sys.modules[name])


def _enter(module: ModuleType) -> None:
    for table, names in TABLES[module.__name__.rpartition(".")[2]].items():
        getattr(module, f"{table}_NAMES").update(names)
        if table != "CONFIG_MAPPING":  # made before ecgformers was imported, it has looked up the configs already
            reverse = getattr(module, table)._reverse_config_mapping
            reverse.update({CONFIGS[model_type]: model_type for model_type in names})


def _load_pipelines(_: ModuleType) -> None:
    import_module(PIPELINES)


def _register_pipelines(module: Any) -> None:
    import transformers
    from transformers.pipelines import PIPELINE_REGISTRY

    for pipeline_class in module.PIPELINES:
        classes = tuple(getattr(transformers, name) for name in pipeline_class.auto_classes)
        PIPELINE_REGISTRY.register_pipeline(pipeline_class.task_name, pipeline_class, pt_model=classes)


class _AfterImport(MetaPathFinder):
    """Calls a function with a module when that has been imported for the first time."""

    def __init__(self, actions: dict[str, Callable[[ModuleType], object]]):
        self.actions = actions

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in self.actions else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_act(module: ModuleType) -> None:
            run(module)
            self.actions[name](sys.modules[name])

        spec.loader.exec_module = run_and_act  # type: ignore[method-assign]
        return spec
