"""What is done with a run or before one: one folder a capability, with all its sides. No tool imports another."""
