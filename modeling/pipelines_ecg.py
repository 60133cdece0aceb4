"""transformers pipelines that take an ECG in whatever form it comes:

    import ecgformers  # makes these tasks known
    from transformers import pipeline

    pipeline("ecg-classification", model=folder)("record.hea")
    pipeline("zero-shot-ecg-classification", model=folder)("record.hea", candidate_labels=["atrial fibrillation", ...])
    pipeline("ecg-to-text", model=folder)("record.hea", num_beams=4)
    pipeline("ecg-feature-extraction", model=folder)("record.hea")

An ECG is whatever `read_ecg` takes; its arguments (`sampling_rate`, `units`, `leads`, ...) are taken here, too.  One
ECG gives one answer, a list a list of answers, and a generator or a data set an iterator over answers, so that memory
does not grow; `batch_size` is how many the model takes at a time.  With `on_error="skip"` an ECG that cannot be read
or used gives `{"error": "what is wrong"}` in its place, instead of ending the call.

A recording longer than the model's input is cropped, with a warning.  `windows="all"` looks at all of it, in windows
that overlap by half (`overlap=`), and `windows="best"` at the cleanest window.  An answer is then `{"answer",
"windows"}`: each window has its `start` and `end` in seconds and its own answer, or the `error` for which it was left
out, and the answer is their mean or, with `pooling="max"`, their maximum, for findings that come and go.

A repo that was published, or a folder that a pipeline saved, holds this code, and needs nothing but
`trust_remote_code=True`.

For research use; not a medical device.
"""

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers import Pipeline, PreTrainedConfig
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import ModelOutput

from .groups_ecg import log_none, membership
from .reading_ecg import read_ecg
from .record_ecg import EcgRecord
from .windows_ecg import POOLINGS, WINDOWS, cleanest_window, cut_windows, pool_answers

READING_OPTIONS = tuple(inspect.signature(read_ecg).parameters)[1:]
ACTIVATIONS = {"softmax": lambda logits: logits.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda logits: logits}


class EcgPipeline(Pipeline):
    """What the four tasks share: reading, preparing, and errors as answers.

    A task has `_options` (its own arguments -> those of the next two), `_run` (prepared ECGs -> a mapping of tensors)
    and `_answer` (that mapping for one ECG -> what the user gets).
    """

    model: Any
    feature_extractor: Any
    processor: Any
    task_name: str
    auto_classes: tuple[str, ...]  # of transformers; the last takes any model, so that `_refusal` can speak
    needs_text = False
    _load_feature_extractor = None  # None: where there is one; a lone ECG tower has no processor
    _load_processor = None
    _load_tokenizer = False
    _load_image_processor = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.feature_extractor is None:
            self.feature_extractor = getattr(self.processor, "feature_extractor", None)
        if reason := self._refusal():
            tasks = [task for task in tasks_of(self.model.config) if task != self.task_name]
            able = f"It can do {', '.join(tasks)}" if tasks else "It can do none of the tasks for ECGs"
            raise ValueError(f"{self._model_name()} cannot do {self.task_name}: {reason}.  {able}.")
        if self.feature_extractor is None or (self.needs_text and self.processor is None):
            kind = "processor" if self.needs_text else "feature_extractor"
            raise ValueError(
                f"{self._model_name()}: no {kind} was found; give {kind}=, or see what "
                f"Auto{kind.title().replace('_', '')}.from_pretrained says"
            )

    def _model_name(self) -> str:
        name = type(self.model).__name__
        return f"{self.model.name_or_path} (a {name})" if self.model.name_or_path else f"a {name}"

    def _refusal(self) -> str | None:
        """Why the model cannot do this task, and what helps."""
        raise NotImplementedError

    def __call__(
        self, ecgs: Any, windows: str = "first", overlap: float = 0.5, pooling: str = "mean", **options: Any
    ) -> Any:
        """The answer for one ECG, a list of answers for a list, or an iterator over answers (see the module)."""
        if windows not in WINDOWS or pooling not in POOLINGS:
            raise ValueError(
                f"windows={windows!r} with pooling={pooling!r}: there are {', '.join(map(repr, WINDOWS))}, and "
                f"{' and '.join(map(repr, POOLINGS))}"
            )
        if windows != "first":
            answer = partial(self._in_windows, windows=windows, overlap=overlap, pooling=pooling, options=options)
            if isinstance(ecgs, list | tuple):
                return [answer(ecg) for ecg in ecgs]
            return answer(ecgs) if is_one_ecg(ecgs) else map(answer, ecgs)
        if isinstance(ecgs, list | tuple):
            return super().__call__(list(ecgs), **options) if ecgs else []
        if not is_one_ecg(ecgs) and not isinstance(ecgs, torch.utils.data.Dataset) and isinstance(ecgs, Iterable):
            return iter(super().__call__((ecg for ecg in ecgs), **options))
        return super().__call__(ecgs, **options)

    def _in_windows(
        self, ecg: Any, windows: str, overlap: float, pooling: str, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The answer for one ECG in windows, of which no more than a batch is prepared at a time."""
        rest = {name: value for name, value in options.items() if name not in (*READING_OPTIONS, "on_error")}
        seconds = self.feature_extractor.num_samples / self.feature_extractor.sampling_rate
        try:
            record = read_ecg(ecg, **{name: options[name] for name in READING_OPTIONS if name in options})
            best = windows == "best"
            cut = [cleanest_window(record, seconds, overlap)] if best else cut_windows(record, seconds, overlap)
            spans: list[dict[str, Any]] = []

            def parts() -> Iterator[EcgRecord]:
                for start, part in cut:
                    spans.append({"start": start, "end": start + part.duration})
                    yield part

            answers = list(super().__call__(parts(), on_error="skip", **rest))
            found = [answer for answer in answers if not (isinstance(answer, dict) and "error" in answer)]
            if not found:
                raise ValueError(answers[0]["error"])
        except (OSError, TypeError, ValueError) as raised:
            if options.get("on_error") != "skip":
                raise
            return {"error": str(raised)}
        each = [span | (a if isinstance(a, dict) else {"answer": a}) for span, a in zip(spans, answers, strict=True)]
        return {"answer": pool_answers(found, pooling), "windows": each}

    def _sanitize_parameters(
        self, on_error: str | None = None, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if on_error not in (None, "raise", "skip"):
            raise ValueError(f"on_error={on_error!r} is neither 'raise' nor 'skip'")
        reading = {name: options.pop(name) for name in READING_OPTIONS if name in options}
        return reading | ({} if on_error is None else {"on_error": on_error}), *self._options(**options)

    def preprocess(self, ecg: Any, on_error: str = "raise", **reading: Any) -> dict[str, Any]:
        extractor, error = self.feature_extractor, ""
        try:
            inputs = extractor(read_ecg(ecg, **reading), return_tensors="pt")
        except (OSError, TypeError, ValueError) as raised:
            if on_error == "raise":
                raise
            error = str(raised)
            leads, samples = len(extractor.lead_names), extractor.num_samples
            inputs = {
                "input_values": torch.zeros(1, leads, samples),
                "lead_mask": torch.ones(1, leads, dtype=torch.int64),
                "sample_mask": torch.ones(1, samples, dtype=torch.int64),
            }
        return {**inputs, "error": error} if on_error == "skip" else dict(inputs)

    def _forward(self, inputs: dict[str, Any], **options: Any) -> ModelOutput:
        errors = {"error": inputs.pop("error")} if "error" in inputs else {}
        return ModelOutput(**self._run(inputs, **options), **errors)

    def postprocess(self, output: ModelOutput, **options: Any) -> Any:
        return {"error": output["error"]} if output.get("error") else self._answer(output, **options)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves model, processor and the code of all tasks that the model does."""
        os.makedirs(save_directory, exist_ok=True)
        custom_object_save(self, save_directory)
        self.model.config.custom_pipelines = custom_pipelines(self.model.config)
        self.model.save_pretrained(save_directory, **kwargs)
        (self.processor or self.feature_extractor).save_pretrained(save_directory)


class EcgClassificationPipeline(EcgPipeline):
    """Scores of a trained head: `[{"label", "score"}, ...]`, highest first.

    Where a model was calibrated (`logit_temperature` in its config), scores are probabilities one can count on among
    recordings like those of its calibration.

    Args of a call:
        function_to_apply: `"softmax"` over labels that exclude each other, `"sigmoid"` of each, `"none"`; by default
            what the head was trained for: sigmoid (multi-label), softmax (single label), the values (regression).
        level: groups of labels, one of the levels in the config's `groups`, such as `"superclass"`: the probability
            that any label of a group is true.
        top_k: so many labels.
    """

    task_name = "ecg-classification"
    auto_classes = ("AutoModelForSequenceClassification", "AutoModel")

    def _refusal(self) -> str | None:
        if not hasattr(self.model, "classifier") or getattr(self.model, "head_is_new", False):
            return (
                "it has no trained head, and a random one would answer at random.  Fine-tune it on your labels first, "
                "or give them to zero-shot-ecg-classification (on the command line: --labels)"
            )
        return None

    def _options(
        self, function_to_apply: str | None = None, level: str | None = None, top_k: int | None = None
    ) -> tuple[dict, dict]:
        if level is not None and level not in (levels := getattr(self.model.config, "groups", None) or {}):
            raise ValueError(f"level {level!r}: this model's labels have {', '.join(levels) or 'no levels'}")
        return {}, _given(function_to_apply=_known_function(function_to_apply), level=level, top_k=top_k)

    def _run(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"logits": self.model(**inputs).logits.float()}

    def _answer(
        self,
        output: ModelOutput,
        function_to_apply: str | None = None,
        level: str | None = None,
        top_k: int | None = None,
    ) -> list[dict[str, Any]]:
        config = self.model.config
        labels = [config.id2label[index] for index in range(config.num_labels)]
        logits = output["logits"][0] / getattr(config, "logit_temperature", 1.0)
        if level is not None:
            groups = config.groups[level]
            return _ranked(list(groups), 1 - log_none(logits, membership(labels, groups)).exp(), top_k)
        return _ranked(labels, ACTIVATIONS[function_to_apply or self.activation()](logits), top_k)

    def activation(self) -> str:
        """The function that the head was trained for."""
        config = self.model.config
        if config.problem_type == "multi_label_classification":
            return "sigmoid"
        return "none" if config.problem_type == "regression" or config.num_labels == 1 else "softmax"  # as in training


class ZeroShotEcgClassificationPipeline(EcgPipeline):
    """How well texts describe an ECG: `[{"label", "score"}, ...]`, highest first.

    A label's logit is the mean over its texts of the model's own ECG-text logits: scaled cosines (MELP, MERL), or the
    match logit of two Gaussians (EchoingECG).

    Args of a call:
        candidate_labels: a list of texts, or a mapping from label to one or several texts.
        hypothesis_template: the sentence that each text is put into, in place of `{}`.
        function_to_apply: `"softmax"` (default): shares of the labels, which sum to 1.  They say which of *these*
            labels fits best, and change when labels come or go; they are no probabilities that a finding is present.
            `"sigmoid"`: each label by itself; EchoingECG's are the match probabilities it was trained with, among
            reports of a batch; cosines have no zero point, so MELP's and MERL's say nothing.  `"none"`: the logits.
        top_k: so many labels.
    """

    task_name = "zero-shot-ecg-classification"
    auto_classes = ("AutoModel",)
    needs_text = True

    def _refusal(self) -> str | None:
        if self.task_name in tasks_of(self.model.config) and hasattr(self.model, "get_text_features"):
            return None
        return "it has no trained text tower to compare the ECG with"

    def _options(
        self,
        candidate_labels: Iterable[str] | Mapping[str, str | Sequence[str]] | None = None,
        hypothesis_template: str | None = None,
        function_to_apply: str | None = None,
        top_k: int | None = None,
    ) -> tuple[dict, dict]:
        if hypothesis_template is not None and "{}" not in hypothesis_template:
            raise ValueError(
                f"hypothesis_template must hold {{}}, the place of the label; got {hypothesis_template!r}"
            )
        running = _given(template=hypothesis_template)
        answering = _given(function_to_apply=_known_function(function_to_apply), top_k=top_k)
        if candidate_labels is None:
            return running, answering
        if isinstance(candidate_labels, str):
            raise ValueError(
                f"candidate_labels must be a list of texts, or a mapping, not the text {candidate_labels!r}"
            )
        if not isinstance(candidate_labels, Mapping):
            candidate_labels = {label: label for label in candidate_labels}
        prompts = {label: [text] if isinstance(text, str) else list(text) for label, text in candidate_labels.items()}
        if not prompts or not all(prompts.values()):
            raise ValueError("candidate_labels needs at least one label, and at least one text for each")
        return {"prompts": prompts, **running}, {"labels": list(prompts), **answering}

    def _run(
        self, inputs: dict[str, Any], prompts: Mapping[str, list[str]] | None = None, template: str = "{}"
    ) -> dict[str, torch.Tensor]:
        if prompts is None:
            raise ValueError("give candidate_labels: the texts to compare the ECG with")
        texts = [template.replace("{}", text) for class_texts in prompts.values() for text in class_texts]
        tokens = self.processor(text=texts).to(self.device)
        logits = self.model(**inputs, **tokens).logits_per_ecg.float()  # (ECGs, texts)
        return {"logits": prompt_scores(logits, [len(class_texts) for class_texts in prompts.values()])}

    def _answer(
        self, output: ModelOutput, labels: list[str], function_to_apply: str = "softmax", top_k: int | None = None
    ) -> list[dict[str, Any]]:
        return _ranked(labels, ACTIVATIONS[function_to_apply](output["logits"][0]), top_k)


class EcgToTextPipeline(EcgPipeline):
    """Writes a report: `[{"generated_text"}]`, one for each returned sequence.

    Options go to `generate`; unless they or the folder's generation config set a length, a report may be as long as
    the model's longest text.
    """

    task_name = "ecg-to-text"
    auto_classes = ("AutoModelForSpeechSeq2Seq", "AutoModel")
    needs_text = True

    def _refusal(self) -> str | None:
        if self.model.can_generate() and self.task_name in tasks_of(self.model.config):
            return None
        return "it writes no text"

    def _options(self, **options: Any) -> tuple[dict, dict]:
        return options, {}

    def _run(self, inputs: dict[str, Any], **options: Any) -> dict[str, torch.Tensor]:
        if not {"max_length", "max_new_tokens", "generation_config"} & options.keys():
            default = self.model.generation_config
            if default.max_new_tokens is None and default.max_length in (None, 20):  # 20: what transformers has
                options["max_new_tokens"] = self.model.config.max_text_length - 1  # [BOS] is there already
        ids = self.model.generate(**inputs, **options)  # (ECGs x sequences, tokens)
        return {"ids": ids.reshape(len(inputs["input_values"]), -1, ids.shape[-1])}

    def _answer(self, output: ModelOutput) -> list[dict[str, str]]:
        texts = self.processor.batch_decode(output["ids"][0], skip_special_tokens=True)
        return [{"generated_text": text} for text in texts]


class EcgFeatureExtractionPipeline(EcgPipeline):
    """An output of the ECG tower, as nested lists of numbers.

    Args of a call:
        output: its name, such as `ecg_embeds` (default: what texts are compared with), `pooler_output` (for linear
            probes), `mean_state`, or `ecg_logvar` (EchoingECG).
        return_tensors: True for a tensor.
    """

    task_name = "ecg-feature-extraction"
    auto_classes = ("AutoModel", "AutoModelForSequenceClassification")  # a classifier's folder has no text tower

    def _refusal(self) -> str | None:
        return None if self.task_name in tasks_of(self.model.config) else "it takes no ECGs"

    def _options(self, output: str | None = None, return_tensors: bool | None = None) -> tuple[dict, dict]:
        return _given(name=output), _given(return_tensors=return_tensors)

    def _run(self, inputs: dict[str, Any], name: str = "ecg_embeds") -> dict[str, torch.Tensor]:
        model = getattr(self.model, "ecg_model", self.model) if hasattr(self.model, "classifier") else self.model
        outputs = getattr(model, "get_ecg_features", model)(**inputs)
        tensors = {key: value for key, value in outputs.items() if isinstance(value, torch.Tensor)}
        if name not in tensors:
            raise ValueError(f"{self._model_name()} has no output {name!r}; it has {', '.join(tensors)}")
        return {"features": tensors[name]}

    def _answer(self, output: ModelOutput, return_tensors: bool = False) -> Any:
        features = output["features"][0].float().cpu()
        return features if return_tensors else features.tolist()


PIPELINES = (
    EcgClassificationPipeline,
    ZeroShotEcgClassificationPipeline,
    EcgToTextPipeline,
    EcgFeatureExtractionPipeline,
)


def tasks_of(config: PreTrainedConfig) -> list[str]:
    """The tasks of this module that a model, as it was saved, can do."""
    if hasattr(config, "vision_config"):  # of echocardiograms
        return []
    tasks = [EcgFeatureExtractionPipeline.task_name]
    if any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        return [EcgClassificationPipeline.task_name, *tasks]  # such a folder holds nothing but ECG tower and head
    if hasattr(config, "text_config"):
        tasks.append(ZeroShotEcgClassificationPipeline.task_name)
    if config.is_encoder_decoder:
        tasks.append(EcgToTextPipeline.task_name)
    return tasks


def custom_pipelines(config: PreTrainedConfig) -> dict[str, dict[str, Any]]:
    """The entry of `config.json` by which `pipeline` finds the code of these tasks in a repo."""
    classes = {pipeline_class.task_name: pipeline_class for pipeline_class in PIPELINES}
    return {
        task: {"impl": f"pipelines_ecg.{classes[task].__name__}", "pt": list(classes[task].auto_classes)}
        for task in tasks_of(config)
    }


def is_one_ecg(source: Any) -> bool:
    """Whether `source` stands for one ECG, not for several: what has no business being iterated over."""
    return (
        isinstance(source, str | bytes | bytearray | os.PathLike | Mapping)
        or any(hasattr(source, name) for name in ("signal", "read", "__array__"))
        or type(source).__module__.partition(".")[0] == "pydicom"  # a Dataset is iterable
    )


def prompt_scores(logits_per_ecg: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Zero-shot scores of classes: the mean over each class's prompts.

    Args:
        logits_per_ecg: (ECGs, prompts), a model's similarities, the prompts of a class side by side.
        counts: number of prompts of each class.

    Returns:
        (ECGs, classes).
    """
    return torch.stack([chunk.mean(-1) for chunk in logits_per_ecg.split(list(counts), -1)], -1)


def _ranked(labels: Sequence[str], scores: torch.Tensor, top_k: int | None) -> list[dict[str, Any]]:
    pairs = sorted(zip(labels, scores.tolist(), strict=True), key=lambda pair: -pair[1])
    return [{"label": label, "score": score} for label, score in pairs][:top_k]


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _known_function(name: str | None) -> str | None:
    if name is not None and name not in ACTIVATIONS:
        raise ValueError(f"function_to_apply={name!r} is none of {', '.join(map(repr, ACTIVATIONS))}")
    return name
