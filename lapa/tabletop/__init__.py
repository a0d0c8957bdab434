"""Tabletop: a Language-Table-style pushing world, small and exact enough to run the whole paper on a laptop.

language  what can be asked, in which words          world   state, contacts, success
expert    the scripted demonstrator                  render  state -> pixels, in three looks
env       the Gymnasium face
"""
