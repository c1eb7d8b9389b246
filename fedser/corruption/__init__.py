"""Conditions of the field: `corruption=[label_noise,noise,missing_labels,dropout]` chooses which hold.

They are of what is trained on: validation and test clips stay clean. All draws derive from the run's seed and the
client, and but for who answers in a round they are the same in every round. `field` is what all are used through.
"""
