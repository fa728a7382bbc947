"""Where distillation helps the task, and what sparsity costs, layer by layer."""
