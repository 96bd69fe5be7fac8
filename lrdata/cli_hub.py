"""The commands that share a dataset: options and help; the work is elsewhere."""

import shlex
from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--private", is_flag=True, help="Make a private repository.")
@click.option("--revision", metavar="BRANCH", help="Push to this branch.  [default: main]")
@click.option("--message", metavar="TEXT", help="Of the commit.")
@click.option("--quarantine", is_flag=True, help="Send the rejected records as well.")
@click.option("--allow-unlicensed", is_flag=True, help="Send it though a source has no licence.")
@click.option(
    "--allow-absolute-paths", is_flag=True, help="Send it though it names folders of a machine."
)
def push(
    folder: Path,
    repo: str,
    private: bool,
    revision: str | None,
    message: str | None,
    quarantine: bool,
    allow_unlicensed: bool,
    allow_absolute_paths: bool,
) -> None:
    """Share the dataset FOLDER at REPO: a dataset repository of the Hugging Face Hub, or a folder.

    Only what is not there yet is sent, and the manifest last, so the same command goes on after an
    interruption. A damaged dataset, sources without a licence and absolute paths are refused
    first. The token is the one of HF_TOKEN or of `hf auth login`.

    \b
    Examples:
      lrdata push shards me/my-128k --private
      lrdata push shards /mnt/share/my-128k
    """
    from lrdata.hub import push as push_dataset

    address = push_dataset(
        folder,
        repo,
        private=private,
        revision=revision,
        message=message,
        quarantine=quarantine,
        allow_unlicensed=allow_unlicensed,
        allow_absolute_paths=allow_absolute_paths,
    )
    command = shlex.join(["lrtrain", "run", address, "--model", "MODEL", "--out", "RUN"])
    click.echo(f"{address} holds {folder}; train on it with: {command}")


@click.command()
@click.argument("repo")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--only",
    type=click.Choice(["extend", "replay", "holdout"]),
    multiple=True,
    help="Only rows of this kind; may be given twice.  [default: all]",
)
@click.option("--revision", help="A branch, tag or commit.  [default: main]")
def pull(repo: str, folder: Path, only: tuple[str, ...], revision: str | None) -> None:
    """Get the dataset at REPO into the new FOLDER, and check every checksum.

    REPO is owner/name or hf://datasets/owner/name[@revision], or a folder. The same command goes
    on after an interruption.

    \b
    Examples:
      lrdata pull me/my-128k shards
      lrdata pull me/my-128k replay --only replay
    """
    from lrdata.hub import pull as pull_dataset

    manifest = pull_dataset(repo, folder, only=only, revision=revision)
    rows = sum(entry.rows for entry in manifest.files)
    click.echo(f"{folder} is complete: {rows:,} rows in {len(manifest.files):,} files")
