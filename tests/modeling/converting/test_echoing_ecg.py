"""The EchoingECG converter: every tensor finds its place or the conversion stops, and no file gets to run anything."""

import io
import os
import pickle
import subprocess
import zlib

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ecgformers.modeling.converting.echoing_ecg import convert, main
from ecgformers.modeling.converting.scaler import read_standard_scaler
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgModel
from ecgformers.modeling.processing_ecg import EcgProcessor

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "given", "sinus", "rhythm", ":", "."]


def authors_checkpoint() -> dict[str, torch.Tensor]:
    """A tiny checkpoint with the keys of the published one."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add_norm(name: str, channels: int):
        shapes.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    def add_linear(name: str, outputs: int, inputs: int):
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def add_heads(tower: str, hidden_size: int):
        for name in ("", "std_"):
            add_linear(f"{tower}.{name}linear", 16, hidden_size)
            for end in ("l0", "l0_reverse"):
                gru = f"{tower}.{name}gpool.gru"
                shapes.update({f"{gru}.weight_ih_{end}": (24, 8), f"{gru}.weight_hh_{end}": (24, 8)})
                shapes.update({f"{gru}.bias_ih_{end}": (24,), f"{gru}.bias_hh_{end}": (24,)})
            shapes[f"{tower}.{name}gpool.linear.weight"] = (1, 8)

    shapes["ecg_encoder.conv1.weight"] = (6, 12, 7)
    add_norm("ecg_encoder.bn1", 6)
    in_channels = 6
    for stage, (channels, depth) in enumerate(zip((8, 10, 12, 14), (1, 2, 1, 1), strict=True), start=1):
        for block in range(depth):
            prefix = f"ecg_encoder.layer{stage}.{block}"
            shapes[f"{prefix}.conv1.weight"] = (channels, channels if block else in_channels, 3)
            shapes[f"{prefix}.conv2.weight"] = (channels, channels, 3)
            add_norm(f"{prefix}.bn1", channels)
            add_norm(f"{prefix}.bn2", channels)
            if not block:
                shapes[f"{prefix}.shortcut.0.weight"] = (channels, in_channels, 1)
                add_norm(f"{prefix}.shortcut.1", channels)
        in_channels = channels
    add_heads("ecg_encoder", 14)

    bert = "text_encoder.backbone"
    for name, rows in (("word", len(VOCABULARY)), ("position", 20), ("token_type", 2)):
        shapes[f"{bert}.embeddings.{name}_embeddings.weight"] = (rows, 16)
    norms = [f"{bert}.embeddings.LayerNorm"]
    for layer in range(2):
        prefix = f"{bert}.encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            add_linear(f"{prefix}.attention.{name}", 16, 16)
        add_linear(f"{prefix}.intermediate.dense", 24, 16)
        add_linear(f"{prefix}.output.dense", 16, 24)
        norms += [f"{prefix}.attention.output.LayerNorm", f"{prefix}.output.LayerNorm"]
    shapes |= {f"{norm}.{part}": (16,) for norm in norms for part in ("weight", "bias")}
    add_linear(f"{bert}.pooler.dense", 16, 16)
    add_heads("text_encoder", 16)

    generator = torch.Generator().manual_seed(0)
    tensors = {name: 0.1 * torch.randn(shape, generator=generator).abs() for name, shape in shapes.items()}
    return {n: torch.tensor(7) if n.endswith("num_batches_tracked") else tensor for n, tensor in tensors.items()}


@pytest.fixture
def checkpoint() -> dict[str, torch.Tensor]:
    return authors_checkpoint()


@pytest.fixture(scope="module")
def scaler() -> StandardScaler:
    rng = np.random.RandomState(0)
    return StandardScaler().fit(rng.randn(50, 12) * np.arange(1, 13) / 50 + np.arange(12) / 1000)


@pytest.fixture
def files(tmp_path, checkpoint, scaler) -> dict[str, str]:
    torch.save(checkpoint, tmp_path / "echoingecg.pt")
    joblib.dump(scaler, tmp_path / "scaler.joblib")
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(tmp_path / "biobert")
    names = {"checkpoint": "echoingecg.pt", "scaler": "scaler.joblib", "tokenizer": "biobert", "output": "converted"}
    return {option: str(tmp_path / name) for option, name in names.items()}


# --------------------------------------------------------------------------------------------------------- weights

PLACES = {
    "ecg_encoder.conv1.weight": "ecg_model.stem_conv.weight",
    "ecg_encoder.bn1.running_var": "ecg_model.stem_norm.running_var",
    "ecg_encoder.bn1.num_batches_tracked": "ecg_model.stem_norm.num_batches_tracked",
    "ecg_encoder.layer1.0.shortcut.0.weight": "ecg_model.stages.0.blocks.0.shortcut.0.weight",
    "ecg_encoder.layer2.1.conv1.weight": "ecg_model.stages.1.blocks.1.conv1.weight",
    "ecg_encoder.layer4.0.bn2.bias": "ecg_model.stages.3.blocks.0.norm2.bias",
    "ecg_encoder.layer4.0.conv2.weight": "ecg_model.stages.3.blocks.0.conv2.weight",
    "ecg_encoder.linear.weight": "ecg_model.head.mean_projection.weight",
    "ecg_encoder.std_linear.bias": "ecg_model.head.logvar_projection.bias",
    "ecg_encoder.gpool.gru.weight_hh_l0_reverse": "ecg_model.head.mean_pooling.gru.weight_hh_l0_reverse",
    "ecg_encoder.std_gpool.linear.weight": "ecg_model.head.logvar_pooling.score.weight",
    "text_encoder.backbone.encoder.layer.1.attention.self.key.weight": (
        "text_model.bert.encoder.layer.1.attention.self.key.weight"
    ),
    "text_encoder.std_linear.weight": "text_model.head.logvar_projection.weight",
    "text_encoder.gpool.gru.bias_ih_l0": "text_model.head.mean_pooling.gru.bias_ih_l0",
}


def test_every_tensor_finds_its_place(checkpoint):
    model, dropped = convert(checkpoint)
    converted = model.state_dict()
    for theirs, ours in PLACES.items():
        assert torch.equal(converted[ours], checkpoint[theirs]), theirs
    assert dropped == ["text_encoder.backbone.pooler.dense.weight", "text_encoder.backbone.pooler.dense.bias"]
    assert len(converted) == len(checkpoint) - len(dropped) + 2  # a and b of the match logit
    kept = sum(tensor.double().sum() for name, tensor in checkpoint.items() if name not in dropped)
    ours = sum(tensor.double().sum() for name, tensor in converted.items() if not name.startswith("logit_"))
    torch.testing.assert_close(ours, kept)
    config = model.config
    assert (config.num_leads, config.stem_size, config.hidden_sizes, config.depths) == (
        12,
        6,
        [8, 10, 12, 14],
        [1, 2, 1, 1],
    )
    assert (config.projection_dim, config.pooling_size) == (16, 8)
    text = config.text_config
    assert (text.vocab_size, text.hidden_size, text.num_hidden_layers, text.intermediate_size) == (10, 16, 2, 24)
    assert (text.max_position_embeddings, text.type_vocab_size, text.num_attention_heads) == (20, 2, 1)
    assert convert(checkpoint, num_text_heads=4)[0].config.text_config.num_attention_heads == 4


def test_all_that_is_wrong_is_listed(checkpoint):
    del checkpoint["ecg_encoder.layer2.1.bn1.bias"]
    del checkpoint["text_encoder.std_linear.bias"]
    checkpoint["ecg_encoder.layer3.0.conv2.weight"] = torch.zeros(12, 12, 5)
    checkpoint["ecg_encoder.extra.weight"] = torch.zeros(1)
    checkpoint["ecg_model.stem_conv.bias"] = torch.zeros(6)  # one of our names is unknown in their file
    checkpoint["text_encoder.backbone.encoder.layer.1.added"] = torch.zeros(1)
    with pytest.raises(ValueError) as error:
        convert(checkpoint)
    for problem in (
        "ecg_model.stages.1.blocks.1.norm1.bias is missing",
        "text_model.head.logvar_projection.bias is missing",
        "ecg_model.stages.2.blocks.0.conv2.weight is (12, 12, 5) instead of (12, 12, 3)",
        "ecg_encoder.extra.weight is unknown",
        "ecg_model.stem_conv.bias is unknown",
        "text_model.bert.encoder.layer.1.added is unknown",
    ):
        assert problem in str(error.value)


def test_something_else_is_no_checkpoint(tmp_path, files):
    with pytest.raises(ValueError, match="no checkpoint of this model"):
        convert({"conv1.weight": torch.zeros(6, 12, 7)})
    torch.save({"epoch": 3, "weight": torch.zeros(1)}, tmp_path / "training.pt")
    with pytest.raises(ValueError, match="no plain state dict"):
        main(["--checkpoint", str(tmp_path / "training.pt"), "--output", files["output"], "--no-scaler"])
    assert not os.path.exists(files["output"])


# -------------------------------------------------------------------------------------------------- whole folders


def test_command_writes_a_folder_that_is_ready_to_use(files, scaler, capsys):
    main([argument for name, value in files.items() for argument in (f"--{name}", value)])
    printed = capsys.readouterr().out
    assert "left out on purpose (not used by the model): text_encoder.backbone.pooler.dense.weight" in printed
    assert "not a medical device" in printed

    written = set(os.listdir(files["output"]))
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= written
    assert {"modeling_echoing_ecg.py", "configuration_echoing_ecg.py", "resnet_ecg.py", "losses_ecg.py"} <= written
    processor = EcgProcessor.from_pretrained(files["output"])
    settings = processor.feature_extractor
    assert tuple(settings.lead_names) == STANDARD_LEADS
    assert (settings.sampling_rate, settings.num_samples, settings.bandpass) == (100, 1000, [0.5, 40.0])
    assert settings.normalization == "standard"
    np.testing.assert_array_equal(settings.lead_means, scaler.mean_)
    np.testing.assert_array_equal(settings.lead_scales, scaler.scale_)

    model = EchoingEcgModel.from_pretrained(files["output"])
    lead_i, lead_ii, *chest = np.random.RandomState(0).randn(8, 5000)
    limbs = [lead_i, lead_ii, lead_ii - lead_i, -(lead_i + lead_ii) / 2, lead_i - lead_ii / 2, lead_ii - lead_i / 2]
    ecg = np.stack([*limbs, *chest])
    inputs = processor(ecg, text="Sinus RHYTHM", sampling_rate=500, lead_names=STANDARD_LEADS)
    words = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert [word for word in words if word != "[UNK]"] == [".", ":", "sinus", "rhythm", "."]
    assert inputs["input_values"].shape == (1, 12, 1000)
    assert model(**inputs).logits_per_ecg.isfinite().all()


def test_without_a_scaler_or_a_tokenizer(files, tmp_path, checkpoint, capsys):
    save_file(checkpoint, tmp_path / "echoingecg.safetensors")
    arguments = ["--checkpoint", str(tmp_path / "echoingecg.safetensors"), "--output", files["output"]]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "one of the arguments --scaler --no-scaler is required" in capsys.readouterr().err
    main([*arguments, "--no-scaler"])
    assert "no scaler: no feature extractor was written" in capsys.readouterr().out
    assert not {"preprocessor_config.json", "processor_config.json"} & set(os.listdir(files["output"]))
    main([*arguments, "--scaler", files["scaler"]])
    assert "no tokenizer" in capsys.readouterr().out
    assert EcgFeatureExtractor.from_pretrained(files["output"]).num_samples == 1000
    main([*arguments, "--no-scaler", "--tokenizer", files["tokenizer"]])
    assert len(AutoTokenizer.from_pretrained(files["output"])) == len(VOCABULARY)


def test_parts_that_do_not_belong_together_are_refused(files, tmp_path, checkpoint):
    arguments = ["--output", files["output"], "--scaler", files["scaler"]]
    bert = "text_encoder.backbone.embeddings.word_embeddings.weight"
    torch.save(checkpoint | {bert: torch.zeros(11, 16)}, tmp_path / "larger.pt")
    with pytest.raises(ValueError, match=r"has 10 tokens, but .* 11"):
        main([*arguments, "--checkpoint", str(tmp_path / "larger.pt"), "--tokenizer", files["tokenizer"]])
    torch.save(checkpoint | {"ecg_encoder.conv1.weight": torch.zeros(6, 8, 7)}, tmp_path / "eight.pt")
    with pytest.raises(ValueError, match="takes 8 leads"):
        main([*arguments, "--checkpoint", str(tmp_path / "eight.pt")])
    assert not os.path.exists(files["output"])


# ----------------------------------------------------------------------------------------------------------- scaler

COMPRESSIONS = [0, 3, ("zlib", 9), ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)]


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("compress", [None, *COMPRESSIONS])
def test_scaler_as_pickle_and_joblib_write_it(scaler, tmp_path, protocol, compress):
    path = tmp_path / "scaler"
    if compress is None:
        path.write_bytes(pickle.dumps(scaler, protocol=protocol))
    else:
        joblib.dump(scaler, path, compress=compress, protocol=protocol)
    means, scales = read_standard_scaler(path)
    np.testing.assert_array_equal(means, scaler.mean_)
    np.testing.assert_array_equal(scales, scaler.scale_)


def test_scaler_as_numpy_1_wrote_it(scaler, tmp_path):
    for protocol in (4, 5):
        data = pickle.dumps(scaler, protocol=protocol)
        old, new = b"numpy._core.", b"numpy.core."
        for module in (b"multiarray", b"numeric"):  # the strings carry their length in one byte
            data = data.replace(bytes([len(old + module)]) + old + module, bytes([len(new + module)]) + new + module)
        assert new in data and old not in data
        (tmp_path / "scaler.pkl").write_bytes(data)
        assert read_standard_scaler(tmp_path / "scaler.pkl")[0] == scaler.mean_.tolist()


class Touch:
    """Unpickled, this runs a command that leaves a file behind."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def hostile_scaler(attribute, value) -> StandardScaler:
    scaler = StandardScaler().fit(np.eye(12))
    setattr(scaler, attribute, value)
    return scaler


def attacks(mark) -> dict[str, bytes]:
    """Pickles that create the file `mark` when they are loaded."""
    touch = f"open({str(mark)!r}, 'w').close()"
    objects = {
        "system": Touch(os.system, f"touch {mark}"),
        "eval": Touch(eval, touch),
        "exec in the state": hostile_scaler("mean_", Touch(exec, touch)),
        "a subprocess in an unused attribute": hostile_scaler("copy", Touch(subprocess.call, ["touch", str(mark)])),
        "an object array": hostile_scaler("mean_", np.array([Touch(eval, touch)] * 12, dtype=object)),
        "open": Touch(open, str(mark), "w"),
    }
    attacks = {name: pickle.dumps(value, protocol=4) for name, value in objects.items()}
    stream = io.BytesIO()
    joblib.dump(objects["an object array"], stream)
    attacks["a pickle inside a joblib array"] = stream.getvalue()
    attacks["compressed"] = zlib.compress(attacks["eval"])
    attacks["a bomb"] = zlib.compress(attacks["eval"][:-1] + bytes(1 << 21))
    attacks["a chain of getattr"] = (
        b"\x80\x04cbuiltins\ngetattr\ncimportlib\nimport_module\n"
        + (_text("os") + b"\x85R" + _text("system") + b"\x86R")
        + (_text(f"touch {mark}") + b"\x85R.")
    )
    attacks["a dotted name"] = (
        b"\x80\x04" + _text("builtins") + _text("eval.__call__") + b"\x93" + _text(touch) + b"\x85R."
    )
    attacks["attributes of a known name"] = (
        b"\x80\x04" + _text("sklearn.preprocessing._data") + _text("StandardScaler.__init__.__globals__") + b"\x93."
    )
    attacks["the INST instruction"] = b"(" + b"V" + touch.encode() + b"\ni__builtin__\neval\n."
    attacks["an extension code"] = b"\x80\x02\x82\x01)R."
    attacks["a persistent id"] = b"P" + str(mark).encode() + b"\n."
    attacks["numpy's loader"] = (
        b"\x80\x04" + _text("numpy.lib.npyio") + _text("NpzFile") + b"\x93" + _text(str(mark)) + b"\x85R."
    )
    return attacks


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


@pytest.mark.parametrize("name", attacks("mark"))
def test_hostile_scaler_is_refused_and_nothing_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "mark"
    path = tmp_path / "scaler.pkl"
    path.write_bytes(attacks(mark)[name])
    with pytest.raises(ValueError, match="is no fitted StandardScaler"):
        read_standard_scaler(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "system",
        "eval",
        "exec in the state",
        "a subprocess in an unused attribute",
        "an object array",
        "open",
        "a chain of getattr",
        "a dotted name",
        "the INST instruction",
    ],
)
def test_the_attacks_are_real(name, tmp_path):
    pickle.loads(attacks(tmp_path / "mark")[name])
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "thing, reason",
    [
        (MinMaxScaler().fit(np.eye(12)), "MinMaxScaler"),
        (Pipeline([("scale", StandardScaler().fit(np.eye(12)))]), "Pipeline"),
        (StandardScaler(), "fit the scaler"),
        (StandardScaler(with_mean=False, with_std=False).fit(np.eye(12)), "fit the scaler"),
        (hostile_scaler("scale_", np.zeros(12)), "scale_ finite and positive"),
        (hostile_scaler("mean_", np.full(12, np.nan)), "finite"),
        (hostile_scaler("mean_", np.zeros(11)), r"shape \(11,\)"),
        (hostile_scaler("mean_", np.array(["x"] * 12)), "plain float32 or float64"),
        ({"mean_": np.zeros(12), "scale_": np.ones(12)}, "something else"),
        (np.zeros(12), "something else"),
    ],
)
def test_other_objects_are_refused(thing, reason, tmp_path):
    path = tmp_path / "scaler.pkl"
    for data in (pickle.dumps(thing, protocol=4), pickle.dumps(thing, protocol=5)):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=reason):
            read_standard_scaler(path)


def test_damaged_scalers_are_refused(scaler, tmp_path):
    path = tmp_path / "scaler.pkl"
    with pytest.raises(FileNotFoundError):
        read_standard_scaler(path)
    for compress in COMPRESSIONS:
        joblib.dump(scaler, path, compress=compress)
        data = path.read_bytes()
        for length in range(0, len(data) - 1, 37):
            path.write_bytes(data[:length])
            with pytest.raises(ValueError, match=str(path)):
                read_standard_scaler(path)


@given(st.sampled_from([3, 4, 5, "joblib"]), st.integers(0, 10**6), st.binary(min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_change_of_the_file_gives_numbers_or_a_value_error(tmp_path_factory, scaler, form, place, change):
    stream = io.BytesIO()
    joblib.dump(scaler, stream) if form == "joblib" else pickle.dump(scaler, stream, protocol=form)
    data = bytearray(stream.getvalue())
    place %= len(data)
    data[place : place + len(change)] = change
    path = tmp_path_factory.getbasetemp() / "changed.pkl"
    path.write_bytes(data)
    try:
        means, scales = read_standard_scaler(path)
    except ValueError:
        return
    assert np.isfinite(means).all() and len(means) == len(scales) and min(scales) > 0


def test_hostile_checkpoint_is_refused(tmp_path, files):
    mark, path = tmp_path / "mark", tmp_path / "hostile.pt"
    torch.save({"ecg_encoder.conv1.weight": Touch(os.system, f"touch {mark}")}, path)
    with pytest.raises(ValueError, match=r"hostile\.pt: is no checkpoint .* without running it: Weights only load"):
        main(["--checkpoint", str(path), "--output", files["output"], "--no-scaler"])
    assert not mark.exists()
