"""FedPer: the body is averaged, the head never leaves the device (Arivazhagan et al., 2019, arXiv:1912.00818,
algorithms 1 and 2).

Both are trained together, in the same SGD. Base layers and personalization layers of the paper are called body and
head here. Without a head it is FedAvg, with nothing but a head it is local training.
"""

from shared.algorithms.base import Algorithm
from shared.algorithms.head import HeadHyperparameters, body

FEDPER = Algorithm(
    name="fedper", paper="arXiv:1912.00818", hyperparameters=HeadHyperparameters, share=body, partial=True
)
