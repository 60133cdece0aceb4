"""A model's folder -> a repo on the Hub that anybody can load: weights, processor, code, card, results, in one commit.

    publish("model_cards/melp-tiny-ptb-xl", "org/melp-tiny-ptb-xl", dry_run=True)

For research use; not a medical device.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".msgpack"}
TRAVELLING = {".json", ".safetensors", ".md", ".txt", ".model", ".yaml", ".png", ".svg"}  # code comes from the package
METADATA = ("library_name", "license", "pipeline_tag", "language", "datasets", "tags")
SECTIONS = ("How it was trained", "Limits")
FREE_LICENSES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc0-1.0"}


class PublishingError(ValueError):
    """A folder is not fit to be published; the message lists why."""


def publish(
    folder: str | os.PathLike,
    repo: str,
    private: bool = False,
    dry_run: bool = False,
    i_may_publish: bool = False,
    say: Callable[[str], object] = print,
) -> str | None:
    """Make the model repo `repo` (created if need be) hold a model's folder, and all that loading it takes.

    One commit, so that a failure leaves the repo as it was.  It also deletes weights and code of an earlier commit
    that are no longer among the files.

    Args:
        dry_run: check everything, say what would go, and send nothing.
        i_may_publish: the licence of weights that are not the user's own allows this.
        say: takes the list of files, line by line.

    Returns:
        The URL of the commit; None after a dry run.

    Raises:
        PublishingError: the folder holds pickles or NaN, its card lacks something, or its code does not load.
        PermissionError: the weights' licence is not free, and `i_may_publish` is not set.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    folder = Path(folder)
    check_license(folder, i_may_publish)
    with tempfile.TemporaryDirectory() as directory:
        staged = Path(directory)
        stage(folder, staged)
        check_loading(staged)
        names = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
        for name in names:
            say(f"{(staged / name).stat().st_size:>12,}  {name}")
        if dry_run:
            return None
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        stale = [
            name
            for name in api.list_repo_files(repo)
            if name.endswith((".py", ".safetensors", ".safetensors.index.json")) and name not in names
        ]
        commit = api.create_commit(
            repo,
            [CommitOperationAdd(name, staged / name) for name in names]
            + [CommitOperationDelete(name) for name in stale],
            commit_message=f"Upload {folder.name}",
        )
    return commit.commit_url


def stage(folder: Path, target: Path) -> None:
    """Write to `target` what a repo holds: the folder's files, the code they name, and what makes pipelines work.

    Raises:
        PublishingError: the folder is not fit to be published.
    """
    from transformers import AutoConfig

    from ecgformers.modeling.pipelines_ecg import custom_pipelines, tasks_of

    if not (folder / "config.json").is_file():
        raise PublishingError(f"{folder} is no model's folder: it has no config.json")
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    files += sorted((folder / ".eval_results").glob("*.yaml"))
    wrong = [
        f"{path.name} is a pickle, or may hold one: publish safetensors" for path in files if path.suffix in PICKLES
    ]
    wrong += card_faults(folder / "README.md") + weight_faults(folder)
    if wrong:
        raise PublishingError(f"{folder} is not published: {'; '.join(wrong)}")
    for path in files:
        if path.suffix in TRAVELLING:
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())

    config = AutoConfig.from_pretrained(folder)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content |= {"auto_map": config.auto_map, "custom_pipelines": custom_pipelines(config)}
    _write_json(target / "config.json", content)
    if "ecg-to-text" in tasks_of(config) and not (target / "generation_config.json").exists():
        ids = {
            f"{name}_token_id": getattr(config, f"{name}_token_id") for name in ("bos", "eos", "pad", "decoder_start")
        }
        _write_json(target / "generation_config.json", ids | {"max_new_tokens": config.max_text_length - 1})
    write_code(target)


def write_code(folder: Path) -> list[str]:
    """Write into a model's folder the code with which it loads where ecgformers is not installed; their names.

    Raises:
        PublishingError: the folder names code that is not ours.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    from ecgformers.modeling import __file__ as package

    modeling = Path(package).parent
    modules = set()
    for path in folder.glob("*config.json"):
        for entry in re.findall(r'"(\w+)\.[A-Z]\w+"', path.read_text(encoding="utf-8")):
            modules.add(entry)
    paths = {modeling / f"{module}.py" for module in modules}
    if strange := sorted(path.stem for path in paths if not path.exists()):
        raise PublishingError(f"{folder} names code that is not ecgformers': {', '.join(strange)}")
    paths |= {Path(needed) for path in paths for needed in get_relative_import_files(path)}
    for path in paths:
        (folder / path.name).write_bytes(path.read_bytes())
    return sorted(path.name for path in paths)


def check_license(folder: Path, i_may_publish: bool) -> None:
    """
    Raises:
        PermissionError: the weights are marked with a licence that does not let everybody pass them on.
    """
    config = (
        json.loads((folder / "config.json").read_text(encoding="utf-8")) if (folder / "config.json").exists() else {}
    )
    mark = config.get("weights_license")
    if mark is not None and mark not in FREE_LICENSES and not i_may_publish:
        raise PermissionError(
            f"{folder}: these weights, or those they were trained from ({config.get('base_model', 'not named')}), are "
            f"under {mark}.  Publish them only if that licence or their owners let you: --i-may-publish"
        )


def card_faults(path: Path) -> list[str]:
    """What a model card lacks."""
    from huggingface_hub import ModelCard

    if not path.is_file():
        return ["there is no README.md, the model's card"]
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return [f"the card's metadata can't be read: {error}"]
    metadata = card.data.to_dict()
    faults = [f"the card's metadata has no {name}" for name in METADATA if not metadata.get(name)]
    headings = re.findall(r"^#+ (.+)$", card.text, re.MULTILINE)
    faults += [f"the card has no section {name!r}" for name in SECTIONS if name not in headings]
    if "```python" not in card.text:
        faults.append("the card has no Python code that shows how to use the model")
    if "not a medical device" not in card.text.lower():
        faults.append("the card does not say that this is not a medical device")
    return faults


def weight_faults(folder: Path) -> list[str]:
    """Whether there are weights, and the tensors among them that hold NaN or infinite numbers."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    faults = [] if files else ["there are no weights (*.safetensors)"]
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    faults.append(f"{path.name}: {name} holds NaN or infinite numbers")
    return faults


_TRY = """
import sys
sys.modules["ecgformers"] = None  # from here on it cannot be imported
import json, math
import transformers
from transformers import AutoConfig, AutoProcessor, pipeline
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
(auto_class,) = [key for key, name in config.auto_map.items() if name.endswith("." + config.architectures[0])]
getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)
AutoProcessor.from_pretrained(folder, trust_remote_code=True)
leads = "I II III aVR aVL aVF V1 V2 V3 V4 V5 V6".split()
beat = [math.exp(-((step % 400 / 400 - 0.3) ** 2) / 0.0008) for step in range(5000)]
limb = {"I": 0.5, "II": 1.0, "III": 0.5, "aVR": -0.75, "aVL": 0.0, "aVF": 0.75}
signal = [[(limb.get(lead, 0.8) or 0.01) * value for value in beat] for lead in leads]
ecg = {"array": signal, "sampling_rate": 500, "lead_names": leads}
for task in config.custom_pipelines:
    options = {"candidate_labels": ["normal ecg", "atrial fibrillation"]} if task.startswith("zero-shot") else {}
    assert pipeline(task, model=folder, trust_remote_code=True, device="cpu")(ecg, **options), task
"""


def check_loading(folder: Path) -> None:
    """Load model and processor, and run every pipeline, in a process without ecgformers and without the network.

    Raises:
        PublishingError: with what that process said.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": cache}
        command = [sys.executable, "-c", _TRY, str(folder)]
        result = subprocess.run(command, env=environment, cwd=cache, capture_output=True, text=True)
    if result.returncode:
        raise PublishingError(f"the code does not work without ecgformers: {result.stderr.strip().splitlines()[-1]}")


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
