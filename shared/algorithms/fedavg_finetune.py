"""FedAvg + fine-tuning: FedAvg, and after the last round every device trains a copy of the global model on its own
data (Cheng, Chadha and Duchi, 2021, arXiv:2108.07313).

The baseline that every personalized algorithm has to beat: `fedavg` with another default of `finetune_epochs`. The
fine-tuning is SGD on every parameter, with the learning rate, the momentum and the weight decay of the rounds.
"""

from shared.algorithms.base import Algorithm, FinetuneEpochs, Hyperparameters


class FedAvgFinetuneHyperparameters(Hyperparameters):
    finetune_epochs: FinetuneEpochs = 10


FEDAVG_FINETUNE = Algorithm(
    name="fedavg-finetune", paper="arXiv:2108.07313", hyperparameters=FedAvgFinetuneHyperparameters, partial=True
)
