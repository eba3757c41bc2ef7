"""Weights of encoders as files on this computer; no networks.

Offers: the catalogue of what there is (`catalogue`), the folder of what is here (`store`), how files get there
(`acquisition`, by `download` and `wheels`), consent to run a model's own code (`trust`) and safe reading
(`checkpoints`). May use: `core`. Nothing but `checkpoints` imports torch.
"""
