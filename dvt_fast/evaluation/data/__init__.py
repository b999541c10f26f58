"""Labelled images in folders, of the layouts that people have: classes of pixels, depth, boxes."""
