"""A config that runs in about a second: small batches, a hardly trained policy."""

SMALL = [
    "policy.steps=40",
    "rollouts.prompts=4",
    "rollouts.completions=4",
    "rollouts.max_new_tokens=24",
    "evaluate.prompts=8",
    "evaluate.every=2",
    "train.steps=4",
    "train.value.warmup_iterations=1",
    "train.patience=100",
    "task.min_steps=1",
    "task.max_steps=2",
    "record.every=1",
    "record.tokens=true",
    "checkpoint.every=2",
]
