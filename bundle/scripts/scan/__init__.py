"""The scan that follows the head: the track of its poses, the slices to take, the loop of both."""
