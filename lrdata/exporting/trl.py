"""TRL's SFTTrainer.

It reads `input_ids`, `labels` and its own `seq_lengths` and drops every other column
(`SFTTrainer._set_signature_columns_if_needed`); its collator makes an attention mask, or, padding
free, positions that count from 0 in each row. A collator of one's own, with columns left in place,
is all that it takes to keep ours.
"""

from collections.abc import Sequence

from lrdata.exporting.documents import IGNORED, Tally
from lrdata.exporting.trainer import Trainer


def _settings(tally: Tally) -> Sequence[str]:
    """A whole script; `tests/lrdata/test_exporting.py` runs it."""
    gaps = bool(tally.gapped)
    return [
        "```python",
        *(["import torch"] if gaps else []),
        "from datasets import load_dataset",
        "from trl import SFTConfig, SFTTrainer",
        "",
        *(_COLLATOR if gaps else []),
        "SFTTrainer(",
        '    model="MODEL",',
        '    train_dataset=load_dataset("DIR", split="train"),',
        *(["    data_collator=with_positions,"] if gaps else []),
        "    args=SFTConfig(",
        '        output_dir="OUT",',
        "        max_length=None,  # else rows are cut at 1,024 tokens",
        "        packing=False,",
        *(["        remove_unused_columns=False,  # else position_ids go"] if gaps else []),
        "        per_device_train_batch_size=1,",
        "    ),",
        ").train()",
        "```",
    ]


_COLLATOR = [
    "",
    "def with_positions(rows):",
    '    """Padded batches that keep position_ids. The mask keeps gaps from cutting attention."""',
    '    longest = max(len(row["input_ids"]) for row in rows)',
    f"    padding = dict(input_ids=0, attention_mask=0, labels={IGNORED}, position_ids=0)",
    "    return {",
    "        name: torch.tensor(",
    "            [row[name] + [value] * (longest - len(row[name])) for row in rows]",
    "        )",
    "        for name, value in padding.items()",
    "    }",
    "",
    "",
]


def _behaviour(tally: Tally) -> Sequence[str]:
    if not tally.gapped:
        return [
            "It counts positions anew in every row. Ours have no gaps, so these are the same, or "
            "a constant apart, which RoPE does not see: it trains what it should.",
            "`packing=True`, and `padding_free=True` with `packing=False`, are right too: they "
            "keep rows apart.",
        ]
    return [
        "As it is, it drops `position_ids` and counts 0, 1, 2, ... in every row: it trains on the "
        "kept text as if it had been one short text, and the window is not learned.",
        "`packing=True` and `padding_free=True` count anew as well, and take no collator.",
        "Handing it `position_ids` without an attention mask is worse: transformers 5 takes every "
        "gap for the start of another document and cuts attention there, without a word.",
        "The script above hands over both. Then positions are ours, and attention crosses gaps.",
    ]


TRL = Trainer(
    name="TRL's SFTTrainer",
    known_from="TRL 1.16.0 with transformers 5.23.0, run on such rows",
    settings=_settings,
    behaviour=_behaviour,
    when="as it is",
    wrong="it drops position_ids and counts 0, 1, 2, ... in every row",
    fix="Use the script in the export's README.md, whose collator keeps them beside an "
    "attention_mask",
)
