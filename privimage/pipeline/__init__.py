"""The seven stages of a run: planned, foretold, checked, carried out and summed up."""

from privimage.pipeline.training import DEVICES, Machine, dry_run, train

__all__ = ["DEVICES", "Machine", "dry_run", "train"]
