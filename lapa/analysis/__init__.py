"""What the codes mean, in figures with a baseline: one question a file, each with its picture.

Questions about any data are here; those about Tabletop alone are in tabletop/.
"""
