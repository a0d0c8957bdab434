"""What the codes mean. Each file asks one question and answers it with figures, a baseline and a picture.

Questions about any data are here; those about Tabletop alone are in tabletop/.
"""
