"""Look at rows: `lrdata inspect`, in the terminal (`terminal`) and as a page (`page`).

`view` is what both show of a row, `spelling` the text of its tokens; `window` finds in the corpus
what selection dropped.
"""
