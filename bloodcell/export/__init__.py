"""A classifier as files that other programs run: uint8 images in, probabilities out, everything else inside.

What belongs here: one file for each format, what all of them hold (`deployed`), and how a written file is compared with
what it was made of (`checking`). Which runs, which images and where to are the commands' business.
"""
