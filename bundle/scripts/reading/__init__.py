"""What goes in: the cases of a folder, and one volume of any kind of file.

Knows nothing of networks, data sets for training or outputs. pydicom and SimpleITK are extras, and
imported where a file needs them.
"""

from .cases import Case
from .discovery import Found, find_cases
from .image import Image, VolumeError
from .read import read_image

__all__ = ["Case", "Found", "Image", "VolumeError", "find_cases", "read_image"]
