"""Tasks of one's own: a YAML file that is added, and what is said of one with a fault."""

import copy

import numpy as np
import pytest
import yaml
from small_evaluation import evaluation_rows, label_of, write_melp, write_rows
from transformers import AutoModel, AutoProcessor

from ecgformers.datasets_scripts.preparing import prepare
from ecgformers.evaluation import linear_probe, zero_shot
from ecgformers.evaluation.records import load_task
from ecgformers.evaluation.tasks import TASKS, find_task, labels, prompts, read_task
from ecgformers.training.alignment import validate

ISCHAEMIA = {
    "source": "ours",
    "split": "folds",
    "classes": {
        "ischaemia": {"statements": ["IMI", "NST_"], "prompts": {"en": ["infarction"], "de": ["infarkt"]}},
        "NORM": {"prompts": "ptbxl_all"},
        "block": {"statements": ["CLBBB"], "prompts": "ptbxl_all/CLBBB"},
    },
}
WEAK = {
    "source": "ours",
    "split": "row",
    "measurement": "lvef",
    "below": {"male": 40, "female": 45},
    "classes": {"weak": {"prompts": {"en": ["weak"]}}},
    "contrast": {"strong": {"prompts": {"en": ["strong"]}}},
}


def write_task(folder, content, name="own.yaml") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(path)


def test_a_task_of_ones_own_is_read(tmp_path):
    task = find_task(write_task(tmp_path, ISCHAEMIA))
    assert (task.name, task.classes, task.is_value) == ("own", ("ischaemia", "NORM", "block"), False)
    targets, takes_part = labels([{"statements": ["NST_"]}, {"statements": ["NORM", "CLBBB"]}], task)
    assert takes_part.all() and targets.tolist() == [[1, 0, 0], [0, 1, 1]]
    texts = prompts(task, ("de", "en"))
    assert texts["ischaemia"] == ["infarkt", "infarction"]
    assert texts["block"] == prompts(TASKS["ptbxl_all"], ("de", "en"))["CLBBB"]


def test_a_measurement_of_ones_own(tmp_path):
    task = find_task(write_task(tmp_path, WEAK))
    rows = [{"lvef": 42, "sex": "male"}, {"lvef": 42, "sex": "female"}]
    assert labels(rows, task)[0].tolist() == [[0], [1]] and not task.is_value
    assert prompts(task, "en") == {"weak": ["weak"], "strong": ["strong"]}
    value = {name: WEAK[name] for name in ("source", "split", "measurement", "classes")}
    assert find_task(write_task(tmp_path, value, "value.yaml")).is_value


def test_its_path_stands_wherever_a_name_does(tmp_path):
    task, data = write_task(tmp_path, ISCHAEMIA), write_rows(tmp_path / "data", evaluation_rows(200))
    model, output = write_melp(tmp_path / "model"), tmp_path / "results"
    options = ["--data", data, "--output", str(output), "--resamples", "0", "--device", "cpu", "--task", task]
    table = zero_shot.main(["--model", model, *options])
    assert table.rows[0]["classes"].keys() == set(ISCHAEMIA["classes"])
    assert (output / "zero_shot_own_model.json").exists()
    probe = linear_probe.main(["--model", "small_evaluation:MeanAndSpread", *options, "--shares", "100"])
    assert probe.rows[0]["auroc_macro"]["value"] > 0.8
    (output / "own.yaml").write_bytes((tmp_path / "own.yaml").read_bytes())
    records = load_task(data, str(output / "own.yaml"))
    assert records.targets.sum(0).tolist() == [
        sum(label_of(i) in which for i in range(200)) for which in ((1, 2), (0,), (3,))
    ]

    processor = AutoProcessor.from_pretrained(model)
    prepared = prepare(records.part("validation").ecgs, processor.feature_extractor, tmp_path / "cache")
    figures = validate(AutoModel.from_pretrained(model), processor, {task: prepared})
    assert 0 <= figures["validation_own"] <= 1


def change(content, *path, to=None):
    """A copy with one field changed, or removed where `to` is None."""
    content = copy.deepcopy(content)
    place = content
    for name in path[:-1]:
        place = place[name]
    if to is None:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return content


@pytest.mark.parametrize(("content", "message"), [
    ([], "not a mapping"),
    (change(ISCHAEMIA, "source"), "source is missing"),
    (change(ISCHAEMIA, "classes"), "classes is missing"),
    (change(ISCHAEMIA, "classes", to={}), "classes: there are none"),
    (change(ISCHAEMIA, "classes", to=["AFIB"]), r"classes: \['AFIB'\] is not a mapping"),
    (change(ISCHAEMIA, "split", to="patients"), "split: 'patients' is none of folds, tables, row"),
    (change(ISCHAEMIA, "labels", to="text"), "labels: 'text' is none of statements, columns"),
    (change(ISCHAEMIA, "clases", to={}), "clases is unknown; known are source, split"),
    (change(ISCHAEMIA, "labelled_only", to="yes"), "labelled_only: 'yes' is not true or false"),
    (change(ISCHAEMIA, "classes", 7, to={}), "classes: 7 is no text: write it in quotes"),
    (change(ISCHAEMIA, "classes", "NORM", to=["x"]), r"classes.NORM: \['x'\] is no mapping with statements, prompts"),
    (change(ISCHAEMIA, "classes", "NORM", "texts", to={}), "classes.NORM: texts is unknown; known are statements"),
    (change(ISCHAEMIA, "classes", "NORM", "statements", to="NORM"), "statements: 'NORM' is not a list"),
    (change(ISCHAEMIA, "classes", "NORM", "statements", to=[426783006]), "426783006 is no text: write it in quotes"),
    (change(ISCHAEMIA, "classes", "NORM", "prompts", to="nowhere"), "prompts: 'nowhere' is no TASK or TASK/CLASS"),
    (change(ISCHAEMIA, "classes", "NORM", "prompts", to="ptbxl_all/X"), "'ptbxl_all/X' is no TASK or TASK/CLASS"),
    (change(ISCHAEMIA, "classes", "NORM", "prompts", to="own/NORM"), "'own/NORM' is no TASK or TASK/CLASS"),
    (change(ISCHAEMIA, "below", to=3), "below: a measurement has one limit"),
    (change(ISCHAEMIA, "contrast", to={"other": {}}), "contrast: a class with a limit has one"),
    (change(WEAK, "measurement", to="weight"), "measurement: 'weight' is none of lvef, "),
    (change(WEAK, "above", to=3), "below, above: a measurement has one limit"),
    (change(WEAK, "contrast"), "contrast: a class with a limit has one"),
    (change(WEAK, "below", "male"), "below: {'female': 45} is neither a number nor"),
    (change(WEAK, "classes", "another", to={}), "classes: a measurement has one"),
])  # fmt: skip
def test_a_fault_is_named_with_its_place(content, message, tmp_path):
    with pytest.raises(ValueError, match=rf"own\.yaml: .*{message}"):
        find_task(write_task(tmp_path, content))


def test_what_is_no_task_is_named(tmp_path):
    with pytest.raises(
        ValueError, match="there is no task ptbxl_supper; give a YAML file, or one of aortic_stenosis, "
    ):
        find_task("ptbxl_supper")
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        find_task(str(tmp_path / "none.yaml"))
    (tmp_path / "broken.yaml").write_text("classes: [")
    with pytest.raises(ValueError, match=r"broken\.yaml: no YAML"):
        find_task(str(tmp_path / "broken.yaml"))
    with pytest.raises(ValueError, match="rename it"):
        read_task((tmp_path / "broken.yaml").rename(tmp_path / "a b:c.yaml").with_name("a b:c.yaml"))


def test_prompts_are_needed_where_texts_are(tmp_path):
    task = find_task(write_task(tmp_path, change(ISCHAEMIA, "classes", "NORM", to={})))
    assert np.isfinite(labels([{"statements": ["NORM"]}], task)[0]).all()
    with pytest.raises(ValueError, match="class NORM: no list of texts in language 'en'"):
        prompts(task)
