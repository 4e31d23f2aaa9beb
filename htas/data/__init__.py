"""What every data set becomes: splits of tensors, items loaded when asked for, and the task."""
