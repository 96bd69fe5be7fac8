"""A built dataset, wherever it lies, opened for reading."""

from pathlib import Path

from lrdata.shards import Shards, open_folder


def open_dataset(folder: str | Path) -> Shards:
    """Open a built dataset: a folder, or `hf://datasets/owner/name[@revision]` on the Hub.

    Of one on the Hub a shard is fetched when its first row is read. Raises LongRecipeError when it
    is not one that this version reads.
    """
    if isinstance(folder, str) and "://" in folder:
        from lrdata.hub.streaming import open_on_hub  # with the extra hub

        return open_on_hub(folder)
    return open_folder(Path(folder))
