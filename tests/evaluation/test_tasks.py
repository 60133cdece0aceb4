"""The evaluation tasks: labels counted independently from the published tables, split rules, prompts."""

import ast
import csv
import re
from collections import Counter

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ecgformers.datasets_scripts.tables import read_split_tables
from ecgformers.evaluation.splits import own_splits, splits
from ecgformers.evaluation.tasks import (
    LANGUAGES,
    TASKS,
    ejection_fraction_prompts,
    labels,
    prompts,
)

ALL_STATEMENTS = TASKS["ptbxl_all"].classes
PTB_XL_TASKS = ("ptbxl_super", "ptbxl_sub", "ptbxl_form", "ptbxl_rhythm", "ptbxl_all")

# Class counts over folds 1-9 (19,601 records), and records that take part in folds 1-8 and 9.
SUPER_COUNTS = {"NORM": 8551, "MI": 4919, "STTC": 4714, "CD": 4402, "HYP": 2387}
SUB_COUNTS = {
    "NORM": 8551, "AMI": 2772, "IMI": 2944, "LMI": 181, "PMI": 15, "STTC": 2017, "NST_": 690, "ISC_": 1144,
    "ISCA": 848, "ISCI": 357, "LAFB/LPFB": 1618, "_AVB": 741, "CLBBB": 482, "CRBBB": 487, "ILBBB": 69, "IRBBB": 1006,
    "IVCD": 708, "WPW": 71, "LVH": 1918, "RVH": 114, "SEHYP": 27, "LAO/LAE": 384, "RAO/RAE": 89,
}  # fmt: skip
FORM_COUNTS = {
    "NDT": 1643, "NST_": 690, "DIG": 163, "LNGQT": 106, "ABQRS": 3005, "PVC": 1029, "STD_": 908, "VCLVH": 788,
    "QWAVE": 493, "LOWT": 394, "NT_": 381, "PAC": 358, "LPR": 306, "INVT": 265, "LVOLT": 164, "HVOLT": 56, "TAB_": 32,
    "STE_": 25, "PRC(S)": 9,
}  # fmt: skip
RHYTHM_COUNTS = {
    "SR": 15074, "AFIB": 1362, "STACH": 744, "SARRH": 695, "SBRAD": 573, "PACE": 266, "SVARR": 143, "BIGU": 74,
    "AFLT": 66, "SVTAC": 24, "PSVT": 22, "TRIGU": 18,
}  # fmt: skip
CPSC2018_COUNTS = {
    "NORM": 918, "AFIB": 1221, "1AVB": 722, "CLBBB": 236, "CRBBB": 1857, "PAC": 616, "VPC": 700, "STD": 869,
    "STE": 220,
}  # fmt: skip
STATED = {
    "ptbxl_super": (SUPER_COUNTS, 17084, 2146),
    "ptbxl_sub": (SUB_COUNTS, 17084, 2146),
    "ptbxl_form": (FORM_COUNTS, 7197, 901),
    "ptbxl_rhythm": (RHYTHM_COUNTS, 16832, 2100),
}


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def scp_statements(ptb_xl_dir):
    return {row[""]: row for row in read_csv(ptb_xl_dir / "scp_statements.csv")}


@pytest.fixture(scope="module")
def labels_table(ptb_xl_dir):
    """All 19,601 records as 0/1 columns."""
    return [row | {"fold": int(row["strat_fold"])} for row in read_csv(ptb_xl_dir / "ptbxl_labels.csv")]


@pytest.fixture(scope="module")
def reports_table(ptb_xl_dir):
    """The 10,956 records with reports, with their likelihoods."""
    return [
        row | {"fold": int(row["strat_fold"]), "scp_codes": ast.literal_eval(row["scp_codes"])}
        for row in read_csv(ptb_xl_dir / "ptbxl_database.csv")
    ]


def classes_of(statement, task_name, scp_statements):
    """The class of a statement in a task, from the published table alone."""
    facts = scp_statements[statement]
    return {
        "ptbxl_super": facts["diagnostic_class"],
        "ptbxl_sub": facts["diagnostic_subclass"],
        "ptbxl_form": statement if facts["form"] else "",
        "ptbxl_rhythm": statement if facts["rhythm"] else "",
        "ptbxl_all": statement,
    }[task_name]


def counted(records, task_name, scp_statements):
    """(records per class, records with any class per fold) of {statements, fold} records, from the table alone."""
    per_class, per_fold = Counter(), Counter()
    for statements, fold in records:
        found = {classes_of(statement, task_name, scp_statements) for statement in statements} - {""}
        per_class.update(found)
        per_fold[fold] += bool(found)
    return per_class, per_fold


def named_counts(task, targets):
    return dict(zip(task.classes, targets.sum(axis=0).astype(int).tolist(), strict=True))


@pytest.mark.parametrize("name", PTB_XL_TASKS)
def test_class_counts_of_all_records_equal_those_derived_from_the_tables(name, labels_table, scp_statements):
    task = TASKS[name]
    targets, takes_part = labels(labels_table, task)
    assert targets.shape == (19601, len(task.classes))

    records = [({code for code in scp_statements if row[code] == "1"}, row["fold"]) for row in labels_table]
    per_class, per_fold = counted(records, name, scp_statements)
    assert named_counts(task, targets) == dict(per_class)
    split = splits(labels_table, task)
    train, validation = (int((takes_part & (split == part)).sum()) for part in ("train", "validation"))
    assert (train, validation) == (sum(per_fold[fold] for fold in range(1, 9)), per_fold[9])
    if name in STATED:
        assert (named_counts(task, targets), train, validation) == STATED[name]
    else:  # every record carries a statement
        assert (train, validation) == (17418, 2183)


@pytest.mark.parametrize("name", PTB_XL_TASKS)
def test_class_counts_of_the_records_with_likelihoods(name, reports_table, scp_statements):
    task = TASKS[name]
    targets, takes_part = labels(reports_table, task)
    per_class, per_fold = counted([(row["scp_codes"], row["fold"]) for row in reports_table], name, scp_statements)
    assert named_counts(task, targets) == dict(per_class)
    stated = {"ptbxl_super": 10834, "ptbxl_sub": 10834, "ptbxl_form": 8101, "ptbxl_rhythm": 10600, "ptbxl_all": 10956}
    assert takes_part.sum() == sum(per_fold.values()) == stated[name]


def test_both_tables_give_the_same_labels_but_for_seven_records(labels_table, reports_table):
    task = TASKS["ptbxl_all"]
    by_id = {row["ecg_id"]: row for row in labels_table}
    ours, _ = labels(reports_table, task)
    theirs, _ = labels([by_id[row["ecg_id"]] for row in reports_table], task)
    differing = [reports_table[index]["ecg_id"] for index in np.flatnonzero((ours != theirs).any(axis=1))]
    assert differing == ["1371", "3796", "3797", "3799", "3802", "9822", "13803"]


def test_the_table_of_statements_is_the_published_one(scp_statements):
    for name in PTB_XL_TASKS:
        mapping = {code: own for own, codes in TASKS[name].statements.items() for code in codes}
        published = {code: classes_of(code, name, scp_statements) for code in scp_statements}
        assert mapping == {code: own for code, own in published.items() if own}


@pytest.mark.parametrize(("name", "classes"), [
    ("ptbxl_super", 5), ("ptbxl_sub", 23), ("ptbxl_form", 19), ("ptbxl_rhythm", 12), ("ptbxl_all", 71),
    ("cpsc2018", 9), ("csn", 38), ("csn_published", 38), ("code_test", 6),
])  # fmt: skip
def test_number_of_classes(name, classes):
    assert len(set(TASKS[name].classes)) == classes


def as_columns(carried):
    return {code: int(code in carried) for code in ALL_STATEMENTS}


@given(st.sets(st.sampled_from(ALL_STATEMENTS), min_size=1))
def test_every_form_of_a_row_gives_the_same_labels(carried):
    forms = [
        {"scp_codes": dict.fromkeys(carried, 0.0)},
        {"scp_codes": {code: 100.0 if code in carried else None for code in ALL_STATEMENTS}},
        {"scp_codes": [{"code": code, "likelihood": 15.0} for code in carried]},
        {"statements": [{"code": code, "likelihood": None} for code in carried]},
        {"statements": list(carried)},
        {"statements": None, "labels": as_columns(carried)},
        as_columns(carried),
        {code: str(label) for code, label in as_columns(carried).items()},
    ]
    found = {}
    for name in PTB_XL_TASKS:
        targets, takes_part = labels(forms, TASKS[name])
        assert (targets == targets[0]).all() and (takes_part == takes_part[0]).all()
        assert takes_part[0] == targets[0].any()
        found[name] = dict(zip(TASKS[name].classes, targets[0], strict=True))
    assert {code for code, label in found["ptbxl_all"].items() if label} == carried
    assert found["ptbxl_super"]["CD"] == bool(
        carried & {"LAFB", "LPFB", "1AVB", "2AVB", "3AVB", "CLBBB", "CRBBB", "ILBBB", "IRBBB", "IVCD", "WPW"}
    )


def test_a_statement_counts_at_likelihood_zero():
    targets, takes_part = labels([{"scp_codes": {"NORM": 100.0, "LVOLT": 0.0, "SR": 0.0}}], TASKS["ptbxl_form"])
    assert TASKS["ptbxl_form"].classes[targets[0].argmax()] == "LVOLT" and targets.sum() == 1 and takes_part.all()


def test_superclasses_are_read_from_their_own_columns_where_there_are_any():
    row = {f"super_{name}": name == "MI" for name in TASKS["ptbxl_super"].classes}
    targets, takes_part = labels([row], TASKS["ptbxl_super"])
    assert targets[0].tolist() == [0, 1, 0, 0, 0] and takes_part.all()


def test_unknown_labels_take_no_part():
    columns = dict.fromkeys(TASKS["code_test"].classes, 0)
    rows = [columns | {"AF": 1}, columns | {"AF": None}, columns | {"ST": float("nan")}, {"labels": columns}]
    targets, takes_part = labels(rows, TASKS["code_test"])
    assert takes_part.tolist() == [True, False, False, True]
    assert targets.sum(axis=1).tolist() == [1, 0, 0, 0]
    assert labels([{"statements": []}], TASKS["cpsc2018"])[1].tolist() == [False]


def test_a_class_is_unknown_where_a_column_is_empty_and_no_other_sets_it():
    columns = dict.fromkeys(ALL_STATEMENTS, 0) | {"NORM": 1}
    rows = [columns | {"2AVB": None}, columns | {"2AVB": None, "3AVB": 1}]
    assert labels(rows, TASKS["ptbxl_super"])[1].tolist() == [False, True]


def test_no_rows():
    targets, takes_part = labels([], TASKS["ptbxl_super"])
    assert targets.shape == (0, 5) and takes_part.shape == (0,) and splits([], TASKS["ptbxl_super"]).shape == (0,)


@pytest.mark.parametrize(("row", "task", "message"), [
    ({"record_id": "A1", "SR": 1}, "ptbxl_rhythm", "record A1: nothing in it tells the classes AFIB, STACH"),
    ({"AF": 1}, "code_test", "record 0: nothing in it tells the classes 1dAVb, RBBB"),
    (dict.fromkeys(TASKS["code_test"].classes, 2), "code_test", "record 0, column 1dAVb: 2 is not 0 or 1"),
    ({"scp_codes": "{'SR': 0.0}"}, "ptbxl_rhythm", "record 0: scp_codes is the text .* parse it first"),
    ({"record_id": "P1"}, "lvef_below_40", r"record P1: lvef_below_40 needs one of the columns lvef, LVEF \(%\)"),
])  # fmt: skip
def test_a_row_that_cannot_be_labelled_is_named(row, task, message):
    with pytest.raises(ValueError, match=message):
        labels([row], TASKS[task])


def test_folds():
    rows = [{"fold": fold} for fold in range(1, 11)]
    task = TASKS["ptbxl_super"]
    assert splits(rows, task).tolist() == ["train"] * 8 + ["validation", "test"]
    assert splits(rows, task, folds="1-7/8/9").tolist() == ["train"] * 7 + ["validation", "test", ""]
    assert own_splits(rows, None)[0].tolist() == splits(rows, task).tolist()
    assert own_splits(rows[:9], None)[0].tolist() == splits(rows[:9], task, folds="1-7/8/9").tolist()
    with pytest.raises(ValueError, match="record 12: it has no fold"):
        splits([{"record_id": 12}], task)


def test_split_of_the_row():
    assert splits([{"split": "test"}, {"split": "train"}], TASKS["code_test"]).tolist() == ["test", "train"]
    with pytest.raises(ValueError, match="record 0: it has no split"):
        splits([{"split": None}], TASKS["lvef_below_40"])


def write_table(path, header, *lines, empty_first=False):
    path.write_text(("\n" if empty_first else "") + "\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_split_tables(tmp_path):
    classes = TASKS["csn"].classes
    header = "ecg_path,age,diagnose," + ",".join(classes)

    def line(record, diagnose):  # as published: an acronym found anywhere in the text
        return f'/chapman/01/010/{record}.mat,50,"{diagnose}",' + ",".join(str(int(c in diagnose)) for c in classes)

    train = write_table(tmp_path / "train.csv", header, line("JS1", "AFIB,STTC"), line("JS2", "SB"))
    test = write_table(tmp_path / "test.csv", header, line("JS3", "1AVB,SR"), empty_first=True)
    tables = read_split_tables(train=train, test=test)
    assert list(tables) == ["JS1", "JS2", "JS3"]
    rows = [{"record_id": record} for record in ("JS3", "JS9", "JS1")]
    assert splits(rows, TASKS["csn"], tables).tolist() == ["test", "", "train"]

    def names(task):
        targets, takes_part = labels(tables.values(), TASKS[task])
        assert takes_part.all()
        return [{name for name, label in zip(classes, row, strict=True) if label} for row in targets]

    assert names("csn") == [{"AFIB", "STTC"}, set(), {"1AVB", "SR"}]
    assert names("csn_published") == [{"AFIB", "AF", "STTC", "ST"}, set(), {"1AVB", "AVB", "VB", "SR"}]

    with pytest.raises(ValueError, match=r"again\.csv: record JS1 is already in split train"):
        read_split_tables(train=train, test=write_table(tmp_path / "again.csv", header, line("JS1", "SR")))
    with pytest.raises(ValueError, match=r"bare\.csv: .* filename nor ecg_path"):
        read_split_tables(train=write_table(tmp_path / "bare.csv", "id,SR", "1,1"))
    with pytest.raises(ValueError, match=r"csn is split by tables.*--split-table train=CSV"):
        splits(rows, TASKS["csn"])


def published_tables(splits_dir, name):
    return read_split_tables(**{
        split: splits_dir / name / f"{name}_{suffix}.csv"
        for split, suffix in (("train", "train"), ("validation", "val"), ("test", "test"))
    })  # fmt: skip


def test_published_split_tables(splits_dir):
    for name, task, sizes in (("icbeb", "cpsc2018", (4950, 551, 1376)), ("chapman", "csn", (16546, 1860, 4620))):
        tables = published_tables(splits_dir, name)
        found = Counter(splits(tables.values(), TASKS[task], tables).tolist())
        assert (found["train"], found["validation"], found["test"]) == sizes
        assert labels(tables.values(), TASKS[task])[1].all()
        if task == "cpsc2018":
            assert named_counts(TASKS[task], labels(tables.values(), TASKS[task])[0]) == CPSC2018_COUNTS
    exact, published = (
        named_counts(TASKS[task], labels(tables.values(), TASKS[task])[0]) for task in ("csn", "csn_published")
    )
    false_positives = {name: published[name] - exact[name] for name in exact if published[name] != exact[name]}
    assert false_positives == {"ST": 1184, "AF": 1413, "SA": 721, "AVB": 737, "VB": 913, "CR": 141, "2AVB": 16}


@pytest.mark.parametrize(("folder", "name", "task", "shared", "known"), [
    ("cpsc_2018", "icbeb", "cpsc2018", 14, []),
    ("chapman_shaoxing_ningbo", "chapman", "csn", 9, ["JS00005"]),  # a first degree AV block in the header only
])  # fmt: skip
def test_codes_of_the_recordings_agree_with_the_split_tables(
    folder, name, task, shared, known, cinc2021_dir, splits_dir
):
    tables = published_tables(splits_dir, name)
    paths = [path for path in sorted((cinc2021_dir / folder).glob("*.hea")) if path.stem in tables]
    assert len(paths) == shared
    stated = [re.search(r"#\s*Dx:(.*)", path.read_text())[1].strip().split(",") for path in paths]
    ours, _ = labels([{"statements": codes} for codes in stated], TASKS[task])
    theirs, _ = labels([tables[path.stem] for path in paths], TASKS[task])
    assert ours.any(axis=1).sum() == shared
    assert [paths[index].stem for index in np.flatnonzero((ours != theirs).any(axis=1))] == known


def test_lvef_below_is_one_for_a_low_ejection_fraction():
    rows = [{"lvef": value} for value in (25, 39.9, 40, 45, 50, 60)] + [{"LVEF (%)": "25"}]
    assert labels(rows, TASKS["lvef_below_40"])[0][:, 0].tolist() == [1, 1, 0, 0, 0, 0, 1]
    assert labels(rows, TASKS["lvef_below_50"])[0][:, 0].tolist() == [1, 1, 1, 1, 0, 0, 1]
    assert labels(rows, TASKS["lvef"])[0][:, 0].tolist() == pytest.approx([25, 39.9, 40, 45, 50, 60, 25])


def test_measurements_are_brought_to_one_unit():
    rows = [
        {"lvedd": 6.0, "sex": "male"},
        {"Left ventricle end-diastolic diameter (mm)": 60, "sex": "male"},
        {"measurements": {"lvedd": "6.0"}, "sex": "male"},
        {"measurements": {"lvedd": 5.5}, "sex": "male"},
        {"measurements": {"lvedd": 5.5}, "sex": "female"},
        {"measurements": {"lvedd": 5.5}, "sex": None},
        {"measurements": None},
    ]
    targets, takes_part = labels(rows, TASKS["lv_dilated"])
    assert takes_part.tolist() == [True] * 5 + [False] * 2
    assert targets[:5, 0].tolist() == [1, 1, 1, 0, 1]
    walls = [{"septal_thickness": 1.4, "inf_lat_thickness": 0.9}, {"septal_thickness": 1.1, "inf_lat_thickness": None}]
    assert labels(walls, TASKS["lv_wall_thick"])[0][:, 0].tolist() == [1, 0]


@pytest.mark.parametrize("row", [{"lvef": 0.3}, {"lvef": "moderate"}, {"measurements": {"lvef": 300}}])
def test_a_slip_of_a_measurement_takes_no_part_and_is_told(row):
    with pytest.warns(UserWarning, match="1 rows take no part in lvef_below_40, the first: record 0: lvef = "):
        _, takes_part = labels([row], TASKS["lvef_below_40"])
    assert not takes_part.any()


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_class_has_prompts_in_every_language(task):
    both, single = prompts(task), {language: prompts(task, language) for language in LANGUAGES}
    assert tuple(both) == task.prompt_classes
    for name, texts in both.items():
        assert texts == [text for language in LANGUAGES for text in single[language][name]]
        assert all(len(single[language][name]) >= 3 for language in LANGUAGES)
    assert len({text for texts in both.values() for text in texts}) == sum(map(len, both.values()))


def test_ejection_fraction_prompts():
    texts = ejection_fraction_prompts()
    assert len(texts) == 6 and all(len(set(candidates)) == 101 for candidates in texts)
    assert all(re.findall(r"\d+", candidates[35]) == ["35"] for candidates in texts)


OWN = {"code_test": {name: {"en": [f"text of {name}"]} for name in TASKS["code_test"].classes}}


def without(name):
    return {"code_test": {own: texts for own, texts in OWN["code_test"].items() if own != name}}


@pytest.mark.parametrize(("tree", "message"), [
    ({}, "no classes for task code_test"),
    (["code_test"], "not a mapping"),
    (without("AF"), r"missing \['AF'\]"),
    ({"code_test": OWN["code_test"] | {"AFIB": {"en": ["x"]}}}, r"unknown \['AFIB'\]"),
    ({"code_test": OWN["code_test"] | {"AF": {"de": ["x"]}}}, "class AF: no list of texts in language 'en'"),
    ({"code_test": OWN["code_test"] | {"AF": {"en": []}}}, "class AF: no list of texts in language 'en'"),
    ({"code_test": OWN["code_test"] | {"AF": ["x"]}}, "class AF: no list of texts in language 'en'"),
    ({"code_test": OWN["code_test"] | {"AF": {"en": [" "]}}}, "class AF, language 'en': ' ' is no text"),
    ({"code_test": OWN["code_test"] | {"AF": {"en": ["Text of ST"]}}}, "'Text of ST' stands for ST and for AF"),
])  # fmt: skip
def test_a_prompt_file_with_a_fault_is_refused(tree, message, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match=rf"own\.yaml: .*{message}"):
        prompts(TASKS["code_test"], "en", file)


def test_a_prompt_file_of_ones_own(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(OWN))
    assert prompts(TASKS["code_test"], "en", file)["AF"] == ["text of AF"]
    file.write_text(yaml.safe_dump({"lvef": {"lvef": {"en": ["the ejection fraction is low"]}}}))
    other = file.rename(tmp_path / "template.yaml")
    with pytest.raises(ValueError, match=r"has no \{value\} to fill in"):
        ejection_fraction_prompts("en", other)
