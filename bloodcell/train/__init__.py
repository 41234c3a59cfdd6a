"""Training: the compiled step, stages, optimizers, schedules, losses, averages, checkpoints, devices, progress.

Reading images, the augmentation ops and the networks themselves live in `data`, `augment` and `models`.
"""
