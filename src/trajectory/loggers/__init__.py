"""Where a run's curves, pictures and tables go: always `metrics.csv`, and Weights & Biases, TensorBoard or others."""
