"""The audit of a labelled set: copies of one picture, contaminants, images that cannot be what they are said to be."""
