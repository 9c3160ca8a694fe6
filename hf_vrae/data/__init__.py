"""From files to batches: the built-in corpus, tokenizers, data sets, bucketing, collating."""
