"""The world of E(3)-Pose's authors: their network, fast convolutions for it, their checkpoints."""
