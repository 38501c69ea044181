"""The denoiser as a pipeline folder of Hugging Face's `diffusers`."""

from privimage.hub.write import write_pipeline

__all__ = ["write_pipeline"]
