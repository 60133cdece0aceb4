"""Fetching a data set from PhysioNet: resumable, every file verified against the publisher's SHA256SUMS.txt."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
from tqdm.auto import tqdm

PHYSIONET = "https://physionet.org/files"
SUMS = "SHA256SUMS.txt"


class FetchError(OSError):
    """A file cannot be fetched, or is not the one its publisher announces."""


def fetch(url: str, folder: Path, wanted: Callable[[str], bool], connections: int = 4) -> None:
    """Fetch the files that `url`/SHA256SUMS.txt lists and `wanted` accepts into `folder`.

    What is there and right is kept; a file that broke off goes on where it stopped.

    Raises:
        FetchError: the server refuses, or a file is not the one announced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with httpx2.Client(follow_redirects=True, timeout=60) as client:
        try:
            (folder / SUMS).write_bytes(client.get(f"{url}/{SUMS}").raise_for_status().content)
        except httpx2.HTTPError as error:
            raise FetchError(f"{url}/{SUMS}: {error}") from error
        files = [(digest, name) for digest, name in _announced(folder / SUMS) if wanted(name)]
        with ThreadPoolExecutor(connections) as pool:
            done = pool.map(lambda file: _fetch_file(client, f"{url}/{file[1]}", folder / file[1], file[0]), files)
            try:
                for _ in tqdm(done, total=len(files), desc=f"Fetching {url}", unit=" files"):
                    pass
            finally:
                pool.shutdown(cancel_futures=True)


def _announced(sums: Path) -> Iterator[tuple[str, str]]:
    root = sums.parent.resolve()
    for line in sums.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition(" ")
        name = name.strip().removeprefix("*")  # "*": sha256sum's mark of a binary file
        if len(digest) != 64 or not (root / name).resolve().is_relative_to(root):
            raise FetchError(f"{sums}: {line!r} is not a checksum and the name of a file below this folder")
        yield digest.lower(), name


def _fetch_file(client: httpx2.Client, url: str, path: Path, digest: str) -> None:
    part = path.with_name(f"{path.name}.part")
    if not _is(path, digest) and not _is(part, digest):
        path.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
        try:
            with client.stream("GET", url, headers={"Range": f"bytes={have}-"} if have else {}) as response:
                if response.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE:
                    part.unlink()  # as long as the file already, and not that file
                response.raise_for_status()
                with part.open("ab" if response.status_code == httpx2.codes.PARTIAL_CONTENT else "wb") as file:
                    for block in response.iter_bytes():
                        file.write(block)
        except httpx2.HTTPError as error:
            raise FetchError(f"{url}: {error}; run it again, it goes on where it stopped") from error
        if not _is(part, digest):
            part.unlink()
            raise FetchError(f"{url} is not the file that {SUMS} announces: its SHA-256 differs")
    if part.exists():
        part.replace(path)


def _is(path: Path, digest: str) -> bool:
    if not path.is_file():
        return False
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest() == digest
