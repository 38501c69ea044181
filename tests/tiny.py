"""A recipe that runs all seven stages in seconds."""

TINY = {
    "classifier.steps": 60,
    "pretrain.steps": 8,
    "pretrain.batch_size": 32,
    "pretrain.warmup_steps": 2,
    "finetune.steps": 6,
    "finetune.sample_rate": 0.02,
    "finetune.draws": 2,
    "finetune.reservation": 2,
    "network.channels": 8,
    "synthesis.images_per_label": 6,
    "synthesis.batch_size": 20,
    "synthesis.sampler.steps": 3,
    "evaluation.epochs": 3,
    "evaluation.splits": 2,
}
