"""The parts behind `CIFAR100Pipeline`; each file can be read from top to bottom on its own."""
