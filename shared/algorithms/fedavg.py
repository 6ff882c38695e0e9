"""FedAvg: every device trains the whole model, the coordinator averages (McMahan et al., AISTATS 2017,
arXiv:1602.05629, algorithm 1).

The defaults of `Algorithm` are FedAvg, so nothing is left to say. With `finetune_epochs` above 0 it is the baseline
FedAvg + fine-tuning, which any personalized algorithm has to beat.
"""

from shared.algorithms.base import Algorithm

FEDAVG = Algorithm(name="fedavg", paper="arXiv:1602.05629", partial=True)
