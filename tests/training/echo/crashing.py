"""A function for tests of processes that die; it stands alone, for a fast start of those processes."""

import os


def square(number: int) -> int:
    if number == 3:
        os._exit(1)  # as a crash in native code
    if number == 50:
        raise ValueError("fifty")
    return number**2
