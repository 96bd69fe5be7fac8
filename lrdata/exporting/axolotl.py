"""axolotl, with a dataset that is tokenized already.

It takes one with `input_ids`, `attention_mask` and `labels` as it is, whatever `type:` says
(`get_dataset_wrapper`). With `sample_packing` it writes new `position_ids` over ours
(`process_datasets_for_packing`); without, its collator pads ours and the attention mask, and the
model gets both. `bench/axolotl_check.py` has axolotl itself train on an export and compares.
"""

from collections.abc import Sequence

from lrdata.exporting.documents import Tally
from lrdata.exporting.trainer import Trainer


def _settings(tally: Tally) -> Sequence[str]:
    if tally.gapped:
        packing = [
            "sample_packing: false  # else it writes other positions over these",
            "pad_to_sequence_len: false",
            "micro_batch_size: 1",
        ]
    else:
        packing = [
            "sample_packing: true",
            "attn_implementation: sdpa  # or flash_attention_2; with none, rows see each other",
        ]
    return [
        "```yaml",
        "datasets:",
        "  - path: DIR",
        "    split: train",
        "    type:",
        f"sequence_len: {tally.longest}  # or more",
        "excess_length_strategy: raise  # else longer rows are dropped",
        *packing,
        "val_set_size: 0",
        "```",
    ]


def _behaviour(tally: Tally) -> Sequence[str]:
    if not tally.gapped:
        return [
            "With `sample_packing: true` it counts positions anew in every row. Ours have no gaps, "
            "so these are the same, or a constant apart, which RoPE does not see: it trains what "
            "it should.",
            "It keeps packed rows apart where `attn_implementation` is set. Where it is not, it "
            "warns and trains, and a row attends to those packed before it.",
            "With `sample_packing: false` it hands over ours.",
            _PREPARED,
        ]
    return [
        "With `sample_packing: true` it writes positions of its own over `position_ids`: it trains "
        "on the kept text as if it had been one short text, and the window is not learned.",
        "With `sample_packing: false` it hands `position_ids` to the model together with "
        "`attention_mask`. transformers 5 looks for packed documents in positions only where "
        "there is no mask, so attention crosses gaps. Keep the mask.",
        "With `attn_implementation: flash_attention_2` a mask without padding counts as none, but "
        "a document then ends only where positions start over, and in a row ours never do.",
        _PREPARED,
    ]


_PREPARED = (
    "What it prepared it keeps (`dataset_prepared_path`, by default `last_run_prepared`), and "
    "knows it again by DIR and settings, not by content. After another export into DIR, delete "
    "it; else the rows of before are trained."
)

AXOLOTL = Trainer(
    name="axolotl",
    known_from="axolotl 0.19.0 with its transformers 5.16.1, run on such rows on a CPU; "
    "what is said of FlashAttention was read in their source",
    settings=_settings,
    behaviour=_behaviour,
    when="with `sample_packing: true`",
    wrong="it writes 0, 1, 2, ... over the position_ids of every row",
    fix="Set `sample_packing: false`, as the export's README.md does, and keep the attention_mask",
)
