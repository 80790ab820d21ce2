"""What a trainer needs beside MONAI: batches, losses, steps, checkpoints."""
