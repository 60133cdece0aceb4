"""Files that are no checkpoint end in one line that names them, and run nothing."""

import pytest
import torch

from ecgformers.modeling.converting.checkpoint import load_checkpoint


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04evil", b"PK\x03\x04", b"\x80\x02cos\nsystem\n(S'false'\ntR.", b"text"]
)
def test_damaged_checkpoints_are_refused_by_name(tmp_path, content, suffix):
    path = tmp_path / f"theirs.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no checkpoint that can be read without running it: ") as error:
        load_checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_cut_checkpoint(tmp_path):
    torch.save({"weight": torch.ones(100)}, tmp_path / "theirs.pt")
    (tmp_path / "theirs.pt").write_bytes((tmp_path / "theirs.pt").read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"theirs\.pt: is no checkpoint"):
        load_checkpoint(tmp_path / "theirs.pt")
