"""Means and scales of a fitted scikit-learn StandardScaler, read from its file without unpickling it.

A pickle is a program: whoever loads one runs it.  Here the program is followed on paper instead.  Calls are noted down
and never made, no name is imported, and a name that a StandardScaler has no use for ends the reading.  joblib's files
are pickles with the bytes of the arrays in between, optionally compressed.
"""

import bz2
import io
import lzma
import pickletools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

SCALER = "sklearn.preprocessing._data.StandardScaler"
JOBLIB_ARRAY = "joblib.numpy_pickle.NumpyArrayWrapper"
RECONSTRUCT, FROM_BUFFER = "numpy._core.multiarray._reconstruct", "numpy._core.numeric._frombuffer"
DTYPE = "numpy.dtype"
KNOWN_NAMES = {SCALER, JOBLIB_ARRAY, RECONSTRUCT, FROM_BUFFER, DTYPE, "numpy.ndarray", "numpy._core.multiarray.scalar"}
MAX_BYTES = 1 << 20  # once unpacked; a scaler of twelve leads takes about one kilobyte


def read_standard_scaler(path: str | Path) -> tuple[list[float], list[float]]:
    """`mean_` and `scale_` of a StandardScaler saved with pickle (protocol 3 or later) or joblib.

    Raises:
        ValueError: the file holds anything else, or the scaler was not fitted with mean and standard deviation.
    """
    data = Path(path).read_bytes()
    try:
        scaler = _follow(io.BytesIO(_decompress(data)))
        if not isinstance(scaler, _Call) or scaler.name != SCALER or not isinstance(scaler.state, dict):
            raise ValueError("it holds something else")
        means, scales = (_array(scaler.state.get(name)) for name in ("mean_", "scale_"))
        if means.ndim != 1 or means.shape != scales.shape:
            raise ValueError(f"mean_ has the shape {means.shape}, scale_ {scales.shape}")
        if not (np.isfinite(means).all() and np.isfinite(scales).all() and (scales > 0).all()):
            raise ValueError("mean_ must be finite, scale_ finite and positive")
    except Exception as error:  # whatever a damaged or hostile file provokes
        raise ValueError(f"{path} is no fitted StandardScaler in a form that is read here: {error}") from error
    return means.tolist(), scales.tolist()


@dataclass
class _Call:
    """What the pickle would have made: the name it calls, the arguments, and the state set afterwards."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    data: bytes = field(default=b"", repr=False)  # of a joblib array


def _follow(file: BinaryIO) -> Any:
    """The object that the pickle in `file` describes, made of constants, tuples, dicts and `_Call`s."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any

    def since_mark() -> list[Any]:
        mark = marks.pop()
        items = stack[mark:]
        del stack[mark:]
        return items

    for opcode, argument, position in pickletools.genops(file):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "SHORT_BINUNICODE" | "BINUNICODE" | "SHORT_BINBYTES" | "BINBYTES" | "BYTEARRAY8":
                stack.append(argument)
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "SETITEM":
                key, value = stack.pop(-2), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                items = since_mark()
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_known_name(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                stack[-2:] = [_known_name(f"{stack[-2]}.{stack[-1]}")]
            case "NEWOBJ" | "REDUCE":
                stack[-2:] = [_Call(*stack[-2:])]
            case "BUILD":
                state = stack.pop()
                stack[-1].state = state
                if stack[-1].name == JOBLIB_ARRAY:
                    stack[-1].data = _inline_bytes(file, state)
            case "STOP":
                return stack.pop()
            case _:
                raise ValueError(f"the instruction {opcode.name} at byte {position} has no place in a StandardScaler")
    raise ValueError("it ends too early")


def _known_name(name: str) -> str:
    name = name.replace("numpy.core.", "numpy._core.")  # as numpy 1 wrote it
    if name not in KNOWN_NAMES:
        raise ValueError(f"it asks for {name}, which has no place in a StandardScaler")
    return name


def _inline_bytes(file: BinaryIO, state: dict[str, Any]) -> bytes:
    """The bytes of an array that joblib has put behind the description `state` of it."""
    if "numpy_array_alignment_bytes" in state:
        file.read(file.read(1)[0])  # padding
    return file.read(_dtype(state["dtype"]).itemsize * int(np.prod(state["shape"])))


def _array(value: Any) -> np.ndarray:
    """float64 array from the notes on how to make it."""
    match value:
        case _Call(name=name, state={"dtype": dtype, "shape": shape}, data=data) if name == JOBLIB_ARRAY:
            pass
        case _Call(name=name, state=(_, shape, dtype, _, data)) if name == RECONSTRUCT:
            pass
        case _Call(name=name, arguments=(data, dtype, shape, _)) if name == FROM_BUFFER:
            pass
        case _:
            raise ValueError("mean_ and scale_ must be arrays: fit the scaler with_mean=True and with_std=True")
    return np.frombuffer(data, _dtype(dtype)).reshape(shape).astype(np.float64)


def _dtype(value: Any) -> np.dtype:
    match value:
        case _Call(name=name, arguments=("f4" | "f8" as code, *_), state=(_, "<" | ">" as order, *_)) if name == DTYPE:
            return np.dtype(order + code)
    raise ValueError("its arrays must hold plain float32 or float64 numbers")


def _decompress(data: bytes) -> bytes:
    """`data`, unpacked if joblib has compressed it with a module of the standard library."""
    decompressors: dict[bytes, Callable[[], Any]] = {
        b"x": zlib.decompressobj,
        b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),  # gzip
        b"BZh": bz2.BZ2Decompressor,
        b"\xfd7zXZ": lzma.LZMADecompressor,
        b"]\x00": lzma.LZMADecompressor,
    }
    for magic, make_decompressor in decompressors.items():
        if data.startswith(magic):
            decompressor = make_decompressor()
            data = decompressor.decompress(data, MAX_BYTES)
            if not decompressor.eof:
                raise ValueError(f"it ends too early, or holds more than {MAX_BYTES} bytes")
            return data
    return data
