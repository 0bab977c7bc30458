"""What is trained between a frozen encoder and a frozen language model.

An adapter gives embeddings of frames, and their number; `spans`, of the same arguments, says of which frames each is.
"""
