"""Judgement: metrics with error bars, baselines, the comparison and its page."""
