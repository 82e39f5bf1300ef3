"""A learned sink per head: a logit that takes weight and gives nothing."""
