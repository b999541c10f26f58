"""Denoising Vision Transformers as a fast, embeddable engine. Names are imported when first used."""

__version__ = "0.1.0"
