"""Sending a built data set to the Hub, as one commit."""

import json
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ecgformers.datasets_scripts.building import REJECTS, SUMMARY


def push(folder: Path, repo: str, public: bool = False, i_may_publish: bool = False) -> str:
    """Make the data set repo `repo` (created if need be, private unless `public`) hold exactly the built data set.

    One commit adds the files and deletes data files of an earlier build; a failure leaves the repo as it was.

    Returns:
        The URL of the commit.

    Raises:
        FileNotFoundError: `folder` is no data set built here.
        PermissionError: the repo is or would be public, the data set is credentialed, and `i_may_publish` is not set.
    """
    if not (folder / SUMMARY).exists():
        raise FileNotFoundError(f"{folder} is no data set built here: it has no {SUMMARY}")
    credentialed = json.loads((folder / SUMMARY).read_text())["credentialed"]
    api = HfApi()
    exists = api.repo_exists(repo, repo_type="dataset")
    is_public = not api.dataset_info(repo).private if exists else public
    if is_public and credentialed and not i_may_publish:
        raise PermissionError(
            f"{repo} {'is' if exists else 'would be'} public, and this data set is for people who signed its "
            "publisher's agreement.  Push it to a private repo, or add --i-may-publish if the agreement lets you"
        )
    api.create_repo(repo, repo_type="dataset", private=not public, exist_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != REJECTS)
    names = [path.relative_to(folder).as_posix() for path in files]
    there = api.list_repo_files(repo, repo_type="dataset")
    stale = [name for name in there if name.startswith("data/") and name not in names]
    commit = api.create_commit(
        repo,
        [CommitOperationAdd(name, path) for name, path in zip(names, files, strict=True)]
        + [CommitOperationDelete(name) for name in stale],
        repo_type="dataset",
        commit_message=f"Upload {folder.name}, built with ecgformers",
    )
    return commit.commit_url
