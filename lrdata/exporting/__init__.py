"""The rows of a dataset for another trainer, with what that trainer makes of them.

    made = export(Path("shards"), "trl", Path("for-trl"))
    made.warning  # where it would train something else than you think, and what to do

      rows -> documents -> columns that the trainer reads         documents
      what it does with positions and documents, its settings     trl, axolotl
      README.md in the new folder, with those settings            readme

A row of the export is one attention document: no trainer then needs `seq_lengths` to keep documents
apart. Positions stay what they are, and those with gaps are what trainers get wrong.
"""

from lrdata.exporting.writing import TRAINERS as TRAINERS
from lrdata.exporting.writing import Exported as Exported
from lrdata.exporting.writing import export as export
