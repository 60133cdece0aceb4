"""ECG foundation models for the Hugging Face Hub.  For research use; not a medical device.

Importing the package registers its models with the transformers Auto classes.
"""

from pathlib import Path

__version__ = "0.1.0"

_here = Path(__file__).resolve().parent
if not (_here / "modeling").is_dir():  # a source checkout: the sub-packages lie beside this folder
    __path__.append(str(_here.parent))
