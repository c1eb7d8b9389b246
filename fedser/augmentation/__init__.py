"""Augmentation of a client's training samples: `augment=[crop,mask,mixup]` chooses which, applied in this order.

Each is called once a round on all of a client's training samples, before an objective looks at them (adversarial
examples are made of augmented samples and keep their budget), and draws per clip and round: the same on any number of
actors, in any batch, on a CPU or a GPU.
"""
