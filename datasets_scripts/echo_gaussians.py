"""The Gaussians of echo studies that `training.echo.extract_features` writes, read back."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq


def read_gaussians(path: Path, dim: int) -> dict[str, np.ndarray]:
    """The means and log-variances of echo studies, side by side: study -> (2 * dim,)."""
    table = pq.read_table(path, columns=["study_id", "echo_embeds", "echo_logvar"])
    parts = [np.array(table[name].to_pylist(), np.float32) for name in ("echo_embeds", "echo_logvar")]
    if parts[0].shape[1:] != (dim,):
        raise ValueError(f"{path}: echo_embeds are {parts[0].shape[1:]}, the model's embeddings ({dim},)")
    return dict(zip(table["study_id"].to_pylist(), np.concatenate(parts, axis=1), strict=True))
