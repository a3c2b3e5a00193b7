"""Training of world models: the loop, its checkpoints, validation and logs."""

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
"""Names of the trackers of :mod:`wm_gym.training.trackers`; the package of each has the same name."""
