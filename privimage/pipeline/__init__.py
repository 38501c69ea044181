"""The seven stages of a run: planned, foretold, checked, carried out and summed up."""

from privimage.pipeline.training import Machine, dry_run, train

__all__ = ["Machine", "dry_run", "train"]
