"""The training loop and what it needs: step, schedule, evaluation, checkpoints, metrics, prediction, export."""
