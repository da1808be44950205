"""How good a checkpoint is: tasks, metrics, intervals and the table that shows them."""
