"""``face-restore bench``: how fast the network, the stages and the whole job are on this machine.

Every variant of the network lives in a process of its own (``child``), so that its memory, its
first face and its steady time are its own; the parent (``network``) has them work in turn.
"""
