"""axolotl, with a dataset that is tokenized already.

It takes one with `input_ids`, `attention_mask` and `labels` as it is, whatever `type:` says
(`get_dataset_wrapper`). With `sample_packing` it writes new `position_ids` over ours
(`process_datasets_for_packing`); without, its collator pads ours and the attention mask, and the
model gets both.
"""

from collections.abc import Sequence

from lrdata.exporting.documents import Tally
from lrdata.exporting.trainer import Trainer


def _settings(tally: Tally) -> Sequence[str]:
    packing = "false  # else it writes other positions over these" if tally.gapped else "true"
    return [
        "```yaml",
        "datasets:",
        "  - path: DIR",
        "    split: train",
        "    type:",
        f"sequence_len: {tally.longest}  # or more: longer rows are dropped",
        "excess_length_strategy: raise",
        f"sample_packing: {packing}",
        *(["pad_to_sequence_len: false", "micro_batch_size: 1"] if tally.gapped else []),
        "val_set_size: 0",
        "```",
    ]


def _behaviour(tally: Tally) -> Sequence[str]:
    if not tally.gapped:
        return [
            "With `sample_packing: true` it counts positions anew in every row and keeps rows "
            "apart. Ours have no gaps, so these are the same, or a constant apart, which RoPE "
            "does not see: it trains what it should.",
            "With `sample_packing: false` it hands over ours.",
        ]
    return [
        "With `sample_packing: true`, or `use_pose`, it writes positions of its own over "
        "`position_ids`: it trains on the kept text as if it had been one short text, and the "
        "window is not learned.",
        "With `sample_packing: false` it hands `position_ids` to the model together with "
        "`attention_mask`. transformers 5 looks for packed documents in positions only where "
        "there is no mask, so attention crosses gaps. Keep the mask.",
    ]


AXOLOTL = Trainer(
    name="axolotl",
    known_from="the source of axolotl 0.19.0 and of its transformers 5.16.1; its collator was run "
    "on such rows, with transformers 5.23.0, and the whole of it was not",
    settings=_settings,
    behaviour=_behaviour,
    when="with `sample_packing: true`",
    wrong="it writes 0, 1, 2, ... over the position_ids of every row",
    fix="Set `sample_packing: false`, as the export's README.md does, and keep the attention_mask",
)
