"""A dataset repository of the Hugging Face Hub, through the Hub's own client.

Reading: its revision is resolved to a commit once, and all files are of that commit. Writing:
content goes up a few files at a time, then one commit names it, on top of the commit that was seen,
so that two pushes at once cannot mix. What a push that was interrupted had sent, the Hub still has.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lrdata.errors import LongRecipeError
from lrdata.hub.client import api, insist, talking
from lrdata.hub.places import Held, HubAddress, Sent
from lrdata.progress import Task

_UPLOAD_TOGETHER = 8
_TYPE = "dataset"


class Repository:
    """A repository at one commit, which moves with what is pushed here."""

    def __init__(self, address: HubAddress) -> None:
        self._named, self._commit = address, ""

    @property
    def address(self) -> str:
        return str(self._named)

    @property
    def commit(self) -> str:
        """The commit that its revision is, as of the first time that this was asked."""
        named = self._named.revision or ""
        if not self._commit and _is_commit(named):
            self._commit = named
        if not self._commit:
            with talking(self.address):
                info = api().dataset_info(self._named.repo, revision=named or None)
                self._commit = info.sha or ""
        return self._commit

    # Reading

    def held(self) -> Mapping[str, Held]:
        commit = self.commit
        with talking(self.address):
            from huggingface_hub import RepoFile

            tree = api().list_repo_tree(
                self._named.repo, recursive=True, revision=commit, repo_type=_TYPE
            )
            return {
                entry.path: Held(
                    entry.size, entry.lfs.sha256 if entry.lfs else None, blob=entry.blob_id
                )
                for entry in tree
                if isinstance(entry, RepoFile)
            }

    def fetch(self, path: str, into: Path) -> None:
        self._download(path, into)

    def cached(self, path: str) -> Path:
        """A file in the client's own cache, fetched if it is not there. By any thread."""
        return self._download(path, None)

    def _download(self, path: str, into: Path | None) -> Path:
        repo, commit = self._named.repo, self.commit

        def request() -> str:
            return api().hf_hub_download(
                repo, path, repo_type=_TYPE, revision=commit, local_dir=into
            )

        return Path(insist(self.address, request))

    # Writing

    @contextmanager
    def writing(self, private: bool) -> Iterator[None]:
        self._prepare(private)
        yield

    def _prepare(self, private: bool) -> None:
        repo, branch = self._named.repo, self._named.revision
        if branch and _is_commit(branch):
            raise LongRecipeError(f"{self.address} is a commit; name a branch to push to")
        with talking(self.address, writing=True):
            # Without --private it is for the owner's settings on the Hub to say.
            api().create_repo(repo, private=private or None, repo_type=_TYPE, exist_ok=True)
            if private and not api().dataset_info(repo).private:
                raise LongRecipeError(
                    f"{self.address} is there and public, so nothing was sent; make it private "
                    "on the Hub, or choose another name"
                )
            if branch and not branch.startswith("refs/"):
                api().create_branch(repo, branch=branch, repo_type=_TYPE, exist_ok=True)

    def remove(self, paths: Sequence[str], message: str) -> None:
        from huggingface_hub import CommitOperationDelete

        self._make_commit([CommitOperationDelete(path) for path in paths], message)

    def add(self, files: Sequence[Sent], message: str, task: Task) -> None:
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(sent.path, str(sent.file)) for sent in files]
        for start in range(0, len(files), _UPLOAD_TOGETHER):
            group = operations[start : start + _UPLOAD_TOGETHER]
            with talking(self.address, writing=True):
                api().preupload_lfs_files(
                    self._named.repo,
                    additions=group,
                    repo_type=_TYPE,
                    revision=self._named.revision,
                    free_memory=False,
                )
            for sent, operation in zip(files[start:], group, strict=False):
                if operation.upload_info.sha256.hex() != sent.sha256:
                    raise sent.changed()
                task.advance(sent.size, note=sent.path)
        self._make_commit(operations, message)

    def _make_commit(self, operations: Sequence[object], message: str) -> None:
        parent = self.commit
        with talking(self.address, writing=True):
            made = api().create_commit(
                self._named.repo,
                operations,  # type: ignore[arg-type]  # of the two kinds made above
                commit_message=message,
                repo_type=_TYPE,
                revision=self._named.revision,
                parent_commit=parent,
            )
        self._commit = made.oid


def _is_commit(revision: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None
